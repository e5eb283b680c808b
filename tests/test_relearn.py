"""Class-balanced re-learning of a classifier on stored features: cRT and LWS (Kang et al. 2020)."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from causal_oracles import assert_close, length, rows
from decoupling_oracles import (
    DIM,
    balanced_shares,
    joint,
    linear,
    long_tail,
    mean_class_accuracy,
    normal,
    oracle_linear,
    oracle_scales,
    properties,
    softmax,
)
from tailwise.adjust import fit_crt, fit_lws, relearn
from tailwise.classifiers import CosineClassifier, LinearClassifier, MlpClassifier, ScaledClassifier

# ---- class-balanced re-learning


class Recorder(torch.nn.Module):
    """A linear classifier without bias that writes down what it is trained on, and its weight at the time."""

    def __init__(self, dim, num_classes):
        super().__init__()
        self.weight = torch.nn.Parameter(0.1 * normal(30, num_classes, dim))
        self.seen, self.weights = [], []

    def forward(self, features):
        if self.training:
            self.seen.append(features.detach().clone())
            self.weights.append(self.weight.detach().clone())
        return torch.nn.functional.linear(features, self.weight)


def recorded(epochs=3, batch_size=10, seed=0, counts=(29, 5, 2), **settings):
    """A run on features that tell label and index: a one per class, then the index."""
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    index = torch.arange(len(y)).double()
    x = torch.cat([torch.nn.functional.one_hot(y).double(), index[:, None] / len(y)], dim=1)
    recorder = Recorder(x.shape[1], len(counts))
    result = relearn(recorder, x, y, len(counts), epochs=epochs, batch_size=batch_size, seed=seed, **settings)
    assert result is recorder
    assert not result.training
    drawn = (torch.cat(recorder.seen)[:, -1] * len(y)).round().long()
    return recorder, drawn, y


def test_an_epoch_draws_as_many_features_as_there_are_and_every_class_equally_often():
    recorder, drawn, y = recorded(epochs=4)
    assert [len(batch) for batch in recorder.seen] == [10, 10, 10, 6] * 4
    for epoch in drawn.view(4, 36):
        assert y[epoch].bincount().tolist() == [12, 12, 12]
        assert all(len(visit.unique()) == 1 for visit in y[epoch].view(-1, 4))  # 4 images a visit
    for c in range(3):  # within a class every image in turn
        times = drawn.bincount(minlength=36)[y == c]
        assert times.max() - times.min() <= 1
    assert len({tuple(epoch.tolist()) for epoch in drawn.view(4, 36)}) == 4


@pytest.mark.parametrize(("num_rows", "expected"), [(36, 32), (3300, 33), (5000, 50), (60000, 512)])
def test_the_batch_is_a_hundredth_of_the_features_within_bounds_unless_told(num_rows, expected):
    recorder, _, _ = recorded(epochs=1, batch_size=None, counts=(num_rows - 2, 2))
    assert len(recorder.seen[0]) == expected


def test_the_steps_are_those_of_sgd_with_momentum_down_half_a_cosine():
    epochs, rate, decay = 3, 0.3, 0.05
    recorder, _, _ = recorded(epochs, learning_rate=rate, weight_decay=decay)
    weight, velocity, total = recorder.weights[0].numpy(), 0.0, len(recorder.seen)
    after = [*recorder.weights[1:], recorder.weight.detach()]
    for step, (batch, expected) in enumerate(zip(recorder.seen, after, strict=True)):
        x = batch.numpy()
        error = softmax(x @ weight.T) - x[:, : len(weight)]
        velocity = 0.9 * velocity + error.T @ x / len(x) + decay * weight
        weight = weight - rate * (1 + math.cos(math.pi * step / total)) / 2 * velocity
        assert_close(expected, weight, 1e-10)


def test_draws_depend_on_the_seed_alone():
    torch.manual_seed(1)
    _, first, _ = recorded(seed=3)
    torch.manual_seed(2)
    _, again, _ = recorded(seed=3)
    _, other, _ = recorded(seed=4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_settings_unless_told():
    stage = {"batch_size": 32, "learning_rate": 0.2, "weight_decay": 5e-4, "seed": 0}
    x, y = long_tail(dtype=torch.float32)
    classifier = linear(33, 3, dim=2, dtype=torch.float32)
    told = relearn(copy.deepcopy(classifier), x, y, 3, epochs=10, **stage)
    assert torch.equal(relearn(copy.deepcopy(classifier), x, y, 3).weight, told.weight)
    assert torch.equal(fit_crt(x, y, 3).weight, fit_crt(x, y, 3, epochs=10, **stage).weight)
    assert torch.equal(fit_lws(x, y, classifier).weight, fit_lws(x, y, classifier, epochs=5, **stage).weight)


@pytest.mark.parametrize("make", [MlpClassifier, CosineClassifier, LinearClassifier])
def test_relearn_trains_in_place_and_ends_in_eval_mode(make):
    torch.manual_seed(0)
    classifier = make(2, 3).double().train()
    before = [leaf.detach().clone() for leaf in classifier.parameters()]
    x, y = long_tail(spread=0.4)
    kept = x.clone(), y.clone()
    assert relearn(classifier, x, y, 3, epochs=20, batch_size=32) is classifier
    assert not any(module.training for module in classifier.modules())
    assert not any(torch.equal(old, new) for old, new in zip(before, classifier.parameters(), strict=True))
    assert mean_class_accuracy(classifier(x), y) > 0.95
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


def test_an_mlp_learns_what_no_plane_divides():
    torch.manual_seed(0)
    x, _ = long_tail(1, counts=(100, 100), spread=1.5)
    y = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    mlp = relearn(MlpClassifier(2, 2, hidden_features=16).double(), x, y, 2, epochs=60, batch_size=50)
    plane = relearn(LinearClassifier(2, 2).double(), x, y, 2, epochs=60, batch_size=50)
    assert mean_class_accuracy(mlp(x), y) > 0.9
    assert mean_class_accuracy(plane(x), y) < 0.75


# ---- cRT


def standardized(features, num_classes):
    """(x - mean) * s and s, which brings the mean squared length to 5 C."""
    x = np.array(rows(features))
    x = x - x.mean(axis=0)
    factor = math.sqrt(5 * num_classes / np.mean([length(v) ** 2 for v in x.tolist()]))
    return x * factor, factor


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (30.0, 100.0)], ids=str)
def test_crt_goes_to_the_class_balanced_optimum(scale, shift):
    """That of the weights on (x - mean) * s: what they decay to depends on where and how long the features are."""
    x, y = long_tail()
    x, decay = (scale * x * torch.tensor([1.0, 2.0]) + shift).float(), 0.02
    fold = fit_crt(x, y, 3, epochs=400, batch_size=96, weight_decay=decay)
    z, factor = standardized(x, 3)
    weight, bias = oracle_linear(z, y, 3, decay, balanced_shares(y), rate=0.1)
    weight = weight * factor
    assert_close(fold.weight, weight, 0.01)
    queries = scale * 3 * normal(31, 2000, 2, dtype=torch.float32) + shift
    expected = (queries.double().numpy() - np.array(rows(x)).mean(axis=0)) @ weight.T + bias
    assert_close(fold(queries), expected, 0.01)
    assert (fold(queries).argmax(dim=1).numpy() == expected.argmax(axis=1)).mean() > 0.99
    # the ordinary optimum is another: the tolerance above tells the two apart
    plain, _ = oracle_linear(z, y, 3, decay, np.full(len(y), 1 / len(y)), rate=0.1)
    assert np.abs(plain * factor - weight).max() > 0.05 * np.abs(weight).max()


def test_crt_takes_the_deviation_of_all_features():
    """Not of those it takes at once: the last thousand are far out."""
    y = torch.arange(6000) % 2
    x = normal(36, 6000, 2, dtype=torch.float32) + 3.0 * y[:, None]
    x[5000:] *= 20
    fold = fit_crt(x, y, 2, epochs=1, learning_rate=1e-12)
    same = fit_crt(x.flip(0), y.flip(0), 2, epochs=1, learning_rate=1e-12)
    assert_close(fold.weight, same.weight, 1e-3)


@properties
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-5, 5))
def test_scale_and_origin_of_the_features_change_nothing_for_crt(scale, shift):
    x, y = long_tail(dtype=torch.float32)
    queries = normal(34, 20, 2, dtype=torch.float32)
    logits = fit_crt(x, y, 3, epochs=2, batch_size=32)(queries)
    moved = fit_crt(scale * (x + shift), y, 3, epochs=2, batch_size=32)(scale * (queries + shift))
    assert_close(moved, logits, 1e-4)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_crt_of_features_that_are_all_alike(value):
    fold = fit_crt(torch.full((6, DIM), value), torch.arange(6) % 3, 3, epochs=2)
    assert fold(normal(35, 4, DIM, dtype=torch.float32)).isfinite().all()


def test_crt_raises_the_mean_accuracy_per_class():
    x, y = long_tail(2, counts=(300, 40, 5))
    before = mean_class_accuracy(joint(x, y)(x), y)
    after = mean_class_accuracy(fit_crt(x.float(), y, 3, epochs=20, batch_size=64)(x.float()), y)
    assert after > before + 0.02


def test_crt_depends_on_its_seed_alone():
    x, y = long_tail(dtype=torch.float32)
    results = []
    for around in (1, 2):
        torch.manual_seed(around)
        np.random.seed(around)
        state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
        results.append(fit_crt(x, y, 3, epochs=2, batch_size=32, seed=5))
        assert torch.equal(torch.get_rng_state(), state)
        assert np.array_equal(np.random.get_state()[1], legacy)
    first, again = results
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weight, fit_crt(x, y, 3, epochs=2, batch_size=32, seed=6).weight)


def test_crt_starts_from_fresh_weights_of_its_seed():
    x, y = normal(32, 400, 64, dtype=torch.float32), torch.arange(400) % 20
    x *= math.sqrt(5 * 20 / 64)  # squared lengths of 5 C: taken as they are
    first, other = (fit_crt(x, y, 20, epochs=1, learning_rate=1e-12, seed=seed).weight for seed in (0, 1))
    for weight in (first, other):  # as a linear classifier is made
        assert 0.12 < weight.abs().max() <= 1.02 / math.sqrt(64)
    assert (first - other).abs().max() > 0.05


# ---- LWS


def scales(fold, classifier):
    """s, from weight rows that are all s * w."""
    return (fold.weight * classifier.weight).sum(dim=1) / classifier.weight.square().sum(dim=1)


@pytest.mark.parametrize("bias", [True, False])
def test_lws_is_a_factor_per_class_on_the_joint_logits(bias):
    x, y = long_tail()
    classifier = joint(x, y, bias=bias).train()
    kept = {name: value.clone() for name, value in classifier.state_dict().items()}
    fold = fit_lws(x, y, classifier, batch_size=32)
    assert (fold.bias is None) is (not bias)
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, kept[name])
    assert classifier.training
    assert all(leaf.requires_grad and leaf.grad is None for leaf in classifier.parameters())
    factors = scales(fold, classifier)
    queries = normal(40, 50, 2)
    assert_close(fold(queries), factors * classifier(queries), 1e-12)
    assert ((factors - 1).abs() > 0.01).all()


@pytest.mark.parametrize("bias", [True, False])
def test_lws_goes_to_the_class_balanced_optimum(bias):
    x, y = long_tail()
    classifier, decay = joint(x, y, bias=bias), 0.02
    fold = fit_lws(x, y, classifier, epochs=300, batch_size=96, learning_rate=0.1, weight_decay=decay)
    assert_close(scales(fold, classifier), oracle_scales(classifier(x), y, decay), 0.02)


def test_lws_raises_the_mean_accuracy_per_class():
    x, y = long_tail(2, counts=(300, 40, 5))
    classifier = joint(x, y)
    before = mean_class_accuracy(classifier(x), y)
    assert mean_class_accuracy(fit_lws(x, y, classifier, batch_size=64)(x), y) > before


def test_lws_starts_as_the_joint_classifier():
    x, y = long_tail()
    classifier = joint(x, y)
    assert torch.equal(ScaledClassifier(classifier.weight, classifier.bias)(x), classifier(x))
    assert_close(fit_lws(x, y, classifier, epochs=1, learning_rate=1e-12)(x), classifier(x), 1e-9)


def test_every_setting_of_lws_has_an_effect_and_the_same_ones_the_same_result():
    x, y = long_tail()
    classifier = joint(x, y)
    plain = {"epochs": 3, "batch_size": 32, "learning_rate": 0.1, "weight_decay": 1e-3, "seed": 0}
    first, again = fit_lws(x, y, classifier, **plain), fit_lws(x, y, classifier, **plain)
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    other = {"epochs": 4, "batch_size": 31, "learning_rate": 0.11, "weight_decay": 0.5, "seed": 1}
    for name, value in other.items():
        assert not torch.equal(first.weight, fit_lws(x, y, classifier, **{**plain, name: value}).weight), name
    decayed = fit_lws(x, y, classifier, **{**plain, "epochs": 30, "weight_decay": 0.5})
    assert (scales(decayed, classifier) < scales(first, classifier)).all()


def test_every_setting_of_crt_has_an_effect():
    x, y = long_tail(dtype=torch.float32)
    plain = {"epochs": 3, "batch_size": 32, "learning_rate": 0.1, "weight_decay": 1e-3, "seed": 0}
    first = fit_crt(x, y, 3, **plain)
    other = {"epochs": 4, "batch_size": 31, "learning_rate": 0.11, "weight_decay": 0.5, "seed": 1}
    for name, value in other.items():
        assert not torch.equal(first.weight, fit_crt(x, y, 3, **{**plain, name: value}).weight), name
