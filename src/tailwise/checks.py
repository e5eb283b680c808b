"""Guards: every error names the argument, what was expected and what came."""

import difflib
import math
from collections.abc import Iterable, Sequence

import numpy as np


class InputError(ValueError):
    """The input is wrong, not the program. The command prints it as one line and exits with 2."""


def extra(name: str) -> str:
    """How to install an extra of this package: with uv, and where there is only pip.

    >>> extra("images")
    "in the clone: python3 -m uv sync --inexact --extra images, or pip install -e '.[images]'"
    """
    return f"in the clone: python3 -m uv sync --inexact --extra {name}, or pip install -e '.[{name}]'"


def nearest(name: str, valid: Iterable[str], listed: Iterable[str] | None = None) -> str:
    """The end of an error message: the nearest valid name, or if none is near all of them, or those to be listed then.

    >>> nearest("cosin", ["linear", "cosine"])
    "; did you mean 'cosine'?"
    >>> nearest("xyz", ["linear", "cosine"])
    '; valid: cosine, linear'
    """
    valid = sorted(valid)
    listed = valid if listed is None else sorted(listed)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; valid: {', '.join(listed)}"


def choice(argument: str, value: str, valid: Iterable[str]) -> str:
    """`value` if it is one of `valid`, else an InputError that offers the nearest."""
    valid = list(valid)
    if value not in valid:
        raise InputError(f"{argument}: unknown value '{value}'{nearest(str(value), valid)}")
    return value


def number(
    argument: str, value: float, *, at_least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> float:
    """`value` if it is a finite number within the bounds, else an InputError.

    >>> number("tau", 16.0, above=0)
    16.0
    """
    ok = isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
    if ok and at_least <= value < below and value > above:
        return value
    bounds = [f"at least {at_least:g}"] if at_least > -math.inf else []
    bounds += [f"above {above:g}"] if above > -math.inf else []
    bounds += [f"below {below:g}"] if below < math.inf else []
    raise InputError(f"{argument}: expected a finite number{' ' * bool(bounds)}{' and '.join(bounds)}, got {value!r}")


def whole(argument: str, value: int, *, at_least: int = 1) -> int:
    """`value` if it is a whole number of at least `at_least`, else an InputError.

    >>> whole("num_heads", 2)
    2
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < at_least:
        raise InputError(f"{argument}: expected a whole number of at least {at_least}, got {value!r}")
    return int(value)


def divides(num_heads: int, in_features: int) -> None:
    """Refuse a feature width that does not split into `num_heads` equal heads."""
    if in_features % num_heads:
        raise InputError(
            f"num_heads: expected a divisor of in_features, got num_heads {num_heads} and in_features {in_features}"
        )


def matrix(argument: str, shape: Sequence[int]) -> None:
    """Refuse a classifier's weight that is not [C, D]."""
    if len(shape) != 2:
        raise InputError(f"{argument}: expected shape [C, D], got {list(shape)}")


def feature_shape(shape: Sequence[int], in_features: int) -> None:
    """Refuse features that are not [N, in_features]."""
    if len(shape) != 2 or shape[1] != in_features:
        raise InputError(f"features: expected shape [N, {in_features}], got {list(shape)}")


def labels_in_range(
    argument: str, labels: "np.ndarray[tuple[int, ...], np.dtype[np.integer]]", num_classes: int
) -> None:
    """Refuse a label outside 0..C-1, naming the first one and its position."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise InputError(
            f"{argument}: expected labels in 0..{num_classes - 1}, "
            f"got {int(labels[wrong[0]])} at position {int(wrong[0])} ({len(wrong)} such)"
        )


def predictable(argument: str, logits: "np.ndarray[tuple[int, ...], np.dtype[np.floating]]") -> None:
    """Refuse logits that say nothing: NaN, +inf, or a row of -inf alone. -inf is a class never to be predicted."""
    highest = logits.max(axis=1, initial=-np.inf)  # NaN if the row has one
    rows = np.flatnonzero(~np.isfinite(highest))
    if len(rows):
        raise InputError(
            f"{argument}: expected finite numbers, got NaN or infinity in {len(rows)} of {len(logits)} rows "
            f"(first: row {int(rows[0])})"
        )


def finite(argument: str, values: "np.ndarray[tuple[int, ...], np.dtype[np.floating]]") -> None:
    """Refuse NaN and infinity, naming the first row that holds one."""
    rows = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if len(rows):
        raise InputError(
            f"{argument}: expected finite numbers, got NaN or infinity in {len(rows)} of {len(values)} rows "
            f"(first: row {int(rows[0])})"
        )


def probabilities(argument: str, values: "np.ndarray[tuple[int, ...], np.dtype[np.floating]]") -> None:
    """Refuse what is no table of probabilities [N, C], as logits are not: each row between 0 and 1, summing to 1."""
    if np.ndim(values) != 2:
        raise InputError(f"{argument}: expected probabilities [N, C], got shape {list(np.shape(values))}")
    finite(argument, values)
    # float16 rounds a sum over a thousand classes by that much
    wrong = np.flatnonzero((values < 0).any(axis=1) | (abs(values.sum(axis=1, dtype=np.float64) - 1) > 1e-2))
    if len(wrong):
        raise InputError(
            f"{argument}: expected rows of at least 0 that sum to 1, got {len(wrong)} of {len(values)} that do not "
            f"(first: row {int(wrong[0])}); logits become probabilities by softmax"
        )


def prior(argument: str, values: Sequence[float] | np.ndarray, num_classes: int) -> np.ndarray:
    """`values` as float64 [C] if they are the frequencies of C classes: at least 0, summing to 1.

    >>> prior("target_prior", [0.75, 0.25], 2)
    array([0.75, 0.25])
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (num_classes,):
        raise InputError(f"{argument}: expected a frequency for each of {num_classes} classes, got {list(array.shape)}")
    if not (array >= 0).all() or abs(array.sum() - 1) > 1e-6:
        raise InputError(
            f"{argument}: expected frequencies of at least 0 that sum to 1, got a sum of {array.sum():g} "
            f"and a least of {array.min():g}"
        )
    return array
