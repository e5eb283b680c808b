"""`tailwise recipes`."""

from rich.console import Console

from tailwise.cli.options import Json
from tailwise.cli.output import print_json


def recipes(*, json: Json = False) -> None:
    """List the recipes and suites that `train` knows."""
    from tailwise.recipes.catalog import RECIPES, SUITES
    from tailwise.recipes.detection import DETECTION_RECIPES, DETECTION_SUITES

    if json:
        print_json(
            {
                "suites": {name: list(members) for name, members in SUITES.items()},
                "recipes": [recipe.model_dump(mode="json") for recipe in RECIPES.values()],
                "detection_suites": {name: list(members) for name, members in DETECTION_SUITES.items()},
                "detection_recipes": [recipe.model_dump(mode="json") for recipe in DETECTION_RECIPES.values()],
            }
        )
        return
    from tailwise.report.detection import print_detection_recipes
    from tailwise.report.table import print_recipes

    print_recipes(Console(), [recipe.model_dump() for recipe in RECIPES.values()], SUITES)
    print_detection_recipes(Console(), [recipe.model_dump() for recipe in DETECTION_RECIPES.values()], DETECTION_SUITES)
