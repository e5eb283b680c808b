"""Mask R-CNN, Cascade Mask R-CNN and Hybrid Task Cascade, with any classifier of this library."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign

from tailwise import checks
from tailwise.adjust import tde_components
from tailwise.detect.contract import Detections, Example
from tailwise.detect.inference import Inference, StageLogits, best_places, boxes_at, class_scores
from tailwise.detect.mask_sampling import Size, pasted
from tailwise.detect.masks import Rle, encode
from tailwise.detect.region_losses import RegionLoss
from tailwise.detect.region_stages import BoxStage, Instances, MaskHead, Sampled, mask_loss

Framework = Literal["mask-rcnn", "cascade", "htc"]
MASKS_AT_ONCE = 100  # boxes; masks of the size of a photograph are megabytes each


@dataclass(frozen=True)
class Sizes:
    """How large the parts of a detector are, and what images it is made for; the defaults are those of LVIS.

    min_size, max_size: images are scaled so that the shorter side is `min_size`, but the longer one at most `max_size`.
    mean, std: of each colour, in [0, 1]. anchors: side of the square anchor of each map, finest first.
    proposals: of each image, to train on and to predict from. regions: sampled of them at each stage, to train on.
    width: of the hidden layers of a box stage. mask_width: of the convolutions of a mask head.
    """

    min_size: int = 800
    max_size: int = 1333
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)
    proposals: tuple[int, int] = (2000, 1000)
    regions: int = 512
    width: int = 1024
    mask_width: int = 256


@dataclass(frozen=True)
class Regions:
    """What a detector sees in images before anything is decided: the expensive part, the same for every `Inference`.

    maps: of features. padded: height and width of what they are of. sizes, originals: height and width of each image,
    resized and as it was. boxes: of the last stage, [R, B, 4] for each image. stages: what each says of all regions,
    image by image. image_ids: as given.
    """

    maps: dict[str, Tensor]
    padded: Size
    sizes: tuple[Size, ...]
    originals: tuple[Size, ...]
    boxes: tuple[Tensor, ...]
    stages: tuple[StageLogits, ...]
    image_ids: tuple[int, ...]


class Detector(nn.Module):
    """Boxes and masks of long-tailed classes.

    In train mode `detector(examples)` is a dictionary of losses. A trained one answers in two steps: `look` makes
    `Regions` of images, `detections` decides at a given alpha, with or without background exempted, as often as wanted.

    Args:
        backbone: images [N, 3, H, W] to maps by name, the last one for proposals alone; has `out_channels`.
        num_classes: C, without background.
        make_classifier: (in_features, number of logits) -> the classifier of a stage, such as
            `tailwise.LinearClassifier` or a `functools.partial` of `tailwise.CausalClassifier`.
        make_loss: gives the loss of a stage's classifier; each stage has its own.
        framework: "mask-rcnn" is one stage: a region is an instance's from IoU 0.5 on, and has a box for each class.
            "cascade" is three, at 0.5, 0.6 and 0.7, each on the boxes of the one before, one box for a region, losses
            weighted 1, 0.5, 0.25 (Cascade Mask R-CNN; Cai and Vasconcelos 2018). "htc" is the cascade of the authors'
            settings: masks of a stage are learned on the boxes that it has made better, and its mask head sees the one
            before (Hybrid Task Cascade without semantic branch; Chen et al. 2019).
        masks: whether there are mask heads; mask-rcnn without them is Faster R-CNN.
        legacy_average: see `RegionClassifier`.
        sizes: of the parts.

    Raises:
        InputError: an unknown framework, fewer or more anchors than maps.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        make_classifier: Callable[[int, int], nn.Module],
        make_loss: Callable[[], RegionLoss],
        *,
        framework: Framework = "cascade",
        masks: bool = True,
        legacy_average: bool = False,
        sizes: Sizes = Sizes(),
    ) -> None:
        super().__init__()
        checks.choice("framework", framework, get_args(Framework))
        self.num_classes = checks.whole("num_classes", num_classes)
        self.framework, self.sizes = framework, sizes
        channels = backbone.out_channels
        assert isinstance(channels, int)
        self.backbone = backbone
        self.transform = GeneralizedRCNNTransform(sizes.min_size, sizes.max_size, list(sizes.mean), list(sizes.std))
        self.rpn = _proposals(channels, sizes)
        names = [str(number) for number in range(len(sizes.anchors) - 1)]
        several = framework != "mask-rcnn"
        self.stage_weights = (1.0, 0.5, 0.25) if several else (1.0,)
        # standard deviations of the regression targets shrink from stage to stage, as the boxes get better
        spreads = ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067)) if several else ((0.1, 0.2),)
        self.stages = nn.ModuleList(
            BoxStage(
                channels,
                names,
                make_classifier,
                make_loss(),
                num_classes,
                iou=iou,
                spread=spread,
                class_agnostic=several,
                width=sizes.width,
                regions=sizes.regions,
                legacy_average=legacy_average,
            )
            for iou, spread in zip((0.5, 0.6, 0.7), spreads, strict=False)
        )
        self.mask_pool = MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2)
        self.mask_heads = nn.ModuleList(
            MaskHead(channels, num_classes, width=sizes.mask_width, takes_previous=framework == "htc" and number > 0)
            for number in range(len(self.stages) if masks else 0)
        )

    def forward(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The losses of a batch, each a mean, already weighted: their sum is what is to be made small."""
        images, maps = self._maps([example.image for example in examples])
        truths = [
            _instances(example, size, masks=bool(self.mask_heads))
            for example, size in zip(examples, images.image_sizes, strict=True)
        ]
        losses: dict[str, Tensor]
        proposals, losses = self.rpn(images, maps, [{"boxes": truth.boxes} for truth in truths])
        for number, (stage, weight) in enumerate(zip(self.stages, self.stage_weights, strict=True)):
            assert isinstance(stage, BoxStage)
            sampled = stage.sample(proposals, truths)
            boxes = [part.boxes for part in sampled]
            labels = torch.cat([part.labels for part in sampled])
            features = stage.features(maps, boxes, _padded(images))
            deltas = stage.deltas(features)
            losses[f"class_{number}"] = weight * stage.loss(stage.classifier(features, labels), labels)
            losses[f"box_{number}"] = weight * stage.box_loss(deltas, sampled, truths)
            if len(self.stages) > 1:  # the instances' own boxes are added anew at every stage
                better = stage.moved(deltas, boxes, images.image_sizes)
                proposals = [part[~of.given, 0] for part, of in zip(better, sampled, strict=True)]
            if self.mask_heads:
                shown = stage.sample(proposals, truths) if self.framework == "htc" else sampled
                shown = [part.positive() for part in shown]
                logits = self._mask_logits(number, maps, shown, _padded(images))
                losses[f"mask_{number}"] = weight * mask_loss(logits, shown, truths)
        return losses

    @torch.no_grad()
    def look(self, images: Sequence[Tensor], image_ids: Sequence[int] | None = None) -> Regions:
        """What there is to decide on in images, uint8 [3, H, W] each; for a detector in eval mode.

        Images of several sizes are padded to the largest, which changes a little of what is found in the smaller ones.

        image_ids: what detections are to name their images; by default their numbers, from 0.

        Raises:
            InputError: a detector in train mode.
        """
        if self.training:
            raise checks.InputError("detector: expected it in eval mode, got one in train mode")
        resized, maps = self._maps(images)
        padded = _padded(resized)
        boxes, _ = self.rpn(resized, maps)
        stages = []
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, BoxStage)
            features = stage.features(maps, boxes, padded)
            stages.append(_stage_logits(stage, features))
            moved = stage.moved(stage.deltas(features), boxes, resized.image_sizes)
            if number < len(self.stages) - 1:
                boxes = [part[:, 0] for part in moved]
        originals = tuple((int(image.shape[1]), int(image.shape[2])) for image in images)
        ids = tuple(range(len(images)) if image_ids is None else image_ids)
        return Regions(maps, padded, tuple(resized.image_sizes), originals, tuple(moved), tuple(stages), ids)

    @torch.no_grad()
    def detections(self, regions: Regions, *hows: Inference) -> list[list[Detections]]:
        """What is found in the images: for each of `hows`, a list of one answer per image.

        Boxes, and masks if there are mask heads, are in pixels of the images as they were. A region's mask is computed
        once, however many ask for it.

        Raises:
            InputError: TDE of classifiers that have none.
        """
        loss = self.stages[0].loss
        assert isinstance(loss, RegionLoss)
        scores = [
            class_scores(regions.stages, loss, alpha=how.alpha, exempt_background=how.exempt_background) for how in hows
        ]
        answers: list[list[Detections]] = [[] for _ in hows]
        start = 0
        for number, boxes in enumerate(regions.boxes):
            mine = [part[start : start + len(boxes)] for part in scores]
            start += len(boxes)
            places = [best_places(boxes, part, how) for part, how in zip(mine, hows, strict=True)]
            masks = self._masks(regions, number, torch.unique(torch.cat(places))) if self.mask_heads else None
            for answer, chosen, part in zip(answers, places, mine, strict=True):
                found = boxes_at(boxes, chosen, self.num_classes)
                answer.append(
                    Detections(
                        regions.image_ids[number],
                        _in_image(found, regions, number).numpy(),
                        part.flatten()[chosen].cpu().numpy(),
                        (chosen % self.num_classes + 1).cpu().numpy(),
                        None if masks is None else tuple(masks[place] for place in chosen.tolist()),
                    )
                )
        return answers

    def _maps(self, images: Sequence[Tensor]) -> tuple[ImageList, dict[str, Tensor]]:
        for image in images:
            if max(image.shape[1:]) > self.sizes.max_size * min(image.shape[1:]):
                raise checks.InputError(
                    f"image: expected one at most {self.sizes.max_size} times as long as wide, got "
                    f"{image.shape[1]} x {image.shape[2]} pixels"
                )
        resized, _ = self.transform([image.float() / 255 for image in images])
        maps: dict[str, Tensor] = self.backbone(resized.tensors)
        if len(maps) != len(self.sizes.anchors):
            raise checks.InputError(
                f"anchors: expected one for each of the backbone's {len(maps)} maps, got {len(self.sizes.anchors)}"
            )
        return resized, maps

    def _mask_logits(self, number: int, maps: dict[str, Tensor], shown: Sequence[Sampled], padded: Size) -> Tensor:
        """Of one stage's head, on what the heads before it saw where it takes that."""
        x, seen = self.mask_pool(maps, [part.boxes for part in shown], [padded]), None
        heads = [head for head in self.mask_heads if isinstance(head, MaskHead)]
        for head in heads[: number + 1] if self.framework == "htc" else heads[number : number + 1]:
            seen = head.features(x, seen)
        logits: Tensor = heads[number](seen, torch.cat([part.labels for part in shown]))
        return logits

    def _masks(self, regions: Regions, number: int, places: Tensor) -> dict[int, Rle]:
        """Masks of one image's detections, by place: where the mean over stages says more likely than not."""
        if not len(places):
            return {}
        maps = {name: part[number : number + 1] for name, part in regions.maps.items()}
        agnostic = regions.boxes[number].shape[1] == 1
        # a box is looked at once, whatever classes are found in it
        of_box, which = torch.unique(places // self.num_classes if agnostic else places, return_inverse=True)
        boxes = boxes_at(regions.boxes[number], of_box * self.num_classes if agnostic else of_box, self.num_classes)
        rles: dict[int, Rle] = {}
        for chosen in torch.split(torch.arange(len(of_box), device=places.device), MASKS_AT_ONCE):
            mine = (which >= chosen[0]) & (which <= chosen[-1])
            x, seen = self.mask_pool(maps, [boxes[chosen]], [regions.padded]), None
            stages = []
            for head in self.mask_heads:
                assert isinstance(head, MaskHead)
                seen = head.features(x, seen)
                stages.append(head(seen[which[mine] - chosen[0]], places[mine] % self.num_classes + 1).sigmoid())
            masks = torch.stack(stages).mean(dim=0).cpu()
            around = _in_image(boxes[which[mine]], regions, number)
            whole = pasted(masks, around, regions.originals[number]).numpy()
            rles |= dict(zip(places[mine].tolist(), encode(whole), strict=True))
        return rles


def _proposals(channels: int, sizes: Sizes) -> RegionProposalNetwork:
    anchors = AnchorGenerator(tuple((side,) for side in sizes.anchors), ((0.5, 1.0, 2.0),) * len(sizes.anchors))
    anchors.register_forward_pre_hook(_of_full_precision)
    train, test = sizes.proposals
    head = RPNHead(channels, 3)
    head.register_forward_hook(_in_full_precision)
    return RegionProposalNetwork(
        anchors,
        head,
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": train, "testing": test},
        post_nms_top_n={"training": train, "testing": test},
        nms_thresh=0.7,
    )


def _padded(images: ImageList) -> Size:
    height, width = images.tensors.shape[-2:]
    return height, width


def _of_full_precision(_: nn.Module, given: tuple[ImageList, list[Tensor]]) -> tuple[ImageList, list[Tensor]]:
    """A hook: torchvision gives anchors the precision of the maps, whose size and device is all it takes."""
    images, maps = given
    return images, [part.new_empty((), dtype=torch.float32).expand(part.shape) for part in maps]


def _in_full_precision(_: nn.Module, __: object, maps: tuple[list[Tensor], ...]) -> tuple[list[Tensor], ...]:
    """A hook: torchvision gives boxes the precision of what moves them, and half of it is pixels in a photograph."""
    return tuple([part.float() for part in several] for several in maps)


def _instances(example: Example, size: Size, *, masks: bool) -> Instances:
    """What of an example can be trained on: a crowd is no example, and a box without area has no overlap with any."""
    height, width = example.image.shape[1:]
    keep = ~example.is_crowd & (example.boxes[:, 2:] > example.boxes[:, :2]).all(dim=1)
    return Instances(
        boxes=resize_boxes(example.boxes[keep], [height, width], list(size)),
        labels=example.labels[keep],
        masks=example.masks.to(keep.device)[keep] if masks else None,
        scale=(width / size[1], height / size[0]),
    )


def _stage_logits(stage: BoxStage, features: Tensor) -> StageLogits:
    classifier = stage.classifier.classifier
    if not hasattr(classifier, "average"):
        return StageLogits(classifier(features), None)
    return StageLogits(*tde_components(features, classifier))  # type: ignore[arg-type]  # what has an average is normalized


def _in_image(boxes: Tensor, regions: Regions, number: int) -> Tensor:
    """In pixels of the image as it was, on the CPU, where masks are pasted."""
    scaled: Tensor = resize_boxes(boxes.cpu(), list(regions.sizes[number]), list(regions.originals[number]))
    return scaled
