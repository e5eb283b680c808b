"""What can be trained, for a terminal: the data sets, the recipes of one, the settings of a recipe."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Suites = Mapping[str, Sequence[str]]


def print_data_sets(console: Console, recipes: Sequence[dict[str, Any]], suites: Suites) -> None:
    """A line for each data set: what is trained on it, how many recipes there are, and the suites."""
    table = _table("data", "trains", "recipes", "suites")
    table.columns[2].justify = "right"
    for data, members in _by_data(recipes).items():
        names = [name.partition("/")[2] for name in suites if name.startswith(f"{data}/")]
        table.add_row(data, _about(members[0]), str(len(members)), ", ".join(names))
    console.print(table)
    for command, what in (
        ("tailwise recipes DATA", "its recipes, the rows each reports, what each suite trains"),
        ("tailwise recipes DATA/NAME", "the settings of a recipe, each a key to override: train DATA/NAME key=value"),
        ("tailwise train DATA", "the suite of that name"),
    ):
        _say(console, f"{command:<28}{what}")


def print_recipes(console: Console, recipes: Sequence[dict[str, Any]], suites: Suites) -> None:
    """Every recipe below the data it belongs to, with the rows it reports and the paper's numbers; then the suites."""
    for data, members in _by_data(recipes).items():
        _say(console, f"{data}: {_about(members[0])}")
        table = _table(f"{data}/", "rows, and published accuracy over all classes")
        for recipe in members:
            table.add_row(recipe["name"].split("/")[1], escape(_rows(recipe)))
        console.print(table)
        for suite, names in suites.items():
            if suite.split("/")[0] == data:
                _say(console, f"suite {suite}: {', '.join(name.split('/')[1] for name in names)}")


def print_settings(console: Console, recipe: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """A recipe's settings by the keys that override them."""
    _say(console, f"{recipe['name']}: {_about(recipe)}; rows {_rows(recipe)}")
    for key, value in settings.items():
        _say(console, f"  {key}={value}")


def _by_data(recipes: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for recipe in recipes:
        found.setdefault(recipe["data"]["name"], []).append(recipe)
    return found


def _about(recipe: dict[str, Any]) -> str:
    """What is trained how long: "ratio 50, digits-net, 60 epochs, 5 seeds"."""
    seeds = f"{recipe['seeds']} seed{'s' * (recipe['seeds'] > 1)}"
    if "detector" in recipe:
        detector, epochs = recipe["detector"], recipe["training"]["epochs"]
        return f"{detector['framework']}, {detector['backbone']}, {epochs} epochs, {seeds}"
    ratio = f"ratio {recipe['data']['imbalance_ratio']:g}, " if "imbalance_ratio" in recipe["data"] else ""
    epochs = " + ".join(str(stage["epochs"]) for stage in recipe["stages"])
    return f"{ratio}{recipe['backbone']['name']}, {epochs} epochs, {seeds}"


def _rows(recipe: dict[str, Any]) -> str:
    """The rows it reports; with numbers in print "de-confound, tde; Tang et al. 2020, Table 3: tde 44.1"."""
    rows, published = ", ".join(recipe.get("methods") or recipe["rows"]), recipe.get("published", ())
    if not published:
        return rows
    numbers = ", ".join(f"{one['method']} {one['all']:.1f}" for one in published)
    return f"{rows}; {', '.join(dict.fromkeys(one['source'] for one in published))}: {numbers}"


def _table(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, header in enumerate(headers):
        table.add_column(header, no_wrap=number == 0)
    return table


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
