"""What is told of training while it runs: a record per epoch, to whoever watches."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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

    begin: label of the run; epochs in all; settings: everything the run depends on.
    epoch: the record of an epoch, as it stands in log.jsonl.
    done: line: what to say of it; rows: accuracies in percent, by method and group.
    """

    def begin(self, label: str, epochs: int, settings: Mapping[str, Any]) -> None: ...
    def epoch(self, record: Mapping[str, Any]) -> None: ...
    def done(self, label: str, line: str, rows: Mapping[str, Mapping[str, Any]]) -> None: ...


class Silent:
    """Nobody watches."""

    def begin(self, label: str, epochs: int, settings: Mapping[str, Any]) -> None: ...
    def epoch(self, record: Mapping[str, Any]) -> None: ...
    def done(self, label: str, line: str, rows: Mapping[str, Mapping[str, Any]]) -> None: ...


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
