"""The loss that every other one must beat."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from tailwise.shapes import Float, Int

Reduction = Literal["mean", "none"]


def cross_entropy(
    logits: Float[Tensor, "N C"], target: Int[Tensor, " N"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """Softmax cross-entropy, -log softmax(logits)[target].

    Args:
        logits: [N, C].
        target: classes in 0..C-1, [N].
        reduction: "mean" over samples, or "none" for one value per sample, [N].

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor(1.3863)
    """
    return F.cross_entropy(logits, target, reduction=reduction)


class CrossEntropy(nn.Module):
    """`cross_entropy` as a module."""

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.reduction: Reduction = reduction

    def forward(self, logits: Float[Tensor, "N C"], target: Int[Tensor, " N"]) -> Float[Tensor, "..."]:
        return cross_entropy(logits, target, reduction=self.reduction)
