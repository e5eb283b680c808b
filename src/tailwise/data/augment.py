"""Batched augmentation, drawn per sample, on the tensors' own device.

An augmentation is a pure function of images and of the random numbers given to it, one row per sample: the numbers
belong to a sample's place in the epoch, not to the batch, process or device that happens to hold it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tailwise.shapes import Float, UInt8

Augment = Callable[[Tensor, Tensor], Tensor]
DRAWS = 3  # random numbers per sample: vertical place, horizontal place, flip


def random_crop(
    images: UInt8[Tensor, "N C H W"], draws: Float[Tensor, "N 3"], *, padding: int, flip: bool
) -> UInt8[Tensor, "N C H W"]:
    """Pad with zeros, crop back to the size at a random place, and flip every second image if asked to.

    With padding 4 and flip: the CIFAR augmentation of He et al. 2016. With padding 1 and no flip: a shift by at
    most one pixel.

    Args:
        images: [N, C, H, W].
        draws: uniform in [0, 1), [N, 3]: vertical place, horizontal place, flip (below 0.5).
        padding: pixels on each side.
        flip: whether to flip left to right.

    Limit case: padding 0 without flip changes nothing.

    >>> image = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2)
    >>> random_crop(image, torch.tensor([[0.5, 0.5, 0.0]]), padding=1, flip=True)
    tensor([[[[1, 0],
              [3, 2]]]], dtype=torch.uint8)
    """
    n, _, height, width = images.shape
    top = (draws[:, 0] * (2 * padding + 1)).long()
    left = (draws[:, 1] * (2 * padding + 1)).long()
    columns = torch.arange(width, device=images.device).expand(n, width)
    if flip:
        columns = torch.where(draws[:, 2:3] < 0.5, columns.flip(1), columns)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + columns
    padded = F.pad(images, (padding,) * 4)
    sample = torch.arange(n, device=images.device)
    return padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Normalize:
    """(images / scale - mean) / std, per channel, as float32.

    >>> Normalize(scale=255.0, mean=(0.5,), std=(0.5,))(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8))
    tensor([[[[1.]]]])
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        mean, std = (_per_channel(values, images.device) for values in (self.mean, self.std))
        # in place: of photographs each new tensor costs as much as the arithmetic
        return images.to(torch.float32, copy=True).div_(self.scale).sub_(mean).div_(std)


@functools.cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    # once a device: a copy from the host at every batch would wait for a GPU
    return torch.tensor(values, device=device).view(-1, 1, 1)
