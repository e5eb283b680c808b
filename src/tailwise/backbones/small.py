"""Networks for small images: digits of 8 x 8 pixels, CIFAR."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailwise.shapes import Float


class DigitsNet(nn.Module):
    """A small convolutional network for 8 x 8 grey images.

    Args:
        two_branch: the last convolution twice in parallel, outputs concatenated: 128 features. Otherwise 64.

    >>> DigitsNet()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 64])
    """

    def __init__(self, *, two_branch: bool = False) -> None:
        super().__init__()
        self.num_features = 128 if two_branch else 64
        self.last_block = ("layers.7", "layers.8", *(["second"] if two_branch else []))
        self.layers = nn.Sequential(*_convolution(1, 32), nn.MaxPool2d(2), *_convolution(32, 64), *_convolution(64, 64))
        self.second = nn.Sequential(*_convolution(64, 64)) if two_branch else None
        self.apply(_kaiming)

    @property
    def branches(self) -> Sequence[nn.Module]:
        """What stands on the trunk, in the order of the features."""
        first = self.layers[7:]
        return [first] if self.second is None else [first, self.second]

    def trunk(self, images: Float[Tensor, "N 1 8 8"]) -> Float[Tensor, "N 64 4 4"]:
        shared: Tensor = self.layers[:7](images)
        return shared

    def forward_map(self, images: Float[Tensor, "N 1 8 8"]) -> Float[Tensor, "N D H W"]:
        shared = self.trunk(images)
        return torch.cat([branch(shared) for branch in self.branches], dim=1)

    def forward(self, images: Float[Tensor, "N 1 8 8"]) -> Float[Tensor, "N D"]:
        return self.forward_map(images).mean(dim=(2, 3))


class ResNet32(nn.Module):
    """ResNet-32 for 32 x 32 colour images (He et al. 2016, section 4.2), with parameter-free shortcuts.

    Args:
        two_branch: the last residual block twice in parallel, outputs concatenated, as Zhou et al. 2020 (BBN) and
            Tang et al. 2020 train it: 128 features. Otherwise the plain network: 64 features.

    >>> ResNet32(two_branch=True)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 128])
    """

    last_block = ("branches",)

    def __init__(self, *, two_branch: bool = False) -> None:
        super().__init__()
        self.num_features = 128 if two_branch else 64
        self.stem = nn.Sequential(*_convolution(3, 16))
        self.layer1 = nn.Sequential(*[BasicBlock(16, 16) for _ in range(5)])
        self.layer2 = nn.Sequential(BasicBlock(16, 32), *[BasicBlock(32, 32) for _ in range(4)])
        self.layer3 = nn.Sequential(BasicBlock(32, 64), *[BasicBlock(64, 64) for _ in range(3)])
        self.branches = nn.ModuleList([BasicBlock(64, 64) for _ in range(self.num_features // 64)])
        self.apply(_kaiming)

    def trunk(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 64 h w"]:
        shared: Tensor = self.layer3(self.layer2(self.layer1(self.stem(images))))
        return shared

    def forward_map(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D h w"]:
        shared = self.trunk(images)
        return torch.cat([branch(shared) for branch in self.branches], dim=1)

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        return self.forward_map(images).mean(dim=(2, 3))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; a wider block halves the resolution.

    The shortcut has no parameters (option A): every second pixel, new channels zero on both sides.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.added = (out_channels - in_channels) // 2
        stride = 2 if self.added else 1
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.added:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
        return F.relu(y + x)


def _convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]


def _kaiming(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
