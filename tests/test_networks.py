"""Backbones of other libraries: the papers' networks, any of timm or transformers; weights from files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tailwise import InputError
from tailwise.backbones import (
    RESNETS,
    FrozenNet,
    HuggingFaceNet,
    ResNet,
    ResNet32,
    TimmNet,
    load_backbone,
    statistics_of_hugging_face,
    statistics_of_timm,
)

# Parameters, of networks with 1000 classes: torchvision's pages, and of ResNeXt-152-32x4d counted from its blocks.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50-32x4d": 25_028_904,
}


def bottlenecks(layers, groups, width):
    """Parameters of a network of bottleneck blocks, counted convolution by convolution; the classifier left out."""
    total, channels = 3 * 64 * 49 + 2 * 64, 64
    for stage, blocks in enumerate(layers):
        inner, outer = width * groups * 2**stage, 256 * 2**stage
        for block in range(blocks):
            total += channels * inner + inner * inner // groups * 9 + inner * outer + 2 * (2 * inner + outer)
            if block == 0:
                total += channels * outer + 2 * outer
            channels = outer
    return total


@pytest.mark.parametrize("name", RESNETS)
def test_the_papers_networks(name):
    with torch.device("meta"):
        net = ResNet(name)
        maps = net.eval().forward_map(torch.zeros(2, 3, 224, 224))
    count = sum(p.numel() for p in net.parameters())
    basic = RESNETS[name].block == "BasicBlock"
    assert maps.shape == (2, 512 if basic else 2048, 7, 7)
    assert net.num_features == maps.shape[1]
    if name in PARAMETERS:
        assert count == PARAMETERS[name] - 1000 * net.num_features - 1000
    if not basic:
        layout = RESNETS[name]
        assert count == bottlenecks(layout.layers, layout.groups, layout.width_per_group)
    for part in (*net.last_block, *net.last_bottleneck):
        assert sum(p.numel() for p in net.get_submodule(part).parameters()) > 0


def test_resnet10_has_a_block_a_stage():
    """Nine convolutions on the way and a classifier are its ten layers."""
    with torch.device("meta"):
        net = ResNet("resnet10")
    convolutions = [m for name, m in net.named_modules() if isinstance(m, torch.nn.Conv2d) and "downsample" not in name]
    assert len(convolutions) + 1 == 10


def test_features_are_the_mean_of_the_map_and_start_as_the_authors_do():
    torch.manual_seed(0)
    net = ResNet("resnet10")
    weight = net.net.layer3[0].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * weight.shape[0])) ** 0.5, rel=0.02)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net.eval()(images), net.forward_map(images).mean(dim=(2, 3)))


def test_weights_that_the_library_has_not():
    with pytest.raises(InputError, match=r"torchvision has weights of resnet18, .*, none of resnet10; give a file"):
        ResNet("resnet10", pretrained=True)


# ---- weights from a file


@pytest.mark.parametrize("wrap", ["plain", "module", "compiled", "papers", "run"])
def test_weights_from_a_file(wrap, tmp_path):
    torch.manual_seed(1)
    trained, fresh = ResNet("resnet10"), ResNet("resnet10")
    own = {name.removeprefix("net."): tensor for name, tensor in trained.state_dict().items()}
    fc = {"fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}
    path = tmp_path / ("w.safetensors" if wrap == "run" else "w.pth")
    if wrap == "run":
        save_file({f"backbone.net.{name}": t for name, t in own.items()} | {"classifier.weight": torch.zeros(3)}, path)
    else:
        module = {f"module.{name}": tensor for name, tensor in (own | fc).items()}
        best = {"feat_model": module, "classifier": {"module.fc.weight": torch.zeros(3)}}
        papers = {"state_dict_best": best, "embed": np.zeros(4, np.float32), "best_acc": np.float64(0.5)}
        compiled = {f"module._orig_mod.{name}": tensor for name, tensor in (own | fc).items()}
        module_file = {"state_dict": module, "epoch": 3}
        torch.save({"plain": own | fc, "module": module_file, "compiled": compiled, "papers": papers}[wrap], path)
    load_backbone(fresh, path)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


def test_weights_that_do_not_fit_change_nothing(tmp_path):
    net = ResNet32()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = dict(before)
    path = tmp_path / "w.pth"
    cases = {
        "is without stem.0.weight": {name: t for name, t in state.items() if name != "stem.0.weight"},
        "has another shape of stem.0.weight": state | {"stem.0.weight": torch.zeros(2)},
        "has, beside the network, more.weight": state | {"more.weight": torch.zeros(2)},
        "got something else": {"lr": 0.1},
    }
    for message, content in cases.items():
        torch.save(content, path)
        with pytest.raises(InputError, match=re.escape(message)):
            load_backbone(net, path)
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="is no file of weights"):
        load_backbone(net, str(path))
    torch.save({"state_dict": state, "made": Path("runs")}, path)  # anything but tensors and numbers could run code
    with pytest.raises(InputError, match=r"is no file of weights \(Unsupported global: GLOBAL pathlib") as refused:
        load_backbone(net, path)
    assert "trust" not in str(refused.value)
    with pytest.raises(InputError, match=r"is not readable \(.*No such file"):
        load_backbone(net, tmp_path / "gone.pth")
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())


# ---- any model


@pytest.mark.parametrize(
    ("name", "size", "width", "shape", "last"),
    [
        ("resnet18", 64, 512, (512, 2, 2), ("net.layer4",)),
        ("vit_tiny_patch16_224", 64, 192, (192, 4, 4), ("net.blocks.11", "net.norm")),
        ("mobilenetv3_small_050", 64, 1024, (288, 2, 2), ("net.blocks.5", "net.conv_head")),
    ],
)
def test_models_of_timm(name, size, width, shape, last):
    net = TimmNet(name, size=size).eval()
    images = torch.rand(2, 3, size, size)
    assert net(images).shape == (2, net.num_features) == (2, width)
    assert net.forward_map(images).shape == (2, *shape)
    assert net.last_block == last
    if name == "resnet18":
        torch.testing.assert_close(net(images), net.forward_map(images).mean(dim=(2, 3)))
    assert [len(values) for values in statistics_of_timm(name)] == [3, 3]


def test_timm_says_what_it_does_not_know():
    with pytest.raises(InputError, match="timm has no model 'resnet5'; did you mean 'resnet50'"):
        TimmNet("resnet5")
    with pytest.raises(InputError, match="timm has no model 'x'"):
        statistics_of_timm("x")


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32}


def saved(folder, kind):
    """A tiny model of transformers in a folder, with weights and image processor."""
    import transformers

    config = {
        "vit": lambda: transformers.ViTConfig(**SMALL, patch_size=16),
        "clip": lambda: transformers.CLIPConfig(
            text_config={**SMALL, "vocab_size": 9}, vision_config={**SMALL, "patch_size": 16}
        ),
        "dinov2": lambda: transformers.Dinov2Config(**SMALL, patch_size=8),
        "swin": lambda: transformers.SwinConfig(
            image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2
        ),
        "ijepa": lambda: transformers.IJepaConfig(**SMALL, patch_size=16),
        "segformer": lambda: transformers.SegformerConfig(
            num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], num_attention_heads=[1, 2]
        ),
        "efficientnet": lambda: transformers.EfficientNetConfig(image_size=32, width_coefficient=0.1),
        "resnet": lambda: transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    }[kind]()
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    about = {"image_processor_type": "ViTImageProcessor", **statistics}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("kind", "width", "shape"),
    [("vit", 32, (32, 2, 2)), ("dinov2", 32, (32, 4, 4)), ("clip", 32, (32, 2, 2)), ("resnet", 16, None)],
)
def test_models_of_transformers(kind, width, shape, tmp_path):
    saved(tmp_path, kind)
    net, again = (HuggingFaceNet(str(tmp_path), pretrained=True).eval() for _ in range(2))
    images = torch.rand(2, 3, 32, 32)
    features, maps = net(images), net.forward_map(images)
    assert features.shape == (2, net.num_features) == (2, width)
    assert torch.equal(features, again(images))  # its weights, not new ones
    assert not torch.equal(features, HuggingFaceNet(str(tmp_path)).eval()(images))
    net(images).sum().backward()
    learning = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    if shape:
        assert maps.shape == (2, *shape)
    else:
        torch.testing.assert_close(features, maps.mean(dim=(2, 3)))
    if kind == "vit":  # its pooler is of another training: the first token
        torch.testing.assert_close(features, net.net(pixel_values=images).last_hidden_state[:, 0])
    for part in net.last_block:
        net.get_submodule(part)


@pytest.mark.parametrize(
    ("kind", "size", "places", "first"),
    [("dinov2", (48, 24), (6, 3), 1), ("dinov2", (50, 31), (6, 3), 1), ("swin", (32, 32), (4, 4), 0)],
)
def test_a_map_of_transformers_has_every_patch_in_its_place(kind, size, places, first, tmp_path):
    """Images that are not square, with patches to the edge or not; patches that are merged on the way."""
    saved(tmp_path, kind)
    net, images = HuggingFaceNet(str(tmp_path)).eval(), torch.rand(1, 3, *size)
    tokens, maps = net.net(pixel_values=images).last_hidden_state, net.forward_map(images)
    assert maps.shape[2:] == places
    assert torch.equal(maps.flatten(2).transpose(1, 2), tokens[:, first:])


def test_merged_patches_that_are_no_square_have_no_map(tmp_path):
    saved(tmp_path, "swin")
    with pytest.raises(InputError, match="backbone: expected tokens of a square of patches, got 10"):
        HuggingFaceNet(str(tmp_path)).eval().forward_map(torch.rand(1, 3, 40, 16))


@pytest.mark.parametrize(("kind", "over"), [("ijepa", 1), ("segformer", (2, 3))])
def test_a_model_that_pools_nothing_has_the_mean(kind, over, tmp_path):
    """Over its tokens, or over its map."""
    saved(tmp_path, kind)
    net, images = HuggingFaceNet(str(tmp_path)).eval(), torch.rand(2, 3, 32, 32)
    features = net(images)
    assert features.shape == (2, net.num_features)
    torch.testing.assert_close(features, net.net(pixel_values=images).last_hidden_state.mean(dim=over))


def test_a_model_without_a_width_is_named(tmp_path):
    saved(tmp_path, "efficientnet")
    with pytest.raises(InputError, match=r"backbone.name: expected a model with a width \(hidden_size\), got hf:"):
        HuggingFaceNet(str(tmp_path))


def test_what_transformers_does_not_find(tmp_path):
    with pytest.raises(InputError, match=r"backbone.name: transformers cannot find or fetch '.*gone'"):
        HuggingFaceNet(str(tmp_path / "gone"))
    saved(tmp_path, "resnet")
    assert statistics_of_hugging_face(str(tmp_path)) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))


# ---- frozen


def test_a_frozen_net_passes_features_on():
    net = FrozenNet(ResNet32())
    images, features = torch.rand(2, 3, 32, 32), torch.rand(2, 64)
    assert net(features) is features
    torch.testing.assert_close(net.train()(images), net.net.eval()(images))
    assert not any(p.requires_grad for p in net.parameters())
    assert net.forward_map(images).shape == (2, 64, 8, 8)
    with pytest.raises(InputError, match="expected false for a method that looks at feature maps"):
        net.forward_map(features)
