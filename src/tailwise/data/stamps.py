"""What files look like from outside, so that what was made of some is never taken for what is made of others."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tailwise import ranks
from tailwise.data.on_disk import Source

GONE = "gone"


def stamps(paths: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Size and time of the last change of each file, to the nanosecond; "gone" where there is none.

    >>> list(stamps(["no such file"]))
    ['gone']
    """
    for path in paths:
        try:
            state = os.stat(path)
        except OSError:
            yield GONE
        else:
            yield f"{state.st_size} {state.st_mtime_ns}"


def kept_place(kept: Path, name: str, source: Source, rows: NDArray[np.int64], ending: str = "") -> Path:
    """Where what is made of some images is kept, a file or folder called after what their files look like.

    Where all of them are gone, it is what was made while they were there, if that is one alone. Called by every process
    that trains; the first one looks at the files for all.

    Args:
        kept: a folder for what is made of the data.
        name: says what it is, and of which ids.
        source, rows: the images.
        ending: of the place.
    """
    return ranks.agree(_looked_up(kept, name, source.paths(rows), ending) if ranks.is_main() else kept)


def _looked_up(kept: Path, name: str, paths: Iterable[str], ending: str) -> Path:
    digest, there, files = hashlib.sha256(), 0, 0
    for stamp in stamps(paths):
        digest.update(f"{stamp}\n".encode())
        files += 1
        there += stamp != GONE
    made = list(kept.glob(f"{name}-*{ending}")) if files and not there else []
    return made[0] if len(made) == 1 else kept / f"{name}-{digest.hexdigest()[:16]}{ending}"
