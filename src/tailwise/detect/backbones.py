"""Images to maps of features at several strides: torchvision's ResNets with a feature pyramid, and a small one."""

from collections import OrderedDict
from typing import Literal, get_args

from torch import Tensor, nn

from tailwise import checks
from tailwise.shapes import Float

ResNetName = Literal["resnet50", "resnet101", "resnext101-64x4d"]


class SmallFPN(nn.Module):
    """Maps at strides 4, 8 and 16, and a coarser one for proposals: a pyramid for small images that trains on a CPU.

    Group norm, for batches of a few images.

    Args:
        width: channels at stride 4; twice and four times as many follow.
        out_channels: of each map.
    """

    def __init__(self, *, width: int = 32, out_channels: int = 32) -> None:
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        super().__init__()
        checks.whole("width", width)
        self.out_channels = checks.whole("out_channels", out_channels)
        widths = [width, 2 * width, 4 * width]
        self.stem = _convolution(3, width // 2, stride=2)
        self.blocks = nn.ModuleList(
            nn.Sequential(_convolution(before, after, stride=2), _convolution(after, after))
            for before, after in zip([width // 2, *widths], widths, strict=False)
        )
        self.pyramid = FeaturePyramidNetwork(widths, out_channels, extra_blocks=LastLevelMaxPool())

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> dict[str, Tensor]:
        maps, x = OrderedDict(), self.stem(images)
        for number, block in enumerate(self.blocks):
            maps[str(number)] = x = block(x)
        pyramid: dict[str, Tensor] = self.pyramid(maps)
        return pyramid


def _convolution(before: int, after: int, stride: int = 1) -> nn.Module:
    norm = nn.GroupNorm(min(8, after // 4), after)
    return nn.Sequential(nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), norm, nn.ReLU())


def resnet_fpn(name: ResNetName, *, pretrained: bool = True) -> nn.Module:
    """A ResNet or ResNeXt with a feature pyramid of 256 channels at strides 4 to 64.

    As Tang et al. 2020 have it: stem and first stage stay as they were trained, batch norm everywhere. Departure: their
    batch norm keeps its statistics but learns scale and shift; torchvision's frozen one keeps all four.

    Args:
        name: "resnet50", "resnet101" or "resnext101-64x4d".
        pretrained: start from torchvision's ImageNet weights, downloaded when first used; without them a frozen first
            stage is noise, and frozen batch norm normalizes nothing: for weights that are loaded later.

    Raises:
        InputError: an unknown name, weights that cannot be had.
    """
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    checks.choice("backbone", name, get_args(ResNetName))
    try:
        return resnet_fpn_backbone(  # type: ignore[no-any-return]  # torchvision leaves it untyped
            backbone_name=name.replace("-", "_"),
            weights="IMAGENET1K_V1" if pretrained else None,
            trainable_layers=3,
        )
    except OSError as error:
        raise checks.InputError(f"backbone: cannot have the ImageNet weights of {name} ({error})") from error
