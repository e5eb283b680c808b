"""Annotations with the images in their folders: read, and written as LVIS has them."""

import json
import os
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from tailwise import checks
from tailwise.data.files import read_pixels, write_png
from tailwise.detect.annotations import OnBad, as_lvis, read_truth
from tailwise.detect.contract import DetectionSplit, Truth
from tailwise.shapes import UInt8


def read_split(annotations: Path, images: Path, *, on_bad: OnBad = "error") -> DetectionSplit:
    """An annotation file and its images, of which each must be there; pixels are read when asked for.

    Args:
        annotations: json, see `read_truth`.
        images: the folder that holds COCO's folders (train2017/, val2017/), or the one that holds the files.
        on_bad: "skip" leaves out bad annotations and absent images, and lists them in `split.truth.skipped`.

    Raises:
        InputError: as `read_truth`; with "error" also an absent image.
    """
    truth, folder = read_truth(annotations, on_bad=on_bad), Path(images)
    paths = _paths(truth, folder)
    absent = [image for image, path in zip(truth.images, paths, strict=True) if path is None]
    if absent:
        first = f"{absent[0].file} of image {absent[0].image_id}"
        if on_bad == "error" or len(absent) == len(truth.images):
            raise checks.InputError(
                f"{folder}: expected {len(truth.images)} images, {len(absent)} are absent (first: {first})"
            )
        skipped = tuple(f"image {image.image_id}: {image.file} is absent" for image in absent)
        kept = tuple(image for image, path in zip(truth.images, paths, strict=True) if path is not None)
        truth = replace(truth, images=kept, skipped=truth.skipped + skipped)
    return DetectionSplit(truth, ImageFiles(tuple(path for path in paths if path is not None)))


def write_split(split: DetectionSplit, annotations: Path, images: Path) -> None:
    """Images as PNG files in `images` and, when all are there, their annotations as LVIS json.

    `read_split` of the two gives the same split again; category ids are kept, `file` is each image's path.

    Args:
        split: with masks, or boxes alone.
        annotations: the json file; its folder is made.
        images: the folder below which each image's `file` is written.

    Raises:
        InputError: a `file` that is absolute or has "..", where other images may lie; Pillow is not installed.
    """
    for known in split.truth.images:
        if os.path.isabs(known.file) or ".." in Path(known.file).parts:
            raise checks.InputError(
                f"split: expected files below the folder of images, got {known.file} of image {known.image_id}"
            )
    for index, known in enumerate(split.truth.images):
        path = Path(images) / known.file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(split.read(index), path)
    path = Path(annotations)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(as_lvis(split.truth), separators=(",", ":")))
    os.replace(partial, path)


class ImageFiles:
    """Reads image number i; unlike a closure it can be sent to a worker process."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.paths = paths

    def __call__(self, index: int) -> UInt8[Tensor, "3 H W"]:
        return read_pixels(Path(self.paths[index]))


def _paths(truth: Truth, folder: Path) -> list[str | None]:
    """Where each image is, None where nowhere. Folders are listed, not files asked for one by one."""
    if not folder.is_dir():
        raise checks.InputError(f"images: expected a folder, got {folder}")
    listed: dict[str, frozenset[str]] = {}

    def found(name: str) -> str | None:
        parent, base = os.path.split(os.path.join(folder, name))
        if parent not in listed:
            listed[parent] = frozenset(os.listdir(parent)) if os.path.isdir(parent) else frozenset()
        return os.path.join(parent, base) if base in listed[parent] else None

    def of_2017(name: str) -> str | None:
        """An image of LVIS v0.5 by its name of 2014, COCO_train2014_000000000009.jpg, in the folders of 2017."""
        if not name.startswith("COCO_"):
            return None
        number = name.split("_")[-1]
        return found(f"train2017/{number}") or found(f"val2017/{number}") or found(number)

    names = ((image.file, os.path.basename(image.file)) for image in truth.images)
    return [found(file) or found(base) or of_2017(base) for file, base in names]
