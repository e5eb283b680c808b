"""Losses that ask rare classes for a wider margin."""

import torch
from torch import Tensor, nn

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.losses.plain import Reduction, cross_entropy, images_per_class
from tailwise.shapes import Float, Int


def ldam(
    logits: Float[Tensor, "N C"],
    target: Int[Tensor, " N"],
    counts: ClassCounts | Tensor,
    *,
    max_margin: float = 0.5,
    scale: float = 30.0,
    allow_unseen: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Label-distribution-aware margin (LDAM; Cao et al. 2019): cross-entropy of scale * (z - margin of the target).

    The margin max_margin * (n_min / n_y)^(1/4) is taken off the target's logit only, as Cao et al. have it; Kang et al.
    2020 print it on every logit (their Eq. 5).

    Args:
        logits: cosines in [-1, 1], of a cosine classifier with tau = 1: the scale is applied here, and once. [N, C].
        target: classes, [N].
        counts: training images per class, as `ClassCounts` or a tensor [C] on the device of the logits.
        max_margin: of the rarest class, in units of the cosine, at least 0.
        scale: of the logits, above 0.
        allow_unseen: give a class without a training image the margin of one image; otherwise it is masked, and must
            not be a target.
        reduction: "mean" over samples, or "none".

    Raises:
        InputError: counts of another number of classes, a value outside its range.

    Limit case: max_margin = 0 and scale = 1 is cross-entropy, where no class is masked.

    >>> cosines, target = torch.tensor([[0.5, 0.0]]), torch.tensor([0])
    >>> ldam(cosines, target, ClassCounts((1, 16)), scale=1.0)  # the margin of the rarest class takes all of it
    tensor(0.6931)
    """
    checks.number("max_margin", max_margin, at_least=0)
    checks.number("scale", scale, above=0)
    images = images_per_class(counts, logits)
    if allow_unseen:
        images = images.clamp_min(1)
    present = images > 0
    rarest = images.where(present, torch.inf).amin()
    margins = max_margin * (rarest / images.where(present, 1)) ** 0.25
    taken = torch.zeros_like(logits).scatter(1, target[:, None], margins[target][:, None].to(logits.dtype))
    wanted = (scale * (logits - taken)).masked_fill(~present, -torch.inf)
    return cross_entropy(wanted, target, reduction=reduction)


class LDAM(nn.Module):
    """`ldam` as a module; the counts are a buffer."""

    counts: Tensor

    def __init__(
        self,
        counts: ClassCounts,
        *,
        max_margin: float = 0.5,
        scale: float = 30.0,
        allow_unseen: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.register_buffer("counts", torch.tensor(counts.per_class))
        self.max_margin = checks.number("max_margin", max_margin, at_least=0)
        self.scale = checks.number("scale", scale, above=0)
        self.allow_unseen = allow_unseen
        self.reduction: Reduction = reduction

    def forward(self, logits: Float[Tensor, "N C"], target: Int[Tensor, " N"]) -> Float[Tensor, "..."]:
        return ldam(
            logits,
            target,
            self.counts,
            max_margin=self.max_margin,
            scale=self.scale,
            allow_unseen=self.allow_unseen,
            reduction=self.reduction,
        )
