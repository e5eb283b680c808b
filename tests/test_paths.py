"""Paths of predictions: every strength against a brute-force argmax, ties and rounding included."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from tailwise import CapsuleClassifier, CausalClassifier, ClassCounts, CosineClassifier, InputError, LinearClassifier
from tailwise.adjust import fold_tau_norm, fold_tde
from tailwise.adjust.paths import (
    Lines,
    Paths,
    Scores,
    doubtful,
    joined,
    scores_by_alpha,
    scores_by_norm_power,
    upper_envelope,
)

N, C, D = 60, 9, 8
ALPHAS = [round(0.1 * i, 10) for i in range(51)]
POWERS = [round(0.05 * i, 10) for i in range(41)]


def causal(kind=CausalClassifier, num_heads=2):
    torch.manual_seed(3)
    classifier = kind(D, C, num_heads=num_heads)
    classifier(torch.rand(50, D))
    return classifier.eval()


def linear(scale=2.0):
    torch.manual_seed(4)
    classifier = LinearClassifier(D, C)
    classifier.weight.data *= torch.logspace(scale, -scale, C, base=2)[:, None]
    return classifier


def features(seed=0):
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed))


def pieces_of(paths, row):
    first = int(paths.pieces[:row].sum())
    return list(zip(paths.starts, paths.classes, strict=True))[first : first + paths.pieces[row]]


def test_envelope_is_that_of_exact_arithmetic():
    """Small whole numbers, with many ties: breakpoints from fractions, one line against one, in a loop."""
    rng = np.random.default_rng(0)
    a, s = (rng.integers(-6, 7, size=(80, 5)) for _ in range(2))
    paths = upper_envelope(Lines(a.astype(float), s.astype(float)), highest=4.0)
    for row in range(80):
        here = [(Fraction(int(x)), Fraction(int(y))) for x, y in zip(a[row], s[row], strict=True)]
        crossings = {(p[0] - q[0]) / (q[1] - p[1]) for p in here for q in here if p[1] != q[1]}
        points = sorted({Fraction(0), *(t for t in crossings if 0 < t <= 4)})
        expected = []
        for t in points:
            # the greatest just after t: of those that meet there, the steepest; of equal lines the first
            best = max(range(5), key=lambda c: (here[c][0] + here[c][1] * t, here[c][1], -c))
            if not expected or expected[-1][1] != best:
                expected.append((float(t), best))
        assert pieces_of(paths, row) == expected


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("kind", [CausalClassifier, CosineClassifier, CapsuleClassifier])
def test_alpha_paths_are_the_predictions_of_the_folded_classifier(kind, num_heads):
    classifier, x = causal(kind, num_heads), features()
    check(classifier, x, scores_by_alpha, fold_tde, ALPHAS)


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_norm_power_paths_are_the_predictions_of_the_folded_classifier(shift):
    """A shift along all weights makes most logits positive, or has samples without a positive one."""
    classifier, x = linear(), features()
    classifier.weight.data += 0.3
    x = x + shift
    assert (x @ classifier.weight.T > 0).any(dim=1).all() == (shift > 0)
    check(classifier, x, scores_by_norm_power, fold_tau_norm, POWERS)


def check(classifier, x, scores_of, fold, values):
    paths, doubt = doubtful(scores_of(x, classifier), values)
    changes = 0
    for number, value in enumerate(values):
        with torch.no_grad():
            predicted = fold(classifier, value)(x).argmax(dim=1).numpy()
        sure = ~doubt[:, number]
        assert (paths.at(value)[sure] == predicted[sure]).all()
        changes += (predicted != paths.at(0.0)).sum()
    assert doubt.mean() < 0.01
    assert changes > 100
    assert (paths.pieces > 1).sum() > 5


def test_between_the_values_paths_break_where_two_classes_are_equal():
    """At a breakpoint the old and the new class have the same float64 score, and no other a greater one."""
    for scores in (scores_by_alpha(features(), causal()), scores_by_norm_power(features() + 3.0, linear())):
        lines, paths = scores.exact, upper_envelope(scores.exact, 2.0)
        for row in range(N):
            path = pieces_of(paths, row)
            assert path[0][0] == 0
            for (_, before), (start, after) in itertools.pairwise(path):
                height = lines.intercept[row] + lines.slope[row] * start
                assert height[before] == pytest.approx(height[after], abs=1e-9)
                assert height[before] == pytest.approx(height.max(), abs=1e-9)
                assert lines.slope[row, after] > lines.slope[row, before]


@pytest.mark.parametrize(
    ("make", "scores_of", "values"), [(causal, scores_by_alpha, ALPHAS), (linear, scores_by_norm_power, POWERS)]
)
def test_equal_classes_are_in_doubt(make, scores_of, values):
    """Two classes with the same weights tie at every strength: nothing but the classifier can say which it takes."""
    classifier, x = make(), features()
    before = upper_envelope(scores_of(x, classifier).exact, values[-1]).at(0.0)
    twin = int(np.bincount(before, minlength=C)[:-1].argmax())
    classifier.weight.data[C - 1] = classifier.weight.data[twin]
    paths, doubt = doubtful(scores_of(x, classifier), values)
    tied = np.isin(np.stack([paths.at(value) for value in values], axis=1), (twin, C - 1))
    assert tied.sum() > 50
    assert doubt[tied].all()
    assert doubt.mean() < 0.5


def test_logits_of_zero_and_below():
    """No logit above 0: a weight of 0 wins at every power; without one the least |z| / n^p wins."""
    classifier = LinearClassifier(2, 3, bias=False)
    classifier.weight.data = torch.tensor([[-4.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    x = torch.tensor([[1.0, 0.0], [1.0, 5.0]])
    assert upper_envelope(scores_by_norm_power(x, classifier).exact, 2.0).classes.tolist() == [2, 2]
    classifier.weight.data[2] = torch.tensor([-2.0, 0.0])
    paths, doubt = doubtful(scores_by_norm_power(x, classifier), (0.0, 0.5, 1.0, 1.5))
    # -4^(1 - p), -1 and -2^(1 - p): equal at p = 1, where the first that is steepest goes on
    assert [paths.at(p).tolist() for p in (0.0, 0.9, 1.1)] == [[1, 1], [1, 1], [0, 0]]
    assert doubt.tolist() == [[False, False, True, False]] * 2


def test_a_class_never_seen_is_on_no_path():
    counts = ClassCounts((9, 0, *range(1, C - 1)))
    for classifier, scores_of in ((causal(), scores_by_alpha), (linear(), scores_by_norm_power)):
        with pytest.warns(UserWarning, match="never predicted"):
            masked, doubt = doubtful(scores_of(features(), classifier, counts=counts), (0.0, 2.0))
        free = upper_envelope(scores_of(features(), classifier, counts=counts, allow_unseen=True).exact, 2.0)
        assert 1 not in masked.classes
        assert 1 in free.classes
        assert not doubt.any()


def test_float32_logits_stay_between_the_bounds():
    """With features of one sign, where rounding errors are largest."""
    x = features().abs() + 1
    classifier = causal()
    scores = scores_by_alpha(x, classifier)
    for alpha in (0.0, 1.0, 5.0):
        logits = fold_tde(classifier, alpha)(x).detach().double().numpy()
        assert (logits >= scores.lower.at(alpha)).all()
        assert (logits <= scores.upper.at(alpha)).all()
        width = scores.upper.at(alpha) - scores.lower.at(alpha)
        assert width.max() < 1e-2
        assert width == pytest.approx((1 + alpha) * (scores.upper.at(0.0) - scores.lower.at(0.0)))


def test_a_class_that_would_come_up_behind_the_last_value_is_a_rival():
    a, s = np.array([[0.0, -1 - 1e-9]]), np.array([[0.0, 1.0]])
    paths, doubt = doubtful(Scores(Lines(a, s), Lines(a - 1e-6, s), Lines(a + 1e-6, s)), (0.0, 0.9, 1.0))
    assert paths.pieces.tolist() == [1]
    assert doubt.tolist() == [[False, False, True]]


@pytest.mark.parametrize(
    ("weight", "doubted"),
    [
        ([[-1.0, -1.0], [-2.0, 1.0]], False),
        ([[-8.0, 8.0 - 1e-6], [-1.0, -1.0]], False),  # on whichever side of 0, the first is ahead
        ([[-8.0, 8.0 - 1e-6], [-4.0, 4.0 - 2e-6]], True),
        ([[-8.0, 8.0], [-4.0, 4.0 - 2e-6]], True),
    ],
)
def test_logits_that_may_be_on_either_side_of_0_are_in_doubt(weight, doubted):
    """One of two just below 0 would be ahead at every power if it were rounded to above."""
    classifier = LinearClassifier(2, 2, bias=False)
    classifier.weight.data = torch.tensor(weight)
    _, doubt = doubtful(scores_by_norm_power(torch.ones(1, 2), classifier), (0.0, 0.5))
    assert doubt.tolist() == [[doubted, doubted]]


def test_corrections_hold_at_their_value_alone():
    path = Paths(np.array([2, 1, 2]), np.array([0.0, 1.0, 0.0, 0.0, 0.5]), np.array([4, 5, 6, 7, 8]))
    now = path.corrected(np.array([2, 0, 0]), np.array([0.5, 1.0, 0.0]), np.array([1, 2, 3]))
    every = [0.0, 5e-324, 0.5, 0.7, 1.0, np.nextafter(1.0, 2), 3.0]
    expected = {0: [3, 4, 4, 4, 2, 5, 5], 1: [6] * 7, 2: [7, 7, 1, 8, 8, 8, 8]}
    for row, classes in expected.items():
        assert [now.at(value)[row] for value in every] == classes
    assert joined([path, now]).at(1.0).tolist() == [5, 6, 8, 2, 6, 8]


def test_bad_input():
    lines = Lines(np.array([[-np.inf, -np.inf]]), np.zeros((1, 2)))
    with pytest.raises(InputError, match="scores: expected a class that can be predicted"):
        upper_envelope(lines, 1.0)
    with pytest.raises(InputError, match="highest"):
        upper_envelope(lines, 0.0)
    for values in ((), (0.0,), (1.0, 0.5), (-1.0, 1.0), (0.0, 0.0)):
        with pytest.raises(InputError, match="values: expected at least two ascending"):
            doubtful(Scores(lines, lines, lines), values)
