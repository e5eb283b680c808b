"""Losses that know how frequent the classes are, and add that to the logits while training."""

import torch
from torch import Tensor, nn

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.losses.plain import Reduction, Target, cross_entropy, images_per_class
from tailwise.shapes import Float


def logit_adjusted_cross_entropy(
    logits: Float[Tensor, "N C"],
    target: Target,
    counts: ClassCounts | Tensor,
    *,
    temperature: float = 1.0,
    allow_unseen: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy of logits + temperature * log prior (Menon et al. 2021, Eq. 10).

    The network makes up for what is added, so that its own logits, which alone are used at inference, rank classes as
    if all were equally frequent.

    Args:
        logits: [N, C].
        target: classes, [N], or distributions over them, [N, C].
        counts: training images per class, as `ClassCounts` or a tensor [C] on the device of the logits.
        temperature: tau of the paper, at least 0.
        allow_unseen: give a class without a training image the prior of one image; otherwise it is masked, and must not
            be a target.
        reduction: "mean" over samples, or "none".

    Raises:
        InputError: counts of another number of classes, a temperature below 0.

    Limit cases: temperature 0 or equal counts give cross-entropy, where no class is masked.

    >>> logits, target = torch.zeros(1, 2), torch.tensor([1])
    >>> logit_adjusted_cross_entropy(logits, target, ClassCounts((3, 1))).exp()  # 1 / prior
    tensor(4.)
    """
    checks.number("temperature", temperature, at_least=0)
    images = images_per_class(counts, logits)
    if allow_unseen:
        images = images.clamp_min(1)
    log_prior = (images / images.sum()).log()
    # 0 * log 0 would be NaN; a class without an image stays masked at temperature 0, too
    adjusted = (temperature * log_prior).where(images > 0, log_prior)
    return cross_entropy(logits + adjusted, target, reduction=reduction)


def balanced_softmax(
    logits: Float[Tensor, "N C"],
    target: Target,
    counts: ClassCounts | Tensor,
    *,
    allow_unseen: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """-log (n_y e^{z_y} / sum_c n_c e^{z_c}) (Ren et al. 2020): logit adjustment at temperature 1.

    Arguments and errors as in `logit_adjusted_cross_entropy`.

    Limit case: equal counts give cross-entropy.

    >>> balanced_softmax(torch.zeros(1, 2), torch.tensor([1]), ClassCounts((3, 1))).exp()
    tensor(4.)
    """
    return logit_adjusted_cross_entropy(logits, target, counts, allow_unseen=allow_unseen, reduction=reduction)


def vs_loss(
    logits: Float[Tensor, "N C"],
    target: Target,
    counts: ClassCounts | Tensor,
    *,
    gamma: float = 0.15,
    temperature: float = 1.25,
    allow_unseen: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Vector scaling: cross-entropy of (n_c / n_max)^gamma z_c + temperature * log prior_c (Kini et al. 2021).

    What is added to a logit speeds up the start, what it is multiplied with still moves the margin once every training
    image is right. The weights omega of the paper's general form are 1.

    Args:
        logits: [N, C].
        target: classes, [N], or distributions over them, [N, C].
        counts: training images per class, as `ClassCounts` or a tensor [C] on the device of the logits.
        gamma: of the factors, at least 0.
        temperature: tau of the paper, at least 0.
        allow_unseen: count a class without a training image as one image; otherwise it is masked, and must not be a
            target.
        reduction: "mean" over samples, or "none".

    Raises:
        InputError: counts of another number of classes, gamma or temperature below 0.

    Limit cases: gamma = 0 is `logit_adjusted_cross_entropy`, temperature = 0 as well is cross-entropy, where no class
    is masked.

    >>> logits, target = torch.tensor([[0.0, 2.0]]), torch.tensor([1])
    >>> vs_loss(logits, target, ClassCounts((4, 1)), gamma=0.5, temperature=0.0)  # cross-entropy of (0, 1)
    tensor(0.3133)
    """
    checks.number("gamma", gamma, at_least=0)
    images = images_per_class(counts, logits)
    if allow_unseen:
        images = images.clamp_min(1)
    # masked by its prior, and 0 times -inf would be NaN
    scaled = (images / images.amax()) ** gamma * logits.masked_fill(images == 0, 0)
    return logit_adjusted_cross_entropy(scaled, target, images, temperature=temperature, reduction=reduction)


class LogitAdjustedCrossEntropy(nn.Module):
    """`logit_adjusted_cross_entropy` as a module; the counts are a buffer."""

    counts: Tensor

    def __init__(
        self,
        counts: ClassCounts,
        *,
        temperature: float = 1.0,
        allow_unseen: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.register_buffer("counts", torch.tensor(counts.per_class))
        self.temperature = checks.number("temperature", temperature, at_least=0)
        self.allow_unseen = allow_unseen
        self.reduction: Reduction = reduction

    def forward(self, logits: Float[Tensor, "N C"], target: Target) -> Float[Tensor, "..."]:
        return logit_adjusted_cross_entropy(
            logits,
            target,
            self.counts,
            temperature=self.temperature,
            allow_unseen=self.allow_unseen,
            reduction=self.reduction,
        )


class BalancedSoftmax(nn.Module):
    """`balanced_softmax` as a module; the counts are a buffer."""

    counts: Tensor

    def __init__(self, counts: ClassCounts, *, allow_unseen: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.register_buffer("counts", torch.tensor(counts.per_class))
        self.allow_unseen = allow_unseen
        self.reduction: Reduction = reduction

    def forward(self, logits: Float[Tensor, "N C"], target: Target) -> Float[Tensor, "..."]:
        return balanced_softmax(logits, target, self.counts, allow_unseen=self.allow_unseen, reduction=self.reduction)


class VSLoss(nn.Module):
    """`vs_loss` as a module; the counts are a buffer."""

    counts: Tensor

    def __init__(
        self,
        counts: ClassCounts,
        *,
        gamma: float = 0.15,
        temperature: float = 1.25,
        allow_unseen: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.register_buffer("counts", torch.tensor(counts.per_class))
        self.gamma = checks.number("gamma", gamma, at_least=0)
        self.temperature = checks.number("temperature", temperature, at_least=0)
        self.allow_unseen = allow_unseen
        self.reduction: Reduction = reduction

    def forward(self, logits: Float[Tensor, "N C"], target: Target) -> Float[Tensor, "..."]:
        return vs_loss(
            logits,
            target,
            self.counts,
            gamma=self.gamma,
            temperature=self.temperature,
            allow_unseen=self.allow_unseen,
            reduction=self.reduction,
        )
