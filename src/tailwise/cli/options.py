"""Options that several verbs share, and how their words are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tailwise import checks

POWERS = ("auto", "train", "learned")

Seeds = Annotated[int | None, Parameter(help="Seeds 0 to N-1; each draws its own subset (default: the recipe's).")]
DataDir = Annotated[Path | None, Parameter(help="Where local data sets lie (default: $TAILWISE_DATA).")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], Parameter(help="Where to compute; auto is a GPU where there is one.")
]
Track = Annotated[
    list[Literal["tensorboard", "wandb", "mlflow"]] | None,
    Parameter(negative="", help="Send every epoch to a tracker, too; more than one: --track wandb --track mlflow."),
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object and nothing else.")]
Method = Annotated[str | None, Parameter(help="A row: linear, tau-norm, ncm, crt, lws, tde, ...; `tailwise recipes`.")]
AlphaText = Annotated[str | None, Parameter(help="Strength of TDE: a number, or auto (chosen on val).")]
PowerText = Annotated[
    str | None,
    Parameter(help="Norm power of tau-norm: a number, auto (chosen on val), train (re-balanced train) or learned."),
]
Metric = Annotated[
    Literal["mean-per-class", "all", "many", "medium", "few", "harmonic-mean", "worst-class"] | None,
    Parameter(help="What strength and epoch are chosen by (default: the recipe's, mean-per-class)."),
]
Metrics = Annotated[
    bool,
    Parameter(negative="", help="Show balanced accuracy, macro-F1, worst class, geometric and harmonic mean, top-5."),
]
Seed = Annotated[int | None, Parameter(help="Whose model, where a run has several seeds (default: the first).")]
RunFolder = Annotated[Path, Parameter(help="A run folder, such as runs/digits-lt/tde.")]


def strength_of(name: str, text: str | None, words: Sequence[str]) -> Any:
    """The strength asked for: a number, one of the words, or None for the recipe's own."""
    if text is None or text in words:
        return text
    try:
        value = checks.number(name, float(text))
    except ValueError:
        expected = " or ".join(["a finite number", *words])
        raise checks.InputError(f"{name}: expected {expected}, got '{text}'") from None
    if name == "power" and abs(value) > 10:
        raise checks.InputError(f"power: expected a number in [-10, 10], got {text}")
    return value
