"""Images decoded once, to squares of one size, and read from then on out of a memory map."""

import functools
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tailwise import checks, ranks
from tailwise.data.long_tail import ids_hash
from tailwise.data.on_disk import DiskSplit, Source
from tailwise.data.reading import read_batches
from tailwise.data.stamps import kept_place
from tailwise.data.transforms import CentreView

PIXELS, CHECKSUMS = "pixels.npy", "checksums.npy"
AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class DecodedSource:
    """Decoded images in a folder that `decode` made; the terms are those of `Source`.

    source, rows: what they were decoded from. folder: holds pixels.npy, uint8 [N, size, size, 3], and checksums.npy, a
    CRC-32 for each.
    """

    source: Source
    rows: NDArray[np.int64]
    folder: Path

    @property
    def names(self) -> NDArray[Any]:
        return np.asarray(self.source.names[self.rows])

    @property
    def size(self) -> int:
        """H = W of each."""
        return int(_opened(self.folder, len(self.rows))[0].shape[1])

    def read(self, row: int) -> bytes:
        """The encoded image that it was."""
        return self.source.read(int(self.rows[row]))

    def where(self, row: int) -> str:
        return f"{self.folder / PIXELS}, image {row} ({self.source.where(int(self.rows[row]))})"

    def paths(self, rows: NDArray[np.int64]) -> Iterable[str]:
        """The files of the encoded images."""
        return self.source.paths(self.rows[rows])

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """Image `row`, [size, size, 3].

        Raises:
            InputError: not the bytes that were written.
        """
        pixels, checksums = _opened(self.folder, len(self.rows))
        image = pixels[row]
        if zlib.crc32(image) != checksums[row]:
            raise checks.InputError(f"{self.where(row)}: not the bytes that were written; remove {self.folder}")
        return np.asarray(image)


@functools.cache
def _opened(folder: Path, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    # a map for each process that reads
    try:
        pixels = np.load(folder / PIXELS, mmap_mode="r", allow_pickle=False)
        checksums = np.load(folder / CHECKSUMS, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise checks.InputError(f"{folder}: not readable decoded images ({error}); remove it") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or not len(pixels) == len(checksums) == number:
        raise checks.InputError(f"{folder}: expected {number} decoded images, got {len(pixels)}; remove it")
    return pixels, checksums


def decode(source: Source, rows: NDArray[np.int64], size: int, kept: Path, *, workers: int = 0) -> DecodedSource:
    """Images of a source, the shorter side resized to `size`, the centre cut out; decoded unless that is done already.

    Called by every process that trains; the first one decodes. What is there is of the same ids and of files that look
    the same (`kept_place`).

    A prediction that resizes to `size` sees the same pixels as from the files; a random part is one of the square, not
    of the whole image.

    Args:
        source: where they lie encoded.
        rows: which of them, [N].
        size: H = W.
        kept: a folder for what is made of the data; needs 3 size^2 bytes an image.
        workers: processes that decode.

    Raises:
        InputError: an image that cannot be read; no room, or a folder that cannot be written. Nothing is left then.
    """
    name = f"decoded-{size}-{ids_hash(np.asarray(source.names[rows]))[:16]}"
    folder = kept_place(kept, name, source, rows)
    if ranks.is_main() and not folder.exists():
        with _appearing(folder, 3 * size * size * len(rows)) as partial:
            _write(source, rows, size, partial, workers)
    ranks.wait()
    made = DecodedSource(source, rows, folder)
    _opened(folder, len(rows))
    return made


def decoded_splits(splits: dict[str, DiskSplit], size: int, kept: Path) -> dict[str, DiskSplit]:
    """The same splits of one source, their images decoded; arguments and errors as in `decode`."""
    first = next(iter(splits.values()))
    rows = np.unique(np.concatenate([split.rows for split in splits.values()]))
    made = decode(first.source, rows, size, kept, workers=first.workers)
    return {
        part: DiskSplit(made, np.searchsorted(rows, split.rows), split.labels, split.workers)
        for part, split in splits.items()
    }


def _write(source: Source, rows: NDArray[np.int64], size: int, folder: Path, workers: int) -> None:
    number = len(rows)
    split = DiskSplit(source, rows, torch.zeros(number, dtype=torch.int64), workers)
    indices = torch.arange(number)
    jobs = torch.split(torch.stack([indices, indices], dim=1), AT_ONCE)
    pixels = np.lib.format.open_memmap(folder / PIXELS, mode="w+", dtype=np.uint8, shape=(number, size, size, 3))
    checksums = np.zeros(number, dtype=np.uint32)
    row = 0
    for images in read_batches(split, CentreView(size, size), jobs, lambda place: place):
        for image in images.permute(0, 2, 3, 1).contiguous().numpy():
            pixels[row], checksums[row] = image, zlib.crc32(image)
            row += 1
    pixels.flush()
    np.save(folder / CHECKSUMS, checksums)


@contextmanager
def _appearing(folder: Path, needed: int) -> Iterator[Path]:
    """A folder under a name of its own, which takes the given one when the block is through; else nothing is left."""
    room = None
    try:
        with suppress(FileExistsError):
            folder.parent.mkdir(parents=True)
        # a folder that nobody else makes; it is for this user alone, which the one in it is not
        room = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.partial-"))
        partial = room / "new"
        partial.mkdir()
        free = shutil.disk_usage(partial).free
        if free < needed:
            raise checks.InputError(
                f"{folder}: decoded images need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
                "data.cache=null reads the files, data.kept=FOLDER keeps them elsewhere"
            )
        yield partial
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():  # another run made the same meanwhile
                raise
    except OSError as error:
        raise checks.InputError(
            f"{folder}: cannot write decoded images ({error.strerror}); data.kept=FOLDER keeps them elsewhere"
        ) from error
    finally:
        if room is not None:
            shutil.rmtree(room, ignore_errors=True)
