"""What may be said of a printed number: verdicts, tolerances, which runs count."""

import json
from pathlib import Path

import numpy as np
import pytest

from tailwise.experiments import files, runs
from tailwise.recipes.catalog import RECIPES
from tailwise.recipes.overrides import override
from tailwise.reproduction import plan, reproduce, targets
from tailwise.reproduction.evidence import (
    begun_below,
    compared,
    first_stage,
    of_another_benchmark,
    run_of,
    usable_rows,
    verdict,
)
from tailwise.reproduction.targets import Target


def test_verdicts():
    """Three seeds at least; within the tolerance or better; nothing where something else speaks against it."""
    for difference, tolerance, seeds, expected in [
        (0.0, 1.0, 1, "single run"),
        (0.0, 1.0, 2, "2 runs"),
        (-1.0, 1.0, 3, "pass"),
        (-1.01, 1.0, 3, "off"),
        (1.0, 1.0, 4, "pass"),
        (1.01, 1.0, 4, "pass, above"),
        (None, 1.0, 3, "-"),
        (0.0, None, 3, "other setting"),
        (0.0, None, 1, "other setting"),
        (None, 1.0, 0, "not run"),
    ]:
        assert verdict(difference, tolerance, seeds, None) == expected
        assert verdict(difference, tolerance, seeds, "other data") == "not run"


def test_tolerances():
    tolerance = {
        ("cifar100-lt-10", "tde", "all", None): 1.5,
        ("cifar10-lt-100", "de-confound", "all", "test"): 1.5,
        ("cifar10-lt-100", "bbn", "all", "test"): 1.0,
        ("imagenet-lt, ResNet-10", "tde", "all", "test"): 0.5,
        ("imagenet-lt, ResNet-10", "crt", "all", "very likely val"): 1.5,
        ("places-lt, ResNet-152", "crt", "all", None): 1.5,  # which split is not said
        ("imagenet-lt, ResNet-10", "tde", "few", "test"): 2.0,
    }
    for (section, method, metric, split), expected in tolerance.items():
        assert Target(section, "row", metric, method, split=split).tolerance == expected
    of_others = [target for target in targets.targets_of("kang-4") if target.quoted]
    assert {target.tolerance for target in of_others} == {None}
    seeds = [{"seed": seed, "rows": {"focal": {"all": 34.6}}} for seed in range(3)]
    focal = next(target for target in of_others if (target.method, target.metric) == ("focal", "all"))
    line = compared(focal, {"paper": seeds}, None)
    assert (line["difference"], line["verdict"]) == (pytest.approx(0.0), "other setting")


def test_printed_numbers_are_compared_under_paper_alone():
    target = Target("cifar100-lt-100", "row", "all", "tde", printed=44.0)
    seeds = [{"seed": seed, "rows": {"tde": {"all": value, "many": None}}} for seed, value in enumerate([43, 45, 44.5])]
    line = compared(target, {"paper": seeds, "clean": seeds[:1]}, None)
    assert line["ours"]["paper"]["mean"] == pytest.approx(44.1666667)
    assert line["ours"]["paper"]["std"] == pytest.approx(np.std([43, 45, 44.5], ddof=1))
    assert line["ours"]["paper"]["values"] == [43, 45, 44.5]
    assert (line["difference"], line["verdict"]) == (pytest.approx(0.1666667), "pass")
    clean = compared(target, {"clean": seeds}, None)
    assert (clean["difference"], clean["verdict"], list(clean["ours"])) == (None, "not run", ["clean"])
    assert compared(target, {"paper": seeds}, "other data: x")["difference"] is None
    many = compared(Target("cifar100-lt-100", "row", "many", "tde", printed=44.0), {"paper": seeds}, None)
    assert (many["ours"], many["verdict"]) == ({}, "not run")  # an empty group is no number


def test_a_miniature_is_no_benchmark():
    recipe = override([RECIPES["cifar100-lt/tde"]], ["data.imbalance_ratio=50"])[0]
    assert of_another_benchmark(recipe, [{"train_images": 12_608}]) is None
    mini = of_another_benchmark(recipe, [{"train_images": 12_608}, {"train_images": 346}])
    assert mini == "other data: 346 training images, published 12,608"
    balanced = override([recipe], targets.BALANCED)[0]
    assert of_another_benchmark(balanced, [{"train_images": 10_800}]) is None
    assert of_another_benchmark(RECIPES["digits-lt/tde"], [{"train_images": 1}]) is None


def test_what_is_the_same_first_stage():
    base = override([RECIPES["digits-lt/decoupling"]], ["protocol=paper", "data.subset_seed=3"])[0]
    same = [
        override([RECIPES["digits-lt/fine-tuning"]], ["protocol=paper", "data.subset_seed=3"])[0],
        override([base], ["compute.precision=bf16", "second.crt.stage.epochs=3", "metric=few"])[0],
        override([base], ["data.subset_seed=null"])[0],  # of training seed 3
    ]
    assert {first_stage(recipe, 3) for recipe in (base, *same)} == {first_stage(base, 3)}
    others = [
        "protocol=clean",
        "data.subset_seed=2",
        "data.imbalance_ratio=10",
        "stages.0.epochs=9",
        "data.max_count=9",
    ]
    keys = {first_stage(override([base], [other])[0], 3) for other in others} | {first_stage(same[2], 2)}
    assert len(keys - {first_stage(base, 3)}) == len(others)  # subset 2, twice
    assert first_stage(RECIPES["digits-lt/linear"], 0) != first_stage(RECIPES["digits-lt/joint"], 0)
    photos = RECIPES["imagenet-lt/tde"]
    elsewhere = override([photos], ["data.kept=/scratch"])[0]  # where decoded images lie
    assert first_stage(elsewhere, 0) == first_stage(photos, 0)
    assert plan.changes(elsewhere) == {}


def test_where_nothing_is_drawn_the_subset_seed_is_no_setting():
    """Benchmarks come with their subset, and but for iNaturalist with a val: seeds of `tailwise train` are found."""

    def keys(name, protocol):
        drawn = ("null", 0, 3)
        recipes = [override([RECIPES[name]], [f"protocol={protocol}", f"data.subset_seed={one}"])[0] for one in drawn]
        return {first_stage(recipe, 2) for recipe in recipes}

    for name in ("imagenet-lt/tde", "places-lt/joint", "inaturalist-2018/tde"):
        for protocol in ("paper", "legacy", "clean"):
            carved = protocol == "clean" and name.startswith("inat")
            assert len(keys(name, protocol)) == (3 if carved else 1)
    assert len(keys("cifar100-lt/tde", "paper")) == 3


def test_under_legacy_rows_and_alpha_choose_the_epoch():
    """TDE's accuracy does, if it is among the rows; under other protocols neither is a part of training."""

    def keys(protocol):
        asked = ("de-confound", []), ("tde", []), ("tde", ["tde.fixed_alpha=3"])
        recipes = (override([RECIPES[f"digits-lt/{name}"]], [f"protocol={protocol}", *more]) for name, more in asked)
        return [first_stage(recipe, 0) for (recipe,) in recipes]

    assert len(set(keys("legacy"))) == 3
    assert len(set(keys("paper"))) == len(set(keys("clean"))) == 1


def test_what_is_committed_is_found_again():
    """A record goes on from its seeds: their keys are those of today's recipes, whatever settings came since."""
    records = [json.loads(path.read_text()) for path in sorted((Path(__file__).parents[1] / "results").glob("*.json"))]
    records = [one for one in records if isinstance(one, dict) and one.get("format") == reproduce.FORMAT]
    assert records
    for record in records:
        for run in record["runs"]:
            recipe = override([RECIPES[run["recipe"]]], run["changed"])[0]
            assert run["key"] == first_stage(recipe, 0)
            assert run["key"] in {line["key"] for line in record["lines"]}


def test_of_two_runs_of_one_first_stage_one_is_read_and_gone_on_with(tmp_path):
    """Rows that a plan adds in one folder are not hidden by another folder with the same seed."""
    recipe = override([RECIPES["digits-lt/decoupling"]], ["protocol=paper", "data.subset_seed=0"])[0]
    for name, finished in (("a", False), ("b", True), ("c", True)):
        (tmp_path / name / "seed-0").mkdir(parents=True)
        content = {"format": runs.FORMAT, "recipe": recipe.model_dump(mode="json")}
        files.write_json(tmp_path / name / runs.RECIPE, content)
        results = {**dict.fromkeys(runs.RESULT_KEYS), "seed": 0, "published_counts": [], "rows": {name: {}}}
        if finished:
            files.write_json(tmp_path / name / "seed-0" / runs.RESULTS, results)
    begun, key = begun_below(tmp_path), first_stage(recipe, 0)
    assert run_of(begun, key, 0).path.name == "b"
    assert [seed.results["rows"] for seed in reproduce._finished(begun)[key]] == [{"b": {}}]


def test_a_strength_counts_if_it_was_chosen_as_the_recipe_would():
    """On what and by which metric; one that a recipe gives is the same under every protocol."""

    def counts(settings, **row):
        recipe = override([RECIPES["digits-lt/decoupling-all"], RECIPES["digits-lt/tde"]], settings)["alpha" in row]
        return bool(usable_rows({"rows": {"row": row}}, recipe))

    def chosen(on, by="mean-per-class", value=0.5):
        return {"value": value, "from": on, "by": by}

    for protocol, on, other in (("paper", "train", "val"), ("clean", "val", "train")):
        under = [f"protocol={protocol}"]
        assert counts(under, norm_power=chosen(on))
        assert not counts(under, norm_power=chosen(other))
        assert not counts(under, norm_power=chosen(on, by="few"))
        assert counts([*under, "metric=few"], norm_power=chosen(on, by="few"))
        assert counts([*under, "tau_norm.power=0.5"], norm_power=chosen(on))
        assert not counts([*under, "tau_norm.power=0.7"], norm_power=chosen(on))
        assert counts([*under, "tau_norm.power=learned"], norm_power={"value": 0.3, "from": "learned"})
        assert counts([*under, "tde.alpha=2.0"], alpha={"value": 2.0, "from": "recipe"})
        assert not counts([*under, "tde.alpha=2.0"], alpha=chosen("val", value=3.3))
    assert counts(["protocol=clean"], alpha=chosen("val"))
    assert not counts(["protocol=paper"], alpha=chosen("val"))


def test_a_setting_at_its_default_is_no_other_training():
    """Or every new setting would make strangers of the seeds on record."""
    recipe = override([RECIPES["digits-lt/tde"]], ["protocol=paper", "data.subset_seed=0"])[0]
    before = first_stage(recipe, 0)
    later = type("Later", (type(recipe.backbone),), {"__annotations__": {"dropout": float}, "dropout": 0.0})
    backbone = later(**recipe.backbone.model_dump())
    assert first_stage(recipe.model_copy(update={"backbone": backbone}), 0) == before
    assert first_stage(recipe.model_copy(update={"backbone": later(name="digits-net", dropout=0.1)}), 0) != before
