"""Batches of one epoch, from images in memory or on disk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tailwise import checks
from tailwise.data.augment import DRAWS
from tailwise.data.contract import Split
from tailwise.data.on_disk import DiskSplit
from tailwise.data.reading import read_batches, seeds_of
from tailwise.seeds import mixed_seed


@dataclass(frozen=True)
class EpochBatches:
    """The (images, labels) batches of one epoch, augmented and normalized; `len` is their number.

    split: the images. indices: which, in order, [M] (may repeat). batch_size: images a batch; the last may be
    smaller, or is left out with `drop_last`. normalize: uint8 images -> float. augment: images and draws -> images,
    or None; of images on disk, a transform of each decoded image. seed: of the augmentation; the draws of a sample
    depend on (seed, its place in the epoch) alone.
    places: whose draws each sample takes, [M]; by default those of its own place. rank, num_ranks: which part of each
    batch this process takes, the same that `EpochSampler` would give it.

    Raises:
        InputError: a last batch with fewer images than processes; images on disk without a transform.

    >>> split = Split(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5), np.array(list("abcde")))
    >>> batches = EpochBatches(split, torch.arange(5), batch_size=2, normalize=lambda images: images / 255)
    >>> [labels.tolist() for _, labels in batches]
    [[0, 1], [2, 3], [4]]
    """

    split: Split | DiskSplit
    indices: Tensor
    batch_size: int
    normalize: Callable[[Tensor], Tensor]
    augment: Callable[..., Tensor] | None = None
    seed: int = 0
    places: Tensor | None = None
    drop_last: bool = False
    rank: int = 0
    num_ranks: int = 1

    def __post_init__(self) -> None:
        rest = len(self.indices) % self.batch_size or self.batch_size
        if len(self) and (self.batch_size if self.drop_last else rest) < self.num_ranks:
            raise checks.InputError(
                f"batch_size: expected a last batch of at least {self.num_ranks} images, one for each process, got "
                f"{rest} ({len(self.indices)} images in batches of {self.batch_size}); drop_last leaves it out"
            )
        if isinstance(self.split, DiskSplit) and self.augment is None:
            raise checks.InputError("augment: expected a transform for images on disk, got none")

    def __len__(self) -> int:
        full, rest = divmod(len(self.indices), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.since(0)

    def since(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All but the first `batch` batches, which are not read: where a run that was stopped goes on."""
        everywhere = torch.split(torch.arange(len(self.indices)), self.batch_size)[batch : len(self)]
        mine = [torch.tensor_split(places, self.num_ranks)[self.rank] for places in everywhere]
        if not mine:
            return
        images = self._in_memory(mine) if isinstance(self.split, Split) else self._on_disk(mine)
        labels = self.split.labels[self.indices.to(self.split.labels.device)]
        for places, batch_images in zip(mine, images, strict=True):
            yield self.normalize(batch_images), labels[places[0] : places[-1] + 1]

    def _in_memory(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        assert isinstance(self.split, Split)
        device = self.split.images.device
        # all draws of the epoch at once, on the CPU, so that batch size and device change nothing
        generator = torch.Generator().manual_seed(mixed_seed(self.seed))
        draws = torch.rand(len(self.indices), DRAWS, generator=generator) if self.augment else None
        if draws is not None:
            draws = draws[slice(None) if self.places is None else self.places].to(device)
        indices = self.indices.to(device)
        for places in batches:
            here = slice(int(places[0]), int(places[-1]) + 1)
            images = self.split.images[indices[here]]
            if self.augment and draws is not None:
                images = self.augment(images, draws[here])
            yield images

    def _on_disk(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        assert isinstance(self.split, DiskSplit)
        assert self.augment is not None
        places = torch.arange(len(self.indices)) if self.places is None else self.places.cpu()
        jobs = torch.stack([self.indices.cpu(), places], dim=1)
        return read_batches(self.split, self.augment, [jobs[batch] for batch in batches], seeds_of(self.seed))
