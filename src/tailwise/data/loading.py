"""Batches of one epoch from images in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tailwise.data.augment import DRAWS, Augment
from tailwise.data.contract import Split
from tailwise.seeds import mixed_seed


@dataclass(frozen=True)
class EpochBatches:
    """The (images, labels) batches of one epoch, augmented and normalized; `len` is their number.

    split: the images. indices: which, in order, [M] (may repeat). batch_size: images a batch; the last may be
    smaller, or is left out with `drop_last`. normalize: uint8 images -> float. augment: images and draws -> images,
    or None. seed: of the augmentation; the draws of a sample depend on (seed, its place in the epoch) alone.

    >>> split = Split(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5), np.array(list("abcde")))
    >>> batches = EpochBatches(split, torch.arange(5), batch_size=2, normalize=lambda images: images / 255)
    >>> [labels.tolist() for _, labels in batches]
    [[0, 1], [2, 3], [4]]
    """

    split: Split
    indices: Tensor
    batch_size: int
    normalize: Callable[[Tensor], Tensor]
    augment: Augment | None = None
    seed: int = 0
    drop_last: bool = False

    def __len__(self) -> int:
        full, rest = divmod(len(self.indices), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.split.images.device
        # all draws of the epoch at once, on the CPU, so that batch size and device change nothing
        generator = torch.Generator().manual_seed(mixed_seed(self.seed))
        draws = torch.rand(len(self.indices), DRAWS, generator=generator).to(device) if self.augment else None
        indices = self.indices.to(device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            places = slice(start, start + self.batch_size)
            images = self.split.images[indices[places]]
            if self.augment and draws is not None:
                images = self.augment(images, draws[places])
            yield self.normalize(images), self.split.labels[indices[places]]
