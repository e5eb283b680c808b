"""The normalized classifiers: formulas, limits, symmetry, degenerate and wrong input, gradients."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from causal_oracles import (
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
    dot,
    draw,
    head,
    length,
    oracle_average,
    oracle_logits,
    rows,
    unchecked,
)
from tailwise import InputError
from tailwise.classifiers import (
    FoldedClassifier,
    LinearClassifier,
    MlpClassifier,
    ScaledClassifier,
    capsule_logits,
    causal_logits,
    cosine_logits,
    normalized_logits,
)
from tailwise.classifiers.functional import scale_weight

FUNCTIONS = {"causal": causal_logits, "cosine": cosine_logits, "capsule": capsule_logits}
DEFAULT_HEADS = {"causal": 2, "cosine": 1, "capsule": 1}

properties = settings(max_examples=25, deadline=None, database=None)


# ------------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("kind", HYPERPARAMETERS)
def test_logits_follow_equation_7(kind, num_heads, dtype):
    for num_classes in CLASS_COUNTS:
        for num_rows in BATCH_SIZES:
            x, w, _ = draw(11 * num_heads + num_classes, num_rows, num_classes, num_heads, dtype)
            expected = oracle_logits(x, w, num_heads=num_heads, **HYPERPARAMETERS[kind])
            actual = normalized_logits(x, w, num_heads=num_heads, **HYPERPARAMETERS[kind])
            assert actual.dtype is dtype
            assert_close(actual, expected, TOLERANCE[dtype])


def test_logits_worked_out_by_hand():
    # head 1: 3 / ((1 + 1) 5) = 0.3; head 2: 2 / ((1 + 1) 2) = 0.5; 10 / 2 * (0.3 + 0.5) = 4
    x = torch.tensor([[3.0, 4.0, 0.0, 2.0]], dtype=torch.float64)
    w = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    assert causal_logits(x, w, num_heads=2, tau=10.0, gamma=1.0).item() == pytest.approx(4)
    # head 1: 3 / (5 + 1) = 1/2; head 2: 2 / (2 + 1) = 2/3
    assert capsule_logits(x, w, num_heads=2, tau=10.0).item() == pytest.approx(5 * (1 / 2 + 2 / 3))


@pytest.mark.parametrize("kind", MODULES)
def test_defaults_are_those_of_the_paper(kind):
    x, w, _ = draw(5, 5, 7, 1)
    classifier = MODULES[kind](DIM, 7).double()
    hyper = {"num_heads": DEFAULT_HEADS[kind], **HYPERPARAMETERS[kind]}
    assert_close(FUNCTIONS[kind](x, w), oracle_logits(x, w, **hyper), 1e-10)
    for _ in range(2):
        assert_close(classifier(x), oracle_logits(x, classifier.weight, **hyper), 1e-10)
    assert_close(classifier.average.value, oracle_average([x, x], momentum=0.9), 1e-10)


def test_linear_is_a_product_with_or_without_a_bias():
    (x,) = batches(6, 5)
    linear, no_bias = LinearClassifier(DIM, 7).double(), LinearClassifier(DIM, 7, bias=False).double()
    assert_close(linear(x), x @ linear.weight.T + linear.bias, 1e-12)
    assert_close(no_bias(x), x @ no_bias.weight.T, 1e-12)
    assert [name for name, _ in no_bias.named_parameters()] == ["weight"]


def oracle_folded(features, weight, bias, center, *, num_heads, norm):
    """weight . norm(x - center) + bias, the norm head by head: 0, x_k / |x_k| or x_k / (|x_k| + 1)."""
    out = []
    for x in rows(features):
        x, divided = [v - g for v, g in zip(x, rows(center), strict=True)], []
        for k in range(num_heads):
            x_k = head(x, k, num_heads)
            by = {"none": 1.0, "unit": length(x_k) or 1.0, "capsule": length(x_k) + 1}[norm]
            divided += [v / by for v in x_k]
        out.append([dot(divided, w) + b for w, b in zip(rows(weight), rows(bias), strict=True)])
    return out


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("norm", ["none", "unit", "capsule"])
def test_folded_follows_its_formula(norm, num_heads, dtype):
    x, w, _ = draw(7, 5, 3, 1, dtype)
    bias, center = w[:, 0] + 1, x[4] + 0.5
    hyper = {"num_heads": num_heads, "norm": norm}
    for b in (bias, None):
        for g in (center, None):
            expected = oracle_folded(x, w, bias * (b is not None), center * (g is not None), **hyper)
            logits = FoldedClassifier(w, bias=b, center=g, **hyper)(x)
            assert logits.dtype is dtype
            assert_close(logits, expected, TOLERANCE[dtype])


def test_folded_without_a_norm_is_linear_and_nothing_of_it_is_trained():
    x, w, _ = draw(8, 5, 3, 1)
    bias, center = w[:, 0] + 1, x[4] + 0.5
    folded = FoldedClassifier(w, bias=bias)
    assert torch.equal(folded(x), F.linear(x, w, bias))
    assert torch.equal(FoldedClassifier(w)(x), F.linear(x, w))
    assert torch.equal(FoldedClassifier(w, center=center)(x), F.linear(x - center, w))
    assert not list(FoldedClassifier(w.requires_grad_(), bias=bias, center=center).parameters())
    assert not FoldedClassifier(w, bias=bias, center=center)(x).requires_grad


def test_a_class_with_a_bias_of_minus_infinity_is_never_predicted():
    x, w, _ = draw(8, 5, 3, 1)
    logits = FoldedClassifier(w, bias=torch.tensor([0.0, -math.inf, 0.0], dtype=torch.float64))(x)
    assert logits.isinf().tolist() == [[False, True, False]] * 5
    assert torch.equal(logits.argmax(1), logits[:, [0, 2]].argmax(1) * 2)


def test_the_optional_tensors_of_folded_travel_in_its_state():
    x, w, _ = draw(9, 5, 3, 1)
    for optional in ({}, {"bias": w[:, 0]}, {"center": x[4]}, {"bias": w[:, 0], "center": x[4]}):
        folded = FoldedClassifier(w, **optional)
        assert sorted(folded.state_dict()) == sorted(["weight", *optional])
        blank = FoldedClassifier(w * 0, **{name: value * 0 for name, value in optional.items()})
        blank.load_state_dict(folded.state_dict())
        assert torch.equal(blank(x), folded(x))


def test_scaled_multiplies_the_logits_of_each_class():
    x, w, _ = draw(10, 5, 3, 1)
    bias, scale = w[:, 0] + 1, torch.tensor([2.0, -0.5, 0.0], dtype=torch.float64)
    for b in (bias, None):
        classifier = ScaledClassifier(w, b)
        assert torch.equal(classifier(x), F.linear(x, w, b))  # s starts at 1
        classifier.scale.data.copy_(scale)
        logits = [
            [
                s * (dot(row, w_c) + (b is not None) * b_c)
                for s, w_c, b_c in zip(*map(rows, (scale, w, bias)), strict=True)
            ]
            for row in rows(x)
        ]
        assert_close(classifier(x), logits, 1e-12)


def test_scale_alone_is_a_parameter_of_scaled():
    x, w, _ = draw(10, 5, 3, 1)
    kept = w.clone()
    classifier = ScaledClassifier(w.requires_grad_(), w[:, 0])
    assert [name for name, _ in classifier.named_parameters()] == ["scale"]
    assert sorted(name for name, _ in classifier.named_buffers()) == ["bias", "weight"]
    assert [name for name, _ in ScaledClassifier(w).named_buffers()] == ["weight"]
    classifier(x).sum().backward()
    assert_close(classifier.scale.grad, F.linear(x, w, w[:, 0]).sum(0), 1e-12)
    assert w.grad is None
    with torch.no_grad():
        w.mul_(-3)  # a copy does not follow
    assert torch.equal(classifier.weight, kept)
    assert torch.equal(classifier.bias, kept[:, 0])


@pytest.mark.parametrize("hidden", [None, 5])
@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_mlp_is_linear_layers_with_relu_between(num_layers, hidden):
    (x,) = batches(11, 6)
    classifier = MlpClassifier(DIM, 7, num_layers=num_layers, hidden_features=hidden).double()
    tensors = list(classifier.parameters())
    assert len(tensors) == 2 * num_layers
    widths = [DIM, *[hidden or DIM] * (num_layers - 1), 7]
    expected = rows(x)
    for i, (weight, bias) in enumerate(zip(tensors[::2], tensors[1::2], strict=True)):
        assert weight.shape == (widths[i + 1], widths[i])
        layer = list(zip(rows(weight), rows(bias), strict=True))
        expected = [[dot(w, row) + b for w, b in layer] for row in expected]
        if i < num_layers - 1:
            expected = [[max(v, 0.0) for v in row] for row in expected]
    assert_close(classifier(x), expected, 1e-12)


def test_mlp_has_two_layers_as_wide_as_the_features_unless_told():
    assert [tuple(leaf.shape) for leaf in MlpClassifier(8, 3).parameters()] == [(8, 8), (8,), (3, 8), (3,)]


@pytest.mark.parametrize("wrong", [{"num_layers": 0}, {"num_layers": 1.5}, {"hidden_features": 0}])
def test_wrong_sizes_of_mlp_are_refused(wrong):
    with unchecked(), pytest.raises(InputError, match=next(iter(wrong))):
        MlpClassifier(8, 3, **wrong)


@pytest.mark.parametrize("make", [MlpClassifier, LinearClassifier, lambda d, c: ScaledClassifier(torch.zeros(c, d))])
@pytest.mark.parametrize("shape", [(4, DIM + 1), (DIM,), (2, 3, DIM)], ids=str)
def test_features_of_another_shape_are_refused(make, shape):
    with unchecked(), pytest.raises(InputError, match="features: expected shape"):
        make(DIM, 3)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2,), (4,), (1,), (), (3, 1)], ids=str)
@pytest.mark.parametrize("name", ["bias", "center"])
def test_a_bias_or_center_of_another_size_is_refused(name, shape):
    with unchecked(), pytest.raises(InputError, match=f"{name}: expected"):
        FoldedClassifier(torch.zeros(3, DIM), **{name: torch.zeros(shape)})


@pytest.mark.parametrize("shape", [(2,), (4,), (1,), (), (3, 1)], ids=str)
def test_scaled_refuses_a_bias_of_another_size(shape):
    with unchecked(), pytest.raises(InputError, match="bias: expected"):
        ScaledClassifier(torch.zeros(3, DIM), torch.zeros(shape))


@pytest.mark.parametrize("make", [*MODULES.values(), LinearClassifier])
def test_weights_start_uniform_within_one_over_root_of_the_width(make):
    weight = make(64, 1000).weight
    assert 0.12 < weight.abs().max() <= 1 / math.sqrt(64)
    assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * 64), rel=0.02)


# ---------------------------------------------------------------------------------------------- limits, symmetry


def test_one_head_without_gamma_is_the_cosine():
    x, w, _ = draw(4, 5, 7, 1)
    expected = 16 * F.cosine_similarity(x[:, None], w[None], dim=2)
    assert_close(causal_logits(x, w, num_heads=1, gamma=0.0), expected, 1e-12)
    assert_close(cosine_logits(x, w), expected, 1e-12)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(("dtype", "scale", "tolerance"), SCALES, ids=str)
def test_features_of_any_scale(dtype, scale, tolerance, kind):
    x, w, _ = draw(9, 5, 3, 2)
    x, w = (x.clamp(-3, 3) * scale).to(dtype).requires_grad_(), w.to(dtype).requires_grad_()
    logits = normalized_logits(x, w, num_heads=2, **HYPERPARAMETERS[kind])
    assert_close(logits, oracle_logits(x, w, num_heads=2, **HYPERPARAMETERS[kind]), tolerance)
    assert_finite_gradients(logits, x, w)


@pytest.mark.parametrize("num_heads", HEADS)
def test_scale_of_features_changes_nothing(num_heads):
    x, w, _ = draw(10, 5, 7, num_heads)
    expected = causal_logits(x, w, num_heads=num_heads)
    scale = torch.tensor([[1e-8], [1e-3], [1.0], [1e3], [1e8]], dtype=torch.float64)
    assert_close(causal_logits(x * scale, w, num_heads=num_heads), expected, 1e-10)


@pytest.mark.parametrize("num_heads", HEADS)
def test_scale_of_weights_matters_only_beside_gamma(num_heads):
    x, w, _ = draw(10, 5, 7, num_heads)
    expected = cosine_logits(x, w, num_heads=num_heads)
    assert_close(cosine_logits(x, w * 1e-6, num_heads=num_heads), expected, 1e-10)
    assert_close(causal_logits(x, w * 1e10, num_heads=num_heads), expected, 1e-10)
    assert causal_logits(x, w * 1e-6, num_heads=num_heads).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("num_heads", HEADS)
def test_capsule_of_long_features_is_the_cosine(num_heads):
    x, w, _ = draw(12, 5, 7, num_heads)
    expected = cosine_logits(x, w, num_heads=num_heads)
    assert_close(capsule_logits(x * 1e8, w, num_heads=num_heads), expected, 1e-7)


@properties
@given(seed=st.integers(0, 10**6), order=st.permutations(range(7)), kind=st.sampled_from(list(HYPERPARAMETERS)))
def test_classes_in_another_order_give_the_same_logits_in_that_order(seed, order, kind):
    x, w, _ = draw(seed, 4, 7, 2)
    logits = normalized_logits(x, w, num_heads=2, **HYPERPARAMETERS[kind])
    assert_close(normalized_logits(x, w[order], num_heads=2, **HYPERPARAMETERS[kind]), logits[:, order], 1e-12)


@properties
@given(seed=st.integers(0, 10**6), num_rows=st.integers(1, 9), kind=st.sampled_from(list(HYPERPARAMETERS)))
def test_a_batch_is_the_stack_of_its_examples(seed, num_rows, kind):
    x, w, _ = draw(seed, num_rows, 3, 2)
    singles = [normalized_logits(row[None], w, num_heads=2, **HYPERPARAMETERS[kind]) for row in x]
    assert_close(normalized_logits(x, w, num_heads=2, **HYPERPARAMETERS[kind]), torch.cat(singles), 1e-12)


# ------------------------------------------------------------------------------------- degenerate and wrong input


@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_has_finite_logits_and_gradients(case, kind, num_heads):
    x, w = (t.clone().requires_grad_() for t in DEGENERATE[case])
    logits = normalized_logits(x, w, num_heads=num_heads, **HYPERPARAMETERS[kind])
    assert_close(logits, oracle_logits(x, w, num_heads=num_heads, **HYPERPARAMETERS[kind]), 1e-10)
    assert_finite_gradients(logits, x, w)


@pytest.mark.parametrize("make", MODULES.values())
def test_heads_that_do_not_divide_the_features_are_named_in_the_error(make):
    with pytest.raises(InputError, match="num_heads 5 and in_features 12"):
        make(12, 3, num_heads=5)


@pytest.mark.parametrize("wrong", [{"num_heads": 5}, {"num_heads": 0}, {"tau": 0.0}, {"tau": -1.0}, {"gamma": -1e-3}])
@pytest.mark.parametrize("kind", MODULES)
def test_wrong_hyperparameters_are_refused(kind, wrong):
    x, w, _ = draw(70, 4, 3, 1)
    with pytest.raises(InputError):
        normalized_logits(x, w, **{"num_heads": 2, **HYPERPARAMETERS[kind], **wrong})
    if "gamma" in wrong and kind != "causal":
        return  # cosine and capsule have no gamma
    with pytest.raises(InputError):
        FUNCTIONS[kind](x, w, **wrong)
    with pytest.raises(InputError):
        MODULES[kind](DIM, 3, **wrong)


def test_a_folded_classifier_copies_its_weight_and_refuses_wrong_settings():
    x, w, _ = draw(71, 4, 3, 1)
    folded = FoldedClassifier(w, num_heads=2, norm="unit")
    before = folded(x)
    w.zero_()
    assert torch.equal(folded(x), before)
    for wrong in ({"num_heads": 5}, {"num_heads": 0}, {"norm": "units"}):
        with unchecked(), pytest.raises(InputError):
            FoldedClassifier(w, **{"num_heads": 2, "norm": "unit", **wrong})


@pytest.mark.parametrize("make", [*MODULES.values(), LinearClassifier, MlpClassifier])
@pytest.mark.parametrize("sizes", [(0, 3), (12, 0), (-2, 3)])
def test_sizes_below_one_are_refused(make, sizes):
    with pytest.raises(InputError):
        make(*sizes)


# ------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("kind", MODULES)
def test_gradients_are_those_of_the_formula(kind):
    x, w, _ = draw(80, 2, 3, 2)
    leaves = (x.requires_grad_(), w.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: normalized_logits(a, b, num_heads=2, **HYPERPARAMETERS[kind]), leaves)


@pytest.mark.parametrize("kind", MODULES)
def test_gradients_do_not_pass_through_the_average(kind):
    classifier = MODULES[kind](DIM, 3).double()
    (x,) = batches(81, 4)
    x.requires_grad_()
    logits = FUNCTIONS[kind](x, classifier.weight)
    expected = torch.autograd.grad(logits.square().sum(), (x, classifier.weight))
    actual = torch.autograd.grad(classifier.train()(x).square().sum(), (x, classifier.weight))
    for left, right in zip(actual, expected, strict=True):
        assert_close(left, right, 1e-12)


# ---- the scaled weight has a gradient written by hand


def plain_scaled_weight(weight, num_heads, gamma):
    """As its equation reads, with autograd's own gradient."""
    w = weight.view(len(weight), num_heads, -1)
    return w / (w.norm(dim=-1, keepdim=True) + gamma)


@pytest.mark.parametrize("gamma", [0.0, 1 / 32, 3.0])
def test_gradients_of_the_scaled_weight_of_both_orders(gamma):
    torch.manual_seed(0)
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    ours = partial(scale_weight, num_heads=2, gamma=gamma)
    assert torch.autograd.gradcheck(ours, weight)
    assert torch.autograd.gradgradcheck(ours, weight)
    scores = torch.randn(3, 2, 2, dtype=torch.float64)
    (own,) = torch.autograd.grad((ours(weight) * scores).sum(), weight)
    (reference,) = torch.autograd.grad((plain_scaled_weight(weight, 2, gamma) * scores).sum(), weight)
    torch.testing.assert_close(own, reference)


def test_a_zero_weight_has_a_finite_gradient():
    weight = torch.zeros(2, 4, requires_grad=True)
    scale_weight(weight, 2, 0.0).sum().backward()
    assert torch.equal(weight.grad, torch.ones(2, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_logits_and_gradients_are_those_of_float32_rounded(dtype):
    torch.manual_seed(0)
    features, weight = torch.randn(7, 8), torch.randn(5, 8, requires_grad=True)
    twin = weight.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        half = causal_logits(features, weight)
    whole = causal_logits(features, twin)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), whole, rtol=0.02, atol=0.1)
    half.float().logsumexp(1).sum().backward()
    whole.logsumexp(1).sum().backward()
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(weight.grad, twin.grad, rtol=0.05, atol=0.05)


def test_gradients_for_each_sample_by_vmap():
    torch.manual_seed(0)
    features, weight = torch.randn(6, 8), torch.randn(5, 8)

    def loss(weight, x):
        return causal_logits(x[None], weight).logsumexp(1).sum()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, features)
    for x, gradient in zip(features, together, strict=True):
        torch.testing.assert_close(gradient, torch.func.grad(loss)(weight, x))
