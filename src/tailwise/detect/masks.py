"""Masks as COCO's compressed run lengths, through faster-coco-eval."""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tailwise import checks


class Rle(NamedTuple):
    """One mask: run lengths in column order, compressed as COCO has it. Made by `encode` or `from_segmentation`."""

    height: int
    width: int
    counts: bytes


def encode(masks: NDArray[np.integer] | NDArray[np.bool_]) -> tuple[Rle, ...]:
    """Masks [M, H, W] of 0 and 1 as run lengths; fastest from booleans that lie in memory column by column.

    >>> encode(np.array([[[0, 1], [0, 1]]]))
    (Rle(height=2, width=2, counts=b'22'),)
    """
    marked = np.asarray(masks) if np.asarray(masks).dtype == np.bool_ else np.asarray(masks) != 0
    array = np.asfortranarray(np.moveaxis(marked.view(np.uint8), 0, -1))
    height, width = array.shape[:2]
    return tuple(Rle(height, width, bytes(rle["counts"])) for rle in library().encode(array))


def from_segmentation(segmentation: object, height: int, width: int) -> Rle:
    """The mask of an annotation's `segmentation`: polygons, or run lengths, compressed or not.

    Args:
        segmentation: [[x1, y1, x2, y2, x3, y3, ...], ...] in pixels, or {"size": [H, W], "counts": ...}.
        height, width: of the image.

    Raises:
        InputError: neither of the two, a polygon of fewer than three points or more than a pixel outside the image
            (less than that is rounding, and is cut off), run lengths of another size.

    >>> decode([from_segmentation([[0, 0, 2, 0, 2, 1, 0, 1]], height=2, width=2)], (2, 2)).tolist()
    [[[1, 1], [0, 0]]]
    """
    if isinstance(segmentation, dict):
        size = segmentation.get("size")
        if not isinstance(size, list | tuple) or list(size) != [height, width]:
            raise checks.InputError(f"expected a mask of the image's size {[height, width]}, got {size!r:.60}")
    elif isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            _check_polygon(polygon, height, width)
    else:
        raise checks.InputError(f"expected polygons or run lengths as segmentation, got {segmentation!r:.60}")
    try:
        found = library().segmToRle(segmentation, width, height)
        rle = Rle(height, width, found["counts"].encode() if isinstance(found["counts"], str) else found["counts"])
        if isinstance(segmentation, dict):
            decode((rle,), (height, width))  # the one thing that notices run lengths of another total
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise checks.InputError(f"expected run lengths that fill the image, got others ({error})") from error
    return rle


def decode(rles: Sequence[Rle], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Masks uint8 [M, H, W] of 0 and 1; `size` is (H, W), which says the shape of no mask at all, too.

    >>> decode(encode(np.array([[[0, 1], [0, 1]]])), (2, 2)).tolist()
    [[[0, 1], [0, 1]]]
    """
    if not rles:
        return np.zeros((0, *size), dtype=np.uint8)
    masks: NDArray[np.uint8] = library().decode([as_dict(rle) for rle in rles])
    return np.ascontiguousarray(np.moveaxis(masks, -1, 0))


def _check_polygon(polygon: object, height: int, width: int) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise checks.InputError(f"expected polygons of at least three points x, y, got {polygon!r:.60}")
    try:
        total = float(sum(polygon))
        bounds = [float(most(polygon[axis::2])) for axis in (0, 1) for most in (min, max)]
        inside = total < math.inf and min(bounds) >= -1 and bounds[1] <= width + 1 and bounds[3] <= height + 1
    except (TypeError, OverflowError) as error:
        raise checks.InputError(f"expected numbers in a polygon, got {polygon!r:.60}") from error
    if not inside:
        raise checks.InputError(
            f"expected a mask inside the image of {height} x {width} pixels, got a polygon with x in "
            f"{bounds[0]:g}..{bounds[1]:g} and y in {bounds[2]:g}..{bounds[3]:g}"
        )


def as_dict(rle: Rle) -> dict[str, object]:
    """As libraries of the COCO family take it."""
    return {"size": [rle.height, rle.width], "counts": rle.counts}


def area(rle: Rle) -> int:
    """Pixels of a mask.

    >>> area(encode(np.array([[[0, 1], [0, 1]]]))[0])
    2
    """
    return int(library().area(as_dict(rle)))


def box_of(rle: Rle) -> tuple[float, float, float, float]:
    """The smallest box x1, y1, x2, y2 around a mask; of an empty one 0, 0, 0, 0.

    >>> box_of(encode(np.array([[[0, 1], [0, 1]]]))[0])
    (1.0, 0.0, 2.0, 2.0)
    """
    x, y, width, height = (float(value) for value in library().toBbox(as_dict(rle)))
    return x, y, x + width, y + height


def library() -> ModuleType:
    """faster-coco-eval's mask functions.

    Raises InputError where it is not installed.
    """
    try:
        from faster_coco_eval import mask
    except ModuleNotFoundError as error:
        raise checks.InputError(f"masks: detection needs faster-coco-eval; {checks.extra('detect')}") from error
    return mask  # type: ignore[no-any-return]  # the library has no types
