"""The equations of Tang et al. 2020 as slow float64 loops, and what the tests that use them share.

Eq. 5 to 9, Assumption 1 and supplement B and C, one example, one class, one head at a time. Nothing here was derived
from the library's code.
"""

import contextlib
import decimal
import math

import jaxtyping
import numpy as np
import torch

from tailwise.classifiers import CapsuleClassifier, CausalClassifier, CosineClassifier

DIM = 12
HEADS = (1, 2, 4)
CLASS_COUNTS = (1, 3, 7)
BATCH_SIZES = (1, 5)
ALPHAS = (0.0, 1.0, 1.5, 3.0, -0.5)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
MODULES = {"causal": CausalClassifier, "cosine": CosineClassifier, "capsule": CapsuleClassifier}
# tau, gamma and norm: the defaults of the three classifiers, and two others
HYPERPARAMETERS = {
    "causal": {"tau": 16.0, "gamma": 1 / 32, "norm": "unit"},
    "cosine": {"tau": 16.0, "gamma": 0.0, "norm": "unit"},
    "capsule": {"tau": 16.0, "gamma": 0.0, "norm": "capsule"},
    "causal, other": {"tau": 1.0, "gamma": 0.5, "norm": "unit"},
    "capsule, gamma": {"tau": 5.0, "gamma": 0.25, "norm": "capsule"},
}
# Features by type and size, and the tolerance. The squares of most overflow or vanish.
SCALES = [
    (torch.float64, 1e-200, 1e-10),
    (torch.float64, 1e200, 1e-10),
    (torch.float32, 1e-6, 1e-5),
    (torch.float32, 1e-25, 1e-5),
    (torch.float32, 1e25, 1e-5),
    (torch.float16, 300.0, 1e-2),
    (torch.float16, 2e4, 1e-2),
    (torch.bfloat16, 1e-25, 5e-2),
    (torch.bfloat16, 1e25, 5e-2),
]


# ---------------------------------------------------------------------------------------------------- the oracles


def rows(values):
    """Any matrix as nested lists of Python floats."""
    if isinstance(values, torch.Tensor):
        values = values.detach().to(torch.float64).numpy()
    return np.asarray(values, dtype=np.float64).tolist()


def length(vector):
    return math.hypot(*vector)  # its squares do not overflow


def dot(left, right):
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def cosine(left, right):
    """A zero vector has no direction: its cosine with anything is 0."""
    size = length(left) * length(right)
    return dot(left, right) / size if size > 0 else 0.0


def head(vector, k, num_heads):
    """The k-th of K equal groups of channels (text under Eq. 5)."""
    width = len(vector) // num_heads
    return vector[k * width : (k + 1) * width]


def oracle_tde(features, weight, direction, alpha, *, num_heads, tau, gamma, norm):
    """Eq. 8: tau/K sum_k  w_k . (x_k - alpha cos(x_k, d_k) |x_k| d_k) / ((|w_k| + gamma) |x_k|).

    Under norm "capsule" |x_k| + 1 takes the place of the last |x_k| (supplement B). 0/0 is no evidence: 0.
    """
    features, weight, direction = rows(features), rows(weight), rows(direction)
    logits = np.zeros((len(features), len(weight)))
    for n, x in enumerate(features):
        for c, w in enumerate(weight):
            for k in range(num_heads):
                x_k, w_k, d_k = head(x, k, num_heads), head(w, k, num_heads), direction[k]
                denominator = (length(w_k) + gamma) * (length(x_k) + (norm == "capsule"))
                if denominator > 0:
                    evidence = dot(w_k, x_k) / denominator
                    effect = cosine(x_k, d_k) * length(x_k) * dot(w_k, d_k) / denominator
                    logits[n, c] += tau / num_heads * (evidence - alpha * effect)
    return logits


def oracle_logits(features, weight, *, num_heads, **settings):
    """Eq. 7: tau/K sum_k  w_k . x_k / ((|w_k| + gamma) |x_k|), which is Eq. 8 with nothing taken away."""
    nothing = np.zeros((num_heads, features.shape[1] // num_heads))
    return oracle_tde(features, weight, nothing, 0.0, num_heads=num_heads, **settings)


def oracle_average(steps, momentum, start=None):
    """Assumption 1: x_t = mu x_{t-1} + mean of the examples of step t. No (1 - mu)."""
    width = steps[0].shape[1]
    value = np.zeros(width) if start is None else np.array(rows(start))
    for step in steps:
        mean = [math.fsum(column) / len(step) for column in zip(*rows(step), strict=True)]
        value = momentum * value + np.array(mean)
    return value


def oracle_direction(value, num_heads):
    """The unit vector of the average, one per head (Eq. 8 has each d_k under its own hat)."""
    parts = [head(rows(value), k, num_heads) for k in range(num_heads)]
    return np.array([[v / (length(part) or 1.0) for v in part] for part in parts])


def oracle_cosine(features, direction, num_heads):
    """cos(x_k, d_k) of Eq. 8, averaged over heads."""
    direction = rows(direction)
    return np.array(
        [np.mean([cosine(head(x, k, num_heads), direction[k]) for k in range(num_heads)]) for x in rows(features)]
    )


def oracle_exempted(logits, tde_logits, exempt):
    """Eq. 9, literally, in 250 digits, so that even 1 - q_0 = 1e-170 is exact.

    p_i for the exempt classes; (1 - sum of exempt p) q_i / (1 - sum of exempt q) for the others.
    """
    exempt = {exempt} if isinstance(exempt, int) else set(exempt)
    out = []
    with decimal.localcontext() as context:
        context.prec = 250
        for y, z in zip(rows(logits), rows(tde_logits), strict=True):
            p, q = ([decimal.Decimal(v).exp() for v in row] for row in (y, z))
            p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
            p_rest, q_rest = 1 - sum(p[c] for c in exempt), 1 - sum(q[c] for c in exempt)
            out.append([float(p[c] if c in exempt else p_rest * q[c] / q_rest) for c in range(len(p))])
    return np.array(out)


# --------------------------------------------------------------------------------------------------------- inputs


def draw(seed, num_rows, num_classes, num_heads, dtype=torch.float64, dim=DIM):
    """Features with an average that is not 0, weights, and a unit direction per head."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64) + 0.4
    weight = 0.3 * torch.randn(num_classes, dim, generator=generator, dtype=torch.float64)
    direction = torch.randn(num_heads, dim // num_heads, generator=generator, dtype=torch.float64) + 0.3
    direction = direction / direction.norm(dim=1, keepdim=True)
    return features.to(dtype), weight.to(dtype), direction.to(dtype)


def batches(seed, *sizes, dim=DIM, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, dim, generator=generator, dtype=torch.float64) + 0.5).to(dtype) for n in sizes]


def trained(kind, num_heads=2, num_classes=7, dtype=torch.float64, seed=0):
    """A classifier whose average has moved over three batches, in eval mode."""
    classifier = MODULES[kind](DIM, num_classes, num_heads=num_heads).to(dtype)
    classifier.weight.data.copy_(draw(seed, 1, num_classes, num_heads)[1])
    for batch in batches(seed, 4, 2, 5, dtype=dtype):
        classifier(batch)
    return classifier.eval()


def degenerate_inputs():
    """Features and weights of which something is zero, one or none."""
    x, w, _ = draw(13, 4, 3, 1)
    first_half, second_half = torch.arange(DIM) < DIM // 2, torch.arange(DIM) >= DIM // 2
    second_row, last_class = torch.arange(4)[:, None] == 1, torch.arange(3)[:, None] == 2
    return {
        "zero features": (x * 0, w),
        "zero weight": (x, w * 0),
        "all zero": (x * 0, w * 0),
        "one zero row": (x.masked_fill(second_row, 0), w),
        "one zero class": (x, w.masked_fill(last_class, 0)),
        "zero heads in features": (x.masked_fill(first_half, 0), w),
        "zero heads in weight": (x, w.masked_fill(second_half, 0)),
        "zero heads in both": (x.masked_fill(first_half, 0), w.masked_fill(second_half, 0)),
        "one row": (x[:1], w),
        "one class": (x, w[:1]),
        "one row, one class": (x[:1], w[:1]),
        "no row": (x[:0], w),
    }


DEGENERATE = degenerate_inputs()


# --------------------------------------------------------------------------------------------------------- checks


@contextlib.contextmanager
def unchecked():
    """Without the suite's own type checker, which would refuse some wrong input before the library can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def assert_close(actual, expected, tolerance, beside=0.0):
    """The largest error, relative to the largest expected value.

    `beside`: the logits of Eq. 7, where those of Eq. 8 may cancel (one row, one class: 1.18 - 1.20).
    """
    actual, expected = np.asarray(rows(actual)), np.asarray(rows(expected))
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all(), actual
    if expected.size:
        scale = max(np.abs(expected).max(), np.abs(rows(beside)).max()) or 1.0
        error = np.abs(actual - expected).max() / scale
        assert error <= tolerance, f"relative error {error:.3e} above {tolerance:.0e}"


def assert_finite_gradients(logits, *leaves):
    assert logits.isfinite().all()
    for gradient in torch.autograd.grad(logits.sum(), leaves):
        assert gradient.isfinite().all()
