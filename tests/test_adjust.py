"""Total direct effect (Eq. 8) in all its forms, and background-exempted inference (Eq. 9)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_oracles import (
    ALPHAS,
    BATCH_SIZES,
    CLASS_COUNTS,
    DEGENERATE,
    DIM,
    HEADS,
    HYPERPARAMETERS,
    MODULES,
    SCALES,
    TOLERANCE,
    assert_close,
    assert_finite_gradients,
    batches,
    draw,
    oracle_cosine,
    oracle_direction,
    oracle_exempted,
    oracle_logits,
    oracle_tde,
    trained,
    unchecked,
)
from tailwise import InputError
from tailwise.adjust import background_exempted, fold_tde, head_cosine, tde, tde_components, tde_logits
from tailwise.classifiers import CausalClassifier, LinearClassifier
from tailwise.classifiers.functional import scale_features


def from_components(features, classifier, alpha):
    a, b = tde_components(features, classifier)
    return a - alpha * b


def folded(features, classifier, alpha):
    return fold_tde(classifier, alpha)(features)


FORMS = (tde, from_components, folded)  # three ways to Eq. 8 of a trained classifier

properties = settings(max_examples=25, deadline=None, database=None)
seeds = st.integers(0, 10**6)


def assert_tde(actual, x, weight, direction, alpha, hyper, tolerance):
    """Eq. 8 to within a part of the largest logit before or after: where the two cancel, no digit is left."""
    expected = oracle_tde(x, weight, direction, alpha, **hyper)
    assert_close(actual, expected, tolerance, beside=oracle_logits(x, weight, **hyper))


# ---------------------------------------------------------------------------------------- Eq. 8 as a function


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("kind", HYPERPARAMETERS)
def test_tde_logits_follow_equation_8(kind, num_heads, dtype):
    hyper = {"num_heads": num_heads, **HYPERPARAMETERS[kind]}
    for num_classes in CLASS_COUNTS:
        for num_rows in BATCH_SIZES:
            x, w, d = draw(23 * num_heads + num_classes, num_rows, num_classes, num_heads, dtype)
            for alpha in ALPHAS:
                actual = tde_logits(x, w, d, alpha, **hyper)
                assert actual.dtype is dtype
                assert_tde(actual, x, w, d, alpha, hyper, TOLERANCE[dtype])


def test_tde_logits_worked_out_by_hand():
    x = torch.tensor([[3.0, 4.0, 0.0, 2.0]], dtype=torch.float64)
    w = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    d = torch.tensor([[0.6, 0.8], [1.0, 0.0]], dtype=torch.float64)
    # head 1: 3 / (2 * 5) = 0.3, cos 1, w.d / 2 = 0.3; head 2: 2 / (2 * 2) = 0.5, cos 0; 10 / 2 * (0.3 - 2 * 0.3 + 0.5)
    assert tde_logits(x, w, d, 2.0, num_heads=2, tau=10.0, gamma=1.0).item() == pytest.approx(1)
    # capsule, head 1: 3 / (5 + 1) - 2 * 1 * 5 * 0.6 / (5 + 1) = 1/2 - 1; head 2: 2 / (2 + 1)
    actual = tde_logits(x, w, d, 2.0, num_heads=2, tau=10.0, gamma=0.0, norm="capsule")
    assert actual.item() == pytest.approx(5 * (1 / 2 - 1 + 2 / 3))


@properties
@given(
    seed=seeds,
    num_rows=st.integers(1, 6),
    num_classes=st.integers(1, 9),
    num_heads=st.integers(1, 5),
    width=st.integers(1, 5),
    tau=st.floats(0.1, 50),
    gamma=st.floats(0, 2),
    alpha=st.floats(-2, 5),
    norm=st.sampled_from(["unit", "capsule"]),
)
def test_any_shape_and_setting(seed, num_rows, num_classes, num_heads, width, tau, gamma, alpha, norm):
    x, w, d = draw(seed, num_rows, num_classes, num_heads, dim=num_heads * width)
    hyper = {"num_heads": num_heads, "tau": tau, "gamma": gamma, "norm": norm}
    assert_tde(tde_logits(x, w, d, alpha, **hyper), x, w, d, alpha, hyper, 1e-10)


@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("kind", MODULES)
def test_orthogonal_or_zero_direction_changes_nothing(kind, num_heads):
    x, w, d = draw(6, 5, 7, num_heads)
    hyper = {"num_heads": num_heads, **HYPERPARAMETERS[kind]}
    parts = x.view(5, num_heads, -1)
    orthogonal = (parts - (parts * d).sum(2, keepdim=True) * d).flatten(1)
    for alpha in ALPHAS:
        assert_close(tde_logits(orthogonal, w, d, alpha, **hyper), oracle_logits(orthogonal, w, **hyper), 1e-12)
        assert_close(tde_logits(x, w, d * 0, alpha, **hyper), oracle_logits(x, w, **hyper), 1e-12)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(("dtype", "scale", "tolerance"), SCALES, ids=str)
def test_features_of_any_scale(dtype, scale, tolerance, kind):
    x, w, d = draw(16, 5, 3, 2)
    x, w, d = (x.clamp(-3, 3) * scale).to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), d.to(dtype)
    hyper = {"num_heads": 2, **HYPERPARAMETERS[kind]}
    logits = tde_logits(x, w, d, 1.5, **hyper)
    assert_tde(logits, x, w, d, 1.5, hyper, tolerance)
    assert_finite_gradients(logits, x, w)


@pytest.mark.parametrize("kind", MODULES)
def test_gradients_are_those_of_the_formula(kind):
    x, w, d = draw(80, 2, 3, 2)
    hyper = {"num_heads": 2, **HYPERPARAMETERS[kind]}
    leaves = (x.requires_grad_(), w.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: tde_logits(a, b, d, 1.5, **hyper), leaves)


@properties
@given(seed=seeds, order=st.permutations(range(7)), kind=st.sampled_from(list(HYPERPARAMETERS)), alpha=st.floats(-1, 4))
def test_classes_in_another_order_give_the_same_results_in_that_order(seed, order, kind, alpha):
    x, w, d = draw(seed, 4, 7, 2)
    hyper = {"num_heads": 2, **HYPERPARAMETERS[kind]}
    plain, adjusted = oracle_logits(x, w, **hyper), tde_logits(x, w, d, alpha, **hyper)
    assert_close(tde_logits(x, w[order], d, alpha, **hyper), adjusted[:, order], 1e-12, beside=plain)
    y, z = draw_logits(seed)
    expected = background_exempted(y, z, background=2)[:, order]
    assert_close(background_exempted(y[:, order], z[:, order], background=order.index(2)), expected, 1e-12)


@properties
@given(seed=seeds, num_rows=st.integers(1, 9), kind=st.sampled_from(list(HYPERPARAMETERS)), alpha=st.floats(-1, 4))
def test_a_batch_is_the_stack_of_its_examples(seed, num_rows, kind, alpha):
    x, w, d = draw(seed, num_rows, 3, 2)
    hyper = {"num_heads": 2, **HYPERPARAMETERS[kind]}
    singles = [tde_logits(row[None], w, d, alpha, **hyper) for row in x]
    plain = oracle_logits(x, w, **hyper)
    assert_close(tde_logits(x, w, d, alpha, **hyper), torch.cat(singles), 1e-12, beside=plain)
    y, z = draw_logits(seed, num_rows)
    singles = [background_exempted(y[i : i + 1], z[i : i + 1]) for i in range(num_rows)]
    assert_close(background_exempted(y, z), torch.cat(singles), 1e-12)


# ------------------------------------------------------------------------------- Eq. 8 of a trained classifier


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("kind", MODULES)
def test_every_form_follows_equation_8(kind, num_heads, dtype, form):
    hyper = {"num_heads": num_heads, **HYPERPARAMETERS[kind]}
    for num_classes in CLASS_COUNTS:
        classifier = trained(kind, num_heads, num_classes, dtype)
        direction = oracle_direction(classifier.average.value, num_heads)
        for x in batches(50, *BATCH_SIZES, dtype=dtype):
            for alpha in ALPHAS:
                actual = form(x, classifier, alpha)
                assert_tde(actual, x, classifier.weight, direction, alpha, hyper, TOLERANCE[dtype])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_takes_the_settings_of_the_classifier(form):
    classifier = CausalClassifier(DIM, 7, num_heads=4, tau=5.0, gamma=0.5).double()
    (x,) = batches(51, 5)
    classifier(x)
    hyper = {"num_heads": 4, "tau": 5.0, "gamma": 0.5, "norm": "unit"}
    assert_tde(form(x, classifier, 1.5), x, classifier.weight, oracle_direction(x.mean(0), 4), 1.5, hyper, 1e-10)


@pytest.mark.parametrize("zeros", [0, DIM // 2, DIM], ids=("average", "half an average", "no average"))
@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("kind", MODULES)
def test_degenerate_input_has_finite_results_and_gradients(kind, case, zeros):
    x, weight = DEGENERATE[case]
    x = x.clone().requires_grad_()
    classifier = trained(kind, num_classes=len(weight))
    classifier.weight.data.copy_(weight)
    classifier.average.value[:zeros] = 0
    direction = oracle_direction(classifier.average.value, 2)
    hyper = {"num_heads": 2, **HYPERPARAMETERS[kind]}
    for form in FORMS:
        assert_tde(form(x, classifier, 1.5), x, weight, direction, 1.5, hyper, 1e-10)
    assert_finite_gradients(tde(x, classifier, 1.5), x, classifier.weight)
    assert_finite_gradients(from_components(x, classifier, 1.5), x, classifier.weight)
    assert_finite_gradients(folded(x, classifier, 1.5), x)
    assert_close(head_cosine(x, classifier), oracle_cosine(x, direction, 2), 1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", MODULES)
def test_every_form_in_half_precision_on_large_features(kind, dtype, form):
    classifier = trained(kind, dtype=torch.float32).to(dtype)
    x = (draw(17, 4, 1, 1)[0] * 300).to(dtype)
    x[1, : DIM // 2] = 0
    x.requires_grad_()
    hyper = {"num_heads": 2, **HYPERPARAMETERS[kind]}
    direction = oracle_direction(classifier.average.value, 2)
    logits = form(x, classifier, 1.5)
    assert_tde(logits, x, classifier.weight, direction, 1.5, hyper, 5e-2)
    assert_finite_gradients(logits, x)


PRECISIONS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("own", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", MODULES)
def test_features_of_any_precision_give_logits_of_the_classifiers(kind, own, form):
    """numpy's floats are doubles, stored features often halves."""
    classifier = trained(kind, dtype=torch.float32).to(own)
    x = draw(18, 4, 1, 1)[0].bfloat16()
    expected = form(x.to(own), classifier, 1.5)
    assert expected.dtype == own
    for dtype in PRECISIONS:
        actual = form(x.to(dtype), classifier, 1.5)
        assert actual.dtype == own
        assert_close(actual, expected, 5e-2 if torch.bfloat16 in (own, dtype) else 1e-2)
        assert_close(head_cosine(x.to(dtype), classifier), head_cosine(x.to(own), classifier), 1e-2)


@pytest.mark.parametrize("own", PRECISIONS, ids=str)
def test_a_direction_in_float32_suits_any_precision(own):
    x, weight, direction = (part.to(own) for part in draw(19, 4, 5, 2))
    hyper = {"num_heads": 2, **HYPERPARAMETERS["causal"]}
    actual = tde_logits(x, weight, direction.float(), 1.5, **hyper)
    assert actual.dtype == own
    assert_tde(actual, x, weight, direction, 1.5, hyper, 5e-2)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_autocast_decides_in_what_a_folded_classifier_multiplies(dtype):
    classifier, x = fold_tde(trained("causal", dtype=torch.float32), 1.5), draw(18, 4, 1, 1)[0].to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier(x)
    normalized = scale_features(x, 2, "unit").flatten(1).bfloat16()
    assert torch.equal(logits, torch.nn.functional.linear(normalized, classifier.weight.bfloat16()))


@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("kind", MODULES)
def test_head_cosine_is_that_of_equation_8(kind, num_heads):
    classifier = trained(kind, num_heads)
    (x,) = batches(52, 5)
    direction = oracle_direction(classifier.average.value, num_heads)
    assert_close(head_cosine(x, classifier), oracle_cosine(x, direction, num_heads), 1e-10)


@pytest.mark.parametrize("kind", MODULES)
def test_no_form_moves_the_average_even_in_train_mode(kind):
    classifier = trained(kind).train()
    before = classifier.average.value.clone()
    (x,) = batches(53, 5)
    for form in FORMS:
        form(x, classifier, 1.5)
    head_cosine(x, classifier)
    assert torch.equal(classifier.average.value, before)
    assert classifier.training


@pytest.mark.parametrize("alpha", [0.0, 1.5])
@pytest.mark.parametrize("kind", MODULES)
def test_a_folded_classifier_is_a_copy_without_an_average(kind, alpha):
    classifier = trained(kind)
    (x,) = batches(54, 5)
    fold = fold_tde(classifier, alpha)
    before, weight = fold(x), classifier.weight.clone()
    assert torch.equal(fold.train()(x), before)
    assert list(fold.state_dict()) == ["weight"]
    fold.weight.zero_()
    assert torch.equal(classifier.weight, weight)
    fold = fold_tde(classifier, alpha)
    with torch.no_grad():
        classifier.weight.mul_(-3)
    classifier.train()(x * 7)
    assert torch.equal(fold(x), before)


def test_tde_needs_a_classifier_with_an_average():
    (x,), linear = batches(71, 4), LinearClassifier(DIM, 3).double()
    for form in FORMS:
        with unchecked(), pytest.raises(InputError):
            form(x, linear, 1.5)
    with unchecked(), pytest.raises(InputError):
        head_cosine(x, linear)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_and_alpha_must_be_finite(value):
    classifier = trained("causal")
    (x,) = batches(71, 4)
    for form in (tde, folded):
        with pytest.raises(InputError):
            form(x, classifier, value)
    x[3, 11] = value
    for form in (tde, from_components):
        with pytest.raises(InputError):
            form(x, classifier, 1.5)
    with pytest.raises(InputError):
        head_cosine(x, classifier)


@pytest.mark.parametrize("wrong", [{"num_heads": 5}, {"num_heads": 0}, {"tau": 0.0}, {"tau": -1.0}, {"gamma": -1e-3}])
def test_wrong_settings_of_tde_logits_are_refused(wrong):
    x, w, d = draw(70, 4, 3, 2)
    with pytest.raises(InputError):
        tde_logits(x, w, d, 1.5, **{"num_heads": 2, **HYPERPARAMETERS["causal"], **wrong})


# -------------------------------------------------------------------------------- background-exempted inference

BACKGROUNDS = (0, 3, 6, [2], [0, 6], [1, 3, 4], (5, 0), [1, 1, 4], [0, 1, 2, 3, 4, 5])


def draw_logits(seed, num_rows=5, num_classes=7, size=3.0):
    """Eq. 7 and Eq. 8, as far as Eq. 9 is concerned."""
    generator = torch.Generator().manual_seed(seed)
    y, z = size * torch.randn(2, num_rows, num_classes, generator=generator, dtype=torch.float64)
    return y, z


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("background", BACKGROUNDS, ids=str)
def test_background_exempted_follows_equation_9(background, dtype):
    for num_rows in BATCH_SIZES:
        y, z = (t.to(dtype) for t in draw_logits(60, num_rows))
        actual = background_exempted(y, z, background=background)
        assert (actual >= 0).all()
        assert_close(actual, oracle_exempted(y, z, background), TOLERANCE[dtype])
        assert_close(actual.sum(1), torch.ones(num_rows), TOLERANCE[dtype])


@properties
@given(
    seed=seeds,
    num_rows=st.integers(1, 6),
    num_classes=st.integers(2, 8),
    size=st.floats(0.01, 60),
    exempt=st.sets(st.integers(0, 6), min_size=1),
)
def test_any_background_of_any_logits(seed, num_rows, num_classes, size, exempt):
    exempt = sorted({c % (num_classes - 1) for c in exempt})  # the last class is never exempt
    y, z = draw_logits(seed, num_rows, num_classes, size)
    actual = background_exempted(y, z, background=exempt)
    assert_close(actual, oracle_exempted(y, z, exempt), 1e-12)
    assert_close(actual.sum(1), torch.ones(num_rows), 1e-12)


def test_background_is_the_first_class_unless_told():
    y, z = draw_logits(61)
    assert_close(background_exempted(y, z), oracle_exempted(y, z, 0), 1e-12)


def test_a_background_of_numpy_is_a_class():
    y, z = draw_logits(61)
    with unchecked():
        assert torch.equal(background_exempted(y, z, background=np.int64(2)), background_exempted(y, z, background=2))


def test_beside_the_background_nothing_is_left_where_all_else_is_masked():
    y = torch.tensor([[1.0, 2.0, -torch.inf]])
    assert_close(background_exempted(y, 2 * y, background=[0, 1]), y.softmax(1), 1e-6)


def test_equal_logits_or_all_classes_exempt_give_back_the_probabilities():
    y, z = draw_logits(63)
    assert_close(background_exempted(y, y, background=[0, 6]), y.softmax(1), 1e-12)
    assert_close(background_exempted(y, z, background=list(range(7))), y.softmax(1), 1e-12)
    assert_close(background_exempted(y[:, :1], z[:, :1]), torch.ones(5, 1), 1e-12)


@pytest.mark.parametrize("background", [0, 1, 2, [0, 2], [1, 2]], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_extreme_logits(dtype, background):
    values = (200.0, 46.0, 0.0, -200.0)  # the softmax of (46, 0) is 1 - 1e-20
    some = torch.cartesian_prod(*[torch.tensor(values, dtype=dtype)] * 3)[::9]
    y, z = some.repeat_interleave(len(some), dim=0), some.repeat(len(some), 1)
    actual = background_exempted(y, z, background=background)
    assert_close(actual, oracle_exempted(y, z, background), TOLERANCE[dtype])
    assert_close(actual.sum(1), torch.ones(len(y)), TOLERANCE[dtype])


def test_what_is_left_beside_a_sure_background_is_exact():
    # p_0 = 1 - 1e-20, q_0 = 1 - 1e-30: in floats Eq. 9 is 0 * q / 0; in truth the share of class 1 is 0.75e-20
    y = torch.tensor([[-math.log(1e-20), math.log(0.5), math.log(0.5)]], dtype=torch.float64)
    z = torch.tensor([[-math.log(1e-30), math.log(0.75), math.log(0.25)]], dtype=torch.float64)
    assert background_exempted(y, z)[0].tolist() == pytest.approx([1, 0.75e-20, 0.25e-20], rel=1e-10)


@pytest.mark.parametrize("background", [[0, 2], list(range(7))], ids=str)
def test_background_exempted_has_finite_gradients(background):
    y, z = (t.clone().requires_grad_() for t in draw_logits(66, size=100.0))
    background_exempted(y, z, background=background)[:, 1].sum().backward()
    assert y.grad.isfinite().all()
    assert z.grad is None or z.grad.isfinite().all()  # None: with every class exempt it has no part


def test_background_exempted_of_a_classifier():
    classifier = trained("causal")
    (x,) = batches(65, 5)
    hyper = {"num_heads": 2, **HYPERPARAMETERS["causal"]}
    direction = oracle_direction(classifier.average.value, 2)
    y = oracle_logits(x, classifier.weight, **hyper)
    z = oracle_tde(x, classifier.weight, direction, 1.5, **hyper)
    actual = background_exempted(classifier(x), tde(x, classifier, 1.5), background=6)
    assert_close(actual, oracle_exempted(y, z, 6), 1e-10)


@pytest.mark.parametrize("background", [7, 100, -1, -8, [0, 7], [], ()], ids=str)
def test_a_background_that_is_no_class_is_refused(background):
    with pytest.raises(InputError):
        background_exempted(*draw_logits(67), background=background)


@pytest.mark.parametrize("other", [(5, 6), (4, 7), (1, 7), (5, 1)], ids=str)
def test_background_exempted_refuses_logits_of_two_shapes(other):
    with unchecked(), pytest.raises(InputError):
        background_exempted(torch.zeros(5, 7), torch.zeros(other))
