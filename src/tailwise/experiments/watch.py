"""What is told of training while it runs: a record per epoch, to whoever watches."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tailwise.train import EpochEnd


@dataclass(frozen=True)
class Val:
    """What validation images say of an epoch. score: what the epoch is chosen by.

    accuracy: in percent, of many, medium, few and all. head_cosine: mean cos to the head direction by group; None for a
    classifier without one.
    """

    score: float
    accuracy: Mapping[str, float | None]
    head_cosine: Mapping[str, float | None] | None


@runtime_checkable
class Watch(Protocol):
    """Told how a run goes: draws it, sends it to a tracker, or stays silent.

    begin: label of the run; epochs in all; settings: everything the run depends on; folder: the seed's, as it is called
    while it trains (RUN/seed-0.partial). What a run that goes on is to find again is kept there.
    epoch: the record of an epoch, as it stands in log.jsonl. After a resume epochs may be told a second time.
    done: line: what to say of it; rows: accuracies in percent, by method and group.
    stopped: in place of done, perhaps before begin. kept: the folder is still there, to be gone on from; if not, no
    trace is to be left of what was told since begin, and what was tracked before stays.
    """

    def begin(self, label: str, epochs: int, settings: Mapping[str, Any], folder: Path) -> None: ...
    def epoch(self, record: Mapping[str, Any]) -> None: ...
    def done(self, label: str, line: str, rows: Mapping[str, Mapping[str, Any]]) -> None: ...
    def stopped(self, kept: bool) -> None: ...


class Silent:
    """Nobody watches."""

    def begin(self, label: str, epochs: int, settings: Mapping[str, Any], folder: Path) -> None: ...
    def epoch(self, record: Mapping[str, Any]) -> None: ...
    def done(self, label: str, line: str, rows: Mapping[str, Mapping[str, Any]]) -> None: ...
    def stopped(self, kept: bool) -> None: ...


class Together:
    """The terminal and any number of trackers, told in this order.

    shown: its errors are the caller's. trackers: by name; one that fails (no network, a full disk) must not end a
    training of hours: a warning says so, and it is told nothing more.
    """

    def __init__(self, shown: Watch, trackers: Mapping[str, Watch]) -> None:
        self.shown, self.trackers = shown, dict(trackers)

    def begin(self, label: str, epochs: int, settings: Mapping[str, Any], folder: Path) -> None:
        self.shown.begin(label, epochs, settings, folder)
        self._tell(lambda tracker: tracker.begin(label, epochs, settings, folder))

    def epoch(self, record: Mapping[str, Any]) -> None:
        self.shown.epoch(record)
        self._tell(lambda tracker: tracker.epoch(record))

    def done(self, label: str, line: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
        self.shown.done(label, line, rows)
        self._tell(lambda tracker: tracker.done(label, line, rows))

    def stopped(self, kept: bool) -> None:
        self.shown.stopped(kept)
        self._tell(lambda tracker: tracker.stopped(kept))

    def _tell(self, what: Callable[[Watch], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                what(tracker)
            except Exception as error:  # of a library that we do not know: anything
                del self.trackers[name]
                line = str(error).partition("\n")[0]
                warnings.warn(
                    f"track: {name} failed and is left out from here on, training goes on "
                    f"({type(error).__name__}: {line})",
                    stacklevel=1,  # a place in tailwise, so that the command shows it as a note
                )


def epoch_record(number: int, end: EpochEnd, val: Val | None) -> dict[str, Any]:
    """A line of log.jsonl. number: of the epoch in the whole run, from 1, second stages included."""
    return {
        "number": number,
        **asdict(end),
        "images_per_second": end.images / end.seconds,
        "val": None if val is None else val.score,
        "val_accuracy": None if val is None else dict(val.accuracy),
        "head_cosine": None if val is None or val.head_cosine is None else dict(val.head_cosine),
    }
