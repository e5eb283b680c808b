"""What a sample is predicted as at every strength: the upper envelope of its classes' scores.

Logits of the total direct effect are lines in alpha, a - alpha b. Those of the tau-normalized classifier are
z / n^power, and where one is above 0 the greatest is the one whose logarithm, log z - power log n, is the greatest:
lines again. (Where none is, the one of the least |z| / n^power is: lines with the opposite sign.) Each prediction is
therefore a piecewise-constant function of the strength, given by its breakpoints, which this module finds exactly,
in float64.

Logits in float32 may order two classes otherwise where they are all but equal. `doubtful` says for which samples and
strengths rounding could decide; whoever wants to know asks the classifier. For that, a float32 logit is taken to be
off by no more than u (4 sqrt(D) + 32) |w| |x| with u = 2^-24: rounding errors of a sum of D terms grow with sqrt(D) but
for an improbable few (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis"). The most that
was met in millions of logits, all terms of one sign among them, is 10 u |w| |x|.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailwise import checks
from tailwise.adjust.tau_norm import tau_norm_components
from tailwise.adjust.total_direct_effect import tde_components
from tailwise.classifiers import LinearClassifier, NormalizedClassifier
from tailwise.classifiers.functional import scale_weight
from tailwise.counts import ClassCounts
from tailwise.shapes import Float

Values = NDArray[np.float64]
UNIT = 2.0**-24  # relative rounding error of a float32 operation


@dataclass(frozen=True)
class Lines:
    """The line of class c for sample n is intercept[n, c] + slope[n, c] t at strength t >= 0; both are [N, C].

    An intercept of -inf is a class that is never predicted.
    """

    intercept: Values
    slope: Values

    def at(self, strength: Any, rows: Any = slice(None), classes: Any = slice(None)) -> Values:
        """Heights of these rows' lines; strength is a number for each, or [rows, 1]."""
        return np.asarray(self.intercept[rows, classes] + self.slope[rows, classes] * strength)


@dataclass(frozen=True)
class Scores:
    """Lines that are ordered as the logits are, and those that float32 logits stay between."""

    exact: Lines
    lower: Lines
    upper: Lines


@dataclass(frozen=True)
class Paths:
    """Predictions as piecewise-constant functions of a strength, from 0 on.

    pieces: how many each sample has, at least 1, [N]. starts, classes: of all pieces, sample after sample; a class is
    predicted from its start, inclusive, to the next. The first start of each sample is 0.
    """

    pieces: NDArray[np.int64]
    starts: Values
    classes: NDArray[np.int64]

    def at(self, value: float) -> NDArray[np.int64]:
        """The predictions at a strength, [N].

        >>> Paths(np.array([2, 1]), np.array([0.0, 0.5, 0.0]), np.array([3, 1, 2])).at(0.5)
        array([1, 2])
        """
        checks.number("value", value, at_least=0)
        ends = np.cumsum(self.pieces)
        begun = np.concatenate(([0], np.cumsum(self.starts <= value)))
        first = ends - self.pieces
        return np.asarray(self.classes[first + begun[ends] - begun[first] - 1])

    def corrected(self, rows: NDArray[np.int64], values: Values, classes: NDArray[np.int64]) -> "Paths":
        """The same, but rows[i] is predicted as classes[i] at values[i], and at no other strength.

        >>> path = Paths(np.array([1]), np.array([0.0]), np.array([3]))
        >>> there = path.corrected(np.array([0]), np.array([0.5]), np.array([1]))
        >>> [there.at(v).item() for v in (0.499, 0.5, 0.501)]
        [3, 1, 3]
        """
        ends = np.cumsum(self.pieces)
        changed: dict[int, list[tuple[float, int]]] = {}
        for row, value, c in sorted(zip(rows.tolist(), values.tolist(), classes.tolist(), strict=True)):
            piece = slice(ends[row] - self.pieces[row], ends[row])
            path = changed.get(row) or list(zip(self.starts[piece].tolist(), self.classes[piece].tolist(), strict=True))
            after = float(np.nextafter(value, np.inf))
            goes_on = [k for start, k in path if start <= after][-1]
            before, behind = [p for p in path if p[0] < value], [p for p in path if p[0] > after]
            changed[row] = [*before, (value, c), (after, goes_on), *behind]
        if not changed:
            return self
        own = np.repeat(np.arange(len(self.pieces)), self.pieces)
        kept = ~np.isin(own, list(changed))
        new = [(row, start, c) for row, path in changed.items() for start, c in path]
        own = np.concatenate((own[kept], [row for row, _, _ in new]))
        order = np.argsort(own, kind="stable")
        starts_now = np.concatenate((self.starts[kept], [start for _, start, _ in new]))[order]
        classes_now = np.concatenate((self.classes[kept], [c for _, _, c in new]))[order]
        return Paths(np.bincount(own, minlength=len(self.pieces)), starts_now, classes_now)


def joined(parts: Iterable[Paths]) -> Paths:
    """The paths of samples and of further ones as one.

    >>> path = Paths(np.array([1]), np.array([0.0]), np.array([3]))
    >>> joined([path, path]).pieces
    array([1, 1])
    """
    parts = list(parts)
    arrays = [np.concatenate([getattr(part, name) for part in parts]) for name in ("pieces", "starts", "classes")]
    return Paths(*arrays)


@torch.no_grad()
def scores_by_alpha(
    features: Float[Tensor, "N D"],
    classifier: NormalizedClassifier,
    *,
    counts: ClassCounts | None = None,
    allow_unseen: bool = False,
) -> Scores:
    """Logits of the total direct effect as lines in alpha >= 0 (Tang et al. 2020, Eq. 8).

    Rounding: |w| |x| is (1 + alpha) tau / K sum_k |w_k| / (|w_k| + gamma) at most.

    Arguments and errors as in `tde_components`.

    >>> classifier = tailwise.classifiers.CausalClassifier(8, 3)
    >>> x = torch.rand(5, 8); _ = classifier(x)
    >>> lines = scores_by_alpha(x, classifier).exact
    >>> np.allclose(lines.intercept + 1.5 * lines.slope, tailwise.tde(x, classifier, 1.5).detach(), atol=1e-5)
    True
    """
    wide = copy.deepcopy(classifier).double()
    parts = tde_components(features.double(), wide, counts=counts, allow_unseen=allow_unseen)
    a, b = (part.numpy() for part in parts)
    lengths = torch.linalg.vector_norm(scale_weight(wide.weight, wide.num_heads, wide.gamma), dim=-1).sum(dim=1)
    off = (_rounding(features) * (wide.tau / wide.num_heads) * lengths).numpy()
    return Scores(Lines(a, -b), Lines(a - off, -b - off), Lines(a + off, -b + off))


@torch.no_grad()
def scores_by_norm_power(
    features: Float[Tensor, "N D"],
    classifier: LinearClassifier,
    *,
    counts: ClassCounts | None = None,
    allow_unseen: bool = False,
) -> Scores:
    """Lines in the norm power that are ordered as the logits z / n^power of the tau-normalized classifier are.

    Where a z is above 0: log z - power log n, and -inf for z of 0 or below. Where none is: 0 for a z of 0 if there is
    one, else -log |z| + power log n.

    Arguments and errors as in `tau_norm_components`.

    >>> classifier = tailwise.LinearClassifier(2, 2, bias=False)
    >>> _ = classifier.weight.data.copy_(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
    >>> scores = scores_by_norm_power(torch.tensor([[1.0, 2.0]]), classifier)
    >>> upper_envelope(scores.exact, 2.0).starts  # 4 / 4^power and 2 are equal at 1/2
    array([0. , 0.5])
    """
    wide = copy.deepcopy(classifier).double()
    parts = tau_norm_components(features.double(), wide, counts=counts, allow_unseen=allow_unseen)
    z, norms = (part.numpy() for part in parts)
    length = np.where((wide.weight == 0).all(dim=1).numpy(), 0.0, norms)
    off = _rounding(features) * torch.linalg.vector_norm(features.double(), dim=1).numpy()
    off = np.where(np.isneginf(z), 0.0, off[:, None] * length)
    best = z.max(axis=1, keepdims=True)
    slope = np.log(norms) * np.where(best > 0, -1.0, np.where(best < 0, 1.0, 0.0))
    exact, lower, upper = (Lines(_height(score, best), slope) for score in (z, z - off, z + off))
    return Scores(exact, lower, upper)


def _height(score: Values, best: Values) -> Values:
    """What orders the scores of a sample as they are, given its best."""
    with np.errstate(divide="ignore"):  # the logarithm of 0 is -inf
        height: Values = np.log(np.maximum(score, 0))
        rest = best[:, 0] <= 0
        score, best = score[rest], best[rest]
        height[rest] = np.where(best < 0, -np.log(np.maximum(-score, 0)), np.where(score < 0, -np.inf, 0.0))
    return height


def _rounding(features: Tensor) -> float:
    return UNIT * (4 * math.sqrt(features.shape[1]) + 32)


def upper_envelope(lines: Lines, highest: float) -> Paths:
    """Which class has the greatest line from strength 0 to `highest`, for each sample.

    Where several meet, the steepest goes on; of equal lines the first class counts.

    Raises:
        InputError: a highest that is not above 0; a sample without a line.

    >>> paths = upper_envelope(Lines(np.array([[2.0, 1.0]]), np.array([[-1.0, 0.0]])), highest=5.0)
    >>> paths.starts, paths.classes
    (array([0., 1.]), array([0, 1]))
    """
    return _envelope(Scores(lines, lines, lines), highest)[0]


def doubtful(scores: Scores, values: Sequence[float]) -> tuple[Paths, NDArray[np.bool_]]:
    """The upper envelope up to the last of `values`, and at which of them rounding may decide, [N, values].

    Everywhere else the class of the envelope is ahead of every other by more than float32 logits can be off.

    Args:
        scores: of N samples.
        values: strengths, ascending, from 0 on.

    Raises:
        InputError: fewer than two values, values that do not ascend or are below 0, a sample without a line.

    >>> a, b = np.array([[2.0, 1.0]]), np.array([[-1.0, 0.0]])
    >>> scores = Scores(Lines(a, b), Lines(a - 0.01, b), Lines(a + 0.01, b))
    >>> doubtful(scores, (0.0, 0.999, 2.0))[1]
    array([[False,  True, False]])
    """
    if list(values) != sorted(set(values)) or len(values) < 2 or values[0] < 0:
        raise checks.InputError(f"values: expected at least two ascending strengths, none below 0, got {list(values)}")
    grid = np.asarray(values, dtype=np.float64)
    paths, near = _envelope(scores, float(grid[-1]))
    doubt = np.zeros((len(near), len(grid)), dtype=bool)
    rows, rivals = np.nonzero(near)
    for number, value in enumerate(grid):
        winners = paths.at(value)
        with np.errstate(invalid="ignore"):  # of two infinities nothing is known
            ahead = scores.lower.at(value, rows, winners[rows]) > scores.upper.at(value, rows, rivals)
        doubt[rows[(winners[rows] != rivals) & ~ahead], number] = True
    return paths, doubt


def _envelope(scores: Scores, highest: float) -> tuple[Paths, NDArray[np.bool_]]:
    """The upper envelope, and for which classes rounding may have them on it somewhere, [N, C]."""
    checks.number("highest", highest, above=0)
    a, s = scores.exact.intercept, scores.exact.slope
    if np.isneginf(a.max(axis=1)).any():
        raise checks.InputError("scores: expected a class that can be predicted for each sample, got none for some")
    near = np.zeros(a.shape, dtype=bool)
    found: list[tuple[NDArray[np.int64], Values, NDArray[np.int64]]] = []
    rows, start = np.arange(len(a)), np.zeros(len(a))
    winner = a.argmax(axis=1)  # where a steeper one is as high, it follows at once
    while len(rows):
        found.append((rows, start, winner))
        slopes, own = s[rows], s[rows, winner][:, None]
        with np.errstate(divide="ignore", invalid="ignore"):  # parallel lines never meet
            crossing = np.where(slopes > own, (a[rows, winner][:, None] - a[rows]) / (slopes - own), np.inf)
        end = np.maximum(crossing.min(axis=1), start)  # rounding may have put it a little earlier
        with np.errstate(invalid="ignore"):
            for place in (start, np.minimum(end, highest)):  # between the two a difference of lines is between theirs
                ahead = scores.lower.at(place, rows, winner)[:, None] > scores.upper.at(place[:, None], rows)
                near[rows] |= ~ahead
        winner = np.where(crossing == crossing.min(axis=1, keepdims=True), slopes, -np.inf).argmax(axis=1)
        on = end <= highest
        rows, start, winner = rows[on], end[on], winner[on]
    own, starts, classes = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(own, kind="stable")
    own, starts, classes = own[order], starts[order], classes[order]
    lasting = np.append((own[1:] != own[:-1]) | (starts[1:] > starts[:-1]), True)
    return Paths(np.bincount(own[lasting], minlength=len(a)), starts[lasting], classes[lasting]), near
