"""Trackers: they are told what log.jsonl says, go on where a run goes on, and never stop a training."""

import importlib
import json
import struct
import sys
import types

import pytest

from reports import run
from tailwise import InputError
from tailwise.checks import extra
from tailwise.experiments import experiment, runs
from tailwise.experiments.watch import Silent, Together
from tailwise.recipes.catalog import find
from tailwise.recipes.overrides import override
from tailwise.report.trackers import PARAMS_AT_ONCE, Mlflow, TensorBoard, scalars, summary, trackers
from tailwise.train import load_checkpoint

GROUPS = ("many", "medium", "few", "all")


class StopError(Exception):
    pass


class Stopping(Silent):
    """Stops training after so many epochs, as a fault of the machine would."""

    def __init__(self, after):
        self.left = after

    def epoch(self, record):
        self.left -= 1
        if not self.left:
            raise StopError


def train(folder, names, *settings, stop_after=-1, recipe="digits-lt/tde", seeds=(0,), **how):
    recipes = override(find(recipe), ["stages.0.epochs=4", *settings])
    watch = Together(Stopping(stop_after), trackers(names))
    return experiment.train(recipes, seeds, folder, data_dir=None, watch=watch, **how)[0]


def expected(seed):
    """What a tracker should have of a finished seed, from its files: ({number: scalars}, final rows)."""
    log = [json.loads(line) for line in (seed.path / runs.LOG).read_text().splitlines()]
    epochs = {}
    for record in log:
        epochs[record["number"]] = {
            name: record[name] for name in ("loss", "learning_rate", "images_per_second", "memory", "val")
        } | {
            f"{name}/{group}": value
            for name in ("val_accuracy", "head_cosine")
            for group, value in (record[name] or {}).items()
            if value is not None
        }
    rows = seed.results()["rows"]
    return epochs, {f"test/{method}/{group}": row[group] for method, row in rows.items() for group in GROUPS}


# ---- stand-ins for packages that are large, or want a server


class FakeWandb:
    """wandb, as far as it is used: every init is a session of a run."""

    def __init__(self):
        self.sessions, self.broken = [], False

    def init(self, **asked):
        session = types.SimpleNamespace(asked=asked, history=[], summary={}, code=None, metrics=[])

        def log(values):
            if self.broken:
                raise ConnectionError("no route to host\nand more")
            session.history.append(values)

        session.log = log
        session.define_metric = lambda name, **how: session.metrics.append((name, how))
        session.finish = lambda exit_code: setattr(session, "code", exit_code)
        self.sessions.append(session)
        return session


class FakeMlflow:
    """MlflowClient, as far as it is used; every instance sees the same store."""

    def __init__(self):
        self.experiments, self.runs = {}, {}

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        assert name not in self.experiments
        return self.experiments.setdefault(name, f"experiment of {name}")

    def create_run(self, experiment_id, run_name):
        run_id = f"id{len(self.runs)}"
        self.runs[run_id] = types.SimpleNamespace(
            name=run_name, experiment=experiment_id, params={}, metrics={}, status="RUNNING"
        )
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

    def update_run(self, run_id, status):
        self.runs[run_id].status = status

    set_terminated = update_run

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= PARAMS_AT_ONCE
        for key, value in params:
            assert isinstance(value, str)
            assert len(value) <= 500
            assert self.runs[run_id].params.setdefault(key, value) == value  # MLflow refuses a second value
        for key, value, _, step in metrics:
            self.runs[run_id].metrics.setdefault(key, {})[step] = value


@pytest.fixture
def wandb(monkeypatch):
    fake, module = FakeWandb(), types.ModuleType("wandb")
    module.init = fake.init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return fake


@pytest.fixture
def mlflow(monkeypatch):
    fake, module, entities = FakeMlflow(), types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    module.MlflowClient = lambda: fake
    entities.Metric = lambda key, value, timestamp, step: (key, value, timestamp, step)
    entities.Param = lambda key, value: (key, value)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return fake


def in_tensorboard(folder):
    """{tag: {step: value}} of event files; a step that stands there twice fails."""
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    read = {}
    for tag in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert len(set(steps)) == len(steps), tag
        read[tag] = {event.step: event.value for event in events.Scalars(tag)}
    return read, [tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]]


def earlier(folder):
    """Event files are read in the order of the second in their names: put those here into an earlier one."""
    for path in folder.iterdir():
        path.rename(path.with_name(path.name.replace("tfevents.1", "tfevents.0")))


def by_name(epochs, final):
    """{name: {number: value}} with the final rows at the last epoch, as TensorBoard and MLflow have it."""
    names = {name for values in epochs.values() for name in values}
    table = {name: {n: values[name] for n, values in epochs.items() if name in values} for name in names}
    return table | {name: {max(epochs): value} for name, value in final.items()}


def same_to_float32(read, table):
    assert read.keys() == table.keys()
    for name, values in table.items():
        assert read[name] == pytest.approx(values, rel=1e-6), name
    return True


# ---- what they are told


def test_all_three_have_what_the_log_has(tmp_path, wandb, mlflow):
    seed = train(tmp_path / "a", ["tensorboard", "wandb", "mlflow"]).seeds[0]
    epochs, final = expected(seed)
    assert list(epochs) == [1, 2, 3, 4]
    assert len(final) == 8

    read, texts = in_tensorboard(tmp_path / "a/tensorboard/seed-0")
    assert same_to_float32(read, by_name(epochs, final))
    assert texts == ["settings"]

    (session,) = wandb.sessions
    assert session.history == [{"number": number, **values} for number, values in epochs.items()]
    assert ("*", {"step_metric": "number"}) in session.metrics
    assert (session.summary, session.code) == (final, 0)
    config = session.asked["config"]
    assert config["seed"] == 0
    assert config["recipe"]["name"] == "digits-lt/tde"
    assert config["subset_hash"] == seed.results()["subset_hash"]
    assert (session.asked["name"], session.asked["project"]) == ("digits-lt/tde seed 0", "tailwise")

    (run,) = mlflow.runs.values()
    assert run.metrics == by_name(epochs, final)
    assert run.status == "FINISHED"
    assert run.params["recipe.stages.0.epochs"] == "4"
    assert run.params["versions.torch"] == seed.results()["versions"]["torch"]
    assert run.params["counts"] == str(seed.results()["counts"])

    plain = train(tmp_path / "b", []).seeds[0]  # and being watched changes nothing
    assert load_checkpoint(plain.checkpoint).digest == load_checkpoint(seed.checkpoint).digest
    assert [run.path for run in runs.open_runs(tmp_path)] == [tmp_path / "a", tmp_path / "b"]


def test_what_is_not_known_is_left_out():
    """Last epoch kept, no validation split: no val, no accuracy, no cosine; a group without classes; a linear one."""
    record = {"number": 1, "loss": 1.0, "learning_rate": 0.1, "images_per_second": 5.0, "memory": 7}
    nothing = {"val": None, "val_accuracy": None, "head_cosine": None}
    known = {"loss": 1.0, "learning_rate": 0.1, "images_per_second": 5.0, "memory": 7}
    assert scalars(record | nothing) == known
    some = {"val": 0.0, "val_accuracy": {"many": None, "few": 0.0}, "head_cosine": None}
    assert scalars(record | some) == known | {"val": 0.0, "val_accuracy/few": 0.0}
    assert summary({"a": dict.fromkeys(GROUPS) | {"few": 0.0}}) == {"test/a/few": 0.0}


def test_a_list_of_thousands_fits_a_param(tmp_path, mlflow):
    settings = {"seed": 3, "recipe": {"name": "a"}, "counts": list(range(8142)), **{f"n{i}": i for i in range(250)}}
    Mlflow().begin("a seed 3", 1, settings, tmp_path)
    assert mlflow.runs["id0"].params["counts"].endswith("...")
    assert len(mlflow.runs["id0"].params) == 253


def test_seeds_and_members_of_a_suite_are_runs_of_their_own(tmp_path, wandb):
    recipes = [
        recipe for name in ("linear", "tde") for recipe in override(find(f"digits-lt/{name}"), ["stages.0.epochs=1"])
    ]
    watch = Together(Silent(), trackers(["wandb", "tensorboard"]))
    experiment.train(recipes, (0, 1), tmp_path / "a", data_dir=None, watch=watch)
    assert len({session.asked["id"] for session in wandb.sessions}) == 4
    found = {str(path.parent.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("events.*")}
    assert found == {f"{name}/tensorboard/seed-{seed}" for name in ("linear", "tde") for seed in (0, 1)}
    assert [run.recipe.title for run in runs.open_runs(tmp_path / "a")] == ["linear", "tde"]


# ---- runs that stop


@pytest.mark.parametrize("snapshot", [True, False])  # goes on from it; begins again
def test_a_resumed_run_goes_on_in_the_same_tracked_run(tmp_path, wandb, mlflow, snapshot):
    names = ["tensorboard", "wandb", "mlflow"]
    with pytest.raises(StopError):
        train(tmp_path / "a", names, stop_after=3, save_every=0.0)
    assert wandb.sessions[0].code == 1
    assert mlflow.runs["id0"].status == "KILLED"
    earlier(tmp_path / "a/tensorboard/seed-0")
    if not snapshot:  # killed before the first snapshot
        (tmp_path / "a/seed-0.partial/last-first.safetensors").unlink()
    seed = train(tmp_path / "a", names, resume=True).seeds[0]
    table = by_name(*expected(seed))
    assert same_to_float32(in_tensorboard(tmp_path / "a/tensorboard/seed-0")[0], table)
    assert [session.asked["id"] for session in wandb.sessions] == [wandb.sessions[0].asked["id"]] * 2
    assert all(session.asked["resume"] == "allow" for session in wandb.sessions)
    last = {values["number"]: values for session in wandb.sessions for values in session.history}
    assert last == {number: {"number": number, **values} for number, values in expected(seed)[0].items()}
    assert mlflow.runs.keys() == {"id0"}
    assert mlflow.runs["id0"].metrics == table
    assert mlflow.runs["id0"].status == "FINISHED"


def test_what_is_stopped_after_its_last_epoch_keeps_it(tmp_path, monkeypatch):
    """The resumed process is told no epoch at all."""

    def fail(*args):
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr("tailwise.experiments.trained.Trained.row", fail)
        with pytest.raises(StopError):
            train(tmp_path / "a", ["tensorboard"])
    earlier(tmp_path / "a/tensorboard/seed-0")
    seed = train(tmp_path / "a", ["tensorboard"], resume=True).seeds[0]
    assert same_to_float32(in_tensorboard(tmp_path / "a/tensorboard/seed-0")[0], by_name(*expected(seed)))


def test_a_new_run_in_an_old_place_is_a_new_tracked_run(tmp_path, wandb):
    for name in ("a", "b"):
        train(tmp_path / "a", ["wandb"], "stages.0.epochs=1").path.rename(tmp_path / f"was-{name}")
    assert len({session.asked["id"] for session in wandb.sessions}) == 2


def test_a_failed_run_leaves_no_trace(tmp_path, wandb, mlflow):
    names = ["tensorboard", "wandb", "mlflow"]
    with pytest.raises(StopError):  # an epoch is tracked, no snapshot taken
        train(tmp_path / "a/b", names, stop_after=2)
    with pytest.raises(InputError):
        train(tmp_path / "a/b", names, "stages.0.learning_rate=1e30")
    assert list(tmp_path.iterdir()) == []
    assert [run.status for run in mlflow.runs.values()] == ["FAILED", "FAILED"]


def test_a_failed_seed_leaves_the_others_alone(tmp_path):
    with pytest.raises(StopError):
        train(tmp_path / "a", ["tensorboard"], seeds=(0, 1), stop_after=6)
    assert [path.name for path in (tmp_path / "a/tensorboard").iterdir()] == ["seed-0"]
    (tmp_path / "a/recipe.json").rename(tmp_path / "recipe.json")  # fails before anything is tracked
    (tmp_path / "a/recipe.json").mkdir()
    with pytest.raises(InputError):
        train(tmp_path / "a", ["tensorboard"], seeds=(1,))
    assert [path.name for path in (tmp_path / "a/tensorboard").iterdir()] == ["seed-0"]


def test_a_second_stage_that_is_stopped_leaves_what_an_earlier_one_tracked(tmp_path):
    board, settings, folder = TensorBoard(), {"seed": 0, "method": "crt"}, tmp_path / "tensorboard/seed-0-crt"
    record = dict.fromkeys(("loss", "learning_rate", "images_per_second", "memory", "val"), 1.0)
    record |= {"number": 1, "val_accuracy": None, "head_cosine": None}

    def tracked():
        board.begin("a", 1, settings, tmp_path / "seed-0")
        board.epoch(record)

    tracked()
    board.done("a", "", {})
    (before,) = folder.iterdir()
    tracked()
    assert len(list(folder.iterdir())) == 2
    board.stopped(kept=False)
    assert list(folder.iterdir()) == [before]
    before.unlink()
    tracked()
    board.stopped(kept=False)
    assert not (tmp_path / "tensorboard").exists()


# ---- trackers that fail


def test_a_tracker_that_fails_is_named_once_and_training_goes_on(tmp_path, wandb, mlflow):
    wandb.broken = True
    message = r"track: wandb failed and is left out .*training goes on \(ConnectionError: no route to host\)$"
    with pytest.warns(UserWarning, match=message) as warned:
        run = train(tmp_path / "a", ["wandb", "mlflow"], seeds=(0, 1))
    assert len(warned) == 1
    assert len(run.seeds) == 2
    assert [sorted(r.metrics["loss"]) for r in mlflow.runs.values()] == [[1, 2, 3, 4]] * 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's, which writes
def test_a_folder_that_goes_while_it_is_written_stops_nothing(tmp_path):
    class Taking(Silent):
        def epoch(self, record):
            if record["number"] == 3:
                (tmp_path / "a/tensorboard").rename(tmp_path / "taken")

    watch = Together(Taking(), trackers(["tensorboard"]))
    recipes = override(find("digits-lt/tde"), ["stages.0.epochs=4"])
    with pytest.warns(UserWarning, match="track: tensorboard failed") as warned:
        experiment.train(recipes, (0,), tmp_path / "a", data_dir=None, watch=watch)
    assert len(warned) == 1
    assert runs.open_run(tmp_path / "a").seeds


def test_what_the_terminal_shows_may_fail_loudly(tmp_path, wandb):
    class Broken(Silent):
        def begin(self, *args):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Together(Broken(), trackers(["wandb"])).begin("a", 1, {}, tmp_path)


# ---- the command


def command(capsys, *arguments):
    code, _, err = run(capsys, *arguments)
    return code, err


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named_first(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    for module in [m for m in sys.modules if m.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    code, err = command(capsys, "train", "digits-lt/tde", "--track", name, "--out", tmp_path / "a")
    assert code == 2
    assert err.startswith(f"tailwise: track: expected the package {name}; {extra(name)} (")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "a").exists()


def test_the_command_tracks(tmp_path, capsys, wandb):
    arguments = ("--track", "tensorboard", "--track", "wandb")
    out = tmp_path / "a"
    code, err = command(capsys, "train", *arguments, "digits-lt/joint", "stages.0.epochs=2", "--seeds", 1, "--out", out)
    assert (code, len(err.splitlines())) == (0, 1), err
    seed = runs.open_run(out).seeds[0]
    assert same_to_float32(in_tensorboard(out / "tensorboard/seed-0")[0], by_name(*expected(seed)))

    adjusting = ("adjust", out, "--method", "crt", "second.crt.stage.epochs=2", "--track", "tensorboard")
    code, err = command(capsys, *adjusting, "--track", "wandb")
    assert (code, len(err.splitlines())) == (0, 1), err
    read = in_tensorboard(out / "tensorboard/seed-0-crt")[0]
    assert sorted(read["loss"]) == [1, 2]
    assert len({session.asked["id"] for session in wandb.sessions}) == 2
    assert wandb.sessions[1].asked["name"] == "digits-lt/joint seed 0, crt"

    code, err = command(capsys, *adjusting, "second.crt.stage.epochs=1", "--track", "wandb")
    assert (code, "kept with stage.epochs 2, got 1" in err) == (2, True)
    assert in_tensorboard(out / "tensorboard/seed-0-crt")[0] == read
    assert len(wandb.sessions) == 2  # refused before anything is tracked

    code, err = command(capsys, "adjust", out, "--method", "tau-norm", "--track", "wandb")
    assert (code, err) == (
        2,
        "tailwise: track: expected a second stage with epochs on images, got tau-norm, which has none\n",
    )


def test_an_unknown_tracker_is_refused(tmp_path, capsys):
    with pytest.raises(InputError, match="track: unknown value 'wandbb'; did you mean 'wandb'"):
        trackers(["wandbb"])
    code, err = command(capsys, "train", "digits-lt/tde", "--track", "wandbb", "--out", tmp_path / "a")
    assert code == 2
    assert "wandbb" in err


# ---- the packages themselves, where they are installed


def of_wandb(path):
    """The records of a .wandb file: blocks of 32 KiB, each of fragments with (checksum, length, kind)."""
    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        fragment = content[at + 7 : at + 7 + length]
        whole = fragment if kind in (1, 2) else whole + fragment
        at += 7 + length
        if kind in (1, 4):
            yield whole


@pytest.mark.filterwarnings("ignore")
def test_wandb_itself(tmp_path, monkeypatch):
    pytest.importorskip("wandb.sdk")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with pytest.raises(StopError):
        train(tmp_path / "a", ["wandb"], stop_after=3, save_every=0.0)
    seed = train(tmp_path / "a", ["wandb"], resume=True).seeds[0]
    files = sorted(tmp_path.glob(f"wandb/offline-run-*-{(seed.path / 'wandb.id').read_text()}/*.wandb"))
    history, final = {}, {}
    for file in files:
        for content in of_wandb(file):
            record = Record.FromString(content)
            items = record.history.item or record.summary.update
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            if record.history.item:
                history[values["number"]] = {k: v for k, v in values.items() if k != "number" and k[0] != "_"}
            final |= {name: value for name, value in values.items() if name.startswith("test/")}
    assert (history, final) == expected(seed)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_itself(tmp_path, monkeypatch):
    module = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StopError):
        train(tmp_path / "a", ["mlflow"], stop_after=3, save_every=0.0)
    seed = train(tmp_path / "a", ["mlflow"], resume=True).seeds[0]
    client, run_id = module.MlflowClient(), (seed.path / "mlflow.id").read_text()
    run = client.get_run(run_id)
    read = {
        name: {point.step: point.value for point in client.get_metric_history(run_id, name)}
        for name in run.data.metrics
    }
    assert read == by_name(*expected(seed))
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "0"
