"""The results json of LVIS and COCO: what the evaluation servers take and other tools write."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tailwise import checks
from tailwise.detect.annotations import box_numbers, number
from tailwise.detect.contract import Detections, ImageTruth, Truth
from tailwise.detect.masks import Rle, box_of, from_segmentation
from tailwise.detect.precision import LVIS_LIMIT, top

_Found = tuple[int, int, float, tuple[float, float, float, float], Rle | None]  # image, label, score, box, mask


def write_results(path: Path, detections: Iterable[Detections], truth: Truth) -> None:
    """Detections as a list of {image_id, category_id, bbox, score, segmentation}, an image at a time.

    Category ids are those of the file, boxes x, y, width, height to a hundredth of a pixel, as LVIS's own are, scores
    the shortest numbers that read back the same, masks compressed run lengths. Of an image the 300 best are
    written where the truth is federated: LVIS judges no more. The file appears when it is complete.

    Args:
        path: of the file to write.
        detections: at most one for an image.
        truth: names images and categories.

    Raises:
        InputError: an image unknown, or twice; a label outside 1..C.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    sizes = {image.image_id: (image.height, image.width) for image in truth.images}
    try:
        with partial.open("w", encoding="ascii") as file:
            file.write("[")
            separator = "\n"
            for one in detections:
                if sizes.pop(one.image_id, None) is None:
                    raise checks.InputError(
                        f"detections: expected each image of the truth at most once, got image {one.image_id}"
                    )
                for entry in _entries(one, truth):
                    file.write(separator + json.dumps(entry, separators=(",", ":")))
                    separator = ",\n"
            file.write("\n]\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_results(path: Path, truth: Truth) -> list[Detections]:
    """Detections from a results json, in the order of `truth.images`; images without one are left out.

    Args:
        path: of the file, with boxes, masks or both; a box that is absent is the one around its mask.
        truth: names images and categories.

    Raises:
        InputError: no such file, no json, an image or category unknown, a box or mask that is none; an entry is
            named by its place in the list, from 0.
    """
    try:
        raw = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise checks.InputError(
            f"{path}: expected results as json, got a file that cannot be read ({error})"
        ) from error
    if not isinstance(raw, list):
        raise checks.InputError(f"{path}: expected a list of detections, got a {type(raw).__name__}")
    images = {image.image_id: image for image in truth.images}
    label_of = {category.id: label for label, category in enumerate(truth.categories, start=1)}
    has_masks = any(isinstance(entry, dict) and entry.get("segmentation") for entry in raw)
    by_image: dict[int, list[_Found]] = {}
    for place, entry in enumerate(raw):
        try:
            found = _detection(entry, images, label_of, has_masks)
        except checks.InputError as error:
            raise checks.InputError(f"{path}: detection {place}: {error}") from error
        by_image.setdefault(found[0], []).append(found)
    read = []
    for image_id in (image_id for image_id in images if image_id in by_image):
        _, labels, scores, boxes, masks = zip(*by_image[image_id], strict=True)
        read.append(
            Detections(
                image_id,
                np.array(boxes, dtype=np.float32),
                np.array(scores, dtype=np.float32),
                np.array(labels, dtype=np.int64),
                tuple(masks) if has_masks else None,
            )
        )
    return read


def _entries(one: Detections, truth: Truth) -> list[dict[str, Any]]:
    if len(one) and not 1 <= one.labels.min() <= one.labels.max() <= truth.num_classes:
        raise checks.InputError(f"detections: expected labels in 1..{truth.num_classes} in image {one.image_id}")
    if truth.federated:
        one = top(one, LVIS_LIMIT)
    entries = []
    for i, (x1, y1, x2, y2) in enumerate(one.boxes.astype(np.float64).tolist()):
        entry: dict[str, Any] = {
            "image_id": one.image_id,
            "category_id": truth.categories[int(one.labels[i]) - 1].id,
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": float(str(one.scores[i])),
        }
        if one.masks is not None:
            height, width, counts = one.masks[i]
            entry["segmentation"] = {"size": [height, width], "counts": counts.decode("ascii")}
        entries.append(entry)
    return entries


def _detection(entry: Any, images: dict[int, ImageTruth], label_of: dict[int, int], has_masks: bool) -> _Found:
    """One entry of the list, checked; box x1, y1, x2, y2."""
    if not isinstance(entry, dict):
        raise checks.InputError(f"expected a json object, got {entry!r:.60}")
    image_id, category_id, score = (entry.get(key) for key in ("image_id", "category_id", "score"))
    if not isinstance(image_id, int) or image_id not in images:
        raise checks.InputError(f"expected an image of the truth, got {image_id!r}")
    if not isinstance(category_id, int) or category_id not in label_of:
        raise checks.InputError(f"expected a category of the truth, got {category_id!r}")
    image = images[image_id]
    mask = from_segmentation(entry.get("segmentation"), image.height, image.width) if has_masks else None
    if mask and "bbox" not in entry:
        return image_id, label_of[category_id], number("score", score), box_of(mask), mask
    x, y, width, height = box_numbers(entry.get("bbox"))
    if min(width, height) < 0:
        raise checks.InputError(f"bbox: expected a width and height of at least 0, got {entry['bbox']!r:.60}")
    return image_id, label_of[category_id], number("score", score), (x, y, x + width, y + height), mask
