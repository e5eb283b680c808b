"""Post-hoc logit adjustment: exchange the class prior that a classifier has learnt (Menon et al. 2021, Eq. 9)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailwise import checks
from tailwise.adjust.relearn import fold_linear
from tailwise.adjust.total_direct_effect import fold_tde
from tailwise.adjust.unseen import bias_of_unseen
from tailwise.classifiers import FoldedClassifier, LinearClassifier, NormalizedClassifier, ScaledClassifier
from tailwise.counts import ClassCounts
from tailwise.shapes import Float

Prior = Tensor | NDArray[np.floating[Any]] | Sequence[float]
Foldable = LinearClassifier | ScaledClassifier | NormalizedClassifier | FoldedClassifier


def adjust_logits(
    logits: Float[Tensor, "N C"], source_prior: Prior, target_prior: Prior | None = None, *, temperature: float = 1.0
) -> Float[Tensor, "N C"]:
    """z - temperature log p_source + temperature log p_target (Menon et al. 2021, Eq. 9, where p_target is uniform).

    If softmax(z) is the posterior of data whose classes have the source prior, temperature 1 makes it the posterior of
    data that differ in the prior alone.

    Args:
        logits: z, [N, C].
        source_prior: of the training images, [C], sums to 1 (`ClassCounts.prior`).
        target_prior: of the data that are predicted, [C], sums to 1; uniform if None.
        temperature: tau of the paper, at least 0.

    Returns:
        [N, C]; -inf for a class whose prior is 0, in the source or in the target, at every temperature.

    Raises:
        InputError: a prior of another length, with a negative number, or that does not sum to 1; a temperature below 0.

    Limit cases: temperature 0, or the target the source, gives the logits back.

    >>> adjust_logits(torch.zeros(1, 2), [0.75, 0.25]).softmax(dim=1)
    tensor([[0.2500, 0.7500]])
    """
    checks.number("temperature", temperature, at_least=0)
    ratio = _log_ratio(source_prior, target_prior, logits.shape[1])
    # 0 * -inf would be NaN
    return logits + (temperature * ratio).where(ratio > -torch.inf, ratio).to(logits)


@torch.no_grad()
def log_prior_components(
    features: Float[Tensor, "N D"],
    classifier: Foldable,
    counts: ClassCounts,
    *,
    target_prior: Prior | None = None,
    allow_unseen: bool = False,
) -> tuple[Float[Tensor, "N C"], Float[Tensor, " C"]]:
    """(z, r) such that the adjusted logits at any temperature are z + temperature * r.

    z are the classifier's logits, r is log p_target - log p_source.

    Args:
        features: [N, D], finite.
        classifier: linear, scaled, cosine, capsule, causal or folded.
        counts: training images per class; z is -inf for a class without one.
        target_prior: as in `adjust_logits`.
        allow_unseen: give a class without a training image the prior of one image instead.

    Raises:
        InputError: another kind of classifier, features that are not finite or not [N, D], counts or a target prior
            that do not fit.

    >>> classifier, x = tailwise.LinearClassifier(8, 2), torch.rand(5, 8)
    >>> z, r = log_prior_components(x, classifier, tailwise.ClassCounts((30, 10)))
    >>> torch.allclose(z + 0.5 * r, adjust_logits(classifier(x), [0.75, 0.25], temperature=0.5))
    True
    """
    checks.finite("features", features.detach().float().cpu().numpy())
    folded, ratio = _components(classifier, counts, target_prior, allow_unseen=allow_unseen)
    return folded(features), ratio


@torch.no_grad()
def fold_logit_adjustment(
    classifier: Foldable,
    counts: ClassCounts,
    *,
    target_prior: Prior | None = None,
    temperature: float = 1.0,
    allow_unseen: bool = False,
) -> FoldedClassifier:
    """A classifier whose forward is `adjust_logits` of another's, the priors in its bias.

    Arguments and errors as in `log_prior_components` and `adjust_logits`.

    Limit case: temperature 0 is the classifier, less the classes it has not seen.

    >>> classifier, x = tailwise.CosineClassifier(8, 2), torch.rand(5, 8)
    >>> folded = fold_logit_adjustment(classifier, tailwise.ClassCounts((30, 10)))
    >>> torch.allclose(folded(x), adjust_logits(classifier(x), [0.75, 0.25]), atol=1e-5)
    True
    """
    checks.number("temperature", temperature, at_least=0)
    folded, ratio = _components(classifier, counts, target_prior, allow_unseen=allow_unseen)
    bias = temperature * ratio if folded.bias is None else folded.bias + temperature * ratio
    return _with_bias(folded, bias)


def _components(
    classifier: Foldable, counts: ClassCounts, target_prior: Prior | None, *, allow_unseen: bool
) -> tuple[FoldedClassifier, Tensor]:
    """The classifier as one matrix, -inf in its bias for classes that are never predicted; the log ratio of priors."""
    if isinstance(classifier, FoldedClassifier):
        folded = classifier
    elif isinstance(classifier, LinearClassifier | ScaledClassifier):
        folded = fold_linear(classifier)
    elif isinstance(classifier, NormalizedClassifier):
        folded = fold_tde(classifier, 0.0)
    else:
        raise checks.InputError(
            "classifier: expected one that is one matrix (linear, scaled, cosine, capsule, causal or folded), "
            f"got {type(classifier).__name__}"
        )
    bias = bias_of_unseen(folded.bias, folded.weight, counts, allow_unseen=allow_unseen)
    images = torch.tensor(counts.per_class, dtype=torch.float64).clamp_min(1 if allow_unseen else 0)
    ratio = _log_ratio(images / images.sum(), target_prior, counts.num_classes).to(folded.weight)
    never = ratio == -torch.inf
    if never.any():
        bias = torch.zeros_like(ratio) if bias is None else bias
        bias = bias.masked_fill(never, -torch.inf)
    return _with_bias(folded, bias), ratio.masked_fill(never, 0)


def _with_bias(folded: FoldedClassifier, bias: Tensor | None) -> FoldedClassifier:
    return FoldedClassifier(
        folded.weight, num_heads=folded.num_heads, norm=folded.norm, bias=bias, center=folded.center
    )


def _log_ratio(source_prior: Prior, target_prior: Prior | None, num_classes: int) -> Tensor:
    """log p_target - log p_source, [C] in double; -inf where either is 0."""
    source = _checked("source_prior", source_prior, num_classes)
    uniform = torch.full_like(source, 1 / num_classes)
    target = uniform if target_prior is None else _checked("target_prior", target_prior, num_classes)
    return (target.log() - source.log()).where(source > 0, -torch.inf)


def _checked(name: str, prior: Prior, num_classes: int) -> Tensor:
    given = torch.as_tensor(prior, dtype=torch.float64).detach().cpu()
    if given.shape != (num_classes,):
        raise checks.InputError(f"{name}: expected a number for each of {num_classes} classes, got {list(given.shape)}")
    total = float(given.sum())
    if not (given >= 0).all() or not abs(total - 1) < 1e-4:  # float32 rounds the shares of thousands of classes
        raise checks.InputError(
            f"{name}: expected numbers of at least 0 that sum to 1, "
            f"got a least {float(given.min()):g} and a sum {total:g}"
        )
    return given
