"""How a verb tells what it did: a table or JSON on standard output, notes on standard error."""

import json as jsonlib
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console


class Output(Console):
    """Standard output for tables; of a closed pipe it says what print says, in place of ending the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def show(record: dict[str, Any], json: bool, *, lines: Sequence[str] = (), metrics: bool = False) -> None:
    """A record of rows as a table followed by lines, or as JSON; metrics: of these in the place of groups."""
    from tailwise.report.table import print_record

    if json:
        print_json(record)
    else:
        print_record(Output(), record, lines, metrics=metrics)


def of_seeds(recipes: int, seeds: int) -> str:
    """How many were trained.

    >>> of_seeds(1, 3), of_seeds(2, 1)
    ('1 recipe x 3 seeds', '2 recipes x 1 seed')
    """
    return f"{recipes} recipe{'s' * (recipes != 1)} x {seeds} seed{'s' * (seeds != 1)}"


def command_line(verb: str, run: Path, **options: Any) -> str:
    """The command line of a verb on a run, with the options that were given.

    >>> command_line("evaluate", Path("runs/a"), method=["ncm", "tde"], alpha="1.5", power=None)
    'tailwise evaluate runs/a --method ncm --method tde --alpha 1.5'
    """
    words = ["tailwise", verb, str(run)]
    for name, given in options.items():
        for value in given if isinstance(given, list | tuple) else [given]:
            words += [] if value is None else [f"--{name}", str(value)]
    return shlex.join(words)


def print_json(content: dict[str, Any]) -> None:
    """One JSON object, and nothing else."""
    print(jsonlib.dumps(content, indent=1, allow_nan=False))


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Show each of our own warnings once, as a line, without the place in the source; others as Python does."""
    usual = warnings.showwarning

    def shown(message: Warning | str, category: type[Warning], filename: str, *more: Any, **named: Any) -> None:
        if Path(filename).is_relative_to(Path(__file__).parents[1]):
            print(f"note: {message}", file=sys.stderr)
        else:
            usual(message, category, filename, *more, **named)

    with warnings.catch_warnings():
        warnings.simplefilter("once", UserWarning)
        # torch's DistributedDataParallel on a convolution of one channel; "not an error", as it says itself
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        warnings.showwarning = shown
        yield
