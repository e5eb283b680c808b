"""The command `tailwise`: a file per verb, no logic; docs/architecture.md says where what they do is done."""

import errno
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import App, CycloptsError

from tailwise import checks
from tailwise.cli.adjust import adjust
from tailwise.cli.compare import compare
from tailwise.cli.data import data
from tailwise.cli.detect import detect
from tailwise.cli.evaluate import evaluate
from tailwise.cli.export import export
from tailwise.cli.features import features
from tailwise.cli.output import Output
from tailwise.cli.plot import plot
from tailwise.cli.predict import predict
from tailwise.cli.recipes import recipes
from tailwise.cli.report import report
from tailwise.cli.reproduce import reproduce
from tailwise.cli.sweep import sweep
from tailwise.cli.train import train

app = App(
    name="tailwise",
    help="Long-tailed recognition: train, debias and explain classifiers when a few classes own most of the data.",
    help_epilogue="Start with: tailwise train digits-lt",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
    console=Output(),
)
for verb in (
    recipes,
    train,
    evaluate,
    adjust,
    sweep,
    features,
    export,
    predict,
    detect,
    compare,
    plot,
    report,
    reproduce,
):
    app.command(verb)
app.command(data)

UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # of standard output: whoever writes a file names it


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command; exit 0, or 2 with one line on standard error for input that will not do."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a table must not be lost to a terminal that knows no "±"
            stream.reconfigure(errors="replace")
    try:
        app(list(sys.argv[1:] if arguments is None else arguments), exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        _fail(" ".join(str(error).split()))
    except checks.InputError as error:
        _fail(str(error))
    except BrokenPipeError:  # whoever read our output has enough
        _drop_output()
        sys.exit(0)
    except OSError as error:
        if error.errno not in UNWRITTEN:
            raise
        _drop_output()
        _fail(f"cannot write ({error.strerror})")
    except KeyboardInterrupt:
        verb = next(iter(sys.argv[1:] if arguments is None else arguments), None)
        again = {"train": "; with --resume it goes on", "reproduce": "; the same command goes on"}
        print(f"tailwise: interrupted{again.get(str(verb), '')}", file=sys.stderr)
        sys.exit(130)
    if "torch" in sys.modules:
        from tailwise import ranks

        if ranks.launched():
            ranks.leave()
    sys.exit(0)


def _drop_output() -> None:
    """Send what waits to be written to nowhere, or Python would fail on it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(line: str) -> NoReturn:
    print(f"tailwise: {line}", file=sys.stderr)
    sys.exit(2)
