"""Total direct effect by evaluating a classifier twice, beside Eq. 8 and a loop from Eq. 2."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from causal_oracles import (
    ALPHAS,
    DIM,
    HEADS,
    HYPERPARAMETERS,
    MODULES,
    assert_close,
    batches,
    cosine,
    dot,
    draw,
    head,
    length,
    oracle_direction,
    rows,
    trained,
    unchecked,
)
from tailwise import InputError
from tailwise.adjust import counterfactual_tde, fold_tde, tde, tde_logits
from tailwise.classifiers import FoldedClassifier, LinearClassifier, MlpClassifier
from tailwise.classifiers.functional import scale_features


def oracle_head_part(features, direction):
    """cos(x_k, d_k) |x_k| d_k of every head, one example at a time (section 4.2)."""
    direction = rows(direction)
    parts = []
    for x in rows(features):
        pieces = [head(x, k, len(direction)) for k in range(len(direction))]
        parts.append(
            [cosine(x_k, d_k) * length(x_k) * v for x_k, d_k in zip(pieces, direction, strict=True) for v in d_k]
        )
    return torch.tensor(parts, dtype=torch.float64)


@pytest.mark.parametrize("num_heads", HEADS)
def test_a_classifier_that_is_not_linear_follows_equation_2(num_heads):
    torch.manual_seed(0)
    fn = MlpClassifier(DIM, 5).double()
    x, _, direction = draw(3, 6, 5, num_heads)
    null = oracle_head_part(x, direction)
    for alpha in ALPHAS:
        expected = torch.stack([fn(a[None])[0] - alpha * fn(b[None])[0] for a, b in zip(x, null, strict=True)])
        assert_close(counterfactual_tde(fn, x, direction, alpha), expected, 1e-12)
    assert torch.equal(counterfactual_tde(fn, x, direction, 0.0), fn(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_direction_in_float32_suits_half_precision(dtype):
    """`FeatureAverage.direction` is in float32 whatever the classifier is in."""
    x, _, direction = draw(3, 6, 5, 2)
    fn = MlpClassifier(DIM, 5)
    expected = counterfactual_tde(fn, x.float(), direction.float(), 1.5)
    actual = counterfactual_tde(fn.to(dtype), x.to(dtype), direction.float(), 1.5)
    assert actual.dtype == dtype
    assert_close(actual, expected, 5e-2)


@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("kind", MODULES)
def test_the_linear_part_on_normalized_features_is_equation_8(kind, num_heads):
    """Cosine with one head, causal with two and all others: exact, since |x_k| is that of x in both terms."""
    classifier = trained(kind, num_heads)
    (x,) = batches(50, 5)
    linear = fold_tde(classifier, 0.0).weight
    normalized = scale_features(x, num_heads, classifier.norm).flatten(1)
    for alpha in ALPHAS:
        actual = counterfactual_tde(lambda u: F.linear(u, linear), normalized, classifier.average.direction(), alpha)
        assert_close(actual, tde(x, classifier, alpha), 1e-12)


def test_a_linear_classifier_loses_what_it_says_of_the_head_direction():
    classifier = LinearClassifier(DIM, 4, bias=False).double()
    x, _, d = draw(5, 6, 4, 1)
    expected = [
        [dot(w, v) - 1.5 * dot(v, rows(d)[0]) * dot(w, rows(d)[0]) for w in rows(classifier.weight)] for v in rows(x)
    ]
    assert_close(counterfactual_tde(classifier, x, d, 1.5), expected, 1e-12)


@pytest.mark.parametrize("kind", ["causal", "cosine"])
def test_a_whole_classifier_leaves_the_sign_of_the_cosine(kind):
    """Where it is not Eq. 8: x' is normalized anew."""
    classifier = trained(kind)
    (x,) = batches(50, 5)
    direction = oracle_direction(classifier.average.value, 2)
    settings = HYPERPARAMETERS[kind]
    expected = np.array(rows(classifier(x)))
    for n, v in enumerate(rows(x)):
        for c, w in enumerate(rows(classifier.weight)):
            for k in range(2):
                v_k, w_k, d_k = head(v, k, 2), head(w, k, 2), rows(direction)[k]
                effect = math.copysign(1, cosine(v_k, d_k)) * dot(w_k, d_k) / (length(w_k) + settings["gamma"])
                expected[n, c] -= 1.5 * settings["tau"] / 2 * effect
    actual = counterfactual_tde(classifier, x, classifier.average.direction(), 1.5)
    assert_close(actual, expected, 1e-10)
    assert not torch.allclose(actual, tde(x, classifier, 1.5), rtol=0.05)


def test_a_direction_of_zero_subtracts_what_the_classifier_says_of_nothing():
    x, _, d = draw(7, 4, 3, 2)
    plain, biased = LinearClassifier(DIM, 3, bias=False).double(), LinearClassifier(DIM, 3).double()
    assert torch.equal(counterfactual_tde(plain, x, d * 0, 2.0), plain(x))
    assert_close(counterfactual_tde(biased, x, d * 0, 2.0), biased(x) - 2 * biased.bias, 1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_a_masked_class_stays_masked(alpha):
    x, w, d = draw(8, 4, 3, 1)
    masked = FoldedClassifier(w, bias=torch.tensor([0, -math.inf, 0], dtype=torch.float64))
    logits = counterfactual_tde(masked, x, d, alpha)
    assert (logits[:, 1] == -math.inf).all()
    assert_close(logits[:, [0, 2]], counterfactual_tde(FoldedClassifier(w), x, d, alpha)[:, [0, 2]], 1e-12)


def test_gradients_are_those_of_the_formula():
    torch.manual_seed(0)
    fn, (x, _, d) = MlpClassifier(DIM, 3).double(), draw(9, 2, 3, 2)
    assert torch.autograd.gradcheck(lambda a: counterfactual_tde(fn, a, d, 1.5), x.requires_grad_())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_and_alpha_must_be_finite(value):
    x, w, d = draw(9, 4, 3, 2)
    with pytest.raises(InputError, match="alpha: expected a finite number"):
        counterfactual_tde(FoldedClassifier(w), x, d, value)
    x[2, 1] = value
    with pytest.raises(InputError, match=r"features: expected finite numbers, .*first: row 2"):
        counterfactual_tde(FoldedClassifier(w), x, d, 1.0)


def test_a_direction_of_another_width_is_refused():
    x, w, d = draw(9, 4, 3, 2)
    with unchecked(), pytest.raises(InputError, match=r"features: expected shape \[N, 10\], got \[4, 12\]"):
        counterfactual_tde(FoldedClassifier(w), x, d[:, :5], 1.0)
    with unchecked(), pytest.raises(InputError, match=r"direction: expected shape \[K, D/K\], got \[12\]"):
        counterfactual_tde(FoldedClassifier(w), x, d.flatten(), 1.0)


@pytest.mark.parametrize("shape", [(1, DIM // 2), (DIM // 2,), (2, 1), (3, DIM // 2)])
def test_equation_8_has_a_direction_for_each_head(shape):
    """Another shape would be broadcast over the heads, or not at all."""
    x, w, _ = draw(9, 4, 3, 2)
    settings = {"num_heads": 2, "tau": 16.0, "gamma": 0.03}
    with unchecked(), pytest.raises(InputError, match=r"direction: expected shape \[2, 6\], got \["):
        tde_logits(x, w, torch.zeros(shape, dtype=x.dtype), 1.0, **settings)
