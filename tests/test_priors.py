"""Post-hoc logit adjustment (Menon et al. 2021, Eq. 9): loops from the equation, Bayes' rule, folding, sweeps."""

import math
import warnings

import numpy as np
import pytest
import torch

from causal_oracles import DIM, MODULES, TOLERANCE, assert_close, batches, rows, trained, unchecked
from tailwise import ClassCounts, InputError
from tailwise.adjust import (
    TEMPERATURES,
    adjust_logits,
    fold_logit_adjustment,
    fold_tde,
    log_prior_components,
    predictions_by_temperature,
    sweep_temperature,
    tde,
)
from tailwise.classifiers import CosineClassifier, FoldedClassifier, LinearClassifier, MlpClassifier, ScaledClassifier

C = 7
COUNTS = ClassCounts((400, 60, 12, 3, 1, 9, 30))
WITH_UNSEEN = ClassCounts((400, 60, 0, 3, 1, 0, 30))
TARGET = (0.3, 0.05, 0.05, 0.1, 0.2, 0.1, 0.2)
STRENGTHS = (0.0, 0.5, 1.0, 2.6)


def scaled():
    classifier = ScaledClassifier(torch.randn(C, DIM), torch.randn(C)).double()
    classifier.scale.data.copy_(torch.rand(C) + 0.5)
    return classifier


CLASSIFIERS = {
    **{kind: lambda kind=kind: trained(kind, num_heads=2, num_classes=C) for kind in MODULES},
    "linear": lambda: LinearClassifier(DIM, C).double(),
    "linear, no bias": lambda: LinearClassifier(DIM, C, bias=False).double(),
    "scaled": scaled,
    "folded": lambda: FoldedClassifier(
        torch.randn(C, DIM), num_heads=3, norm="capsule", bias=torch.randn(C), center=torch.randn(DIM)
    ).double(),
    "total direct effect": lambda: fold_tde(trained("causal", num_classes=C), 1.5),
}
every_classifier = pytest.mark.parametrize("make", CLASSIFIERS.values(), ids=CLASSIFIERS)


def oracle(logits, source, target, temperature):
    """z_c - t log s_c + t log q_c; a class of prior 0 is never predicted."""
    return [
        [
            z - temperature * math.log(s) + temperature * math.log(q) if s > 0 and q > 0 else -math.inf
            for z, s, q in zip(row, source, target, strict=True)
        ]
        for row in rows(logits)
    ]


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("temperature", STRENGTHS)
@pytest.mark.parametrize("target", [None, TARGET])
def test_adjusted_logits_follow_their_equation(target, temperature, dtype):
    logits = normal(0, 5, C).to(dtype)
    adjusted = adjust_logits(logits, COUNTS.prior, target, temperature=temperature)
    assert adjusted.dtype is dtype
    assert_close(adjusted, oracle(logits, COUNTS.prior, target or [1 / C] * C, temperature), TOLERANCE[dtype])


def test_the_posterior_of_one_prior_becomes_that_of_another():
    """Bayes' rule, from the densities: nothing but the prior differs between the two."""
    density = normal(1, 6, C).exp()
    source = density * torch.tensor(COUNTS.prior)
    expected = density * torch.tensor(TARGET, dtype=torch.float64)
    posterior = adjust_logits(source.log(), COUNTS.prior, TARGET).softmax(dim=1)
    assert_close(posterior, expected / expected.sum(dim=1, keepdim=True), 1e-12)
    balanced = adjust_logits(source.log(), COUNTS.prior).softmax(dim=1)
    assert_close(balanced, density / density.sum(dim=1, keepdim=True), 1e-12)


def test_limits_give_the_logits_back():
    logits = normal(2, 5, C)
    assert_close(adjust_logits(logits, COUNTS.prior, TARGET, temperature=0.0), logits, 1e-15)
    assert_close(adjust_logits(logits, TARGET, TARGET, temperature=2.0), logits, 1e-12)
    assert_close(adjust_logits(logits, [1 / C] * C, temperature=2.0), logits, 1e-12)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_class_of_prior_zero_is_never_predicted(temperature):
    source, target = [0.5, 0.0, 0.3, 0.2], [0.2, 0.3, 0.0, 0.5]
    adjusted = adjust_logits(normal(3, 5, 4), source, target, temperature=temperature)
    assert torch.equal(adjusted == -math.inf, torch.tensor([False, True, True, False]).expand(5, 4))
    assert_close(adjusted[:, [0, 3]], np.array(oracle(normal(3, 5, 4), source, target, temperature))[:, [0, 3]], 1e-12)


def test_priors_may_be_tensors_arrays_or_lists():
    logits = normal(4, 2, C).float()
    given = (COUNTS.prior, COUNTS.prior.tolist(), torch.tensor(COUNTS.prior), torch.tensor(COUNTS.prior).float())
    for prior in given:
        assert_close(adjust_logits(logits, prior, TARGET), adjust_logits(logits, COUNTS.prior, TARGET), 1e-5)


def test_gradients_are_those_of_the_logits():
    logits = normal(5, 3, C).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: adjust_logits(z, COUNTS.prior, TARGET, temperature=1.7), logits)


# ------------------------------------------------------------------------------------------------------ classifiers


@every_classifier
@pytest.mark.parametrize("temperature", STRENGTHS)
def test_a_folded_classifier_gives_the_adjusted_logits(make, temperature):
    torch.manual_seed(0)
    classifier, (x,) = make(), batches(6, 5)
    for target in (None, TARGET):
        expected = oracle(classifier(x), COUNTS.prior, target or [1 / C] * C, temperature)
        folded = fold_logit_adjustment(classifier, COUNTS, target_prior=target, temperature=temperature)
        assert isinstance(folded, FoldedClassifier)
        assert_close(folded(x), expected, 1e-10)
        z, ratio = log_prior_components(x, classifier, COUNTS, target_prior=target)
        assert_close(z + temperature * ratio, expected, 1e-10)


@every_classifier
def test_a_class_without_an_image_is_masked_or_has_the_prior_of_one(make):
    torch.manual_seed(0)
    classifier, (x,) = make(), batches(7, 4)
    unseen = [2, 5]
    with pytest.warns(UserWarning, match="2 of 7 classes have no training image"):
        logits = fold_logit_adjustment(classifier, WITH_UNSEEN, temperature=0.5)(x)
    with pytest.warns(UserWarning, match="2 of 7 classes have no training image"):
        z, ratio = log_prior_components(x, classifier, WITH_UNSEEN)
    assert torch.equal(logits == -math.inf, torch.tensor([c in unseen for c in range(C)]).expand(4, C))
    assert ratio.isfinite().all()
    assert torch.equal((z + 0.5 * ratio) == -math.inf, logits == -math.inf)
    seen = [c for c in range(C) if c not in unseen]
    expected = np.array(oracle(classifier(x), WITH_UNSEEN.prior, [1 / C] * C, 0.5))
    assert_close(logits[:, seen], expected[:, seen], 1e-10)
    assert_close((z + 0.5 * ratio)[:, seen], expected[:, seen], 1e-10)

    one = [max(n, 1) / 496 for n in WITH_UNSEEN.per_class]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        allowed = fold_logit_adjustment(classifier, WITH_UNSEEN, temperature=0.5, allow_unseen=True)(x)
        z, ratio = log_prior_components(x, classifier, WITH_UNSEEN, allow_unseen=True)
    assert_close(allowed, oracle(classifier(x), one, [1 / C] * C, 0.5), 1e-10)
    assert_close(z + 0.5 * ratio, allowed, 1e-10)


@every_classifier
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_target_of_zero_is_masked_at_every_temperature(make, temperature):
    torch.manual_seed(0)
    classifier, (x,) = make(), batches(8, 4)
    target = (0.4, 0.0, 0.1, 0.1, 0.2, 0.1, 0.1)
    folded = fold_logit_adjustment(classifier, COUNTS, target_prior=target, temperature=temperature)(x)
    z, ratio = log_prior_components(x, classifier, COUNTS, target_prior=target)
    for logits in (folded, z + temperature * ratio):
        assert (logits[:, 1] == -math.inf).all()
        assert logits[:, [0, 2, 3, 4, 5, 6]].isfinite().all()


def test_it_adds_to_total_direct_effect():
    classifier, (x,) = trained("causal", num_classes=C), batches(9, 5)
    both = fold_logit_adjustment(fold_tde(classifier, 1.5), COUNTS, temperature=0.5)
    assert_close(both(x), adjust_logits(tde(x, classifier, 1.5), COUNTS.prior, temperature=0.5), 1e-10)


def test_a_masked_class_of_a_folded_classifier_stays_masked():
    bias = torch.zeros(C, dtype=torch.float64)
    bias[3] = -math.inf
    folded = fold_logit_adjustment(FoldedClassifier(normal(10, C, DIM), bias=bias), COUNTS)
    assert (folded(normal(11, 4, DIM)) == -math.inf).any(dim=0).tolist() == [c == 3 for c in range(C)]


def test_a_folded_classifier_is_a_copy_and_the_given_one_is_left_alone():
    given = FoldedClassifier(normal(12, C, DIM), bias=normal(13, C))
    before, x = given.bias.clone(), normal(14, 4, DIM)
    folded = fold_logit_adjustment(given, COUNTS)
    logits = folded(x)
    assert torch.equal(given.bias, before)
    given.weight.zero_()
    assert torch.equal(folded(x), logits)
    assert not list(folded.parameters())


# ----------------------------------------------------------------------------------------------------------- sweeps


def test_a_sweep_is_the_loop_over_its_temperatures():
    classifier, x = LinearClassifier(DIM, C).double(), normal(15, 500, DIM)
    components = log_prior_components(x, classifier, COUNTS, target_prior=TARGET)
    expected = [
        fold_logit_adjustment(classifier, COUNTS, target_prior=TARGET, temperature=t)(x).argmax(dim=1).tolist()
        for t in TEMPERATURES
    ]
    predicted = predictions_by_temperature(components)
    assert predicted.tolist() == expected
    assert expected[0] != expected[-1]
    wanted = np.array(expected[17])
    sweep = sweep_temperature(components, lambda found: float((found == wanted).mean()))
    assert sweep.values == TEMPERATURES
    assert sweep.scores == tuple(float((np.array(row) == wanted).mean()) for row in expected)
    assert sweep.scores[TEMPERATURES.index(sweep.chosen)] == 1.0


def test_the_grid_unless_told():
    assert tuple(step / 10 for step in range(41)) == TEMPERATURES


# ----------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ([0.5, 0.5], r"expected a number for each of 3 classes, got \[2\]"),
        ([[0.5, 0.3, 0.2]], r"expected a number for each of 3 classes, got \[1, 3\]"),
        ([0.5, 0.3, 0.1], "sum to 1, got a least 0.1 and a sum 0.9"),
        ([0.6, 0.6, -0.2], "at least 0 that sum to 1, got a least -0.2 and a sum 1"),
        ([0.6, 0.4, math.nan], "sum to 1, got a least nan and a sum nan"),
        ([50.0, 30.0, 20.0], "sum to 1, got a least 20 and a sum 100"),
    ],
)
def test_a_prior_that_is_none_is_named(prior, message):
    good, logits = [0.2, 0.3, 0.5], torch.zeros(1, 3)
    with unchecked():
        with pytest.raises(InputError, match=rf"source_prior: .*{message}"):
            adjust_logits(logits, prior, good)
        with pytest.raises(InputError, match=rf"target_prior: .*{message}"):
            adjust_logits(logits, good, prior)
        with pytest.raises(InputError, match=rf"target_prior: .*{message}"):
            fold_logit_adjustment(LinearClassifier(4, 3), ClassCounts((3, 2, 1)), target_prior=prior)


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_a_temperature_below_zero_or_not_finite_is_named(temperature):
    with pytest.raises(InputError, match="temperature: expected a finite number at least 0"):
        adjust_logits(torch.zeros(1, C), COUNTS.prior, temperature=temperature)
    with pytest.raises(InputError, match="temperature: expected a finite number at least 0"):
        fold_logit_adjustment(LinearClassifier(DIM, C), COUNTS, temperature=temperature)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [LinearClassifier, CosineClassifier])
def test_features_of_any_precision(kind, dtype):
    classifier, x = kind(DIM, C), normal(17, 4, DIM).half()
    z, _ = log_prior_components(x.to(dtype), classifier, COUNTS)
    assert_close(z, log_prior_components(x.float(), classifier, COUNTS)[0], 1e-2)


def test_wrong_classifiers_counts_and_features_are_named():
    linear, x = LinearClassifier(DIM, C).double(), normal(16, 4, DIM)
    with (
        unchecked(),
        pytest.raises(InputError, match=r"classifier: expected one that is one matrix .*got MlpClassifier"),
    ):
        fold_logit_adjustment(MlpClassifier(DIM, C), COUNTS)
    for call in (fold_logit_adjustment, lambda *given: log_prior_components(x, *given)):
        with pytest.raises(InputError, match="counts: expected 7 classes, got 2"):
            call(linear, ClassCounts((3, 1)))
    x[2, 1] = math.nan
    with pytest.raises(InputError, match=r"features: expected finite numbers, .*first: row 2"):
        log_prior_components(x, linear, COUNTS)
