"""What a table needs, in which order, and how long it takes."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from tailwise import InputError
from tailwise.experiments import files, runs
from tailwise.experiments.build_data import build_data
from tailwise.experiments.settings import recorded
from tailwise.experiments.watch import Silent
from tailwise.recipes.catalog import RECIPES
from tailwise.recipes.overrides import override
from tailwise.report.reproduction import print_plan, span
from tailwise.reproduction import estimate, plan, reproduce, targets
from tailwise.reproduction.plan import Job, Request


def test_what_is_done_next(tmp_path):
    def job(number, epochs, done=0):
        one = Job(f"{number}", 0, RECIPES["digits-lt/tde"], tmp_path / f"{number}", None, borrowed=False)
        one.epochs, one.done, one.cost = epochs, done, estimate.Cost(10.0, 0, "steps", start=5.0)
        return one

    long, short, begun = job(1, 60), job(2, 2), job(3, 60)
    (files.partial(begun.folder / "seed-0")).mkdir(parents=True)
    (files.partial(begun.folder / "seed-0") / "last-first.safetensors").touch()
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


def test_out_of_memory_costs_one_training(tmp_path, monkeypatch):
    """While steps are timed or later: the others go on, and plan, record and notes say why."""

    def timed_cost(recipe, data, device):
        if recipe.classifier.name == "causal":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        return estimate.Cost(1.0, 0, "steps")

    def train(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    rows = [
        targets.Target("digits", "row", "all", name, recipe=RECIPES[f"digits-lt/{name}"]) for name in ("tde", "linear")
    ]
    monkeypatch.setattr(plan, "timed_cost", timed_cost)
    monkeypatch.setattr(plan, "targets_of", lambda *_: rows)
    monkeypatch.setattr(reproduce.experiment, "train", train)
    made = plan.plan(Request("kang-2", tmp_path, seeds=2))
    assert [job.lacks for job in made.jobs] == ["failed: out of memory"] * 2 + [None] * 2
    assert plan.plan_record(made)["runs"][0]["lacks"] == "failed: out of memory"
    assert reproduce.work(made, Silent()) == [f"digits-lt/linear seed {seed}: out of memory" for seed in (0, 1)]
    assert {line["reason"] for line in reproduce.record(made)["lines"]} == {"failed: out of memory"}


def test_a_run_goes_on_with_its_own_arithmetic_and_says_so(tmp_path, monkeypatch, capsys):
    """Who reads the images and where they lie is as asked: no result depends on it."""
    base = override([RECIPES["imagenet-lt/tde"]], ["protocol=paper", "data.subset_seed=0"])
    begun = override(base, ["compute.workers=2", "compute.threads=2", "data.kept=/old"])[0]
    folder = tmp_path / "mine"
    (folder / "seed-0.partial").mkdir(parents=True)
    files.write_json(folder / runs.RECIPE, {"format": runs.FORMAT, "recipe": recorded(begun)})
    asked = ["compute.workers=3", "compute.precision=bf16", "compute.threads=2", "data.kept=/new"]
    target = targets.Target("imagenet-lt", "row", "all", "tde", recipe=override(base, asked)[0])
    monkeypatch.setattr(plan, "targets_of", lambda *_: [target])
    monkeypatch.setattr(plan, "_data", lambda *_: build_data(RECIPES["digits-lt/tde"], 0, None))
    monkeypatch.setattr(plan, "timed_cost", lambda *_: estimate.Cost(1.0, 0, "steps"))
    made = plan.plan(Request("tang-2", tmp_path, seeds=2, settings=tuple(asked)))
    for job in made.jobs:
        recipe = job.begins_with
        assert (job.folder, recipe.data.kept, recipe.compute.workers) == (folder, "/new", 3)
        assert recipe.compute.precision == "float32"
    record = plan.plan_record(made)
    assert record["runs"][0]["goes_on_with"] == ["compute.precision=float32"]
    print_plan(Console(), record)
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"imagenet-lt/tde goes on with compute.precision=float32, as {folder} was begun" in said
    alike = replace(made.request, settings=tuple(asked[2:]))
    assert plan.plan_record(replace(made, request=alike))["runs"][0]["goes_on_with"] == []


def test_a_plan_says_what_is_begun_and_no_name_is_in_pieces(capsys):
    """In 80 columns, the names of runs and the figures whole; what is begun stands below."""
    run = {"changed": {}, "protocol": "paper", "epochs": 215, "goes_on_with": [], "lacks": None}
    whole = run | {"finished": [0], "seeds": [0], "left": [0], "begun": {}, "seconds": 0.0, "estimated_from": None}
    begun = run | {"finished": [], "seeds": [0], "left": [0], "begun": {"0": 54}}
    begun |= {"seconds": 14_500.0, "estimated_from": "steps"}
    name = "cifar100-lt/decoupling-class-balanced"
    record = {"about": "A table", "subset_seed": 0, "seconds": 14_500.0, "memory": 1e9, "device": "cpu", "lacks": {}}
    print_plan(Console(width=80), record | {"runs": [whole | {"recipe": "cifar100-lt/tde"}, begun | {"recipe": name}]})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "decoupling-class-balanced 0 of 1 seed 215 4 h 02 min timed steps" in lines
    assert f"{name}: seed 0 is at epoch 54" in lines
    assert "cifar100-lt/tde: seed 0 lacks rows" in lines


def test_what_an_option_says_is_no_setting(tmp_path):
    for setting, option in (
        ("protocol=clean", "--protocol"),
        ("data.subset_seed=4", "--subset-seed"),
        ("seeds=1", "--seeds"),
    ):
        with pytest.raises(InputError, match=f"expected the option {option}, got '{setting}'"):
            plan.plan(Request("tang-3", tmp_path, settings=(setting,)))


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
