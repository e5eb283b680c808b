"""The tau-normalized classifier: shrink the weights that grew with their class (Kang et al. 2020, Eq. 3).

Kang's tau is `norm_power` here, so that it is never mistaken for the scale tau of Tang et al.'s Eq. 7.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tailwise import checks
from tailwise.adjust.nearest_mean import class_labels
from tailwise.adjust.unseen import bias_of_unseen, mask_unseen, refuse_masked
from tailwise.classifiers import FoldedClassifier, LinearClassifier
from tailwise.counts import ClassCounts
from tailwise.shapes import Float, Int

ROWS = 1024  # a block of logits that stays in the cache
ROUNDING = 1e-6  # of a mean loss in float32, relative


def tau_norm_weight(weight: Float[Tensor, "C D"], norm_power: float) -> Float[Tensor, "C D"]:
    """w_j / |w_j|^norm_power (Kang et al. 2020, Eq. 3). A weight of 0 stays 0.

    Args:
        weight: one row per class, [C, D].
        norm_power: finite; Kang et al. choose it in (0, 1).

    Raises:
        InputError: a power that is not finite.

    Limit cases: 0 changes nothing; at 1 every row has length 1.

    >>> tau_norm_weight(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), 1.0)
    tensor([[0.6000, 0.8000],
            [0.0000, 1.0000]])
    """
    return weight * _factors(_norms(weight), norm_power)[:, None]


@torch.no_grad()
def tau_norm_components(
    features: Float[Tensor, "N D"],
    classifier: LinearClassifier,
    *,
    counts: ClassCounts | None = None,
    allow_unseen: bool = False,
) -> tuple[Float[Tensor, "N C"], Float[Tensor, " C"]]:
    """(z, n) such that the logits at any power are z / n^power: W x without bias, and the norm of each row of W.

    Args:
        features: [N, D], finite.
        classifier: linear; its bias is dropped, as Kang et al. have it.
        counts: training images per class; z is -inf for a class without one (None: all are taken to be seen).
        allow_unseen: mask nothing.

    Raises:
        InputError: another kind of classifier, features that are not finite or not [N, D].

    >>> classifier = tailwise.LinearClassifier(8, 3)
    >>> x = torch.rand(5, 8)
    >>> z, norms = tau_norm_components(x, classifier)
    >>> torch.allclose(z / norms**0.7, fold_tau_norm(classifier, 0.7)(x), atol=1e-6)
    True
    """
    _check(classifier)
    checks.feature_shape(features.shape, classifier.weight.shape[1])
    checks.finite("features", features.detach().float().cpu().numpy())
    norms = _norms(classifier.weight)
    # a row of 0 has logits 0 at every power: norm 1 says so without a division by 0
    z = F.linear(features.to(classifier.weight.dtype), classifier.weight)
    return mask_unseen(z, counts, allow_unseen=allow_unseen), norms.where(norms > 0, 1)


@torch.no_grad()
def fold_tau_norm(
    classifier: LinearClassifier, norm_power: float, *, counts: ClassCounts | None = None, allow_unseen: bool = False
) -> FoldedClassifier:
    """The tau-normalized classifier: logits w_j . x / |w_j|^norm_power, without bias.

    Arguments and errors as in `tau_norm_components` and `tau_norm_weight`.

    Limit case: norm_power = 0 is the linear classifier without its bias.

    >>> classifier = tailwise.LinearClassifier(8, 3, bias=False)
    >>> x = torch.rand(5, 8)
    >>> torch.equal(fold_tau_norm(classifier, 0.0)(x), classifier(x))
    True
    """
    _check(classifier)
    weight = tau_norm_weight(classifier.weight, norm_power)
    if not weight.isfinite().all():
        raise checks.InputError(f"norm_power: expected a value that leaves the weights finite, got {norm_power:g}")
    return FoldedClassifier(weight, bias=bias_of_unseen(None, weight, counts, allow_unseen=allow_unseen))


@torch.no_grad()
def learn_norm_power(
    components: tuple[Float[Tensor, "N C"], Float[Tensor, " C"]],
    labels: Int[Tensor, " N"],
    *,
    lowest: float = 0.0,
    highest: float = 2.0,
    tolerance: float = 1e-3,
) -> float:
    """The power of least class-balanced cross-entropy on training features: for data without a validation split.

    Class-balanced sampling draws every class equally often; its expected loss is the mean over classes of each
    class's mean loss, and that is minimised here, by golden-section search between the neighbours of the best of 21
    equal steps. No sampling, no learning rate. Norms are taken relative to their geometric mean over the classes with a
    sample: a power then only re-balances the classes and is no temperature for all of them, which would win wherever
    train is fitted well.

    Args:
        components: of `tau_norm_components` on the training features.
        labels: classes in 0..C-1, [N].
        lowest, highest: bounds of the search.
        tolerance: how near the returned power is to the minimum, above 0.

    Raises:
        InputError: no labels, not one for each row of z, a label outside 0..C-1 or of a masked class, lowest not below
            highest.

    Limit cases: weights longer and features shorter by one factor change nothing; where all weights have one length
    every power is as good, and the lowest is returned.

    >>> classifier = tailwise.LinearClassifier(2, 2, bias=False)
    >>> _ = classifier.weight.data.copy_(torch.tensor([[8.0, 0.0], [0.0, 2.0]]))
    >>> x = torch.tensor([[1.0, 0.2], [1.0, 0.0], [0.6, 1.0]])
    >>> 0 < learn_norm_power(tau_norm_components(x, classifier), torch.tensor([0, 0, 1])) < 2
    True
    """
    z, norms = components
    if not len(labels) or len(labels) != len(z):
        raise checks.InputError(f"labels: expected one for each of {len(z)} features, at least one, got {len(labels)}")
    labels = class_labels(labels, z.shape[1], z.device)
    refuse_masked(z, labels)
    checks.number("lowest", lowest, below=checks.number("highest", highest))
    checks.number("tolerance", tolerance, above=0)
    if norms.shape != (z.shape[1],):
        raise checks.InputError(
            f"components: expected a norm for each of {z.shape[1]} classes, got {list(norms.shape)}"
        )
    seen = torch.bincount(labels, minlength=z.shape[1])
    compared = (seen > 0) & (z != 0).any(dim=0)  # a row of 0 has no length to compare
    relative = norms / norms[compared].log().mean().nan_to_num().exp()
    share = 1 / (seen[labels].double() * (seen > 0).sum())  # of each sample in the mean over classes

    def loss(power: float) -> float:
        factors = _factors(relative, power)
        blocks = zip(*(torch.split(part, ROWS) for part in (z, labels, share)), strict=True)
        return sum(
            float((F.cross_entropy(part * factors, target, reduction="none").double() * weight).sum())
            for part, target, weight in blocks
        )

    step = (highest - lowest) / 20
    best = _first_of_least(loss, [lowest + i * step for i in range(21)])
    low, high = max(lowest, best - step), min(highest, best + step)
    return _first_of_least(loss, [low, _golden_section(loss, low, high, tolerance), high])


def _first_of_least(loss: Callable[[float], float], powers: Sequence[float]) -> float:
    """The first whose loss is the least but for rounding."""
    losses = [loss(power) for power in powers]
    least = min(losses)
    return next(power for power, found in zip(powers, losses, strict=True) if found <= least * (1 + ROUNDING))


def _golden_section(loss: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    shrink = (math.sqrt(5) - 1) / 2
    left, right = high - shrink * (high - low), low + shrink * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > tolerance:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - shrink * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + shrink * (high - low)
            at_right = loss(right)
    return (low + high) / 2


def _norms(weight: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float64)  # squares would leave float32's range
    return norms.to(weight.dtype)


def _factors(norms: Tensor, norm_power: float) -> Tensor:
    checks.number("norm_power", norm_power)
    return norms.where(norms > 0, 1) ** -norm_power


def _check(classifier: LinearClassifier) -> None:
    if not isinstance(classifier, LinearClassifier):
        raise checks.InputError(f"classifier: expected a linear classifier, got {type(classifier).__name__}")
