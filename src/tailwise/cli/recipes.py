"""`tailwise recipes`."""

from typing import Annotated, Any

from cyclopts import Parameter

from tailwise import checks
from tailwise.cli.options import Json
from tailwise.cli.output import Output, print_json


def recipes(
    name: Annotated[
        str | None, Parameter(help="Data (digits-lt): its recipes; a suite; a recipe (digits-lt/tde): its settings.")
    ] = None,
    /,
    *,
    json: Json = False,
) -> None:
    """List what `train` knows: data sets, their recipes and suites, the settings of a recipe."""
    from tailwise.recipes.catalog import RECIPES, SUITES
    from tailwise.recipes.detection_catalog import DETECTION_RECIPES, DETECTION_SUITES
    from tailwise.recipes.published import published
    from tailwise.recipes.schema import Recipe

    def told(recipe: Any) -> dict[str, Any]:
        numbers = published(recipe) if isinstance(recipe, Recipe) else ()
        return {**recipe.model_dump(mode="json"), "published": [number.model_dump() for number in numbers]}

    every: dict[str, Any] = {**RECIPES, **DETECTION_RECIPES}
    suites = {**SUITES, **DETECTION_SUITES}
    data = dict.fromkeys(one.data.name for one in every.values())
    if name is not None:
        checks.choice("name", name, [*data, *suites, *every])
    members = [*data] if name is None else [name]
    chosen = {key: one for key, one in every.items() if key == name or one.data.name in members}
    if name in suites and name not in data:
        chosen = {key: every[key] for key in suites[name]}
    inside = {key: list(names) for key, names in suites.items() if set(names) & chosen.keys() and name not in every}
    if json:
        print_json(
            {
                "suites": {key: names for key, names in inside.items() if key in SUITES},
                "recipes": [told(one) for key, one in chosen.items() if key in RECIPES],
                "detection_suites": {key: names for key, names in inside.items() if key in DETECTION_SUITES},
                "detection_recipes": [told(one) for key, one in chosen.items() if key in DETECTION_RECIPES],
            }
        )
        return
    from tailwise.report.recipes import print_data_sets, print_recipes, print_settings

    shown = [told(one) for one in chosen.values()]
    if name is None:
        print_data_sets(Output(), shown, suites)
    elif name in every:
        from tailwise.recipes.overrides import settings_of

        print_settings(Output(), shown[0], settings_of(every[name]))
    else:
        print_recipes(Output(), shown, {key: names for key, names in inside.items() if name in (key, *data)})
