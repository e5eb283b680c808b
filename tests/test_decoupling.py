"""Decoupled classifiers (Kang et al. 2020): tau-norm, nearest class mean, cRT, LWS; sweeps; classes without an image.

The oracles are slow float64 loops written from the paper's equations.
"""

import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_oracles import TOLERANCE, assert_close, assert_finite_gradients, dot, length, rows, unchecked
from tailwise import ClassCounts, InputError
from tailwise.adjust import (
    ALPHAS,
    NORM_POWERS,
    choose,
    class_means,
    fit_crt,
    fit_lws,
    fit_ncm,
    fold_linear,
    fold_tau_norm,
    fold_tde,
    learn_norm_power,
    mask_unseen,
    predictions_by_alpha,
    predictions_by_norm_power,
    relearn,
    sweep_alpha,
    sweep_norm_power,
    tau_norm_components,
    tau_norm_weight,
    tde,
    tde_components,
)
from tailwise.classifiers import (
    CausalClassifier,
    CosineClassifier,
    LinearClassifier,
    MlpClassifier,
    ScaledClassifier,
)

DIM = 6
POWERS = (0.0, 0.3, 0.7, 1.0, 2.0, -0.5)
DISTANCES = ("cosine", "l2", "centered")


properties = settings(max_examples=15, deadline=None, database=None)
seeds = st.integers(0, 10**6)
every_distance = pytest.mark.parametrize("distance", DISTANCES)


# ---------------------------------------------------------------------------------------------------- the oracles


def oracle_tau_norm(weight, power):
    """Eq. 3: w_j / |w_j|^p; a row of 0 has no direction and stays 0."""
    return np.array([[v / length(row) ** power if length(row) > 0 else 0.0 for v in row] for row in rows(weight)])


def oracle_tau_logits(features, weight, power):
    return np.array([[dot(x, w) for w in oracle_tau_norm(weight, power).tolist()] for x in rows(features)])


def unit(vector):
    return [v / (length(vector) or 1.0) for v in vector]


def oracle_means(vectors, labels, num_classes):
    """The mean of each class; 0 without a sample."""
    means = []
    for c in range(num_classes):
        mine = [v for v, label in zip(vectors, labels, strict=True) if label == c]
        columns = zip(*mine, strict=True) if mine else [[0.0]] * len(vectors[0])
        means.append([math.fsum(column) / max(len(mine), 1) for column in columns])
    return means


def oracle_ncm(train, labels, num_classes, queries, distance):
    """u(x).u(m), -|u(x) - u(m)|^2, or -|u(x - g) - m'|^2 with m' the class mean of u(x - g)."""
    train, labels, queries = rows(train), labels.tolist(), rows(queries)
    if distance == "centered":
        g = [math.fsum(column) / len(train) for column in zip(*train, strict=True)]
        train = [unit([a - b for a, b in zip(x, g, strict=True)]) for x in train]
        queries = [unit([a - b for a, b in zip(x, g, strict=True)]) for x in queries]
        means = oracle_means(train, labels, num_classes)
    else:
        queries = [unit(x) for x in queries]
        means = [unit(m) for m in oracle_means(train, labels, num_classes)]
    if distance == "cosine":
        return np.array([[dot(x, m) for m in means] for x in queries])
    return np.array([[-math.fsum((a - b) ** 2 for a, b in zip(x, m, strict=True)) for m in means] for x in queries])


def oracle_balanced_loss(logits, labels):
    """The mean, over the classes that occur, of the mean cross-entropy of the class."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    top = logits.max(axis=1)
    losses = top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    return np.mean([losses[labels == c].mean() for c in np.unique(labels)])


def balanced_shares(labels):
    """What each sample weighs in the mean over classes."""
    labels = np.asarray(labels)
    counts = np.bincount(labels)
    return 1 / (counts[labels] * (counts > 0).sum())


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def oracle_linear(features, labels, num_classes, decay, shares, steps=4000, rate=0.3):
    """Weight and bias of least weighted cross-entropy + decay/2 (|W|^2 + |b|^2), by plain gradient descent."""
    x, onehot = np.array(rows(features)), np.eye(num_classes)[np.asarray(labels)]
    weight, bias = np.zeros((num_classes, x.shape[1])), np.zeros(num_classes)
    for _ in range(steps):
        error = (softmax(x @ weight.T + bias) - onehot) * np.asarray(shares)[:, None]
        weight, bias = weight - rate * (error.T @ x + decay * weight), bias - rate * (error.sum(axis=0) + decay * bias)
    return weight, bias


def oracle_scales(logits, labels, decay, steps=4000, rate=0.1):
    """s of least class-balanced cross-entropy of s * logits + decay/2 |s|^2, from s = 1."""
    z, shares = np.array(rows(logits)), balanced_shares(labels)
    onehot, scale = np.eye(z.shape[1])[np.asarray(labels)], np.ones(z.shape[1])
    for _ in range(steps):
        error = (softmax(scale * z) - onehot) * shares[:, None]
        scale = scale - rate * ((error * z).sum(axis=0) + decay * scale)
    return scale


# --------------------------------------------------------------------------------------------------------- inputs


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def linear(seed=0, num_classes=5, dim=DIM, dtype=torch.float64, bias=True):
    """A linear classifier whose rows are of different lengths."""
    classifier = LinearClassifier(dim, num_classes, bias=bias).to(dtype)
    classifier.weight.data.copy_(normal(seed, num_classes, dim) * torch.linspace(3, 0.3, num_classes)[:, None])
    if bias:
        classifier.bias.data.copy_(normal(seed + 1, num_classes))
    return classifier


def some_labels(seed, num_rows, num_classes):
    """Every class at least once; num_rows >= num_classes."""
    generator = torch.Generator().manual_seed(seed)
    more = torch.randint(num_classes, (num_rows - num_classes,), generator=generator)
    labels = torch.cat([torch.arange(num_classes), more])
    return labels[torch.randperm(num_rows, generator=generator)]


def long_tail(seed=0, counts=(64, 24, 8), spread=1.0, dtype=torch.float64):
    """Gaussians at the corners of a triangle; the last class is rare."""
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    angles = 2 * math.pi * labels / len(counts)
    centers = 1.5 * torch.stack([angles.cos(), angles.sin()], dim=1)
    return (centers + spread * normal(seed, len(labels), 2)).to(dtype), labels


def joint(x, y, num_classes=3, bias=True):
    """The linear classifier of least ordinary cross-entropy: what training on the long tail gives."""
    weight, b = oracle_linear(x, y, num_classes, 1e-3, np.full(len(y), 1 / len(y)), steps=1500)
    classifier = LinearClassifier(x.shape[1], num_classes, bias=bias).to(x.dtype)
    classifier.weight.data.copy_(torch.from_numpy(weight))
    if bias:
        classifier.bias.data.copy_(torch.from_numpy(b))
    return classifier


def mean_class_accuracy(logits, y):
    right = logits.argmax(dim=1) == y
    return torch.stack([right[y == c].double().mean() for c in y.unique()]).mean().item()


# ------------------------------------------------------------------------------------------------- tau-normalized


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("power", POWERS)
def test_tau_norm_follows_equation_3(power, dtype):
    classifier, x = linear(dtype=dtype), normal(7, 4, DIM, dtype=dtype)
    classifier.weight.data[2] = 0
    weight = tau_norm_weight(classifier.weight, power)
    fold = fold_tau_norm(classifier, power)
    z, norms = tau_norm_components(x, classifier)
    assert weight.dtype is fold(x).dtype is z.dtype is norms.dtype is dtype
    assert_close(weight, oracle_tau_norm(classifier.weight, power), TOLERANCE[dtype])
    expected = oracle_tau_logits(x, classifier.weight, power)
    assert_close(fold(x), expected, TOLERANCE[dtype])
    assert_close(z / norms**power, expected, TOLERANCE[dtype])


def test_tau_norm_worked_out_by_hand():
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.25]], dtype=torch.float64)
    assert_close(tau_norm_weight(weight, 0.5), [[3 / 5**0.5, 4 / 5**0.5], [0, 0.5]], 1e-15)


def test_power_zero_changes_nothing_but_the_bias():
    classifier, x = linear(), normal(8, 4, DIM)
    assert torch.equal(tau_norm_weight(classifier.weight, 0.0), classifier.weight)
    assert torch.equal(fold_tau_norm(classifier, 0.0)(x), torch.nn.functional.linear(x, classifier.weight))
    assert fold_tau_norm(classifier, 0.0).bias is None


def test_power_one_gives_rows_of_length_one_and_a_row_of_zeros_stays():
    classifier, x = linear(), normal(9, 8, DIM)
    classifier.weight.data[2] = 0
    assert_close(tau_norm_weight(classifier.weight, 1.0).norm(dim=1), [1, 1, 0, 1, 1], 1e-12)
    z, norms = tau_norm_components(x, classifier)
    assert_close(norms[[0, 1, 3, 4]], [length(w) for i, w in enumerate(rows(classifier.weight)) if i != 2], 1e-12)
    # 0/0 must not stand in the way of the others
    for power, predicted in zip(POWERS, predictions_by_norm_power((z, norms), POWERS), strict=True):
        assert predicted.tolist() == oracle_tau_logits(x, classifier.weight, power).argmax(axis=1).tolist()


def test_tau_norm_has_finite_gradients_beside_a_row_of_zeros():
    weight = linear().weight.detach().clone()
    weight[2] = 0
    assert_finite_gradients(tau_norm_weight(weight.requires_grad_(), 0.7), weight)


@properties
@given(seed=seeds, order=st.permutations(range(5)), power=st.floats(-1, 2))
def test_tau_norm_of_classes_in_another_order(seed, order, power):
    weight = linear(seed).weight.detach()
    assert_close(tau_norm_weight(weight[order], power), tau_norm_weight(weight, power)[order], 1e-12)


def test_a_folded_classifier_is_a_copy_that_nothing_trains():
    classifier, x = linear(), normal(10, 4, DIM)
    for fold in (fold_tau_norm(classifier, 0.7), fold_linear(classifier)):
        before = fold(x)
        assert not before.requires_grad
        kept = classifier.weight.detach().clone()
        fold.weight.zero_()
        assert torch.equal(classifier.weight, kept)
    folds = fold_tau_norm(classifier, 0.7), fold_linear(classifier)
    before = [fold(x) for fold in folds]
    for leaf in classifier.parameters():
        leaf.data.mul_(-3)
    assert all(torch.equal(fold(x), logits) for fold, logits in zip(folds, before, strict=True))


@pytest.mark.parametrize("bias", [True, False])
def test_fold_linear_is_the_classifier_it_was_made_from(bias):
    classifier, x = linear(bias=bias), normal(11, 4, DIM)
    assert torch.equal(fold_linear(classifier)(x), classifier(x))
    scaled = ScaledClassifier(classifier.weight, classifier.bias)
    assert torch.equal(fold_linear(scaled)(x), classifier(x))
    scaled.scale.data.copy_(torch.tensor([0.5, 2.0, -1.0, 0.0, 3.0]))
    assert_close(fold_linear(scaled)(x), scaled.scale * classifier(x), 1e-12)
    assert (fold_linear(scaled).bias is None) is (not bias)


# ---------------------------------------------------------------------------------------------- nearest class mean


def test_class_means_are_means():
    x, y = normal(20, 30, DIM), some_labels(20, 30, 5)
    y[y == 3] = 4
    assert_close(class_means(x, y, 5), oracle_means(rows(x), y.tolist(), 5), 1e-12)
    assert class_means(x, y, 5)[3].tolist() == [0] * DIM


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@every_distance
def test_ncm_follows_its_equation(distance, dtype):
    for num_classes, num_rows in ((1, 3), (3, 3), (5, 40)):
        x, y = normal(21, num_rows, DIM, dtype=dtype) + 0.5, some_labels(21, num_rows, num_classes)
        queries = normal(22, 7, DIM, dtype=dtype)
        fold = fit_ncm(x, y, num_classes, distance=distance)
        assert fold(queries).dtype is dtype
        assert_close(fold(queries), oracle_ncm(x, y, num_classes, queries, distance), 5 * TOLERANCE[dtype])


def test_ncm_worked_out_by_hand():
    x = torch.tensor([[2.0, 0.0], [0.0, 6.0], [4.0, 0.0]], dtype=torch.float64)
    y, query = torch.tensor([0, 1, 0]), torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert_close(fit_ncm(x, y, 2)(query), [[0.6, 0.8]], 1e-12)
    assert_close(fit_ncm(x, y, 2, distance="l2")(query), [[-0.8, -0.4]], 1e-12)
    # g = (2, 2); u(x - g) in class 0: (0, -1) and (1, -1)/sqrt 2, in class 1: (-1, 2)/sqrt 5, query: (1, 2)/sqrt 5
    a, b, r = (1 / 8**0.5, (-1 - 1 / 2**0.5) / 2), (-1 / 5**0.5, 2 / 5**0.5), (1 / 5**0.5, 2 / 5**0.5)
    expected = [[-sum((p - q) ** 2 for p, q in zip(r, m, strict=True)) for m in (a, b)]]
    assert_close(fit_ncm(x, y, 2, distance="centered")(query), expected, 1e-12)


def test_cosine_is_the_distance_unless_told():
    x, y = normal(23, 12, DIM), some_labels(23, 12, 3)
    assert torch.equal(fit_ncm(x, y, 3)(x), fit_ncm(x, y, 3, distance="cosine")(x))


def test_cosine_and_l2_predict_the_same():
    x, y, queries = normal(24, 60, DIM), some_labels(24, 60, 9), normal(25, 500, DIM)
    predicted = [fit_ncm(x, y, 9, distance=d)(queries).argmax(dim=1) for d in DISTANCES]
    assert torch.equal(predicted[0], predicted[1])
    assert not torch.equal(predicted[0], predicted[2])


@every_distance
def test_one_image_per_class_is_the_nearest_neighbour(distance):
    x = normal(26, 8, DIM)
    assert fit_ncm(x, torch.arange(8), 8, distance=distance)(x).argmax(dim=1).tolist() == list(range(8))


@every_distance
def test_ncm_of_features_without_a_direction(distance):
    """A class whose mean is 0, a training feature of 0, and queries of 0 or at the center."""
    x = (4 * normal(27, 16, DIM)).round()  # whole numbers, and 16 of them: the means are exact
    y = torch.tensor([0, 1, 1, 2, 1, 1, 2, 0, 2, 0, 2, 2, 0, 2, 2, 2])
    x[2], x[5], x[0] = -x[1], -x[4], 0
    queries = torch.stack([x[5], torch.zeros(DIM, dtype=torch.float64), x.mean(0)])
    logits, expected = fit_ncm(x, y, 3, distance=distance)(queries), oracle_ncm(x, y, 3, queries, distance)
    # a constant per row ranks nothing: that of a query without a direction is left open
    assert_close(logits - logits[:, :1], expected - expected[:, :1], 1e-10)
    assert_close(logits[:1], expected[:1], 1e-10)


@properties
@given(seed=seeds, order=st.permutations(range(5)), distance=st.sampled_from(DISTANCES))
def test_ncm_of_classes_or_images_in_another_order(seed, order, distance):
    x, y, queries = normal(seed, 20, DIM), some_labels(seed, 20, 5), normal(seed + 1, 4, DIM)
    logits = fit_ncm(x, y, 5, distance=distance)(queries)
    renamed = torch.tensor([order.index(c) for c in range(5)])[y]  # the class in column j was order[j]
    assert_close(fit_ncm(x, renamed, 5, distance=distance)(queries), logits[:, order], 1e-10)
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    assert_close(fit_ncm(x[shuffled], y[shuffled], 5, distance=distance)(queries), logits, 1e-10)


@properties
@given(seed=seeds, scale=st.floats(1e-6, 1e6), distance=st.sampled_from(DISTANCES))
def test_scale_of_features_changes_nothing(seed, scale, distance):
    x, y, queries = normal(seed, 20, DIM), some_labels(seed, 20, 5), normal(seed + 1, 4, DIM)
    logits = fit_ncm(x, y, 5, distance=distance)(queries)
    assert_close(fit_ncm(x * scale, y, 5, distance=distance)(queries * scale), logits, 1e-9)
    if distance != "centered":
        assert_close(fit_ncm(x, y, 5, distance=distance)(queries * scale), logits, 1e-9)


@properties
@given(seed=seeds, shift=st.floats(-100, 100))
def test_a_shift_of_all_features_changes_nothing_when_centered(seed, shift):
    x, y, queries = normal(seed, 20, DIM), some_labels(seed, 20, 5), normal(seed + 1, 4, DIM)
    logits = fit_ncm(x, y, 5, distance="centered")(queries)
    assert_close(fit_ncm(x + shift, y, 5, distance="centered")(queries + shift), logits, 1e-9)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@every_distance
def test_ncm_of_features_whose_squares_are_no_floats(distance, scale):
    x, y, queries = normal(28, 20, DIM), some_labels(28, 20, 5), normal(29, 4, DIM)
    small = fit_ncm((x * scale).float(), y, 5, distance=distance)((queries * scale).float())
    assert_close(small, oracle_ncm(x, y, 5, queries, distance), 1e-5)


def test_means_of_more_features_than_are_taken_at_once():
    x, y = normal(19, 9000, 2), torch.arange(9000) // 3000  # the classes come one after another
    expected = [x[y == c].numpy().mean(axis=0).tolist() for c in range(3)]
    assert_close(class_means(x, y, 3), expected, 1e-10)


def test_means_of_half_precision_features_do_not_overflow():
    x, y = torch.full((1000, 2), 300.0).half(), torch.zeros(1000, dtype=torch.long)  # the sum is above 65504
    assert class_means(x, y, 1).tolist() == [[300, 300]]
    assert fit_ncm(x, y, 1, distance="centered").center.tolist() == [300, 300]


# -------------------------------------------------------------------------------------- class-balanced re-learning


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


# --------------------------------------------------------------------------------------------------------- cRT


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


# --------------------------------------------------------------------------------------------------------- LWS


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


# ---------------------------------------------------------------------------------------------- learnt norm power


def norm_case(seed=0, num_rows=300, num_classes=4, noise=0.4, lengths=8.0):
    """Long rows for frequent classes, as long-tailed training leaves them: the best power is neither bound."""
    share = torch.tensor([0.6, 0.25, 0.1, 0.05, 0.0])[:num_classes]
    y = torch.multinomial(share, num_rows, replacement=True, generator=torch.Generator().manual_seed(seed))
    directions = torch.nn.functional.normalize(normal(seed, num_classes, DIM), dim=1)
    x = directions[y] + noise * normal(seed + 1, num_rows, DIM)
    classifier = LinearClassifier(DIM, num_classes).double()
    classifier.weight.data.copy_(directions * torch.linspace(lengths, 1, num_classes)[:, None])
    return tau_norm_components(x, classifier), y


def power_losses(components, y, powers):
    """Of z / (n / the geometric mean of n)^p, the mean over classes that occur: no power is a temperature for all."""
    z, norms = (part.detach().numpy() for part in components)
    occur = np.unique(y.numpy())
    relative = norms / math.prod(norms[occur].tolist()) ** (1 / len(occur))
    return np.array([oracle_balanced_loss(z / relative**power, y.numpy()) for power in powers])


@pytest.mark.parametrize("num_rows", [40, 1024, 1025, 2500])
@pytest.mark.parametrize("num_classes", [2, 4, 5])  # the fifth has no sample
def test_the_learnt_power_is_that_of_least_balanced_loss(num_rows, num_classes):
    components, y = norm_case(3, num_rows, num_classes)
    coarse = np.linspace(0, 2, 41)
    around = coarse[power_losses(components, y, coarse).argmin()]
    grid = np.arange(around - 0.05, around + 0.05, 1e-3)
    best = grid[power_losses(components, y, grid).argmin()]
    assert 0.1 < best < 1.9
    assert learn_norm_power(components, y) == pytest.approx(best, abs=2e-3)


def test_rows_in_another_order_learn_the_same_power():
    (z, norms), y = norm_case(3, 2500)  # any chunk of the sorted rows is of one class
    order = y.argsort()
    power = learn_norm_power((z, norms), y)
    assert learn_norm_power((z[order], norms), y[order]) == pytest.approx(power, abs=2e-3)


@properties
@given(seed=seeds, noise=st.floats(0.1, 1), lengths=st.floats(1, 20))
def test_no_power_of_a_grid_is_better_than_the_learnt_one(seed, noise, lengths):
    components, y = norm_case(seed, 60, noise=noise, lengths=lengths)
    power = learn_norm_power(components, y)
    assert 0 <= power <= 2
    (reached,), others = power_losses(components, y, [power]), power_losses(components, y, np.linspace(0, 2, 41))
    assert reached <= others.min() + 1e-4 * max(1, others.min())


TWO_VALLEYS = {  # z, norms, labels: where golden section over all powers, or without the last of 21, ends in the other
    "near the lowest": (
        [[63, -13, 1], [18, 22, -7], [29, -3, 2], [-8, -8, -9], [-25, 51, 4]],
        [1.3, 7.2, 0.3],
        [0, 1, 2, 1, 1],
    ),
    "at the highest": ([[20, 2, -4], [13, 2, 21], [-15, -11, -7]], [0.6, 0.3, 4.3], [0, 1, 2]),
}


@pytest.mark.parametrize("case", TWO_VALLEYS)
def test_of_two_valleys_the_deeper_is_found(case):
    z, norms, y = TWO_VALLEYS[case]
    components, y = tuple(torch.tensor(part, dtype=torch.float64) for part in (z, norms)), torch.tensor(y)
    grid = np.linspace(0, 2, 2001)
    best = grid[power_losses(components, y, grid).argmin()]
    assert learn_norm_power(components, y) == pytest.approx(best, abs=2e-3)


def test_the_learnt_power_stays_within_its_bounds():
    components, y = norm_case(3)
    best = learn_norm_power(components, y)
    assert 0.3 < best < 1.7
    assert learn_norm_power(components, y, highest=0.25) == pytest.approx(0.25, abs=1e-3)
    assert learn_norm_power(components, y, lowest=1.75, highest=1.9) == pytest.approx(1.75, abs=1e-3)
    assert learn_norm_power(components, y, lowest=-3.0, highest=7.0) == pytest.approx(best, abs=2e-3)
    assert learn_norm_power(components, y, tolerance=0.05) == pytest.approx(best, abs=0.05)
    assert learn_norm_power(components, y, tolerance=1e-6) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("lowest", [0.0, 0.4])
def test_of_rows_of_one_length_the_lowest_power_is_returned(lowest):
    x, y = long_tail()
    classifier = joint(x, y, bias=False)
    classifier.weight.data.copy_(4 * torch.nn.functional.normalize(classifier.weight.detach(), dim=1))
    power = learn_norm_power(tau_norm_components(x, classifier), y, lowest=lowest)
    assert power == pytest.approx(lowest, abs=1e-3)


@properties
@given(seed=seeds, scale=st.floats(1e-3, 1e3), order=st.permutations(range(4)))
def test_scale_of_all_weights_or_classes_in_another_order_learn_the_same_power(seed, scale, order):
    (z, norms), y = norm_case(seed, 60)
    power = learn_norm_power((z, norms), y, lowest=-1.0, highest=3.0)
    (before,) = power_losses((z, norms), y, [power])
    # z / (n / mean)^p takes one factor from a scale of z; where z stays, n alone may be of any scale
    assert learn_norm_power((z, scale * norms), y, lowest=-1.0, highest=3.0) == pytest.approx(power, abs=2e-3)
    renamed = torch.tensor([order.index(c) for c in range(4)])[y]
    again = learn_norm_power((z[:, order], norms[order]), renamed, lowest=-1.0, highest=3.0)
    assert power_losses((z, norms), y, [again])[0] == pytest.approx(before, abs=1e-6)


def test_a_masked_class_has_no_part_in_the_learnt_power():
    (z, norms), y = norm_case(3, num_classes=4)
    wide = torch.cat([z, torch.full((len(z), 1), -math.inf)], dim=1), torch.cat([norms, norms.new_tensor([30.0])])
    assert learn_norm_power(wide, y) == pytest.approx(learn_norm_power((z, norms), y), abs=1e-9)


# --------------------------------------------------------------------------------------------------------- sweeps


@pytest.mark.parametrize(
    ("num_rows", "num_classes"),
    [(1, 7), (5, 7), (128, 7), (300, 7), (106, 300), (107, 300), (300, 300), (9500, 7), (2, 40_000)],
    ids=str,
)
def test_predictions_by_value_are_those_of_a_loop(num_rows, num_classes):
    """Sizes on both sides of what is taken at once: 32,000 numbers."""
    a, b = normal(50, num_rows, num_classes).numpy(), normal(51, num_rows, num_classes).numpy()
    norms = normal(52, num_classes).abs().numpy() + 0.1
    for values in (ALPHAS if num_rows < 301 else (0.5, 2.0), (-1.0, 0.25), (2.0,)):
        actual = predictions_by_alpha((torch.from_numpy(a), torch.from_numpy(b)), values)
        assert actual.dtype == np.int64
        assert actual.tolist() == [[int(np.argmax(x - v * z)) for x, z in zip(a, b, strict=True)] for v in values]
    for values in (NORM_POWERS if num_rows < 301 else (0.5, 2.0), (-1.0, 0.25), (2.0,)):
        actual = predictions_by_norm_power((torch.from_numpy(a), torch.from_numpy(norms)), values)
        assert actual.dtype == np.int64
        assert actual.tolist() == [[int(np.argmax(x / norms**v)) for x in a] for v in values]


def test_the_grids_unless_told():
    assert pytest.approx(np.arange(51) / 10) == ALPHAS
    assert pytest.approx(np.arange(21) / 10) == NORM_POWERS
    a, b, norms = normal(50, 9, 7), normal(51, 9, 7), normal(52, 7).abs() + 0.1
    assert np.array_equal(predictions_by_alpha((a, b)), predictions_by_alpha((a, b), ALPHAS))
    assert np.array_equal(predictions_by_norm_power((a, norms)), predictions_by_norm_power((a, norms), NORM_POWERS))
    assert sweep_alpha((a, b), len).values == ALPHAS
    assert sweep_norm_power((a, norms), len).values == NORM_POWERS


@pytest.mark.parametrize("num_rows", [50, 300])
def test_sweeps_score_every_value_and_take_the_best(num_rows):
    a, b, norms = normal(53, num_rows, 7), normal(54, num_rows, 7), normal(55, 7).abs() + 0.1
    y = torch.randint(7, (num_rows,), generator=torch.Generator().manual_seed(0)).numpy()

    def score(predicted):
        return float((predicted == y).mean())

    for sweep, components, values, logits in (
        (sweep_alpha, (a, b), ALPHAS, lambda v: a - v * b),
        (sweep_norm_power, (a, norms), NORM_POWERS, lambda v: a / norms**v),
    ):
        result = sweep(components, score, values)
        expected = [score(logits(v).argmax(dim=1).numpy()) for v in values]
        tied = [v for v, s in zip(values, expected, strict=True) if s == max(expected)]
        assert result.values == values
        assert result.scores == pytest.approx(expected)
        assert result.chosen == tied[len(tied) // 2]


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([5, 5, 5], 1),
        ([5, 5, 5, 5, 5], 2),
        ([1, 5, 5, 5, 0], 2),
        ([0, 0, 5], 2),
        ([5, 0, 0], 0),
        ([5, 0, 0, 5, 5], 3),  # the middle of those tied, not of what lies between
        ([-2, -1, -3], 1),
        ([0, 5, 5, 0], 2),  # of two middle ones the higher
        ([0.5, 0.5, 0.5000001], 2),  # near is not tied
        ([7], 0),
    ],
    ids=str,
)
def test_the_middle_of_tied_best_values_is_chosen(scores, chosen):
    values = [0.5 + v for v in range(len(scores))]
    predictions = np.arange(len(scores))[:, None]
    result = choose(values, predictions, lambda predicted: float(scores[predicted[0]]))
    assert result.values == tuple(values)
    assert result.scores == tuple(scores)
    assert result.chosen == values[chosen]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused(score):
    components = normal(56, 4, 3), normal(57, 3).abs()
    with pytest.raises(InputError, match="score"):
        sweep_norm_power(components, lambda _: score, (0.0, 1.0))
    with pytest.raises(InputError, match="score"):
        sweep_alpha((components[0], components[0]), lambda _: score, (0.0, 1.0))


@pytest.mark.parametrize("grid", [(), (0.0, math.nan), (math.inf,)], ids=str)
def test_an_empty_grid_or_one_with_a_value_that_is_not_finite_is_refused(grid):
    z, norms = normal(56, 4, 3), normal(57, 3).abs()
    for call in (predictions_by_alpha, lambda *args: sweep_alpha(args[0], len, args[1])):
        with pytest.raises(InputError, match="alphas"):
            call((z, z), grid)
    for call in (predictions_by_norm_power, lambda *args: sweep_norm_power(args[0], len, args[1])):
        with pytest.raises(InputError, match="powers"):
            call((z, norms), grid)


# ------------------------------------------------------------------------------------- classes without an image

COUNTS = ClassCounts((9, 4, 0, 3, 1))
TRAIN_LABELS = torch.tensor([c for c, n in enumerate(COUNTS.per_class) for _ in range(n)])


def train_features(dtype=torch.float32):
    return normal(60, len(TRAIN_LABELS), DIM, dtype=dtype)


def causal():
    classifier = CausalClassifier(DIM, 5)
    classifier.weight.data.copy_(linear(61).weight)
    classifier(train_features())
    return classifier.eval()


def plain():
    return linear(61, dtype=torch.float32)


def scaled():
    classifier = ScaledClassifier(plain().weight, plain().bias)
    classifier.scale.data.copy_(torch.linspace(0.5, 2, 5))
    return classifier


def tau_logits(x, **kw):
    z, norms = tau_norm_components(x, plain(), **kw)
    return z / norms**0.7


def tde_difference(x, **kw):
    a, b = tde_components(x, causal(), **kw)
    return a - 1.5 * b


OF_COUNTS = {  # features, and counts and allow_unseen by name
    "mask_unseen": lambda x, **kw: mask_unseen(plain()(x), kw.pop("counts", None), **kw),
    "fold_tau_norm": lambda x, **kw: fold_tau_norm(plain(), 0.7, **kw)(x),
    "tau_norm_components": tau_logits,
    "fold_tde": lambda x, **kw: fold_tde(causal(), 1.5, **kw)(x),
    "tde": lambda x, **kw: tde(x, causal(), 1.5, **kw),
    "tde_components": tde_difference,
    "fold_linear": lambda x, **kw: fold_linear(plain(), **kw)(x),
    "fold_linear, scaled": lambda x, **kw: fold_linear(scaled(), **kw)(x),
}
OF_LABELS = {  # features, training features and labels, and allow_unseen by name
    "fit_ncm, cosine": lambda x, *train, **kw: fit_ncm(*train, 5, distance="cosine", **kw)(x),
    "fit_ncm, l2": lambda x, *train, **kw: fit_ncm(*train, 5, distance="l2", **kw)(x),
    "fit_ncm, centered": lambda x, *train, **kw: fit_ncm(*train, 5, distance="centered", **kw)(x),
    "fit_crt": lambda x, *train, **kw: fit_crt(*train, 5, epochs=2, **kw)(x),
    "fit_lws": lambda x, *train, **kw: fit_lws(*train, plain(), epochs=2, **kw)(x),
}


def adjusted(name, x, **kw):
    """Logits where class 2 has no training image."""
    if name in OF_COUNTS:
        return OF_COUNTS[name](x, counts=COUNTS, **kw)
    return OF_LABELS[name](x, train_features(), TRAIN_LABELS, **kw)


every_adjuster = pytest.mark.parametrize("name", [*OF_COUNTS, *OF_LABELS])


@every_adjuster
def test_a_class_without_an_image_is_never_predicted_unless_allowed(name):
    x = normal(62, 40, DIM, dtype=torch.float32)
    allowed = adjusted(name, x, allow_unseen=True)  # any warning would be an error here
    assert allowed.isfinite().all()
    with pytest.warns(UserWarning, match=r"1 of 5 classes .*\b2\b") as warned:
        logits = adjusted(name, x)
    assert len(warned) == 1
    assert (logits[:, 2] == -math.inf).all()
    assert 2 not in logits.argmax(dim=1)
    others = [0, 1, 3, 4]
    assert torch.equal(logits[:, others], allowed[:, others])


@pytest.mark.parametrize("name", OF_COUNTS)
def test_without_counts_or_without_an_empty_class_nothing_is_masked(name):
    x = normal(62, 40, DIM, dtype=torch.float32)
    free = OF_COUNTS[name](x)
    assert torch.equal(free, OF_COUNTS[name](x, counts=None))
    assert torch.equal(free, OF_COUNTS[name](x, counts=COUNTS, allow_unseen=True))
    assert torch.equal(free, OF_COUNTS[name](x, counts=ClassCounts((1, 1, 1, 1, 1))))


@pytest.mark.parametrize("name", OF_COUNTS)
def test_without_the_mask_the_class_would_be_predicted(name, monkeypatch):
    """A weight row that is the query itself: the mask alone keeps the class out."""
    x = normal(63, 6, DIM, dtype=torch.float32).abs()
    for make in (plain, causal, scaled):
        classifier = make()
        classifier.weight.data[2] = 30 * x.mean(0)
        monkeypatch.setitem(globals(), make.__name__, lambda classifier=classifier: classifier)
    assert 2 in adjusted(name, x, allow_unseen=True).argmax(dim=1)
    with pytest.warns(UserWarning, match="never predicted"):
        assert 2 not in adjusted(name, x).argmax(dim=1)


@pytest.mark.parametrize("name", OF_COUNTS)
@pytest.mark.parametrize("per_class", [(1, 1), (1, 0, 1, 1, 1, 1), (0, 0, 0, 0, 0, 1)], ids=str)
@pytest.mark.parametrize("allow_unseen", [False, True])
def test_counts_of_another_number_of_classes_are_refused(name, per_class, allow_unseen):
    with pytest.raises(InputError, match=f"counts: expected 5 classes, got {len(per_class)}"):
        OF_COUNTS[name](
            normal(62, 4, DIM, dtype=torch.float32), counts=ClassCounts(per_class), allow_unseen=allow_unseen
        )


def test_every_class_without_an_image_is_masked_and_the_input_left_alone():
    logits = normal(64, 3, 4)
    before = logits.clone()
    with pytest.warns(UserWarning, match=r"2 of 4 classes .*\b0\b.*\b3\b"):
        masked = mask_unseen(logits, ClassCounts((0, 1, 2, 0)))
    assert torch.equal(logits, before)
    assert masked.isinf().tolist() == [[True, False, False, True]] * 3
    assert torch.equal(masked[:, 1:3], logits[:, 1:3])


def test_allowed_unseen_classes_of_ncm_have_a_mean_of_zero():
    x, queries = train_features(torch.float64), normal(65, 4, DIM)
    for distance in DISTANCES:
        actual = fit_ncm(x, TRAIN_LABELS, 5, distance=distance, allow_unseen=True)(queries)
        assert_close(actual, oracle_ncm(x, TRAIN_LABELS, 5, queries, distance), 1e-10)


def test_bias_free_lws_masks_too():
    classifier = plain()
    without = LinearClassifier(DIM, 5, bias=False)
    without.weight.data.copy_(classifier.weight)
    with pytest.warns(UserWarning, match="never predicted"):
        fold = fit_lws(train_features(), TRAIN_LABELS, without, epochs=1)
    logits = fold(normal(66, 4, DIM, dtype=torch.float32))
    assert logits.isinf().tolist() == [[False, False, True, False, False]] * 4


@pytest.mark.parametrize("zero", [1, 3], ids=["that occurs", "that does not"])
def test_the_scale_of_all_weights_changes_nothing_beside_a_class_of_zeros(zero):
    x, y = long_tail(spread=2.0)
    weight, powers = torch.tensor([[4.0, 0.0], [-0.5, 0.9], [-0.25, -0.4], [0.3, -0.8]], dtype=torch.float64), []
    weight[zero] = 0
    classifier = LinearClassifier(2, 4).double()
    for scale in (0.01, 1.0, 100.0):
        classifier.weight.data.copy_(scale * weight)
        powers.append(learn_norm_power(tau_norm_components(x / scale, classifier), y))
    assert 0.05 < powers[1] < 1.95
    assert powers == pytest.approx([powers[1]] * 3, abs=2e-3)


def test_of_weights_of_zero_the_lowest_power_is_returned():
    x, y = long_tail()
    classifier = LinearClassifier(2, 3).double()
    classifier.weight.data.zero_()
    assert learn_norm_power(tau_norm_components(x, classifier), y, lowest=0.5) == pytest.approx(0.5, abs=1e-3)


def test_the_sweeps_of_masked_components_leave_the_class_out():
    x, seen = train_features(), [0, 1, 3, 4]
    with pytest.warns(UserWarning, match="never predicted"):
        z, norms = tau_norm_components(x, plain(), counts=COUNTS)
    dropped = z[:, seen], norms[seen]
    assert np.array_equal(predictions_by_norm_power((z, norms)), np.array(seen)[predictions_by_norm_power(dropped)])
    with pytest.warns(UserWarning, match="never predicted"):
        a, b = tde_components(x, causal(), counts=COUNTS)
    assert np.array_equal(predictions_by_alpha((a, b)), np.array(seen)[predictions_by_alpha((a[:, seen], b[:, seen]))])


ONCE = """
import torch
from tailwise import ClassCounts, CausalClassifier, LinearClassifier, fold_tde
from tailwise.adjust import fit_ncm, fold_linear, fold_tau_norm, mask_unseen
counts, x, y = ClassCounts((3, 0, 2)), torch.rand(5, 4), torch.tensor([0, 0, 0, 2, 2])
linear = LinearClassifier(4, 3)
mask_unseen(linear(x), counts)
mask_unseen(linear(x), counts)
for _ in range(2):
    fold_tau_norm(linear, 0.5, counts=counts)
fold_linear(linear, counts)
fold_tde(CausalClassifier(4, 3), 1.0, counts=counts)
fit_ncm(x, y, 3)
"""


def test_the_warning_comes_once_per_process():
    # "default" shows a warning once per place it is raised at: as Python's own filters do, beyond __main__ too
    done = subprocess.run([sys.executable, "-W", "default", "-c", ONCE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no training image") == 1, done.stderr


# ----------------------------------------------------------------------------------------------- every adjuster

FITS = {  # training features, labels, C
    "ncm, cosine": lambda x, y, c, **kw: fit_ncm(x, y, c, **kw),
    "ncm, l2": lambda x, y, c, **kw: fit_ncm(x, y, c, distance="l2", **kw),
    "ncm, centered": lambda x, y, c, **kw: fit_ncm(x, y, c, distance="centered", **kw),
    "crt": lambda x, y, c, **kw: fit_crt(x, y, c, epochs=40, batch_size=16, **kw),
    "lws": lambda x, y, c, **kw: fit_lws(x, y, linear(70, c, x.shape[1], x.dtype), **kw),
}
every_fit = pytest.mark.parametrize("fit", FITS.values(), ids=FITS)


@every_fit
def test_every_class_with_one_image(fit):
    x = 3 * torch.eye(DIM) + 0.1 * normal(71, DIM, DIM, dtype=torch.float32)
    y = torch.tensor([2, 0, 5, 1, 4, 3])
    fold = fit(x, y, DIM)
    assert fold(x).isfinite().all()
    if fit is not FITS["lws"]:  # that one keeps the directions it is given
        assert torch.equal(fold(x).argmax(dim=1), y)


def test_the_rest_of_one_image_per_class():
    x, y, classifier = 3 * torch.eye(DIM), torch.arange(DIM), linear(72, DIM, dtype=torch.float32)
    counts = ClassCounts((1,) * DIM)
    components = tau_norm_components(x, classifier, counts=counts)
    assert 0 <= learn_norm_power(components, y) <= 2
    best = sweep_norm_power(components, lambda predicted: float((predicted == y.numpy()).mean()))
    assert fold_tau_norm(classifier, best.chosen, counts=counts)(x).isfinite().all()
    assert_close(class_means(x, y, DIM), x, 1e-7)


@every_fit
def test_one_class_alone(fit):
    x = normal(73, 4, DIM, dtype=torch.float32)
    fold = fit(x, torch.zeros(4, dtype=torch.long), 1)
    assert fold(x).isfinite().all()
    assert fold(x).shape == (4, 1)


@every_fit
def test_fits_leave_their_input_alone_and_give_a_classifier_without_parameters(fit):
    x, y = normal(74, 12, DIM, dtype=torch.float32), some_labels(74, 12, 4)
    before, labels = x.clone(), y.clone()
    fold = fit(x, y, 4)
    assert torch.equal(x, before)
    assert torch.equal(y, labels)
    assert not list(fold.parameters())
    assert not any(buffer.requires_grad for buffer in fold.buffers())
    assert not fold(before).requires_grad


@pytest.mark.parametrize("name", FITS)
def test_no_gradient_reaches_the_features(name):
    x = normal(74, 12, DIM, dtype=torch.float32).requires_grad_()
    fold = FITS[name](x, some_labels(74, 12, 4), 4)
    assert x.grad is None
    assert not any(buffer.requires_grad for buffer in fold.buffers())


@pytest.mark.parametrize("name", FITS)
def test_fits_do_not_mind_that_gradients_are_off(name):
    x, y = normal(74, 12, DIM, dtype=torch.float32), some_labels(74, 12, 4)
    expected = FITS[name](x, y, 4)
    with torch.no_grad():
        assert torch.equal(FITS[name](x, y, 4).weight, expected.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("name", FITS)
def test_features_of_other_precisions(name, dtype):
    """Stored features may be halves or doubles; the classifier that LWS is given stays in float32."""
    x, y = normal(77, 12, DIM, dtype=torch.float32).half().float(), some_labels(77, 12, 4)
    fits = {**FITS, "lws": lambda x, y, c: fit_lws(x, y, linear(70, c, DIM, torch.float32))}
    expected = fits[name](x, y, 4)
    assert_close(fits[name](x.to(dtype), y, 4).double()(x.double()), expected(x), 1e-2)


@pytest.mark.parametrize("name", FITS)
def test_labels_of_32_bits(name):
    x, y = normal(78, 12, DIM, dtype=torch.float32), some_labels(78, 12, 4)
    assert torch.equal(FITS[name](x, y.int(), 4).weight, FITS[name](x, y, 4).weight)


def test_the_learnt_power_of_labels_of_32_bits():
    components, y = norm_case(3, 40)
    assert learn_norm_power(components, y.int()) == learn_norm_power(components, y)


@every_fit
@properties
@given(seed=seeds, num_rows=st.integers(1, 6))
def test_a_batch_is_the_stack_of_its_examples(fit, seed, num_rows):
    fold = fit(normal(75, 12, DIM, dtype=torch.float32), some_labels(75, 12, 4), 4).double()
    queries = normal(seed, num_rows, DIM)
    assert_close(fold(queries), torch.cat([fold(x[None]) for x in queries]), 1e-10)
    fold = fold_tau_norm(linear(seed), 0.7)
    assert_close(fold(queries), torch.cat([fold(x[None]) for x in queries]), 1e-10)


# ---------------------------------------------------------------------------------------------------- wrong input

OF_FEATURES = {
    **FITS,
    "class_means": class_means,
    "relearn": lambda x, y, c: relearn(LinearClassifier(DIM, c), x, y, c, epochs=1),
}
takes_features = pytest.mark.parametrize("call", OF_FEATURES.values(), ids=OF_FEATURES)


@takes_features
def test_wrong_features_and_labels_are_named(call):
    x, y = normal(80, 6, DIM, dtype=torch.float32), torch.tensor([0, 1, 2, 2, 1, 0])
    for some in (y[:5], y[:0], torch.cat([y, y])):
        with unchecked(), pytest.raises(InputError, match="labels: expected one for each of 6 features"):
            call(x, some, 3)
    with pytest.raises(InputError, match=r"labels: expected .*at least one"):
        call(x[:0], y[:0], 3)
    wrong = y.clone()
    wrong[4:] = 3
    with pytest.raises(InputError, match=r"labels: expected labels in 0\.\.2, got 3 at position 4"):
        call(x, wrong, 3)
    for value in (math.nan, math.inf):
        wrong = x.clone()
        wrong[4, 2] = value
        with pytest.raises(InputError, match=r"features: .*\(first: row 4\)"):
            call(wrong, y, 3)


@pytest.mark.parametrize("name", OF_FEATURES)
def test_a_negative_label_is_named(name):
    x, y = normal(80, 6, DIM, dtype=torch.float32), torch.tensor([0, 1, 2, 2, -1, -7])
    with pytest.raises(InputError, match=r"labels: expected labels in 0\.\.2, got -1 at position 4"):
        OF_FEATURES[name](x, y, 3)


@pytest.mark.parametrize("name", OF_FEATURES)
def test_labels_that_are_no_whole_numbers_are_named(name):
    x, y = normal(80, 6, DIM, dtype=torch.float32), torch.tensor([0, 1, 2, 2, 1, 0])
    for labels in (y.float(), y > 0):
        with unchecked(), pytest.raises(InputError, match="labels: expected whole numbers"):
            OF_FEATURES[name](x, labels, 3)


@pytest.mark.parametrize("distance", ["cos", "euclidean", ""])
def test_an_unknown_distance_is_named(distance):
    with unchecked(), pytest.raises(InputError, match="distance: unknown value"):
        fit_ncm(normal(81, 3, DIM), torch.arange(3), 3, distance=distance)


@pytest.mark.parametrize(
    ("call", "num_classes"),
    [
        (class_means, 0),
        (class_means, -1),
        (fit_ncm, 0),
        (fit_ncm, -1),
        (fit_crt, 0),
        (fit_crt, -1),
    ],
)
def test_a_number_of_classes_below_one_is_named(call, num_classes):
    with pytest.raises(InputError, match="num_classes"):
        call(normal(81, 3, DIM, dtype=torch.float32), torch.arange(3), num_classes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"batch_size": -1},
        {"learning_rate": 0.0},
        {"learning_rate": -1.0},
        {"learning_rate": math.nan},
        {"weight_decay": -1e-4},
        {"weight_decay": math.nan},
        {"epochs": 0},
        {"epochs": -1},
    ],
    ids=str,
)
def test_settings_outside_their_range_are_named(wrong):
    x, y = normal(82, 6, DIM, dtype=torch.float32), torch.arange(6) % 3
    for call in (
        lambda: fit_crt(x, y, 3, **wrong),
        lambda: fit_lws(x, y, linear(82, 3, dtype=torch.float32), **wrong),
        lambda: relearn(MlpClassifier(DIM, 3), x, y, 3, **wrong),
    ):
        with pytest.raises(InputError, match=f"^{next(iter(wrong))}:"):
            call()


def test_training_that_diverges_is_an_input_error():
    x, y = normal(83, 60, DIM, dtype=torch.float32), torch.arange(60) % 3
    with pytest.raises(InputError, match="learning rate"):
        fit_crt(x, y, 3, learning_rate=1e30, batch_size=8)


@pytest.mark.parametrize("kind", [CausalClassifier, CosineClassifier, MlpClassifier])
def test_adjusters_of_linear_classifiers_refuse_others(kind):
    x, y, other = normal(84, 3, DIM, dtype=torch.float32), torch.arange(3), kind(DIM, 3)
    for call in (
        lambda: fold_tau_norm(other, 0.5),
        lambda: tau_norm_components(x, other),
        lambda: fit_lws(x, y, other),
    ):
        with unchecked(), pytest.raises(InputError, match=f"classifier: expected .*, got {kind.__name__}"):
            call()


@pytest.mark.parametrize("kind", [CausalClassifier, CosineClassifier, MlpClassifier])
def test_fold_linear_refuses_others(kind):
    with unchecked(), pytest.raises(InputError, match=f"classifier: expected .*, got {kind.__name__}"):
        fold_linear(kind(DIM, 3))


def test_a_classifier_of_other_sizes_is_refused():
    x, y = normal(85, 6, DIM, dtype=torch.float32), torch.arange(6) % 3
    for call in (
        lambda: fit_lws(x, y, LinearClassifier(DIM + 1, 3)),
        lambda: relearn(LinearClassifier(DIM + 1, 3), x, y, 3),
        lambda: tau_norm_components(x, LinearClassifier(DIM + 1, 3)),
    ):
        with unchecked(), pytest.raises(InputError, match=f"features: expected shape .N, {DIM + 1}."):
            call()
    with pytest.raises(InputError, match="labels"):
        fit_lws(x, y, LinearClassifier(DIM, 2))


@pytest.mark.parametrize("num_outputs", [2, 4])
def test_a_classifier_of_another_number_of_classes_is_refused(num_outputs):
    x, y = normal(85, 6, DIM, dtype=torch.float32), torch.arange(6) % 3
    with pytest.raises(InputError):
        relearn(LinearClassifier(DIM, num_outputs), x, y, 3)


@pytest.mark.parametrize("power", [math.nan, math.inf, -math.inf])
def test_a_power_that_is_not_finite_is_named(power):
    for call in (lambda: tau_norm_weight(linear().weight, power), lambda: fold_tau_norm(linear(), power)):
        with pytest.raises(InputError, match="norm_power"):
            call()


def test_a_power_that_leaves_no_finite_weights_is_named():
    with pytest.raises(InputError, match=r"norm_power: .*finite, got 1e"):
        fold_tau_norm(linear(), 1e9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_of_tau_norm_must_be_finite(value):
    x = normal(86, 4, DIM)
    x[3, 1] = value
    with pytest.raises(InputError, match=r"features: .*\(first: row 3\)"):
        tau_norm_components(x, linear())


def test_wrong_input_of_the_learnt_power_is_named():
    components, y = norm_case(num_rows=20)
    (z, norms), empty = components, y[:0]
    for labels in (y[:19], empty):
        with unchecked(), pytest.raises(InputError, match="labels: expected one for each of 20 features"):
            learn_norm_power(components, labels)
    with pytest.raises(InputError, match="labels"):
        learn_norm_power((z[:0], norms), empty)
    for value in (4, -1):
        wrong = y.clone()
        wrong[7:] = value
        with pytest.raises(InputError, match=rf"labels: expected labels in 0\.\.3, got {value} at position 7"):
            learn_norm_power(components, wrong)
    for lowest, highest in ((1.0, 1.0), (1.0, 0.5), (math.nan, 1.0), (-math.inf, 1.0)):
        with pytest.raises(InputError, match="lowest"):
            learn_norm_power(components, y, lowest=lowest, highest=highest)


@pytest.mark.parametrize("highest", [math.nan, math.inf])
def test_a_highest_power_that_is_not_finite_is_named(highest):
    components, y = norm_case(num_rows=20)
    with pytest.raises(InputError, match="highest: "):
        learn_norm_power(components, y, highest=highest)


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, math.nan])
def test_a_tolerance_not_above_zero_is_refused(tolerance):
    components, y = norm_case(num_rows=20)
    with pytest.raises(InputError, match="tolerance: "):
        learn_norm_power(components, y, tolerance=tolerance)
