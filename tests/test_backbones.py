import pytest
import torch
from torch import nn

from tailwise.backbones import BasicBlock, DigitsNet, ResNet32

CASES = {
    "digits": (DigitsNet, (1, 8, 8), 64, (4, 4)),
    "plain": (ResNet32, (3, 32, 32), 64, (8, 8)),
    "two-branch": (lambda: ResNet32(two_branch=True), (3, 32, 32), 128, (8, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_contract(name):
    make, size, width, map_size = CASES[name]
    torch.manual_seed(0)
    backbone = make().eval()
    images = torch.rand(3, *size)
    maps, features = backbone.forward_map(images), backbone(images)
    assert maps.shape == (3, width, *map_size)
    assert features.shape == (3, width) == (3, backbone.num_features)
    torch.testing.assert_close(features, maps.mean(dim=(2, 3)))
    assert (features >= 0).all()  # features reach the classifier after a ReLU
    torch.testing.assert_close(backbone(images[:1]), features[:1], rtol=1e-4, atol=1e-5)


def test_resnet32_is_the_published_network():
    """31 convolutions and a classifier make 32 layers; He et al. 2016, Table 6: 0.46 M parameters with 10 classes."""
    plain = ResNet32()
    convolutions = [m for m in plain.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 31
    assert sum(p.numel() for p in plain.parameters()) + 64 * 10 + 10 == 464_154
    assert not any(c.bias is not None for c in convolutions)
    two = ResNet32(two_branch=True)
    extra = sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == sum(p.numel() for p in BasicBlock(64, 64).parameters())


def test_two_branches_see_the_same_trunk_and_differ():
    torch.manual_seed(0)
    backbone = ResNet32(two_branch=True).eval()
    first, second = backbone(torch.rand(2, 3, 32, 32)).chunk(2, dim=1)
    assert not torch.allclose(first, second)
    backbone.branches[1].load_state_dict(backbone.branches[0].state_dict())
    first, second = backbone(torch.rand(2, 3, 32, 32)).chunk(2, dim=1)
    torch.testing.assert_close(first, second)


def test_shortcut_is_option_a():
    """Every second pixel, new channels zero on both sides, no parameters."""
    block = BasicBlock(2, 4).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 2, 6, 6)
    out = block(x)
    torch.testing.assert_close(out[:, 1:3], x[:, :, ::2, ::2])
    assert out[:, [0, 3]].abs().sum() == 0
