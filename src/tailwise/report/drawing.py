"""Detections drawn on their image: masks, boxes and names, several answers side by side."""

import colorsys
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tailwise import checks
from tailwise.detect.contract import Detections
from tailwise.detect.masks import decode

if TYPE_CHECKING:
    from PIL import Image, ImageFont

Box = tuple[float, float, float, float]

LEAST_SIDE = 480  # a smaller image is magnified, so that names have room
FONT_SIZE, PADDING, GAP = 14, 2, 8
OPACITY = 0.25  # of a mask, within its outline


def draw_detections(
    image: NDArray[np.uint8],
    panels: Mapping[str, Detections],
    class_names: Sequence[str],
    *,
    min_score: float = 0.0,
    limit: int = 30,
) -> "Image.Image":
    """An image once for each panel, side by side, below its title: "before" and "after" TDE, say.

    A class has one colour in all panels. Names are put where they cover neither one another nor leave the picture, the
    best detection's first; where there is no such place, where they cover least. Scores stand behind names; a score of
    1, which annotations have, does not.

    Args:
        image: uint8 [3, H, W]; a small one is magnified by a whole number.
        panels: title to what is to be drawn, at least one.
        class_names: [C]; name c is of label c + 1.
        min_score: what scores less is left out.
        limit: the most that is drawn in a panel, the best first.

    Raises:
        InputError: Pillow is not installed; no panel; a label without a name.

    >>> found = Detections(1, np.array([[2, 2, 30, 30]], np.float32), np.array([0.75], np.float32), np.array([1]))
    >>> draw_detections(np.zeros((3, 40, 60), np.uint8), {"before": found, "after": found}, ["cat"]).size
    (968, 342)
    """
    pillow, drawing = _pillow()
    if not panels:
        raise checks.InputError("panels: expected at least one, got none")
    for title, found in panels.items():
        wrong = found.labels[(found.labels < 1) | (found.labels > len(class_names))]
        if len(wrong):
            raise checks.InputError(f"panels: expected labels in 1..{len(class_names)}, got {wrong[0]} in '{title}'")
    height, width = image.shape[1:]
    factor = max(1, -(-LEAST_SIDE // max(height, width)))
    head = FONT_SIZE + 4 * PADDING
    size = len(panels) * (width * factor + GAP) - GAP, head + height * factor
    sheet: Image.Image = pillow.new("RGB", size, (255, 255, 255))
    for place, (title, found) in enumerate(panels.items()):
        best = np.argsort(-found.scores, kind="stable")[:limit]
        shown = found.take(best[found.scores[best] >= min_score])
        panel = _panel(image, shown, class_names, factor)
        left = place * (width * factor + GAP)
        sheet.paste(panel, (left, head))
        drawing.Draw(sheet).text((left + PADDING, PADDING), title, fill=(0, 0, 0), font=_font())
    return sheet


def save_png(picture: "Image.Image", path: Path | str) -> None:
    """Write a picture as PNG; the file appears when it is complete."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    picture.save(partial, format="PNG")
    os.replace(partial, path)


def _panel(image: NDArray[np.uint8], found: Detections, names: Sequence[str], factor: int) -> "Image.Image":
    pillow, drawing = _pillow()
    pixels = _magnified(image, factor).transpose(1, 2, 0).astype(np.float64)
    colours = [_colour(int(label)) for label in found.labels]
    masks = found.masks or ()
    for i in reversed(range(len(masks))):  # the best on top
        mask = _magnified(decode(masks[i : i + 1], image.shape[1:]), factor)[0] > 0
        pixels[mask] = (1 - OPACITY) * pixels[mask] + OPACITY * np.array(colours[i])
        padded = np.pad(mask, 1)
        inner = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
        pixels[mask & ~inner] = colours[i]
    panel: Image.Image = pillow.fromarray(pixels.round().astype(np.uint8))
    draw = drawing.Draw(panel)
    boxes: list[Box] = [tuple((box * factor).tolist()) for box in found.boxes.astype(np.float64)]
    for box, colour in reversed(list(zip(boxes, colours, strict=True))):
        draw.rectangle(box, outline=colour, width=2)
    taken: list[Box] = []
    for i, (box, colour) in enumerate(zip(boxes, colours, strict=True)):
        text = names[int(found.labels[i]) - 1] + (f" {found.scores[i]:.2f}" if found.scores[i] < 1 else "")
        place = _place(box, _size(text), panel.size, taken)
        taken.append(place)
        draw.rectangle(place, fill=colour)
        dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 140
        ink = (255, 255, 255) if dark else (0, 0, 0)
        draw.text((place[0] + PADDING, place[1] + PADDING), text, fill=ink, font=_font(), anchor="lt")
    return panel


def _magnified(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return image.repeat(factor, axis=-2).repeat(factor, axis=-1)


def _place(box: Box, size: tuple[float, float], picture: tuple[int, int], taken: Sequence[Box]) -> Box:
    """Where a name of `size` goes: at a corner of its box, outside before inside."""
    width, height = size
    x1, y1, x2, y2 = box
    outside = [(x, y) for y in (y1 - height, y2) for x in (x1, x2 - width)]
    beside = [(x, y) for x in (x2, x1 - width) for y in (y1, y2 - height)]
    inside = [(x1, y) for y in (y1, y2 - height, (y1 + y2 - height) / 2)]
    places = []
    for x, y in outside + beside + inside:
        left, top = max(0.0, min(x, picture[0] - width - 1)), max(0.0, min(y, picture[1] - height - 1))
        places.append((left, top, left + width, top + height))
    return min(places, key=lambda place: sum(_common(place, other) for other in taken))


def _common(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _colour(label: int) -> tuple[int, int, int]:
    """Neighbouring labels get hues far apart: steps of the golden ratio."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.75, 0.95 - 0.2 * (label % 2))
    return round(255 * red), round(255 * green), round(255 * blue)


def _size(text: str) -> tuple[float, float]:
    left, _, right, _ = _font().getbbox(text, anchor="lt")
    return right - left + 2 * PADDING, FONT_SIZE + 2 * PADDING


@functools.cache
def _font() -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(FONT_SIZE)


def _pillow() -> "tuple[ModuleType, ModuleType]":
    try:
        from PIL import Image, ImageDraw
    except ModuleNotFoundError as error:
        raise checks.InputError(f"panels: drawing needs Pillow; {checks.extra('detect')}") from error
    return Image, ImageDraw
