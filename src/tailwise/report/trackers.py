"""Experiment trackers: TensorBoard, Weights & Biases, MLflow. Each is told what the terminal is told.

All three get the same names: `loss`, `learning_rate`, `images_per_second`, `memory` (bytes), `val`, and by group
`val_accuracy/few` and `head_cosine/few`, over the number of the epoch in the run; then `test/METHOD/few`, in percent.
What is not known is left out, never 0. Each seed is a run of its own, and so is a second stage that `adjust` trains.

A run that is resumed goes on in the same tracked run: its id is kept in the seed's folder. It is not made of the
folder's name, or a run in a place that was used before would go on in its predecessor.
"""

import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tailwise import checks

SCALARS = ("loss", "learning_rate", "images_per_second", "memory", "val")
BY_GROUP = ("val_accuracy", "head_cosine")
GROUPS = ("many", "medium", "few", "all")
PRECISIONS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "APbox")
PROJECT = "tailwise"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says otherwise
LONGEST_PARAM = 500  # characters; MLflow refuses longer ones (older servers; newer ones beyond 6000)
PARAMS_AT_ONCE = 100  # of MLflow


class TensorBoard:
    """Event files in RUN/tensorboard/seed-0; `tensorboard --logdir RUN` shows them."""

    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.open: Any = SummaryWriter
        self.writer: Any = None
        self.folder: Path | None = None

    def begin(self, label: str, epochs: int, settings: Mapping[str, Any], folder: Path) -> None:  # noqa: ARG002  # as Watch has it
        # beside the seed's folder, which changes its name when it is done
        self.folder, self.epochs, self.settings = folder.parent / "tensorboard" / _name(settings), epochs, settings
        self.before = set(self.folder.glob("*"))

    def epoch(self, record: Mapping[str, Any]) -> None:
        # what is told again after a resume replaces what was told: readers drop all from this number on
        self._write(scalars(record), record["number"], purge_from=record["number"])

    def done(self, label: str, line: str, rows: Mapping[str, Mapping[str, Any]]) -> None:  # noqa: ARG002  # as Watch has it
        self._write(summary(rows), self.epochs, purge_from=None)
        self._close()

    def stopped(self, kept: bool) -> None:
        folder = self.folder
        self._close()
        if folder is not None and not kept:
            with suppress(OSError):  # what an earlier call tracked is in there, or other seeds
                for path in set(folder.glob("*")) - self.before:
                    path.unlink()
                folder.rmdir()
                folder.parent.rmdir()

    def _write(self, values: Mapping[str, float], number: int, purge_from: int | None) -> None:
        if self.writer is None:  # not before: only now is it known where a resumed run goes on
            assert self.folder is not None
            new = not self.folder.exists()
            self.writer = self.open(str(self.folder), purge_step=purge_from)
            if new:
                self.writer.add_text("settings", f"```json\n{json.dumps(self.settings, indent=1)}\n```", 0)
        for name, value in values.items():
            self.writer.add_scalar(name, value, number)
        self.writer.flush()  # an epoch that is in the log is on disk here, too

    def _close(self) -> None:
        writer, self.writer, self.folder = self.writer, None, None
        if writer is not None:
            writer.close()


class Wandb:
    """A run in the project tailwise, or $WANDB_PROJECT; WANDB_MODE=offline and the like work as always.

    wandb writes to disk every 15 seconds: of a run that is killed offline, the points of the last ones may be missing.
    """

    def __init__(self) -> None:
        from wandb import init

        self.init: Any = init
        self.run: Any = None

    def begin(self, label: str, epochs: int, settings: Mapping[str, Any], folder: Path) -> None:  # noqa: ARG002  # as Watch has it
        kept = _id_file(folder, settings, "wandb")
        known = _read(kept)
        name = known or uuid.uuid4().hex[:16]
        self.run = self.init(
            id=name,
            resume="allow",
            reinit="create_new",  # a run that the caller has open is left alone
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=settings["recipe"]["name"],
            name=label,
            config=dict(settings),
            allow_val_change=True,  # of a run that goes on: another version, say
        )
        if kept and not known:
            kept.write_text(name)
        # wandb's own steps only grow: what is told again after a resume would be dropped
        self.run.define_metric("number", hidden=True)
        self.run.define_metric("*", step_metric="number")

    def epoch(self, record: Mapping[str, Any]) -> None:
        self.run.log({"number": record["number"], **scalars(record)})

    def done(self, label: str, line: str, rows: Mapping[str, Mapping[str, Any]]) -> None:  # noqa: ARG002  # as Watch has it
        self.run.summary.update(summary(rows))
        self._finish(0)

    def stopped(self, kept: bool) -> None:  # noqa: ARG002  # what was sent cannot be taken back
        if self.run is not None:
            self._finish(1)

    def _finish(self, code: int) -> None:
        self.run.finish(exit_code=code)
        self.run = None


class Mlflow:
    """A run in the experiment tailwise, or $MLFLOW_EXPERIMENT_NAME, on the server or store of MLFLOW_TRACKING_URI."""

    def __init__(self) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.connect: Any = MlflowClient
        self.metric: Any = Metric
        self.param: Any = Param
        self.run_id: str | None = None

    def begin(self, label: str, epochs: int, settings: Mapping[str, Any], folder: Path) -> None:
        self.client, self.epochs = self.connect(), epochs
        kept = _id_file(folder, settings, "mlflow")
        known = _read(kept)
        if known:
            self.client.update_run(known, status="RUNNING")
            self.run_id = known
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        made = experiment.experiment_id if experiment else self.client.create_experiment(name)
        self.run_id = self.client.create_run(made, run_name=label).info.run_id
        params = [self.param(key, _short(value)) for key, value in _flat(settings).items()]
        for first in range(0, len(params), PARAMS_AT_ONCE):
            self.client.log_batch(self.run_id, params=params[first : first + PARAMS_AT_ONCE])
        if kept and self.run_id:
            kept.write_text(self.run_id)

    def epoch(self, record: Mapping[str, Any]) -> None:
        self._log(scalars(record), record["number"])

    def done(self, label: str, line: str, rows: Mapping[str, Mapping[str, Any]]) -> None:  # noqa: ARG002  # as Watch has it
        self._log(summary(rows), self.epochs)
        self._finish("FINISHED")

    def stopped(self, kept: bool) -> None:
        if self.run_id is not None:
            self._finish("KILLED" if kept else "FAILED")

    def _log(self, values: Mapping[str, float], number: int) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, [self.metric(name, value, now, number) for name, value in values.items()])

    def _finish(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status)
        self.run_id = None


def trackers(names: Iterable[str]) -> dict[str, TensorBoard | Wandb | Mlflow]:
    """The trackers of these names (tensorboard, wandb, mlflow); nothing is opened or written before a run begins.

    Raises:
        InputError: an unknown name; a tracker that is not installed.
    """
    made: dict[str, TensorBoard | Wandb | Mlflow] = {}
    for name in names:
        checks.choice("track", name, ("tensorboard", "wandb", "mlflow"))
        try:
            made[name] = TensorBoard() if name == "tensorboard" else Wandb() if name == "wandb" else Mlflow()
        except ImportError as error:
            why = str(error).partition("\n")[0]  # absent, or there and broken
            raise checks.InputError(f"track: expected the package {name}; {checks.extra(name)} ({why})") from error
    return made


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """What is tracked of a line of log.jsonl; None is left out.

    >>> scalars({"loss": 0.5, "learning_rate": 0.1, "images_per_second": 9.0, "memory": 8, "val": None,
    ...          "val_accuracy": {"many": 90.0, "few": None}, "head_cosine": None})
    {'loss': 0.5, 'learning_rate': 0.1, 'images_per_second': 9.0, 'memory': 8, 'val_accuracy/many': 90.0}
    """
    values = {name: record[name] for name in SCALARS}
    for name in BY_GROUP:
        values |= {f"{name}/{group}": value for group, value in (record[name] or {}).items()}
    return {name: value for name, value in values.items() if value is not None}


def summary(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Accuracy, or average precision, on test in percent by method and group; None, of no class, is left out.

    >>> summary({"tde": {"many": 98.0, "medium": None, "few": 80.0, "all": 90.0, "alpha": 1.0}})
    {'test/tde/many': 98.0, 'test/tde/few': 80.0, 'test/tde/all': 90.0}
    """
    names = (*GROUPS, *PRECISIONS)
    cells = {f"test/{method}/{name}": row[name] for method, row in rows.items() for name in names if name in row}
    return {name: value for name, value in cells.items() if value is not None}


def _name(settings: Mapping[str, Any]) -> str:
    """seed-0, and seed-0-crt of a second stage that `adjust` trains."""
    return "-".join(["seed", str(settings["seed"]), *([settings["method"]] if "method" in settings else [])])


def _id_file(folder: Path, settings: Mapping[str, Any], tracker: str) -> Path | None:
    """Where the id of the tracked run is kept; nowhere for what `adjust` trains, which always starts anew."""
    return None if "method" in settings else folder / f"{tracker}.id"


def _read(kept: Path | None) -> str | None:
    return (kept.read_text() or None) if kept and kept.exists() else None  # empty: killed while it was written


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted name; a list of plain values, such as the counts, stays one."""
    if isinstance(settings, Mapping):
        items: Iterable[tuple[Any, Any]] = settings.items()
    elif isinstance(settings, list) and any(isinstance(value, Mapping) for value in settings):
        items = enumerate(settings)
    else:
        return {prefix: settings}
    inside = [_flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in items]
    return {name: value for part in inside for name, value in part.items()}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_PARAM else f"{text[: LONGEST_PARAM - 3]}..."
