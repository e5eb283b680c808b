"""Total direct effect on a plain linear classifier: a heuristic, not the method of Tang et al. 2020."""

import torch
from torch import Tensor

from tailwise import checks
from tailwise.adjust.choose import alpha_of
from tailwise.adjust.unseen import bias_of_unseen
from tailwise.classifiers import FoldedClassifier, LinearClassifier
from tailwise.classifiers.functional import unit
from tailwise.counts import ClassCounts
from tailwise.shapes import Float


@torch.no_grad()
def fold_mean_direction(
    classifier: LinearClassifier,
    features: Float[Tensor, "N D"],
    alpha: float | None = None,
    *,
    counts: ClassCounts | None = None,
    allow_unseen: bool = False,
) -> tuple[FoldedClassifier, float]:
    """W (I - alpha d d^T) x + b, d the unit vector of the mean training feature; and the alpha.

    A heuristic: Eq. 8 is derived for normalized classifiers trained with the moving average of their features. A plain
    softmax classifier has neither, its lengths still tell the classes apart, and nothing says that the mean feature is
    what its momentum made of it. Choose it on validation data or not at all.

    Args:
        classifier: linear, as trained.
        features: of the training images, [N, D].
        alpha: how much is removed; None is the rule of thumb, 1 / mean cos(x, d), or 0 where that cosine is no higher
            than that of features around 0, which have no direction in common (`alpha_of`).
        counts: training images per class; one without any is never predicted (None: all are taken to be seen).
        allow_unseen: mask nothing.

    Raises:
        InputError: another kind of classifier, features or counts that do not fit.

    Limit case: alpha = 0 is the classifier, less the classes it has not seen.

    >>> linear = tailwise.LinearClassifier(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.eye(2))
    >>> fold_mean_direction(linear, torch.tensor([[3.0, 0.0]]), 1.0)[0](torch.tensor([[3.0, 4.0]]))
    tensor([[0., 4.]])
    """
    if not isinstance(classifier, LinearClassifier):
        raise checks.InputError(f"classifier: expected a linear classifier, got {type(classifier).__name__}")
    checks.feature_shape(features.shape, classifier.weight.shape[1])
    if not len(features):
        raise checks.InputError("features: expected those of the training images, got none")
    checks.finite("features", features.float().cpu().numpy())
    direction = unit(features.double().mean(dim=0))
    if alpha is None:
        alpha = alpha_of(float((unit(features.double()) @ direction).mean()))
    checks.number("alpha", alpha)
    weight = classifier.weight.double()
    weight = weight - alpha * (weight @ direction)[:, None] * direction
    weight = weight.to(classifier.weight.dtype)
    bias = bias_of_unseen(classifier.bias, weight, counts, allow_unseen=allow_unseen)
    return FoldedClassifier(weight, bias=bias), alpha
