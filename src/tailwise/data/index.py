"""Where images lie and of which class they are: what every reader of a user's data or a benchmark's lists makes."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.data.long_tail import ids_hash
from tailwise.data.on_disk import DiskSplit, Source

PARTS = ("train", "val", "test")
NO_PART = -1  # of data that is not divided
PART_NAMES = {
    "train": 0,
    "training": 0,
    "val": 1,
    "valid": 1,
    "validation": 1,
    "dev": 1,
    "test": 2,
    "testing": 2,
}
# half of a surrogate pair: a file name that is no text
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UPWARDS = re.compile(r"(?:^|[/\\])\.\.(?:[/\\]|$)")
# what other programs write for a number that is missing, or beside one
_NO_CLASS = re.compile(r"-[0-9]+|-?[0-9]+\.0*|nan|na|<na>", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """Images with their classes, perhaps divided into train, val and test.

    source: what reads them. labels: of each of its images, in 0..C-1, int64 [N]. class_names: [C], class 0 first.
    parts: numbers of the images of each part, ascending; {} if the data is not divided. skipped: what was left out
    under `on_bad="skip"`, a line each. ignored: how many files were passed over, by their ending in lower case.
    """

    source: Source
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    parts: Mapping[str, NDArray[np.int64]]
    skipped: tuple[str, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)

    def split(self, part: str, *, workers: int = 0) -> DiskSplit:
        """The images of train, val or test; InputError where the data has no such part."""
        if part not in self.parts:
            raise checks.InputError(f"part: expected one of {', '.join(self.parts) or 'none'}, got {part!r}")
        rows = self.parts[part]
        return DiskSplit(self.source, rows, torch.from_numpy(self.labels[rows]), workers)

    @property
    def subset_hash(self) -> str:
        """SHA-256 of the ids of train and test."""
        return ids_hash(*(self.source.names[self.parts[part]] for part in ("train", "test")))

    def counts(self, part: str | None = None) -> ClassCounts:
        """Images per class, of one part or of all."""
        labels = self.labels if part is None else self.labels[self.parts[part]]
        return ClassCounts.of_labels(labels, len(self.class_names))


OnBad = Literal["error", "skip"]


class Refused:
    """What becomes of a row or file that will not do: an InputError, or a line in `lines` and the rest goes on.

    >>> refused = Refused("skip")
    >>> refused("list.txt, line 3: no label")
    >>> refused.lines
    ['list.txt, line 3: no label']
    """

    def __init__(self, on_bad: OnBad = "error") -> None:
        self.on_bad = checks.choice("on_bad", on_bad, ("error", "skip"))
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        if self.on_bad == "error":
            raise checks.InputError(f"{line}; on_bad='skip' leaves such out and lists them")
        self.lines.append(line)


def unfit_id(name: str) -> str | None:
    """Why a path of a list or table will not do, or None if it will.

    >>> unfit_id("cat/1.jpg"), unfit_id("../cat/1.jpg")
    (None, "a path that leaves its folder, '../cat/1.jpg'")
    """
    if not name:
        return "no path"
    if _UNPRINTABLE.search(name):
        return f"a path with a control character, {name!r}"
    return f"a path that leaves its folder, {name!r}" if _UPWARDS.search(name) else None


def one_spelling(path: str, below: str = "") -> str:
    """A path as every spelling of it comes out, so that a file is not there twice under two; links are not followed.

    below: the absolute folder, with "/" at its end, where relative paths start: those below it come out relative.

    >>> {one_spelling(path, "/photos/") for path in ("cat/1.jpg", "./cat//1.jpg", "/photos/cat/1.jpg")}
    {'cat/1.jpg'}
    """
    plain = os.path.normpath(path).removeprefix(below)
    return path if plain == path else plain  # of a million equal ones no second copy is kept


def unfit_class_name(name: str) -> str | None:
    """Why a class cannot be called so, or None if it can. A name may become a line of a table or part of a file's name.

    >>> unfit_class_name("bird of prey"), unfit_class_name("../birds")
    (None, "a class name that leaves its folder, '../birds'")
    """
    if not name.strip():
        return "an empty class name"
    if _UNPRINTABLE.search(name):
        return f"a class name with a control character, {name!r}"
    return f"a class name that leaves its folder, {name!r}" if _UPWARDS.search(name) else None


def whole_number(text: str) -> bool:
    """Whether a text is a class number: digits alone, and no more of them than a number of 64 bits has."""
    return text.isascii() and text.isdecimal() and len(text) <= 18


def part_number(name: str | None) -> int | None:
    """The place of a part in `PARTS`, by any of the names it goes by; NO_PART for None, None for another name.

    >>> part_number("Validation"), part_number(None), part_number("cats")
    (1, -1, None)
    """
    return NO_PART if name is None else PART_NAMES.get(name.strip().lower())


def checked_class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names given by the user.

    Raises:
        InputError: none, one twice, or one that will not do.
    """
    for name in names:
        unfit = unfit_class_name(name)
        if unfit:
            raise checks.InputError(f"class_names: got {unfit}")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice or not names:
        raise checks.InputError(
            f"class_names: expected different names, got {f'{twice[0]!r} twice' if twice else 'none'}"
        )
    return tuple(names)


def classes_of(
    texts: Sequence[str], class_names: Sequence[str] | None, what: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Which class each label text means, and the class names.

    Whole numbers are classes as they stand, and a negative one, 3.0 or nan beside them is none; otherwise the texts are
    names, in alphabetical order. With `class_names` they are some of these or, where none is one of these, their
    numbers. A text that is no class is left out of the answer.

    Raises:
        InputError: numbers with a gap and no class names.

    >>> classes_of(["dog", "cat"], None, "labels")
    ({'cat': 0, 'dog': 1}, ('cat', 'dog'))
    >>> classes_of(["1", "0", "7"], ["cat", "dog"], "labels")
    ({'1': 1, '0': 0}, ('cat', 'dog'))
    """
    numbers = {text: int(text) for text in texts if whole_number(text)}
    if class_names is not None:
        names = checked_class_names(class_names)
        if set(texts) & set(names):
            return {name: c for c, name in enumerate(names)}, names
        return {text: c for text, c in numbers.items() if c < len(names)}, names
    if not numbers or not all(text in numbers or _NO_CLASS.fullmatch(text) for text in texts):
        ordered = sorted(texts)
        return {name: c for c, name in enumerate(ordered)}, tuple(ordered)
    values = sorted(set(numbers.values()))
    if values != list(range(len(values))):
        absent = next(c for c, value in enumerate(values) if c != value)
        raise checks.InputError(
            f"{what}: expected labels 0..C-1 without a gap, got none of class {absent} and one of class {values[-1]}; "
            "class_names says which numbers there are"
        )
    return numbers, tuple(str(value) for value in values)


def some_of_every_class(
    expected: ArrayLike, labels: NDArray[np.int64], class_names: Sequence[str], why: Sequence[str], what: str = "images"
) -> None:
    """Raises InputError if leaving out what `why` names, a line each, left a class without any.

    expected: the classes, or labels, that there were before. what: images of which part they are.
    """
    lost = np.setdiff1d(expected, labels)
    if len(lost):
        raise checks.InputError(
            f"{what}: expected some of every class, got none that will do of {class_names[int(lost[0])]!r} "
            f"({len(lost)} such classes; {why[0]})"
        )


def index_of(
    source: Source,
    labels: NDArray[np.int64],
    parts: NDArray[np.int8],
    class_names: tuple[str, ...],
    refused: Refused,
    *,
    expected: NDArray[np.int64] | None = None,
    ignored: Mapping[str, int] | None = None,
) -> ImageIndex:
    """The index of what a reader found and kept.

    parts: `part_number` of each image. expected: the classes that had images before bad ones were left out,
    if any were.

    Raises:
        InputError: a class lost all of its images.
    """
    some_of_every_class([] if expected is None else expected, labels, class_names, refused.lines)
    found = {name: np.flatnonzero(parts == number) for number, name in enumerate(PARTS) if (parts == number).any()}
    return ImageIndex(source, labels, class_names, found, tuple(refused.lines), ignored or {})
