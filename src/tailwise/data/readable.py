"""Which stored images cannot be read: by their first bytes, or by decoding them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tailwise import checks
from tailwise.data.files import decoded, image_kind
from tailwise.data.on_disk import LooseFiles, Source

Progress = Callable[[int, int], None]
HEAD = 16  # bytes
BLOCK = 1024  # images between two reports
THREADS = 8  # most of the time is waiting for a disk, or decoding, which Python's lock does not hold up


def unreadable(
    source: Source, rows: NDArray[np.int64], *, decode: bool = False, progress: Progress | None = None
) -> list[tuple[int, str]]:
    """The images that will not do, and why: one cannot be opened, is empty, or is no image by its first bytes.

    Args:
        source: where they lie.
        rows: which of its images.
        decode: decode each of them in full, which finds truncated ones, too.
        progress: told (done, of how many) now and then.

    >>> from pathlib import Path
    >>> from tailwise.data import string_array
    >>> unreadable(LooseFiles(Path("photos"), string_array(["a.jpg"])), np.array([0]))
    [(0, 'photos/a.jpg: not a readable file (No such file or directory)')]
    """
    check = partial(_why_unreadable, source, decode)
    found = []
    with ThreadPoolExecutor(THREADS) as threads:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK].tolist()
            found += [(row, why) for row, why in zip(block, threads.map(check, block), strict=True) if why]
            if progress:
                progress(start + len(block), len(rows))
    return found


def _why_unreadable(source: Source, decode: bool, row: int) -> str | None:
    try:
        if isinstance(source, LooseFiles) and not decode:
            with open(source.where(row), "rb") as file:
                content = file.read(HEAD)
        else:
            content = source.read(row)
            if decode and content:
                decoded(content, source.where(row))
                return None  # whatever its first bytes are
    except checks.InputError as error:
        return str(error)
    except OSError as error:
        return f"{source.where(row)}: not a readable file ({error.strerror})"
    if not content:
        return f"{source.where(row)}: an empty file"
    if image_kind(content) is None:
        return f"{source.where(row)}: no image by its first bytes"
    return None
