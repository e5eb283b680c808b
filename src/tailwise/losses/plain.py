"""The loss that every other one must beat, and what they all share."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.shapes import Float, Int

Reduction = Literal["mean", "none"]
Target = Int[Tensor, " N"] | Float[Tensor, "N C"]


def cross_entropy(
    logits: Float[Tensor, "N C"], target: Target, *, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """Softmax cross-entropy, -sum_c q_c log softmax(logits)_c.

    Args:
        logits: [N, C]; -inf for a class that is masked.
        target: classes in 0..C-1, [N], or a distribution q over the classes for each sample, [N, C], as mixup makes it.
        reduction: "mean" over samples, or "none" for one value per sample, [N].

    Raises:
        InputError: another reduction.

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor(1.3863)
    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([[0.5, 0.0, 0.5, 0.0]]))
    tensor(1.3863)
    """
    if not target.is_floating_point():
        return F.cross_entropy(logits, target, reduction=known(reduction))
    # 0 log 0 is 0: a class that is masked and not meant
    log_p = F.log_softmax(logits, dim=1).masked_fill(target == 0, 0)
    return reduced(-(target * log_p).sum(dim=1), reduction)


class CrossEntropy(nn.Module):
    """`cross_entropy` as a module."""

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.reduction: Reduction = reduction

    def forward(self, logits: Float[Tensor, "N C"], target: Target) -> Float[Tensor, "..."]:
        return cross_entropy(logits, target, reduction=self.reduction)


def known(reduction: Reduction) -> Reduction:
    """`reduction` if it is one: a loss that took "sum" for "none" would train, on something else."""
    checks.choice("reduction", reduction, get_args(Reduction))
    return reduction


def reduced(losses: Float[Tensor, " N"], reduction: Reduction) -> Float[Tensor, "..."]:
    """The mean of a loss per sample, or the losses themselves."""
    return losses.mean() if known(reduction) == "mean" else losses


def one_vs_all(logits: Float[Tensor, "N C"], gamma: float = 0.0) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]]:
    """The binary focal loss of each class on its own: if the sample is of it, and if it is not.

    (1 - p)^gamma (-log p) and p^gamma (-log(1 - p)), p = sigmoid(logits); gamma = 0 is binary cross-entropy.
    """
    # a masked class's logit is -inf: its own loss, never asked for, would be 0 * inf
    logits = logits.clamp_min(torch.finfo(logits.dtype).min)
    log_p, log_not = F.logsigmoid(logits), F.logsigmoid(-logits)
    return -(gamma * log_not).exp() * log_p, -(gamma * log_p).exp() * log_not


def images_per_class(counts: ClassCounts | Tensor, logits: Float[Tensor, "N C"]) -> Float[Tensor, " C"]:
    """Training images of each class, beside the logits; a tensor that lies there already is not copied.

    Raises:
        InputError: counts of another number of classes.
    """
    given = counts.num_classes if isinstance(counts, ClassCounts) else counts.numel()
    if given != logits.shape[1]:
        raise checks.InputError(f"counts: expected {logits.shape[1]} classes, as the logits have, got {given}")
    if isinstance(counts, ClassCounts):
        counts = torch.tensor(counts.per_class)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return counts.to(device=logits.device, dtype=wide)
