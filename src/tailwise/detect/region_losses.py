"""What a region classifier is trained by. Target 0 is background; each loss says how it tells background from classes.

A loss has `num_outputs` logits for C classes, and `scores` turns logits into the probability of each class. Where
background is a class of one softmax, `background` is its column, and Eq. 9 applies; None where it is none.
"""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.losses import BalancedSoftmax, EqualizationSigmoid, Seesaw
from tailwise.losses.plain import images_per_class
from tailwise.shapes import Bool, Float, Int


@runtime_checkable
class RegionLoss(Protocol):
    """(logits [N, num_outputs], target [N] in 0..C) -> mean over regions, 0 where there is none."""

    num_outputs: int
    background: int | None

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor: ...
    def scores(self, logits: Tensor) -> Tensor:
        """Probability of each class, [N, C], class c being label c + 1."""


class WithBackground(nn.Module):
    """Background is class 0 of one softmax, and of the loss.

    Args:
        num_classes: C.
        loss: (logits [N, C + 1], target [N]) -> a loss of each sample, [N], such as `CrossEntropy(reduction="none")`
            or `Focal(reduction="none")`.

    >>> loss = WithBackground(2, tailwise.losses.CrossEntropy(reduction="none"))
    >>> loss(torch.zeros(4, 3), torch.tensor([0, 0, 1, 2])).exp()
    tensor(3.)
    """

    background: int | None = 0

    def __init__(self, num_classes: int, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.num_outputs = checks.whole("num_classes", num_classes) + 1
        self.loss = loss

    def forward(self, logits: Float[Tensor, "N C1"], target: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        return _mean(self.loss(logits, target))

    def scores(self, logits: Float[Tensor, "N C1"]) -> Float[Tensor, "N C"]:
        return logits.softmax(dim=1)[:, 1:]


def balanced_with_background(counts: ClassCounts) -> WithBackground:
    """Balanced softmax among the classes; background is as likely as without it.

    -log (n_y e^{z_y} / sum_c n_c e^{z_c}) (Ren et al. 2020), where background counts as much as the mean class: of
    what inference sees, the classes share their part as if all were equally frequent, and background keeps its own.

    Limit case: equal counts give cross-entropy over background and classes.

    >>> loss = balanced_with_background(ClassCounts((3, 1)))
    >>> loss.loss.counts
    tensor([2., 3., 1.])
    """
    loss = BalancedSoftmax(counts, reduction="none")
    images = torch.tensor(counts.per_class, dtype=torch.float32)
    loss.counts = torch.cat([images.mean()[None], images])
    return WithBackground(counts.num_classes, loss)


class EachAgainstTheRest(nn.Module):
    """A sigmoid for each class; background is where all of them say no.

    Almost every class is absent of almost every region. Logits of 0 therefore mean `prior`, not one half: from one
    half, a thousand sigmoids start with a loss of a thousand times log 2, of which training at LVIS's learning rate
    diverges. Detectors with sigmoids start the classifier's bias there; here it is a constant: any classifier will do.

    Args:
        num_classes: C.
        loss: (logits [N, C], target [N] in 0..C-1, foreground [N]) -> a loss of each sample, [N], such as
            `EqualizationSigmoid(counts, reduction="none")` or `Federated(counts)`.
        prior: the probability of a class whose logit is 0, between 0 and 1.

    Raises:
        InputError: a value outside its range.

    Limit case: a prior of one half leaves logits as they are.

    >>> equalization = tailwise.losses.EqualizationSigmoid(ClassCounts((9, 9)), reduction="none")
    >>> loss = EachAgainstTheRest(2, equalization, prior=0.5)
    >>> loss(torch.zeros(4, 2), torch.tensor([0, 0, 1, 2]))  # 2 log 2
    tensor(1.3863)
    >>> EachAgainstTheRest(2, equalization).scores(torch.zeros(1, 2))
    tensor([[0.0100, 0.0100]])
    """

    background: int | None = None

    def __init__(
        self, num_classes: int, loss: Callable[[Tensor, Tensor, Tensor], Tensor], *, prior: float = 0.01
    ) -> None:
        super().__init__()
        self.num_outputs = checks.whole("num_classes", num_classes)
        self.loss = loss
        checks.number("prior", prior, above=0, below=1)
        self.log_odds = math.log(prior / (1 - prior))

    def forward(self, logits: Float[Tensor, "N C"], target: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        return _mean(self.loss(logits + self.log_odds, (target - 1).clamp_min(0), target > 0))

    def scores(self, logits: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        return (logits + self.log_odds).sigmoid()


def equalization_with_background(
    counts: ClassCounts, images: int, *, threshold: float = 1.76e-3, prior: float = 0.001
) -> EachAgainstTheRest:
    """Equalization loss as used in detection (Tan et al. 2020): background alone tells rare classes what they are not.

    Args:
        counts: training images of each class, of which one may show several.
        images: all training images.
        threshold: a class in a smaller fraction of the images is rare; the paper's is a hundred images of LVIS v0.5.
        prior: see `EachAgainstTheRest`.

    >>> loss = equalization_with_background(ClassCounts((90, 90, 9)), images=100, threshold=0.1, prior=0.5)
    >>> loss(torch.zeros(1, 3), torch.tensor([1]))  # the last class is left out: 2 log 2
    tensor(1.3863)
    """
    # the loss takes fractions of the counts' sum, in which an image of several classes is several
    of_sum = threshold * checks.whole("images", images) / sum(counts.per_class)
    loss = EqualizationSigmoid(counts, threshold=of_sum, reduction="none")
    return EachAgainstTheRest(counts.num_classes, loss, prior=prior)


def federated(
    logits: Float[Tensor, "N C"],
    target: Int[Tensor, " N"],
    foreground: Bool[Tensor, " N"],
    sampled: Bool[Tensor, " C"],
) -> Float[Tensor, " N"]:
    """-sum_{c in S} [c = y] log p_c + [c != y] log (1 - p_c), p = sigmoid(z) (federated loss; Zhou et al. 2021).

    S are the `sampled` classes, of the batch's objects and some more (see `sampled_classes`): what is annotated in
    some images only must not be punished everywhere.

    Args:
        logits: [N, C], without a logit for background.
        target: classes, [N]; of no meaning where `foreground` is false.
        foreground: whether a region is an object, [N].
        sampled: S, [C].

    Limit case: every class sampled is binary cross-entropy, summed over classes.

    >>> everything, none = torch.tensor([True, True]), torch.tensor([False, True])
    >>> logits, target = torch.zeros(1, 2), torch.tensor([0])
    >>> federated(logits, target, everything[:1], everything), federated(logits, target, everything[:1], none)
    (tensor([1.3863]), tensor([0.6931]))
    """
    meant = F.one_hot(target, logits.shape[1]).to(logits.dtype) * foreground[:, None]
    losses = F.binary_cross_entropy_with_logits(logits, meant, reduction="none")
    return (losses * sampled).sum(dim=1)


def sampled_classes(present: Bool[Tensor, " C"], images: Float[Tensor, " C"], number: int) -> Bool[Tensor, " C"]:
    """The classes that are present, filled up to `number` by a draw in proportion to sqrt(images), each at most once.

    A class without an image is never drawn. Torch's own generator draws.

    >>> sampled_classes(torch.tensor([False, True, False]), torch.tensor([4.0, 4.0, 0.0]), 2)
    tensor([ True,  True, False])
    """
    weights = images.sqrt().masked_fill(present, 0)
    more = min(number - int(present.sum()), int((weights > 0).sum()))
    if more <= 0:
        return present
    return present.scatter(0, torch.multinomial(weights, more), True)


class Federated(nn.Module):
    """`federated` with S drawn anew at every forward, from the regions of this process (as the authors' code).

    Args:
        counts: training images per class.
        num_sampled: |S|; 50 in the paper, for LVIS. Smaller than the classes of a batch, it is those.

    Raises:
        InputError: num_sampled below 1.
    """

    images: Tensor

    def __init__(self, counts: ClassCounts, *, num_sampled: int = 50) -> None:
        super().__init__()
        self.register_buffer("images", torch.tensor(counts.per_class, dtype=torch.float32))
        self.num_sampled = checks.whole("num_sampled", num_sampled)

    def forward(
        self, logits: Float[Tensor, "N C"], target: Int[Tensor, " N"], foreground: Bool[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        images = images_per_class(self.images, logits)
        present = torch.zeros_like(images, dtype=torch.bool).index_fill(0, target[foreground], True)
        return federated(logits, target, foreground, sampled_classes(present, images, self.num_sampled))


class SeesawWithObjectness(nn.Module):
    """Seesaw loss among the classes of objects, and a softmax of two that says whether it is one (Wang et al. 2021).

    The score of a class is P(object) P(class | object). Logits are background, object, and a logit for each class.

    Args:
        num_classes: C.
        p, q: of `tailwise.losses.seesaw`.

    >>> loss = SeesawWithObjectness(2)
    >>> loss.scores(torch.zeros(1, 4))
    tensor([[0.2500, 0.2500]])
    """

    background: int | None = None

    def __init__(self, num_classes: int, *, p: float = 0.8, q: float = 2.0) -> None:
        super().__init__()
        self.num_outputs = checks.whole("num_classes", num_classes) + 2
        self.seesaw = Seesaw(num_classes, p=p, q=q, reduction="none")

    def forward(self, logits: Float[Tensor, "N C2"], target: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        is_object = target > 0
        objectness = F.cross_entropy(logits[:, :2], is_object.long(), reduction="none")
        # every process comes here at every step, with objects or without: counts are summed over all of them
        classes: Tensor = self.seesaw(logits[is_object, 2:], target[is_object] - 1)
        return _mean(objectness) + classes.sum() / max(len(target), 1)

    def scores(self, logits: Float[Tensor, "N C2"]) -> Float[Tensor, "N C"]:
        is_object: Tensor = logits[:, :2].softmax(dim=1)[:, 1:]
        return is_object * logits[:, 2:].softmax(dim=1)


def _mean(losses: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    return losses.sum() / max(len(losses), 1)
