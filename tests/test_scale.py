"""Nothing grows faster than linearly: the exponents of `benchmarks/scale.py`, and memory that says so in small."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import curves
import scale
from tailwise import ClassCounts
from tailwise.adjust import ALPHAS, NORM_POWERS, predictions_by_alpha, predictions_by_norm_power, sweep_alpha
from tailwise.data import frozen_order
from tailwise.evaluate import Store, mean_per_class_accuracy
from tailwise.evaluate.metrics import METRICS, metric
from tailwise.sampling import (
    Members,
    class_aware_draw,
    class_draw,
    class_probabilities,
    cyclic_draw,
    instance_draw,
    repeat_draw,
    repeat_factors,
)

# ---- the fit

SIZES = [10 ** (k / 2) for k in range(6, 15)]


def curve(of, **more):
    points = [{"x": x, "seconds": of(x), "bytes": 1e9 * of(x)} for x in SIZES]
    return {"part": "p", "name": "n", "against": "samples", "at": "-", "points": points, **more}


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_fit_recovers_the_exponent_below_an_overhead(power):
    found = curves.exponent(curve(lambda x: 0.01 + 1e-3 * x**power), "seconds")
    assert found == pytest.approx(power, abs=0.02)


def test_fit_is_not_misled_by_the_small_end():
    """A linear cost of which the overhead is all there is to see below 10^4."""
    assert curves.exponent(curve(lambda x: 1.0 + 1e-4 * x), "seconds") == pytest.approx(0.9, abs=0.12)


def test_what_cannot_be_measured_has_no_exponent():
    assert curves.exponent(curve(lambda x: 1e-12 * x), "seconds") is None


def test_verdict():
    for of, steep in (
        (lambda x: 1e-6 * x, 0),
        (lambda x: 1e-7 * x * np.log(x), 0),
        (lambda x: 1e-9 * x**1.3, 2),  # time and memory
        (lambda x: 1e-12 * x**2, 2),
    ):
        assert len(curves.too_steep({"curves": [curve(of)]})) == steep


def test_caches_excuse_draws_by_as_much_as_they_bend_random_reads():
    reads = curve(lambda x: 1e-9 * x**1.4, part="sampler", name=curves.REFERENCES["sampler"])
    for power, steep in ((1.4, 0), (1.6, 1), (2.0, 1)):
        own = curve(lambda x, power=power: 1e-9 * x**power, part="sampler")
        for point in own["points"]:
            del point["bytes"]
        assert len(curves.too_steep({"curves": [reads, own]})) == steep
        assert len(curves.too_steep({"curves": [reads, {**own, "part": "metrics"}]})) == 1


def test_every_curve_can_be_measured(tmp_path):
    scale.SCRATCH[:] = [str(tmp_path)]
    for part in scale.all_curves(quick=True):
        part.build(part.sizes[0])()


def test_table_has_a_line_for_every_curve():
    linear, square = curve(lambda x: 1e-6 * x), curve(lambda x: 1e-6 * x**2, part="q")
    lines = curves.table({"curves": [linear, square]}).splitlines()
    assert [line.split()[-1] for line in lines if "--" not in line] == ["~", "1.00", "2.00"]


# ---- memory


class Largest(TorchDispatchMode):
    """The most bytes of any tensor that an operation gives back."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.bytes = max([self.bytes, *sizes])
        return out


SHARE = np.arange(2000) % 300


@pytest.mark.parametrize(
    ("sweep", "values"),
    [
        (lambda z, other: predictions_by_alpha((z, other)), ALPHAS),
        (lambda z, other: predictions_by_norm_power((z, other[0] + 1)), NORM_POWERS),
        (lambda z, other: sweep_alpha((z, other), lambda p: mean_per_class_accuracy(p, SHARE, 300)), ALPHAS),
    ],
)
def test_sweep_makes_nothing_of_samples_by_classes(sweep, values):
    """A block of logits and the predictions: never [N, C], let alone one for each value."""
    z, other = torch.rand(2000, 300), torch.rand(2000, 300)
    with Largest() as largest:
        sweep(z, other)
    assert largest.bytes <= 8 * len(values) * len(z) < z.nbytes


def peak_of(work):
    """Bytes that numpy and Python held at most during the call."""
    work()  # what is made once, caches and imports, is not counted
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LABELS = np.repeat(np.arange(20_000), np.where(np.arange(20_000) < 200, 101, 1))
COUNTS = ClassCounts.of_labels(LABELS, 20_000)


@pytest.mark.parametrize("name", [name for name in METRICS if name != "medium"])
def test_metrics_keep_counts_for_each_class(name):
    predicted = np.roll(LABELS, 1)
    assert peak_of(lambda: metric(name, LABELS, COUNTS)(predicted)) < 100 * (len(LABELS) + COUNTS.num_classes)


MEMBERS = Members.of(LABELS, COUNTS)
BALANCED = class_probabilities(COUNTS, 0)


@pytest.mark.parametrize(
    "draw",
    [
        partial(instance_draw, len(LABELS), 0, 1),
        partial(class_draw, MEMBERS, BALANCED, 0, 1),
        partial(cyclic_draw, MEMBERS, BALANCED, 0, 1),
        partial(class_aware_draw, MEMBERS, 0, 1),
        partial(repeat_draw, MEMBERS, repeat_factors(COUNTS, 1e-4), 0, 1),
    ],
)
def test_draws_hold_a_few_numbers_for_each_sample_and_class(draw):
    assert peak_of(draw) < 400 * (len(LABELS) + COUNTS.num_classes)


def test_store_copies_no_logits_and_keeps_nothing_else_of_their_size(tmp_path):
    rng = np.random.default_rng(0)
    features, logits = rng.random((500, 8), dtype=np.float32), rng.random((500, 4000), dtype=np.float32)

    def store():
        return Store(features, logits, np.arange(500), np.arange(500), "digest", "val")

    made = store()
    assert peak_of(store) < logits.nbytes / 10
    assert peak_of(lambda: made.save(tmp_path / "store")) < logits.nbytes / 10
    assert peak_of(lambda: Store.load(tmp_path / "store", "digest")) < logits.nbytes / 10
    on_disk = sum(path.stat().st_size for path in (tmp_path / "store").iterdir())
    assert on_disk < 4 * 500 * (8 + 4000) + 16 * 500 + 2000


class Read(np.ndarray):
    """Labels that count how many of them arithmetic and comparisons read."""

    count = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        Read.count += self.size
        return getattr(ufunc, method)(*(np.asarray(x) for x in inputs), **kwargs)


def test_frozen_order_does_not_search_all_labels_for_each_class():
    labels = np.arange(3000) % 1000
    Read.count = 0
    orders = frozen_order(labels.view(Read), "toy", 0)
    assert [len(order) for order in orders] == [3] * 1000
    assert Read.count <= 10 * len(labels)
