"""Masks between an image and a region's grid, there and back, to a part of a pixel.

torchvision's own functions are off by half a pixel on the way there, and cut boxes to whole pixels on the way back: too
much where an instance is twenty pixels high.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from tailwise.shapes import Bool, Float, Int, UInt8

Size = tuple[int, int]


def cut_out(
    masks: UInt8[Tensor, "M H W"], boxes: Float[Tensor, "R 4"], matched: Int[Tensor, " R"], side: int
) -> Float[Tensor, "R side side"]:
    """What a region's grid of side x side cells should show of the mask of its instance, 0 or 1.

    Args:
        masks: of an image's instances.
        boxes: of the regions, in pixels of the masks.
        matched: which mask is whose.
        side: cells of the grid.

    >>> mask = torch.tensor([[[0, 1, 1, 0]] * 4], dtype=torch.uint8)
    >>> cut_out(mask, torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([0]), 4)[0, 0]
    tensor([0., 1., 1., 0.])
    """
    regions = torch.cat([matched[:, None].to(boxes.dtype), boxes], dim=1)
    covered: Tensor = roi_align(masks[:, None].to(boxes.dtype), regions, side, aligned=True)[:, 0]
    return (covered >= 0.5).to(boxes.dtype)


def pasted(masks: Float[Tensor, "n side side"], boxes: Float[Tensor, "n 4"], size: Size) -> Bool[Tensor, "n H W"]:
    """Where masks on the grids of their boxes say more likely than not, in an image of this size.

    Each pixel asks the grid at its centre, bilinearly; outside the grid is no mask.

    Args:
        masks: probabilities.
        boxes: in pixels of the image, wider and higher than 0.
        size: height and width of the image.

    >>> pasted(torch.ones(1, 28, 28), torch.tensor([[1.0, 0.0, 3.0, 1.0]]), (2, 4))[0].int()
    tensor([[0, 1, 1, 0],
            [0, 0, 0, 0]], dtype=torch.int32)
    """
    height, width = size
    image = torch.zeros(len(masks), width, height, dtype=torch.bool).transpose(1, 2)  # by columns, as `encode` likes it
    for mask, (x1, y1, x2, y2), here in zip(masks, boxes.tolist(), image, strict=True):
        left, top = max(int(x1), 0), max(int(y1), 0)
        right, bottom = max(min(int(x2) + 1, width), left), max(min(int(y2) + 1, height), top)
        x = (torch.arange(left, right) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y = (torch.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * 2 - 1
        places = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        if places.numel():
            found = F.grid_sample(mask[None, None], places[None], align_corners=False)
            here[top:bottom, left:right] = found[0, 0] > 0.5
    return image
