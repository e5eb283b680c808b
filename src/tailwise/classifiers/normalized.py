"""Multi-head normalized classifiers, each with the average of the features it was trained on."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailwise import checks
from tailwise.classifiers.average import FeatureAverage
from tailwise.classifiers.functional import Norm, normalized_logits, product_dtype, scale_features
from tailwise.shapes import Float

FoldedNorm = Literal["unit", "capsule", "none"]


class CausalClassifier(nn.Module):
    """The multi-head classifier of de-confounded training (Tang et al. 2020, Eq. 7).

    logits = tau / K * sum_k  w_k . x_k / ((|w_k| + gamma) |x_k|), in train and in eval mode. Total direct effect
    (Eq. 8) is never a hidden branch here: `tailwise.adjust.tde` computes it from `weight` and `average`.

    Args:
        in_features: D, divisible by `num_heads`.
        num_classes: C.
        num_heads: K.
        tau: scale of the logits.
        gamma: class-agnostic baseline energy.
        momentum: decay rate of the feature average, in [0, 1].

    Raises:
        InputError: a value outside its range, D not divisible by K.

    Limit case: gamma = 0 and K = 1 is the cosine classifier.

    >>> classifier = CausalClassifier(8, 3)
    >>> classifier(torch.ones(2, 8)).shape, classifier.average.value
    (torch.Size([2, 3]), tensor([1., 1., 1., 1., 1., 1., 1., 1.]))
    """

    norm: Norm = "unit"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        num_heads: int = 2,
        tau: float = 16.0,
        gamma: float = 1 / 32,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.average = FeatureAverage(in_features, num_heads=num_heads, momentum=momentum)
        self.weight = _initial_weight(in_features, num_classes)
        self.num_heads = num_heads
        self.tau = checks.number("tau", tau, above=0)
        self.gamma = checks.number("gamma", gamma, at_least=0)

    def forward(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        return _observed_logits(self, features)

    def extra_repr(self) -> str:
        return f"{_sizes(self)}, num_heads={self.num_heads}, tau={self.tau:g}, gamma={self.gamma:g}"


class CosineClassifier(nn.Module):
    """tau times the cosine of feature and class weight, averaged over K heads (Tang et al. 2020, supplement B).

    Eq. 7 with gamma = 0. The average is kept so that Eq. 8 applies ("Cosine-TDE").

    Args:
        in_features: D, divisible by `num_heads`.
        num_classes: C.
        num_heads: K.
        tau: scale of the logits.
        momentum: decay rate of the feature average, in [0, 1].

    Raises:
        InputError: a value outside its range, D not divisible by K.

    >>> CosineClassifier(8, 3)(torch.ones(2, 8)).abs().max() <= 16
    tensor(True)
    """

    norm: Norm = "unit"
    gamma: float = 0.0

    def __init__(
        self, in_features: int, num_classes: int, *, num_heads: int = 1, tau: float = 16.0, momentum: float = 0.9
    ) -> None:
        super().__init__()
        self.average = FeatureAverage(in_features, num_heads=num_heads, momentum=momentum)
        self.weight = _initial_weight(in_features, num_classes)
        self.num_heads = num_heads
        self.tau = checks.number("tau", tau, above=0)

    def forward(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        return _observed_logits(self, features)

    def extra_repr(self) -> str:
        return f"{_sizes(self)}, num_heads={self.num_heads}, tau={self.tau:g}"


class CapsuleClassifier(nn.Module):
    """Squashed features on unit class weights, averaged over K heads (Tang et al. 2020, supplement B).

    logits = tau / K * sum_k  w_k . x_k / (|w_k| (|x_k| + 1)): longer features give more certain logits.

    Args:
        in_features: D, divisible by `num_heads`.
        num_classes: C.
        num_heads: K.
        tau: scale of the logits.
        momentum: decay rate of the feature average, in [0, 1].

    Raises:
        InputError: a value outside its range, D not divisible by K.

    Limit case: features of infinite length give the cosine classifier.

    >>> CapsuleClassifier(8, 3)(torch.zeros(1, 8)).abs().sum()
    tensor(0., grad_fn=<SumBackward0>)
    """

    norm: Norm = "capsule"
    gamma: float = 0.0

    def __init__(
        self, in_features: int, num_classes: int, *, num_heads: int = 1, tau: float = 16.0, momentum: float = 0.9
    ) -> None:
        super().__init__()
        self.average = FeatureAverage(in_features, num_heads=num_heads, momentum=momentum)
        self.weight = _initial_weight(in_features, num_classes)
        self.num_heads = num_heads
        self.tau = checks.number("tau", tau, above=0)

    def forward(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        return _observed_logits(self, features)

    def extra_repr(self) -> str:
        return f"{_sizes(self)}, num_heads={self.num_heads}, tau={self.tau:g}"


class FoldedClassifier(nn.Module):
    """One plain matrix on features, normalized or not: what every adjusted classifier comes down to.

    logits = weight . norm(x - center) + bias, each of the three optional. `tailwise.adjust` makes it from a trained
    classifier, everything folded in. All tensors are buffers: nothing here is trained, no average is needed. Features
    of any precision are taken; the logits are in the weight's.

    Args:
        weight: [C, D].
        num_heads: K of the normalization.
        norm: "unit" and "capsule" normalize the features of each head, "none" takes them as they are.
        bias: [C] or None; -inf for a class that is never to be predicted.
        center: what is subtracted from the features first, [D], or None.

    Raises:
        InputError: a weight that is no matrix, D not divisible by K, an unknown norm, a bias or center of another size.

    Limit case: norm "none" without center is a linear classifier.

    >>> FoldedClassifier(torch.eye(2), num_heads=1, norm="unit")(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    weight: Tensor
    bias: Tensor | None
    center: Tensor | None

    def __init__(
        self,
        weight: Float[Tensor, "C D"],
        *,
        num_heads: int = 1,
        norm: FoldedNorm = "none",
        bias: Float[Tensor, " C"] | None = None,
        center: Float[Tensor, " D"] | None = None,
    ) -> None:
        super().__init__()
        checks.matrix("weight", weight.shape)
        checks.divides(checks.whole("num_heads", num_heads), weight.shape[1])
        checks.choice("norm", norm, get_args(FoldedNorm))
        for name, given, size in (("bias", bias, weight.shape[0]), ("center", center, weight.shape[1])):
            if given is not None and given.shape != (size,):
                raise checks.InputError(f"{name}: expected shape [{size}], got {list(given.shape)}")
        for name, tensor in (("weight", weight), ("bias", bias), ("center", center)):
            self.register_buffer(name, None if tensor is None else tensor.detach().to(weight.dtype, copy=True))
        self.num_heads = num_heads
        self.norm = norm

    def forward(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        checks.feature_shape(features.shape, self.weight.shape[1])
        x = features if self.center is None else features - self.center
        if self.norm != "none":
            x = scale_features(x, self.num_heads, self.norm).flatten(1)
        return F.linear(x.to(product_dtype(self.weight)), self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, num_heads={self.num_heads}, norm={self.norm}"


# What total direct effect takes: `weight`, `average`, `num_heads`, `tau`, `gamma` and `norm` of Eq. 7.
NormalizedClassifier = CausalClassifier | CosineClassifier | CapsuleClassifier


def _initial_weight(in_features: int, num_classes: int) -> nn.Parameter:
    # U(-1/sqrt(D), 1/sqrt(D)) with the full D, not D/K, as the authors have it
    bound = 1 / math.sqrt(checks.whole("in_features", in_features))
    return nn.Parameter(torch.empty(checks.whole("num_classes", num_classes), in_features).uniform_(-bound, bound))


def _observed_logits(classifier: NormalizedClassifier, features: Tensor) -> Tensor:
    checks.feature_shape(features.shape, classifier.weight.shape[1])
    classifier.average(features)
    return normalized_logits(
        features,
        classifier.weight,
        num_heads=classifier.num_heads,
        tau=classifier.tau,
        gamma=classifier.gamma,
        norm=classifier.norm,
    )


def _sizes(classifier: NormalizedClassifier) -> str:
    return f"{classifier.weight.shape[1]}, {classifier.weight.shape[0]}"
