"""Training that was stopped goes on where it stopped, to the same bits."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tailwise import InputError, Stage, fit
from tailwise.classifiers import CausalClassifier
from tailwise.experiments import experiment, files, over_seeds, runs
from tailwise.experiments.build_data import build_data
from tailwise.recipes.catalog import find
from tailwise.recipes.overrides import override
from tailwise.sampling import EpochSampler, instance_draw
from tailwise.train import Snapshot, cosine, load_checkpoint, save_checkpoint, snapshot_of

# ---- the loop


def stages(optimizer=torch.optim.SGD, **settings):
    settings = {"momentum": 0.9, "weight_decay": 1e-3} if optimizer is torch.optim.SGD else settings
    return [
        Stage(
            name=name,
            epochs=epochs,
            batch_size=8,
            sampler=EpochSampler(partial(instance_draw, 28, epochs), batch_size=8),
            loss=torch.nn.functional.cross_entropy,
            optimizer=partial(optimizer, lr=1.0, **settings),
            learning_rate=cosine(0.05, epochs),
            trainable=trainable,
        )
        for name, epochs, trainable in (("all", 3, ("",)), ("last", 2, ("1",)))
    ]


def model():
    torch.manual_seed(0)
    dropout = torch.nn.Dropout(0.3)  # draws from torch's random state at every step
    body = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), dropout)
    return torch.nn.Sequential(body, CausalClassifier(8, 3))


def load(stage, epoch):
    x = torch.randn(28, 6, generator=torch.Generator().manual_seed(1))
    y = torch.arange(28) % 3
    return [(x[i], y[i]) for i in stage.sampler.indices(epoch).split(8)]


def from_a_loader(stage, epoch):
    """The same batches; a DataLoader draws from torch's random state when it begins."""
    x, y = (torch.cat(parts) for parts in zip(*load(stage, epoch), strict=True))
    return DataLoader(TensorDataset(x, y), batch_size=8)


class Counting(torch.optim.SGD):
    """Slower with every step, of which a parameter and a group have a count each, as some optimisers do."""

    def step(self, closure=None):
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["strength"] = 0.9 * state.get("strength", 1.0)
                    parameter.grad.mul_(state["strength"] / group["steps"])
        super().step(closure)
        assert rates == [group["lr"] for group in self.param_groups]


@pytest.mark.parametrize(
    ("optimizer", "load"),
    [
        (torch.optim.SGD, load),
        (torch.optim.SGD, from_a_loader),
        (torch.optim.AdamW, load),
        (torch.optim.Adafactor, load),
        (Counting, load),
    ],
)
def test_from_every_pause_the_rest_is_the_same(optimizer, load, tmp_path):
    snapshots, ends, whole = [], [], model()
    fit(
        whole,
        stages(optimizer),
        load,
        on_epoch=ends.append,
        on_pause=lambda take: snapshots.append((take(), len(ends))),
    )
    assert len(snapshots) == 5 * (4 + 1)  # after every step, and again when the epoch is told
    for snapshot, told in snapshots:
        path = tmp_path / "s.safetensors"
        save_checkpoint(path, snapshot.tensors, snapshot.progress)
        read = load_checkpoint(path)
        twin, again = model(), []
        torch.manual_seed(123)  # where the process stands does not matter
        fit(twin, stages(optimizer), load, on_epoch=again.append, resume=snapshot_of(read.state, read.meta))
        for name, tensor in whole.state_dict().items():
            assert torch.equal(twin.state_dict()[name], tensor), name
        assert [(end.stage, end.epoch, end.loss, end.images) for end in again] == [
            (end.stage, end.epoch, end.loss, end.images) for end in ends[told:]
        ]


def test_an_optimizer_that_cannot_be_kept_is_named():
    class Remembers(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.param_groups[0]["seen"] = ["a list"]

    with pytest.raises(InputError, match=r"optimizer: expected tensors and numbers .* Remembers has seen of type list"):
        fit(model(), stages(Remembers), load, on_pause=lambda take: take())


def test_a_path_may_be_text(tmp_path):
    save_checkpoint(str(tmp_path / "w.safetensors"), {"w": torch.ones(2)}, {})
    assert torch.equal(load_checkpoint(str(tmp_path / "w.safetensors")).state["w"], torch.ones(2))


def test_a_snapshot_is_a_copy():
    snapshots = []
    fit(model(), stages(), load, on_pause=lambda take: snapshots.append(take()))
    weights = [snapshot.tensors["model.1.weight"] for snapshot in snapshots]
    assert not torch.equal(weights[0], weights[1])


def test_a_snapshot_that_does_not_fit_is_named():
    snapshots = []
    fit(model(), stages(), load, on_pause=lambda take: snapshots.append(take()))
    other = torch.nn.Sequential(torch.nn.Linear(6, 8), CausalClassifier(8, 3))
    with pytest.raises(InputError, match=r"does not fit the model: .*0\.0\.weight is unknown"):
        fit(other, stages(), load, resume=snapshots[0])
    one, two = stages()
    for progress, others in (
        ({"stage": 1}, [one]),
        ({"stage": 0, "epoch": 5}, [one, two]),
        ({"stage": 0, "epoch": 1, "batch": 5}, [one, two]),
    ):
        late = Snapshot(snapshots[0].tensors, {**snapshots[0].progress, **progress})
        with pytest.raises(InputError, match=r"^snapshot: expected one (of stages of 3|within an epoch of 4 batches)"):
            fit(model(), others, load, resume=late)
    narrow = [replace(one, trainable=("1",))]
    with pytest.raises(InputError, match="expected momentum_buffer of 1 trained parameters, got one of shape"):
        fit(model(), narrow, load, resume=snapshots[0])
    for broken in ({}, {**snapshots[0].progress, "epoch": 0}, {**snapshots[0].progress, "more": 1}):
        with pytest.raises(InputError):
            snapshot_of(snapshots[0].tensors, broken)
    assert isinstance(snapshot_of(snapshots[0].tensors, snapshots[0].progress), Snapshot)


# ---- runs


SETTINGS = ["stages.0.epochs=4", "second.crt.stage.epochs=2", "second.lws.stage.epochs=1"]


class StopError(Exception):
    pass


class Stopping:
    """Stops training after so many epochs, as a fault of the machine would."""

    def __init__(self, after):
        self.left = after

    def begin(self, label, epochs, settings, folder): ...

    def epoch(self, record):
        self.left -= 1
        if not self.left:
            raise StopError

    def done(self, label, line, rows): ...

    def stopped(self, kept): ...


def run(folder, watch, *, settings=(), seeds=(0, 1), **how):
    recipes = override(find("digits-lt/decoupling"), [*SETTINGS, *settings])
    return experiment.train(recipes, seeds, folder, data_dir=None, watch=watch, **how)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "whole", Stopping(-1))


def same(one, other):
    """Everything but the time it took."""
    for a, b in zip(one.seeds, other.seeds, strict=True):
        left, right = ({k: v for k, v in seed.results().items() if k != "seconds"} for seed in (a, b))
        assert left == right
        logs = [[json.loads(line) for line in (s.path / runs.LOG).read_text().splitlines()] for s in (a, b)]
        for line in (*logs[0], *logs[1]):
            assert all(line.pop(name) > 0 for name in ("seconds", "images_per_second", "memory"))
        assert logs[0] == logs[1]
        assert [line["number"] for line in logs[0]] == list(range(1, len(logs[0]) + 1))
        files = [sorted(str(p.relative_to(s.path)) for p in s.path.rglob("*")) for s in (a, b)]
        assert files[0] == files[1]
        for path in a.path.rglob("*.safetensors"):
            assert load_checkpoint(path).digest == load_checkpoint(b.path / path.relative_to(a.path)).digest
    return True


@pytest.mark.parametrize(
    ("after", "save_every"), [(1, 0.0), (4, 0.0), (5, 0.0), (7, 0.0), (9, 0.0), (1, 1e9), (7, 1e9)]
)
def test_a_stopped_run_goes_on_to_the_same_end(whole, tmp_path, after, save_every):
    """In the first stage, at its end, in either second stage, in the second seed; with snapshots and without."""
    with pytest.raises(StopError):
        run(tmp_path / "a", Stopping(after), save_every=save_every)
    assert (tmp_path / "a/seed-0").exists() == (after > 7)
    watch = Stopping(-1)
    assert same(whole, run(tmp_path / "a", watch, save_every=save_every, resume=True))


def test_resuming_what_was_never_begun_begins_it(whole, tmp_path):
    assert same(whole, run(tmp_path / "a", Stopping(-1), resume=True))


def test_resuming_a_finished_run_trains_nothing_and_adds_seeds(whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "a")
    shutil.rmtree(tmp_path / "a/seed-1")
    before = (tmp_path / "a/seed-0/results.json").stat().st_mtime_ns
    watch = Stopping(-1)
    assert same(whole, run(tmp_path / "a", watch, resume=True))
    assert (tmp_path / "a/seed-0/results.json").stat().st_mtime_ns == before


def test_resuming_with_other_settings_is_refused(whole, tmp_path):
    with pytest.raises(StopError):
        run(tmp_path / "a", Stopping(2), save_every=0.0)
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"settings that .*recipe\.json was begun with, stages\.0\.epochs 4, got 5"):
        run(tmp_path / "a", Stopping(-1), settings=["stages.0.epochs=5"], resume=True)
    snapshot = tmp_path / "a/seed-0.partial/last-first.safetensors"
    content = bytearray(snapshot.read_bytes())
    content[-1] ^= 1
    snapshot.write_bytes(content)
    with pytest.raises(InputError, match=r"last-first\.safetensors: corrupt"):
        run(tmp_path / "a", Stopping(-1), resume=True)
    snapshot.write_bytes(before[snapshot])  # and nothing was lost
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before
    assert same(whole, run(tmp_path / "a", Stopping(-1), resume=True))


def test_other_data_is_noticed_in_either_stage(tmp_path, monkeypatch):
    """Also labels of val alone; files of before there was such a hash are gone on from."""

    def resumed(after):
        short = [f"{key}.epochs=1" for key in ("stages.0", "second.crt.stage", "second.lws.stage")]
        return run(tmp_path / "a", Stopping(after), settings=short, seeds=(0,), save_every=0.0, resume=True)

    def swapped(*given):
        data = build_data(*given)
        return replace(data, val=replace(data.val, labels=data.val.labels.flip(0)))

    def refused_and_then_older(name):
        path = tmp_path / "a/seed-0.partial" / name
        with monkeypatch.context() as patch:
            patch.setattr(experiment, "build_data", swapped)
            with pytest.raises(InputError, match=rf"{name}: taken with data_hash"):
                resumed(-1)
        there = load_checkpoint(path)
        del there.meta.get("about", there.meta)["data_hash"]
        save_checkpoint(path, there.state, there.meta)

    with pytest.raises(StopError):
        resumed(1)
    refused_and_then_older("last-first.safetensors")
    with pytest.raises(StopError):
        resumed(2)
    refused_and_then_older("checkpoint.safetensors")
    assert [seed.seed for seed in resumed(-1).seeds] == [0]


def test_a_full_disk_is_named_and_the_last_snapshot_stands(whole, tmp_path, monkeypatch):
    with pytest.raises(StopError):
        run(tmp_path / "a", Stopping(2), save_every=0.0)
    before = load_checkpoint(tmp_path / "a/seed-0.partial/last-first.safetensors").digest

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tailwise.train.checkpoint.save_file", full)
        with pytest.raises(InputError, match=r"cannot write the checkpoint .*No space left"):
            run(tmp_path / "a", Stopping(-1), save_every=0.0, resume=True)
    assert load_checkpoint(tmp_path / "a/seed-0.partial/last-first.safetensors").digest == before
    assert same(whole, run(tmp_path / "a", Stopping(-1), resume=True))


def test_ctrl_c_leaves_a_snapshot_to_go_on_from(whole, tmp_path):
    folder = tmp_path / "a"
    arguments = [sys.executable, "-m", "tailwise", "train", "digits-lt/decoupling", *SETTINGS, "--seeds", "2"]
    process = subprocess.Popen(
        [*arguments, "--out", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    log = folder / "seed-0.partial/log.jsonl"
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "tailwise: interrupted; with --resume it goes on\n"
    assert list(folder.glob("seed-0.partial/last-*.safetensors"))
    assert same(whole, run(folder, Stopping(-1), resume=True))


def test_resume_wants_a_run_that_was_begun(whole, tmp_path, capsys):
    from tailwise.cli import main

    (tmp_path / "home").mkdir()
    (tmp_path / "home/precious").write_text("mine")
    for name, folder, message in (
        ("digits-lt/decoupling", tmp_path / "nowhere", "expected a run folder with recipe.json"),
        ("digits-lt/decoupling", tmp_path / "home", "got none there"),
        ("digits-lt/decoupling", whole.path / "seed-0", "got none there"),
        ("digits-lt", whole.path, "got a single run"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["train", name, "--out", str(folder), "--resume"])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["home", "precious"]


def test_settings_that_no_result_depends_on_may_change_on_the_way(tmp_path):
    recipe = find("digits-lt/tde")[0]
    written = recipe.model_dump(mode="json") | {"published": [{"method": "tde", "all": 44.1}]}  # runs have held these
    files.write_json(tmp_path / runs.RECIPE, {"recipe": written})
    over_seeds.check_same(override([recipe], ["seeds=7", "compute.workers=3"])[0], tmp_path / runs.RECIPE)
    with pytest.raises(InputError, match=r"resume: .* compute.precision float32, got bf16"):
        over_seeds.check_same(override([recipe], ["compute.precision=bf16"])[0], tmp_path / runs.RECIPE)


# ---- SIGKILL


def command(folder, *more):
    arguments = ["train", "digits-lt/decoupling", *SETTINGS, "--seeds", "2", "--out", str(folder), "--save-every", "0"]
    return [sys.executable, "-m", "tailwise", *arguments, *more]


def newest_snapshot(folder):
    """When the last one was written."""
    try:
        return max((path.stat().st_mtime_ns for path in folder.glob("seed-*.partial/last-*.safetensors")), default=0)
    except FileNotFoundError:  # just now renamed or removed
        return 0


def kill_somewhere(folder, rng):
    """Run (again), and kill at a random moment after the first new snapshot; True if the run was over before."""
    begun, before = ["--resume"] if (folder / "recipe.json").exists() else [], newest_snapshot(folder)
    process = subprocess.Popen(
        command(folder, *begun), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while newest_snapshot(folder) <= before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        _, err = process.communicate(timeout=rng.uniform(0.0, 0.5))
        assert process.returncode == 0, err
        return True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False


def every_visible_file_is_whole(folder):
    for path in folder.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.suffix == ".safetensors":
            load_checkpoint(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
    return True


def test_killed_at_random_moments_the_run_ends_as_if_it_had_not(whole, tmp_path):
    folder, rng, kills = tmp_path / "a", random.Random(time.time_ns()), 0
    for _ in range(9):
        if kill_somewhere(folder, rng):
            shutil.rmtree(folder)  # too late: once more
            continue
        kills += 1
        assert not folder.exists() or every_visible_file_is_whole(folder)
        if kills == 3:
            break
    assert kills, "the run was always over before it was killed: nothing was tested"
    assert same(whole, run(folder, Stopping(-1), resume=True))
