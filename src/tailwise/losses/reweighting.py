"""Losses that weigh samples: by how hard they are, or by how rare their class is."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.losses.plain import Reduction, Target, cross_entropy, images_per_class, one_vs_all, reduced
from tailwise.shapes import Float


def focal(
    logits: Float[Tensor, "N C"],
    target: Target,
    *,
    gamma: float = 2.0,
    detach: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """-sum_c q_c (1 - p_c)^gamma log p_c, p = softmax(logits) (Lin et al. 2017, Eq. 4, in its softmax form).

    Args:
        logits: [N, C].
        target: classes, [N], or distributions over them, [N, C].
        gamma: how much easy samples count for less, at least 0.
        detach: no gradient through (1 - p)^gamma, as some published code has it; the loss is the same, its gradient
            is not.
        reduction: "mean" over samples, or "none".

    Raises:
        InputError: gamma below 0.

    Limit case: gamma = 0 is cross-entropy.

    >>> focal(torch.zeros(1, 2), torch.tensor([0]), gamma=1.0)  # half of log 2
    tensor(0.3466)
    """
    checks.number("gamma", gamma, at_least=0)
    log_p = F.log_softmax(logits, dim=1)
    soft = target.is_floating_point()
    # before the power, of which a masked class's infinity would make the gradient NaN
    log_p = log_p.masked_fill(target == 0, 0) if soft else log_p.gather(1, target[:, None])
    # 1 - p from log p without cancellation; its power has no finite slope at 0 below gamma = 1, hence the bound
    ease = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny) ** gamma
    losses = -(ease.detach() if detach else ease) * log_p
    if soft:
        losses = target * losses
    return reduced(losses.sum(dim=1), reduction)


def class_balanced_weights(counts: Float[Tensor, " C"], *, beta: float = 0.9999) -> Float[Tensor, " C"]:
    """(1 - beta) / (1 - beta^n_c), the inverse of the effective number of images (Cui et al. 2019).

    Args:
        counts: training images n_c per class, [C].
        beta: in [0, 1).

    Returns:
        [C]: 0 for a class without an image, and 1 on average over the others.

    Raises:
        InputError: beta outside its range.

    Limit cases: beta = 0 weighs all classes alike; beta close to 1 weighs them by 1 / n_c.

    >>> class_balanced_weights(torch.tensor([4.0, 1.0, 0.0]), beta=0.5)
    tensor([0.6957, 1.3043, 0.0000])
    """
    checks.number("beta", beta, at_least=0, below=1)
    present = counts > 0
    # expm1 and log keep the digits that 1 - beta^n would lose; the (1 - beta) cancels in the mean
    log_beta = math.log(beta) if beta else -math.inf
    weights = (-1 / torch.expm1(counts * log_beta)).where(present, 0)
    return weights * (present.sum() / weights.sum())


def class_balanced(
    logits: Float[Tensor, "N C"],
    target: Target,
    counts: ClassCounts | Tensor,
    *,
    beta: float = 0.9999,
    gamma: float = 0.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Each sample's focal loss times its class's weight (Cui et al. 2019, in its softmax form).

    Args:
        logits: [N, C].
        target: classes, [N], or distributions over them, [N, C].
        counts: training images per class, as `ClassCounts` or a tensor [C] on the device of the logits.
        beta: of the weights, see `class_balanced_weights`.
        gamma: of the focal loss; 0 is class-balanced cross-entropy.
        reduction: "mean" over samples, with no division by the sum of weights, or "none".

    Raises:
        InputError: counts of another number of classes, beta or gamma outside its range.

    Limit case: beta = 0 and gamma = 0 is cross-entropy.

    >>> class_balanced(torch.zeros(1, 3), torch.tensor([1]), ClassCounts((4, 1, 0)), beta=0.5)  # 1.3043 log 3
    tensor(1.4330)
    """
    weights = class_balanced_weights(images_per_class(counts, logits), beta=beta)
    whole = target.is_floating_point()
    meant = target * weights if whole else target  # of a mixture, each class with its own weight
    if gamma:
        losses = focal(logits, meant, gamma=gamma, reduction="none")
    else:
        losses = cross_entropy(logits, meant, reduction="none")
    return reduced(losses if whole else weights[target] * losses, reduction)


def class_balanced_sigmoid(
    logits: Float[Tensor, "N C"],
    target: Target,
    counts: ClassCounts | Tensor,
    *,
    beta: float = 0.9999,
    gamma: float = 0.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """-w_y sum_c (1 - p_c)^gamma log p_c, p_c = sigmoid(z_c) of the target and sigmoid(-z_c) else (Cui et al. 2019).

    Every class is a question of its own, as in the paper's focal and sigmoid losses. Cui et al. start the classifier's
    bias at -log(C - 1), so that each p is 1 / C: at 0, all the classes that are not meant would make up the loss.

    Arguments and errors as in `class_balanced`.

    Limit case: beta = 0 and gamma = 0 is binary cross-entropy, summed over classes.

    >>> class_balanced_sigmoid(torch.zeros(1, 3), torch.tensor([1]), ClassCounts((4, 1, 0)), beta=0.5)  # 1.3043 log 8
    tensor(2.7123)
    """
    checks.number("gamma", gamma, at_least=0)
    weights = class_balanced_weights(images_per_class(counts, logits), beta=beta)
    shares = target if target.is_floating_point() else F.one_hot(target, logits.shape[1])
    meant = shares * weights  # of a mixture, each class with its own weight
    others = meant.sum(dim=1, keepdim=True) - meant
    yes, no = one_vs_all(logits, gamma)
    return reduced((meant * yes + others * no).sum(dim=1), reduction)


class Focal(nn.Module):
    """`focal` as a module."""

    def __init__(self, *, gamma: float = 2.0, detach: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.gamma = checks.number("gamma", gamma, at_least=0)
        self.detach = detach
        self.reduction: Reduction = reduction

    def forward(self, logits: Float[Tensor, "N C"], target: Target) -> Float[Tensor, "..."]:
        return focal(logits, target, gamma=self.gamma, detach=self.detach, reduction=self.reduction)


class ClassBalanced(nn.Module):
    """`class_balanced` as a module; the counts are a buffer."""

    counts: Tensor

    def __init__(
        self, counts: ClassCounts, *, beta: float = 0.9999, gamma: float = 0.0, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.register_buffer("counts", torch.tensor(counts.per_class))
        self.beta = checks.number("beta", beta, at_least=0, below=1)
        self.gamma = checks.number("gamma", gamma, at_least=0)
        self.reduction: Reduction = reduction

    def forward(self, logits: Float[Tensor, "N C"], target: Target) -> Float[Tensor, "..."]:
        return class_balanced(logits, target, self.counts, beta=self.beta, gamma=self.gamma, reduction=self.reduction)


class ClassBalancedSigmoid(nn.Module):
    """`class_balanced_sigmoid` as a module; the counts are a buffer."""

    counts: Tensor

    def __init__(
        self, counts: ClassCounts, *, beta: float = 0.9999, gamma: float = 0.0, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.register_buffer("counts", torch.tensor(counts.per_class))
        self.beta = checks.number("beta", beta, at_least=0, below=1)
        self.gamma = checks.number("gamma", gamma, at_least=0)
        self.reduction: Reduction = reduction

    def forward(self, logits: Float[Tensor, "N C"], target: Target) -> Float[Tensor, "..."]:
        return class_balanced_sigmoid(
            logits, target, self.counts, beta=self.beta, gamma=self.gamma, reduction=self.reduction
        )
