"""Oracles for the causal classifiers and the total direct effect, written from the equations alone.

Every expected value here comes from Tang et al. 2020 (Eq. 5 to 9, Assumption 1, supplement B and C) as slow loops in
Python floats: one sample, one class, one head at a time. Nothing in this file was derived from the library's code.
"""

import contextlib
import copy
import decimal
import functools
import io
import json
import math
import os
import signal
import subprocess
import sys

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tailwise import InputError
from tailwise.adjust import (
    background_exempted,
    fold_tde,
    head_cosine,
    tde,
    tde_components,
    tde_logits,
)
from tailwise.classifiers import (
    CapsuleClassifier,
    CausalClassifier,
    CosineClassifier,
    FeatureAverage,
    FoldedClassifier,
    LinearClassifier,
    capsule_logits,
    causal_logits,
    cosine_logits,
    normalized_logits,
)

DIM = 12
HEADS = (1, 2, 4)
CLASS_COUNTS = (1, 3, 7)
BATCHES = (1, 5)
ALPHAS = (0.0, 1.0, 1.5, 3.0, -0.5)
TAU = 16.0
GAMMA = 1 / 32
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
DTYPES = (torch.float64, torch.float32)
NORMS = ("unit", "capsule")
MODULES = {"causal": CausalClassifier, "cosine": CosineClassifier, "capsule": CapsuleClassifier}

properties = settings(max_examples=25, deadline=None, database=None)
seeds = st.integers(0, 2**31 - 1)
heads_st = st.sampled_from(HEADS)
norms_st = st.sampled_from(NORMS)
sizes_st = st.integers(1, 6)


# ---------------------------------------------------------------------------------------------------- the oracles


def rows(values):
    """Any matrix as nested lists of Python floats (float64)."""
    if isinstance(values, torch.Tensor):
        values = values.detach().to(torch.float64).cpu().numpy()
    return np.asarray(values, dtype=np.float64).tolist()


def length(vector):
    return math.hypot(*vector)  # Euclidean norm, without overflow of the squares


def dot(left, right):
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def head(vector, k, num_heads):
    """The k-th of K equal groups of channels (text under Eq. 5)."""
    width = len(vector) // num_heads
    return vector[k * width : (k + 1) * width]


def cosine(left, right):
    """cos(x, d) of Eq. 8; a zero vector has no direction, hence no effect."""
    size = length(left) * length(right)
    return dot(left, right) / size if size > 0 else 0.0


def denominator(x_k, w_k, gamma, norm):
    """Eq. 7: (|w| + gamma) |x|. Supplement B, capsule: (|x| + 1) |w| (with gamma joined to |w| as in Eq. 7)."""
    if norm == "capsule":
        return (length(x_k) + 1.0) * (length(w_k) + gamma)
    return (length(w_k) + gamma) * length(x_k)


def oracle_logits(features, weight, num_heads, tau, gamma, norm="unit"):
    """Eq. 7 (unit) and the general normalized classifier of supplement B, its Eq. 1 (capsule)."""
    features, weight = rows(features), rows(weight)
    out = np.zeros((len(features), len(weight)))
    for i, x in enumerate(features):
        for c, w in enumerate(weight):
            total = 0.0
            for k in range(num_heads):
                x_k, w_k = head(x, k, num_heads), head(w, k, num_heads)
                below = denominator(x_k, w_k, gamma, norm)
                if below > 0:  # 0/0 is no evidence: nothing is added
                    total += dot(w_k, x_k) / below
            out[i, c] = tau / num_heads * total
    return out


def oracle_effect(features, weight, direction, num_heads, tau, gamma, norm="unit"):
    """What Eq. 8 takes away for alpha = 1: tau/K sum_k cos(x_k, d_k) w_k.d_k / (|w_k| + gamma).

    Capsule keeps its own denominator: tau/K sum_k cos(x_k, d_k) |x_k| w_k.d_k / ((|x_k| + 1) |w_k|).
    """
    features, weight, direction = rows(features), rows(weight), rows(direction)
    out = np.zeros((len(features), len(weight)))
    for i, x in enumerate(features):
        for c, w in enumerate(weight):
            total = 0.0
            for k in range(num_heads):
                x_k, w_k, d_k = head(x, k, num_heads), head(w, k, num_heads), direction[k]
                if norm == "capsule":
                    above = cosine(x_k, d_k) * length(x_k) * dot(w_k, d_k)
                    below = denominator(x_k, w_k, gamma, norm)
                else:
                    above = cosine(x_k, d_k) * dot(w_k, d_k)
                    below = length(w_k) + gamma
                if below > 0:
                    total += above / below
            out[i, c] = tau / num_heads * total
    return out


def oracle_tde(features, weight, direction, alpha, num_heads, tau, gamma, norm="unit"):
    """Eq. 8, written out in one piece per head; capsule: w.(x - alpha cos(x, d) |x| d) / ((|x| + 1) |w|)."""
    features, weight, direction = rows(features), rows(weight), rows(direction)
    out = np.zeros((len(features), len(weight)))
    for i, x in enumerate(features):
        for c, w in enumerate(weight):
            total = 0.0
            for k in range(num_heads):
                x_k, w_k, d_k = head(x, k, num_heads), head(w, k, num_heads), direction[k]
                if length(x_k) == 0 or length(w_k) == 0:
                    continue
                angle = cosine(x_k, d_k)
                if norm == "capsule":
                    left = [a - alpha * angle * length(x_k) * b for a, b in zip(x_k, d_k, strict=True)]
                    total += dot(w_k, left) / denominator(x_k, w_k, gamma, norm)
                else:
                    total += dot(w_k, x_k) / denominator(x_k, w_k, gamma, norm)
                    total -= alpha * angle * dot(w_k, d_k) / (length(w_k) + gamma)
            out[i, c] = tau / num_heads * total
    return out


def oracle_direction(value, num_heads):
    """Assumption 1: the unit vector of the average, one per head (Eq. 8 has d^k under its own hat)."""
    value = rows(value)
    out = []
    for k in range(num_heads):
        v_k = head(value, k, num_heads)
        size = length(v_k)
        out.append([a / size if size > 0 else 0.0 for a in v_k])
    return np.array(out)


def oracle_cosine(features, direction, num_heads):
    """cos(x_k, d_k) of Eq. 8, averaged over heads."""
    features, direction = rows(features), rows(direction)
    out = []
    for x in features:
        out.append(math.fsum(cosine(head(x, k, num_heads), direction[k]) for k in range(num_heads)) / num_heads)
    return np.array(out)


def oracle_average(steps, momentum, start=None):
    """Assumption 1: x_t = mu x_{t-1} + x_t, the new x_t the mean over the examples of step t. No (1 - mu)."""
    width = len(rows(steps[0])[0])
    value = [0.0] * width if start is None else list(start)
    for step in steps:
        batch = rows(step)
        for j in range(width):
            value[j] = momentum * value[j] + math.fsum(row[j] for row in batch) / len(batch)
    return np.array(value)


def oracle_exempted(logits, adjusted, background):
    """Eq. 9, literally, in 250 digits, so that even 1 - q_0 = 1e-170 is exact.

    p_i for the exempt classes; (1 - sum p_exempt) q_i / (1 - sum q_exempt) for the others.
    """
    exempt = {background} if isinstance(background, int) else set(background)
    out = []
    with decimal.localcontext() as context:
        context.prec = 250
        for y, z in zip(rows(logits), rows(adjusted), strict=True):
            p = [decimal.Decimal(v).exp() for v in y]
            q = [decimal.Decimal(v).exp() for v in z]
            p_sum, q_sum = sum(p), sum(q)
            p, q = [v / p_sum for v in p], [v / q_sum for v in q]
            p_kept = sum(p[c] for c in exempt)
            q_kept = sum(q[c] for c in exempt)
            out.append([float(p[c] if c in exempt else (1 - p_kept) * q[c] / (1 - q_kept)) for c in range(len(p))])
    return np.array(out)


# ------------------------------------------------------------------------------------------------------- helpers


def assert_close(actual, expected, tolerance, beside=0.0):
    """Largest error relative to the largest expected logit.

    `beside`: the logits of Eq. 7, where those of Eq. 8 may cancel (one example, one class: 1.18 - 1.20).
    """
    actual = np.asarray(rows(actual))
    expected = np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all(), actual
    if expected.size == 0:
        return
    scale = max(float(np.abs(expected).max()), float(np.abs(beside).max())) or 1.0
    error = float(np.abs(actual - expected).max()) / scale
    assert error <= tolerance, f"relative error {error:.3e} above {tolerance:.0e}"


def draw(seed, num_rows, num_classes, num_heads, dtype=torch.float64, dim=DIM):
    """Features with the offset of a real (post-ReLU-like) average, weights, and a unit direction per head."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64) + 0.4
    weight = 0.3 * torch.randn(num_classes, dim, generator=generator, dtype=torch.float64)
    direction = torch.randn(num_heads, dim // num_heads, generator=generator, dtype=torch.float64) + 0.3
    direction = direction / direction.norm(dim=1, keepdim=True)
    return features.to(dtype), weight.to(dtype), direction.to(dtype)


def gamma_of(norm):
    return 0.0 if norm == "capsule" else GAMMA


def settings_of(kind):
    """(norm, gamma) of the three classifiers: Eq. 7, supplement B cosine, supplement B capsule."""
    return {"causal": ("unit", GAMMA), "cosine": ("unit", 0.0), "capsule": ("capsule", 0.0)}[kind]


def build(kind, num_heads, num_classes, dtype=torch.float64, seed=0, average=True):
    """A classifier with random weights whose average has moved over three random batches."""
    generator = torch.Generator().manual_seed(seed)
    classifier = MODULES[kind](DIM, num_classes, num_heads=num_heads).to(dtype)
    with torch.no_grad():
        weight = 0.3 * torch.randn(num_classes, DIM, generator=generator, dtype=torch.float64)
        classifier.weight.copy_(weight)
    if average:
        classifier.train()
        for size in (4, 2, 5):
            batch = torch.randn(size, DIM, generator=generator, dtype=torch.float64) + 0.5
            classifier(batch.to(dtype))
    return classifier.eval()


def grads_are_finite(output, *leaves):
    assert torch.isfinite(output).all()
    grads = torch.autograd.grad(output.sum(), leaves, retain_graph=True, allow_unused=True)
    for leaf, grad in zip(leaves, grads, strict=True):
        assert grad is not None
        assert grad.shape == leaf.shape
        assert torch.isfinite(grad).all()
    labels = torch.arange(output.shape[0]) % output.shape[1]
    loss = F.cross_entropy(output.float() if output.dtype in (torch.float16, torch.bfloat16) else output, labels)
    assert torch.isfinite(loss)
    for grad in torch.autograd.grad(loss, leaves):
        assert torch.isfinite(grad).all()


# --------------------------------------------------------------------------- 1. every formula against its oracle


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", CLASS_COUNTS)
@pytest.mark.parametrize("num_heads", HEADS)
def test_logits_follow_equation_7(num_heads, num_classes, dtype):
    for num_rows in BATCHES:
        x, w, _ = draw(11 * num_heads + num_classes, num_rows, num_classes, num_heads, dtype)
        tolerance = TOLERANCE[dtype]
        for tau, gamma in ((16.0, 1 / 32), (8.0, 1 / 16), (1.0, 0.5), (30.0, 0.0)):
            expected = oracle_logits(x, w, num_heads, tau, gamma)
            assert_close(normalized_logits(x, w, num_heads=num_heads, tau=tau, gamma=gamma), expected, tolerance)
            assert_close(causal_logits(x, w, num_heads=num_heads, tau=tau, gamma=gamma), expected, tolerance)
        for tau in (16.0, 5.0):
            expected = oracle_logits(x, w, num_heads, tau, 0.0)
            assert_close(cosine_logits(x, w, num_heads=num_heads, tau=tau), expected, tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", CLASS_COUNTS)
@pytest.mark.parametrize("num_heads", HEADS)
def test_capsule_logits_follow_supplement_b(num_heads, num_classes, dtype):
    for num_rows in BATCHES:
        x, w, _ = draw(17 * num_heads + num_classes, num_rows, num_classes, num_heads, dtype)
        for tau in (16.0, 5.0):
            expected = oracle_logits(x, w, num_heads, tau, 0.0, "capsule")
            assert_close(capsule_logits(x, w, num_heads=num_heads, tau=tau), expected, TOLERANCE[dtype])
            same = normalized_logits(x, w, num_heads=num_heads, tau=tau, gamma=0.0, norm="capsule")
            assert_close(same, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("num_heads", HEADS)
def test_capsule_with_gamma_joins_it_to_the_weight_norm(num_heads):
    x, w, d = draw(3, 5, 3, num_heads)
    expected = oracle_logits(x, w, num_heads, TAU, 0.25, "capsule")
    actual = normalized_logits(x, w, num_heads=num_heads, tau=TAU, gamma=0.25, norm="capsule")
    assert_close(actual, expected, 1e-10)
    expected = oracle_tde(x, w, d, 1.5, num_heads, TAU, 0.25, "capsule")
    actual = tde_logits(x, w, d, 1.5, num_heads=num_heads, tau=TAU, gamma=0.25, norm="capsule")
    assert_close(actual, expected, 1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_default_hyperparameters_are_those_of_the_papers(dtype):
    x, w, _ = draw(5, 5, 7, 2, dtype)
    assert_close(causal_logits(x, w), oracle_logits(x, w, 2, 16.0, 1 / 32), TOLERANCE[dtype])
    assert_close(cosine_logits(x, w), oracle_logits(x, w, 1, 16.0, 0.0), TOLERANCE[dtype])
    assert_close(capsule_logits(x, w), oracle_logits(x, w, 1, 16.0, 0.0, "capsule"), TOLERANCE[dtype])
    for kind, num_heads in (("causal", 2), ("cosine", 1), ("capsule", 1)):
        norm, gamma = settings_of(kind)
        classifier = MODULES[kind](DIM, 7).to(dtype)
        assert tuple(classifier.weight.shape) == (7, DIM)
        expected = oracle_logits(x, classifier.weight, num_heads, 16.0, gamma, norm)
        assert_close(classifier(x), expected, TOLERANCE[dtype])
        assert_close(classifier.average.value, oracle_average([x], 0.9), TOLERANCE[dtype])
        classifier(x)
        assert_close(classifier.average.value, oracle_average([x, x], 0.9), TOLERANCE[dtype])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", CLASS_COUNTS)
@pytest.mark.parametrize("num_heads", HEADS)
def test_tde_logits_follow_equation_8(num_heads, num_classes, dtype, norm):
    for num_rows in BATCHES:
        x, w, d = draw(23 * num_heads + num_classes, num_rows, num_classes, num_heads, dtype)
        for tau, gamma in ((16.0, gamma_of(norm)), (8.0, 0.0)):
            for alpha in ALPHAS:
                expected = oracle_tde(x, w, d, alpha, num_heads, tau, gamma, norm)
                actual = tde_logits(x, w, d, alpha, num_heads=num_heads, tau=tau, gamma=gamma, norm=norm)
                assert_close(actual, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("kind", MODULES)
def test_classifiers_and_their_tde_follow_the_equations(kind, num_heads, dtype):
    norm, gamma = settings_of(kind)
    for num_classes in CLASS_COUNTS:
        classifier = build(kind, num_heads, num_classes, dtype, seed=num_classes)
        value = classifier.average.value.clone()
        direction = oracle_direction(value, num_heads)
        assert_close(classifier.average.direction(), direction, TOLERANCE[dtype])
        for num_rows in BATCHES:
            x, _, _ = draw(31 + num_rows, num_rows, 1, 1, dtype)
            expected = oracle_logits(x, classifier.weight, num_heads, TAU, gamma, norm)
            classifier.eval()
            assert_close(classifier(x), expected, TOLERANCE[dtype])
            with classifier.average.hold():
                assert_close(classifier.train()(x), expected, TOLERANCE[dtype])
            classifier.eval()
            assert_close(head_cosine(x, classifier), oracle_cosine(x, direction, num_heads), TOLERANCE[dtype])
            for alpha in ALPHAS:
                expected = oracle_tde(x, classifier.weight, direction, alpha, num_heads, TAU, gamma, norm)
                assert_close(tde(x, classifier, alpha), expected, TOLERANCE[dtype])
        assert torch.equal(classifier.average.value, value)


@properties
@given(
    seed=seeds,
    num_rows=sizes_st,
    num_classes=st.integers(1, 9),
    num_heads=st.integers(1, 5),
    width=st.integers(1, 5),
    tau=st.floats(0.1, 50),
    gamma=st.floats(0, 2),
    alpha=st.floats(-2, 5),
    norm=norms_st,
)
def test_any_shape_follows_the_equations(seed, num_rows, num_classes, num_heads, width, tau, gamma, alpha, norm):
    x, w, d = draw(seed, num_rows, num_classes, num_heads, dim=num_heads * width)
    if norm == "capsule":
        gamma = 0.0
    how = {"num_heads": num_heads, "tau": tau, "gamma": gamma, "norm": norm}
    plain = oracle_logits(x, w, num_heads, tau, gamma, norm)
    assert_close(normalized_logits(x, w, **how), plain, 1e-10)
    expected = oracle_tde(x, w, d, alpha, num_heads, tau, gamma, norm)
    # with one channel per head Eq. 8 can cancel to exactly zero
    assert_close(tde_logits(x, w, d, alpha, **how), expected, 1e-10, beside=plain)


def test_oracle_written_by_hand_for_one_number():
    # x = (3, 4 | 0, 2), w = (1, 0 | 0, 1), d = (0.6, 0.8 | 1, 0), tau 10, K 2, gamma 1, alpha 2:
    # head 1: 3 / ((1 + 1) 5) = 0.3, cos 1, w.d 0.6 / 2 = 0.3 -> 0.3 - 2 * 0.3 = -0.3; head 2: 2 / (2 * 2) = 0.5, cos 0
    # -> 10 / 2 * (-0.3 + 0.5) = 1.0; Eq. 7: 5 * 0.8 = 4.0
    x = torch.tensor([[3.0, 4.0, 0.0, 2.0]], dtype=torch.float64)
    w = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    d = torch.tensor([[0.6, 0.8], [1.0, 0.0]], dtype=torch.float64)
    how = {"num_heads": 2, "tau": 10.0, "gamma": 1.0}
    assert normalized_logits(x, w, **how).item() == pytest.approx(4.0, rel=1e-12)
    assert tde_logits(x, w, d, 2.0, **how).item() == pytest.approx(1.0, rel=1e-12)
    # capsule, gamma 0: head 1: 3 / (6 * 1), minus 2 * 1 * 5 * 0.6 / 6 = 1; head 2: 2 / (3 * 1) -> 5 * (0.5 - 1 + 2/3)
    how = {"num_heads": 2, "tau": 10.0, "gamma": 0.0, "norm": "capsule"}
    assert normalized_logits(x, w, **how).item() == pytest.approx(5 * (0.5 + 2 / 3), rel=1e-12)
    assert tde_logits(x, w, d, 2.0, **how).item() == pytest.approx(5 * (0.5 - 1 + 2 / 3), rel=1e-12)
    assert oracle_tde(x, w, d, 2.0, 2, 10.0, 1.0).item() == pytest.approx(1.0, rel=1e-12)


# ---------------------------------------------------------------------------------------------- 2. limits, symmetry


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_heads", HEADS)
def test_alpha_zero_is_equation_7(num_heads, norm):
    x, w, d = draw(1, 5, 7, num_heads)
    how = {"num_heads": num_heads, "tau": TAU, "gamma": gamma_of(norm), "norm": norm}
    expected = oracle_logits(x, w, num_heads, TAU, gamma_of(norm), norm)
    assert_close(tde_logits(x, w, d, 0.0, **how), expected, 1e-12)


@pytest.mark.parametrize("kind", MODULES)
def test_alpha_zero_of_a_classifier_is_its_forward(kind):
    classifier = build(kind, 2, 7)
    x, _, _ = draw(2, 5, 1, 1)
    assert_close(tde(x, classifier, 0.0), rows(classifier(x)), 1e-12)


def test_gamma_zero_and_one_head_is_the_cosine():
    x, w, _ = draw(4, 5, 7, 1)
    expected = np.array([[16.0 * cosine(a, b) for b in rows(w)] for a in rows(x)])
    assert_close(causal_logits(x, w, num_heads=1, gamma=0.0), expected, 1e-12)
    assert_close(cosine_logits(x, w), expected, 1e-12)
    assert_close(TAU * F.cosine_similarity(x[:, None], w[None], dim=2), expected, 1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_heads", HEADS)
def test_orthogonal_direction_changes_nothing(num_heads, norm):
    x, w, d = draw(6, 5, 7, num_heads)
    # x_k <- x_k - (x_k.d_k) d_k: no feature has any part along the direction of its head
    parts = x.reshape(5, num_heads, -1)
    parts = parts - (parts * d).sum(2, keepdim=True) * d
    x = parts.reshape(5, DIM)
    assert (x.abs() > 1e-3).any(dim=1).all()
    how = {"num_heads": num_heads, "tau": TAU, "gamma": gamma_of(norm), "norm": norm}
    expected = oracle_logits(x, w, num_heads, TAU, gamma_of(norm), norm)
    for alpha in ALPHAS:
        assert_close(tde_logits(x, w, d, alpha, **how), expected, 1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_heads", HEADS)
def test_zero_direction_changes_nothing(num_heads, norm):
    x, w, d = draw(7, 5, 7, num_heads)
    how = {"num_heads": num_heads, "tau": TAU, "gamma": gamma_of(norm), "norm": norm}
    expected = oracle_logits(x, w, num_heads, TAU, gamma_of(norm), norm)
    for alpha in ALPHAS:
        assert_close(tde_logits(x, w, torch.zeros_like(d), alpha, **how), expected, 1e-12)
    one_dead = d.clone()
    one_dead[0] = 0
    expected = oracle_tde(x, w, one_dead, 1.5, num_heads, TAU, gamma_of(norm), norm)
    assert_close(tde_logits(x, w, one_dead, 1.5, **how), expected, 1e-10)


@pytest.mark.parametrize("kind", MODULES)
def test_average_that_never_moved_changes_nothing(kind):
    classifier = build(kind, 2, 7, average=False)
    x, _, _ = draw(8, 5, 1, 1)
    norm, gamma = settings_of(kind)
    expected = oracle_logits(x, classifier.weight, 2, TAU, gamma, norm)
    for alpha in ALPHAS:
        assert_close(tde(x, classifier, alpha), expected, 1e-12)
        assert_close(fold_tde(classifier, alpha)(x), expected, 1e-10)
    assert_close(head_cosine(x, classifier), np.zeros(5), 0.0)
    assert_close(classifier.average.direction(), np.zeros((2, DIM // 2)), 0.0)


@properties
@given(
    seed=seeds, num_heads=heads_st, exponents=st.lists(st.floats(-6, 6), min_size=5, max_size=5), alpha=st.floats(0, 4)
)
def test_scale_of_each_example_changes_nothing(seed, num_heads, exponents, alpha):
    x, w, d = draw(seed, 5, 7, num_heads)
    scaled = x * torch.tensor([[10.0**e] for e in exponents], dtype=torch.float64)
    for gamma in (GAMMA, 0.0):
        how = {"num_heads": num_heads, "tau": TAU, "gamma": gamma}
        assert_close(normalized_logits(scaled, w, **how), oracle_logits(x, w, num_heads, TAU, gamma), 1e-10)
        expected = oracle_tde(x, w, d, alpha, num_heads, TAU, gamma)
        plain = oracle_logits(x, w, num_heads, TAU, gamma)
        assert_close(tde_logits(scaled, w, d, alpha, **how), expected, 1e-10, beside=plain)


@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float64, 1e-8),
        (torch.float64, 1e8),
        (torch.float64, 1e150),
        (torch.float32, 1e-6),
        (torch.float32, 1e6),
        (torch.float32, 1e18),
    ],
    ids=str,
)
def test_scale_of_features_changes_nothing_in_either_precision(dtype, scale, num_heads):
    x, w, d = draw(9, 5, 7, num_heads, dtype)
    scaled = x * scale
    how = {"num_heads": num_heads, "tau": TAU, "gamma": GAMMA}
    assert_close(normalized_logits(scaled, w, **how), oracle_logits(x, w, num_heads, TAU, GAMMA), TOLERANCE[dtype])
    expected = oracle_tde(x, w, d, 1.5, num_heads, TAU, GAMMA)
    assert_close(tde_logits(scaled, w, d, 1.5, **how), expected, TOLERANCE[dtype])
    assert_close(
        cosine_logits(scaled, w, num_heads=num_heads), oracle_logits(x, w, num_heads, TAU, 0), TOLERANCE[dtype]
    )


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_beyond_float32_do_not_erase_the_features(scale):
    # 1e25 and 1e-25 are plain float32 (and bfloat16) numbers whose squares are infinity and zero; Eq. 7 has no scale
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        x, w, d = draw(9, 5, 7, 2, dtype)
        scaled = x * scale
        assert torch.isfinite(scaled).all()
        expected = oracle_logits(scaled, w, 2, TAU, GAMMA)
        assert_close(causal_logits(scaled, w), expected, tolerance)
        expected = oracle_tde(scaled, w, d, 1.5, 2, TAU, GAMMA)
        assert_close(tde_logits(scaled, w, d, 1.5, num_heads=2, tau=TAU, gamma=GAMMA), expected, tolerance)
        expected = oracle_logits(scaled, w, 2, TAU, 0.0, "capsule")
        assert_close(capsule_logits(scaled, w, num_heads=2), expected, tolerance)


@pytest.mark.parametrize("num_heads", HEADS)
def test_scale_of_weights_changes_nothing_without_gamma_and_matters_with_it(num_heads):
    x, w, _ = draw(10, 5, 7, num_heads)
    expected = oracle_logits(x, w, num_heads, TAU, 0.0)
    assert_close(cosine_logits(x, w * 1e-6, num_heads=num_heads), expected, 1e-10)
    assert_close(causal_logits(x, w * 1e10, num_heads=num_heads), expected, 1e-10)
    small = causal_logits(x, w * 1e-6, num_heads=num_heads)
    assert_close(small, oracle_logits(x, w * 1e-6, num_heads, TAU, GAMMA), 1e-10)
    assert float(small.abs().max()) < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("num_heads", HEADS)
def test_capsule_of_long_features_approaches_the_cosine(num_heads):
    x, w, d = draw(12, 5, 7, num_heads)
    assert_close(capsule_logits(x * 1e8, w, num_heads=num_heads), oracle_logits(x, w, num_heads, TAU, 0.0), 1e-7)
    how = {"num_heads": num_heads, "tau": TAU, "gamma": 0.0, "norm": "capsule"}
    expected = oracle_tde(x, w, d, 1.5, num_heads, TAU, 0.0, "unit")
    assert_close(tde_logits(x * 1e8, w, d, 1.5, **how), expected, 1e-7)
    # and of short ones it fades like |x|
    assert float(capsule_logits(x * 1e-8, w, num_heads=num_heads).abs().max()) < 1e-5


@properties
@given(seed=seeds, num_heads=heads_st, order=st.permutations(range(7)), norm=norms_st, alpha=st.floats(-1, 4))
def test_classes_in_another_order_give_the_same_logits_in_that_order(seed, num_heads, order, norm, alpha):
    x, w, d = draw(seed, 4, 7, num_heads)
    order = list(order)
    how = {"num_heads": num_heads, "tau": TAU, "gamma": gamma_of(norm), "norm": norm}
    for call in (
        functools.partial(normalized_logits, x, **how),
        lambda weight: tde_logits(x, weight, d, alpha, **how),
    ):
        assert_close(call(w[order]), rows(call(w)[:, order]), 1e-12)
    p, q = normalized_logits(x, w, **how), tde_logits(x, w, d, alpha, **how)
    moved = background_exempted(p[:, order], q[:, order], background=order.index(2))
    assert_close(moved, rows(background_exempted(p, q, background=2)[:, order]), 1e-12)


@properties
@given(seed=seeds, num_rows=st.integers(1, 9), num_heads=heads_st, norm=norms_st, alpha=st.floats(-1, 4))
def test_a_batch_is_the_stack_of_its_examples(seed, num_rows, num_heads, norm, alpha):
    x, w, d = draw(seed, num_rows, 3, num_heads)
    how = {"num_heads": num_heads, "tau": TAU, "gamma": gamma_of(norm), "norm": norm}
    for call in (
        lambda batch: normalized_logits(batch, w, **how),
        lambda batch: tde_logits(batch, w, d, alpha, **how),
    ):
        assert_close(call(x), rows(torch.cat([call(x[i : i + 1]) for i in range(num_rows)])), 1e-12)
    y, z = normalized_logits(x, w, **how), tde_logits(x, w, d, alpha, **how)
    singles = [background_exempted(y[i : i + 1], z[i : i + 1], background=1) for i in range(num_rows)]
    assert_close(background_exempted(y, z, background=1), rows(torch.cat(singles)), 1e-12)


@properties
@given(seed=seeds, num_rows=st.integers(1, 9))
def test_a_batch_moves_the_average_by_the_mean_of_its_examples(seed, num_rows):
    x, _, _ = draw(seed, num_rows, 1, 1)
    whole, single = FeatureAverage(DIM).double(), FeatureAverage(DIM, update_every=num_rows).double()
    whole(x)
    for i in range(num_rows):
        single(x[i : i + 1])
    expected = oracle_average([x], 0.9)
    assert_close(whole.value, expected, 1e-12)
    assert_close(single.value, expected, 1e-12)


# ------------------------------------------------------------------------------------- 3. degenerate input, overflow


def degenerate_cases():
    x, w, _ = draw(13, 4, 3, 1)
    zero_head = x.clone()
    zero_head[:, : DIM // 2] = 0  # the first head (first two of four) of every example
    one_dead_row = x.clone()
    one_dead_row[1] = 0
    zero_weight_head = w.clone()
    zero_weight_head[:, DIM // 2 :] = 0
    one_dead_class = w.clone()
    one_dead_class[2] = 0
    return {
        "zero features": (torch.zeros_like(x), w),
        "zero weight": (x, torch.zeros_like(w)),
        "all zero": (torch.zeros_like(x), torch.zeros_like(w)),
        "zero row": (one_dead_row, w),
        "zero class": (x, one_dead_class),
        "zero feature head": (zero_head, w),
        "zero weight head": (x, zero_weight_head),
        "both half zero": (zero_head, zero_weight_head),
        "one example": (x[:1], w),
        "one class": (x, w[:1]),
        "one of each": (x[:1], w[:1]),
        "one zero of each": (torch.zeros_like(x[:1]), torch.zeros_like(w[:1])),
    }


DEGENERATE = degenerate_cases()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_has_finite_logits_and_gradients(case, num_heads, dtype):
    x, w = (t.to(dtype).clone().requires_grad_() for t in DEGENERATE[case])
    tolerance = TOLERANCE[dtype]
    for logits, norm, gamma in (
        (causal_logits(x, w, num_heads=num_heads), "unit", GAMMA),
        (cosine_logits(x, w, num_heads=num_heads), "unit", 0.0),
        (capsule_logits(x, w, num_heads=num_heads), "capsule", 0.0),
    ):
        assert_close(logits, oracle_logits(x, w, num_heads, TAU, gamma, norm), tolerance)
        grads_are_finite(logits, x, w)


@pytest.mark.parametrize("direction_is", ["random", "zero", "half zero"])
@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_has_a_finite_tde(case, num_heads, direction_is):
    _, _, d = draw(14, 1, 1, num_heads)
    if direction_is == "zero":
        d = torch.zeros_like(d)
    elif direction_is == "half zero":
        d[: max(1, num_heads // 2)] = 0
    x, w = (t.clone().requires_grad_() for t in DEGENERATE[case])
    for norm, gamma in (("unit", GAMMA), ("unit", 0.0), ("capsule", 0.0)):
        logits = tde_logits(x, w, d, 1.5, num_heads=num_heads, tau=TAU, gamma=gamma, norm=norm)
        assert_close(logits, oracle_tde(x, w, d, 1.5, num_heads, TAU, gamma, norm), 1e-10)
        grads_are_finite(logits, x, w)


@pytest.mark.parametrize("average_is", ["random", "zero", "half zero"])
@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("kind", MODULES)
def test_degenerate_classifier_has_a_finite_tde(kind, case, average_is):
    features, weight = DEGENERATE[case]
    norm, gamma = settings_of(kind)
    for dtype in DTYPES if kind == "causal" else (torch.float64,):
        classifier = MODULES[kind](DIM, weight.shape[0], num_heads=2).to(dtype).eval()
        x = features.to(dtype).clone().requires_grad_()
        with torch.no_grad():
            classifier.weight.copy_(weight)
            if average_is != "zero":
                classifier.average.value.copy_(draw(15, 1, 1, 1)[0][0])
            if average_is == "half zero":
                classifier.average.value[: DIM // 2] = 0
        direction = oracle_direction(classifier.average.value, 2)
        assert_close(classifier.average.direction(), direction, TOLERANCE[dtype])
        expected = oracle_tde(x, classifier.weight, direction, 1.5, 2, TAU, gamma, norm)
        logits = tde(x, classifier, 1.5)
        assert_close(logits, expected, TOLERANCE[dtype])
        grads_are_finite(logits, x, classifier.weight)
        assert_close(fold_tde(classifier, 1.5)(x), expected, TOLERANCE[dtype])
        assert_close(head_cosine(x, classifier), oracle_cosine(x, direction, 2), TOLERANCE[dtype])
        grads_are_finite(classifier(x), x, classifier.weight)


@pytest.mark.parametrize("kind", MODULES)
def test_an_empty_batch_has_empty_logits(kind):
    classifier = build(kind, 2, 3)
    empty = torch.zeros(0, DIM, dtype=torch.float64)
    for logits in (classifier(empty), classifier.train()(empty), tde(empty, classifier.eval(), 1.5)):
        assert tuple(logits.shape) == (0, 3)


@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("dtype", "size", "tolerance"),
    [
        (torch.float16, 300.0, 1e-2),
        (torch.float16, 2e4, 1e-2),
        (torch.bfloat16, 300.0, 5e-2),
        (torch.bfloat16, 1e18, 5e-2),
    ],
    ids=str,
)
def test_features_whose_squares_overflow_stay_finite(dtype, size, tolerance, norm, num_heads):
    x, w, d = draw(16, 5, 3, num_heads)
    x, w, d = ((x.clamp(-3, 3) * size).to(dtype), w.to(dtype), d.to(dtype))
    assert torch.isfinite(x).all()
    x.requires_grad_()
    w.requires_grad_()
    how = {"num_heads": num_heads, "tau": TAU, "gamma": gamma_of(norm), "norm": norm}
    logits = normalized_logits(x, w, **how)
    assert_close(logits, oracle_logits(x, w, num_heads, TAU, gamma_of(norm), norm), tolerance)
    grads_are_finite(logits, x, w)
    logits = tde_logits(x, w, d, 1.5, **how)
    assert_close(logits, oracle_tde(x, w, d, 1.5, num_heads, TAU, gamma_of(norm), norm), tolerance)
    grads_are_finite(logits, x, w)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", MODULES)
def test_half_precision_classifiers_stay_finite_on_large_features(kind, dtype):
    classifier = build(kind, 2, 3, torch.float32).to(dtype)
    x = torch.full((4, DIM), 300.0, dtype=dtype)
    x[1, : DIM // 2] = 0
    x.requires_grad_()
    grads_are_finite(classifier.train()(x), x, classifier.weight)
    assert torch.isfinite(classifier.average.value).all()
    classifier.eval()
    norm, gamma = settings_of(kind)
    direction = oracle_direction(classifier.average.value, 2)
    expected = oracle_tde(x, classifier.weight, direction, 1.5, 2, TAU, gamma, norm)
    scale = np.abs(oracle_logits(x, classifier.weight, 2, TAU, gamma, norm)).max() + np.abs(expected).max()
    for logits in (tde(x, classifier, 1.5), fold_tde(classifier, 1.5)(x)):
        assert np.abs(np.asarray(rows(logits)) - expected).max() <= 5e-2 * scale
    grads_are_finite(tde(x, classifier, 1.5), x, classifier.weight)


# ----------------------------------------------------------------------------------- 4. the average (Assumption 1)


def batches(seed, *sizes, dim=DIM, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, dim, generator=generator, dtype=torch.float64) + 0.5).to(dtype) for n in sizes]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.9998, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_average_follows_assumption_1(dtype, momentum):
    steps = batches(20, 4, 1, 7, 3, 64, 2, dtype=dtype)
    for num_heads in HEADS:
        average = FeatureAverage(DIM, num_heads=num_heads, momentum=momentum).to(dtype)
        assert_close(average.value, np.zeros(DIM), 0.0)
        for count, step in enumerate(steps, start=1):
            average(step)
            expected = oracle_average(steps[:count], momentum)
            assert_close(average.value, expected, 1e-12 if dtype is torch.float64 else 1e-6)
            direction = oracle_direction(expected, num_heads)
            assert tuple(average.direction().shape) == (num_heads, DIM // num_heads)
            assert_close(average.direction(), direction, 1e-10 if dtype is torch.float64 else 1e-5)
            sizes = [length(d) for d in rows(average.direction())]
            assert sizes == pytest.approx([1.0] * num_heads, abs=1e-6)
    assert not average.value.requires_grad


@properties
@given(seed=seeds, sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8), momentum=st.floats(0, 1))
def test_average_follows_assumption_1_for_any_batches(seed, sizes, momentum):
    steps = batches(seed, *sizes)
    average = FeatureAverage(DIM, momentum=momentum).double()
    for step in steps:
        average(step)
    assert_close(average.value, oracle_average(steps, momentum), 1e-12)


@pytest.mark.parametrize("kind", MODULES)
def test_training_forward_moves_the_average_of_a_classifier_and_eval_does_not(kind):
    steps = batches(21, 4, 1, 7)
    classifier = MODULES[kind](DIM, 3, momentum=0.7).double()
    for step in steps:
        classifier.train()(step)
        classifier.eval()(step * 100)
        tde(step * 100, classifier, 1.5)
        tde_components(step * 100, classifier)
        head_cosine(step * 100, classifier)
        fold_tde(classifier, 1.5)(step * 100)
    assert_close(classifier.average.value, oracle_average(steps, 0.7), 1e-12)


@pytest.mark.parametrize("kind", MODULES)
def test_inference_helpers_never_move_the_average_even_in_train_mode(kind):
    classifier = build(kind, 2, 3).train()
    before = classifier.average.value.clone()
    (x,) = batches(22, 5)
    tde(x, classifier, 1.5)
    tde_components(x, classifier)
    head_cosine(x, classifier)
    fold_tde(classifier, 1.5)(x)
    assert torch.equal(classifier.average.value, before)
    assert classifier.training


def test_average_moves_without_grad_too_and_keeps_no_graph():
    steps = batches(23, 3, 5)
    average = FeatureAverage(DIM).double()
    with torch.no_grad():
        average(steps[0])
    average(steps[1].clone().requires_grad_() * 1.0)
    assert_close(average.value, oracle_average(steps, 0.9), 1e-12)
    assert average.value.grad_fn is None
    assert not average.value.requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(3, 1, 6, 2), (1, 1, 1, 9), (4, 4, 4, 4)], ids=str)
def test_four_micro_batches_are_one_batch(sizes, dtype):
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    micro = [batches(seed, *sizes, dtype=dtype) for seed in (24, 25, 26)]
    whole = [torch.cat(parts) for parts in micro]
    small, large = FeatureAverage(DIM, update_every=4).to(dtype), FeatureAverage(DIM).to(dtype)
    for count, parts in enumerate(micro, start=1):
        before = small.value.clone()
        for part in parts[:3]:
            small(part)
            assert torch.equal(small.value, before)  # the step is not over
        small(parts[3])
        large(whole[count - 1])
        expected = oracle_average(whole[:count], 0.9)
        assert_close(small.value, expected, tolerance)
        assert_close(large.value, expected, tolerance)


def test_eval_and_hold_do_not_count_as_micro_batches():
    parts = batches(27, 3, 1)
    (other,) = batches(28, 5)
    average = FeatureAverage(DIM, update_every=2).double()
    average(parts[0])
    average.eval()
    average(other)
    average.train()
    with average.hold():
        average(other)
        average(other)
    assert_close(average.value, np.zeros(DIM), 0.0)
    average(parts[1])
    assert_close(average.value, oracle_average([torch.cat(parts)], 0.9), 1e-12)


def test_nothing_moves_in_eval_or_under_hold():
    first, second, third = batches(29, 3, 4, 2)
    average = FeatureAverage(DIM).double()
    average(first)
    before = average.value.clone()
    average.eval()
    average(second)
    assert torch.equal(average.value, before)
    average.train()
    with average.hold():
        average(second)
        with average.hold():
            average(second)
        average(second)  # leaving an inner hold does not end the outer one
        assert torch.equal(average.value, before)
    with pytest.raises(KeyError), average.hold():
        raise KeyError
    average(third)  # an error inside the block ends it too
    assert_close(average.value, oracle_average([first, third], 0.9), 1e-12)


@pytest.mark.parametrize("update_every", [1, 2])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputed_forward_does_not_move_the_average_again(use_reentrant, update_every):
    torch.manual_seed(0)
    backbone = torch.nn.Linear(5, DIM).double()
    classifier = CausalClassifier(DIM, 3).double()
    classifier.average.update_every = update_every
    calls = []

    def forward(x):
        calls.append(1)
        return classifier(backbone(x))

    seen = []
    for step in batches(30, 4, 3, 5, 2, 6, 1, dim=5):
        x = step.clone().requires_grad_()
        F.cross_entropy(checkpoint(forward, x, use_reentrant=use_reentrant), torch.zeros(len(x), dtype=int)).backward()
        seen.append(backbone(step).detach())
    assert len(calls) == 12  # every forward did run twice
    steps = seen if update_every == 1 else [torch.cat(seen[i : i + 2]) for i in range(0, 6, 2)]
    assert_close(classifier.average.value, oracle_average(steps, 0.9), 1e-12)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_two_checkpoints_before_one_backward_move_the_average_twice(use_reentrant):
    first, second, third = batches(31, 4, 3, 2)
    classifier = CausalClassifier(DIM, 3).double()
    outs = [checkpoint(classifier, x.clone().requires_grad_(), use_reentrant=use_reentrant) for x in (first, second)]
    expected = oracle_average([first, second], 0.9)
    assert_close(classifier.average.value, expected, 1e-12)
    sum(out.sum() for out in outs).backward()
    assert_close(classifier.average.value, expected, 1e-12)
    classifier(third).sum().backward()  # and a plain step still counts
    assert_close(classifier.average.value, oracle_average([first, second, third], 0.9), 1e-12)


def test_average_is_float32_under_bfloat16_autocast():
    torch.manual_seed(1)
    steps = batches(32, 5, 3, 8, dtype=torch.float32)
    classifier = CausalClassifier(DIM, 3)
    backbone = torch.nn.Linear(DIM, DIM)
    seen = []
    for index, step in enumerate(steps):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = backbone(step) if index else step
            logits = classifier(features)
        assert features.dtype is (torch.bfloat16 if index else torch.float32)
        seen.append(features.detach())
        assert classifier.average.value.dtype is torch.float32
        expected = oracle_logits(features, classifier.weight, 2, TAU, GAMMA)
        assert_close(logits, expected, 5e-2)
        assert_close(classifier.average.value, oracle_average(seen, 0.9), 1e-6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            direction = classifier.average.direction()
        assert_close(direction, oracle_direction(oracle_average(seen, 0.9), 2), 1e-5)


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float16),
        lambda m: m.to(device="cpu", dtype=torch.bfloat16),
        lambda m: torch.nn.Sequential(m).half()[0],
    ],
    ids=("half", "bfloat16", "to", "to device", "inside another"),
)
def test_casting_a_classifier_to_half_keeps_its_average(cast):
    steps = batches(33, 5, 3, dtype=torch.float32)
    classifier = CausalClassifier(DIM, 3)
    for step in steps:
        classifier(step)
    before = classifier.average.value.clone()
    classifier = cast(classifier)
    dtype = classifier.weight.dtype
    assert dtype in (torch.float16, torch.bfloat16)
    assert classifier.average.value.dtype is torch.float32
    assert torch.equal(classifier.average.value, before)
    more = batches(34, 4)[0].to(dtype)
    classifier(more)
    assert classifier.average.value.dtype is torch.float32
    assert_close(classifier.average.value, oracle_average([*steps, more], 0.9), 1e-6)


@pytest.mark.parametrize("update_every", [1, 2])
def test_mean_of_half_features_is_taken_in_float32(update_every):
    # 2000 rows of 300 sum to 600000, far above float16's 65504; 1/2048 next to 1 is lost when summed in half
    x = torch.full((2000, DIM), 300.0, dtype=torch.float16)
    x[::2, 0] = 1.0
    x[1::2, 0] = 1.0 + 2.0**-10
    average = FeatureAverage(DIM, update_every=update_every).half()
    for _ in range(update_every):
        average(x)
    assert average.value.dtype is torch.float32
    assert_close(average.value, oracle_average([x], 0.9), 1e-6)
    assert float(average.value[0]) == pytest.approx(1 + 2.0**-11, rel=1e-6)


@pytest.mark.parametrize("shift", [0, 2])
def test_a_batch_without_rows_changes_nothing(shift):
    average = FeatureAverage(DIM, num_heads=2).double()
    steps = batches(35, 4, 3)
    for step in steps[:shift]:
        average(step)
    before = average.value.clone()
    average(torch.zeros(0, DIM, dtype=torch.float64))
    assert torch.equal(average.value, before)
    assert torch.isfinite(average.direction()).all()
    average(steps[0])
    assert_close(average.value, oracle_average([*steps[:shift], steps[0]], 0.9), 1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_batch_that_is_not_finite_changes_nothing(bad):
    good = batches(36, 4, 3)
    (broken,) = batches(37, 5)
    broken[2, 7] = bad
    average = FeatureAverage(DIM).double()
    average(broken)
    assert_close(average.value, np.zeros(DIM), 0.0)
    average(good[0])
    before = average.value.clone()
    average(broken)
    assert torch.equal(average.value, before)
    average(good[1])
    assert_close(average.value, oracle_average(good, 0.9), 1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_micro_batch_that_is_not_finite_does_not_poison_the_average(bad):
    good = batches(38, 4, 3, 2, 2)
    (broken,) = batches(39, 5)
    broken[0, 0] = bad
    average = FeatureAverage(DIM, update_every=2).double()
    average(good[0])
    average(broken)
    # the step either has its finite examples only or is dropped as a whole
    value = np.asarray(rows(average.value))
    assert np.isfinite(value).all()
    assert np.allclose(value, 0, atol=1e-12) or np.allclose(value, oracle_average([good[0]], 0.9), atol=1e-12)
    average(good[2])
    average(good[3])
    assert_close(average.value, oracle_average([torch.cat(good[2:])], 0.9, start=value), 1e-12)


@pytest.mark.parametrize("kind", MODULES)
def test_state_dict_round_trip_carries_the_average(kind):
    classifier = build(kind, 2, 3, torch.float32).train()
    file = io.BytesIO()
    torch.save(classifier.state_dict(), file)
    file.seek(0)
    other = MODULES[kind](DIM, 3, num_heads=2)
    other.load_state_dict(torch.load(file, weights_only=True))
    twin = copy.deepcopy(classifier)
    assert torch.equal(other.average.value, classifier.average.value)
    assert float(other.average.value.abs().max()) > 0
    (step,) = batches(40, 6, dtype=torch.float32)
    for module in (classifier, other, twin):
        module(step)
    assert torch.equal(other.average.value, classifier.average.value)
    assert torch.equal(twin.average.value, classifier.average.value)
    assert torch.equal(tde(step, other.eval(), 1.5), tde(step, classifier.eval(), 1.5))
    half = MODULES[kind](DIM, 3, num_heads=2).half()
    half.load_state_dict(classifier.state_dict())
    assert half.average.value.dtype is torch.float32
    assert torch.equal(half.average.value, classifier.average.value)


def test_momentum_reassigned_between_steps_is_followed():
    steps = batches(41, 4, 3, 5, 2)
    classifier = CausalClassifier(DIM, 3).double()
    expected = [0.0] * DIM
    for step, momentum in zip(steps, (0.9, 0.5, 1.0, 0.25), strict=True):
        classifier.average.momentum = momentum
        classifier(step)
        expected = oracle_average([step], momentum, start=expected)
        assert_close(classifier.average.value, expected, 1e-12)


# Two processes over gloo, forked from one that has imported everything and has no thread yet. Each writes what it
# holds after every scenario, so one that hangs spoils only those after it.
WORKER = """
import datetime, json, os, sys
import torch
import torch._dynamo  # checkpoint and DistributedDataParallel import it: seconds, here spent once
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from tailwise.adjust import tde
from tailwise.classifiers import CausalClassifier, FeatureAverage

folder = sys.argv[1]
rank = 0 if os.fork() else 1
torch.set_num_threads(1)
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=15)
)
data = torch.tensor(json.load(open(f"{folder}/data.json")), dtype=torch.float64)  # [step, 8, D]
dim = data.shape[2]
mine = [step[:3] if rank == 0 else step[3:] for step in data]
done = {}


def write(name, value):
    done[name] = value.tolist()
    with open(f"{folder}/rank{rank}.json", "w") as file:
        json.dump(done, file)


average = FeatureAverage(dim).double()
for part in mine:
    average(part)
write("uneven", average.value)

average = FeatureAverage(dim, update_every=2).double()
cuts = (2, 3) if rank == 0 else (4, 5)  # micro-batches of 2 and 1 rows here, 4 and 1 there
for part in mine:
    average(part[: cuts[0]])
    average(part[cuts[0] :])
write("micro", average.value)

classifier = CausalClassifier(dim, 3).double()
torch.nn.init.constant_(classifier.weight, 0.1)
for part in mine:
    assert classifier(part).shape == (len(part), 3)
write("classifier", classifier.average.value)

classifier.eval()
if rank == 0:  # inference on one rank alone waits for nobody
    classifier(mine[0])
    tde(mine[0], classifier, 1.5)
write("alone", classifier.average.value)

for use_reentrant in (True, False):
    classifier = CausalClassifier(dim, 3).double()
    for part in mine:
        checkpoint(classifier, part.clone().requires_grad_(), use_reentrant=use_reentrant).sum().backward()
    write(f"checkpoint {use_reentrant}", classifier.average.value)

average = FeatureAverage(dim).double()
average(mine[0])
average(mine[1][:0] if rank == 0 else mine[1])  # no row on rank 0
write("empty on one", average.value)

average = FeatureAverage(dim).double()
average(mine[0])
average(mine[1] * float("nan") if rank == 0 else mine[1])
write("nan on one", average.value)
average(mine[2])
write("nan on one, then good", average.value)

average = FeatureAverage(dim).double()
average(mine[0])
average(mine[1][:0])
write("empty on both", average.value)

for name, silent, every in (("ddp", False, 1), ("ddp micro", False, 2), ("ddp micro no_sync", True, 2)):
    classifier = CausalClassifier(dim, 3).double()
    classifier.average.update_every = every
    model = DistributedDataParallel(classifier)
    for part in mine:
        if every == 1:
            model(part).sum().backward()
            continue
        if silent:
            with model.no_sync():
                model(part[: cuts[0]]).sum().backward()
        else:
            model(part[: cuts[0]]).sum().backward()
        model(part[cuts[0] :]).sum().backward()
    write(name, classifier.average.value)

dist.destroy_process_group()
if rank == 0:
    os.wait()
"""


@pytest.fixture(scope="module", autouse=True)
def rank_process(request, tmp_path_factory):
    """The two ranks, started before the first test so that their imports run beside the other tests."""
    if not any("two_ranks" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("ranks")
    data = torch.stack(batches(42, 8, 8, 8, dim=8))
    (folder / "data.json").write_text(json.dumps(data.tolist()))
    (folder / "worker.py").write_text(WORKER)
    environment = dict(os.environ, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(folder / "worker.py"), str(folder)],
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    try:
        yield process, folder, data
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # both ranks: the group is theirs alone
            process.wait()


@pytest.fixture(scope="module")
def two_ranks(rank_process):
    process, folder, data = rank_process
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=90)
    held = []
    for rank in range(2):
        file = folder / f"rank{rank}.json"
        held.append(json.loads(file.read_text()) if file.exists() else {})
    return data, held, (folder / "log.txt").read_text()[-4000:]


@pytest.mark.parametrize(
    "scenario",
    [
        "uneven",
        "micro",
        "classifier",
        "alone",
        "checkpoint True",
        "checkpoint False",
        "ddp",
        "ddp micro",
        "ddp micro no_sync",
    ],
)
def test_two_ranks_hold_the_average_of_one_process(two_ranks, scenario):
    data, held, log = two_ranks
    assert all(scenario in rank for rank in held), log
    expected = oracle_average(list(data), 0.9)
    for rank in held:
        assert_close([rank[scenario]], expected[None], 1e-12)
    single = FeatureAverage(8).double()
    for step in data:
        single(step)
    assert_close([held[0][scenario]], np.asarray(rows(single.value))[None], 1e-12)
    assert held[0][scenario] == held[1][scenario]


def test_a_rank_without_rows_does_not_weigh_in(two_ranks):
    data, held, log = two_ranks
    assert all("empty on one" in rank and "empty on both" in rank for rank in held), log
    for rank in held:
        assert_close([rank["empty on one"]], oracle_average([data[0], data[1][3:]], 0.9)[None], 1e-12)
        assert_close([rank["empty on both"]], oracle_average([data[0]], 0.9)[None], 1e-12)


def test_nan_on_one_rank_leaves_both_with_the_same_finite_average(two_ranks):
    data, held, log = two_ranks
    assert all("nan on one, then good" in rank for rank in held), log
    first, second = (np.array(rank["nan on one"]) for rank in held)
    assert np.array_equal(first, second)
    dropped, clean_only = oracle_average([data[0]], 0.9), oracle_average([data[0], data[1][3:]], 0.9)
    assert np.allclose(first, dropped, atol=1e-12) or np.allclose(first, clean_only, atol=1e-12)
    for rank in held:
        assert_close([rank["nan on one, then good"]], oracle_average([data[2]], 0.9, start=first)[None], 1e-12)


# ------------------------------------------------------------------------------------ 5. components and the folded


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("kind", MODULES)
def test_components_are_the_two_terms_of_equation_8(kind, num_heads, dtype):
    norm, gamma = settings_of(kind)
    for num_classes in CLASS_COUNTS:
        classifier = build(kind, num_heads, num_classes, dtype, seed=5)
        direction = oracle_direction(classifier.average.value, num_heads)
        for num_rows in BATCHES:
            x, _, _ = draw(50, num_rows, 1, 1, dtype)
            a, b = tde_components(x, classifier)
            weight = classifier.weight
            assert_close(a, oracle_logits(x, weight, num_heads, TAU, gamma, norm), TOLERANCE[dtype])
            assert_close(b, oracle_effect(x, weight, direction, num_heads, TAU, gamma, norm), TOLERANCE[dtype])
            for alpha in (*ALPHAS, 10.0):
                expected = oracle_tde(x, weight, direction, alpha, num_heads, TAU, gamma, norm)
                assert_close(a - alpha * b, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("kind", MODULES)
def test_folded_classifier_equals_the_tde(kind, num_heads, dtype):
    norm, gamma = settings_of(kind)
    for num_classes in CLASS_COUNTS:
        classifier = build(kind, num_heads, num_classes, dtype, seed=6)
        direction = oracle_direction(classifier.average.value, num_heads)
        for alpha in ALPHAS:
            folded = fold_tde(classifier, alpha)
            for num_rows in BATCHES:
                x, _, _ = draw(51, num_rows, 1, 1, dtype)
                expected = oracle_tde(x, classifier.weight, direction, alpha, num_heads, TAU, gamma, norm)
                plain = oracle_logits(x, classifier.weight, num_heads, TAU, gamma, norm)
                for mode in (True, False):
                    assert_close(folded.train(mode)(x), expected, TOLERANCE[dtype], beside=plain)
                assert_close(folded(x), rows(tde(x, classifier, alpha)), TOLERANCE[dtype], beside=plain)


@pytest.mark.parametrize("kind", MODULES)
def test_folded_classifier_is_a_copy(kind):
    for alpha in (0.0, 1.5):
        classifier = build(kind, 2, 7)
        (x,) = batches(52, 5)
        folded = fold_tde(classifier, alpha)
        before = folded(x).detach().clone()
        with torch.no_grad():
            classifier.weight.mul_(-3.0)
            classifier.average.value.add_(torch.arange(DIM))
        classifier.train()(x * 7)
        assert torch.equal(folded(x), before)
        assert not torch.equal(fold_tde(classifier, alpha)(x), before)
        weights = classifier.weight.clone()
        with torch.no_grad():
            for tensor in [*folded.parameters(), *folded.buffers()]:
                tensor.zero_()
        assert torch.equal(classifier.weight, weights)


@pytest.mark.parametrize("kind", MODULES)
def test_folded_classifier_saves_as_plain_tensors(kind):
    classifier = build(kind, 2, 7)
    (x,) = batches(53, 5)
    folded = fold_tde(classifier, 1.5)
    assert isinstance(folded, FoldedClassifier)
    state = folded.state_dict()
    assert state
    for name, tensor in state.items():
        assert type(tensor) is torch.Tensor, name
        assert "average" not in name
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = fold_tde(build(kind, 2, 7, seed=99), -1.0)
    assert not torch.equal(other(x), folded(x))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), folded(x))


# --------------------------------------------------------------------------------- 6. background-exempted inference


BACKGROUNDS = (0, 3, 6, [2], [0, 6], [1, 3, 4], (5, 0), [0, 1, 2, 3, 4, 5])


def draw_pair(seed, num_rows=5, num_classes=7, size=3.0):
    generator = torch.Generator().manual_seed(seed)
    y = size * torch.randn(num_rows, num_classes, generator=generator, dtype=torch.float64)
    z = size * torch.randn(num_rows, num_classes, generator=generator, dtype=torch.float64)
    return y, z


@pytest.mark.parametrize("background", BACKGROUNDS, ids=str)
def test_background_exempted_follows_equation_9(background):
    for num_rows in BATCHES:
        y, z = draw_pair(60, num_rows)
        expected = oracle_exempted(y, z, background)
        actual = background_exempted(y, z, background=background)
        assert_close(actual, expected, 1e-12)
        assert (actual >= 0).all()
        assert_close(actual.sum(1), np.ones(num_rows), 1e-12)
        single = background_exempted(y.float(), z.float(), background=background)
        assert_close(single, oracle_exempted(y.float(), z.float(), background), 1e-5)


def test_background_is_the_first_class_unless_told():
    y, z = draw_pair(61)
    assert_close(background_exempted(y, z), oracle_exempted(y, z, 0), 1e-12)


def test_background_class_named_twice_counts_once():
    y, z = draw_pair(62)
    try:
        twice = background_exempted(y, z, background=[1, 1, 4])
    except InputError:
        return
    assert_close(twice, oracle_exempted(y, z, [1, 4]), 1e-12)


@properties
@given(
    seed=seeds,
    num_rows=sizes_st,
    num_classes=st.integers(1, 8),
    size=st.floats(0.01, 60),
    exempt=st.sets(st.integers(0, 7), min_size=1),
)
def test_background_exempted_rows_sum_to_one(seed, num_rows, num_classes, size, exempt):
    exempt = sorted({c % num_classes for c in exempt})
    y, z = draw_pair(seed, num_rows, num_classes, size)
    actual = background_exempted(y, z, background=exempt)
    assert_close(actual.sum(1), np.ones(num_rows), 1e-12)
    if len(exempt) < num_classes:
        assert_close(actual, oracle_exempted(y, z, exempt), 1e-12)
    # exempt classes keep p; the others keep their ratios of q
    p = torch.softmax(y, 1)
    assert_close(actual[:, exempt], rows(p[:, exempt]), 1e-12)


@pytest.mark.parametrize("background", BACKGROUNDS, ids=str)
def test_equal_logits_give_back_the_probabilities(background):
    y, _ = draw_pair(63)
    expected = np.array([[math.exp(v) / math.fsum(math.exp(u) for u in row) for v in row] for row in rows(y)])
    assert_close(background_exempted(y, y, background=background), expected, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_logits_stay_finite_and_sum_to_one(dtype):
    sure = -math.log(1e-20)  # softmax of (sure, 0) is 1 - 1e-20
    table = [
        [sure, 0.0, 0.0],
        [0.0, sure, 0.0],
        [200.0, -200.0, -200.0],
        [-200.0, 200.0, -200.0],
        [-200.0, -200.0, 200.0],
        [200.0, 200.0, -200.0],
        [-200.0, -200.0, -200.0],
        [200.0, -200.0, 0.0],
    ]
    pairs = [(a, b) for a in table for b in table]
    y = torch.tensor([a for a, _ in pairs], dtype=dtype)
    z = torch.tensor([b for _, b in pairs], dtype=dtype)
    tolerance = 1e-12 if dtype is torch.float64 else 1e-5
    for background in (0, 1, 2, [0, 2], [1, 2]):
        actual = background_exempted(y, z, background=background)
        assert torch.isfinite(actual).all()
        assert (actual >= 0).all()
        assert_close(actual.sum(1), np.ones(len(pairs)), tolerance)
        assert_close(actual, oracle_exempted(y, z, background), tolerance)


def test_what_is_left_beside_a_sure_background_is_exact():
    # p_bg = 1 - 1e-20 and q_bg = 1 - 1e-30: Eq. 9 in floats is 0 * q / 0; in truth the share of class 1 is 0.75e-20
    y = torch.tensor([[-math.log(1e-20), math.log(0.5), math.log(0.5)]], dtype=torch.float64)
    z = torch.tensor([[-math.log(1e-30), math.log(0.75), math.log(0.25)]], dtype=torch.float64)
    actual = background_exempted(y, z)[0].tolist()
    assert actual[0] == pytest.approx(1.0, abs=1e-15)
    assert actual[1] == pytest.approx(0.75e-20, rel=1e-10)
    assert actual[2] == pytest.approx(0.25e-20, rel=1e-10)
    assert_close(background_exempted(y, z)[:, 1:], oracle_exempted(y, z, 0)[:, 1:], 1e-10)


def test_all_classes_exempt_give_back_the_probabilities():
    y, z = draw_pair(64)
    expected = np.array([[math.exp(v) / math.fsum(math.exp(u) for u in row) for v in row] for row in rows(y)])
    assert_close(background_exempted(y, z, background=list(range(7))), expected, 1e-12)
    assert_close(background_exempted(y[:, :1], z[:, :1]), np.ones((5, 1)), 1e-12)


def test_background_exempted_of_a_classifier_end_to_end():
    # p from Eq. 7 and q from Eq. 8, as the text under Eq. 9 defines them
    classifier = build("causal", 2, 7)
    (x,) = batches(65, 5)
    direction = oracle_direction(classifier.average.value, 2)
    y = oracle_logits(x, classifier.weight, 2, TAU, GAMMA)
    z = oracle_tde(x, classifier.weight, direction, 1.5, 2, TAU, GAMMA)
    actual = background_exempted(classifier(x), tde(x, classifier, 1.5), background=6)
    assert_close(actual, oracle_exempted(y, z, 6), 1e-10)


def test_background_exempted_has_finite_gradients():
    y, z = (t.clone().requires_grad_() for t in draw_pair(66, size=100.0))
    background_exempted(y, z, background=[0, 2])[:, 1].sum().backward()
    assert torch.isfinite(y.grad).all()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("background", [7, 100, -8, [0, 7], [], ()], ids=str)
def test_background_that_is_no_class_is_refused(background, unchecked):
    y, z = draw_pair(67)
    with pytest.raises(InputError):
        background_exempted(y, z, background=background)


@pytest.mark.parametrize(
    ("left", "right"), [((5, 7), (5, 6)), ((5, 7), (4, 7)), ((5, 7), (1, 7)), ((5, 7), (5, 1))], ids=str
)
def test_background_exempted_refuses_logits_of_two_shapes(left, right, unchecked):
    with pytest.raises(InputError):
        background_exempted(torch.zeros(left), torch.zeros(right))


# ------------------------------------------------------------------------------------------------ 7. wrong input


@pytest.mark.parametrize("kind", MODULES)
def test_wrong_hyperparameters_of_a_classifier_are_refused(kind, unchecked):
    make = MODULES[kind]
    with pytest.raises(InputError, match=r"(?s)(?=.*\b12\b)(?=.*\b5\b)"):
        make(12, 3, num_heads=5)
    for wrong in ({"num_heads": 0}, {"num_heads": -1}, {"tau": 0.0}, {"tau": -1.0}):
        with pytest.raises(InputError):
            make(12, 3, **wrong)
    if kind == "causal":
        with pytest.raises(InputError):
            make(12, 3, gamma=-1e-3)
        make(12, 3, gamma=0.0)


def test_wrong_heads_of_an_average_are_refused(unchecked):
    with pytest.raises(InputError, match=r"(?s)(?=.*\b12\b)(?=.*\b5\b)"):
        FeatureAverage(12, num_heads=5)
    for wrong in ({"num_heads": 0}, {"update_every": 0}):
        with pytest.raises(InputError):
            FeatureAverage(12, **wrong)


@pytest.fixture
def unchecked():
    """Without the suite's own type checker, which would refuse some of this input before the library can."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def functions():
    x, w, d = draw(70, 4, 3, 2)
    return {
        "normalized": lambda **k: normalized_logits(x, w, **{"num_heads": 2, "tau": TAU, "gamma": GAMMA, **k}),
        "causal": lambda **k: causal_logits(x, w, **k),
        "cosine": lambda **k: cosine_logits(x, w, **k),
        "capsule": lambda **k: capsule_logits(x, w, **k),
        "tde": lambda **k: tde_logits(x, w, d, 1.5, **{"num_heads": 2, "tau": TAU, "gamma": GAMMA, **k}),
    }


FUNCTIONS = functions()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_heads_that_do_not_divide_the_features_are_refused_by_functions(name, unchecked):
    with pytest.raises(InputError, match=r"(?s)(?=.*\b12\b)(?=.*\b5\b)"):
        FUNCTIONS[name](num_heads=5)
    with pytest.raises(InputError):
        FUNCTIONS[name](num_heads=0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_tau_and_gamma_are_refused_by_functions(name, unchecked):
    for tau in (0.0, -16.0):
        with pytest.raises(InputError):
            FUNCTIONS[name](tau=tau)
    if name not in ("cosine", "capsule"):
        with pytest.raises(InputError):
            FUNCTIONS[name](gamma=-1e-3)


def test_tde_needs_a_classifier_with_an_average(unchecked):
    x = torch.rand(4, DIM)
    linear = LinearClassifier(DIM, 3)
    with pytest.raises(InputError):
        tde(x, linear, 1.5)
    with pytest.raises(InputError):
        tde_components(x, linear)
    with pytest.raises(InputError):
        fold_tde(linear, 1.5)
    with pytest.raises(InputError):
        head_cosine(x, linear)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_tde_refuses_features_that_are_not_finite(bad, unchecked):
    classifier = build("causal", 2, 3)
    x, _, _ = draw(71, 4, 1, 1)
    x[3, 11] = bad
    with pytest.raises(InputError):
        tde(x, classifier, 1.5)


# --------------------------------------------------------------------------------------------------- 8. gradients


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_heads", HEADS)
def test_gradients_are_those_of_the_formula(num_heads, norm):
    x, w, d = draw(80, 2, 3, num_heads)
    x.requires_grad_()
    w.requires_grad_()
    how = {"num_heads": num_heads, "tau": TAU, "gamma": gamma_of(norm), "norm": norm}
    assert torch.autograd.gradcheck(lambda a, b: normalized_logits(a, b, **how), (x, w))
    assert torch.autograd.gradcheck(lambda a, b: tde_logits(a, b, d, 1.5, **how), (x, w))


def test_gradients_of_the_average_classifiers_do_not_pass_through_the_average():
    # Eq. 8 takes d as given: the gradient of the training forward is that of Eq. 7 alone
    classifier = build("causal", 2, 3).train()
    x, _, _ = draw(81, 4, 1, 1)
    x.requires_grad_()
    through = torch.autograd.grad(classifier(x).square().sum(), (x, classifier.weight))
    weight = classifier.weight.detach().clone().requires_grad_()
    alone = torch.autograd.grad(causal_logits(x, weight).square().sum(), (x, weight))
    for left, right in zip(through, alone, strict=True):
        assert_close(left, rows(right), 1e-12)
