"""What every data set hands to the rest: three splits, the class counts, names and ids."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.data.long_tail import ids_hash
from tailwise.data.on_disk import DiskSplit


@dataclass(frozen=True)
class Split:
    """Images in memory with their labels and ids.

    images: uint8 [N, channels, H, W], or features of a frozen backbone, float32 [N, D]. labels: int64 [N]. ids: one
    name per image, unique in the data set, [N].
    """

    images: Tensor
    labels: Tensor
    ids: NDArray[Any]

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.labels) == len(self.ids):
            raise checks.InputError(
                f"split: expected as many labels and ids as images, got {len(self.images)} images, "
                f"{len(self.labels)} labels and {len(self.ids)} ids"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        """The same images and labels on a device."""
        return Split(self.images.to(device), self.labels.to(device), self.ids)

    def take(self, indices: NDArray[np.int64]) -> "Split":
        """The images at `indices`, in that order."""
        index = torch.from_numpy(indices)
        return Split(self.images[index], self.labels[index], self.ids[indices])


@dataclass(frozen=True)
class LongTailedData:
    """A long-tailed training set and what it is judged on.

    train, test: the splits, in memory or on disk. val: None where the data set defines none and none was carved.
    counts: training images per class as trained on; losses and samplers use these.
    published_counts: those of the whole published training set; the groups many / medium / few use these.
    class_names: [C], class 0 first.
    subset_hash: SHA-256 of the ids of the published training set and of the test set.
    normalize: uint8 images -> what the network sees.
    view: of images on disk, decoded image -> the bytes [3, H, W] of one that is not augmented.
    left_out: what was skipped because it cannot be read, a line each.
    """

    name: str
    train: Split | DiskSplit
    val: Split | DiskSplit | None
    test: Split | DiskSplit
    counts: ClassCounts
    published_counts: ClassCounts
    class_names: tuple[str, ...]
    subset_hash: str
    normalize: Callable[[Tensor], Tensor]
    view: Callable[[Any], Tensor] | None = None
    left_out: tuple[str, ...] = ()

    @property
    def data_hash(self) -> str:
        """SHA-256 of the ids and labels of train, val and test."""
        digest = hashlib.sha256()
        for split in (self.train, self.val, self.test):
            if split is not None:
                digest.update(ids_hash(split.ids).encode() + split.labels.cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where batches come, as bytes, and are normalized."""
        return self.train.labels.device

    def to(self, device: torch.device) -> "LongTailedData":
        """The same data on a device."""
        val = None if self.val is None else self.val.to(device)
        # under protocol legacy val is test: one copy, and still the same
        test = val if val is not None and self.val is self.test else self.test.to(device)
        return replace(self, train=self.train.to(device), val=val, test=test)
