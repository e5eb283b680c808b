"""Single images: from an encoded file to what Pillow makes of it, or to bytes of the shape a network takes; to PNG."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailwise import checks
from tailwise.shapes import UInt8

SUFFIXES = frozenset({".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "BigTIFF",
    b"MM\0+": "BigTIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xffO\xffQ": "JPEG 2000",
} | {f"P{number}".encode(): "PNM" for number in range(1, 7)}


def image_kind(head: bytes) -> str | None:
    """The format that the first 16 bytes of a file tell of, or None for no image.

    >>> image_kind(b"\\xff\\xd8\\xff\\xe0..."), image_kind(b"<html>")
    ('JPEG', None)
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    return next((kind for signature, kind in SIGNATURES.items() if head.startswith(signature)), None)


def read_image(path: Path, shape: tuple[int, int, int], scale: float) -> UInt8[Tensor, "C H W"]:
    """The image in a file, grey or in colour, resized and its bytes brought from 0..255 to 0..scale.

    Args:
        path: anything that Pillow reads; of several frames the first.
        shape: channels (1 or 3), H, W; another size is resized to it, bilinearly, without regard to proportions.
        scale: the brightest value in the data the network knows.

    Raises:
        InputError: Pillow is not installed; no such file, no image, a broken one.
    """
    channels, height, width = shape
    image = decoded(read_file(path), str(path), mode={1: "L", 3: "RGB"}[channels])
    if image.size != (width, height):
        image = image.resize((width, height), resample=2)  # Pillow's number for bilinear
    pixels = np.asarray(image, dtype=np.float64).reshape(height, width, channels) * (scale / 255)
    return torch.from_numpy(pixels.round().astype(np.uint8).transpose(2, 0, 1).copy())


def read_pixels(path: Path) -> UInt8[Tensor, "3 H W"]:
    """The image in a file in colour, as it is: no resizing, and no rotation by EXIF, of which annotations know nothing.

    Raises:
        InputError: as `read_image`.
    """
    return torch.from_numpy(np.asarray(decoded(read_file(path), str(path))).transpose(2, 0, 1).copy())


def write_png(image: UInt8[Tensor, "3 H W"], path: Path) -> None:
    """An image as a PNG file, which appears when it is complete.

    Raises:
        InputError: Pillow is not installed.
    """
    partial = path.with_name(path.name + ".partial")
    image_of_pixels(image.permute(1, 2, 0).numpy()).save(partial, format="PNG")
    os.replace(partial, path)


def read_file(path: Path) -> bytes:
    """What a file holds.

    Raises:
        InputError: it cannot be read; names it.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise checks.InputError(f"{path}: not a readable file ({error.strerror})") from error


def image_of_pixels(pixels: NDArray[np.uint8]) -> Any:
    """A `PIL.Image` of bytes [H, W, 3].

    Raises:
        InputError: Pillow is not installed.
    """
    return _pillow().fromarray(pixels)


def decoded(content: bytes, name: str, *, mode: str = "RGB") -> Any:
    """A `PIL.Image` of an encoded image, of several frames the first.

    Args:
        content: anything that Pillow reads; of 16 bits a channel the upper 8 are taken.
        name: what an error calls it.
        mode: "RGB", or "L" for grey.

    Raises:
        InputError: Pillow is not installed; no image, a truncated or broken one, one of 32 bits a channel.
    """
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(content)) as file:
            return _eight_bits(file).convert(mode)
    except Exception as error:  # a broken file meets each decoder in its own way
        reason = "no image format that Pillow knows" if isinstance(error, pillow.UnidentifiedImageError) else error
        raise checks.InputError(f"{name}: not a readable image ({reason})") from error


def grey_thumbnail(content: bytes, name: str, width: int, height: int) -> NDArray[np.uint8]:
    """An encoded image, grey and small, as bytes [height, width]; of a JPEG only as much is decoded as that needs.

    Raises:
        InputError: as `decoded`.
    """
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(content)) as file:
            file.draft("L", (8 * width, 8 * height))
            return small_and_grey(file, width, height)
    except Exception as error:  # a broken file meets each decoder in its own way
        raise checks.InputError(f"{name}: not a readable image ({error})") from error


def small_and_grey(image: Any, width: int, height: int) -> NDArray[np.uint8]:
    """A `PIL.Image` as grey bytes [height, width]."""
    return np.array(_eight_bits(image).convert("L").resize((width, height), resample=2), dtype=np.uint8)


def _eight_bits(image: Any) -> Any:
    """A `PIL.Image` of 8 bits a channel, of 16 the upper ones; Pillow's own conversion makes white of all above 255."""
    mode, kind = image.mode, image.format
    if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):  # these have no more than 16 bits
        return _pillow().fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if mode in ("I", "F"):
        raise ValueError(f"expected 8 or 16 bits a channel, got {'floats' if mode == 'F' else 'integers'} of 32")
    return image


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise checks.InputError(f"paths: images need Pillow; {checks.extra('images')}") from error
    return Image
