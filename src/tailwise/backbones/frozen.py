"""A backbone that is never trained: what it makes of an image is computed once."""

from typing import Any

from torch import Tensor, nn

from tailwise import checks


class FrozenNet(nn.Module):
    """A backbone, or the features it gave: images [N, 3, H, W] go through it, features [N, D] are passed on.

    net: what the features are of; always in eval mode, no parameter takes a gradient.

    >>> from tailwise.backbones import DigitsNet
    >>> features = torch.rand(2, 64)
    >>> FrozenNet(DigitsNet())(features) is features
    True
    """

    last_block = ()
    last_bottleneck = ()

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.num_features: int = net.num_features

    def train(self, mode: bool = True) -> "FrozenNet":
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() == 2:
            return images
        features: Tensor = self.net(images)
        return features

    def forward_map(self, images: Tensor) -> Tensor:
        """Of images alone.

        Raises:
            InputError: features, which have no map.
        """
        if images.dim() == 2:
            raise checks.InputError("backbone.frozen: expected false for a method that looks at feature maps, got true")
        maps: Tensor = self.net.forward_map(images)
        return maps
