"""Images that lie on disk: where each one is, and the split that names them. `reading` makes batches of them."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.dtypes import StringDType
from numpy.typing import NDArray
from torch import Tensor

from tailwise import checks
from tailwise.data.files import read_file


@runtime_checkable
class Source(Protocol):
    """Where encoded images lie: loose files, members of tar shards, rows of a table. Picklable, for workers read it.

    names: one per image, unique in the data set, [M]; `string_array` keeps a million of them in about 100 MB.
    """

    @property
    def names(self) -> NDArray[Any]: ...

    def read(self, row: int) -> bytes:
        """Image `row` of 0..M-1, encoded (JPEG, PNG, ...).

        Raises:
            InputError: it cannot be read; starts with `where(row)`.
        """

    def where(self, row: int) -> str:
        """What a message calls it: a file, a shard and its member."""

    def paths(self, rows: NDArray[np.int64]) -> Iterable[str]:
        """The files that these images lie in; where these change, so do images."""


@runtime_checkable
class Pixels(Protocol):
    """A source whose images are decoded already."""

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """Image `row`, [H, W, 3]."""


def string_array(names: Iterable[str]) -> NDArray[Any]:
    """Strings of any length, each in as many bytes as it has and 16 more; as fixed-width text they take 4 a character.

    >>> string_array(["a.jpg", "b.jpg"])[[1, 0]].tolist()
    ['b.jpg', 'a.jpg']
    """
    return np.array(list(names), dtype=StringDType())


@dataclass(frozen=True, eq=False)
class LooseFiles:
    """A file per image, below one folder. names: their paths there, with "/" between folders, [M]."""

    root: Path
    names: NDArray[Any]

    def read(self, row: int) -> bytes:
        return read_file(self.root / self.names[row])

    def where(self, row: int) -> str:
        return str(self.root / self.names[row])

    def paths(self, rows: NDArray[np.int64]) -> Iterator[str]:
        root = str(self.root)
        return (os.path.join(root, name) for name in self.names[rows].tolist())


@dataclass(frozen=True, eq=False)
class DiskSplit:
    """Images on disk with their labels: what `Split` is to images in memory.

    source: where they lie. rows: which of its images, int64 [N]. labels: int64 [N]. workers: processes that read and
    transform them; 0 is none beside this one.

    Raises:
        InputError: not one label for each row.

    >>> files = LooseFiles(Path("photos"), string_array(["a.jpg", "b.jpg", "c.jpg"]))
    >>> split = DiskSplit(files, np.arange(3), torch.tensor([0, 1, 0]))
    >>> split.take(np.array([2, 0])).ids.tolist()
    ['c.jpg', 'a.jpg']
    """

    source: Source
    rows: NDArray[np.int64]
    labels: Tensor
    workers: int = 0

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.labels):
            raise checks.InputError(
                f"split: expected a label for each of {len(self.rows)} images, got {len(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def ids(self) -> NDArray[Any]:
        """One name per image, [N]."""
        return np.asarray(self.source.names[self.rows])

    def to(self, device: torch.device) -> "DiskSplit":
        """The same split, whose batches and labels come on a device."""
        return replace(self, labels=self.labels.to(device))

    def take(self, indices: NDArray[np.int64]) -> "DiskSplit":
        """The images at `indices`, in that order."""
        return replace(self, rows=self.rows[indices], labels=self.labels[torch.from_numpy(indices)])
