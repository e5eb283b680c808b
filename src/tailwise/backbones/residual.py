"""The papers' networks for photographs, of torchvision's class: ResNet-10 to -152, ResNeXt-50/101/152-32x4d."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from tailwise import checks
from tailwise.shapes import Float


@dataclass(frozen=True)
class Layout:
    """layers: residual blocks of each of the four stages. weights: torchvision's name, None where it has none."""

    block: Literal["BasicBlock", "Bottleneck"]
    layers: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64
    weights: str | None = None


# What torchvision's zoo has not is built as Kang et al. 2020 do it
RESNETS: dict[str, Layout] = {
    "resnet10": Layout("BasicBlock", (1, 1, 1, 1)),
    "resnet18": Layout("BasicBlock", (2, 2, 2, 2), weights="ResNet18_Weights"),
    "resnet34": Layout("BasicBlock", (3, 4, 6, 3), weights="ResNet34_Weights"),
    "resnet50": Layout("Bottleneck", (3, 4, 6, 3), weights="ResNet50_Weights"),
    "resnet101": Layout("Bottleneck", (3, 4, 23, 3), weights="ResNet101_Weights"),
    "resnet152": Layout("Bottleneck", (3, 8, 36, 3), weights="ResNet152_Weights"),
    "resnext50-32x4d": Layout("Bottleneck", (3, 4, 6, 3), 32, 4, weights="ResNeXt50_32X4D_Weights"),
    "resnext101-32x4d": Layout("Bottleneck", (3, 4, 23, 3), 32, 4),
    "resnext152-32x4d": Layout("Bottleneck", (3, 8, 36, 3), 32, 4),
}


class ResNet(nn.Module):
    """A residual network for photographs (He et al. 2016, Xie et al. 2017), without its classifier.

    Initialised as the authors of both papers do: convolutions normal with variance 2 / (k k out), batch norm 1 and 0.

    Args:
        name: one of `RESNETS`.
        pretrained: with torchvision's weights of its first training on ImageNet (IMAGENET1K_V1).

    Raises:
        InputError: an unknown name; torchvision is not installed; it has no such weights, or cannot fetch them.

    >>> ResNet("resnet10")(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 512])
    """

    last_block = ("net.layer4",)

    def __init__(self, name: str, *, pretrained: bool = False) -> None:
        super().__init__()
        layout = RESNETS[checks.choice("backbone.name", name, RESNETS)]
        try:
            from torchvision.models import resnet
        except ModuleNotFoundError as error:
            raise checks.InputError(f"backbone.name: {name} is torchvision's; {checks.extra('vision')}") from error
        self.net = resnet.ResNet(
            getattr(resnet, layout.block),
            list(layout.layers),
            groups=layout.groups,
            width_per_group=layout.width_per_group,
        )
        self.num_features: int = self.net.fc.in_features
        del self.net.fc
        self.last_bottleneck = (f"net.layer4.{layout.layers[3] - 1}",)
        if pretrained:
            self._fetch(name, layout)

    def _fetch(self, name: str, layout: Layout) -> None:
        from torchvision.models import resnet

        if layout.weights is None:
            have = ", ".join(known for known, other in RESNETS.items() if other.weights)
            raise checks.InputError(
                f"backbone.pretrained: torchvision has weights of {have}, none of {name}; "
                "give a file of them, a network of timm, or false"
            )
        try:
            state = getattr(resnet, layout.weights).IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        except Exception as error:  # no network, no such file, a wrong hash: each has its own
            raise checks.InputError(
                f"backbone.pretrained: torchvision cannot fetch the weights of {name} ({error}); "
                "download them elsewhere and give the file: backbone.pretrained=FILE"
            ) from error
        self.net.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})

    def forward_map(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D h w"]:
        net = self.net
        stem = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        maps: Tensor = net.layer4(net.layer3(net.layer2(net.layer1(stem))))
        return maps

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        return self.forward_map(images).mean(dim=(2, 3))
