"""Networks from images to features, never to logits.

Every backbone has `num_features` (D), `forward_map(images) -> [N, D, H, W]` (what Grad-CAM and attention
memories look at) and `forward(images) -> [N, D]`: the map's spatial mean, or what a network of another library pools
by. `last_block` names the modules of its last block of layers, which may be fine-tuned alone, `last_bottleneck` the
last residual block of these where there are several.

The map of the small ones is what the `branches`, one or two, make of `trunk(images)`, concatenated: one may be fed
without the other.
"""

from tailwise.backbones.frozen import FrozenNet
from tailwise.backbones.libraries import HuggingFaceNet, TimmNet, statistics_of_hugging_face, statistics_of_timm
from tailwise.backbones.pretrained import load_backbone
from tailwise.backbones.residual import RESNETS, ResNet
from tailwise.backbones.small import BasicBlock, DigitsNet, ResNet32

__all__ = [
    "RESNETS",
    "BasicBlock",
    "DigitsNet",
    "FrozenNet",
    "HuggingFaceNet",
    "ResNet",
    "ResNet32",
    "TimmNet",
    "load_backbone",
    "statistics_of_hugging_face",
    "statistics_of_timm",
]
