"""Losses of a batch's features, which compare images with one another: `(features [N, D], target [N], ...) -> scalar`.

They are of the batch, so no image has a loss of its own. A batch needs several images of a class: see
`tailwise.sampling.p_by_k_draw`. Micro-batches and processes each compare the images of their own part.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tailwise import checks
from tailwise.losses.plain import CrossEntropy, Target
from tailwise.shapes import Float, Int


def range_loss(
    features: Float[Tensor, "N D"],
    target: Int[Tensor, " N"],
    *,
    k: int = 2,
    margin: float = 1.0,
    intra_weight: float = 1.0,
    inter_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """intra_weight * sum_c k / sum_j (1 / D_cj) + inter_weight * max(0, margin - D_centers) (Zhang et al. 2017).

    D_c1 .. D_ck are the k largest squared distances of two images of class c, D_centers is the smallest squared
    distance of two classes' mean features; all within the batch. A class with fewer pairs gives those it has, one with
    a single image none.

    Args:
        features: [N, D], at least one row.
        target: classes, [N].
        k: ranges per class, at least 1.
        margin: wanted between the nearest centers, as a squared distance: it depends on how long features are.
        intra_weight, inter_weight: alpha and beta of the paper, at least 0.

    Raises:
        InputError: a value outside its range.

    Limit cases: without two images of a class the first term is 0, with a single class the second is.

    >>> features = torch.tensor([[0.0], [1.0], [3.0], [3.5]])
    >>> range_loss(features, torch.tensor([0, 0, 1, 1]), margin=8.0)  # 1 + 1/4, and 8 - (3.25 - 0.5)^2
    tensor(1.6875)
    """
    checks.whole("k", k)
    checks.number("margin", margin, at_least=0)
    checks.number("intra_weight", intra_weight, at_least=0)
    checks.number("inter_weight", inter_weight, at_least=0)
    x, same = _wide(features), target[:, None] == target
    limits = torch.finfo(x.dtype)

    # each image's largest ranges to the later ones of its class; of these the class's largest, in its first image's row
    k = min(k, len(x))
    ranges = _distances(x).square().where(same.triu(1), -1)
    largest = ranges.topk(k, dim=1).values.where(same[:, :, None], -1).flatten(1).topk(k, dim=1).values
    inverse = (1 / largest.clamp_min(limits.eps)).where(largest >= 0, 0).sum(dim=1)
    harmonic = (largest >= 0).sum(dim=1) / inverse.clamp_min(limits.tiny)
    first = ~same.tril(-1).any(dim=1)
    intra = harmonic.where(first, 0).sum()

    centers = same.to(x.dtype) @ x / same.sum(dim=1, keepdim=True)  # of the class of each image
    nearest = _distances(centers).square().where(~same, torch.inf).amin()
    return intra_weight * intra + inter_weight * (margin - nearest).clamp_min(0)


def lifted_structured(
    features: Float[Tensor, "N D"], target: Int[Tensor, " N"], *, margin: float = 1.0
) -> Float[Tensor, ""]:
    """1 / (2 |P|) sum over pairs (i, j) of P of max(0, J_ij)^2 (Oh Song et al. 2016, Eq. 4, the smooth bound).

    J_ij = log(sum_k e^(margin - D_ik) + sum_l e^(margin - D_jl)) + D_ij. P are the pairs of one class, k and l run over
    the images of other classes than i's and j's, D is the distance.

    Args:
        features: [N, D].
        target: classes, [N].
        margin: alpha of the paper, at least 0.

    Raises:
        InputError: a margin below 0.

    Limit cases: without two images of a class, or with a single class, the loss is 0.

    >>> features = torch.tensor([[0.0], [2.0], [1.0]])
    >>> lifted_structured(features, torch.tensor([0, 0, 1]))  # J = log(1 + 1) + 2
    tensor(3.6265)
    """
    checks.number("margin", margin, at_least=0)
    distances, same = _distances(_wide(features)), target[:, None] == target
    others = (margin - distances).masked_fill(same, -torch.inf).logsumexp(dim=1)
    bounds = torch.logaddexp(others[:, None], others) + distances
    pairs = same.triu(1)
    return bounds.clamp_min(0).square().where(pairs, 0).sum() / (2 * pairs.sum().clamp_min(1))


class RangeLoss(nn.Module):
    """`range_loss` as a module."""

    def __init__(
        self, *, k: int = 2, margin: float = 1.0, intra_weight: float = 1.0, inter_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.k = checks.whole("k", k)
        self.margin = checks.number("margin", margin, at_least=0)
        self.intra_weight = checks.number("intra_weight", intra_weight, at_least=0)
        self.inter_weight = checks.number("inter_weight", inter_weight, at_least=0)

    def forward(self, features: Float[Tensor, "N D"], target: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        return range_loss(
            features,
            target,
            k=self.k,
            margin=self.margin,
            intra_weight=self.intra_weight,
            inter_weight=self.inter_weight,
        )


class LiftedStructured(nn.Module):
    """`lifted_structured` as a module."""

    def __init__(self, *, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = checks.number("margin", margin, at_least=0)

    def forward(self, features: Float[Tensor, "N D"], target: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        return lifted_structured(features, target, margin=self.margin)


class CrossEntropyAndMetric(nn.Module):
    """cross_entropy(logits, target) + weight * metric(features, target), of a model that gives both.

    Args:
        metric: (features [N, D], target [N]) -> scalar.
        weight: of the metric loss, at least 0.
        cross_entropy: (logits [N, C], target [N]) -> scalar: any loss of logits.

    Raises:
        InputError: a weight below 0.

    Limit case: weight = 0 is the loss of the logits; the metric loss is not computed.

    >>> loss = CrossEntropyAndMetric(LiftedStructured(), weight=0.1)
    >>> output = torch.zeros(3, 2), torch.tensor([[0.0], [2.0], [1.0]])  # logits, features
    >>> loss(output, torch.tensor([0, 0, 1]))  # log 2 + 0.1 * 3.6265
    tensor(1.0558)
    """

    def __init__(
        self,
        metric: Callable[[Tensor, Tensor], Tensor],
        weight: float,
        cross_entropy: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.metric = metric
        self.weight = checks.number("weight", weight, at_least=0)
        self.cross_entropy = CrossEntropy() if cross_entropy is None else cross_entropy

    def forward(self, output: tuple[Float[Tensor, "N C"], Float[Tensor, "N D"]], target: Target) -> Float[Tensor, ""]:
        logits, features = output
        loss = self.cross_entropy(logits, target)
        return loss + self.weight * self.metric(features, target) if self.weight else loss


def _wide(features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    return features.to(torch.promote_types(features.dtype, torch.float32))


def _distances(x: Float[Tensor, "N D"]) -> Float[Tensor, "N N"]:
    # from the differences themselves: by a matrix product near images lose their digits, and equal ones their gradient
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
