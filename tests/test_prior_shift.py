"""Other test distributions: reweighted accuracy, shifted subsets, the estimated prior."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from causal_oracles import unchecked
from tailwise import ClassCounts, InputError
from tailwise.evaluate import (
    accuracy_under_prior,
    estimate_prior,
    mean_per_class_accuracy,
    shifted_indices,
    shifted_prior,
)

COUNTS = ClassCounts((30, 400, 5, 60))  # ranks 2, 0, 3, 1
RATIOS = (1, 2, 5, 10, 25, 50)


def predictions(seed=0, n=80):
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(4), random.integers(0, 4, n)])
    return np.where(random.random(len(labels)) < 0.6, labels, random.integers(0, 4, len(labels))), labels


@given(seed=st.integers(0, 1000), shares=st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any))
def test_accuracy_under_a_prior_weighs_the_classes(seed, shares):
    predicted, labels = predictions(seed)
    q = np.array(shares) / sum(shares)
    expected = 0.0
    for c in range(4):
        mine = [p == c for p, y in zip(predicted, labels, strict=True) if y == c]
        expected += 100 * q[c] * sum(mine) / len(mine)
    assert accuracy_under_prior(predicted, labels, q) == pytest.approx(expected)


def test_limit_cases_of_accuracy_under_a_prior():
    predicted, labels = predictions()
    as_is = np.bincount(labels) / len(labels)
    assert accuracy_under_prior(predicted, labels, as_is) == pytest.approx(100 * np.mean(predicted == labels))
    uniform = accuracy_under_prior(predicted, labels, np.full(4, 0.25))
    assert uniform == pytest.approx(mean_per_class_accuracy(predicted, labels, 4))
    absent = labels != 2
    assert accuracy_under_prior(predicted[absent], labels[absent], [1.0, 0.0, 0.0, 0.0]) >= 0


def test_reweighting_is_what_a_shifted_subset_measures():
    """The same accuracies per class: subsampled test set and reweighted whole one agree."""
    labels = np.repeat(np.arange(4), 1000)
    predicted = np.where(np.random.default_rng(0).random(4000) < np.repeat([0.9, 0.7, 0.3, 0.5], 1000), labels, 0)
    for direction in ("forward", "backward"):
        kept = shifted_indices(labels, COUNTS, 10, direction, seed=0)
        measured = 100 * np.mean(predicted[kept] == labels[kept])
        expected = accuracy_under_prior(predicted, labels, shifted_prior(COUNTS, 10, direction))
        assert measured == pytest.approx(expected, abs=3)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_shifted_prior_is_an_exponential_in_the_rank(ratio, direction):
    rank = {"forward": [2, 0, 3, 1], "backward": [1, 3, 0, 2]}[direction]
    share = [ratio ** (-r / 3) for r in rank]
    assert shifted_prior(COUNTS, ratio, direction) == pytest.approx([s / sum(share) for s in share])


def test_ties_of_counts_go_by_class():
    forward, backward = (shifted_prior(ClassCounts((5, 5, 5)), 4, d) for d in ("forward", "backward"))
    assert forward.tolist() == backward[::-1].tolist() == sorted(forward, reverse=True)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_shifted_indices_have_the_sizes_and_are_nested(direction):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), (100, 120, 150, 100)))
    subsets = {ratio: shifted_indices(labels, COUNTS, ratio, direction, seed=3) for ratio in RATIOS}
    for ratio, kept in subsets.items():
        prior = shifted_prior(COUNTS, ratio, direction)
        sizes = [int(100 * q / max(prior) + 1e-9) for q in prior]
        assert np.bincount(labels[kept]).tolist() == sizes
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert set(kept) <= set(subsets[1])


def test_shifted_indices_depend_on_the_seed_alone():
    labels = np.repeat(np.arange(4), 50)
    first, again, other = (shifted_indices(labels, COUNTS, 5, "forward", seed=seed) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()
    # fixed for good: another release must not draw another subset
    assert first[:8].tolist() == [1, 4, 5, 7, 14, 17, 26, 29]


def test_a_class_keeps_at_least_one_sample():
    labels = np.repeat(np.arange(4), 3)
    kept = shifted_indices(labels, COUNTS, 50, "forward", seed=0)
    assert np.bincount(labels[kept]).tolist() == [1, 3, 1, 1]


# ---- the estimated prior


def posterior(prior, means, x):
    """P(c | x) of unit Gaussians, exactly."""
    density = np.exp(-0.5 * (x[:, None] - means) ** 2) * prior
    return density / density.sum(axis=1, keepdims=True)


def test_estimated_prior_finds_the_true_one():
    random, means, source = np.random.default_rng(0), np.array([-2.0, 0.0, 2.0]), np.array([0.8, 0.15, 0.05])
    target = np.array([0.1, 0.3, 0.6])
    x = means[random.choice(3, 20_000, p=target)] + random.normal(size=20_000)
    estimated = estimate_prior(posterior(source, means, x), source)
    assert estimated.converged
    assert estimated.prior == pytest.approx(target, abs=0.02)
    assert estimated.prior.sum() == pytest.approx(1)


def test_every_step_is_that_of_saerens():
    p, source = np.random.default_rng(1).dirichlet(np.ones(3), 12), [0.5, 0.3, 0.2]
    q = list(source)
    likelihoods = []
    for _ in range(4):
        new = [0.0] * 3
        likelihoods.append(sum(np.log(sum(row[c] * q[c] / source[c] for c in range(3))) for row in p))
        for row in p:
            joint = [row[c] * q[c] / source[c] for c in range(3)]
            for c in range(3):
                new[c] += joint[c] / sum(joint) / len(p)
        q = new
    with pytest.warns(UserWarning, match="not converged after 4 steps"):
        estimated = estimate_prior(p, source, max_steps=4, tolerance=1e-12)
    assert estimated.prior == pytest.approx(q)
    assert (estimated.steps, estimated.converged) == (4, False)
    assert likelihoods == sorted(likelihoods)  # expectation maximisation never loses


def test_limit_cases_of_the_estimated_prior():
    source = np.array([0.7, 0.2, 0.1])
    unsure = estimate_prior(np.tile(source, (5, 1)), source)
    assert unsure.prior == pytest.approx(source)
    assert unsure.steps == 1
    sure = np.eye(3)[[0, 1, 1, 1]]
    assert estimate_prior(sure, source).prior == pytest.approx([0.25, 0.75, 0.0])
    masked = np.array([[0.5, 0.5, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert estimate_prior(masked, [0.5, 0.5, 0.0]).prior == pytest.approx([0.5, 0.5, 0.0])


def test_prior_shift_refuses():
    predicted, labels = predictions()
    p = np.full((3, 4), 0.25)
    uniform = [0.25] * 4
    for wrong, message in (
        (lambda: accuracy_under_prior(predicted, labels, [0.5, 0.5, 0.5, 0.5]), "sum to 1, got a sum of 2"),
        (lambda: accuracy_under_prior(predicted, labels, [1.5, -0.5, 0.0, 0.0]), "a least of -0.5"),
        (lambda: accuracy_under_prior(labels[:1], labels[:1], uniform), "class 1 .3 such"),
        (lambda: shifted_prior(COUNTS, 0.5, "forward"), "ratio: expected a finite number at least 1"),
        (lambda: shifted_prior(COUNTS, 2, "forwards"), "did you mean 'forward'"),
        (lambda: shifted_prior(ClassCounts((5,)), 2, "forward"), "num_classes"),
        (lambda: shifted_indices(np.array([0, 1, 2]), COUNTS, 2, "forward", seed=0), "got none of class 3"),
        (lambda: shifted_indices(np.array([0, 4]), COUNTS, 2, "forward", seed=0), "expected labels in 0..3"),
        (lambda: shifted_indices(labels, COUNTS, 2, "forward", seed=-1), "seed"),
        (lambda: estimate_prior(np.log(p), uniform), "logits become probabilities"),
        (lambda: estimate_prior(p, [0.5, 0.5]), "for each of 4 classes"),
        (lambda: estimate_prior(p, [0.5, 0.5, 0.0, 0.0]), "got 0 for class 2"),
        (lambda: estimate_prior(p[:0], uniform), "at least one sample"),
        (lambda: estimate_prior(p, uniform, tolerance=0.0), "tolerance"),
        (lambda: estimate_prior(p, uniform, max_steps=0), "max_steps"),
    ):
        with pytest.raises(InputError, match=message), unchecked():
            wrong()
