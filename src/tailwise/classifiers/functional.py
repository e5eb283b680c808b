"""The classifiers as functions `(features [N, D], weight [C, D]) -> logits [N, C]`."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tailwise import checks
from tailwise.shapes import Float

Norm = Literal["unit", "capsule"]


def unit(x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """x / |x| over the last axis; a zero vector stays 0, with finite gradient.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    norm = _norm(x)
    return (x / norm.where(norm > 0, 1)).to(x.dtype)


def squash(x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """x / (|x| + 1) over the last axis: the capsule's squashing |x| / (1 + |x|) of the unit vector.

    >>> squash(torch.tensor([3.0, 4.0]))
    tensor([0.5000, 0.6667])
    """
    return (x / (_norm(x) + 1)).to(x.dtype)


def _norm(x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows 1"]:
    # Features come in any scale: without this, squares overflow (above 256 in half precision) or vanish.
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    largest = largest.where(largest > 0, 1)
    norm: Tensor = torch.linalg.vector_norm(x / largest, dim=-1, keepdim=True, dtype=_wide(x))
    return norm * largest


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def heads(x: Float[Tensor, "N D"], num_heads: int) -> Float[Tensor, "N K d"]:
    """Split the features of each row into `num_heads` consecutive parts of equal width."""
    checks.divides(checks.whole("num_heads", num_heads), x.shape[1])
    return x.view(x.shape[0], num_heads, x.shape[1] // num_heads)  # not len(x): torch.export keeps N free


def scale_features(features: Float[Tensor, "N D"], num_heads: int, norm: Norm) -> Float[Tensor, "N K d"]:
    """The features of each head, on the unit sphere (`unit`) or inside the unit ball (`capsule`)."""
    return (unit if norm == "unit" else squash)(heads(features, num_heads))


def scale_weight(weight: Float[Tensor, "C D"], num_heads: int, gamma: float) -> Float[Tensor, "C K d"]:
    """w_k / (|w_k| + gamma) of each class and head; a zero weight stays 0."""
    scaled: Tensor = _ScaledWeight.apply(heads(weight, num_heads), gamma, weight.dtype)
    return scaled


class _ScaledWeight(torch.autograd.Function):
    """w / (|w| + gamma) over the last axis, with as few passes over its C x D numbers as can be.

    Left to autograd, they would add a third to the whole step of a wide classifier. The result comes in the type that
    the product wants, so that autocast need not convert it; the gradient g is g / e - w (g . w) / (e^2 |w|) with
    e = |w| + gamma. Derivatives of higher order are right, too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, gamma: float, dtype: torch.dtype) -> Tensor:
        inverse = 1 / _norm_and_energy(w, gamma)[1]  # multiplied with: so many divisions would take longer
        if dtype == torch.bfloat16:  # it has float32's range, so may be converted first: half the bytes
            return w.to(dtype, copy=True).mul_(inverse.to(dtype))
        return (w * inverse).to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, torch.dtype], output: Tensor) -> None:  # noqa: ARG004  # torch's form
        ctx.save_for_backward(inputs[0])
        ctx.gamma = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (w,) = ctx.saved_tensors
        norm, energy = _norm_and_energy(w, ctx.gamma)
        along = norm.where(norm > 0, 1) * energy
        if torch.is_grad_enabled():  # for a derivative of higher order: nothing may be overwritten
            change = gradient / energy
            change = change - w * ((change * w).sum(dim=-1, keepdim=True) / along)
        else:
            change = gradient.to(norm.dtype, copy=True).mul_(1 / energy)
            along = torch.einsum("ckd,ckd->ck", change, w.to(norm.dtype)).unsqueeze(-1) / along
            change.addcmul_(w, along, value=-1)
        return change.to(w.dtype), None, None


def _norm_and_energy(w: Float[Tensor, "C K d"], gamma: float) -> tuple[Tensor, Tensor]:
    """|w_k|, and |w_k| + gamma or 1 where that is 0, in float32 at least."""
    norm: Tensor = torch.linalg.vector_norm(w, dim=-1, keepdim=True, dtype=_wide(w))
    energy = norm + gamma
    return norm, energy.where(energy > 0, 1)


def normalized_logits(
    features: Float[Tensor, "N D"],
    weight: Float[Tensor, "C D"],
    *,
    num_heads: int,
    tau: float,
    gamma: float,
    norm: Norm = "unit",
) -> Float[Tensor, "N C"]:
    """Logits of the multi-head normalized classifier, Tang et al. 2020, Eq. 7.

    y = tau / K * sum_k  w_k . x_k / ((|w_k| + gamma) |x_k|), with |x_k| + 1 for |x_k| under norm "capsule"
    (supplement B). A head whose features or weights are all 0 adds nothing.

    Args:
        features: [N, D], D divisible by `num_heads`.
        weight: one row per class, [C, D].
        num_heads: K.
        tau: scale of the logits, an inverse temperature.
        gamma: class-agnostic baseline energy, in units of the weight norm.
        norm: how features are normalized.

    Raises:
        InputError: D not divisible by K, tau not above 0, gamma below 0.

    Limit cases: gamma = 0 and K = 1 is the cosine classifier; the scale of the features changes nothing
    under norm "unit".

    >>> normalized_logits(torch.tensor([[5.0, 0.0]]), torch.eye(2), num_heads=1, tau=16.0, gamma=0.0)
    tensor([[16.,  0.]])
    """
    checks.number("tau", tau, above=0)
    checks.number("gamma", gamma, at_least=0)
    x = scale_features(features, num_heads, norm) * (tau / num_heads)
    w: Tensor = _ScaledWeight.apply(heads(weight, num_heads), gamma, product_dtype(weight))
    return F.linear(x.flatten(1), w.flatten(1))


def product_dtype(weight: Tensor) -> torch.dtype:
    """What a product with this weight is taken in: what autocast says, if it is on, else the weight's own type.

    Features are converted to it last, after they were normalized: nothing is lost or overflows on the way.
    """
    kind = weight.device.type
    on = torch.is_autocast_enabled(kind) and weight.dtype == torch.float32
    return torch.get_autocast_dtype(kind) if on else weight.dtype


def causal_logits(
    features: Float[Tensor, "N D"],
    weight: Float[Tensor, "C D"],
    *,
    num_heads: int = 2,
    tau: float = 16.0,
    gamma: float = 1 / 32,
) -> Float[Tensor, "N C"]:
    """Eq. 7 of Tang et al. 2020 with the paper's defaults; see `normalized_logits`."""
    return normalized_logits(features, weight, num_heads=num_heads, tau=tau, gamma=gamma)


def cosine_logits(
    features: Float[Tensor, "N D"], weight: Float[Tensor, "C D"], *, num_heads: int = 1, tau: float = 16.0
) -> Float[Tensor, "N C"]:
    """Eq. 7 with gamma = 0: tau times the mean cosine over heads; see `normalized_logits`."""
    return normalized_logits(features, weight, num_heads=num_heads, tau=tau, gamma=0.0)


def capsule_logits(
    features: Float[Tensor, "N D"], weight: Float[Tensor, "C D"], *, num_heads: int = 1, tau: float = 16.0
) -> Float[Tensor, "N C"]:
    """Squashed features on unit weights (Tang et al. 2020, supplement B); see `normalized_logits`."""
    return normalized_logits(features, weight, num_heads=num_heads, tau=tau, gamma=0.0, norm="capsule")
