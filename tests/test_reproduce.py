"""`tailwise reproduce`: what stands for a printed number, what is planned, trained, resumed, compared and recorded."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch

from jpeg_trees import TRAIN, benchmark_tree
from tailwise import InputError
from tailwise.adjust import tde
from tailwise.backbones import RESNETS
from tailwise.cli import main
from tailwise.data.listed import prepare_listed
from tailwise.detect.backbones import ResNetName
from tailwise.evaluate import Store
from tailwise.experiments import measure, runs
from tailwise.experiments.build_data import build_data
from tailwise.experiments.resume import OutOfTime
from tailwise.experiments.watch import Silent
from tailwise.recipes import catalog
from tailwise.recipes.build_backbone import BACKBONES
from tailwise.recipes.catalog import RECIPES
from tailwise.recipes.detection import DetectionRecipe
from tailwise.recipes.overrides import override
from tailwise.recipes.published import _table, published_tables
from tailwise.report.reproduction import markdown, span
from tailwise.reproduction import estimate, plan, reproduce, targets
from tailwise.reproduction.evidence import begun_below, compared, first_stage, of_another_benchmark, run_of, verdict
from tailwise.reproduction.plan import Job, Request
from tailwise.reproduction.targets import TABLES, Target, selected, targets_of

SHORT = ["stages.0.epochs=1", "second.crt.stage.epochs=1", "second.lws.stage.epochs=1", "compute.threads=1"]


ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("claims", ROOT / "benchmarks/claims.py")
claims = importlib.util.module_from_spec(spec)
spec.loader.exec_module(claims)


def command(capsys, *arguments):
    """(exit code, standard output, standard error)."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return stopped.value.code or 0, out, err


# ---- which recipe and row stand for a number


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


# ---- what may be said of a number


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
        (None, 1.0, 0, "not run"),
    ]:
        assert verdict(difference, tolerance, seeds, None) == expected
        assert verdict(difference, tolerance, seeds, "other data") == "not run"


def test_tolerances():
    tolerance = {
        ("cifar100-lt-10", "tde", "all"): 1.5,
        ("cifar10-lt-100", "de-confound", "all"): 1.5,
        ("cifar10-lt-100", "bbn", "all"): 1.0,
        ("imagenet-lt, ResNet-10", "tde", "all"): 0.5,
        ("imagenet-lt, ResNet-10", "tde", "few"): 2.0,
    }
    for (section, method, metric), expected in tolerance.items():
        assert Target(section, "row", metric, method).tolerance == expected


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


def test_what_is_committed_is_found_again():
    """A record goes on from its seeds: their keys are those of today's recipes, whatever settings came since."""
    records = [json.loads(path.read_text()) for path in sorted((ROOT / "results").glob("*.json"))]
    records = [one for one in records if isinstance(one, dict) and one.get("format") == reproduce.FORMAT]
    assert records
    for record in records:
        for run in record["runs"]:
            recipe = override([RECIPES[run["recipe"]]], run["changed"])[0]
            assert run["key"] == first_stage(recipe, 0)
            assert run["key"] in {line["key"] for line in record["lines"]}


def test_a_setting_at_its_default_is_no_other_training():
    """Or every new setting would make strangers of the seeds on record."""
    recipe = override([RECIPES["digits-lt/tde"]], ["protocol=paper", "data.subset_seed=0"])[0]
    before = first_stage(recipe, 0)
    later = type("Later", (type(recipe.backbone),), {"__annotations__": {"dropout": float}, "dropout": 0.0})
    backbone = later(**recipe.backbone.model_dump())
    assert first_stage(recipe.model_copy(update={"backbone": backbone}), 0) == before
    assert first_stage(recipe.model_copy(update={"backbone": later(name="digits-net", dropout=0.1)}), 0) != before


# ---- time


def test_what_is_done_next(tmp_path):
    def job(number, epochs, done=0):
        one = Job(f"{number}", 0, RECIPES["digits-lt/tde"], tmp_path / f"{number}", None, borrowed=False)
        one.epochs, one.done, one.cost = epochs, done, estimate.Cost(10.0, 0, "steps", start=5.0)
        return one

    long, short, begun = job(1, 60), job(2, 2), job(3, 60)
    (runs.partial(begun.folder / "seed-0")).mkdir(parents=True)
    (runs.partial(begun.folder / "seed-0") / "last-first.safetensors").touch()
    assert (long.seconds, job(4, 60, done=59).seconds, begun.begun, long.begun) == (605.0, 15.0, True, False)
    jobs = [long, short, begun]
    assert reproduce.next_job(jobs, None, worked=True) is long
    assert reproduce.next_job(jobs, 605.0, worked=True) is long
    assert reproduce.next_job(jobs, 30.0, worked=True) is short
    assert reproduce.next_job(jobs, 5.0, worked=True) is begun  # goes on, whatever is left
    assert reproduce.next_job([long, short], 5.0, worked=True) is None
    assert reproduce.next_job([long, short], 5.0, worked=False) is long  # or a small budget would never do anything
    assert reproduce.next_job([long, short], -5.0, worked=False) is long  # when the plan alone took the budget
    assert reproduce.next_job(jobs, 0.0, worked=True) is None


def test_the_papers_own_rows_come_first(tmp_path, monkeypatch):
    """Plain cross-entropy and Tang et al.'s rows before those they quote; a run's seeds one after the other."""
    monkeypatch.delenv("TAILWISE_DATA", raising=False)
    focal = ("cifar100-lt-100/focal", "cifar100-lt-100/focal-published")
    rows = (*focal, "cifar100-lt-*/tde", "cifar100-lt-50/joint-published")
    made = plan.plan(Request("tang-3", tmp_path, rows=rows, seeds=2))
    order = [(job.recipe.title, job.recipe.data.imbalance_ratio, job.seed) for job in made.jobs]
    runs_of = [("tde", 100), ("joint-published", 50), ("tde", 50), ("tde", 10)]
    runs_of += [("focal-published", 100), ("focal", 100)]  # quoted, and in no table
    assert order == [(title, ratio, seed) for title, ratio in runs_of for seed in (0, 1)]
    assert {job.lacks for job in made.jobs} == {"no data: cifar100-lt"}
    assert made.left == []
    assert all(job.recipe.data.subset_seed == 0 and job.recipe.protocol == "paper" for job in made.jobs)


def test_lengths_of_time():
    assert [estimate.seconds_of(text) for text in ("90s", "45m", "2h", "1d2h3m4s")] == [90, 2700, 7200, 93_784]
    for text in ("", "45", "m", "1m2h", "-3m", "4x", "1.5h"):
        with pytest.raises(InputError, match="budget: expected a time such as 45m"):
            estimate.seconds_of(text)
    assert [span(seconds) for seconds in (3599, 3600, 86_340, 90_000)] == [
        "1 h 00 min",
        "1 h 00 min",
        "23 h 59 min",
        "1 d 1 h",
    ]


def test_estimates_from_steps_and_from_logs(tmp_path, monkeypatch):
    recipe = override([RECIPES["digits-lt/tde"]], ["protocol=paper"])[0]
    cost = estimate.timed_cost(recipe, build_data(recipe, 0, None), torch.device("cpu"))
    assert (cost.origin, cost.memory > 10**7) == ("steps", True)
    # a clock that stands still but for what the steps take: 3.5 s the first, then 0.5 s
    ticks, asked = iter([0.0, 3.5, 4.0, 4.5, 5.0, 5.5]), []
    with monkeypatch.context() as clock:
        clock.setattr(estimate.time, "perf_counter", lambda: next(ticks))
        with pytest.raises(estimate._Enough):
            list(estimate._Timed([1] * 9, torch.device("cpu"), asked))
    assert asked == [0.0, 3.5, 4.0, 4.5, 5.0]
    folder = tmp_path / "run"
    (folder / "seed-1.partial").mkdir(parents=True)
    lines = [{"stage": "joint", "seconds": seconds, "memory": 10 * seconds} for seconds in (5, 1, 2)]
    lines.append({"stage": "crt", "seconds": 100, "memory": 7})
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "jo'
    (folder / "seed-1.partial" / runs.LOG).write_text(text)
    expected = estimate.Cost(2, 50, "log")
    assert estimate.epochs_done(folder, 1) == (4, expected)
    assert estimate.epochs_done(folder, 0)[0] == 0  # of its own nothing
    shutil.copytree(folder / "seed-1.partial", folder / "seed-0")
    assert estimate.epochs_done(folder, 2) == (0, expected)


# ---- end to end, on a table of digits


@pytest.fixture(scope="module")
def table():
    """ "kang-1" is a table of digits-lt for the length of this module, and its recipes take an epoch."""
    printed = {
        "paper": targets.KANG,
        "number": 1,
        "about": "digits",
        "data": "digits-lt",
        "backbone": "digits-net",
        "split": "test",
        "epochs": 1,
        "imbalance_ratio": 50,
        "columns": ["few", "all"],
        "rows": [
            {"row": "Joint", "method": "joint", "recipe": "decoupling", "values": [0.0, 0.0]},
            {"row": "C", "method": "crt", "recipe": "decoupling", "values": [100.0, 100.0]},
            {
                "row": "B+C",
                "method": "fine-tune-last-block",
                "recipe": "fine-tuning",
                "values": [1.0, 1.0],
                "quoted": "others",
            },
            {"row": "TDE, 0.5", "method": "tde", "recipe": "tde", "alpha": 0.5, "values": [50.0, 50.0]},
        ],
    }
    patch = pytest.MonkeyPatch()
    real = targets.published_table

    def published_table(paper, number):
        ours = (paper, number) == (targets.KANG, 1)
        return _table(json.loads(json.dumps(printed))) if ours else real(paper, number)  # which takes it apart

    patch.setattr(targets, "published_table", published_table)
    for title in ("decoupling", "fine-tuning", "tde"):
        name = f"digits-lt/{title}"
        short = [setting for setting in SHORT if "lws" not in setting or title == "decoupling"]
        short = [setting for setting in short if "second" not in setting or title != "tde"]
        short += ["second.fine-tune-last-block.stage.epochs=2"] if title == "fine-tuning" else []
        patch.setitem(RECIPES, name, override([RECIPES[name]], short)[0])
    yield
    patch.undo()


@pytest.fixture(scope="module")
def out(table, tmp_path_factory):
    """A folder in which the table was reproduced, joint and crt over three seeds."""
    folder = tmp_path_factory.mktemp("reproduce")
    asked = Request("kang-1", folder, rows=("joint", "crt"))
    made = plan.plan(asked)
    assert reproduce.work(made, Silent()) == []
    recorded = reproduce.Recorded(made, folder / "kept.json")
    recorded.write()
    return folder


def test_it_trains_what_rows_share_once(out):
    (run,) = begun_below(out)
    assert run.path == out / "digits-lt/decoupling-subset-seed-0-paper"
    assert run.seeds == [0, 1, 2]
    results = [run.seed(seed).results() for seed in run.seeds]
    assert len({result["subset_hash"] for result in results}) == 1  # one subset, three trainings
    assert len({result["checkpoint"] for result in results}) == 3
    record = json.loads((out / "kept.json").read_text())
    lines = {(line["method"], line["metric"]): line for line in record["lines"]}
    for method, of_few, of_all in (("joint", "pass", "pass, above"), ("crt", "off", "off")):
        for metric, expected in (("few", of_few), ("all", of_all)):
            line, values = lines[method, metric], [result["rows"][method][metric] for result in results]
            assert line["ours"]["paper"]["values"] == values
            assert line["ours"]["paper"]["mean"] == pytest.approx(np.mean(values))
            assert line["difference"] == pytest.approx(np.mean(values) - line["printed"])
            assert line["verdict"] == expected
    assert lines["tde", "all"]["reason"] == "no run yet"
    (kept,) = record["runs"]
    assert kept["changed"] == ["data.subset_seed=0", "protocol=paper"]
    assert [seed["checkpoint"] for seed in kept["seeds"]] == [result["checkpoint"] for result in results]
    # every way of adjusting stored features, beside what is printed
    assert set(kept["seeds"][0]["rows"]) >= {
        "joint",
        "ncm",
        "ncm-centered",
        "tau-norm",
        "lws-stored",
        "logit-adjustment",
    }
    assert str(out) not in json.dumps(record)
    assert record["command"].startswith("tailwise reproduce kang-1 --rows joint --rows crt --seeds 3 --subset-seed 0")
    assert "| digits-lt-50 | C | all | 100.0 |" in markdown(record)


def test_what_is_there_is_not_trained_again(out, capsys):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    code, text, err = command(capsys, "reproduce", "kang-1", "--rows", "joint", "--rows", "C", "--out", out)
    assert (code, err) == (0, "")
    assert "nothing left to do" in text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    assert all(len(line) <= 80 for line in text.splitlines() if "─" in line or " off" in line)
    assert "3 of 3 trained" in text


def test_a_dry_run_writes_nothing(table, tmp_path, capsys):
    code, text, _ = command(
        capsys, "reproduce", "kang-1", "--dry-run", "--out", tmp_path / "new", "--seeds", "2", "--json"
    )
    printed = json.loads(text)
    assert code == 0
    assert not (tmp_path / "new").exists()
    by_recipe = {run["recipe"]: run for run in printed["runs"]}
    assert set(by_recipe) == {"digits-lt/decoupling", "digits-lt/tde"}
    shared = by_recipe["digits-lt/decoupling"]
    assert {"joint", "crt", "fine-tune-last-block"} <= set(shared["rows"])
    assert (shared["seeds"], shared["left"], shared["finished"], shared["begun"]) == ([0, 1], [0, 1], [], {})
    assert shared["epochs"] == 1 + 1 + 2  # joint, crt, fine-tuning; not lws, which no row is
    assert shared["seconds"] > 0
    assert shared["estimated_from"] == "steps"
    code, text, _ = command(capsys, "reproduce", "kang-1", "--dry-run", "--out", tmp_path / "new", "--rows", "tde")
    assert "1 run on subset seed 0; left: 3 seeds, about" in text
    assert "timed steps" in text


@pytest.fixture
def printed_rows_alone(monkeypatch):
    """Nothing beside the rows that are asked for, which takes less time."""
    monkeypatch.setattr(plan, "PLAIN", ())


@pytest.mark.usefixtures("printed_rows_alone")
def test_rows_of_later_tables_are_made_from_the_run(out, tmp_path, capsys):
    """Another second stage is trained from the same first stage; TDE at another alpha comes from the store."""
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)
    shutil.rmtree(folder / "digits-lt/decoupling-subset-seed-0-paper/seed-1")
    rows = ["--rows", "fine-tune-last-block", "--rows", "tde"]
    code, text, _ = command(capsys, "reproduce", "kang-1", *rows, "--out", folder, "--seeds", "1", "--json")
    record = json.loads(text)
    assert code == 0
    lines = {(line["method"], line["metric"]): line for line in record["lines"]}
    assert lines["fine-tune-last-block", "all"]["verdict"] == "single run"
    seed = runs.open_run(folder / "digits-lt/tde-subset-seed-0-paper").seed(0)
    asked = measure.Asked(alpha=0.5)
    expected = measure.measure(measure.open_trained(seed, None), ["tde"], asked)["rows"]["tde"]
    assert lines["tde", "all"]["ours"]["paper"]["values"] == [expected["all"]]
    assert lines["tde", "all"]["alpha"] == 0.5
    assert lines["joint", "all"]["verdict"] == "2 runs"
    table = command(capsys, "reproduce", "kang-1", *rows, "--out", folder, "--seeds", "1")[1]
    assert "single run" in table
    assert "Joint" not in table  # which was not asked for


@pytest.mark.usefixtures("printed_rows_alone")
def test_a_budget_stops_at_a_snapshot_and_the_rest_is_the_same(out, tmp_path):
    asked = Request("kang-1", tmp_path, rows=("joint",), seeds=1)
    made = plan.plan(asked)
    assert reproduce.work(made, Silent(), budget=1e-3) == []
    partial = tmp_path / "digits-lt/decoupling-subset-seed-0-paper/seed-0.partial"
    assert (partial / "last-first.safetensors").is_file()
    assert {line["reason"] for line in reproduce.record(made)["lines"] if line["method"] == "joint"} == {"budget"}
    again = plan.plan(asked)
    assert again.jobs[0].begun
    assert reproduce.work(again, Silent()) == []
    whole = runs.read_json(out / "digits-lt/decoupling-subset-seed-0-paper/seed-0" / runs.RESULTS)
    assert runs.read_json(partial.with_name("seed-0") / runs.RESULTS)["checkpoint"] == whole["checkpoint"]


def test_a_second_stage_of_a_run_stops_and_goes_on(out, tmp_path):
    """`measure.adjust` out of time leaves a snapshot, and what it makes in two parts is what it makes in one."""
    rows = []
    for name, parts in (("one", 1), ("two", 2)):
        shutil.copytree(out / "digits-lt", tmp_path / name)
        seed = runs.open_run(tmp_path / name / "decoupling-subset-seed-0-paper").seed(0)
        recipe = catalog.with_second_stage(seed.recipe, "fine-tune")
        recipe = override([recipe], ["second.fine-tune.stage.epochs=2"])[0]
        trained = measure.open_trained(seed, None, recipe)
        if parts == 2:
            with pytest.raises(OutOfTime):
                measure.adjust(trained, "fine-tune", save_every=60.0, until=0.0)
            assert (seed.path / "last-fine-tune.safetensors").is_file()
            assert "fine-tune" not in seed.results()["rows"]
        result, _ = measure.adjust(trained, "fine-tune", save_every=60.0)
        assert not list(seed.path.glob("last-*"))
        rows.append(result["rows"]["fine-tune"])
    assert rows[0] == rows[1]


@pytest.mark.usefixtures("printed_rows_alone")
def test_a_row_that_fails_leaves_the_others(table, tmp_path, monkeypatch):
    """A second stage that diverges costs its own row alone, and what it starts from is there for other tables."""
    real = measure.adjust

    def adjust(trained, method, *arguments, **options):
        if method == "fine-tune-last-block":
            raise InputError("it diverged")
        return real(trained, method, *arguments, **options)

    monkeypatch.setattr(measure, "adjust", adjust)
    made = plan.plan(Request("kang-1", tmp_path, rows=("fine-tune-last-block", "C", "joint"), seeds=1))
    notes = reproduce.work(made, Silent())
    assert notes == ["digits-lt/decoupling seed 0, fine-tune-last-block: it diverged"]
    record = reproduce.record(made)
    reasons = {(line["method"], line["metric"]): (line["verdict"], line["reason"]) for line in record["lines"]}
    assert reasons["fine-tune-last-block", "all"] == ("not run", "failed")
    assert reasons["crt", "all"] == reasons["joint", "all"] == ("single run", None)


@pytest.mark.usefixtures("printed_rows_alone")
def test_other_protocols_stand_beside(out, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)
    arguments = ["kang-1", "--rows", "joint", "--out", folder, "--seeds", "1", "--protocol", "clean"]
    code, text, _ = command(capsys, "reproduce", *arguments)
    assert code == 0
    rows = [line.split() for line in text.splitlines()]
    clean = next(row for row in rows if row[:2] == ["under", "clean"])
    assert len(clean) == 5  # metric, mean, one seed; no verdict
    joint = [row for row in rows if row[:1] == ["Joint"]]
    assert [row[-1] for row in joint] == ["pass", "above"]


@pytest.mark.usefixtures("printed_rows_alone")
def test_what_is_printed_of_val_is_compared_with_val(table, tmp_path, monkeypatch):
    (printed,) = (
        cell for cell in targets.published_table(targets.KANG, 1).cells if (cell.method, cell.metric) == ("tde", "all")
    )
    cells = [
        printed.model_copy(update={"split": "val", **more}) for more in ({"method": "de-confound", "alpha": None}, {})
    ]
    found = [targets._target(cell, epochs=False) for cell in cells]
    monkeypatch.setattr(plan, "targets_of", lambda *_: found)
    made = plan.plan(Request("kang-1", tmp_path, seeds=1))
    assert [job.recipe.protocol for job in made.jobs] == ["clean"]
    assert reproduce.work(made, Silent()) == []
    lines = reproduce.record(made)["lines"]
    (seed,) = tmp_path.glob("*/*/seed-0")
    val = Store.load(seed / "stores/val", runs.read_json(seed / "results.json")["checkpoint"])
    logits = tde(torch.tensor(val.features), measure.load_model(seed).classifier, 0.5)
    said = (val.logits.argmax(axis=1), logits.detach().numpy().argmax(axis=1))
    accuracy = [float(100 * np.mean(predicted == val.labels)) for predicted in said]
    assert [line["ours"]["clean"]["values"] for line in lines] == [[pytest.approx(one)] for one in accuracy]
    assert [line["verdict"] for line in lines] == ["single run", "single run"]
    assert lines[1]["difference"] == pytest.approx(accuracy[1] - 50.0)


def test_a_record_outlives_its_runs(out, tmp_path):
    kept = tmp_path / "kept.json"
    shutil.copy(out / "kept.json", kept)
    empty = tmp_path / "empty"
    recorded = reproduce.Recorded(plan.plan(Request("kang-1", empty, rows=("joint",))), kept)
    content = recorded.write()
    before = json.loads((out / "kept.json").read_text())
    assert content["runs"] == before["runs"]
    verdicts = {(line["method"], line["metric"]): line["verdict"] for line in content["lines"]}
    assert verdicts["crt", "all"] == "off"
    with pytest.raises(InputError, match="record: expected one of kang-2, got one of kang-1"):
        reproduce.Recorded(plan.plan(Request("kang-2", empty)), kept)
    with pytest.raises(InputError, match="record: expected one of subset seed 1, got 0"):
        reproduce.Recorded(plan.plan(Request("kang-1", empty, rows=("joint",), subset_seed=1)), kept)
    with pytest.raises(InputError, match=r"record: expected one of settings stages.0.epochs=2, got none"):
        reproduce.Recorded(plan.plan(Request("kang-1", empty, rows=("joint",), settings=("stages.0.epochs=2",))), kept)
    assert json.loads(kept.read_text()) == content
    with pytest.raises(InputError, match="record: expected a folder"):
        reproduce.Recorded(recorded.made, tmp_path / "nowhere/kept.json")


def test_a_run_on_other_data_has_no_verdict(out, monkeypatch):
    monkeypatch.setattr(reproduce, "of_another_benchmark", lambda recipe, seeds: f"other data: {len(seeds)} runs")
    lines = reproduce.record(plan.plan(Request("kang-1", out, rows=("joint", "crt"))))["lines"]
    said = {(line["verdict"], line["difference"], line["reason"]) for line in lines if line["ours"]}
    assert said == {("not run", None, "other data: 3 runs")}


@pytest.mark.parametrize("same", [True, False])
def test_rows_on_record_stay_with_their_weights(out, same):
    """A row that the folder no longer has is kept, but not beside a seed that was trained again."""
    before = json.loads((out / "kept.json").read_text())
    (seed, *_) = before["runs"][0]["seeds"]
    seed["rows"]["earlier"] = seed["rows"]["joint"]
    seed["checkpoint"] = seed["checkpoint"] if same else "another"
    made = plan.plan(Request("kang-1", out, rows=("joint",)))
    (run,) = reproduce.record(made, before)["runs"]
    assert ("earlier" in run["seeds"][0]["rows"]) == same


def test_a_row_of_other_settings_does_not_count(out):
    """An alpha or a second stage that is not the recipe's; of several runs the one with the seed is taken."""
    (run,) = begun_below(out)
    ours = override([RECIPES["digits-lt/decoupling"]], ["protocol=paper", "data.subset_seed=0"])[0]
    recipe = override([ours], ["second.crt.stage.epochs=7"])[0]
    results = run.seed(0).results()
    assert "crt" in reproduce.usable_rows(results, ours)
    assert "crt" not in reproduce.usable_rows(results, recipe)
    tde = override([RECIPES["digits-lt/tde"]], ["protocol=paper"])[0]
    row = {"alpha": {"value": tde.tde.fixed_alpha, "from": "recipe"}}
    assert list(reproduce.usable_rows({"rows": {"tde": row}}, tde)) == ["tde"]
    assert not reproduce.usable_rows({"rows": {"tde": {"alpha": {"value": 0.2}}}}, tde)
    rows = {"tau-norm": {"norm_power": {"value": 0.7, "from": "given"}}, "ncm": {"distance": "l2"}}
    assert not reproduce.usable_rows({"rows": rows}, run.recipe)  # chosen by looking, another distance
    given = override([run.recipe], ["tau_norm.power=0.7", "ncm.distance=l2"])[0]
    assert list(reproduce.usable_rows({"rows": rows}, given)) == ["tau-norm", "ncm"]
    assert {"tau-norm", "ncm", "ncm-centered"} <= set(reproduce.usable_rows(results, run.recipe))
    key = first_stage(run.recipe, 0)
    assert run_of([run], key, 0) is run
    assert run_of([run], key, 7) is run  # a new seed goes there, too
    assert run_of([run], "other", 0) is None


# ---- what the papers claim


def test_many_falls_and_few_rises_up_to_its_peak(monkeypatch):
    """The largest step the wrong way counts only before few's peak."""
    curve = {
        "many": [90.0, 89.0, 89.4, 60.0, 70.0],
        "medium": [50.0, 52.0, 51.0, 50.0, 40.0],
        "few": [10.0, 12.0, 11.7, 20.0, 5.0],
        "all": [50.0, 51.0, 52.0, 51.0, 40.0],
    }
    monkeypatch.setattr(claims.measure, "strength_curve", lambda *_, **__: {"test": curve})
    seed = claims.alpha_of_seed(None, values=(0.0, 0.5, 1.0, 1.5, 2.0))
    assert seed["peaks"] == {"many": 0.0, "medium": 0.5, "few": 1.5, "all": 1.0}
    assert (seed["many rises by"], seed["few falls by"]) == (pytest.approx(0.4), pytest.approx(0.3))
    assert seed["at few's peak"] == {"many": 60.0, "medium": 50.0, "few": 20.0, "all": 51.0}
    assert claims.claim_alpha([None])["holds"]
    curve["few"][2] = 11.4
    assert not claims.claim_alpha([None])["holds"]
    curve["few"][2], curve["many"][2] = 12.0, 89.6
    assert not claims.claim_alpha([None])["holds"]


def test_cosines_on_a_long_tail_and_on_a_balanced_set(monkeypatch):
    """The balanced set's classes go by the groups of the long-tailed one."""
    tailed, flat = (
        [
            SimpleNamespace(
                published=name, model=SimpleNamespace(classifier=name), stores=SimpleNamespace(test=lambda: None)
            )
        ]
        for name in ("tailed", "flat")
    )
    asked = []

    def cosines(classifier, _, counts):
        asked.append((classifier, counts))
        few = {"tailed": 0.5, "flat": 0.7}[classifier]
        return {"many": 0.8, "medium": None, "few": few}

    monkeypatch.setattr(claims, "head_cosines", cosines)
    claim = claims.claim_cosine(tailed, flat)
    assert asked == [("tailed", "tailed"), ("flat", "tailed")]
    assert claim["holds"]
    last = claim["rows"]["many less few, long-tailed, balanced"]
    assert [round(cell["mean"], 6) for cell in last] == [0.3, 0.1]
    assert not claims.claim_cosine(flat, tailed)["holds"]
    assert claims.claim_cosine(tailed, None)["holds"] is None


def test_claims_of_trained_runs(out):
    """Norms and samplers from what is on disk, computed again here; a gain only over the rows that are there."""
    (run,) = runs.open_runs(out / "digits-lt/decoupling-subset-seed-0-paper")
    record = claims.record_of([run])
    held = {name: claim and claim["holds"] for name, claim in record["claims"].items()}
    assert held["alpha"] is held["head-cosine"] is held["samplers"] is held["gain"] is None
    expected = []
    for seed in run.seeds:
        weight = measure.load_model(seed.path).classifier.weight.detach().double().numpy()
        norms = [sum(value**2 for value in row) ** 0.5 for row in weight.tolist()]
        logs = np.log([seed.results()["counts"], norms])
        centred = logs - logs.mean(axis=1, keepdims=True)
        expected.append(centred[0] @ centred[1] / np.sqrt((centred[0] @ centred[0]) * (centred[1] @ centred[1])))
    found = record["claims"]["weight-norms"]["rows"]["correlation, joint"][0]
    assert found["mean"] == pytest.approx(np.mean(expected))
    text = claims.table(record)
    assert "digits-lt/decoupling, ratio 50, epochs 1, protocol paper, seeds 0, 1, 2" in text
    assert "gains over re-balancing (Tang et al. 2020, Table 2): no verdict, runs are missing" in text
    opened = [measure.open_trained(seed, None) for seed in run.seeds]
    mine = claims.claim_samplers({"instance": opened, "square-root": opened[:2]})
    accuracy = [seed.results()["rows"]["crt"]["all"] for seed in run.seeds]
    assert mine["rows"]["crt, instance"][0]["mean"] == pytest.approx(np.mean(accuracy))
    assert mine["holds"] == (np.mean(accuracy) >= np.mean(accuracy[:2]))


def test_a_gain_is_paired_over_seeds(monkeypatch):
    def of(seed, **rows):
        return {"seed": seed, "subset_hash": "s", "rows": {name: {"all": value} for name, value in rows.items()}}

    monkeypatch.setattr(claims, "results", lambda record: record)
    joint = [of(0, joint=40.0, crt=42.0, ncm=45.0), of(1, joint=41.0, crt=43.0, ncm=44.0)]
    tde = [of(1, tde=46.0), of(0, tde=44.0)]
    claim = claims.claim_gain(tde, joint)
    assert claim["rows"]["tde less crt"][0]["mean"] == 2.5
    assert claim["rows"]["tde less ncm"][0]["mean"] == 0.5
    assert claim["holds"]
    joint[0]["rows"]["ncm"]["all"] = 48.0
    assert not claims.claim_gain(tde, joint)["holds"]


# ---- CIFAR, in miniature


def test_table_3_on_a_miniature_of_cifar(tmp_path, monkeypatch, capsys):
    """Reading, planning, training, TDE, comparing in CIFAR's layout; its rows are no results."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 10)
    images = rng.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10.npz", x_train=images, y_train=labels, x_test=images[::5], y_test=labels[::5])
    monkeypatch.setattr(estimate, "STEPS", 1)
    settings = ["stages.0.epochs=1", "stages.0.batch_size=16", "compute.threads=1"]
    rows = ["--rows", "cifar10-lt-10/tde", "--rows", "cifar100-lt-10/tde", "--seeds", "1"]
    where = ["--data-dir", tmp_path, "--out", tmp_path / "runs"]
    code, text, _ = command(capsys, "reproduce", "tang-3", *settings, *rows, *where, "--json")
    record = json.loads(text)
    assert code == 0
    lines = {f"{line['section']}/{line['method']}": line for line in record["lines"]}
    trained, absent = lines["cifar10-lt-10/tde"], lines["cifar100-lt-10/tde"]
    assert 0 <= trained["ours"]["paper"]["mean"] <= 100
    assert (trained["verdict"], trained["reason"]) == ("not run", f"other settings: {', '.join(settings[:2])}")
    assert (absent["verdict"], absent["reason"], absent["ours"]) == ("not run", "no data: cifar100-lt", {})
    assert record["runs"][0]["seeds"][0]["train_images"] == 36


@pytest.mark.usefixtures("printed_rows_alone")
@pytest.mark.parametrize(
    ("table", "row", "name", "methods"),
    [
        ("tang-2", "tde", "imagenet-lt", {"tde"}),
        ("kang-4", "τ-normalized", "places-lt", {"tau-norm"}),
        ("kang-3", "*50, 90 epochs/crt", "inaturalist-2018", {"crt"}),
    ],
)
def test_tables_of_photographs_on_a_miniature(table, row, name, methods, tmp_path, monkeypatch, capsys):
    """Lists, images, training and rows in the layout of the real data; what comes of it is no result."""
    prepare_listed(benchmark_tree(tmp_path, name), tmp_path)
    monkeypatch.setattr(estimate, "STEPS", 1)
    small = ["backbone.name=resnet32", "backbone.pretrained=false", "data.size=16", "data.resize=18"]
    short = ["stages.0.epochs=1", "stages.0.batch_size=8", "compute.threads=1", "compute.workers=0"]
    short += [f"second.crt.stage.{setting}" for setting in ("epochs=1", "batch_size=8")] if table == "kang-3" else []
    arguments = [table, *small, *short, "--rows", row, "--seeds", "1", "--json"]
    code, text, err = command(capsys, "reproduce", *arguments, "--data-dir", tmp_path, "--out", tmp_path / "runs")
    assert code == 0, err
    record = json.loads(text)
    lines = [line for line in record["lines"] if line["asked"] and line["metric"] == "all"]
    assert {line["method"] for line in lines} == methods
    for line in lines:
        assert 0 <= line["ours"]["paper"]["mean"] <= 100
        assert line["verdict"] == "not run"
        assert line["reason"].startswith("other settings: backbone.name=resnet32")
    assert record["runs"][0]["seeds"][0]["train_images"] == sum(TRAIN)


# ---- words


def test_the_command_lists_and_corrects(capsys):
    code, text, _ = command(capsys, "reproduce")
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == list(TABLES)
    assert command(capsys, "reproduce", "tang3")[::2] == (
        2,
        "tailwise: table: unknown value 'tang3'; did you mean 'tang-3'?\n",
    )
    assert command(capsys, "reproduce", "tang-3", "--budget", "45")[0] == 2
    assert "got 0" in command(capsys, "reproduce", "tang-3", "--seeds", "0")[2]


def test_a_table_of_which_nothing_can_be_run(tmp_path, capsys):
    code, text, _ = command(capsys, "reproduce", "kang-4", "--out", tmp_path)
    assert code == 0
    assert "cannot be run, 5 runs: no data: places-lt (data-dir: places-lt needs a local copy" in text
    assert text.count("not run: no data") == 9  # a line for each row
