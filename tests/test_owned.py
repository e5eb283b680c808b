"""One process per seed: who comes second is refused, and let in when the first has ended, however it ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tailwise import InputError
from tailwise.cli import main
from tailwise.cli.training import train_into_folder
from tailwise.experiments import experiment, measure, owned, runs
from tailwise.experiments.watch import Silent
from tailwise.recipes.catalog import find
from tailwise.recipes.overrides import override

SETTINGS = ["stages.0.epochs=1", "second.crt.stage.epochs=1", "second.lws.stage.epochs=1"]
REFUSED = r"seed-0: expected no other process at work here"


def run(folder, watch=Silent(), *, settings=(), seeds=(0,), **how):  # noqa: B008
    recipes = override(find("digits-lt/decoupling"), [*SETTINGS, *settings])
    return experiment.train(recipes, seeds, folder, data_dir=None, watch=watch, **how)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "whole").path


class Meanwhile(Silent):
    """Does something in the midst of training, once."""

    def __init__(self, act):
        self.act = act

    def epoch(self, record):
        act, self.act = self.act, lambda: None
        act()


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_seed_is_trained_once_at_a_time(whole, tmp_path):
    folder, refused = tmp_path / "a", []

    def others():
        before = content(folder)
        for how in ({"resume": True}, {}):
            with pytest.raises(owned.TakenError, match=REFUSED):
                run(folder, **how)
        with pytest.raises(InputError, match=r"begun with, stages\.0\.epochs 1, got 2"):
            run(folder, settings=["stages.0.epochs=2"], seeds=(1,))
        assert content(folder) == before
        refused.append(True)

    run(folder, Meanwhile(others))
    assert refused
    assert not list(folder.rglob(".*"))
    assert names(folder) == names(whole)


def test_two_seeds_of_a_run_are_trained_at_once(whole, tmp_path):
    folder = tmp_path / "a"
    run(folder, Meanwhile(lambda: run(folder, seeds=(1,), resume=True)))
    seeds = runs.open_run(folder).seeds
    assert [seed.seed for seed in seeds] == [0, 1]
    assert seeds[0].results()["rows"] == runs.open_run(whole).seeds[0].results()["rows"]


def test_a_trained_seed_is_not_trained_over(whole):
    before = content(whole)
    with pytest.raises(InputError, match=r"not trained yet, got .*seed-0 with results\.json"):
        run(whole)
    assert content(whole) == before


# The first stage's training stops with a snapshot; a child, such as one that reads images, outlives its parent
FIRST = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_owned import Meanwhile, run

def stop():
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)

run(Path(sys.argv[2]), Meanwhile(stop), save_every=0.0)
"""


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_killed_process_lets_go(whole, tmp_path):
    folder = tmp_path / "a"
    arguments = [sys.executable, "-c", FIRST, str(Path(__file__).parent), str(folder)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as first:
        child = int(first.stdout.readline())
        try:
            with pytest.raises(owned.TakenError, match=REFUSED):
                run(folder, resume=True)
            first.kill()
            first.wait()
            resumed = run(folder, resume=True)
        finally:
            first.kill()
            os.kill(child, signal.SIGKILL)
    assert resumed.seeds[0].results()["rows"] == runs.open_run(whole).seeds[0].results()["rows"]
    assert not list(folder.rglob(".*"))


def test_a_seed_is_adjusted_once_at_a_time(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "a")
    seed = runs.open_run(tmp_path / "a").seeds[0]
    refused = []

    def others():
        before = content(seed.path)
        with pytest.raises(owned.TakenError, match=REFUSED):
            measure.adjust(measure.open_trained(seed, None), "tau-norm")
        with pytest.raises(SystemExit) as stopped:
            main(["adjust", str(tmp_path / "a"), "--method", "tau-norm"])
        assert stopped.value.code == 2
        assert "wait until it has ended" in capsys.readouterr().err
        assert content(seed.path) == before
        refused.append(True)

    measure.adjust(measure.open_trained(seed, None), "lws", watch=Meanwhile(others))
    assert refused
    measure.adjust(measure.open_trained(seed, None), "tau-norm")
    assert not list((tmp_path / "a").rglob(".*"))


def test_of_many_at_once_one_is_let_in(tmp_path):
    inside, let_in, barrier = [], [], threading.Barrier(4)

    def enter():
        for _ in range(50):
            barrier.wait()
            try:
                with owned.owned(tmp_path / "seed-0"):
                    inside.append(None)
                    let_in.append(len(inside))
                    inside.pop()
            except owned.TakenError:
                pass

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(let_in) >= 50
    assert set(let_in) == {1}
    assert not list(tmp_path.iterdir())


def test_all_processes_that_train_together_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tailwise.ranks.is_main", lambda: False)
    monkeypatch.setattr("tailwise.ranks.agree", lambda value: True)  # what the main process found
    with pytest.raises(owned.TakenError), owned.owned(tmp_path / "seed-0"):
        pass
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_locked_all_goes_on_as_it_would(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unknown)
    with owned.owned(tmp_path / "seed-0"), owned.owned(tmp_path / "seed-0"):
        assert not list(tmp_path.iterdir())
    with owned.owned(tmp_path / "nowhere/seed-0"):
        pass


def test_two_that_look_for_a_folder_get_two(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with runs.new_folder("a/b", None) as one, runs.new_folder("a/b", None) as other:
        assert (one, other) == (Path("runs/a/b"), Path("runs/a/b-2"))


def test_torchrun_goes_on_in_the_folder_of_its_own_launch(tmp_path, monkeypatch):
    """An attempt after one that died takes neither a finished run's folder nor another job's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr("tailwise.ranks._launch", torch.distributed.HashStore(), raising=False)
    told = []

    def attempt(out=None, leaves=()):
        def train(recipes, seeds, folder, *, resume, **how):
            told.append((str(folder), resume))
            for name in leaves:
                (folder / name).touch()
            raise InputError("died")

        how = {"seeds": 1, "data_dir": None, "device": "cpu", "save_every": 60.0, "track": [], "json": True}
        with pytest.raises(InputError, match="out: expected a new or empty folder" if out else "died"):
            train_into_folder(train, find("digits-lt/tde"), "a", out=out, resume=False, **how)

    yesterday = Path("runs/a")
    yesterday.mkdir(parents=True)
    (yesterday / runs.RECIPE).touch()
    attempt()  # nothing was begun before it, and nothing is left of it
    Path("runs/a-2").mkdir()  # another job's
    attempt(leaves=["recipe.json"])
    Path("runs/a-4").mkdir()
    attempt()
    assert told == [("runs/a-2", False), ("runs/a-3", False), ("runs/a-3", True)]
    monkeypatch.setattr("tailwise.ranks._launch", torch.distributed.HashStore())
    attempt(out=yesterday)  # refused, as it was by the attempt before
    assert len(told) == 3


def test_settings_that_will_not_do_leave_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("digits-lt/tde", "digit-scenes-lt/tde"):
        with pytest.raises(SystemExit) as stopped:
            main(["train", name, "--save-every", "-1"])
        assert stopped.value.code == 2
        assert "save_every" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_results_of_another_checkpoint_are_refused(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "a")
    seed = runs.open_run(tmp_path / "a").seeds[0]
    result = json.loads((seed.path / runs.RESULTS).read_text())
    (seed.path / runs.RESULTS).write_text(json.dumps({**result, "checkpoint": "0" * 64}))
    with pytest.raises(InputError, match=r"results\.json: expected results of checkpoint\.safetensors, .*0000; two"):
        measure.open_trained(seed, None)
