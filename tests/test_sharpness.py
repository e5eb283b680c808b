"""What is done to weights around a step: SAM's detour, against a loop written by hand, and MaxNorm's projection."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from tailwise import CausalClassifier, InputError, LinearClassifier, Stage, fit
from tailwise.losses import Seesaw, cross_entropy
from tailwise.recognizer import Recognizer
from tailwise.sampling import EpochSampler, instance_draw
from tailwise.train import Compute, constant, keep_max_norm, max_norm
from tailwise.train.sharpness import at_worst_nearby, held
from tailwise.train.step import Training

RHO = 0.3


class List(list):
    """Batches of one epoch."""


def batches(n=48, size=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    x, y = torch.randn(n, 6, generator=generator).to(dtype), torch.randint(0, 3, (n,), generator=generator)
    return List(zip(x.split(size), y.split(size), strict=True))


def make_model(classifier=LinearClassifier, norm=nn.Identity):
    torch.manual_seed(0)
    return Recognizer(nn.Sequential(nn.Linear(6, 8), norm(), nn.Tanh()), classifier(8, 3)).double()


def with_batch_norm():
    return make_model(CausalClassifier, norm=lambda: nn.BatchNorm1d(8))


def stage(**changes):
    settings = {
        "name": "sam",
        "epochs": 2,
        "batch_size": 16,
        "sampler": EpochSampler(partial(instance_draw, 48, 0), batch_size=16),
        "loss": cross_entropy,
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
        "learning_rate": constant(0.1),
        "sharpness": RHO,
    }
    return Stage(**(settings | changes))


def trained(model, data=batches, precision="float32", **changes):
    fit(model, [stage(**changes)], lambda s, e: data(), compute=Compute(precision=precision))
    return model


def assert_same(one, other, **tolerance):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


# ---- SAM


def test_training_is_foret_et_al():
    """Algorithm 1 by hand: eps = rho g / |g|; the gradient at w + eps moves w by SGD with momentum and weight decay."""
    ours, byhand = make_model(), make_model()
    trained(ours)
    w = [p.detach() for p in byhand.parameters()]
    assert [p.shape for p in w] == [(8, 6), (8,), (3, 8), (3,)]
    velocity = [torch.zeros_like(p) for p in w]

    def gradient(at, x, y):
        u, a, v, b = at = [p.clone().requires_grad_() for p in at]
        logits = torch.tanh(x @ u.T + a) @ v.T + b
        return torch.autograd.grad(-logits.log_softmax(1)[range(len(y)), y].mean(), at)

    for _ in range(2):
        for x, y in batches():
            g = gradient(w, x, y)
            norm = math.sqrt(sum(float(value) ** 2 for part in g for value in part.flatten()))
            assert norm > 0
            sharp = gradient([p + RHO * part / norm for p, part in zip(w, g, strict=True)], x, y)
            velocity = [0.9 * v + part + 0.01 * p for v, part, p in zip(velocity, sharp, w, strict=True)]
            w = [p - 0.1 * v for p, v in zip(w, velocity, strict=True)]
    for ours_p, p in zip(ours.parameters(), w, strict=True):
        torch.testing.assert_close(ours_p.detach(), p)


def test_a_vanishing_distance_is_plain_training():
    plain = trained(with_batch_norm(), sharpness=None)
    assert_same(trained(with_batch_norm(), sharpness=1e-9), plain, rtol=1e-6, atol=1e-8)
    far = trained(with_batch_norm())
    assert not torch.allclose(far.backbone[0].weight, plain.backbone[0].weight, rtol=1e-3)


def test_what_is_counted_is_counted_once():
    """After one step, batch norm's statistics and the feature average are to the bit those of one pass."""
    one, two = with_batch_norm(), with_batch_norm()
    x, y = batches()[0]
    for model, rho in ((one, None), (two, RHO)):
        training = Training(model, stage(sharpness=rho), Compute())
        losses = training.step(x, y)
        assert losses.item() == pytest.approx(16 * cross_entropy(with_batch_norm()(x), y).item())  # at the weights
    buffers = dict(one.named_buffers())
    assert {name.rpartition(".")[2] for name in buffers} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
        "value",
    }
    for name, buffer in two.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert not torch.equal(one.backbone[0].weight, two.backbone[0].weight)
    assert all(module.training for module in two.modules())
    two(x)  # and from here on it listens again
    assert two.backbone[1].num_batches_tracked == 2
    assert not torch.equal(two.classifier.average.value, one.classifier.average.value)


def test_micro_batches_are_the_whole_batch():
    """Rho along the gradient of the whole batch, not of each part."""
    whole, parts = (trained(make_model(CausalClassifier), accumulate=n) for n in (1, 3))
    assert_same(whole, parts)


def test_the_gradient_is_clipped_where_it_is_taken():
    start = make_model()
    steps = []
    for clip_norm in (None, 1e-3):
        end = make_model()
        one_step = {"epochs": 1, "clip_norm": clip_norm, "optimizer": partial(torch.optim.SGD, lr=0.1)}
        trained(end, lambda: batches()[:1], **one_step)
        moves = [a.detach() - b.detach() for a, b in zip(end.parameters(), start.parameters(), strict=True)]
        steps.append(torch.cat([move.flatten() for move in moves]))
    free, clipped = steps
    assert clipped.norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-4)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm())


def test_half_precision():
    """The detour is made in float32 weights; its gradients are bfloat16's."""

    def single():
        return with_batch_norm().float()

    data = partial(batches, dtype=torch.float32)
    half = trained(single(), data, precision="bf16")
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert_same(half, trained(single(), data), rtol=0.1, atol=0.02)
    with pytest.raises(AssertionError):
        assert_same(half, trained(single(), data, sharpness=None), rtol=0.1, atol=0.02)


def test_the_weights_come_back_to_the_bit():
    model = with_batch_norm()
    x, y = batches()[0]
    cross_entropy(model(x), y).backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [p.grad for p in model.parameters()]
    with at_worst_nearby(model, RHO):
        moved = [p.detach() - before[name] for name, p in model.named_parameters()]
        assert nn.utils.get_total_norm(moved).item() == pytest.approx(RHO)
        along = sum(float((a * b).sum()) for a, b in zip(moved, gradients, strict=True))
        assert along == pytest.approx(RHO * nn.utils.get_total_norm(gradients).item())  # uphill
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(KeyError), at_worst_nearby(model, RHO):
        raise KeyError
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_a_gradient_without_a_direction_moves_nothing(value):
    model = make_model()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)
    before = [p.detach().clone() for p in model.parameters()]
    with at_worst_nearby(model, RHO):
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_what_is_frozen_stays():
    model = with_batch_norm()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained(model, trainable=("classifier",))
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"classifier.weight", "classifier.average.value"}


def test_held_is_for_batch_norm_in_both_modes_and_for_a_loss():
    model, loss = with_batch_norm(), with_batch_norm()
    x = batches()[0][0]
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = with_batch_norm()(x)
    with held(model, loss, cross_entropy):
        torch.testing.assert_close(model(x), logits)  # by the batch
        loss(x)
        model.eval()
        torch.testing.assert_close(model(x), with_batch_norm().eval()(x))  # by the statistics
    for module in (model, loss):
        assert all(torch.equal(tensor, fresh[name]) for name, tensor in module.state_dict().items())


def test_a_loss_that_counts_counts_once():
    x, y = batches()[0]
    training = Training(with_batch_norm(), replace(stage(sharpness=RHO), loss=Seesaw(3)), Compute())
    for step in (1, 2):
        training.step(x, y)
        assert torch.equal(training.loss.counts, step * torch.bincount(y, minlength=3))


@pytest.mark.parametrize("rho", [0.0, -0.1, math.inf])
def test_the_distance_is_checked(rho):
    with pytest.raises(InputError, match="sharpness"):
        stage(sharpness=rho)


# ---- MaxNorm


@pytest.mark.parametrize("shape", [(5,), (5, 4), (5, 2, 3, 3)])
@pytest.mark.parametrize("radius", [0.5, 2.0, 100.0])
def test_max_norm_is_its_equation(shape, radius):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight[0] = 0
    projected = max_norm(weight, radius)
    for row, ours in zip(weight, projected, strict=True):
        values = row.flatten().tolist()
        length = math.sqrt(sum(value**2 for value in values))
        factor = min(1, radius / length) if length else 1
        assert ours.flatten().tolist() == pytest.approx([factor * value for value in values])
    assert torch.equal(max_norm(weight, 100.0), weight)


def test_every_step_ends_within_the_radius():
    classifier = LinearClassifier(6, 3)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=5.0)
    hook = keep_max_norm(optimizer, [classifier.weight], radius=0.5)
    free = {"weight": classifier.weight.detach().clone(), "bias": classifier.bias.detach().clone()}
    x, y = batches(dtype=torch.float32)[0]
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(classifier(x), y).backward()
        free = {name: getattr(classifier, name).detach() - 5.0 * getattr(classifier, name).grad for name in free}
        optimizer.step()
        torch.testing.assert_close(classifier.weight.detach(), max_norm(free["weight"], 0.5))
        torch.testing.assert_close(classifier.bias.detach(), free["bias"])  # not among those that are kept
        assert (free["weight"].norm(dim=1) > 0.5).any()
    hook.remove()
    cross_entropy(classifier(x), y).backward()
    optimizer.step()
    assert (classifier.weight.norm(dim=1) > 0.5).any()


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan])
def test_a_radius_outside_its_range_is_named(radius):
    weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(InputError, match="radius"):
        max_norm(weight.detach(), radius)
    with pytest.raises(InputError, match="radius"):
        keep_max_norm(torch.optim.SGD([weight], lr=0.1), [weight], radius)
