"""Calibration errors and temperature: slow loops from the papers' equations, limit cases, misuse."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from causal_oracles import unchecked
from tailwise import InputError
from tailwise.adjust import fit_temperature, fold_temperature
from tailwise.classifiers import FoldedClassifier
from tailwise.evaluate import classwise_calibration_error, expected_calibration_error, reliability

N, C = 60, 4


def sample(seed=0, n=N, c=C, spread=2.0):
    random = np.random.default_rng(seed)
    logits = spread * random.normal(size=(n, c))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return p, random.integers(0, c, n)


def in_bin(value, b, num_bins):
    return b / num_bins < value <= (b + 1) / num_bins or (b == 0 and value == 0)


def ece_oracle(p, labels, num_bins):
    """Guo et al. 2017, Eq. 3, sample by sample."""
    total = 0.0
    for b in range(num_bins):
        mine = [i for i in range(len(p)) if in_bin(max(p[i]), b, num_bins)]
        if mine:
            right = sum(int(np.argmax(p[i]) == labels[i]) for i in mine) / len(mine)
            sure = sum(max(p[i]) for i in mine) / len(mine)
            total += len(mine) / len(p) * abs(right - sure)
    return 100 * total


def classwise_oracle(p, labels, num_bins):
    """Kull et al. 2019, Eq. 4, class by class and bin by bin."""
    total = 0.0
    for c in range(p.shape[1]):
        for b in range(num_bins):
            mine = [i for i in range(len(p)) if in_bin(p[i, c], b, num_bins)]
            if mine:
                often = sum(int(labels[i] == c) for i in mine) / len(mine)
                said = sum(p[i, c] for i in mine) / len(mine)
                total += len(mine) / len(p) * abs(often - said)
    return 100 * total / p.shape[1]


@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), c=st.integers(2, 5), num_bins=st.integers(1, 20))
def test_calibration_errors_are_their_equations(seed, n, c, num_bins):
    p, labels = sample(seed, n, c)
    assert expected_calibration_error(p, labels, num_bins=num_bins) == pytest.approx(ece_oracle(p, labels, num_bins))
    expected = classwise_oracle(p, labels, num_bins)
    assert classwise_calibration_error(p, labels, num_bins=num_bins) == pytest.approx(expected)


def test_fifteen_bins_unless_told():
    p, labels = sample()
    assert expected_calibration_error(p, labels) == pytest.approx(ece_oracle(p, labels, 15))
    assert classwise_calibration_error(p, labels) == pytest.approx(classwise_oracle(p, labels, 15))
    assert len(reliability(p, labels).count) == 15


def test_reliability_adds_up_to_the_error():
    p, labels = sample()
    bins = reliability(p, labels, num_bins=5)
    assert bins.edges.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert bins.count.sum() == N
    assert np.isnan(bins.accuracy[bins.count == 0]).all()
    assert np.isnan(bins.confidence[0])  # four classes: none below 1/4
    assert np.nansum(bins.accuracy * bins.count) == (p.argmax(axis=1) == labels).sum()
    assert np.nansum(bins.confidence * bins.count) == pytest.approx(p.max(axis=1).sum())


def test_an_edge_belongs_to_the_bin_below():
    bins = reliability(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([0, 1]), num_bins=2)
    assert bins.count.tolist() == [1, 1]


def test_limit_cases_of_calibration():
    p, labels = sample()
    gap = abs((p.argmax(axis=1) == labels).mean() - p.max(axis=1).mean())
    assert expected_calibration_error(p, labels, num_bins=1) == pytest.approx(100 * gap)
    sure = np.eye(C)[labels]
    assert expected_calibration_error(sure, labels) == classwise_calibration_error(sure, labels) == 0
    assert expected_calibration_error(sure, (labels + 1) % C) == 100
    # the class-wise error sees a tail that the confident head hides
    hidden = np.tile([0.9, 0.1, 0.0], (10, 1)), np.array([0] * 9 + [2])
    assert expected_calibration_error(*hidden) == pytest.approx(0, abs=1e-9)
    assert classwise_calibration_error(*hidden) == pytest.approx(100 * (0.1 + 0.1) / 3)


@pytest.mark.parametrize("function", [reliability, expected_calibration_error, classwise_calibration_error])
def test_calibration_refuses(function):
    p, labels = sample()
    with pytest.raises(InputError, match="logits become probabilities by softmax"):
        function(np.log(p), labels)
    with pytest.raises(InputError, match="sum to 1"):
        function(2 * p, labels)
    with pytest.raises(InputError, match="got shape"):
        function(p[0], labels[:1])
    with pytest.raises(InputError, match="expected finite numbers"):
        function(p * np.nan, labels)
    with pytest.raises(InputError, match="expected one for each of 60"):
        function(p, labels[:-1])
    with pytest.raises(InputError, match="at least one, got 0"):
        function(p[:0], labels[:0])
    with pytest.raises(InputError, match=r"labels: expected labels in 0\.\.3"):
        function(p, labels + 1)
    with pytest.raises(InputError, match="num_bins"):
        function(p, labels, num_bins=0)


# ---- temperature


def nll_oracle(logits, labels, temperature, prior=None):
    """The mean cross-entropy under a prior: each class's samples weigh q_c together, in float64 loops."""
    counts = [sum(int(y == c) for y in labels) for c in range(logits.shape[1])]
    total = 0.0
    for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
        scaled = [value / temperature for value in z]
        top = max(scaled)
        loss = top + math.log(sum(math.exp(value - top) for value in scaled)) - scaled[y]
        total += loss * (1 / len(labels) if prior is None else prior[y] / counts[y])
    return total


def validation(seed=0, n=200, scale=5.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C, (n,), generator=generator)
    logits = torch.randn(n, C, generator=generator) + 1.5 * torch.eye(C)[labels]
    return scale * logits, labels


@pytest.mark.parametrize("prior", [None, (0.25,) * 4, (0.7, 0.2, 0.1, 0.0)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_temperature_has_the_least_cross_entropy_of_a_fine_grid(prior, scale):
    logits, labels = validation(scale=scale)
    found = fit_temperature(logits, labels, target_prior=prior)
    least = min(nll_oracle(logits, labels, t, prior) for t in found * np.geomspace(0.5, 2, 101))
    assert nll_oracle(logits, labels, found, prior) <= least + 1e-9
    assert nll_oracle(logits, labels, found * 1.01, prior) > nll_oracle(logits, labels, found, prior)


def test_logits_times_s_give_temperature_times_s():
    logits, labels = validation(scale=1.0)
    assert fit_temperature(7 * logits, labels) == pytest.approx(7 * fit_temperature(logits, labels), rel=1e-5)


def test_a_target_prior_weighs_the_classes():
    """Class 0 is sure and right, class 1 sure and often wrong: the more of class 1, the higher the temperature."""
    logits = torch.tensor([[6.0, 0.0]]).repeat(100, 1)
    labels = torch.tensor([0] * 90 + [1] * 10)
    found = [fit_temperature(logits, labels, target_prior=(1 - q, q)) for q in (0.1, 0.2, 0.4)]
    # softmax((6, 0) / T) says 1 - q
    assert found == pytest.approx([6 / math.log((1 - q) / q) for q in (0.1, 0.2, 0.4)], rel=1e-5)
    assert fit_temperature(logits, labels) == pytest.approx(found[0], rel=1e-6)


def test_bounds_where_nothing_can_be_learnt():
    assert fit_temperature(torch.eye(3) * 2, torch.arange(3)) == pytest.approx(0.01, rel=1e-3)
    assert fit_temperature(torch.eye(3) * 2, torch.tensor([1, 2, 0])) == pytest.approx(100, rel=1e-3)
    assert fit_temperature(torch.eye(3) * 1e6, torch.arange(3)) == 0.01  # sure at every temperature


@pytest.mark.parametrize("masked", [False, True])
def test_logits_that_say_nothing_have_the_highest_temperature(masked):
    logits = torch.full((6, 4), 3.0)
    if masked:
        logits[:, 3] = -torch.inf
    assert fit_temperature(logits, torch.arange(6) % 3) == 100


def test_masked_classes_are_left_out():
    logits, labels = validation()
    masked = torch.cat([logits, torch.full((len(logits), 1), -torch.inf)], dim=1)
    assert fit_temperature(masked, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-6)
    with pytest.raises(InputError, match="never predicted"):
        fit_temperature(masked, torch.full_like(labels, C))


def test_temperature_calibrates():
    logits, labels = validation(n=4000, scale=5.0)
    found = fit_temperature(logits[:2000], labels[:2000])
    before, after = (
        expected_calibration_error((logits[2000:] / t).softmax(dim=1).numpy(), labels[2000:].numpy())
        for t in (1, found)
    )
    assert before > 15
    assert after < 4


@pytest.mark.parametrize("norm", ["none", "unit"])
def test_folding_divides_the_logits(norm):
    torch.manual_seed(0)
    bias = torch.randn(C).index_fill(0, torch.tensor([1]), -torch.inf)
    classifier = FoldedClassifier(torch.randn(C, 6), num_heads=2, norm=norm, bias=bias, center=torch.randn(6))
    x = torch.randn(5, 6)
    torch.testing.assert_close(fold_temperature(classifier, 2.5)(x), classifier(x) / 2.5)
    assert fold_temperature(FoldedClassifier(torch.eye(2)), 2.0).bias is None


def test_temperature_refuses():
    logits, labels = validation()
    for wrong, message in (
        (lambda: fit_temperature(logits, labels[:-1]), "expected one for each of 200"),
        (lambda: fit_temperature(logits * torch.nan, labels), "expected finite numbers"),
        (lambda: fit_temperature(logits, labels + C), "expected labels in 0..3"),
        (lambda: fit_temperature(logits, labels, target_prior=(0.5, 0.5)), "for each of 4 classes"),
        (lambda: fit_temperature(logits, labels, target_prior=(1.0, 1.0, 0.0, 0.0)), "sum to 1"),
        (lambda: fit_temperature(logits[labels > 0], labels[labels > 0], target_prior=(0.25,) * 4), "class 0"),
        (
            lambda: fold_temperature(FoldedClassifier(torch.eye(2)), 0.0),
            "temperature: expected a finite number above 0",
        ),
    ):
        with pytest.raises(InputError, match=message), unchecked():
            wrong()
