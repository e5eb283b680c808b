"""Deferred re-weighting, against Cao et al.'s rule written out."""

import pytest
import torch

from tailwise import ClassCounts, InputError
from tailwise.losses import CrossEntropy, DeferredReweighting, Focal, cross_entropy

COUNTS = (400, 60, 12, 3, 1)


def sample(n=64):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, len(COUNTS), generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, len(COUNTS), (n,), generator=generator)


def deferred(**settings):
    return DeferredReweighting(CrossEntropy(reduction="none"), ClassCounts(COUNTS), **settings)


def test_plain_first_weighted_later():
    logits, target = sample()
    loss = deferred(beta=0.99, after=0.8)
    raw = [(1 - 0.99) / (1 - 0.99**n) for n in COUNTS]
    per_image = sum(n * w for n, w in zip(COUNTS, raw, strict=True)) / sum(COUNTS)
    plain = [float(cross_entropy(z[None], y[None])) for z, y in zip(logits, target, strict=True)]
    weighted = [raw[y] / per_image * value for value, y in zip(plain, target.tolist(), strict=True)]
    for epoch, expected in ((1, plain), (160, plain), (161, weighted), (200, weighted)):
        loss.start_epoch(epoch, 200)
        assert float(loss(logits, target)) == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_one_hot_is_the_class_and_a_mixture_weighs_both():
    logits, target = sample()
    loss = deferred(after=0.0)
    hard = torch.nn.functional.one_hot(target, len(COUNTS)).double()
    torch.testing.assert_close(loss(logits, hard), loss(logits, target))
    soft = loss(logits[:1], torch.tensor([[0.5, 0.5, 0, 0, 0]], dtype=torch.float64))
    weight = loss.weights[:2].double().mean()
    torch.testing.assert_close(soft, weight * -logits[:1].log_softmax(1)[:, :2].mean())


@pytest.mark.parametrize("settings", [{"after": 1.0}, {"beta": 0.0, "after": 0.0}])
def test_limits_are_the_loss_itself(settings):
    logits, target = sample()
    loss = DeferredReweighting(Focal(gamma=1.0, reduction="none"), ClassCounts(COUNTS), **settings)
    loss.start_epoch(200, 200)
    torch.testing.assert_close(loss(logits, target), Focal(gamma=1.0)(logits, target))


def test_weights_keep_the_size_of_the_loss():
    """1 on average over the training images, classes without one aside."""
    counts = ClassCounts((400, 0, 3))
    weights = DeferredReweighting(CrossEntropy(reduction="none"), counts).weights
    assert float(weights @ torch.tensor([400.0, 0, 3])) == pytest.approx(403)
    assert weights[1] == 0


def test_the_epoch_it_starts_at_is_not_rounded():
    """0.29 * 100 is a little less than 29 in floating point: epoch 29 is still without weights."""
    for after, last in ((0.29, 29), (0.57, 57), (0.8, 80), (0.295, 29)):
        loss = deferred(after=after)
        on = []
        for epoch in range(1, 101):
            loss.start_epoch(epoch, 100)
            on.append(loss.on)
        assert on == [epoch > last for epoch in range(1, 101)]


@pytest.mark.parametrize("n", [1, 4])
def test_a_loss_that_reduces_is_refused(n):
    logits, target = sample(n)
    loss = DeferredReweighting(CrossEntropy(), ClassCounts(COUNTS))
    with pytest.raises(InputError, match=rf"^loss: expected one value for each of {n} samples .*, got shape \[\]$"):
        loss(logits, target)


@pytest.mark.parametrize(("settings", "message"), [({"after": -0.1}, "after"), ({"beta": 1.0}, "beta")])
def test_settings_outside_their_range_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        deferred(**settings)
