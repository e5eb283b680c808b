"""The plain linear classifier, the baseline of both papers, and its learnable weight scaling."""

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


class ScaledClassifier(nn.Module):
    """Learnable weight scaling: s * (W x + b), one factor per class on a frozen classifier (Kang et al. 2020, LWS).

    Only `scale` is a parameter; W and b are buffers, so that neither training nor weight decay can reach them.

    Args:
        weight: W of the trained classifier, [C, D]; copied.
        bias: its b, [C]; None for a classifier without.

    Raises:
        InputError: a weight that is no matrix; a bias that does not have one value per class.

    Limit case: s = 1, where it starts, is the classifier it was made from.

    >>> linear = LinearClassifier(8, 3)
    >>> x = torch.rand(5, 8)
    >>> torch.equal(ScaledClassifier(linear.weight, linear.bias)(x), linear(x))
    True
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Float[Tensor, "C D"], bias: Float[Tensor, " C"] | None = None) -> None:
        super().__init__()
        checks.matrix("weight", weight.shape)
        if bias is not None and bias.shape != (len(weight),):
            raise checks.InputError(f"bias: expected shape [{len(weight)}], got {list(bias.shape)}")
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().to(weight.dtype, copy=True))
        self.scale = nn.Parameter(torch.ones_like(self.weight[:, 0]))

    def forward(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        checks.feature_shape(features.shape, self.weight.shape[1])
        return self.scale * F.linear(features, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}"
