"""Choosing with an interval, and the combination of head direction and prior."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tailwise
from causal_oracles import unchecked
from tailwise import InputError
from tailwise.adjust import (
    ALPHAS,
    NORM_POWERS,
    choose,
    choose_method,
    choose_with_interval,
    combine,
    cross_fitted_predictions,
    fit_ncm,
    fit_temperature,
    fold_combination,
    fold_tde,
    head_cosine,
    heuristic_alpha,
    predictions_by_alpha,
    tde_components,
)
from tailwise.adjust.choose import times_drawn
from tailwise.adjust.combine import undrawn_weights
from tailwise.evaluate import accuracy_under_prior, mean_per_class_accuracy

C = 4
PRIOR = (0.7, 0.2, 0.08, 0.02)


def biased(seed=0, n=400, along=1.5, of_prior=1.0, c=C, prior=PRIOR):
    """Components whose right answer is buried under a head direction's effect and a prior's."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, c, (n,), generator=generator)
    b = torch.linspace(2, -1, c) * (0.5 + torch.rand(n, 1, generator=generator))
    own = torch.randn(n, c, generator=generator) + 2.5 * torch.eye(c)[labels]
    return (own + along * b + of_prior * torch.tensor(prior).log(), b), labels


# ---- with an interval


def predictions(seed=0, n=120, values=7):
    random = np.random.default_rng(seed)
    labels = random.integers(0, C, n)
    sure = np.linspace(0.4, 0.7, values)[:, None]
    return np.where(random.random((values, n)) < sure, labels, random.integers(0, C, (values, n))), labels


@pytest.mark.parametrize("prior", [None, (0.7, 0.1, 0.1, 0.1)])
@given(seed=st.integers(0, 500))
def test_the_value_is_that_of_the_plain_search(prior, seed):
    predicted, labels = predictions(seed)
    values = tuple(range(7))

    def score(p):
        return mean_per_class_accuracy(p, labels, C) if prior is None else accuracy_under_prior(p, labels, prior)

    expected = choose(values, predicted, score)
    chosen = choose_with_interval(values, predicted, labels, target_prior=prior, resamples=2)
    assert chosen.value == expected.chosen
    assert chosen.score == pytest.approx(max(expected.scores))


def test_the_interval_covers_the_score_of_new_samples():
    """In 40 draws of 300 samples, a 95 % interval holds the true accuracy of its value nearly always."""
    truth, held = 50 + 30 * 0.5, 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        labels = random.integers(0, 2, 300)
        predicted = np.where(random.random((1, 300)) < 0.3, labels, random.integers(0, 2, (1, 300)))
        low, high = choose_with_interval((0.0,), predicted, labels).score_interval
        assert 5 < high - low < 20
        held += low <= truth <= high
    assert held >= 34


def test_a_clear_choice_has_a_narrow_interval_and_a_flat_curve_a_wide_one():
    labels = np.arange(200) % C
    clear = np.stack([labels, (labels + 1) % C, (labels + 1) % C])
    assert choose_with_interval((0.0, 1.0, 2.0), clear, labels).interval == (0, 0)
    random = np.random.default_rng(0)
    flat = np.where(random.random((11, 200)) < 0.5, labels, 0)
    low, high = choose_with_interval(tuple(range(11)), flat, labels).interval
    assert high - low >= 3


def test_resamples_are_drawn_within_each_class():
    labels = np.array([2, 0, 0, 2, 2, 0, 1])
    drawn = times_drawn(labels, 50, seed=0)
    for c in range(3):
        assert (drawn[labels == c].sum(axis=0) == (labels == c).sum()).all()
    assert drawn.std(axis=1)[labels != 1].min() > 0
    assert (drawn == times_drawn(labels, 50, seed=0)).all()
    assert (drawn != times_drawn(labels, 50, seed=1)).any()


def test_a_method_is_chosen_only_where_it_is_ahead_by_more_than_chance():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], (60, 20, 10))

    def right(*shares):  # of each class, evenly among its samples
        hits = np.concatenate([np.arange(n) < round(share * n) for share, n in zip(shares, (60, 20, 10), strict=True)])
        return np.where(hits, labels, (labels + 1) % 3)

    plain, lucky, better = right(1, 0.8, 0.5), right(0.95, 0.8, 0.6), right(0.9, 0.9, 0.9)
    assert choose_method(("plain", "lucky"), np.stack([plain, lucky]), labels)[0] == "plain"
    chosen, told = choose_method(("plain", "lucky", "better"), np.stack([plain, lucky, better]), labels)
    assert chosen == "better"
    assert told["plain"].score == pytest.approx(100 * (1 + 0.8 + 0.5) / 3)
    assert told["plain"].score_interval[0] < told["plain"].score < told["plain"].score_interval[1]
    assert choose_method(("a", "b"), np.stack([plain, plain]), labels)[0] == "a"
    mostly_head = choose_method(
        ("plain", "better"), np.stack([better, plain]), labels, score=lambda p, y: float((p == y)[y == 0].mean())
    )
    assert mostly_head[0] == "better"
    shuffled = random.permutation(90)
    assert choose_method(("plain", "better"), np.stack([plain, better])[:, shuffled], labels[shuffled])[0] == "better"
    with pytest.raises(InputError, match="score of a: expected a finite number"):
        choose_method(("a",), plain[None], labels, score=lambda p, y: float("nan"))
    with pytest.raises(InputError, match="predictions: expected shape"):
        choose_method(("a", "b"), plain[None], labels)


def test_heuristic_alpha_is_one_over_the_mean_cosine():
    torch.manual_seed(0)
    classifier = tailwise.CausalClassifier(8, 3)
    x = torch.rand(50, 8) + torch.tensor([1.0, 0, 0, 0, 0, 1.0, 0, 0])
    classifier(x)
    chosen = heuristic_alpha(x, classifier)
    assert chosen.value * float(head_cosine(x, classifier).mean()) == pytest.approx(1)
    assert chosen.interval[0] < chosen.value < chosen.interval[1] < 1.1 * chosen.value
    assert chosen.score is None
    along = classifier.average.value.expand(3, -1)
    assert heuristic_alpha(along, classifier).value == pytest.approx(1, rel=1e-5)
    with pytest.raises(InputError, match="lean to the head direction"):
        heuristic_alpha(-x, classifier)


@pytest.mark.parametrize("shift", [0.0, 0.02, -0.02])
def test_features_around_0_have_no_heuristic_alpha(shift):
    """One over next to nothing would be an alpha of a hundred."""
    torch.manual_seed(0)
    classifier = tailwise.CausalClassifier(8, 3, num_heads=1)
    x = torch.randn(50, 8)
    classifier(x - x.mean(dim=0) + 0.1)
    x = x - x.mean(dim=0) + shift
    assert abs(float(head_cosine(x, classifier).mean())) < 0.1
    chosen = heuristic_alpha(x, classifier)
    assert (chosen.value, chosen.interval) == (0.0, (0.0, 0.0))


def test_cross_fitting_never_predicts_what_it_has_seen():
    labels = torch.tensor([0] * 9 + [1] * 5 + [2] + [3] * 2)
    features = torch.arange(17.0)[:, None]
    seen, sizes = [], []

    def fit(x, y):
        sizes.append(torch.bincount(y, minlength=4).tolist())
        assert (labels[x[:, 0].long()] == y).all()
        seen.append(set(x[:, 0].tolist()))
        return torch.nn.Identity()

    def predict(_, x):
        assert not seen[-1] & set(x[:, 0].tolist())
        return np.stack([x[:, 0].numpy(), -x[:, 0].numpy()]).astype(np.int64)

    predicted = cross_fitted_predictions(features, labels, 4, fit, predict, folds=3, seed=5)
    assert predicted.tolist() == [list(range(17)), [-i for i in range(17)]]
    assert [size[0] for size in sizes] == [6, 6, 6]
    assert sorted(size[3] for size in sizes) == [1, 1, 2]


def test_cross_fitting_sees_the_bias_that_own_samples_hide():
    """Of noise, a nearest mean is always right on its own samples, and by chance on others."""
    x, y = torch.randn(40, 200, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 20

    def predict(classifier, x):
        return classifier(x).argmax(dim=1)[None].numpy()

    def fit(x, y):
        return fit_ncm(x, y, 20)

    assert (predict(fit(x, y), x) == y.numpy()).mean() == 1
    assert (cross_fitted_predictions(x, y, 20, fit, predict, folds=2) == y.numpy()).mean() < 0.3


# ---- combine


@pytest.mark.parametrize("target", [None, (0.1, 0.2, 0.3, 0.4)])
def test_the_combination_is_the_best_of_the_grid(target):
    (a, b), labels = biased(n=150)
    alphas, strengths = (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 0.5, 1.0)
    found = combine((a, b), labels, PRIOR, target_prior=target, alphas=alphas, strengths=strengths, resamples=3)
    q = target or (0.25,) * 4
    scores = {}
    for alpha in alphas:
        for strength in strengths:
            right = [0.0] * C
            for i in range(len(a)):
                z = [a[i, c].item() - alpha * b[i, c].item() - strength * math.log(PRIOR[c] / q[c]) for c in range(C)]
                right[labels[i]] += z.index(max(z)) == labels[i].item()
            scores[alpha, strength] = 100 * sum(q[c] * right[c] / int((labels == c).sum()) for c in range(C))
    best = max(scores.values())
    assert found.score == pytest.approx(best)
    assert scores[found.alpha, found.strength] == pytest.approx(best)
    assert found.alpha_alone.score == pytest.approx(max(s for (_, strength), s in scores.items() if strength == 0))
    assert found.strength_alone.score == pytest.approx(max(s for (alpha, _), s in scores.items() if alpha == 0))
    assert scores[found.alpha_alone.value, 0.0] == pytest.approx(found.alpha_alone.score)
    assert scores[0.0, found.strength_alone.value] == pytest.approx(found.strength_alone.score)
    logits = a - found.alpha * b - found.strength * (torch.tensor(PRIOR) / torch.tensor(q)).log()
    assert found.temperature == pytest.approx(fit_temperature(logits, labels, target_prior=q), rel=1e-4)


def test_both_biases_are_found_and_the_gain_is_told():
    found = combine(*biased(n=2000), PRIOR)
    assert found.alpha == pytest.approx(1.5, abs=0.5)
    assert found.strength == pytest.approx(1.0, abs=0.5)
    assert found.alpha_alone.beaten
    assert found.strength_alone.beaten
    for alone in (found.alpha_alone, found.strength_alone):
        assert alone.interval[0] < alone.gain < alone.interval[1]


@pytest.mark.parametrize("absent", ["prior", "direction"])
def test_no_gain_is_claimed_where_one_part_is_all_there_is(absent):
    components, labels = biased(n=600, **{"along": 0.0} if absent == "direction" else {"of_prior": 0.0})
    found = combine(components, labels, PRIOR)
    needed = found.strength_alone if absent == "direction" else found.alpha_alone
    assert not needed.beaten
    assert needed.gain < 1


def test_gains_are_on_samples_that_were_not_drawn():
    """Random predictions: the best of many pairs looks better on what it was chosen on, and is not."""
    generator = torch.Generator().manual_seed(0)
    components = torch.randn(60, C, generator=generator), torch.randn(60, C, generator=generator)
    found = combine(components, torch.randint(0, C, (60,), generator=generator), PRIOR)
    assert found.score > found.alpha_alone.score
    assert not found.alpha_alone.beaten
    assert found.alpha_alone.gain < found.score - found.alpha_alone.score


def test_undrawn_weights_are_the_target_prior_on_what_was_not_drawn():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = 100 * np.where(labels == 0, 0.5 / 6, np.where(labels == 1, 0.3 / 3, 0.2))
    drawn = times_drawn(labels, 30, seed=0)
    left_out = undrawn_weights(labels, weights, drawn)
    assert (left_out[drawn > 0] == 0).all()
    for resample in range(30):
        there = [c for c in range(3) if (drawn[labels == c, resample] == 0).any()]  # never class 2, of one sample
        q = np.array([0.5, 0.3, 0.2])[there] / np.array([0.5, 0.3, 0.2])[there].sum()
        sums = [left_out[labels == c, resample].sum() for c in there]
        assert sums == pytest.approx(100 * q)
        for c in there:
            assert len(set(left_out[(labels == c) & (drawn[:, resample] == 0), resample])) == 1


def test_limit_cases_of_combine():
    (a, b), labels = biased()
    swept = choose_with_interval(ALPHAS, predictions_by_alpha((a, b)), labels.numpy(), resamples=2)
    for source, strengths in ((None, NORM_POWERS), (PRIOR, (0.0,)), ((0.25,) * 4, (0.0, 1.0))):
        found = combine((a, b), labels, source, strengths=strengths, resamples=2)
        assert found.score == pytest.approx(swept.score)
        assert found.alpha_alone.value == pytest.approx(swept.value, abs=0.11)
    assert combine((a, b), labels, None, resamples=2).strength_alone is None
    plain = combine((a, b), labels, PRIOR, alphas=(0.0,), resamples=2)
    assert plain.strength == plain.strength_alone.value
    assert plain.strength_alone.gain == 0


def test_the_same_seed_gives_the_same_intervals():
    components, labels = biased(n=60)
    one, again, other = (combine(components, labels, PRIOR, resamples=20, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one.alpha_alone.gain != other.alpha_alone.gain


def test_classes_that_a_prior_rules_out_are_never_predicted():
    (a, b), labels = biased()
    source = (0.8, 0.0, 0.1, 0.1)
    found = combine((a, b), labels, source, resamples=2)
    torch.manual_seed(0)
    classifier = tailwise.CausalClassifier(8, C)
    x = torch.randn(200, 8)
    classifier(x)
    folded = fold_combination(classifier, found.alpha, found.strength, found.temperature, source)
    assert (folded(x)[:, 1] == -torch.inf).all()
    assert folded(x)[:, [0, 2, 3]].isfinite().all()
    assert found.score <= 75


@pytest.mark.parametrize("target", [None, (0.1, 0.2, 0.3, 0.4)])
def test_the_combination_folds_into_one_classifier(target):
    torch.manual_seed(0)
    classifier, x = tailwise.CausalClassifier(12, C, num_heads=3), torch.randn(20, 12) + 1
    classifier(x)
    a, b = tde_components(x, classifier)
    q = torch.tensor(target or (0.25,) * 4)
    expected = (a - 1.3 * b - 0.7 * (torch.tensor(PRIOR).log() - q.log())) / 2.0
    got = fold_combination(classifier, 1.3, 0.7, 2.0, PRIOR, target_prior=target)(x)
    shift = (got - expected).mean(dim=1, keepdim=True)  # a uniform q is left out: a constant
    torch.testing.assert_close(got - shift, expected, atol=1e-5, rtol=0)
    plain = fold_combination(classifier, 1.3, 0.0, 1.0, None)
    assert torch.equal(plain(x), fold_tde(classifier, 1.3)(x))
    assert plain.bias is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_components_in_half_precision_combine_as_in_float32(dtype):
    (a, b), labels = biased(n=60)
    a, b = a.to(dtype), b.to(dtype)
    few = {"alphas": (0.0, 1.0, 1.5, 2.0), "strengths": (0.0, 1.0), "resamples": 5}
    assert combine((a, b), labels, PRIOR, **few) == combine((a.float(), b.float()), labels, PRIOR, **few)


def test_choosing_and_combining_refuse():
    (a, b), labels = biased(n=20)
    predicted, truth = predictions(n=20)
    classifier = tailwise.CausalClassifier(8, C)
    x = torch.rand(20, 8)
    values = tuple(range(7))
    for wrong, message in (
        (lambda: choose_with_interval(values[:3], predicted, truth), "expected shape .3, 20."),
        (lambda: choose_with_interval(values[::-1], predicted, truth), "ascending"),
        (lambda: choose_with_interval(values, predicted, truth, resamples=0), "resamples"),
        (lambda: choose_with_interval(values, predicted, truth, seed=-1), "seed"),
        (lambda: choose_with_interval(values, predicted, truth, target_prior=(0.5, 0.6, 0, 0)), "sum to 1"),
        (lambda: choose_with_interval(values, predicted, truth * 0, target_prior=(0.5, 0.5)), "for class 1"),
        (lambda: cross_fitted_predictions(x, labels, C, None, None, folds=1), "folds"),
        (lambda: cross_fitted_predictions(x, labels, C, None, None, folds=21), "folds: expected at most"),
        (lambda: cross_fitted_predictions(x, labels[1:], C, None, None), "one for each of 20"),
        (lambda: combine((a, b), labels[1:], PRIOR), "one for each of 20"),
        (lambda: combine((a, b), labels, PRIOR[:3]), "for each of 4 classes"),
        (lambda: combine((a, b), labels, (0.5, 0.5, 0.5, 0.5)), "source_prior: .* sum of 2"),
        (lambda: combine((a, b), labels, PRIOR, target_prior=(1.0, 1.0, 0.0, 0.0)), "target_prior: .* sum of 2"),
        (lambda: combine((a, b), labels, PRIOR, alphas=(0.5, 1.0)), "alphas: .* holds 0"),
        (lambda: combine((a, b), labels, PRIOR, strengths=(1.0, 0.0)), "strengths: .* ascending"),
        (lambda: fold_combination(classifier, 1.0, 1.0, 1.0, None), "source_prior: expected the class frequencies"),
        (lambda: fold_combination(classifier, 1.0, 1.0, 0.0, PRIOR), "temperature"),
        (lambda: fold_combination(tailwise.LinearClassifier(8, C), 1.0, 1.0, 1.0, PRIOR), "feature average"),
    ):
        with pytest.raises(InputError, match=message), unchecked():
            wrong()
