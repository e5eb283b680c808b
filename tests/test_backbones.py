import pytest
import torch
from torch import nn

from tailwise.backbones import BasicBlock, DigitsNet, ResNet32

CASES = {
    "digits": (DigitsNet, (1, 8, 8), 64, (4, 4)),
    "digits, two-branch": (lambda: DigitsNet(two_branch=True), (1, 8, 8), 128, (4, 4)),
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


@pytest.mark.parametrize("name", [name for name in CASES if "two-branch" in name])
def test_two_branches_see_the_same_trunk_and_differ(name):
    make, size, _, _ = CASES[name]
    torch.manual_seed(0)
    backbone, images = make().eval(), torch.rand(2, *size)
    first, second = backbone(images).chunk(2, dim=1)
    assert not torch.allclose(first, second)
    with torch.no_grad():
        for one, other in zip(*(branch.parameters() for branch in backbone.branches), strict=True):
            other.copy_(one)
    first, second = backbone(images).chunk(2, dim=1)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", CASES)
def test_the_map_is_what_the_branches_make_of_the_trunk(name):
    make, size, width, _ = CASES[name]
    torch.manual_seed(0)
    backbone, images = make().eval(), torch.rand(2, *size)
    shared = backbone.trunk(images)
    assert len(backbone.branches) == width // 64
    for branch, part in zip(backbone.branches, backbone.forward_map(images).split(64, dim=1), strict=True):
        assert torch.equal(branch(shared), part)


@pytest.mark.parametrize("name", CASES)
def test_the_last_block_is_the_branches(name):
    backbone = CASES[name][0]()
    of_branches = {parameter for branch in backbone.branches for parameter in branch.parameters()}
    named = {parameter for block in backbone.last_block for parameter in backbone.get_submodule(block).parameters()}
    assert named == of_branches


def test_the_digits_network_of_one_branch_is_one_sequence():
    """To the bit, names and initial values included: what was trained before is still read, and trained alike."""

    def block(channels, out):
        return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    torch.manual_seed(0)
    ours = DigitsNet()
    torch.manual_seed(0)
    plain = nn.Sequential(*block(1, 32), nn.MaxPool2d(2), *block(32, 64), *block(64, 64))
    for module in plain:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    state = {name.removeprefix("layers."): tensor for name, tensor in ours.state_dict().items()}
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    images = torch.rand(5, 1, 8, 8)
    features, expected = ours(images), plain(images).mean(dim=(2, 3))
    assert torch.equal(features, expected)
    features.square().sum().backward()
    expected.square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


def test_shortcut_is_option_a():
    """Every second pixel, new channels zero on both sides, no parameters."""
    block = BasicBlock(2, 4).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 2, 6, 6)
    out = block(x)
    torch.testing.assert_close(out[:, 1:3], x[:, :, ::2, ::2])
    assert out[:, [0, 3]].abs().sum() == 0
