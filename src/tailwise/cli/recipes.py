"""`tailwise recipes`."""

from rich.console import Console

from tailwise.cli.options import Json
from tailwise.cli.output import print_json


def recipes(*, json: Json = False) -> None:
    """List the recipes and suites that `train` knows."""
    from tailwise.recipes.catalog import RECIPES, SUITES

    if json:
        print_json(
            {
                "suites": {name: list(members) for name, members in SUITES.items()},
                "recipes": [recipe.model_dump(mode="json") for recipe in RECIPES.values()],
            }
        )
        return
    from tailwise.report.table import print_recipes

    print_recipes(Console(), [recipe.model_dump() for recipe in RECIPES.values()], SUITES)
