"""Total direct effect of any classifier, non-linear ones too (Tang et al. 2020, Eq. 2 and appendix D).

Eq. 2 is a difference of two predictions: that of x, and the counterfactual one of a null input whose head part is still
that of x. A linear adjustment (Eq. 8, or a re-balanced second stage) removes only a linear approximation of the head
bias where features interact, in a memory say; evaluating the classifier twice keeps the interaction in both terms.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tailwise import checks
from tailwise.classifiers.functional import heads
from tailwise.shapes import Float


def counterfactual_tde(
    fn: Callable[[Tensor], Tensor], features: Float[Tensor, "N D"], direction: Float[Tensor, "K d"], alpha: float
) -> Float[Tensor, "N C"]:
    """fn(x) - alpha fn(x'), x'_k = cos(x_k, d_k) |x_k| d_k: Eq. 2 of Tang et al. 2020, with x = x'' + d of section 4.2.

    Where it is Eq. 8: that equation puts x'_k into the numerator of Eq. 7 and leaves the |x_k| under it. So the two are
    equal if fn is the linear part of Eq. 7 and `features` are already x_k / |x_k|. A linear classifier without bias
    gives W (x - alpha d d^T x).

    Where it is not: a whole cosine or causal classifier as fn normalizes x'_k anew, which leaves the sign of
    cos(x_k, d_k) in the place of the cosine; a capsule classifier squashes it anew. A bias is part of both terms, so
    alpha times the bias is subtracted, too.

    Args:
        fn: features [N, D] -> logits [N, C]. A module should be in eval mode, or its average takes in x' as well.
        features: [N, D], finite.
        direction: the head direction of each head, unit vectors or 0, [K, D/K] (`FeatureAverage.direction`).
        alpha: how much of the head direction's effect is subtracted, finite.

    Returns:
        Logits [N, C]; a class that fn masks with -inf stays masked.

    Raises:
        InputError: features that are not finite or not [N, D], a direction that is not [K, D/K], an alpha that is not
            finite.

    Limit case: alpha = 0 is fn(x).

    >>> x, d = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])
    >>> counterfactual_tde(torch.square, x, d, 1.0)
    tensor([[ 0., 16.]])
    """
    checks.number("alpha", alpha)
    if direction.dim() != 2:
        raise checks.InputError(f"direction: expected shape [K, D/K], got {list(direction.shape)}")
    checks.feature_shape(features.shape, direction.numel())
    checks.finite("features", features.detach().float().cpu().numpy())
    x = heads(features, len(direction))
    head_part = ((x * direction).sum(dim=-1, keepdim=True) * direction).flatten(1)
    logits, effect = fn(features), fn(head_part.to(features.dtype))
    return logits - alpha * effect.where(effect > -torch.inf, 0)
