"""How a step is computed: precision, layout, compilation, clipping, averaged weights; against loops written by hand."""

import copy
import os
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from tailwise import CausalClassifier, InputError, LinearClassifier, fit
from tailwise.losses import cross_entropy
from tailwise.recipes.build import find_device
from tailwise.recognizer import Recognizer
from tailwise.train import Compute, compute, constant, on_device, snapshot_of
from test_train import stage, toy_batches, toy_model

BATCHES = toy_batches(256, 64)


def load(_stage, epoch):
    return toy_batches(256, 64, seed=epoch)


def convolutional(classifier=CausalClassifier):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Recognizer(backbone, classifier(8, 3))


def images(n=64, batch=32):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator)
    return type(BATCHES)(zip(x.split(batch), y.split(batch), strict=True))


def by_hand(model, epochs=2, after_backward=lambda parameters: None, after_step=lambda: None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(1, epochs + 1):
        for x, y in toy_batches(256, 64, seed=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            after_backward(list(model.parameters()))
            optimizer.step()
            after_step()


# ---- clipping


def test_clipping_shortens_the_gradient_of_all_parameters_together():
    ours, hand = toy_model(), toy_model()
    fit(ours, [stage(clip_norm=0.05)], load)
    lengths = []

    def clip(parameters):
        length = torch.sqrt(sum((p.grad**2).sum() for p in parameters))
        lengths.append(float(length))
        for p in parameters:
            p.grad *= min(1.0, 0.05 / float(length))

    by_hand(hand, after_backward=clip)
    assert max(lengths) > 0.05  # it had something to do
    for a, b in zip(ours.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_gradient_within_the_limit_is_left_alone():
    clipped, plain = toy_model(), toy_model()
    fit(clipped, [stage(clip_norm=1e6)], load)
    fit(plain, [stage()], load)
    for a, b in zip(clipped.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_limit_is_of_the_gradient_and_not_of_the_scaled_loss():
    """In fp16 the loss is scaled by thousands: a limit that no gradient reaches must still change nothing."""
    clipped, plain = toy_model(), toy_model()
    for model, limit in ((clipped, 1e3), (plain, None)):
        fit(model, [stage(clip_norm=limit, epochs=6)], load, compute=Compute(precision="fp16"))
    for a, b in zip(clipped.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ---- averaged weights


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_averaged_weights_are_what_is_measured_and_kept(decay):
    """w' = decay w' + (1 - decay) w after every step, from the first step's weights on; training goes on from w."""
    ours, hand = toy_model(), toy_model()
    seen, expected, shadow = [], [], {}
    fit(ours, [stage(weight_average=decay)], load, on_epoch=lambda _: seen.append(copy.deepcopy(ours.state_dict())))

    def follow():
        for name, tensor in hand.state_dict().items():
            shadow[name] = decay * shadow[name] + (1 - decay) * tensor if name in shadow else tensor.clone()

    for _epoch in (1, 2):
        expected.append(None)
    by_hand(hand, after_step=follow)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, shadow[name])
        assert torch.equal(tensor, seen[-1][name])
    own = hand.state_dict()["classifier.weight"]
    assert torch.allclose(own, shadow["classifier.weight"]) == (decay == 0)
    assert not torch.equal(seen[0]["classifier.weight"], seen[1]["classifier.weight"])


def test_what_is_frozen_or_counted_is_not_averaged_away():
    """Frozen parts keep their bits, and the number of batches seen stays whole."""
    model = convolutional()
    model.backbone.insert(1, nn.BatchNorm2d(8))
    frozen, free = copy.deepcopy(model), copy.deepcopy(model)
    fit(frozen, [stage(weight_average=0.9, epochs=5, trainable=("classifier",))], lambda s, e: images())
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(frozen.backbone.state_dict()[name], tensor), name
    fit(free, [stage(weight_average=0.9, epochs=5)], lambda s, e: images())
    assert int(free.backbone[1].num_batches_tracked) == 10
    assert not torch.equal(free.backbone[1].running_mean, model.backbone[1].running_mean)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm: .*above 0"),
        ({"clip_norm": float("nan")}, "clip_norm"),
        ({"weight_average": 1.0}, "weight_average: .*below 1"),
        ({"weight_average": -0.1}, "weight_average"),
    ],
)
def test_bad_stage_settings_are_named(setting, message):
    with pytest.raises(InputError, match=message):
        stage(**setting)


# ---- precision


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp16", 0.2)])
def test_half_precision_is_near_float32_and_keeps_float32_weights(precision, tolerance):
    """fp16 skips the first steps, until its scaler has found a scale: hence the tolerance."""
    half, full, ends = toy_model(), toy_model(), []
    gentle = stage(epochs=20, learning_rate=constant(0.003))
    fit(half, [gentle], load, compute=Compute(precision=precision), on_epoch=ends.append)
    fit(full, [gentle], load, on_epoch=ends.append)
    for name, tensor in half.state_dict().items():
        assert tensor.dtype == torch.float32, name
    assert not torch.equal(half.classifier.weight, full.classifier.weight)
    fall = [before.loss - after.loss for before, after in ((ends[0], ends[19]), (ends[20], ends[39]))]
    assert fall[0] == pytest.approx(fall[1], rel=tolerance)
    assert fall[1] > 0.1


def test_the_loss_sees_float32_logits():
    seen = set()

    def loss(logits, target):
        seen.add(logits.dtype)
        return cross_entropy(logits, target)

    fit(toy_model(), [stage(loss=loss)], load, compute=Compute(precision="bf16"))
    assert seen == {torch.float32}


def test_the_scaler_skips_a_step_that_overflows_and_goes_on():
    """A step that halves the scale leaves the weights alone; every other moves them."""
    states, scales = [], []

    def pause(take):
        if not take().progress["batch"]:  # an epoch's end is no step
            return
        tensors = take().tensors
        states.append(tensors["model.classifier.weight"])
        scales.append(float(tensors["scaler.scale"]))

    def loss(logits, target):  # the third step's gradients are beyond half precision, whatever the scale
        return cross_entropy(logits, target) * (1e30 if len(states) == 8 else 1.0)

    fit(toy_model(), [stage(loss=loss, epochs=3)], load, on_pause=pause, compute=Compute(precision="fp16"))
    fell = [after < before for before, after in pairwise(scales)]
    assert [torch.equal(before, after) for before, after in pairwise(states)] == fell
    assert fell[7]
    assert fell.count(False) > 3


@pytest.mark.parametrize("precision", ["float32", "fp16"])
@pytest.mark.parametrize("at", [2, 5])
def test_scaler_and_average_go_on_from_a_snapshot(precision, at):
    how = Compute(precision=precision)
    settings = {"weight_average": 0.7, "clip_norm": 0.1, "accumulate": 2}
    whole, taken = toy_model(), []
    fit(whole, [stage(**settings)], load, compute=how, on_pause=lambda take: taken.append(take()))
    again = toy_model(seed=5)
    snapshot = snapshot_of(taken[at].tensors, taken[at].progress)
    fit(again, [stage(**settings)], load, compute=how, resume=snapshot)
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_snapshot_of_another_precision_is_refused():
    taken = []
    fit(toy_model(), [stage()], load, on_pause=lambda take: taken.append(take()))
    with pytest.raises(InputError, match="snapshot: expected one taken with a loss scaler"):
        fit(toy_model(), [stage()], load, compute=Compute(precision="fp16"), resume=taken[0])


# ---- layout and device


def test_channels_last_inside_and_as_before_outside():
    model, layouts = convolutional(), []
    last, plain = copy.deepcopy(model), copy.deepcopy(model)
    last.backbone[0].register_forward_pre_hook(
        lambda module, args: layouts.append(
            all(t.is_contiguous(memory_format=torch.channels_last) for t in (args[0], module.weight))
        )
    )
    fit(last, [stage(epochs=1)], lambda s, e: images(), compute=Compute(channels_last=True))
    fit(plain, [stage(epochs=1)], lambda s, e: images())
    assert layouts == [True, True]
    assert last.backbone[0].weight.is_contiguous()
    for a, b in zip(last.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_model_spread_over_devices_is_refused():
    model = toy_model()
    model.classifier.to("meta")
    with (
        pytest.raises(InputError, match="model: expected it on one device, got cpu, meta"),
        on_device(model, torch.device("cpu")),
    ):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said():
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="device: expected a GPU that torch can use, got none"):
        find_device("cuda")
    with pytest.raises(InputError, match="device: unknown value 'gpu'"):
        find_device("gpu")


# ---- compilation


COMPILED = """
import copy, torch
from test_train import stage, toy_batches, toy_model
from tailwise import fit
from tailwise.train import Compute

graphs, real = [], torch.compile

def counting(graph, inputs):  # dynamo as in earnest, without the half minute of a C++ compiler
    graphs.append(graph)
    return graph.forward

torch.compile = lambda model, **how: real(model, backend=counting, **how)
models = []
for how in (Compute(compile=True), Compute()):
    model = toy_model()

    def follow(learning_rate, average=model.classifier.average):
        average.momentum = 1 - learning_rate

    joint = stage(epochs=12, batch_size=64, learning_rate=lambda done: 0.1 / (1 + done), on_learning_rate=follow)
    fit(model, [joint], lambda stage, epoch: toy_batches(250, 64, seed=epoch), compute=how)
    models.append(model)
for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
assert models[0].classifier.average.value.norm() > 0
assert "forward" not in vars(models[0].classifier.average)
print(len(graphs))
"""


def test_compiled_training_is_training():
    """Same weights and average; a momentum that changes with every step and an odd last batch compile nothing anew."""
    done = subprocess.run(  # without the checks of shapes that the suite adds
        [sys.executable, "-c", COMPILED], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("2\n", "3\n")  # the probe, and the model in one piece or two, around the average


def test_without_a_compiler_training_goes_on_and_says_so_once(monkeypatch):
    compute.compiler_works.cache_clear()

    def broken(*_, **__):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    model, plain = toy_model(classifier=LinearClassifier), toy_model(classifier=LinearClassifier)
    with pytest.warns(UserWarning, match=r"compile: off, torch.compile does not work here \(no C\+\+ compiler\)"):
        fit(model, [stage(learning_rate=constant(0.1))], load, compute=Compute(compile=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(copy.deepcopy(model), [stage()], load, compute=Compute(compile=True))  # said once is enough
    fit(plain, [stage()], load)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    compute.compiler_works.cache_clear()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="of Linux")
def test_the_most_memory_is_that_of_this_program_alone():
    """Not what the program held that started it."""
    here = torch.device("cpu")
    before = compute.peak_memory(here)
    resident = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[1])
    torch.ones((before - resident) // 4 + 25_000_000)  # up to the most so far, and 100 MB
    assert compute.peak_memory(here) > before + 50_000_000
    measure = "import torch\nfrom tailwise.train.compute import peak_memory\nprint(peak_memory(torch.device('cpu')))"
    start = "import numpy as np, subprocess, sys\nx = np.ones(125_000_000)  # 1 GB\n"
    start += f"subprocess.run([sys.executable, '-c', {measure!r}], check=True)"
    told = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True, timeout=100)
    assert int(told.stdout) < 1_000_000_000
