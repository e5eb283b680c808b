"""Train, val and test for data that comes without: drawn once, stored beside it, and compared with it ever after."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwise import checks
from tailwise.data.index import PARTS, ImageIndex
from tailwise.data.lists import list_text, read_list
from tailwise.data.long_tail import frozen_order, ids_hash, val_sizes
from tailwise.data.on_disk import string_array

FORMAT = "tailwise-splits/1"
ABOUT = "splits.json"
SPLITS = "tailwise-splits"  # what the folder is called, or how its name ends
LARGEST_TEST = 100  # images of a class, as Places-LT has it


def drawn_test_sizes(counts: Iterable[int]) -> tuple[int, ...]:
    """How many images of each class a drawn test split takes: as `val_sizes`, but up to 100.

    With as many for val, a class of 3 keeps one to be trained on; smaller ones are trained on alone.

    >>> drawn_test_sizes([5000, 60, 5, 3, 2, 0])
    (100, 12, 1, 1, 0, 0)
    """
    return tuple(min(LARGEST_TEST, max(1, n // 5)) if n >= 3 else 0 for n in counts)


def draw_splits(index: ImageIndex, *, seed: int = 0) -> ImageIndex:
    """The index with val and test, drawn from train (or from all images, where nothing is divided) if it has none.

    Within a class by SHA-256 of (seed, id), so that an image more leaves most of the others where they were. Every
    class of at least 3 images is in each split that is drawn, and none is taken from train altogether.

    Raises:
        InputError: parts without train; no class of at least 3 images.

    Limit case: where all three are there, nothing is drawn.
    """
    if index.parts and "train" not in index.parts:
        raise checks.InputError(f"splits: expected images to train on, got {' and '.join(index.parts)} alone")
    missing = [part for part in ("test", "val") if part not in index.parts]
    if not missing:
        return index
    pool = index.parts.get("train", np.arange(len(index.labels)))
    labels = index.labels[pool]
    counts = np.bincount(labels, minlength=len(index.class_names)).tolist()
    if max(counts) < 3:
        raise checks.InputError("splits: expected a class of at least 3 images, got none; there is nothing to test on")
    orders = frozen_order(labels, "own", seed, index.source.names[pool])
    parts = dict(index.parts)
    first = np.zeros(len(counts), dtype=np.int64)
    for part in missing:
        sizes = np.array((drawn_test_sizes if part == "test" else val_sizes)(counts))
        taken = [order[a:b] for order, a, b in zip(orders, first, first + sizes, strict=False)]
        parts[part] = pool[np.sort(np.concatenate(taken))]
        first += sizes
    kept = [order[a:] for order, a in zip(orders, first, strict=False)]
    parts["train"] = pool[np.sort(np.concatenate(kept))]
    return replace(index, parts={part: parts[part] for part in PARTS})


def stored_splits(
    index: ImageIndex, place: Path | None, *, seed: int = 0, redraw: bool = False, leave_out: Sequence[str] = ()
) -> ImageIndex:
    """The index divided as the folder `place` says; what is not there yet is drawn and written to it.

    The folder holds train.txt, val.txt and test.txt, a line `id label` for each image, and splits.json with seed, class
    names, a hash, and what was left out. What is there is never replaced, unless `redraw` asks for it.

    Args:
        index: of all the images.
        place: the folder; it appears when it is complete. None is made, or needed, for data that is divided and whole.
        seed: what a new split is drawn with; a stored one keeps its own.
        redraw: draw anew and replace what is there, or remove it where there is nothing to draw.
        leave_out: ids of images that shall be in no split.

    Raises:
        InputError: images added, removed or of another class since; a file of the folder that was changed; a folder
            that cannot be written, or holds something else than splits to redraw.
    """
    there = place if place is not None and place.exists() else None
    if there and redraw and not (there / ABOUT).exists() and not (there.is_dir() and not any(there.iterdir())):
        raise checks.InputError(f"splits: expected a folder of stored splits, got {there} without {ABOUT}")
    stored = there is not None and not redraw
    if not stored and not leave_out and all(part in index.parts for part in PARTS):
        if there:
            _remove(there)
        return index
    if place is None:
        raise checks.InputError(
            "splits: expected a folder to store them in, for the data has no place of its own, got none"
        )
    if stored:
        return _as_stored(index, place, leave_out)
    drawn = [part for part in PARTS if part not in index.parts]
    divided = draw_splits(_without(index, leave_out), seed=seed)
    write_splits(divided, place, {"seed": seed, "drawn": drawn, "left_out": list(leave_out)})
    return divided


def _remove(place: Path) -> None:
    try:
        shutil.rmtree(place)
    except OSError as error:
        raise checks.InputError(f"{place}: cannot remove the splits ({error.strerror})") from error


def _without(index: ImageIndex, ids: Sequence[str]) -> ImageIndex:
    kept = ~np.isin(index.source.names, string_array(ids)) if ids else np.ones(len(index.labels), dtype=bool)
    parts = index.parts or {"train": np.arange(len(index.labels))}
    for part, rows in parts.items():
        if not kept[rows].any():
            first = index.source.names[rows[0]]
            raise checks.InputError(f"{part}: expected images that will do, got none of {len(rows)} (first: {first})")
    return replace(index, parts={part: rows[kept[rows]] for part, rows in parts.items()})


def write_splits(index: ImageIndex, place: Path, about: dict[str, Any]) -> None:
    """Write the lists of an index's parts, and what is known about them; the folder appears when it is complete.

    Raises:
        InputError: the folder cannot be written.
    """
    record = about | {
        "format": FORMAT,
        "class_names": list(index.class_names),
        "counts": {part: list(index.counts(part).per_class) for part in index.parts},
        "hash": splits_hash(index),
    }
    room = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))  # that nobody else makes
        partial, before = room / "partial", room / "before"
        partial.mkdir()
        for part, rows in index.parts.items():
            text = list_text(index.source.names[rows], index.labels[rows])
            (partial / f"{part}.txt").write_text(text, encoding="utf-8", newline="\n")
        (partial / ABOUT).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if place.exists():
            place.rename(before)
        try:
            partial.rename(place)
        except OSError:
            if before.exists():
                before.rename(place)
            raise
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise checks.InputError(
            f"{place}: cannot write the splits ({error.strerror}); name another folder for them with splits"
        ) from error
    finally:
        if room is not None:
            shutil.rmtree(room / "partial", ignore_errors=True)
            with suppress(OSError):  # what was before, and could not be put back, stays
                room.rmdir()


def read_splits(place: Path) -> tuple[dict[str, tuple[NDArray[Any], NDArray[np.int64]]], dict[str, Any]]:
    """Ids and labels of each part stored in a folder, and its splits.json.

    Raises:
        InputError: no such folder; a file that is missing, broken or was changed.
    """
    try:
        about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        names, hashed, counts = about["class_names"], about["hash"], about["counts"]
        if about["format"] != FORMAT:
            raise checks.InputError(f"{place / ABOUT}: expected format {FORMAT}, got {about['format']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, checks.InputError):
            raise
        raise checks.InputError(f"{place / ABOUT}: not a readable record of splits ({error!r})") from error
    parts = {part: read_list(place / f"{part}.txt", len(names))[:2] for part in PARTS if part in counts}
    if hash_of(parts) != hashed:
        raise checks.InputError(
            f"{place}: expected lists of hash {hashed[:16]}, got {hash_of(parts)[:16]}; somebody changed them: bring "
            "them back, or draw anew with redraw"
        )
    return parts, about


def splits_hash(index: ImageIndex) -> str:
    """SHA-256 of the ids and labels of train, val and test."""
    return hash_of({part: (index.source.names[rows], index.labels[rows]) for part, rows in index.parts.items()})


def hash_of(parts: dict[str, tuple[NDArray[Any], NDArray[np.int64]]]) -> str:
    """SHA-256 of parts, each ids and labels."""
    present = [parts[part] for part in PARTS if part in parts]
    return ids_hash(*(array for ids, labels in present for array in (ids, labels.astype(str))))


def _as_stored(index: ImageIndex, place: Path, leave_out: Sequence[str]) -> ImageIndex:
    parts, about = read_splits(place)
    left_out = list(dict.fromkeys([*about.get("left_out", []), *leave_out]))
    given = _without(index, left_out)
    number = {name: i for i, name in enumerate(index.source.names.tolist())}
    wanted = np.sort(np.concatenate(list(given.parts.values())))
    rows, removed, moved = dict[str, NDArray[np.int64]](), list[str](), list[str]()
    for part, (ids, labels) in parts.items():
        found = np.array([number.get(name, -1) for name in ids.tolist()], dtype=np.int64)
        gone = ~np.isin(found, wanted)
        removed += ids[gone].tolist()
        found, labels = found[~gone], labels[~gone]
        moved += index.source.names[found[index.labels[found] != labels]].tolist()
        rows[part] = np.sort(found)
    added = index.source.names[np.setdiff1d(wanted, np.concatenate(list(rows.values())))].tolist()
    renamed = about["class_names"] != list(index.class_names)
    other = [part for part, own in given.parts.items() if part != "train" and not np.array_equal(own, rows[part])]
    if removed or moved or added or renamed or other:
        what = _changes(added, removed, moved, other)
        raise checks.InputError(f"{place}: the data is not what it was split as: {what}")
    lines = [f"{name}: left out when the data was prepared" for name in left_out]
    return replace(index, parts={part: rows[part] for part in PARTS}, skipped=(*index.skipped, *lines))


def _changes(added: list[str], removed: list[str], moved: list[str], other: list[str]) -> str:
    what = [
        f"{len(names)} {verb} (first: {names[0]})"
        for names, verb in ((added, "added"), (removed, "removed"), (moved, "of another class"))
        if names
    ]
    what += [f"other images in {part}" for part in other]
    return (
        f"{', '.join(what) or 'classes of other names'}. Draw anew with redraw, which makes results before and after "
        "differ; most images stay where they were"
    )
