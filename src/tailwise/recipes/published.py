"""The numbers of the literature, read from `published.toml`: every cell with what it was measured on."""

import tomllib
from functools import cache
from importlib import resources
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from tailwise import checks
from tailwise.recipes.schema import Recipe
from tailwise.recipes.stages import SamplerName, Settings

EMPTY = {"value": "-"}
Percent = Annotated[float, Field(ge=0, le=100)]
Metric = Literal[
    "many", "medium", "few", "all", "error", "ece", "AP", "AP50", "AP75", "APr", "APc", "APf", "APbbox"
]  # all: top-1 over all classes; error: 100 less that; ece: expected calibration error


class Cell(Settings):
    """One printed number, in percent, and all that is known of how it came about; None is what is not said.

    row: as printed. metric, value, spread: spread is the deviation over runs. method: the row of ours. recipe: the one
    that reports it, by its whole name; another imbalance ratio than the recipe's own is `data.imbalance_ratio=50`.
    split: "very likely val" where a paper says test. epochs: of the first stage. sampler: None is instance-balanced.
    quoted: whose number it is, None for the paper's own. num_heads, tau, gamma, alpha: of Tang et al., Eq. 7 and 8,
    where a table varies them. setting: any other difference to rows of this name. settings: what a
    row of the paper's own has other than the recipe, as overrides of it.
    """

    row: str
    metric: Metric
    value: Percent
    spread: NonNegativeFloat | None = None
    data: str
    imbalance_ratio: Annotated[float, Field(ge=1)] | None = None
    split: Literal["test", "val", "very likely val"] | None = None
    backbone: str
    epochs: PositiveInt | None = None
    sampler: SamplerName | None = None
    quoted: str | None = None
    method: str | None = None
    recipe: str | None = None
    num_heads: PositiveInt | None = None
    tau: PositiveFloat | None = None
    gamma: NonNegativeFloat | None = None
    alpha: NonNegativeFloat | None = None
    setting: str | None = None
    settings: tuple[str, ...] = ()

    @property
    def network(self) -> str:
        """What settings call the backbone: "resnet32-two-branch", "resnext50-32x4d", of a detector "resnet101"."""
        plain = self.backbone.removeprefix("two-branch ").removesuffix("-FPN")
        joined = plain.lower().replace("resnet-", "resnet").replace("resnext-", "resnext")
        return joined + "-two-branch" * self.backbone.startswith("two-branch ")


class Table(Settings):
    """A printed table. number: of the arXiv version, None for the anchors. rows: shorter where a cell is empty."""

    paper: str
    number: PositiveInt | None = None
    about: str
    note: str = ""
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(chain.from_iterable(self.rows))


class Published(Settings):
    """A number of the papers: top-1 of one method over all classes, in percent, and where it is printed."""

    method: str
    all: float
    source: str


def _cell(*levels: dict[str, Any]) -> Cell:
    """A later level has the last word; "?" is not said. The file names a recipe by its title, whatever the data."""
    said = {key: word for level in levels for key, word in level.items()}
    if "recipe" in said:
        said["recipe"] = f"{said['data']}/{said['recipe']}"
    return Cell(**{key: word for key, word in said.items() if word != "?"})


def _table(block: dict[str, Any]) -> Table:
    about = {key: block.pop(key) for key in ("paper", "number", "about", "note") if key in block}
    columns = [column if isinstance(column, dict) else {"metric": column} for column in block.pop("columns")]
    rows = []
    for row in block.pop("rows"):
        values = [{"value": value} for value in row.pop("values")]
        spreads = [{"spread": spread} for spread in row.pop("spread", [])] or [{} for _ in values]
        printed = zip(columns, values, spreads, strict=True)
        rows.append(
            tuple(_cell(block, column, row, value, spread) for column, value, spread in printed if value != EMPTY)
        )
    return Table(rows=tuple(rows), **about)


@cache
def published_tables() -> tuple[Table, ...]:
    """Every table of `published.toml`, in its order.

    >>> [table.number for table in published_tables() if table.paper == "Kang et al. 2020"]
    [1, 2, 3, 4, 5, 7]
    """
    text = resources.files("tailwise.recipes").joinpath("published.toml").read_text(encoding="utf-8")
    return tuple(_table(block) for block in tomllib.loads(text)["table"])


def published_table(paper: str, number: int) -> Table:
    """One table of a paper.

    Raises:
        InputError: no such paper, or none of its tables has this number.

    >>> published_table("Tang et al. 2020", 3).rows[-1][0].value
    44.1
    """
    numbered = {(table.paper, table.number): table for table in published_tables() if table.number}
    checks.choice("paper", paper, dict.fromkeys(name for name, _ in numbered))
    checks.choice("number", str(number), [str(known) for name, known in numbered if name == paper])
    return numbered[paper, number]


def published(recipe: Recipe) -> tuple[Published, ...]:
    """What the papers print for the rows of a recipe, over all classes, at its imbalance ratio, on its network.

    The first table that has a row speaks for it.

    >>> from tailwise.recipes.catalog import RECIPES
    >>> [number.all for number in published(RECIPES["cifar100-lt/tde"])]
    [40.5, 44.1]
    """
    asked = (recipe.name, getattr(recipe.data, "imbalance_ratio", None), recipe.backbone.name, "all")
    found: dict[str, Published] = {}
    for table in published_tables():
        for cell in table.cells if table.number else ():
            here = (cell.recipe, cell.imbalance_ratio, cell.network, cell.metric) == asked
            if here and cell.method and not cell.settings:
                ratio = "" if cell.imbalance_ratio is None else f", ratio {cell.imbalance_ratio:g}"
                of_val = f", {cell.split}" * (cell.split == "very likely val")
                of_others = f", of {cell.quoted}" * bool(cell.quoted)
                source = f"{table.paper}, Table {table.number}{ratio}{of_val}{of_others}"
                found.setdefault(cell.method, Published(method=cell.method, all=cell.value, source=source))
    return tuple(found[method] for method in recipe.methods if method in found)
