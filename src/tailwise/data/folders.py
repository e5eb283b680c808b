"""Images in a folder per class, and which files a folder holds."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tailwise import checks
from tailwise.data.files import SUFFIXES
from tailwise.data.index import (
    NO_PART,
    PARTS,
    ImageIndex,
    OnBad,
    Refused,
    classes_of,
    index_of,
    part_number,
    unfit_class_name,
    unfit_id,
)
from tailwise.data.on_disk import LooseFiles, string_array
from tailwise.data.splits import SPLITS

TRAIN = PARTS.index("train")


def folder_index(root: Path, *, class_names: Sequence[str] | None = None, on_bad: OnBad = "error") -> ImageIndex:
    """The images below a folder for each class, or below such folders in train/, val/ and test/.

    A class has the name of its folder; they are numbered in alphabetical order, as torchvision's ImageFolder does, or
    by their names where these are 0, 1, ..., C-1. Hidden files and folders are passed over; so are files that are no
    images by their ending or in no class's folder, which `ignored` counts.

    Args:
        root: holds a folder per class, or train/ and perhaps val/ (valid/, validation/) and test/ that do.
        class_names: in an order of the user's own.
        on_bad: "error", or "skip" to leave out what will not do; `skipped` of the index lists it.

    Raises:
        InputError: no such folder, none in it, classes beside train/, val/ or test/ without it; or, naming it: a class
            without an image, one in val/ or test/ that train/ does not have, a name with control characters, a link
            that leads to itself.
    """
    refused = Refused(on_bad)
    if not root.is_dir():
        raise checks.InputError(f"{root}: expected a folder, got {'a file' if root.exists() else 'nothing there'}")
    paths, texts, parts, ignored = list[str](), list[str](), list[int](), Counter[str]()
    classes = set[str]()  # that have images, or lost them to what was refused
    for part, text, folder in _class_folders(root, refused, ignored):
        before = len(refused.lines)
        below = list(files_below(root, folder, refused))
        images = [path for path in below if _ending(path) in SUFFIXES]
        ignored.update(ending for path in below if (ending := _ending(path)) not in SUFFIXES)
        wrong = [path for path in images if unfit_id(path)]
        for path in wrong:
            refused(f"{root}/{folder}: got {unfit_id(path)}")
        images = [path for path in images if path not in set(wrong)] if wrong else images
        if images or len(refused.lines) > before:
            classes.add(text)
        else:
            refused(f"{root}/{folder}: expected images of class {text!r}, got none")
        paths += images
        texts += [text] * len(images)
        parts += [part] * len(images)
    if not paths:
        raise checks.InputError(f"{root}: expected a folder of images for each class, got none")
    there = sorted(classes)
    whole = classes == {str(c) for c in range(len(there))}
    class_of_text, names = classes_of(there, class_names or (None if whole else there), str(root))
    labels = np.array([class_of_text.get(text, -1) for text in texts], dtype=np.int64)
    for text in sorted(classes - set(class_of_text)):
        refused(f"{root}: expected folders with the names of the {len(names)} classes, got {text!r}")
    kept = np.flatnonzero(labels >= 0)
    files = LooseFiles(root, string_array(paths)[kept])
    return index_of(
        files,
        labels[kept],
        np.array(parts, dtype=np.int8)[kept],
        names,
        refused,
        expected=np.array([class_of_text[text] for text in there if text in class_of_text]),
        ignored=dict(ignored.most_common()),
    )


def files_there(root: Path, paths: Sequence[str]) -> NDArray[np.bool_]:
    """Which of these paths are files; a look into each folder, since one at each file takes minutes on a network disk.

    Args:
        root: the folder that paths start from; absolute ones are taken as they are.
        paths: with "/", [N].

    Returns:
        Whether each is a file, or a link to one, [N].
    """
    by_folder: dict[str, list[int]] = {}
    for i, path in enumerate(paths):
        by_folder.setdefault(path.rpartition("/")[0] if "/" in path else "", []).append(i)
    there = np.zeros(len(paths), dtype=np.bool_)
    for folder, members in by_folder.items():
        # of an absolute path in the root folder nothing is left but its name
        where = os.path.join(root, folder or ("/" if paths[members[0]].startswith("/") else ""))
        try:
            with os.scandir(where) as entries:
                files = {entry.name for entry in entries if _is_file(entry)}
        except OSError:
            continue
        for i in members:
            there[i] = paths[i].rpartition("/")[2] in files
    return there


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _class_folders(root: Path, refused: Refused, loose: Counter[str]) -> list[tuple[int, str, str]]:
    """Part, class name and path below root of every folder that holds a class, train before the others.

    loose: told of files beside these folders, by their endings.
    """
    tops = _folders(root, "", refused, loose)
    of_parts = [top for top in tops if part_number(top) is not None]
    if tops and of_parts == tops and TRAIN not in map(part_number, tops):
        raise checks.InputError(f"{root}: expected train beside {' and '.join(tops)}, got none")
    if TRAIN not in map(part_number, of_parts):
        classes = [(NO_PART, top, top) for top in tops]
    elif len(of_parts) < len(tops):
        other = next(top for top in tops if top not in of_parts)
        raise checks.InputError(
            f"{root}: expected a folder per class, or train, val and test alone, got {other} beside {of_parts[0]}"
        )
    else:
        inside = [(part_number(top) or 0, top, name) for top in tops for name in _folders(root, top, refused, loose)]
        classes = [(part, name, f"{top}/{name}") for part, top, name in sorted(inside)]
    trained = {name for part, name, _ in classes if part in (TRAIN, NO_PART)}
    fit = []
    for part, name, folder in classes:
        if unfit := unfit_class_name(name):
            refused(f"{root}: got {unfit}")
        elif name not in trained:
            refused(f"{root}/{folder}: expected classes that train has, too, got {name!r}")
        else:
            fit.append((part, name, folder))
    return fit


def _folders(root: Path, folder: str, refused: Refused, loose: Counter[str]) -> list[str]:
    found = []
    for entry in _entries(root, folder, refused):
        if _leads_to_folder(root, folder, entry, refused):
            found.append(entry.name)
        elif _is_file(entry):
            loose[_ending(entry.name)] += 1
        elif not _loops(entry):  # that has been refused
            refused(f"{root / folder / entry.name}: expected a folder, got a link to nothing there")
    return found


def _entries(root: Path, folder: str, refused: Callable[[str], None]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root / folder) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(".") and not entry.name.endswith(SPLITS)]
    except OSError as error:
        refused(f"{root / folder}: cannot be read ({error.strerror})")
        return []
    return sorted(seen, key=lambda entry: entry.name)


def _leads_to_folder(root: Path, folder: str, entry: os.DirEntry[str], refused: Callable[[str], None]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        refused(f"{root / folder / entry.name}: a link that leads to itself")
        return False


def files_below(root: Path, folder: str, refused: Callable[[str], None], above: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths below root of all files in a folder and its folders, but hidden ones.

    Args:
        root: what paths start from.
        folder: below root; "" is root itself.
        refused: told of each link that leads nowhere, or to a folder it lies in, and each folder that cannot be read.
        above: the real folders one has come through.
    """
    real = os.path.realpath(root / folder)
    if real in above or (folder and os.path.realpath(root) == real):
        refused(f"{root / folder}: a link to a folder that it lies in")
        return
    for entry in _entries(root, folder, refused):
        path = f"{folder}/{entry.name}" if folder else entry.name
        if _leads_to_folder(root, folder, entry, refused):
            yield from files_below(root, path, refused, (*above, real))
        elif _is_file(entry):
            yield path
        elif not _loops(entry):  # that has been refused
            refused(f"{root / path}: expected a file, got a link to nothing there")


def _loops(entry: os.DirEntry[str]) -> bool:
    try:
        entry.is_file()
    except OSError:
        return True
    return False
