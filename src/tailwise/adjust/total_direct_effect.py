"""Total direct effect: subtract what the head direction alone would predict (Tang et al. 2020, Eq. 8).

Eq. 8 is linear in the normalized features: with u_k = x_k / |x_k|,

    TDE = tau / K * sum_k  w_k (I - alpha d_k d_k^T) u_k / (|w_k| + gamma),

so an alpha is a rank-one change per head. A sweep over alphas costs one thin product (`tde_components`), and a
chosen alpha folds into one weight matrix (`fold_tde`).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from tailwise import checks
from tailwise.adjust.unseen import bias_of_unseen, mask_unseen
from tailwise.classifiers.functional import Norm, product_dtype, scale_features, scale_weight
from tailwise.classifiers.normalized import FoldedClassifier, NormalizedClassifier
from tailwise.counts import ClassCounts
from tailwise.shapes import Float


def tde_logits(
    features: Float[Tensor, "N D"],
    weight: Float[Tensor, "C D"],
    direction: Float[Tensor, "K d"],
    alpha: float,
    *,
    num_heads: int,
    tau: float,
    gamma: float,
    norm: Norm = "unit",
) -> Float[Tensor, "N C"]:
    """Logits of the total direct effect, Tang et al. 2020, Eq. 8.

    tau / K * sum_k  w_k . (x_k - alpha cos(x_k, d_k) |x_k| d_k) / ((|w_k| + gamma) |x_k|). Under norm "capsule"
    the denominator is the classifier's own, |x_k| + 1 for |x_k|.

    Args:
        features: [N, D], D divisible by `num_heads`; of any precision, the logits are in the weight's.
        weight: one row per class, [C, D].
        direction: the head direction of each head, unit vectors or 0, [K, D/K] (`FeatureAverage.direction`).
        alpha: how much of the head direction's effect is subtracted; the paper uses 1 to 3.
        num_heads, tau, gamma, norm: as in `tailwise.classifiers.normalized_logits`.

    Raises:
        InputError: D not divisible by K, another shape of the direction, tau not above 0, gamma below 0.

    Limit cases: alpha = 0 is Eq. 7; a direction of 0, or orthogonal to the features, changes nothing.

    >>> settings = dict(num_heads=1, tau=1.0, gamma=0.0)
    >>> tde_logits(torch.tensor([[3.0, 4.0]]), torch.eye(2), torch.tensor([[1.0, 0.0]]), 1.0, **settings)
    tensor([[0.0000, 0.8000]])
    """
    checks.number("tau", tau, above=0)
    checks.number("gamma", gamma, at_least=0)
    x = scale_features(features, num_heads, norm)
    if direction.shape != x.shape[1:]:  # another would be broadcast over the heads
        raise checks.InputError(f"direction: expected shape {list(x.shape[1:])}, got {list(direction.shape)}")
    along_head = (x * direction).sum(dim=-1, keepdim=True) * direction
    x = (x - alpha * along_head) * (tau / num_heads)
    return F.linear(x.flatten(1).to(product_dtype(weight)), scale_weight(weight, num_heads, gamma).flatten(1))


def tde(
    features: Float[Tensor, "N D"],
    classifier: NormalizedClassifier,
    alpha: float,
    *,
    counts: ClassCounts | None = None,
    allow_unseen: bool = False,
) -> Float[Tensor, "N C"]:
    """Eq. 8 with a trained classifier's weight and head direction; see `tde_logits`.

    Args:
        features: [N, D], finite.
        classifier: causal, cosine or capsule.
        alpha: finite.
        counts: training images per class; a class without one gets -inf (None: all are taken to be seen).
        allow_unseen: mask nothing.

    Raises:
        InputError: a classifier without a feature average, features that are not finite or not [N, D].

    Limit case: alpha = 0 is `classifier(features)`.

    >>> classifier = tailwise.classifiers.CausalClassifier(8, 3)
    >>> x = torch.rand(5, 8)
    >>> torch.allclose(tde(x, classifier, alpha=0.0), classifier.eval()(x))
    True
    """
    _check(features, classifier)
    checks.number("alpha", alpha)
    logits = tde_logits(
        features,
        classifier.weight,
        _direction(classifier),
        alpha,
        num_heads=classifier.num_heads,
        tau=classifier.tau,
        gamma=classifier.gamma,
        norm=classifier.norm,
    )
    return mask_unseen(logits, counts, allow_unseen=allow_unseen)


def tde_components(
    features: Float[Tensor, "N D"],
    classifier: NormalizedClassifier,
    *,
    counts: ClassCounts | None = None,
    allow_unseen: bool = False,
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]]:
    """(a, b) such that the TDE logits of any alpha are a - alpha * b.

    a is Eq. 7, b the effect of the head direction alone. Arguments and errors as in `tde`.

    >>> classifier = tailwise.classifiers.CausalClassifier(8, 3)
    >>> x = torch.rand(5, 8); _ = classifier(x)
    >>> a, b = tde_components(x, classifier)
    >>> torch.allclose(a - 1.5 * b, tde(x, classifier, 1.5), atol=1e-5)
    True
    """
    _check(features, classifier)
    direction = _direction(classifier)
    weight = scale_weight(classifier.weight, classifier.num_heads, classifier.gamma)
    x = scale_features(features, classifier.num_heads, classifier.norm) * (classifier.tau / classifier.num_heads)
    dtype = product_dtype(classifier.weight)
    a = F.linear(x.flatten(1).to(dtype), weight.flatten(1))
    # b = sum_k (x_k . d_k) (w_k . d_k): a product of inner size K, not D
    b = (x * direction).sum(dim=-1).to(dtype) @ (weight * direction).sum(dim=-1).T
    return mask_unseen(a, counts, allow_unseen=allow_unseen), b


def fold_tde(
    classifier: NormalizedClassifier, alpha: float, *, counts: ClassCounts | None = None, allow_unseen: bool = False
) -> FoldedClassifier:
    """A classifier whose forward is Eq. 8 at this alpha, at the cost of a cosine classifier.

    weight = tau / K * w_k (I - alpha d_k d_k^T) / (|w_k| + gamma), so the logits are weight times the normalized
    features. The result holds a copy: it does not follow further training.

    Args:
        classifier: causal, cosine or capsule.
        alpha: finite.
        counts, allow_unseen: as in `tde`.

    Raises:
        InputError: a classifier without a feature average, an alpha so large that weights overflow.

    >>> classifier = tailwise.classifiers.CausalClassifier(8, 3)
    >>> x = torch.rand(5, 8); _ = classifier(x)
    >>> torch.allclose(fold_tde(classifier, 1.5)(x), tde(x, classifier, 1.5), atol=1e-5)
    True
    """
    _check(None, classifier)
    checks.number("alpha", alpha)
    with torch.no_grad():
        direction = _direction(classifier)
        weight = scale_weight(classifier.weight, classifier.num_heads, classifier.gamma)
        weight = weight - alpha * (weight * direction).sum(dim=-1, keepdim=True) * direction
        weight = weight * (classifier.tau / classifier.num_heads)
    if not weight.isfinite().all():
        raise checks.InputError(f"alpha: expected a value that leaves the weights finite, got {alpha:g}")
    weight = weight.flatten(1)
    bias = bias_of_unseen(None, weight, counts, allow_unseen=allow_unseen)
    return FoldedClassifier(weight, num_heads=classifier.num_heads, norm=classifier.norm, bias=bias)


def head_cosine(features: Float[Tensor, "N D"], classifier: NormalizedClassifier) -> Float[Tensor, " N"]:
    """cos(x, d) of each sample, averaged over the heads: how far it leans to the head direction, in [-1, 1].

    Arguments and errors as in `tde`. A zero feature or a zero average gives 0.

    >>> classifier = tailwise.classifiers.CausalClassifier(2, 3, num_heads=1)
    >>> _ = classifier(torch.tensor([[1.0, 0.0]]))
    >>> head_cosine(torch.tensor([[3.0, 4.0]]), classifier)
    tensor([0.6000])
    """
    _check(features, classifier)
    x = scale_features(features, classifier.num_heads, "unit")
    return (x * _direction(classifier)).sum(dim=-1).mean(dim=-1)


def _direction(classifier: NormalizedClassifier) -> Tensor:
    return classifier.average.direction().to(classifier.weight.dtype)


def _check(features: Tensor | None, classifier: NormalizedClassifier) -> None:
    if not hasattr(classifier, "average"):
        raise checks.InputError(
            "classifier: expected a normalized classifier with a feature average (causal, cosine or capsule), "
            f"got {type(classifier).__name__}"
        )
    if features is None:
        return
    checks.feature_shape(features.shape, classifier.weight.shape[1])
    checks.finite("features", features.detach().float().cpu().numpy())
