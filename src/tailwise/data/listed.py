"""ImageNet-LT, Places-LT and iNaturalist 2018: from their lists and images to splits that are verified and stored."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.data.benchmarks import LISTED, Listed, needed
from tailwise.data.folders import files_there
from tailwise.data.index import PARTS, ImageIndex, OnBad, one_spelling, unfit_id
from tailwise.data.lists import list_hash, read_list
from tailwise.data.local import local_folder
from tailwise.data.on_disk import LooseFiles, string_array
from tailwise.data.prepared import Check, Prepared
from tailwise.data.readable import Progress, unreadable
from tailwise.data.splits import SPLITS, read_splits, write_splits

SAMPLE = 20  # files that a folder of images and a style of path are tried with
Part = tuple[NDArray[Any], NDArray[np.int64]]


def prepare_listed(
    benchmark: Listed,
    data_dir: Path,
    *,
    decode: bool = False,
    on_bad: OnBad = "error",
    progress: Progress | None = None,
) -> Prepared:
    """Verify a benchmark's lists and images, and store splits that name the images as they lie here.

    Lists are looked for in the data folder and the folders in it, images there and in the folders' usual places. Both
    styles of path are understood: `val/n01440764/x.JPEG` and `val/x.JPEG`, whichever of them the disk has.

    Args:
        benchmark: of `LISTED`.
        data_dir: what holds lists and images; NAME.tailwise-splits is written there.
        decode: decode every image in full, not only look at its first bytes.
        on_bad: "error": images that are missing or broken make it unusable; "skip": they are left out, and listed.
        progress: told (done, of how many) images.

    Returns:
        What was found. Splits are written if all of it agrees with what is published.

    Raises:
        InputError: a list with a line that will not do, a folder that cannot be written.
    """
    checks.choice("on_bad", on_bad, ("error", "skip"))
    parts = _read_parts(benchmark, data_dir)
    compared = tuple(_comparisons(benchmark, parts))
    if len(parts) < len(benchmark.lists) or not all(check.ok for check in compared):
        absent = benchmark.needs if len(parts) < len(benchmark.lists) else ()
        return Prepared(benchmark.name, compared, needed(absent, data_dir))
    folders = _class_folders(parts["train"])
    root = _root(benchmark, data_dir, parts["train"], folders)
    if root is None:
        return Prepared(benchmark.name, compared, needed(benchmark.needs[1:], data_dir))
    found = {part: (_as_on_disk(root, ids, labels, folders), labels) for part, (ids, labels) in parts.items()}
    index = _joined(LooseFiles(root, string_array(())), found, _class_names(folders, benchmark.num_classes))
    names = index.source.names
    there = files_there(root, names.tolist())
    missing = tuple(str(root / name) for name in names[~there].tolist())
    broken = unreadable(index.source, np.flatnonzero(there), decode=decode, progress=progress)
    there[[row for row, _ in broken]] = False
    state = Prepared(benchmark.name, compared, (), missing, tuple(why for _, why in broken), root=root)
    if on_bad == "skip":
        state = replace(state, skipped=(*state.missing, *state.unreadable))
        index = replace(index, parts={part: rows[there[rows]] for part, rows in index.parts.items()})
        if lost := index.counts("train").per_class.count(0):
            raise checks.InputError(f"{root}: expected training images of every class, got none of {lost} of them")
    if not state.ready:
        return state
    place = splits_place(benchmark.name, data_dir)
    about = {
        "root": os.path.relpath(root, place) if root.is_relative_to(data_dir) else str(root.resolve()),
        "published_counts": np.bincount(parts["train"][1], minlength=benchmark.num_classes).tolist(),
        "left_out": list(state.skipped),
    }
    write_splits(index, place, about)
    return replace(state, wrote=place, images={part: len(rows) for part, rows in index.parts.items()})


def splits_place(name: str, data_dir: Path) -> Path:
    """The folder of a benchmark's verified splits."""
    return data_dir / f"{name}.{SPLITS}"


def read_listed(name: str, data_dir: Path | None) -> tuple[ImageIndex, ClassCounts]:
    """A benchmark as `prepare_listed` left it: its images, and the counts of the whole published training set.

    Without `data_dir` the environment variable TAILWISE_DATA is asked.

    Raises:
        InputError: an unknown name; no folder; not prepared yet, or what was written was changed.
    """
    checks.choice("data", name, LISTED)
    data_dir = local_folder(data_dir, name)
    place = splits_place(name, data_dir)
    if not place.is_dir():
        raise checks.InputError(
            f"{place}: {name} is not prepared; tailwise data prepare {name} --data-dir {data_dir} verifies it, or says "
            "what to download"
        )
    parts, about = read_splits(place)
    root = Path(os.path.normpath(place / about["root"]))
    index = _joined(LooseFiles(root, string_array(())), parts, tuple(about["class_names"]))
    index = replace(index, skipped=tuple(about.get("left_out", ())))
    return index, ClassCounts(tuple(about["published_counts"]))


def _joined(source: LooseFiles, parts: Mapping[str, Part], class_names: tuple[str, ...]) -> ImageIndex:
    ids = string_array(itertools.chain.from_iterable(ids.tolist() for ids, _ in parts.values()))
    ends = np.cumsum([0, *(len(labels) for _, labels in parts.values())])
    rows = {part: np.arange(a, b) for part, a, b in zip(parts, ends, ends[1:], strict=False)}
    labels = np.concatenate([labels for _, labels in parts.values()])
    return ImageIndex(replace(source, names=ids), labels, class_names, rows)


# ---- lists


def _read_parts(benchmark: Listed, data_dir: Path) -> dict[str, Part]:
    """Ids and labels of each part whose list, or annotations, are there."""
    parts = {}
    for part in [part for part in PARTS if part in benchmark.lists]:
        path = _find(data_dir, benchmark.lists[part])
        if path is not None:
            parts[part] = read_list(path, benchmark.num_classes)[:2]
        elif benchmark.annotations and (path := _find(data_dir, benchmark.annotations[part])):
            parts[part] = read_annotations(path, benchmark.num_classes)
    return parts


def _find(data_dir: Path, name: str) -> Path | None:
    places = (data_dir / name, *sorted(data_dir.glob(f"*/{name}")), *sorted(data_dir.glob(f"*/annotations/{name}")))
    return next((place for place in places if place.is_file()), None)


def read_annotations(path: Path, num_classes: int) -> Part:
    """Image files and category ids of an annotation file in COCO's form, as iNaturalist 2018 has it.

    Raises:
        InputError: no such file, another form, an image without one category, a path or category that will not do.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        category = {note["image_id"]: int(note["category_id"]) for note in content["annotations"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise checks.InputError(f"{path}: not a readable annotation file ({error!r})") from error
    labels = np.array([category.get(number, -1) for number in files], dtype=np.int64)
    for (number, name), label in zip(files.items(), labels.tolist(), strict=True):
        if not 0 <= label < num_classes:
            raise checks.InputError(
                f"{path}, image {number}: expected a category in 0..{num_classes - 1}, "
                f"got {category.get(number, 'none')}"
            )
        if unfit := unfit_id(name):
            raise checks.InputError(f"{path}, image {number}: got {unfit}")
    return string_array(files.values()), labels


def counts_hash(counts: Sequence[int]) -> str:
    """SHA-256 of images per class, "n_0,n_1,...".

    >>> counts_hash([3, 1])[:16]
    '5cc133d7aff32ca2'
    """
    return hashlib.sha256(",".join(map(str, counts)).encode()).hexdigest()


def _comparisons(benchmark: Listed, parts: Mapping[str, Part]) -> Iterator[Check]:
    """What there is of the lists, against what is published."""
    for part, (ids, labels) in parts.items():
        yield Check(f"{part} images", f"{benchmark.totals[part]:,}", f"{len(ids):,}")
        if part in benchmark.list_hashes:
            yield Check(f"{part} list, SHA-256", benchmark.list_hashes[part], list_hash(ids, labels))
    if "train" not in parts:
        return
    counts = ClassCounts.of_labels(parts["train"][1], benchmark.num_classes)
    sizes = (benchmark.group_sizes, counts.group_sizes)
    yield Check("classes with many / medium / few images", *(" / ".join(map(str, size.values())) for size in sizes))
    extremes = ((benchmark.largest, benchmark.smallest), (max(counts.per_class), min(counts.per_class)))
    yield Check("images of the largest and smallest class", *(" / ".join(map(str, pair)) for pair in extremes))
    yield Check("training images per class, SHA-256", benchmark.counts_hash, counts_hash(counts.per_class))
    names = [set(map(one_spelling, ids.tolist())) for ids, _ in parts.values()]
    twice = sum(len(a & b) for a, b in itertools.combinations(names, 2))
    yield Check("images in two splits", "0", str(twice))


# ---- images


def _class_folders(train: Part) -> dict[int, str]:
    """The folder of each class, from the paths of its training images: wnid, scene, species."""
    ids, labels = train
    classes, first = np.unique(labels, return_index=True)
    return {int(c): ids[i].split("/")[-2] for c, i in zip(classes, first, strict=True) if ids[i].count("/")}


def _class_names(folders: Mapping[int, str], num_classes: int) -> tuple[str, ...]:
    return tuple(folders.get(c, str(c)) for c in range(num_classes))


def _as_listed(name: str, folder: str) -> str:  # noqa: ARG001  # a style like the others
    return name


def _without_folder(name: str, folder: str) -> str:  # noqa: ARG001  # a style like the others
    return f"{name.split('/')[0]}/{name.split('/')[-1]}"


def _with_folder(name: str, folder: str) -> str:
    return f"{name.split('/')[0]}/{folder}/{name.split('/')[-1]}"


STYLES = (_as_listed, _without_folder, _with_folder)


def _tries(root: Path, part: Part, folders: Mapping[int, str]) -> list[int]:
    """How many of a few images are there, for each style."""
    ids, labels = part
    few = np.unique(np.linspace(0, len(ids) - 1, SAMPLE).astype(np.int64))
    some = list(zip(ids[few].tolist(), labels[few].tolist(), strict=True))
    return [sum((root / style(name, folders.get(label, ""))).is_file() for name, label in some) for style in STYLES]


def _as_on_disk(root: Path, ids: NDArray[Any], labels: NDArray[np.int64], folders: Mapping[int, str]) -> NDArray[Any]:
    found = _tries(root, (ids, labels), folders)
    style = STYLES[int(np.argmax(found))]  # the first of equals: as listed where none is there
    named = zip(ids.tolist(), labels.tolist(), strict=True)
    return string_array(style(name, folders.get(label, "")) for name, label in named)


def _root(benchmark: Listed, data_dir: Path, train: Part, folders: Mapping[int, str]) -> Path | None:
    """The folder that holds most of a few training images; None if none holds any."""
    inside = sorted(child for child in data_dir.iterdir() if child.is_dir()) if data_dir.is_dir() else []
    usual = [data_dir / folder for folder in benchmark.folders if (data_dir / folder).is_dir()]
    candidates = [*usual, data_dir, *inside]
    tries = [max(_tries(candidate, train, folders)) for candidate in candidates]
    return candidates[int(np.argmax(tries))] if any(tries) else None
