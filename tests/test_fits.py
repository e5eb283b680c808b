"""What holds for every classifier fitted to features, and what wrong input is told."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from causal_oracles import assert_close, unchecked
from decoupling_oracles import DIM, linear, norm_case, normal, properties, seeds, some_labels
from tailwise import ClassCounts, InputError
from tailwise.adjust import (
    class_means,
    fit_crt,
    fit_lws,
    fit_ncm,
    fold_linear,
    fold_mean_direction,
    fold_tau_norm,
    learn_norm_power,
    relearn,
    sweep_norm_power,
    tau_norm_components,
    tau_norm_weight,
)
from tailwise.classifiers import CausalClassifier, CosineClassifier, LinearClassifier, MlpClassifier

# ---- every adjuster


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
    with torch.inference_mode():
        assert torch.equal(FITS[name](x.clone(), y.clone(), 4).weight, expected.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("name", FITS)
def test_features_of_other_precisions(name, dtype):
    """Stored features may be halves or doubles; the classifier that LWS is given stays in float32."""
    x, y = normal(77, 12, DIM, dtype=torch.float32).half().float(), some_labels(77, 12, 4)
    fits = {**FITS, "lws": lambda x, y, c: fit_lws(x, y, linear(70, c, DIM, torch.float32))}
    expected = fits[name](x, y, 4)
    assert_close(fits[name](x.to(dtype), y, 4)(x.to(dtype)), expected(x), 1e-2)


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


# ---- wrong input


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
        lambda: fold_mean_direction(other, x),
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
    never = z.clone()
    never[:, 1] = -math.inf
    with pytest.raises(InputError, match="labels: expected classes whose logits are finite, got one that is never"):
        learn_norm_power((never, norms), y)
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
