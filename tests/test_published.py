"""The numbers of the literature: complete, consistent with themselves, and named as the catalog names things."""

import re
import zlib
from collections import defaultdict
from pathlib import Path

import pytest
from pydantic import ValidationError

from tailwise import InputError
from tailwise.recipes.catalog import RECIPES
from tailwise.recipes.detection_catalog import DETECTION_RECIPES
from tailwise.recipes.methods import METHODS
from tailwise.recipes.overrides import override
from tailwise.recipes.published import Cell, _table, published, published_table, published_tables

TANG, KANG = "Tang et al. 2020", "Kang et al. 2020"
# (rows, numbers, digest of both), counted in the papers and compared with their text digit by digit
SIZES = {
    (TANG, 2): (15, 60, 1773010590),
    (TANG, 3): (7, 42, 1378818986),
    (TANG, 4): (12, 84, 1027262569),
    (TANG, 5): (3, 21, 3731430076),
    (TANG, 6): (10, 40, 2032977635),
    (TANG, 7): (12, 48, 2394832789),
    (TANG, 8): (6, 24, 3701008236),
    (TANG, 9): (6, 42, 1488615323),
    (TANG, 10): (3, 18, 1963454161),
    (KANG, 1): (4, 16, 2091792280),
    (KANG, 2): (11, 23, 440220290),
    (KANG, 3): (7, 19, 3642026491),
    (KANG, 4): (9, 36, 767992555),
    (KANG, 5): (4, 16, 50645703),
    (KANG, 7): (12, 96, 286767865),
}
ANCHORS = 1965563285  # compared with their sources
GROUPS = {"imagenet-lt": (385, 479, 136), "places-lt": (131, 163, 71), "inaturalist-2018": (842, 4076, 3224)}
CELLS = [(table, cell) for table in published_tables() for cell in table.cells]


def digest(*tables):
    """Changes with any number, its row or its deviation."""
    printed = (f"{cell.row} {cell.value} {cell.spread}" for table in tables for cell in table.cells)
    return zlib.crc32("\n".join(printed).encode())


def circumstances(cell, *apart_from):
    """All that is said of a number apart from the number, hashable."""
    said = cell.model_dump(exclude={"value", "spread", *apart_from}, exclude_none=True)
    return tuple(sorted(said.items()))


def test_every_table_of_both_papers_is_there():
    numbered = [table for table in published_tables() if table.number]
    assert len(numbered) == len(SIZES)
    assert {(t.paper, t.number): (len(t.rows), len(t.cells), digest(t)) for t in numbered} == SIZES
    assert digest(*(table for table in published_tables() if table.paper == "anchors")) == ANCHORS
    assert {table.paper for table in published_tables()} == {TANG, KANG, "anchors"}


def test_all_is_the_mean_over_classes_of_the_groups():
    """Weighted by how many classes each has; OLTR on Places-LT is 1.6 off in print."""
    checked, off = 0, []
    for table in published_tables():
        for row in table.rows:
            alike = defaultdict(dict)
            for cell in row:
                alike[circumstances(cell, "metric")][cell.metric] = cell
            for cells in alike.values():
                if not {"many", "medium", "few", "all"} <= set(cells):
                    continue
                sizes = GROUPS[cells["all"].data]
                of_groups = [cells[name].value for name in ("many", "medium", "few")]
                mean = sum(n * value for n, value in zip(sizes, of_groups, strict=True)) / sum(sizes)
                checked += 1
                if abs(mean - cells["all"].value) > 0.11:
                    off.append((table.paper, table.number, row[0].row, round(mean - cells["all"].value, 1)))
    # Tang 2, 6, 7, 8; Kang 1, 4, 5, 7 (at two lengths of training); the published checkpoint
    assert checked == (15 + 10 + 12 + 6) + (4 + 9 + 4 + 2 * 12) + 1
    assert off == [(KANG, 4, "OLTR†", 1.6)]


def test_cells_printed_twice_agree_but_for_the_known():
    """The same number of the same authors, in two of the tables, quoted or not."""
    printed = defaultdict(list)
    for table, cell in CELLS:
        same = circumstances(cell, "row", "quoted", "recipe") + (() if cell.method else (cell.row,))
        printed[cell.quoted or table.paper, same].append((table, cell))
    twice = [cells for cells in printed.values() if len(cells) > 1]
    # Tang 2 with 7 and 8; 4, 5 and 9; Kang 1, 2, 5 with Tang 2; Kang 3 with 7; anchors with Tang 3 and 4
    assert len(twice) == (6 * 4 + 4) + 3 * 7 + (4 + 1 + 4 + 1) + 4 * 4 + (3 * 3 + 4)
    assert all(len({id(table) for table, _ in cells}) == len(cells) for cells in twice)  # never in one table
    differ = {
        (
            *sorted((table.paper, table.number, cell.value) for table, cell in cells),
            f"{cells[0][1].data} {cells[0][1].method} {cells[0][1].metric}",
        )
        for cells in twice
        if len({cell.value for _, cell in cells}) > 1
    }
    assert differ == {
        # cRT on ResNeXt-50: "C" of Table 1 and the repository, from which Tang et al. quote
        ((KANG, 1, 61.5), (TANG, 2, 61.8), "imagenet-lt crt many"),
        ((KANG, 1, 27.0), (TANG, 2, 27.4), "imagenet-lt crt few"),
        ((KANG, 1, 49.5), (KANG, 2, 49.5), (TANG, 2, 49.6), "imagenet-lt crt all"),
        # ResNet-50 at 200 epochs
        ((KANG, 3, 67.6), (KANG, 7, 68.2), "inaturalist-2018 crt all"),
    }


def test_methods_and_recipes_are_those_of_the_catalog():
    borrowed = ("Zhou et al. 2020", "Wang et al. 2023, repository")  # of another setting than Tang et al.'s
    for _, cell in CELLS:
        assert cell.method is None or cell.method in METHODS
        if cell.recipe and cell.recipe in RECIPES:
            recipe = RECIPES[cell.recipe]
            assert cell.method in recipe.methods
            assert recipe.data.name == cell.data
            assert cell.recipe.endswith("-published") == (cell.quoted in borrowed)
            if cell.data.startswith("cifar"):
                assert (recipe.backbone.name, recipe.stages[0].epochs) == (cell.network, cell.epochs)
        elif cell.recipe:
            assert cell.recipe.split("/")[0] == cell.data
            assert cell.recipe in DETECTION_RECIPES
    without = {(table.paper, cell.row) for table, cell in CELLS if not cell.method}
    assert {paper for paper, _ in without} == {"anchors"}  # every row of the papers is a method of ours


def test_every_cell_of_cifar_in_the_papers_has_a_recipe():
    cifar = [cell for table, cell in CELLS if table.number and cell.data.startswith("cifar")]
    assert len(cifar) == 42
    assert all(cell.recipe and cell.imbalance_ratio and cell.split == "test" for cell in cifar)


def test_values_are_percentages():
    assert all(0 <= cell.value <= 100 for _, cell in CELLS)
    _, cell = CELLS[0]
    for value in (-0.1, 100.1, float("nan"), "-"):
        with pytest.raises(ValidationError, match="value"):
            Cell(**cell.model_dump() | {"value": value})
    with pytest.raises(ValidationError, match="backbones"):
        Cell(**cell.model_dump(), backbones="ResNet-10")


def test_rows_go_before_columns_and_columns_before_the_table():
    table = _table(
        {
            "paper": "P",
            "about": "",
            "data": "d",
            "backbone": "of the table",
            "split": "test",
            "epochs": 90,
            "metric": "all",
            "columns": [{"epochs": 200}, {"backbone": "of the column"}, "few"],
            "rows": [
                {"row": "a", "values": [1.0, 2.0, 3.0], "spread": [0.1, 0.2, 0.3]},
                {"row": "b", "recipe": "r", "backbone": "of the row", "split": "?", "values": [4.0, "-", 6.0]},
            ],
        }
    )
    said = [[(c.value, c.metric, c.backbone, c.epochs, c.split, c.spread, c.recipe) for c in row] for row in table.rows]
    assert said == [
        [
            (1.0, "all", "of the table", 200, "test", 0.1, None),
            (2.0, "all", "of the column", 90, "test", 0.2, None),
            (3.0, "few", "of the table", 90, "test", 0.3, None),
        ],
        [
            (4.0, "all", "of the row", 200, None, None, "d/r"),
            (6.0, "few", "of the row", 90, None, None, "d/r"),
        ],
    ]


def test_a_value_too_few_is_refused():
    shared = {"paper": "P", "about": "", "data": "d", "backbone": "b", "columns": ["many", "few"]}
    with pytest.raises(ValueError, match="shorter"):
        _table(shared | {"rows": [{"row": "a", "values": [1.0]}]})


def test_what_is_known_of_a_number():
    assert published_table(TANG, 8).rows[-1][-1] == Cell(
        row="De-confound-TDE",
        metric="all",
        value=53.3,
        data="imagenet-lt",
        split="test",
        backbone="ResNeXt-101-32x4d",
        epochs=120,
        method="tde",
        recipe="imagenet-lt/tde",
        num_heads=4,
        gamma=1 / 64,
        alpha=3.0,
    )
    quoted = published_table(TANG, 2).rows[3][0]
    assert (quoted.quoted, quoted.split, quoted.value) == (KANG, "very likely val", 65.9)
    cb_focal, ldam, *_ = (row[0] for row in published_table(KANG, 3).rows)
    assert (cb_focal.epochs, ldam.epochs, ldam.backbone, ldam.quoted) == (None, 90, "ResNet-50", "Cao et al. 2019")
    plain = next(cell for table, cell in CELLS if table.paper == "anchors" and cell.spread)
    assert (plain.method, plain.imbalance_ratio, plain.value, plain.spread) == ("joint", 100, 38.06, 1.03)


def test_what_the_papers_print_for_a_recipe(monkeypatch):
    def printed(name, *settings):
        return published(override([RECIPES[name]], settings)[0])

    numbers = printed("cifar100-lt/tde", "data.imbalance_ratio=50")
    assert [(n.method, n.all, n.source) for n in numbers] == [
        ("de-confound", 46.2, "Tang et al. 2020, Table 3, ratio 50"),
        ("tde", 50.3, "Tang et al. 2020, Table 3, ratio 50"),
    ]
    assert printed("cifar100-lt/joint-published") == ()  # an anchor
    assert printed("cifar10-lt/tde", "data.imbalance_ratio=20") == printed("digits-lt/tde") == ()
    assert printed("cifar100-lt/tde", "backbone.name=resnet32") == ()
    assert printed("imagenet-lt/focal") == ()  # printed of other settings
    by_sampler = printed("imagenet-lt/decoupling-progressive")
    assert [(n.method, n.all, n.source) for n in by_sampler] == [
        ("joint", 47.2, "Kang et al. 2020, Table 5, very likely val")
    ]
    (of_liu,) = printed("places-lt/range")
    assert (of_liu.all, of_liu.source) == (35.1, "Kang et al. 2020, Table 4, of Liu et al. 2019")
    # anchors first, which have these numbers and are not the papers'; a later table with them last
    tables = (*published_tables()[::-1], published_table(TANG, 3).model_copy(update={"number": 99}))
    monkeypatch.setattr("tailwise.recipes.published.published_tables", lambda: tables)
    assert printed("cifar100-lt/tde", "data.imbalance_ratio=50") == numbers


def test_unknown_tables():
    with pytest.raises(InputError, match="paper: unknown value 'Tang'"):
        published_table("Tang", 3)
    with pytest.raises(InputError, match="number: unknown value '6'"):
        published_table(KANG, 6)


def test_the_page_runs():
    page = Path(__file__).parent.parent / "docs/published.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    assert "assert" in code
    exec(code)
