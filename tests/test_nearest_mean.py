"""The nearest class mean classifier (Kang et al. 2020)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from causal_oracles import TOLERANCE, assert_close, rows
from decoupling_oracles import (
    DIM,
    DISTANCES,
    every_distance,
    normal,
    oracle_means,
    oracle_ncm,
    properties,
    seeds,
    some_labels,
)
from tailwise.adjust import class_means, fit_ncm
from tailwise.adjust.nearest_mean import class_labels


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_distance
def test_half_precision_features_do_not_make_half_precision_means(distance, dtype):
    """Means that hardly differ beside what all share, as after a ReLU: rounded, they would be the same."""
    x, y = (4 + 0.1 * normal(30, 200, DIM)).to(dtype), some_labels(30, 200, 5)
    fold, wide = fit_ncm(x, y, 5, distance=distance), fit_ncm(x.float(), y, 5, distance=distance)
    assert torch.equal(class_means(x, y, 5), class_means(x.float(), y, 5))
    assert torch.equal(fold(x.float()), wide(x.float()))
    assert fold(x).dtype is torch.float32


def test_labels_go_where_the_features_are():
    """A device without numbers: the one other device that every machine has."""
    assert class_labels(torch.tensor([0, 1]), 2, torch.device("meta")).device.type == "meta"
