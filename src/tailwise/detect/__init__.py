"""Long-tailed detection and instance segmentation: LVIS data, cascades, background-exempted TDE, average precision."""

import importlib
from typing import TYPE_CHECKING, Any

from tailwise.detect.annotations import as_lvis, frequency_of, read_truth
from tailwise.detect.contract import (
    Category,
    DetectionData,
    Detections,
    DetectionSplit,
    Example,
    ImageTruth,
    Truth,
)
from tailwise.detect.folders import read_split, write_split
from tailwise.detect.masks import Rle, box_of, decode, encode
from tailwise.detect.precision import average_precision, class_precision
from tailwise.detect.results import read_results, write_results
from tailwise.detect.scenes import digit_scenes_lt

if TYPE_CHECKING:
    from tailwise.detect.backbones import SmallFPN, resnet_fpn
    from tailwise.detect.detector import Detector, Regions, Sizes
    from tailwise.detect.inference import Inference, class_scores
    from tailwise.detect.loading import ExampleBatches, Examples, image_repeat_draw, total_loss
    from tailwise.detect.region_classifier import RegionClassifier
    from tailwise.detect.region_losses import (
        EachAgainstTheRest,
        Federated,
        SeesawWithObjectness,
        WithBackground,
        balanced_with_background,
        equalization_with_background,
        federated,
    )

# Read when first used: torchvision takes a second to import, and reading annotations does not need it.
_HOME = {
    "Detector": "detector",
    "EachAgainstTheRest": "region_losses",
    "ExampleBatches": "loading",
    "Examples": "loading",
    "Federated": "region_losses",
    "Inference": "inference",
    "RegionClassifier": "region_classifier",
    "Regions": "detector",
    "SeesawWithObjectness": "region_losses",
    "Sizes": "detector",
    "SmallFPN": "backbones",
    "WithBackground": "region_losses",
    "balanced_with_background": "region_losses",
    "class_scores": "inference",
    "equalization_with_background": "region_losses",
    "federated": "region_losses",
    "image_repeat_draw": "loading",
    "resnet_fpn": "backbones",
    "total_loss": "loading",
}

__all__ = [
    "Category",
    "DetectionData",
    "DetectionSplit",
    "Detections",
    "Detector",
    "EachAgainstTheRest",
    "Example",
    "ExampleBatches",
    "Examples",
    "Federated",
    "ImageTruth",
    "Inference",
    "RegionClassifier",
    "Regions",
    "Rle",
    "SeesawWithObjectness",
    "Sizes",
    "SmallFPN",
    "Truth",
    "WithBackground",
    "as_lvis",
    "average_precision",
    "balanced_with_background",
    "box_of",
    "class_precision",
    "class_scores",
    "decode",
    "digit_scenes_lt",
    "encode",
    "equalization_with_background",
    "federated",
    "frequency_of",
    "image_repeat_draw",
    "read_results",
    "read_split",
    "read_truth",
    "resnet_fpn",
    "total_loss",
    "write_results",
    "write_split",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
