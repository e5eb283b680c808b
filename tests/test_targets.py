"""Which recipe and row stand for a printed number."""

from typing import get_args

import pytest

from tailwise import InputError
from tailwise.backbones import RESNETS
from tailwise.detect.backbones import ResNetName
from tailwise.recipes.build_backbone import BACKBONES
from tailwise.recipes.catalog import RECIPES
from tailwise.recipes.detection import DetectionRecipe
from tailwise.recipes.published import published_tables
from tailwise.reproduction import targets
from tailwise.reproduction.targets import TABLES, selected, targets_of


def test_every_number_of_table_3_has_its_recipe():
    """The printed rows in the setting they are quoted from, at their ratio; plain cross-entropy beside them."""
    found = targets_of("tang-3")
    printed = [target for target in found if target.printed is not None and target.row != "Plain cross-entropy"]
    assert len(printed) == 42
    for target in found:
        recipe, (data, _, ratio) = target.recipe, target.section.rpartition("-")
        assert (recipe.data.name, recipe.data.imbalance_ratio) == (data, float(ratio))
        assert target.method in recipe.methods
        batch, rate, decay = (128, 0.1, 2e-4) if target.setting == "BBN" else (256, 0.2, 5e-4)
        stage = recipe.stages[0]
        assert (stage.batch_size, stage.learning_rate, stage.weight_decay) == (batch, rate, decay)
        branches = target.setting == "Tang" or target.method == "bbn"
        assert recipe.backbone.name == ("resnet32-two-branch" if branches else "resnet32")
    assert {target.setting for target in printed if target.quoted} == {"BBN"}
    assert {target.setting for target in printed if not target.quoted} == {"Tang"}
    plain = [target for target in found if target.row == "Plain cross-entropy" and target.asked]
    assert [target.printed for target in plain] == [38.06, None, 56.73, 71.25, None, 86.74]
    assert plain[0].spread == 1.03
    ours = [target for target in found if not target.asked and target.row.startswith("Plain")]
    assert {(target.row, target.recipe.classifier.bias) for target in ours} == {
        ("Plain cross-entropy", False),
        ("Plain cross-entropy, with bias", True),
    }
    in_both = {(target.section, target.method) for target in found if not target.asked and target not in ours}
    assert in_both == {(target.section, target.method) for target in printed if target.quoted}


def test_every_printed_row_names_a_recipe_that_reports_it():
    for name in TABLES:
        for target in targets_of(name):
            assert (target.recipe is None) == (target.lacks is not None)
            if isinstance(target.recipe, DetectionRecipe):
                assert target.method in target.recipe.rows
            elif target.recipe:
                assert target.method in target.recipe.methods
    without = {cell.row for table in published_tables() if table.number for cell in table.cells if not cell.recipe}
    assert without == {"OLTR*"}
    assert {target.lacks for target in targets_of("kang-1")} == {None}
    sampled = next(table for table in published_tables() if (table.paper, table.number) == (targets.KANG, 5))
    for cell in sampled.cells:
        assert cell.recipe
        assert RECIPES[cell.recipe].stages[0].sampler == (cell.sampler or "instance")


def test_every_printed_network_is_built():
    for table in published_tables():
        for cell in table.cells if table.number else ():
            if cell.data.startswith("lvis"):
                assert cell.network in get_args(ResNetName)
            else:
                assert cell.network in {*BACKBONES, *RESNETS}


def test_what_a_cell_changes_in_its_recipe():
    cell = next(row[0] for table in published_tables() for row in table.rows if row[0].num_heads == 4)
    like = {"data": "cifar100-lt", "backbone": "two-branch ResNet-32", "recipe": "cifar100-lt/tde", "split": "test"}
    given = {**like, "epochs": 120, "method": "tde", "alpha": 2.5}
    target = targets._target(cell.model_copy(update=given), epochs=False)
    assert (target.recipe.classifier.num_heads, target.recipe.stages[0].epochs, target.alpha) == (4, 120, 2.5)
    other = targets._target(cell.model_copy(update={**given, "tau": 8.0, "gamma": 0.5}), epochs=False).recipe
    assert (other.classifier.tau, other.classifier.gamma) == (8, 0.5)
    larger = targets_of("tang-8")[-1].recipe
    assert (larger.backbone.name, larger.stages[0].epochs) == ("resnext101-32x4d", 120)
    assert (larger.classifier.num_heads, larger.classifier.gamma) == (4, 1 / 64)
    of_theirs = targets_of("kang-2", ["compute.threads=1"])
    assert {(target.row, target.lacks) for target in of_theirs if target.lacks} == {
        ("OLTR*", "no recipe: the code of Liu et al.")
    }
    assert {target.row for target in of_theirs if target.setting == "own"} >= {"Focal Loss†", "OLTR†"}
    networks = {
        (target.section.rpartition(" ")[2], target.recipe.backbone.name) for target in of_theirs if target.recipe
    }
    focal = next(target.recipe for target in targets_of("tang-2") if target.method == "focal")
    assert (focal.stages[0].loss.detach, focal.classifier.bias) == (True, False)
    expected = {"ResNet-10": "resnet10", "ResNeXt-50-32x4d": "resnext50-32x4d", "ResNeXt-152-32x4d": "resnext152-32x4d"}
    assert networks == set(expected.items())
    assert targets._target(cell.model_copy(update={**given, "alpha": 1.5}), epochs=False).alpha is None
    assert target.under == "paper"
    on_val = targets._target(cell.model_copy(update={**given, "alpha": 1.5, "split": "val"}), epochs=False)
    assert (on_val.under, on_val.alpha) == ("clean", 1.5)  # clean would choose another
    assert {(target.under, target.lacks) for target in targets_of("tang-6")} == {("clean", None)}
    assert {target.under for target in targets_of("kang-7")} == {"paper"}  # whose val is its test


def test_rows_by_name():
    found = targets_of("tang-3")
    assert {target.asked for target in selected(found, ())} == {True}
    by = {
        "tde": 6,
        "cifar100-lt-50/tde": 1,
        "cifar100-lt-*/tde": 3,
        "Focal Loss": 12,
        "cifar10-lt/bbn": 3,
        "focal-published": 6,
        "cifar10-lt-10": 8,
        "cifar10-lt-10/*": 8,
    }
    assert {word: len(selected(found, [word])) for word in by} == by
    assert len(selected(found, ["tde", "focal-published"])) == 12
    with pytest.raises(InputError, match=r"rows: unknown value 'tdee'; did you mean 'tde'\?"):
        selected(found, ["tdee"])
    with pytest.raises(InputError, match="rows: unknown value 'xyzzy'; valid: bbn, cifar10-lt-10, ") as wrong:
        selected(found, ["xyzzy"])
    short = {target.method for target in found} | {target.section for target in found}
    assert str(wrong.value).partition("valid: ")[2].split(", ") == sorted(short)
