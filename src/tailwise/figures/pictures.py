"""Test images for people to look at."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from tailwise import checks
from tailwise.data import LongTailedData
from tailwise.experiments.build_data import images_of
from tailwise.experiments.stores import in_order
from tailwise.recipes.schema import Recipe


def picture_of(data: LongTailedData, recipe: Recipe, place: int) -> NDArray[np.float64]:
    """A test image for people to look at, unaugmented, [channels, H, W] in 0..1.

    Raises:
        InputError: the data are features of a frozen backbone; a file that cannot be read.
    """
    if recipe.backbone.frozen:
        raise checks.InputError(f"data: expected images, got features of the frozen backbone {recipe.backbone.name}")
    _, normalize, _ = images_of(recipe)
    as_bytes, _ = next(iter(replace(in_order(data, data.test, torch.tensor([place])), normalize=lambda pixels: pixels)))
    return np.asarray((as_bytes[0].cpu().double() / normalize.scale).clamp(0, 1).numpy())
