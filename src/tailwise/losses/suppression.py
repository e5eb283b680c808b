"""Losses that spare rare classes: samples of frequent classes push their logits down less, or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailwise import checks, ranks
from tailwise.counts import ClassCounts
from tailwise.losses.plain import Reduction, Target, cross_entropy, images_per_class, one_vs_all, reduced
from tailwise.shapes import Bool, Float, Int


def equalization(
    logits: Float[Tensor, "N C"],
    target: Int[Tensor, " N"],
    counts: ClassCounts | Tensor,
    *,
    threshold: float = 5e-3,
    gamma: float = 0.9,
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """-log (e^{z_y} / sum_k w_k e^{z_k}), w_k = 1 - beta [f_k < threshold] [k != y] (softmax EQL; Tan et al. 2020).

    f_k is the fraction of training images that are of class k, beta is 1 with probability gamma and 0 otherwise. The
    paper gives beta no index; here it is drawn for each sample and class, as in the code that the first author posted.
    A class without an image is rare, not masked.

    Args:
        logits: [N, C].
        target: classes, [N].
        counts: training images per class, as `ClassCounts` or a tensor [C] on the device of the logits.
        threshold: lambda of the paper: a class with a smaller fraction of the training images is rare; at least 0.
        gamma: how likely a rare class is left out of a sample of another class, in [0, 1].
        generator: of the draws, on the device of the logits; torch's own generator of that device if None.
        reduction: "mean" over samples, or "none".

    Raises:
        InputError: counts of another number of classes, threshold or gamma outside its range.

    Limit cases: gamma = 0 or threshold = 0 is cross-entropy.

    >>> logits, target = torch.zeros(1, 3), torch.tensor([0])
    >>> equalization(logits, target, ClassCounts((400, 300, 1)), gamma=1.0)  # the rare class does not count: log 2
    tensor(0.6931)
    """
    checks.number("threshold", threshold, at_least=0)
    _probability("gamma", gamma)
    images = images_per_class(counts, logits)
    rare = images < threshold * images.sum()
    drawn = torch.rand(logits.shape, generator=generator, device=logits.device) < gamma
    others = torch.ones_like(logits, dtype=torch.bool).scatter(1, target[:, None], False)
    return cross_entropy(logits.masked_fill(rare & drawn & others, -torch.inf), target, reduction=reduction)


def equalization_sigmoid(
    logits: Float[Tensor, "N C"],
    target: Target,
    counts: ClassCounts | Tensor,
    *,
    foreground: Bool[Tensor, " N"] | None = None,
    threshold: float = 1.76e-3,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """-sum_j w_j log p_j with w_j = 1 - E [f_j < threshold] (1 - y_j) (EQL; Tan et al. 2020, as used in detection).

    p_j = sigmoid(z_j) where y_j = 1, 1 - sigmoid(z_j) where y_j = 0, and f_j as in `equalization`. E is 1 for an object
    and 0 for background, which alone tells rare classes what they are not.

    Args:
        logits: [N, C], without a logit for background.
        target: classes, [N], or how much of each class there is, [N, C].
        counts: training images per class, as `ClassCounts` or a tensor [C] on the device of the logits.
        foreground: E of each sample, [N]; where it is false no class is meant, whatever class the target names. None:
            there is no background.
        threshold: lambda of the paper: a class with a smaller fraction of the training images is rare; at least 0.
        reduction: "mean" over samples, or "none".

    Raises:
        InputError: counts of another number of classes, a threshold below 0.

    Limit case: threshold = 0 is binary cross-entropy, summed over classes.

    >>> logits, target = torch.zeros(1, 3), torch.tensor([0])
    >>> equalization_sigmoid(logits, target, ClassCounts((999, 999, 1)))  # 2 log 2
    tensor(1.3863)
    """
    checks.number("threshold", threshold, at_least=0)
    images = images_per_class(counts, logits)
    rare = images < threshold * images.sum()
    meant = target if target.is_floating_point() else F.one_hot(target, logits.shape[1]).to(images.dtype)
    objects = torch.ones_like(meant[:, 0], dtype=torch.bool) if foreground is None else foreground
    meant = meant * objects[:, None]
    yes, no = one_vs_all(logits)
    losses = meant * yes + (1 - meant) * no * ~(objects[:, None] & rare)
    return reduced(losses.sum(dim=1), reduction)


def seesaw(
    logits: Float[Tensor, "N C"],
    target: Int[Tensor, " N"],
    counts: ClassCounts | Tensor,
    *,
    p: float = 0.8,
    q: float = 2.0,
    allow_unseen: bool = False,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """-log (e^{z_i} / sum_j S_ij e^{z_j}), S_ij = M_ij C_ij, i the target (seesaw loss; Wang et al. 2021).

    Mitigation M_ij = min(1, n_j / n_i)^p spares classes rarer than the target; compensation
    C_ij = max(1, s_j / s_i)^q, s = softmax(z), takes that back where a class is predicted instead of the target. Both
    are constants to the gradient, as in the authors' code. That code also holds s_i to at least 0.01; here the ratio is
    the exponential of a difference of logits and needs no bound.

    Args:
        logits: [N, C]; of a cosine classifier in the paper.
        target: classes, [N].
        counts: training images per class, as `ClassCounts` or a tensor [C] on the device of the logits.
        p: of the mitigation, at least 0.
        q: of the compensation, at least 0.
        allow_unseen: count a class without a training image as one image; otherwise it is masked, and must not be a
            target.
        reduction: "mean" over samples, or "none".

    Raises:
        InputError: counts of another number of classes, p or q below 0.

    Limit case: p = 0 and q = 0 is cross-entropy, where no class is masked; p = 1 and q = 0 is balanced softmax for
    samples of the most frequent class.

    >>> logits, target = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    >>> seesaw(logits, target, ClassCounts((4, 1)), p=1.0)  # log(1 + 1/4 e^-1)
    tensor(0.0880)
    """
    checks.number("p", p, at_least=0)
    checks.number("q", q, at_least=0)
    images = images_per_class(counts, logits)
    if allow_unseen:
        images = images.clamp_min(1)
    present = images > 0
    log_images = images.where(present, 1).log()
    log_mitigation = p * (log_images - log_images[target][:, None]).clamp_max(0)
    z = logits.detach()
    log_compensation = q * (z - z.gather(1, target[:, None])).clamp_min(0)
    weighed = (logits + log_mitigation + log_compensation).masked_fill(~present, -torch.inf)
    return cross_entropy(weighed, target, reduction=reduction)


class Equalization(nn.Module):
    """`equalization` as a module; the counts are a buffer, and torch's own generator draws."""

    counts: Tensor

    def __init__(
        self, counts: ClassCounts, *, threshold: float = 5e-3, gamma: float = 0.9, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.register_buffer("counts", torch.tensor(counts.per_class))
        self.threshold = checks.number("threshold", threshold, at_least=0)
        self.gamma = _probability("gamma", gamma)
        self.reduction: Reduction = reduction

    def forward(self, logits: Float[Tensor, "N C"], target: Int[Tensor, " N"]) -> Float[Tensor, "..."]:
        return equalization(
            logits, target, self.counts, threshold=self.threshold, gamma=self.gamma, reduction=self.reduction
        )


class EqualizationSigmoid(nn.Module):
    """`equalization_sigmoid` as a module; the counts are a buffer."""

    counts: Tensor

    def __init__(self, counts: ClassCounts, *, threshold: float = 1.76e-3, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.register_buffer("counts", torch.tensor(counts.per_class))
        self.threshold = checks.number("threshold", threshold, at_least=0)
        self.reduction: Reduction = reduction

    def forward(
        self, logits: Float[Tensor, "N C"], target: Target, foreground: Bool[Tensor, " N"] | None = None
    ) -> Float[Tensor, "..."]:
        return equalization_sigmoid(
            logits, target, self.counts, foreground=foreground, threshold=self.threshold, reduction=self.reduction
        )


class Seesaw(nn.Module):
    """`seesaw` as a module, with the counts of the training set, or with its own count of what it was trained on.

    Given a number of classes instead of counts, it counts the targets it meets in train mode while gradients are
    recorded, over all processes, as Wang et al. do. The counts are a buffer; those of a step hold from the next step
    on, so that micro-batches and processes change nothing, and a class not met so far counts as one image.

    Args:
        counts: training images per class, or the number of classes.
        p, q, allow_unseen, reduction: as in `seesaw`.
        update_every: forwards per optimiser step, for gradient accumulation. May be reassigned between steps.

    Raises:
        InputError: a value outside its range.

    >>> loss = Seesaw(3)
    >>> value = loss(torch.zeros(2, 3), torch.tensor([0, 2]))
    >>> loss.counts
    tensor([1, 0, 1])
    """

    counts: Tensor

    def __init__(
        self,
        counts: ClassCounts | int,
        *,
        p: float = 0.8,
        q: float = 2.0,
        allow_unseen: bool = False,
        update_every: int = 1,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.counting = not isinstance(counts, ClassCounts)
        per_class = counts.per_class if isinstance(counts, ClassCounts) else (0,) * checks.whole("counts", counts)
        self.register_buffer("counts", torch.tensor(per_class))
        self.p = checks.number("p", p, at_least=0)
        self.q = checks.number("q", q, at_least=0)
        self.allow_unseen = allow_unseen or self.counting
        self.update_every = checks.whole("update_every", update_every)
        self.reduction: Reduction = reduction
        self._pending: list[Tensor] = []  # counts of the step's forwards so far
        self._held = False

    @contextmanager
    def hold(self) -> Iterator[None]:
        """No forward inside counts: for a repeated forward on the same batch (SAM's second pass)."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    def forward(self, logits: Float[Tensor, "N C"], target: Int[Tensor, " N"]) -> Float[Tensor, "..."]:
        loss = seesaw(
            logits, target, self.counts, p=self.p, q=self.q, allow_unseen=self.allow_unseen, reduction=self.reduction
        )
        if self.counting and self.training and not self._held and torch.is_grad_enabled():
            self._pending.append(torch.zeros_like(self.counts).scatter_add(0, target, torch.ones_like(target)))
            if len(self._pending) >= self.update_every:
                # once a step: processes may have different numbers of micro-batches, and a sum that one skips hangs all
                self.counts += ranks.total(torch.stack(self._pending).sum(dim=0))
                self._pending.clear()
        return loss


def _probability(argument: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise checks.InputError(f"{argument}: expected a number in [0, 1], got {value!r}")
    return value
