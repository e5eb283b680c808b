"""The parts of a cascade: a box stage (sample, classify, regress) and the masks of its regions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

from tailwise.detect.mask_sampling import Size, cut_out
from tailwise.detect.region_classifier import RegionClassifier
from tailwise.detect.region_losses import RegionLoss
from tailwise.shapes import Float, Int


@dataclass(frozen=True)
class Instances:
    """What one image holds, to train on: no crowd, no box without area, in pixels of the resized image.

    boxes: [M, 4]. labels: [M] in 1..C. masks: uint8 [M, H, W] of the image as it was, or None. scale: what x and y of
    the boxes are multiplied by to be pixels of the masks.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    scale: tuple[float, float]


@dataclass(frozen=True)
class Sampled:
    """Regions of one image to train on. matched: the instance of each. given: whether it is an instance's own box."""

    boxes: Float[Tensor, "R 4"]
    labels: Int[Tensor, " R"]
    matched: Int[Tensor, " R"]
    given: Tensor

    def positive(self) -> "Sampled":
        """Those that show an instance."""
        keep = self.labels > 0
        return Sampled(self.boxes[keep], self.labels[keep], self.matched[keep], self.given[keep])


class BoxStage(nn.Module):
    """One stage of a cascade: regions to labels and better boxes.

    Args:
        channels: of the feature maps.
        names: of the maps that regions are cut from.
        make_classifier: (width, number of logits) -> a classifier of this library.
        loss: of the classifier.
        num_classes: C.
        iou: from which overlap with an instance a region shows it; below, it is background.
        spread: standard deviations of the regression targets, x and y, then width and height.
        class_agnostic: one box for a region, not one for each class.
        width: of the two hidden layers.
        regions: sampled from each image to train on; at most a quarter show instances.
        legacy_average: see `RegionClassifier`.
    """

    def __init__(
        self,
        channels: int,
        names: Sequence[str],
        make_classifier: Callable[[int, int], nn.Module],
        loss: RegionLoss,
        num_classes: int,
        *,
        iou: float,
        spread: tuple[float, float],
        class_agnostic: bool,
        width: int,
        regions: int,
        legacy_average: bool = False,
    ) -> None:
        super().__init__()
        self.pool = MultiScaleRoIAlign(list(names), output_size=7, sampling_ratio=2)
        self.hidden = TwoMLPHead(channels * 7 * 7, width)
        self.classifier = RegionClassifier(make_classifier(width, loss.num_outputs), legacy_average=legacy_average)
        self.boxes_of_region = 1 if class_agnostic else num_classes
        self.regressor = nn.Linear(width, 4 * self.boxes_of_region)
        nn.init.normal_(self.regressor.weight, std=0.001)
        nn.init.zeros_(self.regressor.bias)
        self.loss = loss
        weights = (1 / spread[0], 1 / spread[0], 1 / spread[1], 1 / spread[1])
        # torchvision's matching, sampling and box coding; its inference settings are never used
        self.torchvision = RoIHeads(None, None, None, iou, iou, regions, 0.25, weights, 0.0, 0.5, 0)

    def features(self, maps: dict[str, Tensor], boxes: Sequence[Tensor], padded: Size) -> Tensor:
        """What the classifier sees of each region, [N, width]; padded: the size that the maps are of.

        By it torchvision finds the scale of each map, once for good, from the first images that it is shown.
        """
        x: Tensor = self.hidden(self.pool(maps, list(boxes), [padded]))
        return x

    def deltas(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N B 4"]:
        """How each region's box is to move, one box or one for each class; in full precision, which boxes follow."""
        moved: Tensor = self.regressor(features).float()
        return moved.view(len(moved), self.boxes_of_region, 4)

    def moved(self, deltas: Float[Tensor, "N B 4"], boxes: Sequence[Tensor], sizes: Sequence[Size]) -> list[Tensor]:
        """The boxes after it, [R, B, 4] for each image, inside the image; no gradient."""
        every = self.torchvision.box_coder.decode(deltas.detach().flatten(1), list(boxes))
        parts = every.view(len(deltas), self.boxes_of_region, 4).split([len(part) for part in boxes])
        return [clip_boxes_to_image(part, size) for part, size in zip(parts, sizes, strict=True)]

    @torch.no_grad()
    def sample(self, proposals: Sequence[Tensor], truths: Sequence[Instances]) -> list[Sampled]:
        """Regions to train on, of the proposals and the instances' own boxes."""
        boxes = [torch.cat([part, truth.boxes]) for part, truth in zip(proposals, truths, strict=True)]
        matched, labels = self.torchvision.assign_targets_to_proposals(
            boxes, [truth.boxes for truth in truths], [truth.labels for truth in truths]
        )
        sampled = []
        for number, chosen in enumerate(self.torchvision.subsample(labels)):
            given = chosen >= len(proposals[number])
            sampled.append(Sampled(boxes[number][chosen], labels[number][chosen], matched[number][chosen], given))
        return sampled

    def box_loss(
        self, deltas: Float[Tensor, "N B 4"], sampled: Sequence[Sampled], truths: Sequence[Instances]
    ) -> Float[Tensor, ""]:
        """Smooth L1 of the regions that show an instance, over the number of all regions."""
        positive = [part.positive() for part in sampled]
        wanted = self.torchvision.box_coder.encode(
            [truth.boxes[part.matched] for part, truth in zip(positive, truths, strict=True)],
            [part.boxes for part in positive],
        )
        labels = torch.cat([part.labels for part in sampled])
        which = labels[labels > 0] - 1 if self.boxes_of_region > 1 else torch.zeros_like(labels[labels > 0])
        own = deltas[labels > 0][torch.arange(len(which), device=which.device), which]
        return F.smooth_l1_loss(own, torch.cat(list(wanted)), beta=1.0, reduction="sum") / max(len(labels), 1)


class MaskHead(nn.Module):
    """Regions of 14 x 14 features to masks of 28 x 28, one for each class.

    Args:
        channels: of the feature maps.
        num_classes: C.
        width: of the four convolutions.
        takes_previous: whether it also sees what the head of the stage before saw (Hybrid Task Cascade's mask
            information flow).
    """

    def __init__(self, channels: int, num_classes: int, *, width: int, takes_previous: bool = False) -> None:
        super().__init__()
        sizes = [channels, width, width, width, width]
        self.convolutions = nn.Sequential(
            *(
                layer
                for before, after in pairwise(sizes)
                for layer in (nn.Conv2d(before, after, 3, padding=1), nn.ReLU())
            )
        )
        self.previous = nn.Sequential(nn.Conv2d(width, channels, 1), nn.ReLU()) if takes_previous else None
        self.upsample = nn.Sequential(nn.ConvTranspose2d(width, width, 2, stride=2), nn.ReLU())
        self.logits = nn.Conv2d(width, num_classes, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def features(
        self, x: Float[Tensor, "N C 14 14"], previous: Float[Tensor, "N W 14 14"] | None = None
    ) -> Float[Tensor, "N W 14 14"]:
        """What the mask is made of, and what the next stage's head may see."""
        if self.previous is not None and previous is not None:
            x = x + self.previous(previous)
        seen: Tensor = self.convolutions(x)
        return seen

    def forward(self, features: Float[Tensor, "N W 14 14"], labels: Int[Tensor, " N"]) -> Float[Tensor, "N 28 28"]:
        """Logits of each region's mask as one of its label, in 1..C; masks of the other classes are not computed."""
        assert self.logits.bias is not None
        weight, bias = self.logits.weight[labels - 1, :, 0, 0], self.logits.bias[labels - 1]
        return torch.einsum("nwyx,nw->nyx", self.upsample(features), weight) + bias[:, None, None]


def mask_loss(
    logits: Float[Tensor, "N 28 28"], sampled: Sequence[Sampled], truths: Sequence[Instances]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of each region's mask of its own class, the mean over regions and pixels.

    Args:
        logits: of the sampled regions of all images, one after the other, each as one of its own class.
        sampled: regions that show an instance, by image.
        truths: by image.

    Limit case: no region gives 0, with a gradient of 0.
    """
    if not len(logits):
        return logits.sum()
    wanted = []
    for part, truth in zip(sampled, truths, strict=True):
        assert truth.masks is not None
        scale = torch.tensor([*truth.scale, *truth.scale], device=part.boxes.device)
        wanted.append(cut_out(truth.masks, part.boxes * scale, part.matched, logits.shape[-1]))
    return F.binary_cross_entropy_with_logits(logits, torch.cat(wanted))
