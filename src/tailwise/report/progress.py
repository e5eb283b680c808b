"""How training goes: bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_LINE_EVERY = 30.0  # seconds


class Bars:
    """One bar per run while it trains, one line when it is done."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("epochs  {task.fields[note]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self.task: Any = None

    def __enter__(self) -> "Bars":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def begin(self, label: str, epochs: int, settings: Mapping[str, Any], folder: Path) -> None:  # noqa: ARG002  # as Watch has it
        self.task = self.progress.add_task(label, total=epochs, note="")

    def epoch(self, record: Mapping[str, Any]) -> None:
        self.progress.update(self.task, completed=record["number"], note=_note(record))

    def done(self, label: str, line: str, rows: Mapping[str, Any]) -> None:  # noqa: ARG002  # as Watch has it
        self._remove()
        self.console.print(f"{label}: {line}", highlight=False, markup=False)

    def stopped(self, kept: bool) -> None:  # noqa: ARG002  # as Watch has it
        self._remove()  # the error says why

    def _remove(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = None


class Lines:
    """A line when a run is done, and one now and then while a long one trains."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def begin(self, label: str, epochs: int, settings: Mapping[str, Any], folder: Path) -> None:  # noqa: ARG002  # as Watch has it
        self.label, self.epochs, self.said = label, epochs, time.monotonic()

    def epoch(self, record: Mapping[str, Any]) -> None:
        if time.monotonic() - self.said >= PLAIN_LINE_EVERY:
            self.said = time.monotonic()
            self._print(f"{self.label}: epoch {record['number']}/{self.epochs}, {_note(record)}")

    def done(self, label: str, line: str, rows: Mapping[str, Any]) -> None:  # noqa: ARG002  # as Watch has it
        self._print(f"{label}: {line}")

    def stopped(self, kept: bool) -> None:
        pass  # the error says so

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def watching(console: Console) -> Bars | Lines:
    """Bars if the console is a terminal, else lines; used as a context manager around training."""
    return Bars(console) if console.is_terminal else Lines(console)


def _note(record: Mapping[str, Any]) -> str:
    val = "" if record["val"] is None else f", val {record['val']:.1f}"
    return f"loss {record['loss']:.3f}{val}, {record['images_per_second']:,.0f} images/s"


@contextmanager
def counting(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of how many of some things are done, on a terminal; what comes out is told (done, of how many)."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
