"""Batches of two streams: mixed into one image, or side by side.

The functions mix what is given to them. A rule draws what is to be drawn, once a batch, and `MixedBatches` gives it two
batches at a time. The draws belong to the batch's number in the epoch and are made on the CPU, so that every process
and device mixes alike.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.data.loading import EpochBatches
from tailwise.seeds import mixed_seed
from tailwise.shapes import Float, Int

Draws = np.random.Generator
Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Draws], tuple[Tensor, Tensor]]

# ---- functions


def mixup(images: Float[Tensor, "N C H W"], others: Float[Tensor, "N C H W"], lam: float) -> Float[Tensor, "N C H W"]:
    """lam x_i + (1 - lam) x_j (Zhang et al. 2018, Eq. 1).

    Args:
        images, others: x_i and x_j, normalized, [N, channels, H, W].
        lam: in [0, 1].

    Limit case: lam = 1 gives the images back.

    >>> mixup(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0.25)
    tensor([[[[0.2500]]]])
    """
    return lam * images + (1 - lam) * others


def cutmix(
    images: Float[Tensor, "N C H W"], others: Float[Tensor, "N C H W"], lam: float, centre: tuple[float, float]
) -> tuple[Float[Tensor, "N C H W"], float]:
    """M x_i + (1 - M) x_j, where M is 0 in a box of sides sqrt(1 - lam) H and W, else 1 (Yun et al. 2019, Eq. 1-2).

    Args:
        images, others: x_i and x_j, normalized, [N, channels, H, W].
        lam: share of the image that is to be kept, in [0, 1].
        centre: of the box, a fraction in [0, 1) of height and of width; what lies outside the image is cut off.

    Returns:
        The images, and the share of the pixels that were kept: at least lam, up to the sides' rounding to whole pixels.

    Limit case: lam = 1 gives the images back.

    >>> cutmix(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 0.75, centre=(0.0, 0.5))
    (tensor([[[[1., 0.],
              [1., 1.]]]]), 0.75)
    """
    height, width = images.shape[-2:]
    (top, bottom), (left, right) = (_cut(size, lam, place) for size, place in zip((height, width), centre, strict=True))
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _cut(size: int, lam: float, centre: float) -> tuple[int, int]:
    """Where the box begins and ends, along one side of the image."""
    side = round(size * math.sqrt(1 - lam))
    start = int(centre * size) - side // 2
    return max(start, 0), min(start + side, size)


def mixed_target(
    labels: Int[Tensor, " N"], other_labels: Int[Tensor, " N"], lam: float | Float[Tensor, " N"], num_classes: int
) -> Float[Tensor, "N C"]:
    """lam of the one label and 1 - lam of the other, as distributions over the classes.

    Args:
        labels, other_labels: in 0..C-1, [N].
        lam: in [0, 1], for all or for each, [N].
        num_classes: C.

    Limit case: lam = 1 is the one-hot label.

    >>> mixed_target(torch.tensor([0, 1]), torch.tensor([2, 1]), 0.75, num_classes=3)
    tensor([[0.7500, 0.0000, 0.2500],
            [0.0000, 1.0000, 0.0000]])
    """
    share = lam[:, None] if isinstance(lam, Tensor) else lam
    classes = torch.arange(num_classes, device=labels.device)
    return share * (labels[:, None] == classes) + (1 - share) * (other_labels[:, None] == classes)


def remix_lam(
    lam: float,
    images_of_class: Float[Tensor, " N"],
    images_of_other_class: Float[Tensor, " N"],
    *,
    kappa: float = 3.0,
    tau: float = 0.5,
) -> Float[Tensor, " N"]:
    """The label's share under Remix (Chou et al. 2020): the rarer class has all of it where its image is well visible.

    lam_y = 0    if n_i / n_j >= kappa  and  lam < tau,
            1    if n_i / n_j <= 1 / kappa  and  1 - lam < tau,
            lam  otherwise.

    Args:
        lam: share of x_i in the image, in [0, 1].
        images_of_class, images_of_other_class: training images n_i and n_j of the two classes, at least 1, [N].
        kappa: from what ratio on one class is the rarer, at least 1.
        tau: below which share of the frequent class's image its label is left out, in [0, 1].

    Returns:
        lam_y of each pair, [N].

    Raises:
        InputError: kappa or tau outside its range.

    Limit case: tau = 0 is mixup.

    >>> frequent, rare = torch.tensor([90.0]), torch.tensor([10.0])
    >>> remix_lam(0.4, frequent, rare), remix_lam(0.4, rare, frequent), remix_lam(0.6, frequent, rare)
    (tensor([0.]), tensor([0.4000]), tensor([0.6000]))
    """
    _remix_settings(kappa, tau)
    share = torch.full_like(images_of_class, lam)
    if lam < tau:
        share = share.masked_fill(images_of_class >= kappa * images_of_other_class, 0)
    if 1 - lam < tau:
        share = share.masked_fill(images_of_other_class >= kappa * images_of_class, 1)
    return share


def _remix_settings(kappa: float, tau: float) -> None:
    checks.number("kappa", kappa, at_least=1)
    if not 0 <= tau <= 1:
        raise checks.InputError(f"tau: expected a number in [0, 1], got {tau!r}")


# ---- rules


@dataclass(frozen=True)
class Mixup:
    """`mixup`, with one lam ~ Beta(beta, beta) for the batch; target [N, C].

    Raises:
        InputError: beta not above 0.
    """

    num_classes: int
    beta: float = 1.0

    def __post_init__(self) -> None:
        checks.number("beta", self.beta, above=0)

    def __call__(
        self, images: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        lam = draws.beta(self.beta, self.beta)
        return mixup(images, others, lam), mixed_target(labels, other_labels, lam, self.num_classes)


@dataclass(frozen=True)
class CutMix:
    """`cutmix`, with one lam ~ Beta(beta, beta) and one box for the batch; target [N, C] by the pixels kept.

    Raises:
        InputError: beta not above 0.
    """

    num_classes: int
    beta: float = 1.0

    def __post_init__(self) -> None:
        checks.number("beta", self.beta, above=0)

    def __call__(
        self, images: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        lam, row, column = draws.beta(self.beta, self.beta), draws.random(), draws.random()
        mixed, kept = cutmix(images, others, lam, (row, column))
        return mixed, mixed_target(labels, other_labels, kept, self.num_classes)


@dataclass(frozen=True)
class Remix:
    """Mixup whose labels lean to the rarer class, by `remix_lam`; target [N, C].

    counts: training images per class. beta: of lam ~ Beta(beta, beta), once a batch.

    Raises:
        InputError: a value outside its range.
    """

    counts: ClassCounts
    beta: float = 1.0
    kappa: float = 3.0
    tau: float = 0.5

    def __post_init__(self) -> None:
        checks.number("beta", self.beta, above=0)
        _remix_settings(self.kappa, self.tau)

    def __call__(
        self, images: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        lam = draws.beta(self.beta, self.beta)
        counts = _on_device(self.counts, labels.device)
        share = remix_lam(lam, counts[labels], counts[other_labels], kappa=self.kappa, tau=self.tau)
        return mixup(images, others, lam), mixed_target(labels, other_labels, share, self.counts.num_classes)


@functools.cache
def _on_device(counts: ClassCounts, device: torch.device) -> Tensor:
    # once a device: a copy from the host at every batch would wait for a GPU
    return torch.tensor(counts.per_class, dtype=torch.get_default_dtype(), device=device)


def pair(
    images: Tensor,
    labels: Tensor,
    others: Tensor,
    other_labels: Tensor,
    draws: Draws,  # noqa: ARG001  # a rule that draws nothing
) -> tuple[Tensor, Tensor]:
    """Both streams side by side: images [N, 2, channels, H, W], labels [N, 2]."""
    return torch.stack([images, others], dim=1), torch.stack([labels, other_labels], dim=1)


@dataclass(frozen=True)
class MixupAndCutMix:
    """A view by mixup and one by cutmix of the same pair (Du et al. 2023): images [N, 2, ...], target [N, 2, C].

    beta: of the lam ~ Beta(beta, beta); 1 is what the authors' code draws with, for its option of 0.5 arrives nowhere.
    Departures from it: each view has a lam of its own, and the label of the second one follows the pixels kept (theirs:
    one lam for images and labels of both); both views show an image in the same crop (theirs: each crops anew).

    Raises:
        InputError: beta not above 0.
    """

    num_classes: int
    beta: float = 1.0

    def __post_init__(self) -> None:
        checks.number("beta", self.beta, above=0)

    def __call__(
        self, images: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        whole, whole_target = Mixup(self.num_classes, self.beta)(images, labels, others, other_labels, draws)
        cut, cut_target = CutMix(self.num_classes, self.beta)(images, labels, others, other_labels, draws)
        return torch.stack([whole, cut], dim=1), torch.stack([whole_target, cut_target], dim=1)


# ---- batches


@dataclass(frozen=True)
class MixedBatches:
    """The batches of two streams, two at a time, as `rule` joins them; `len` is their number.

    first, second: with batches of the same sizes. rule: (images, labels, other images, other labels, draws) -> (images,
    target). seed: of the draws, a generator for each batch that depends on (seed, the batch's number) alone.

    Raises:
        InputError: streams whose batches differ in number or size.

    >>> from tailwise.data import Split
    >>> split = Split(torch.eye(4, dtype=torch.uint8).view(4, 1, 2, 2), torch.arange(4), np.array(list("abcd")))
    >>> batches = EpochBatches(split, torch.arange(4), batch_size=4, normalize=lambda images: images.float())
    >>> [(images, target)] = MixedBatches(batches, permuted(batches), Mixup(num_classes=4))
    >>> bool((images.flatten(1) == target).all())  # class c is pixel c
    True
    """

    first: EpochBatches
    second: EpochBatches
    rule: Rule
    seed: int = 0

    def __post_init__(self) -> None:
        first, second = _sizes(self.first), _sizes(self.second)
        if first != second:
            raise checks.InputError(f"second: expected batches of the first one's sizes, {first}, got {second}")

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.since(0)

    def since(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All but the first `batch` batches, which are not read."""
        for number, (ours, theirs) in enumerate(
            zip(self.first.since(batch), self.second.since(batch), strict=True), batch
        ):
            draws = np.random.Generator(np.random.PCG64(mixed_seed(self.seed, number)))
            yield self.rule(*ours, *theirs, draws)


def _sizes(batches: EpochBatches) -> str:
    last = "the last left out" if batches.drop_last else "the last included"
    part = f"part {batches.rank} of {batches.num_ranks}"
    return f"{len(batches.indices)} images in batches of {batches.batch_size}, {last}, {part}"


def permuted(batches: EpochBatches) -> EpochBatches:
    """The same images, augmented alike, in another order within each global batch: what mixup mixes a batch with.

    The order depends on the seed of `batches`; an image may keep its place.
    """
    generator = torch.Generator().manual_seed(mixed_seed(batches.seed, 1))
    everywhere = torch.split(torch.arange(len(batches.indices)), batches.batch_size)
    order = torch.cat([batch[torch.randperm(len(batch), generator=generator)] for batch in everywhere])
    places = order if batches.places is None else batches.places[order]
    return replace(batches, indices=batches.indices[order.to(batches.indices.device)], places=places)
