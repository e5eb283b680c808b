"""Classes without a training image are never predicted unless allowed."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from causal_oracles import assert_close
from decoupling_oracles import DIM, DISTANCES, linear, long_tail, normal, oracle_ncm
from tailwise import ClassCounts, InputError
from tailwise.adjust import (
    fit_crt,
    fit_lws,
    fit_ncm,
    fold_linear,
    fold_mean_direction,
    fold_tau_norm,
    fold_tde,
    learn_norm_power,
    mask_unseen,
    predictions_by_alpha,
    predictions_by_norm_power,
    tau_norm_components,
    tde,
    tde_components,
)
from tailwise.classifiers import CausalClassifier, LinearClassifier, ScaledClassifier

COUNTS = ClassCounts((9, 4, 0, 3, 1))

TRAIN_LABELS = torch.tensor([c for c, n in enumerate(COUNTS.per_class) for _ in range(n)])


def train_features(dtype=torch.float32):
    return normal(60, len(TRAIN_LABELS), DIM, dtype=dtype)


def causal():
    classifier = CausalClassifier(DIM, 5)
    classifier.weight.data.copy_(linear(61).weight)
    classifier(train_features())
    return classifier.eval()


def plain():
    return linear(61, dtype=torch.float32)


def scaled():
    classifier = ScaledClassifier(plain().weight, plain().bias)
    classifier.scale.data.copy_(torch.linspace(0.5, 2, 5))
    return classifier


def tau_logits(x, **kw):
    z, norms = tau_norm_components(x, plain(), **kw)
    return z / norms**0.7


def tde_difference(x, **kw):
    a, b = tde_components(x, causal(), **kw)
    return a - 1.5 * b


OF_COUNTS = {  # features, and counts and allow_unseen by name
    "mask_unseen": lambda x, **kw: mask_unseen(plain()(x), kw.pop("counts", None), **kw),
    "fold_tau_norm": lambda x, **kw: fold_tau_norm(plain(), 0.7, **kw)(x),
    "tau_norm_components": tau_logits,
    "fold_tde": lambda x, **kw: fold_tde(causal(), 1.5, **kw)(x),
    "tde": lambda x, **kw: tde(x, causal(), 1.5, **kw),
    "tde_components": tde_difference,
    "fold_mean_direction": lambda x, **kw: fold_mean_direction(plain(), train_features(), 0.7, **kw)[0](x),
    "fold_linear": lambda x, **kw: fold_linear(plain(), **kw)(x),
    "fold_linear, scaled": lambda x, **kw: fold_linear(scaled(), **kw)(x),
}

OF_LABELS = {  # features, training features and labels, and allow_unseen by name
    "fit_ncm, cosine": lambda x, *train, **kw: fit_ncm(*train, 5, distance="cosine", **kw)(x),
    "fit_ncm, l2": lambda x, *train, **kw: fit_ncm(*train, 5, distance="l2", **kw)(x),
    "fit_ncm, centered": lambda x, *train, **kw: fit_ncm(*train, 5, distance="centered", **kw)(x),
    "fit_crt": lambda x, *train, **kw: fit_crt(*train, 5, epochs=2, **kw)(x),
    "fit_lws": lambda x, *train, **kw: fit_lws(*train, plain(), epochs=2, **kw)(x),
}


def adjusted(name, x, **kw):
    """Logits where class 2 has no training image."""
    if name in OF_COUNTS:
        return OF_COUNTS[name](x, counts=COUNTS, **kw)
    return OF_LABELS[name](x, train_features(), TRAIN_LABELS, **kw)


every_adjuster = pytest.mark.parametrize("name", [*OF_COUNTS, *OF_LABELS])


@every_adjuster
def test_a_class_without_an_image_is_never_predicted_unless_allowed(name):
    x = normal(62, 40, DIM, dtype=torch.float32)
    allowed = adjusted(name, x, allow_unseen=True)  # any warning would be an error here
    assert allowed.isfinite().all()
    with pytest.warns(UserWarning, match=r"1 of 5 classes .*\b2\b") as warned:
        logits = adjusted(name, x)
    assert len(warned) == 1
    assert (logits[:, 2] == -math.inf).all()
    assert 2 not in logits.argmax(dim=1)
    others = [0, 1, 3, 4]
    assert torch.equal(logits[:, others], allowed[:, others])


@pytest.mark.parametrize("name", OF_COUNTS)
def test_without_counts_or_without_an_empty_class_nothing_is_masked(name):
    x = normal(62, 40, DIM, dtype=torch.float32)
    free = OF_COUNTS[name](x)
    assert torch.equal(free, OF_COUNTS[name](x, counts=None))
    assert torch.equal(free, OF_COUNTS[name](x, counts=COUNTS, allow_unseen=True))
    assert torch.equal(free, OF_COUNTS[name](x, counts=ClassCounts((1, 1, 1, 1, 1))))


@pytest.mark.parametrize("name", OF_COUNTS)
def test_without_the_mask_the_class_would_be_predicted(name, monkeypatch):
    """A weight row that is the query itself: the mask alone keeps the class out."""
    x = normal(63, 6, DIM, dtype=torch.float32).abs()
    for make in (plain, causal, scaled):
        classifier = make()
        classifier.weight.data[2] = 30 * x.mean(0)
        monkeypatch.setitem(globals(), make.__name__, lambda classifier=classifier: classifier)
    assert 2 in adjusted(name, x, allow_unseen=True).argmax(dim=1)
    with pytest.warns(UserWarning, match="never predicted"):
        assert 2 not in adjusted(name, x).argmax(dim=1)


@pytest.mark.parametrize("name", OF_COUNTS)
@pytest.mark.parametrize("per_class", [(1, 1), (1, 0, 1, 1, 1, 1), (0, 0, 0, 0, 0, 1)], ids=str)
@pytest.mark.parametrize("allow_unseen", [False, True])
def test_counts_of_another_number_of_classes_are_refused(name, per_class, allow_unseen):
    with pytest.raises(InputError, match=f"counts: expected 5 classes, got {len(per_class)}"):
        OF_COUNTS[name](
            normal(62, 4, DIM, dtype=torch.float32), counts=ClassCounts(per_class), allow_unseen=allow_unseen
        )


def test_every_class_without_an_image_is_masked_and_the_input_left_alone():
    logits = normal(64, 3, 4)
    before = logits.clone()
    with pytest.warns(UserWarning, match=r"2 of 4 classes .*\b0\b.*\b3\b"):
        masked = mask_unseen(logits, ClassCounts((0, 1, 2, 0)))
    assert torch.equal(logits, before)
    assert masked.isinf().tolist() == [[True, False, False, True]] * 3
    assert torch.equal(masked[:, 1:3], logits[:, 1:3])


def test_allowed_unseen_classes_of_ncm_have_a_mean_of_zero():
    x, queries = train_features(torch.float64), normal(65, 4, DIM)
    for distance in DISTANCES:
        actual = fit_ncm(x, TRAIN_LABELS, 5, distance=distance, allow_unseen=True)(queries)
        assert_close(actual, oracle_ncm(x, TRAIN_LABELS, 5, queries, distance), 1e-10)


def test_bias_free_lws_masks_too():
    classifier = plain()
    without = LinearClassifier(DIM, 5, bias=False)
    without.weight.data.copy_(classifier.weight)
    with pytest.warns(UserWarning, match="never predicted"):
        fold = fit_lws(train_features(), TRAIN_LABELS, without, epochs=1)
    logits = fold(normal(66, 4, DIM, dtype=torch.float32))
    assert logits.isinf().tolist() == [[False, False, True, False, False]] * 4


@pytest.mark.parametrize("zero", [1, 3], ids=["that occurs", "that does not"])
def test_the_scale_of_all_weights_changes_nothing_beside_a_class_of_zeros(zero):
    x, y = long_tail(spread=2.0)
    weight, powers = torch.tensor([[4.0, 0.0], [-0.5, 0.9], [-0.25, -0.4], [0.3, -0.8]], dtype=torch.float64), []
    weight[zero] = 0
    classifier = LinearClassifier(2, 4).double()
    for scale in (0.01, 1.0, 100.0):
        classifier.weight.data.copy_(scale * weight)
        powers.append(learn_norm_power(tau_norm_components(x / scale, classifier), y))
    assert 0.05 < powers[1] < 1.95
    assert powers == pytest.approx([powers[1]] * 3, abs=2e-3)


def test_of_weights_of_zero_the_lowest_power_is_returned():
    x, y = long_tail()
    classifier = LinearClassifier(2, 3).double()
    classifier.weight.data.zero_()
    assert learn_norm_power(tau_norm_components(x, classifier), y, lowest=0.5) == pytest.approx(0.5, abs=1e-3)


def test_the_sweeps_of_masked_components_leave_the_class_out():
    x, seen = train_features(), [0, 1, 3, 4]
    with pytest.warns(UserWarning, match="never predicted"):
        z, norms = tau_norm_components(x, plain(), counts=COUNTS)
    dropped = z[:, seen], norms[seen]
    assert np.array_equal(predictions_by_norm_power((z, norms)), np.array(seen)[predictions_by_norm_power(dropped)])
    with pytest.warns(UserWarning, match="never predicted"):
        a, b = tde_components(x, causal(), counts=COUNTS)
    assert np.array_equal(predictions_by_alpha((a, b)), np.array(seen)[predictions_by_alpha((a[:, seen], b[:, seen]))])


ONCE = """
import torch
from tailwise import ClassCounts, CausalClassifier, LinearClassifier, fold_tde
from tailwise.adjust import fit_ncm, fold_linear, fold_tau_norm, mask_unseen
counts, x, y = ClassCounts((3, 0, 2)), torch.rand(5, 4), torch.tensor([0, 0, 0, 2, 2])
linear = LinearClassifier(4, 3)
mask_unseen(linear(x), counts)
mask_unseen(linear(x), counts)
for _ in range(2):
    fold_tau_norm(linear, 0.5, counts=counts)
fold_linear(linear, counts)
fold_tde(CausalClassifier(4, 3), 1.0, counts=counts)
fit_ncm(x, y, 3)
"""


def test_the_warning_comes_once_per_process():
    # "default" shows a warning once per place it is raised at: as Python's own filters do, beyond __main__ too
    done = subprocess.run([sys.executable, "-W", "default", "-c", ONCE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no training image") == 1, done.stderr
