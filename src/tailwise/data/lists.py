"""Lists of images as the benchmarks publish them: a line `path label` for each."""

import hashlib
import os
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwise import checks
from tailwise.data.index import OnBad, Refused, one_spelling, unfit_id, whole_number
from tailwise.data.on_disk import string_array


def read_list(
    path: Path, num_classes: int, *, on_bad: OnBad = "error"
) -> tuple[NDArray[Any], NDArray[np.int64], list[str]]:
    """The images of a list file: paths, labels, and a line for each row left out.

    A path may hold spaces: the label is what follows the last one.

    Args:
        path: of the list, UTF-8.
        num_classes: C; labels are in 0..C-1.
        on_bad: "error", or "skip" to leave out lines that will not do.

    Raises:
        InputError: no such file, an empty one, or, naming the line: no label, one outside its range, a path that leaves
            its folder, the same path again.
    """
    refused, names, labels, seen = Refused(on_bad), list[str](), array("q"), set[str]()
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                name, _, label = line.rstrip("\r\n").rpartition(" ")
                if not (whole_number(label) and name):
                    if line.strip():
                        refused(f"{path}, line {number}: expected `path label`, got {line.strip()[:80]!r}")
                elif int(label) >= num_classes:
                    refused(f"{path}, line {number}: expected a label in 0..{num_classes - 1}, got {label}")
                elif unfit := unfit_id(name):
                    refused(f"{path}, line {number}: got {unfit}")
                elif (plain := one_spelling(name)) in seen:
                    refused(f"{path}, line {number}: got {name} a second time")
                else:
                    seen.add(plain)
                    names.append(name)
                    labels.append(int(label))
    except (OSError, UnicodeDecodeError) as error:
        raise checks.InputError(f"{path}: not a readable list ({getattr(error, 'strerror', None) or error})") from error
    if not names:
        raise checks.InputError(f"{path}: expected lines `path label`, got none")
    return string_array(names), np.array(labels, dtype=np.int64), refused.lines


def list_text(ids: NDArray[Any], labels: NDArray[np.int64]) -> str:
    """A list file's content; `read_list` reads it.

    >>> list_text(string_array(["a/1.jpg", "b/2.jpg"]), np.array([0, 1]))
    'a/1.jpg 0\\nb/2.jpg 1\\n'
    """
    return "".join(f"{name} {label}\n" for name, label in zip(ids.tolist(), labels.tolist(), strict=True))


def list_hash(ids: NDArray[Any], labels: NDArray[np.int64]) -> str:
    """SHA-256 of a list's sorted `file label` lines, folders left out: alike for every style of path and every order.

    >>> one = list_hash(string_array(["val/n01/7.JPEG", "val/n02/8.JPEG"]), np.array([0, 1]))
    >>> one == list_hash(string_array(["val/8.JPEG", "val/7.JPEG"]), np.array([1, 0]))
    True
    """

    lines = sorted(
        f"{os.path.basename(name)} {label}" for name, label in zip(ids.tolist(), labels.tolist(), strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
