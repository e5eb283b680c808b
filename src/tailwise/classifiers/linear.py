"""The plain linear classifier, the baseline of both papers."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailwise import checks
from tailwise.shapes import Float


class LinearClassifier(nn.Module):
    """Logits W x + b, or W x with `bias=False` (Tang et al.'s baseline; Kang et al. keep the bias).

    Args:
        in_features: D.
        num_classes: C.
        bias: whether there is a b.

    Raises:
        InputError: a size that is not a positive whole number.

    >>> LinearClassifier(8, 3)(torch.zeros(2, 8)).shape
    torch.Size([2, 3])
    """

    def __init__(self, in_features: int, num_classes: int, *, bias: bool = True) -> None:
        super().__init__()
        checks.whole("in_features", in_features)
        checks.whole("num_classes", num_classes)
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(num_classes, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound)) if bias else None

    def forward(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        checks.feature_shape(features.shape, self.weight.shape[1])
        return F.linear(features, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}"
