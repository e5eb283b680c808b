"""Examples in batches: which, in which order, flipped or not, read by worker processes if wanted."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.data.reading import arriving, as_it_is
from tailwise.detect.contract import DetectionSplit, Example, Truth
from tailwise.detect.masks import encode
from tailwise.sampling import Members, repeat_draw, repeat_factors
from tailwise.sampling.draws import Indices
from tailwise.seeds import mixed_seed


class Examples(tuple[Example, ...]):
    """A batch of examples, which comes apart as a tensor does."""

    __slots__ = ()

    def tensor_split(self, number: int) -> "list[Examples]":
        """`number` parts, those in front longer by one where they cannot be equal."""
        ends = [part * (len(self) // number) + min(part, len(self) % number) for part in range(number + 1)]
        return [Examples(self[start:end]) for start, end in itertools.pairwise(ends)]

    def to(self, device: torch.device) -> "Examples":
        """The same on a device; run lengths stay where they are."""
        fields = ("image", "boxes", "labels", "is_crowd")
        return Examples(replace(one, **{name: getattr(one, name).to(device) for name in fields}) for one in self)


@dataclass(frozen=True)
class ExampleBatches:
    """The batches of one epoch, (examples, image ids) each; `len` is their number.

    split: the images. indices: which, in order, [M] (may repeat). batch_size: over all processes. flip: turn every
    other image, by chance, left to right. seed: of the chance, which depends on (seed, place in the epoch) alone.
    rank, num_ranks: which part of each batch this process takes. device: where to. workers: processes that read ahead;
    0 reads here.

    Raises:
        InputError: a last batch with fewer images than processes; an image that cannot be read, a worker that died.
    """

    split: DetectionSplit
    indices: Tensor
    batch_size: int
    flip: bool = False
    seed: int = 0
    drop_last: bool = False
    rank: int = 0
    num_ranks: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # immutable
    workers: int = 0

    def __post_init__(self) -> None:
        rest = len(self.indices) % self.batch_size or self.batch_size
        if len(self) and (self.batch_size if self.drop_last else rest) < self.num_ranks:
            raise checks.InputError(
                f"batch_size: expected a last batch of at least {self.num_ranks} images, one for each process, got "
                f"{rest} ({len(self.indices)} images in batches of {self.batch_size}); drop_last leaves it out"
            )

    def __len__(self) -> int:
        full, rest = divmod(len(self.indices), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Examples, Tensor]]:
        whole = torch.split(torch.arange(len(self.indices)), self.batch_size)[: len(self)]
        mine = [torch.tensor_split(part, self.num_ranks)[self.rank].tolist() for part in whole]
        loader = DataLoader(
            _Places(self),
            batch_sampler=mine,
            num_workers=self.workers,
            collate_fn=as_it_is,
            generator=torch.Generator(),  # the loader draws a number at its start: not from training's own stream
        )
        for examples in arriving(loader):
            ids = torch.tensor([example.image_id for example in examples], device=self.device)
            yield examples.to(self.device), ids


class _Places(Dataset[Example]):
    """The places of an epoch, as torch's loader asks for them."""

    def __init__(self, batches: ExampleBatches) -> None:
        self.batches = batches
        generator = torch.Generator().manual_seed(mixed_seed(batches.seed))
        self.flipped = torch.rand(len(batches.indices), generator=generator) < (0.5 if batches.flip else 0.0)

    def __len__(self) -> int:
        return len(self.batches.indices)

    def __getitems__(self, places: Sequence[int]) -> Examples | str:
        try:
            return Examples(self._example(place) for place in places)
        except checks.InputError as error:
            return str(error)

    def _example(self, place: int) -> Example:
        example = self.batches.split[int(self.batches.indices[place])]
        return flipped(example) if self.flipped[place] else example


def flipped(example: Example) -> Example:
    """Left to right: image, boxes and masks.

    >>> image = torch.zeros(3, 2, 4, dtype=torch.uint8)
    >>> one, no = torch.tensor([[0.0, 0.0, 1.0, 2.0]]), torch.tensor([False])
    >>> flipped(Example(image, one, torch.tensor([1]), no, (), image_id=7)).boxes
    tensor([[3., 0., 4., 2.]])
    """
    x1, y1, x2, y2 = example.boxes.unbind(dim=1)
    width = example.image.shape[2]
    masks = encode(example.masks.flip(2).numpy()) if example.rles else ()
    boxes = torch.stack([width - x2, y1, width - x1, y2], dim=1)
    return replace(example, image=example.image.flip(2), boxes=boxes, rles=masks)


def image_repeat_draw(truth: Truth, counts: ClassCounts, threshold: float, seed: int, epoch: int) -> Indices:
    """Each image as often as the rarest of its classes asks for, fractions by chance (Gupta et al. 2019).

    r(image) = max over its classes of max(1, sqrt(threshold / f_c)), f_c the fraction of training images with class c;
    an image without an instance has 1.

    Args:
        truth: of the training images.
        counts: images of each class, as `truth.counts_by_images()`.
        threshold: 0.001 for LVIS; 0 repeats nothing.
        seed, epoch: of the chance.

    Raises:
        InputError: a threshold below 0.
    """
    checks.number("threshold", threshold, at_least=0)
    images = len(truth.images)
    factors = np.ones(images)
    if threshold > 0:
        # fractions of images, of which an image may be in several
        of_class = repeat_factors(counts, threshold * images / sum(counts.per_class))
        for number, image in enumerate(truth.images):
            present = image.labels[~image.is_crowd] - 1
            factors[number] = of_class[present].max(initial=1.0)
    everyone = np.arange(images)
    return repeat_draw(Members(everyone, everyone, np.ones(images, dtype=np.int64)), factors, seed, epoch)


def total_loss(losses: Mapping[str, Tensor], _: Tensor) -> Tensor:
    """What a detector's training stage makes small: the sum of its losses, weighted already."""
    return torch.stack(list(losses.values())).sum()
