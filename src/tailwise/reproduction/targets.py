"""What `tailwise reproduce` compares: the numbers of a printed table, each with the recipe and row that give ours."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

from tailwise import checks
from tailwise.recipes.catalog import DECOUPLING, RECIPES, SAMPLERS, TABLE_3
from tailwise.recipes.detection import OWN_ROW, WITHOUT_EXEMPTION, DetectionRecipe
from tailwise.recipes.detection_catalog import DETECTION_RECIPES
from tailwise.recipes.overrides import override
from tailwise.recipes.published import Cell, published_table, published_tables
from tailwise.recipes.schema import Recipe

TANG, KANG = "Tang et al. 2020", "Kang et al. 2020"
PRINTED: dict[str, tuple[str, int]] = {
    f"{paper.split()[0].lower()}-{table.number}": (paper, table.number)
    for paper in (TANG, KANG)
    for table in published_tables()
    if table.paper == paper and table.number
}
# Tables of ours: rows without a printed number
FIGURE_1 = "Kang et al. 2020, Figure 1, on CIFAR-100-LT; the figure is of ImageNet-LT and has no numbers in print"
CLAIMS = "The runs that benchmarks/claims.py asks what the papers claim; no number of them is in print"
OURS = {"kang-figure-1": FIGURE_1, "claims": CLAIMS}
TABLES = (*PRINTED, *OURS)

NOT_EXEMPTED = "background not exempted"  # what Tang et al. say of a detector's row
OTHERS = ("Liu et al. 2019", "Cao et al. 2019")  # quoted beside Kang et al.'s rows, each trained in a way of its own
OWN = "own"  # of these rows of others: our setting is that of the paper's own rows
SERVER = "printed of a server, whose annotations are not public"

VAL_IS_TEST = ("inaturalist-2018",)
CIFAR = ("cifar100-lt", "cifar10-lt")
RATIOS = (100, 50, 10)
BALANCED = ("data.imbalance_ratio=1", "data.max_count=108")  # as many images as CIFAR-100-LT at ratio 100 has

# How far a mean may lie below the printed number, in points; docs/reproduction.md says why.
FEW, OWN_ON_CIFAR, OF_VAL, ON_CIFAR, ELSEWHERE = 2.0, 1.5, 1.5, 1.0, 0.5


@dataclass(frozen=True)
class Target:
    """One number of a table: what is printed, and what of ours stands beside it.

    section: what of the table it belongs to, "cifar100-lt-50". setting: whose setting of training, where rows differ.
    printed: None where no number is. spread: of the source. quoted: whose number it is, None for the paper's own.
    recipe: complete but for protocol and subset; None says why not in `lacks`. alpha: of a row of TDE that is not at
    the recipe's own. asked: planned without being asked for by name. on_val: printed of val, and ours is of val, too.
    """

    section: str
    row: str
    metric: str
    method: str
    setting: str | None = None
    printed: float | None = None
    spread: float | None = None
    split: str | None = None
    quoted: str | None = None
    recipe: Recipe | DetectionRecipe | None = None
    lacks: str | None = None
    alpha: float | None = None
    asked: bool = True
    on_val: bool = False

    @property
    def key(self) -> str:
        """What it is called by in --rows."""
        title = title_of(self.recipe, self.method) if isinstance(self.recipe, Recipe) else self.method
        return f"{self.section}/{title}"

    @property
    def under(self) -> str:
        """The protocol it is compared under; "paper" looks at no val, and what is printed of val was chosen on it."""
        return "clean" if self.on_val else "paper"

    @property
    def tolerance(self) -> float | None:
        """How far the mean of ours may lie below the printed number, in points; None where settings differ."""
        if self.setting == OWN:
            return None
        if self.metric in ("few", "APr"):
            return FEW
        if self.section.startswith("cifar"):
            return OWN_ON_CIFAR if self.method in ("de-confound", "tde") else ON_CIFAR
        return OF_VAL if self.split in ("very likely val", None) else ELSEWHERE


def title_of(recipe: Recipe, method: str) -> str:
    """A row of a recipe in one word: its method, with what in the recipe's title says more.

    >>> title_of(RECIPES["cifar100-lt/focal-published"], "focal"), title_of(RECIPES["cifar100-lt/tde"], "de-confound")
    ('focal-published', 'de-confound')
    """
    sampler = recipe.title.removeprefix("decoupling")
    more = sampler if sampler != recipe.title else "-published" if recipe.title.endswith("-published") else ""
    return method + more


def about(table: str) -> str:
    """A line on a table.

    >>> about("tang-3")
    'Tang et al. 2020, Table 3: CIFAR-100-LT and CIFAR-10-LT, top-1 by imbalance ratio'
    """
    if table in OURS:
        return OURS[table]
    paper, number = PRINTED[table]
    return f"{paper}, Table {number}: {published_table(paper, number).about}"


def targets_of(table: str, settings: Sequence[str] = ()) -> list[Target]:
    """Every number of a table, in its order, then rows of ours that belong beside them.

    Args:
        table: one of `TABLES`.
        settings: overrides of every recipe.

    Raises:
        InputError: no such table, or a setting that no recipe of it has.

    >>> [target.printed for target in targets_of("tang-3") if target.key == "cifar100-lt-100/tde"]
    [44.1]
    """
    checks.choice("table", table, TABLES)
    if table == "kang-figure-1":
        found = [*_figure_1()]
    elif table == "claims":
        found = [*_figure_1(), *_claims()]
    else:
        cells = published_table(*PRINTED[table]).cells
        several = len({cell.epochs for cell in cells if cell.epochs}) > 1
        found = [_target(cell, epochs=several) for cell in cells]
        found = [*_beside_table_3(found)] if table == "tang-3" else _by_section(found)
    if not settings:
        return found
    recipes: list[Any] = [target.recipe for target in found if target.recipe]  # of a table all are of one kind
    changed = iter(override(recipes, settings) if recipes else [])
    return [_with_recipe(target, next(changed)) if target.recipe else target for target in found]


def selected(targets: Sequence[Target], rows: Sequence[str]) -> list[Target]:
    """The targets that words name: a key ("cifar100-lt-50/tde", "cifar100-lt-*"), section, method, or row as printed.

    A section, or a word with "*", is of the rows that are planned without being asked for.

    Args:
        rows: none asks for all but those to be asked for by name.

    Raises:
        InputError: a word that names none.
    """
    if not rows:
        return [target for target in targets if target.asked]

    def names(target: Target) -> tuple[str, ...]:
        recipe = () if target.recipe is None else (target.recipe.name,)
        return (target.key, target.key.split("/")[1], target.method, target.row, *recipe)

    def named(target: Target, word: str) -> bool:
        several = target.asked and any(fnmatchcase(name, word) for name in (*names(target), target.section))
        return several or word in names(target)

    for word in rows:
        if not any(named(target, word) for target in targets):
            every = chain.from_iterable((*names(target), target.section) for target in targets)
            short = chain.from_iterable((target.method, target.section) for target in targets)
            near = checks.nearest(word, set(every), listed=set(short))
            raise checks.InputError(f"rows: unknown value '{word}'{near}")
    return [target for target in targets if any(named(target, word) for word in rows)]


def _by_section(targets: Sequence[Target]) -> list[Target]:
    """One section after the other, each where its first target stands."""
    order = list(dict.fromkeys(target.section for target in targets))
    return sorted(targets, key=lambda target: order.index(target.section))


def _with_recipe(target: Target, recipe: Recipe | DetectionRecipe) -> Target:
    return replace(target, recipe=recipe, setting=_setting(recipe) or target.setting)


def _target(cell: Cell, *, epochs: bool) -> Target:
    """The target of a printed cell; epochs: whether they tell the parts of its table apart."""
    detection = cell.data.startswith("lvis")
    recipe, lacks = _recipe_of(cell)
    on_val = isinstance(recipe, Recipe) and cell.split == "val" and cell.data not in VAL_IS_TEST
    own = recipe.tde.fixed_alpha if isinstance(recipe, Recipe) else cell.alpha  # a detector's is in its recipe
    return Target(
        section=_section(cell, epochs=epochs),
        row=cell.row,
        metric="APbox" if cell.metric == "APbbox" else cell.metric,
        method=_detection_row(cell) if detection else cell.method or "?",
        setting=_setting(recipe) or (OWN if recipe and cell.quoted in OTHERS else None),
        printed=cell.value,
        spread=cell.spread,
        split=cell.split,
        quoted=cell.quoted,
        recipe=recipe,
        lacks=lacks,
        alpha=None if cell.alpha == own and not on_val else cell.alpha,
        on_val=on_val,
    )


def _section(cell: Cell, *, epochs: bool) -> str:
    """What tells a part of a table from the others: data, ratio, network, epochs."""
    if cell.imbalance_ratio:
        return f"{cell.data}-{cell.imbalance_ratio:g}"
    return f"{cell.data}, {cell.backbone}" + (f", {cell.epochs} epochs" if epochs and cell.epochs else "")


def _setting(recipe: Recipe | DetectionRecipe | None) -> str | None:
    """Whose setting a recipe of CIFAR trains in; the framework of a detector."""
    if isinstance(recipe, DetectionRecipe):
        return recipe.detector.framework
    if recipe is None or recipe.data.name not in CIFAR:
        return None
    return "BBN" if recipe.title.endswith("-published") else "Tang"


def _recipe_of(cell: Cell) -> tuple[Recipe | DetectionRecipe | None, str | None]:
    """The recipe of a cell with what the cell changes in it, or what is missing for one."""
    if cell.recipe is None:
        return None, "no recipe" + f": {cell.setting}" * bool(cell.setting)
    detector = DETECTION_RECIPES.get(cell.recipe)
    if detector and cell.split == "test":
        return None, SERVER
    named: dict[str, Any] = {"classifier.num_heads": cell.num_heads}
    if detector:
        named |= {
            "training.epochs": cell.epochs,
            "detector.backbone": cell.network,
            "inference.alpha": cell.alpha,
        }
    else:
        named |= {
            "data.imbalance_ratio": cell.imbalance_ratio,
            "stages.0.epochs": cell.epochs,
            "backbone.name": cell.network,
            "classifier.tau": cell.tau,
            "classifier.gamma": cell.gamma,
        }
    settings = [*(f"{key}={value}" for key, value in named.items() if value is not None), *cell.settings]
    recipes: list[Any] = [detector or RECIPES[cell.recipe]]
    try:
        return override(recipes, settings)[0], None
    except checks.InputError as error:
        return None, f"no recipe: {error}"


def _detection_row(cell: Cell) -> str:
    """What a cell's row is called in the result of a detector."""
    row = OWN_ROW.get(cell.method or "", cell.method or "?")
    return row + WITHOUT_EXEMPTION * (cell.setting == NOT_EXEMPTED)


def _beside_table_3(printed: Sequence[Target]) -> Iterator[Target]:
    """Each section with plain cross-entropy, then what stands in Tang et al.'s setting and is asked for by name."""
    anchors = {
        (cell.data, cell.imbalance_ratio): cell
        for table in published_tables()
        if table.paper == "anchors"
        for cell in table.cells
        if cell.method == "joint" and cell.recipe
    }
    for data in CIFAR:
        for ratio in RATIOS:
            section = f"{data}-{ratio}"
            anchor = anchors.get((data, ratio))
            plain = _ours(section, "Plain cross-entropy", f"{data}/joint-published", "joint", ratio)
            if anchor:
                plain = replace(plain, printed=anchor.value, spread=anchor.spread, quoted=anchor.quoted, split="test")
            yield plain
            own = [target for target in printed if target.section == section]
            yield from own
            names = {target.method: target.row for target in own}
            for title in ("linear", "joint", *TABLE_3):
                row = names.get(title, "Plain cross-entropy" + ", with bias" * (title == "joint"))
                yield replace(_ours(section, row, f"{data}/{title}", title, ratio), asked=False)


def _figure_1() -> Iterator[Target]:
    for title in ("decoupling", *(f"decoupling-{sampler}" for sampler in SAMPLERS)):
        for method in ("joint", *DECOUPLING):
            sampler = title.removeprefix("decoupling").removeprefix("-") or "instance-balanced"
            yield _ours("cifar100-lt-100", f"{method}, {sampler}", f"cifar100-lt/{title}", method, 100)


def _claims() -> Iterator[Target]:
    for method in ("de-confound", "tde"):
        yield _ours("cifar100-lt-100", method, "cifar100-lt/tde", method, 100)
    balanced = _ours("cifar100-lt-balanced", "de-confound", "cifar100-lt/tde", "de-confound", 1)
    assert isinstance(balanced.recipe, Recipe)
    yield replace(balanced, recipe=override([balanced.recipe], BALANCED)[0])


def _ours(section: str, row: str, name: str, method: str, ratio: float) -> Target:
    recipe = override([RECIPES[name]], [f"data.imbalance_ratio={ratio}"])[0]
    return Target(section, row, "all", method, setting=_setting(recipe), recipe=recipe)
