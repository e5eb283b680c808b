"""Annotation files: LVIS v0.5 and v1.0, COCO, and others of their format. Read once, each annotation checked.

A message names the file and the annotation, image or category by its id.
"""

import json
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tailwise import checks
from tailwise.detect.contract import FREQUENCIES, Category, Frequency, ImageTruth, Truth
from tailwise.detect.masks import Rle, area, from_segmentation

OnBad = Literal["error", "skip"]
RARE_UP_TO, COMMON_UP_TO = 10, 100  # training images of a category, as LVIS groups them (Gupta et al. 2019)


def frequency_of(image_count: int) -> Frequency:
    """LVIS's group of a category by the training images it is annotated in: rare 1..10, common 11..100, else frequent.

    >>> [frequency_of(n) for n in (10, 11, 100, 101)]
    ['r', 'c', 'c', 'f']
    """
    return "r" if image_count <= RARE_UP_TO else "c" if image_count <= COMMON_UP_TO else "f"


def read_truth(path: Path, *, on_bad: OnBad = "error") -> Truth:
    """An annotation file, checked. It is federated, as LVIS is, if its images have `neg_category_ids`.

    Categories are ordered by id, and labels are 1..C in that order. A category's frequency is the file's, or follows
    from its `image_count`, or is None. An image is found by the last two parts of its `coco_url` where it has one
    (LVIS v1.0 has nothing else, v0.5 has file names of 2014), else by its `file_name`. Masks are compressed at once,
    polygons and run lengths alike; if each `segmentation` is absent or empty there are boxes only. A file without
    annotations, as test sets have it, has images without instances. An image without one or with crowds alone is valid.

    Args:
        path: of the json file.
        on_bad: "skip" leaves out the images and annotations that "error" refuses, and lists them in `Truth.skipped`; an
            annotation's category is not exhaustive then.

    Raises:
        InputError: no such file, no json, a category without id or name, or with another's id; with "error" also an
            image without size or with another's id, and an annotation whose id is not new, whose image or category is
            unknown, whose box is degenerate or outside the image, or whose mask is empty, of another size or outside.
    """
    checks.choice("on_bad", on_bad, ("error", "skip"))
    content = _read_json(path)
    reading = _Reading(path, on_bad)
    categories = sorted((_category(path, raw) for raw in _list(path, content, "categories")), key=lambda c: c.id)
    label_of = {category.id: label for label, category in enumerate(categories, start=1)}
    if len(label_of) < len(categories):
        raise checks.InputError(f"{path}: expected category ids that are unique, got one twice")

    images: dict[int, dict[str, Any]] = {}
    for raw in _list(path, content, "images"):
        with reading.of("image", raw):
            images[_new_id(_object(raw), images)] = _sized(raw)
    annotations = _list(path, content, "annotations") if "annotations" in content else []
    has_masks = any(raw.get("segmentation") for raw in annotations if isinstance(raw, dict))
    instances: dict[int, list[_Instance]] = {image_id: [] for image_id in images}
    left_out: dict[int, set[int]] = {image_id: set() for image_id in images}
    seen: set[int] = set()
    for raw in annotations:
        with reading.of("annotation", raw):
            image, label = _known(_object(raw), "image_id", images), _known(raw, "category_id", label_of)
            try:
                seen.add(_new_id(raw, seen))
                instances[raw["image_id"]].append(_instance(raw, image, label, has_masks))
            except checks.InputError:
                left_out[raw["image_id"]].add(label)  # what it meant is there all the same, and may be found
                raise
    truths = tuple(
        _image_truth(raw, instances[image_id], left_out[image_id], label_of, reading)
        for image_id, raw in images.items()
    )
    federated = any("neg_category_ids" in raw for raw in images.values())
    return Truth(tuple(categories), truths, federated, tuple(reading.skipped))


def as_lvis(truth: Truth) -> dict[str, Any]:
    """The content of an LVIS json file, or of a COCO one where the truth is not federated; `read_truth`'s inverse."""
    ids = [category.id for category in truth.categories]
    categories = [
        {"id": c.id, "name": c.name} | ({"frequency": c.frequency} if c.frequency else {}) for c in truth.categories
    ]
    images, annotations = [], []
    for image in truth.images:
        entry: dict[str, Any] = {"id": image.image_id, "file_name": image.file}
        entry |= {"height": image.height, "width": image.width}
        if truth.federated:
            entry["neg_category_ids"] = [ids[label - 1] for label in sorted(image.negative)]
            entry["not_exhaustive_category_ids"] = [ids[label - 1] for label in sorted(image.not_exhaustive)]
        images.append(entry)
        for i, (x1, y1, x2, y2) in enumerate(image.boxes.tolist()):
            annotation: dict[str, Any] = {"id": int(image.annotation_ids[i]), "image_id": image.image_id}
            annotation |= {"category_id": ids[image.labels[i] - 1], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            annotation |= {"area": float(image.areas[i]), "iscrowd": int(image.is_crowd[i])}
            if image.masks:
                mask = image.masks[i]
                annotation["segmentation"] = {"size": [mask.height, mask.width], "counts": mask.counts.decode("ascii")}
            annotations.append(annotation)
    return {"categories": categories, "images": images, "annotations": annotations}


@dataclass(frozen=True)
class _Reading:
    """What to do about what is bad, and what was done."""

    path: Path
    on_bad: OnBad
    skipped: list[str] = field(default_factory=list)

    @contextmanager
    def of(self, kind: str, raw: object) -> Iterator[None]:
        """Within, an InputError is about this image or annotation: raised with its id, or noted and left behind."""
        try:
            yield
        except checks.InputError as error:
            name = raw.get("id", "without an id") if isinstance(raw, dict) else "of a wrong kind"
            self.skipped.append(f"{kind} {name}: {error}")
            if self.on_bad == "error":
                raise checks.InputError(f"{self.path}: {self.skipped[-1]}") from error


@dataclass(frozen=True)
class _Instance:
    box: tuple[float, float, float, float]
    label: int
    is_crowd: bool
    area: float
    id: int
    mask: Rle | None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise checks.InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise checks.InputError(f"{path}: expected json, got a broken file ({error})") from error
    if not isinstance(content, dict):
        raise checks.InputError(f"{path}: expected images, annotations and categories, got a {type(content).__name__}")
    return content


def _list(path: Path, content: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(content.get(key), list):
        raise checks.InputError(f"{path}: expected a list of {key}, got {content.get(key)!r:.60}")
    return list(content[key])


def _category(path: Path, raw: Any) -> Category:
    if not isinstance(raw, dict) or not _is_id(raw.get("id")):
        raise checks.InputError(f"{path}: expected categories with a whole number as id, got {raw!r:.80}")
    name, frequency, count = raw.get("name"), raw.get("frequency"), raw.get("image_count")
    if not isinstance(name, str) or not name:
        raise checks.InputError(f"{path}: category {raw['id']}: expected a name, got {name!r}")
    if frequency is None and isinstance(count, int):
        frequency = frequency_of(count)
    if frequency not in (*FREQUENCIES, None):
        raise checks.InputError(f"{path}: category {raw['id']}: expected frequency r, c or f, got {frequency!r}")
    return Category(raw["id"], name, frequency)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _object(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise checks.InputError(f"expected a json object, got {raw!r:.60}")
    return raw


def _new_id(raw: dict[str, Any], taken: Container[int]) -> int:
    if not _is_id(raw.get("id")):
        raise checks.InputError(f"expected a whole number as id, got {raw.get('id')!r}")
    if raw["id"] in taken:
        raise checks.InputError("expected ids that are unique, got this one twice")
    return int(raw["id"])


def _known(raw: dict[str, Any], key: str, known: dict[int, Any]) -> Any:
    if not _is_id(raw.get(key)) or raw[key] not in known:
        raise checks.InputError(f"expected {key} to be in the file's list, got {raw.get(key)!r}")
    return known[raw[key]]


def _sized(raw: dict[str, Any]) -> dict[str, Any]:
    for key in ("height", "width"):
        if not _is_id(raw.get(key)) or raw[key] < 1:
            raise checks.InputError(f"expected a {key} of at least 1, got {raw.get(key)!r}")
    name = raw.get("coco_url") or raw.get("file_name")
    if not isinstance(name, str) or not name:
        raise checks.InputError(f"expected a coco_url or a file_name, got {name!r}")
    return raw


def _file(raw: dict[str, Any]) -> str:
    return "/".join(raw["coco_url"].split("/")[-2:]) if raw.get("coco_url") else str(raw["file_name"])


def _instance(raw: dict[str, Any], image: dict[str, Any], label: int, has_masks: bool) -> _Instance:
    height, width = image["height"], image["width"]
    box = _box(raw.get("bbox"), height, width)
    mask = from_segmentation(raw.get("segmentation"), height, width) if has_masks else None
    pixels = area(mask) if mask else (box[2] - box[0]) * (box[3] - box[1])
    if not pixels:
        raise checks.InputError("expected a mask of at least one pixel of the image, got none")
    size = number("area", raw.get("area", pixels))
    return _Instance(box, label, bool(raw.get("iscrowd", 0)), size, int(raw["id"]), mask)


def number(name: str, raw: object) -> float:
    """A finite number from json, else an InputError."""
    if not isinstance(raw, int | float) or isinstance(raw, bool) or not abs(raw) <= sys.float_info.max:
        raise checks.InputError(f"{name}: expected a finite number, got {raw!r:.60}")
    return float(raw)


def box_numbers(raw: object) -> tuple[float, float, float, float]:
    """x, y, width, height from json, else an InputError."""
    if not isinstance(raw, list) or len(raw) != 4:
        raise checks.InputError(f"bbox: expected four numbers x, y, width, height, got {raw!r:.60}")
    return number("bbox", raw[0]), number("bbox", raw[1]), number("bbox", raw[2]), number("bbox", raw[3])


def _box(raw: object, height: int, width: int) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a box x, y, width, height, cut off at the image's edge."""
    x, y, w, h = box_numbers(raw)
    if w <= 0 or h <= 0:
        raise checks.InputError(f"expected a box wider and higher than 0, got a degenerate one, {raw}")
    box = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    beyond = min(x, y) < -1 or x + w > width + 1 or y + h > height + 1  # less than a pixel is rounding
    if beyond or box[2] <= box[0] or box[3] <= box[1]:
        raise checks.InputError(f"expected a box inside the image of {height} x {width} pixels, got {raw}")
    return box


def _image_truth(
    raw: dict[str, Any], instances: list[_Instance], left_out: set[int], label_of: dict[int, int], reading: _Reading
) -> ImageTruth:
    labels: dict[str, frozenset[int]] = {}
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        labels[key] = frozenset()
        with reading.of("image", raw):
            ids = raw.get(key, [])
            if not isinstance(ids, list):
                raise checks.InputError(f"expected {key} to be a list, got {ids!r:.60}")
            known = [c for c in ids if _is_id(c) and c in label_of]
            labels[key] = frozenset(label_of[c] for c in known)  # all that is kept where others are left out
            unknown = [c for c in ids if c not in known]
            if unknown:
                raise checks.InputError(f"expected {key} to be in the file's list, got {unknown[0]!r}")
    return ImageTruth(
        image_id=int(raw["id"]),
        file=_file(raw),
        height=raw["height"],
        width=raw["width"],
        boxes=np.array([instance.box for instance in instances], dtype=np.float64).reshape(-1, 4),
        labels=np.array([instance.label for instance in instances], dtype=np.int64),
        is_crowd=np.array([instance.is_crowd for instance in instances], dtype=np.bool_),
        areas=np.array([instance.area for instance in instances], dtype=np.float64),
        annotation_ids=np.array([instance.id for instance in instances], dtype=np.int64),
        masks=tuple(instance.mask for instance in instances if instance.mask),
        negative=labels["neg_category_ids"],
        not_exhaustive=labels["not_exhaustive_category_ids"] | left_out,
    )
