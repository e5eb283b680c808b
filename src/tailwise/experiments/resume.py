"""Unfinished training on disk: snapshots now and then, and the way back from the last one."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tailwise import checks, ranks
from tailwise.experiments.files import write_text
from tailwise.experiments.keep import Keep
from tailwise.experiments.settings import flat, what_counts
from tailwise.experiments.watch import Val, epoch_record
from tailwise.train import (
    Batches,
    Checkpoint,
    Compute,
    EpochEnd,
    Snapshot,
    Stage,
    fit,
    load_checkpoint,
    load_state,
    save_checkpoint,
    snapshot_of,
)

OnEpoch = Callable[[EpochEnd, Val | None], None]


class Log:
    """A line of JSON per epoch, on disk at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if ranks.is_main():
            path.touch()
        ranks.wait()

    def __len__(self) -> int:
        return len(self.path.read_text().splitlines())

    def write(self, end: EpochEnd, val: Val | None) -> dict[str, Any]:
        """Add an epoch and return its record; the main process writes."""
        record = epoch_record(ranks.agree(len(self) + 1), end, val)
        if ranks.is_main():
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        return record

    def keep(self, lines: int) -> None:
        """Forget what came after the first lines, whole or cut off: it will be done again."""
        if not ranks.is_main():
            return
        kept = self.path.read_text().splitlines(keepends=True)[:lines]
        write_text(self.path, "".join(kept))


class OutOfTime(Exception):  # noqa: N818  # no error: as KeyboardInterrupt, it ends what can go on
    """The time given for training is over; a snapshot is written."""


class Place:
    """Where the snapshots of one stage's training are kept.

    path: the file. every: seconds between two of them. log: cut back to where the snapshot was taken. before: lines of
    the log that were there before this training. about: what a snapshot must have been made by to be gone on from.
    until: when to stop, on the clock of `time.monotonic`; None is never.
    """

    def __init__(
        self, path: Path, every: float, log: Log, before: int, about: dict[str, Any], until: float | None = None
    ) -> None:
        self.path, self.every, self.log, self.before, self.about = path, every, log, before, about
        self.until = until
        self.saved = time.monotonic()
        self.interrupted = False

    def save_if_due(self, take: Callable[[], Snapshot], keep: Keep) -> None:
        """Write a snapshot, with the best weights so far, if the last one is old enough or it is time to stop.

        Raises:
            KeyboardInterrupt: the user wants to stop, and the snapshot is written.
            OutOfTime: the time is over, and the snapshot is written.
        """
        now = time.monotonic()
        over = self.until is not None and now >= self.until
        due, interrupted, over = ranks.agree((now - self.saved >= self.every, self.interrupted, over))
        if due or interrupted or over:
            self._save(take, keep)
        if interrupted:
            raise KeyboardInterrupt
        if over:
            raise OutOfTime

    def _save(self, take: Callable[[], Snapshot], keep: Keep) -> None:
        self.saved = time.monotonic()
        snapshot = take()
        if not ranks.is_main():
            return
        tensors = snapshot.tensors | {f"best.{name}": tensor for name, tensor in keep.state.items()}
        kept = {"epoch": keep.epoch, "best_epoch": keep.best_epoch, "best": keep.best}
        meta = {"about": self.about, "progress": snapshot.progress, "kept": kept, "log": len(self.log)}
        save_checkpoint(self.path, tensors, meta)

    def load(self, keep: Keep) -> Snapshot | None:
        """The snapshot here, None if there is none; `keep` and the log go back to where it was taken.

        Raises:
            InputError: a corrupt file, or a snapshot of other training.
        """
        if not ranks.agree(self.path.exists()):
            self.log.keep(self.before)
            return None
        checkpoint = load_checkpoint(self.path)
        check_about(self.path, checkpoint.meta.get("about") or {}, self.about)
        best: dict[str, Tensor] = {}
        rest: dict[str, Tensor] = {}
        for name, tensor in checkpoint.state.items():
            (best if name.startswith("best.") else rest)[name.removeprefix("best.")] = tensor
        kept = checkpoint.meta["kept"]
        keep.epoch, keep.best_epoch, keep.best, keep.state = kept["epoch"], kept["best_epoch"], kept["best"], best
        self.log.keep(checkpoint.meta["log"])
        return snapshot_of(rest, checkpoint.meta["progress"])


def check_about(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse to go on from a file that was made by other settings or of other data; there: what it says of them.

    Of a second stage ("method" names it) other methods and what is adjusted without training are no part.

    Raises:
        InputError: something differs, which is named.
    """
    there, here = (flat({**about, "recipe": what_counts(about.get("recipe"))}) for about in (there, here))
    there.setdefault("data_hash", here.get("data_hash"))  # which files have not always held
    keys = there.keys() | here.keys()
    if method := here.get("method"):
        idle = ("recipe.methods.", "recipe.second.", *(f"recipe.{name}." for name in ("tde", "tau_norm", "ncm")))
        keys = {key for key in keys if not key.startswith(idle) or key.startswith(f"recipe.second.{method}.")}
        if here.get("recipe.protocol") == "paper":
            keys -= {"recipe.metric"}  # no epoch is chosen by it
    for key in sorted(keys):
        if there.get(key) != here.get(key):
            raise checks.InputError(
                f"{path}: taken with {key} {there.get(key)}, got {here.get(key)}; it cannot go on here"
            )


def trained_once(path: Path, model: nn.Module, about: dict[str, Any], training: Callable[[], int]) -> Checkpoint:
    """The checkpoint at `path`, whose weights the model has then: what was trained already, or is by `training` now.

    training: trains the model and returns the epoch whose weights it has.

    Raises:
        InputError: a corrupt file, or one of other settings or data.
    """
    if not ranks.agree(path.exists()):
        epoch = training()
        if ranks.is_main():
            save_checkpoint(path, model.state_dict(), {**about, "epoch": epoch})
        ranks.wait()
    checkpoint = load_checkpoint(path)
    check_about(path, {key: value for key, value in checkpoint.meta.items() if key != "epoch"}, about)
    load_state(model, checkpoint.state)
    return checkpoint


def fit_kept(
    model: nn.Module,
    stages: Sequence[Stage],
    load: Callable[[Stage, int], Batches],
    keep: Keep,
    place: Place | None,
    on_epoch: OnEpoch,
    compute: Compute,
) -> int:
    """Train a model or a view of it, from the snapshot in `place` if there is one; put back the weights to keep.

    Returns their epoch.

    The first Ctrl-C waits for the end of the step and leaves a snapshot, the second does not wait.

    Raises:
        InputError: as `fit`; a snapshot that is corrupt or of other training.
        KeyboardInterrupt: Ctrl-C.
        OutOfTime: `place` says until when.
    """
    with _finishing_the_step(place) if place else nullcontext():
        fit(
            model,
            stages,
            load,
            on_epoch=lambda end: on_epoch(end, keep.consider()),
            on_pause=lambda take: place.save_if_due(take, keep) if place else None,
            resume=place.load(keep) if place else None,
            compute=compute,
        )
    return keep.restore()


@contextmanager
def _finishing_the_step(place: Place) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there are signals handled
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(*_: Any) -> None:
        place.interrupted = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
