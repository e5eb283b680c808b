"""Single images from disk, as bytes of the shape a network takes."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tailwise import checks
from tailwise.shapes import UInt8

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def read_image(path: Path, shape: tuple[int, int, int], scale: float) -> UInt8[Tensor, "C H W"]:
    """The image in a file, grey or in colour, resized and its bytes brought from 0..255 to 0..scale.

    Args:
        path: anything that Pillow reads; of several frames the first.
        shape: channels (1 or 3), H, W; another size is resized to it, bilinearly, without regard to proportions.
        scale: the brightest value in the data the network knows.

    Raises:
        InputError: Pillow is not installed; no such file, no image, a broken one.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise checks.InputError("paths: images need Pillow; pip install 'tailwise[images]'") from error
    channels, height, width = shape
    try:
        with Image.open(path) as file:
            image = file.convert({1: "L", 3: "RGB"}[channels])
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)
    except Exception as error:  # a broken file meets each decoder in its own way
        raise checks.InputError(f"{path}: not a readable image ({error})") from error
    pixels = np.asarray(image, dtype=np.float64).reshape(height, width, channels) * (scale / 255)
    return torch.from_numpy(pixels.round().astype(np.uint8).transpose(2, 0, 1).copy())
