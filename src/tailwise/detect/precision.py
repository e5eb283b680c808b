"""Average precision of boxes and masks, as LVIS and as COCO define it, by faster-coco-eval.

Categories do not meet in average precision, so they are evaluated a block at a time: the library keeps an entry for
every pair of image and category, which for LVIS are 24 million.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tailwise import checks
from tailwise.detect.contract import FREQUENCIES, Detections, Truth
from tailwise.detect.masks import Rle, as_dict, library

Kind = Literal["box", "mask"]
FIGURES = ("AP", "AP50", "AP75", "APr", "APc", "APf")
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
LVIS_LIMIT = 300  # detections per image, over all categories
COCO_LIMIT = 100  # detections per image and category
BLOCK = 100  # categories evaluated at a time


def average_precision(truth: Truth, detections: Iterable[Detections], kind: Kind = "box") -> dict[str, float | None]:
    """AP, AP50, AP75, APr, APc and APf in percent, means over classes (Lin et al. 2014, Gupta et al. 2019).

    A federated truth is judged as LVIS does: per image the 300 detections of highest score over all categories; of
    these only categories that are annotated in the image or verified to be absent; where a category is not
    exhaustively annotated, what matches nothing is no error. Any other truth as COCO does: 100 detections per image
    and category, and what lies in a crowd is no error.

    Args:
        truth: images and categories; images without detections are judged, too.
        detections: at most one for an image.
        kind: "box", or "mask" by the detections' masks.

    Returns:
        The six figures. None where no class of the group is in the truth, never 0.

    Raises:
        InputError: as `class_precision`.

    >>> from tailwise.detect import Category, ImageTruth, Truth
    >>> box = np.array([[0.0, 0.0, 4.0, 4.0]])
    >>> known = ImageTruth(7, "7.png", 8, 8, box, np.array([1]), np.array([False]), np.array([16.0]),
    ...     np.array([1]), masks=(), negative=frozenset({2}))
    >>> truth = Truth((Category(3, "cat", "f"), Category(5, "dog", "r")), (known,))
    >>> found = Detections(7, box.astype(np.float32), np.array([0.9], np.float32), np.array([1]))
    >>> {name: value for name, value in average_precision(truth, [found]).items() if name in ("AP", "APr")}
    {'AP': 100.0, 'APr': None}
    """
    per_class = class_precision(truth, detections, kind)
    groups = {f"AP{group}": [c.frequency == group for c in truth.categories] for group in FREQUENCIES}
    at = {threshold: per_class[row : row + 1] for row, threshold in enumerate(IOU_THRESHOLDS)}
    rows = {"AP": per_class, "AP50": at[0.5], "AP75": at[0.75]}
    rows |= {name: per_class[:, members] for name, members in groups.items()}
    return {name: _mean(rows[name]) for name in FIGURES}


def class_precision(truth: Truth, detections: Iterable[Detections], kind: Kind = "box") -> NDArray[np.float64]:
    """Average precision in percent at each IoU of `IOU_THRESHOLDS` and for each class, [10, C].

    NaN for a class that is not in the truth (crowds do not count). Column c is label c + 1. Arguments as in
    `average_precision`.

    Raises:
        InputError: faster-coco-eval is not installed; a truth without an annotation; an image unknown, or twice;
            a label outside 1..C; "mask" without masks.
    """
    checks.choice("kind", kind, ("box", "mask"))
    library()  # so that its absence is named before anything is done
    _check_truth(truth, kind)
    blocks = _blocks(truth, _kept(truth, _checked(truth, detections, kind)), kind)
    return np.concatenate([_evaluated(truth, *block, kind) for block in blocks], axis=1)


def top(detections: Detections, limit: int) -> Detections:
    """The `limit` detections of highest score; of equal ones those that come first."""
    if len(detections) <= limit:
        return detections
    return detections.take(np.argsort(-detections.scores, kind="stable")[:limit])


def _mean(values: NDArray[np.float64]) -> float | None:
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if len(measured) else None


def _check_truth(truth: Truth, kind: Kind) -> None:
    if not any(len(image.labels) for image in truth.images):
        raise checks.InputError("truth: expected images with annotations, got none")
    for image in truth.images:
        if kind == "mask" and len(image.masks) != len(image.labels):
            raise checks.InputError(f"truth: expected masks, got boxes only (first: image {image.image_id})")


def _checked(truth: Truth, detections: Iterable[Detections], kind: Kind) -> dict[int, Detections]:
    known = {image.image_id: image for image in truth.images}
    found: dict[int, Detections] = {}
    for one in detections:
        if one.image_id not in known:
            raise checks.InputError(f"detections: expected images of the truth, got image {one.image_id}")
        if one.image_id in found:
            raise checks.InputError(f"detections: expected an image once, got image {one.image_id} twice")
        if len(one) and not 1 <= one.labels.min() <= one.labels.max() <= truth.num_classes:
            raise checks.InputError(
                f"detections: expected labels in 1..{truth.num_classes}, got {one.labels.min()}..{one.labels.max()} "
                f"in image {one.image_id}"
            )
        if kind == "mask" and one.masks is None:
            raise checks.InputError(f"detections: expected masks, got boxes only (first: image {one.image_id})")
        size = known[one.image_id].height, known[one.image_id].width
        if any(mask[:2] != size for mask in one.masks or ()):
            raise checks.InputError(f"detections: expected masks of {list(size)}, got others in image {one.image_id}")
        found[one.image_id] = one
    return found


def _kept(truth: Truth, found: dict[int, Detections]) -> dict[int, Detections]:
    """What is judged under LVIS's rules; the library drops the same, but has to be handed all of it first."""
    if not truth.federated:
        return found
    kept = {}
    for image in truth.images:
        if image.image_id in found:
            best = top(found[image.image_id], LVIS_LIMIT)
            judged = np.array([*image.negative, *np.unique(image.labels).tolist()], dtype=np.int64)
            kept[image.image_id] = best.take(np.flatnonzero(np.isin(best.labels, judged)))
    return kept


Entries = list[dict[str, Any]]


def _blocks(truth: Truth, found: dict[int, Detections], kind: Kind) -> list[tuple[range, Entries, Entries]]:
    """For each block of labels its annotations and detections, as the library takes them."""
    starts = range(1, truth.num_classes + 1, BLOCK)
    known: list[Entries] = [[] for _ in starts]
    given: list[Entries] = [[] for _ in starts]
    for image in truth.images:
        masks = image.masks if kind == "mask" else ()
        for entry, crowd in zip(
            _entries(image.image_id, image.labels, image.boxes, masks), image.is_crowd, strict=True
        ):
            _add(known, entry | {"iscrowd": int(crowd)})
        if image.image_id in found:
            one = found[image.image_id]
            masks = (one.masks or ()) if kind == "mask" else ()
            entries = _entries(image.image_id, one.labels, one.boxes.astype(np.float64), masks)
            for entry, score in zip(entries, one.scores.tolist(), strict=True):
                _add(given, entry | {"iscrowd": 0, "score": score})
    ranges = (range(start, min(start + BLOCK, truth.num_classes + 1)) for start in starts)
    return list(zip(ranges, known, given, strict=True))


def _entries(image_id: int, labels: NDArray[Any], boxes: NDArray[np.float64], masks: Sequence[Rle]) -> Entries:
    corners, sizes = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    # area 1: every size is judged, and an area in a file might be anything
    entries: Entries = [
        {"image_id": image_id, "category_id": label, "bbox": box, "area": 1.0}
        for label, box in zip(labels.tolist(), np.concatenate([corners, sizes], axis=1).tolist(), strict=True)
    ]
    for entry, mask in zip(entries, masks, strict=False):  # no masks where boxes are judged
        entry["segmentation"] = as_dict(mask)
    return entries


def _add(blocks: list[Entries], entry: dict[str, Any]) -> None:
    block = blocks[(entry["category_id"] - 1) // BLOCK]
    block.append(entry | {"id": len(block) + 1})  # to the library 0 is no id


def _evaluated(truth: Truth, labels: range, known: Entries, given: Entries, kind: Kind) -> NDArray[np.float64]:
    """Percent, [10, classes of the block]."""
    if not known:
        return np.full((len(IOU_THRESHOLDS), len(labels)), np.nan)
    from faster_coco_eval import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    touched = {entry["image_id"] for entry in (*known, *given)}
    images = [
        {
            "id": image.image_id,
            "height": image.height,
            "width": image.width,
            "neg_category_ids": list(image.negative),
            "not_exhaustive_category_ids": list(image.not_exhaustive),
        }
        for image in truth.images
        if image.image_id in touched
    ]
    categories = [{"id": label, "name": str(label), "frequency": "f"} for label in labels]
    sides = [COCO({"images": images, "categories": categories, "annotations": side}) for side in (known, given)]
    # threads would take the caller's cores
    evaluation = COCOeval_faster(
        *sides, {"box": "bbox", "mask": "segm"}[kind], lvis_style=truth.federated, rle_iou_max_workers=1
    )
    evaluation.params.maxDets = [LVIS_LIMIT if truth.federated else COCO_LIMIT]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.0, math.inf]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, 0]
    return np.where(precision[:, 0] < 0, np.nan, 100 * precision.mean(axis=1))
