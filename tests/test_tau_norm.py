"""The tau-normalized classifier (Kang et al. 2020, Eq. 3) and its learnt power."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from causal_oracles import TOLERANCE, assert_close, assert_finite_gradients, length, rows
from decoupling_oracles import (
    DIM,
    POWERS,
    joint,
    linear,
    long_tail,
    norm_case,
    normal,
    oracle_balanced_loss,
    oracle_tau_logits,
    oracle_tau_norm,
    properties,
    seeds,
)
from tailwise.adjust import (
    fold_linear,
    fold_tau_norm,
    learn_norm_power,
    predictions_by_norm_power,
    tau_norm_components,
    tau_norm_weight,
)
from tailwise.classifiers import LinearClassifier, ScaledClassifier

# ---- tau-normalized


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


# ---- learnt norm power


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
    assert learn_norm_power(tau_norm_components(x, classifier), y, lowest=lowest) == lowest


@pytest.mark.parametrize("scale", [1, 0.37, 3.3])
def test_rounding_does_not_choose_a_power(scale):
    for seed in range(4):
        weight = scale * torch.nn.functional.normalize(normal(seed, 5, 16, dtype=torch.float32), dim=1)
        classifier = LinearClassifier(16, 5, bias=False)
        classifier.weight.data.copy_(weight)
        y = torch.arange(5).repeat(20)
        x = 3 * weight[y] / scale + normal(seed + 50, 100, 16, dtype=torch.float32)
        assert learn_norm_power(tau_norm_components(x, classifier), y) == 0


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
