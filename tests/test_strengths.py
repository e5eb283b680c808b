"""Sweeps over alpha and the power of tau-norm."""

import math

import numpy as np
import pytest
import torch

from decoupling_oracles import normal
from tailwise import InputError
from tailwise.adjust import (
    ALPHAS,
    NORM_POWERS,
    choose,
    predictions_by_alpha,
    predictions_by_norm_power,
    sweep_alpha,
    sweep_norm_power,
)
from tailwise.evaluate import mean_per_class_accuracy


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
        tied = [v for v, s in zip(values, expected, strict=True) if s >= max(expected) - 1e-9]
        assert result.values == values
        assert result.scores == pytest.approx(expected)
        assert result.chosen == tied[len(tied) // 2]


def test_what_differs_by_rounding_alone_is_tied():
    """Classes of one size take turns in how many are right: one mean over classes, rounded in as many ways."""
    labels = np.repeat(np.arange(4), 7)
    for seed in range(100):
        random = np.random.default_rng(seed)
        right = random.integers(0, 8, 4)
        rows = []
        for _ in range(5):
            hits = random.permutation(right)
            rows.append(np.where(np.arange(28) % 7 < hits[labels], labels, (labels + 1) % 4))
        chosen = choose((0, 1, 2, 3, 4), np.array(rows), lambda p: mean_per_class_accuracy(p, labels, 4)).chosen
        assert chosen == 2


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
