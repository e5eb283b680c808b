"""The feature average (Assumption 1) in one process."""

import copy
import io
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from causal_oracles import (
    DIM,
    HEADS,
    MODULES,
    assert_close,
    batches,
    oracle_average,
    oracle_direction,
    trained,
    unchecked,
)
from tailwise import InputError
from tailwise.classifiers import CausalClassifier, FeatureAverage

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


# --------------------------------------------------------------------------------------------------- what it holds


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.9998, 1.0])
@pytest.mark.parametrize("num_heads", HEADS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_average_follows_assumption_1(dtype, num_heads, momentum):
    steps = batches(20, 4, 1, 7, 3, 64, 2, dtype=dtype)
    average = FeatureAverage(DIM, num_heads=num_heads, momentum=momentum).to(dtype)
    assert_close(average.value, torch.zeros(DIM), 0)
    for count, step in enumerate(steps, start=1):
        average(step)
        expected = oracle_average(steps[:count], momentum)
        assert_close(average.value, expected, TOLERANCE[dtype])
        assert_close(average.direction(), oracle_direction(expected, num_heads), 10 * TOLERANCE[dtype])


def test_momentum_may_change_between_steps():
    average = FeatureAverage(DIM).double()
    expected = torch.zeros(DIM)
    for step, momentum in zip(batches(41, 4, 3, 5, 2), (0.9, 0.5, 1.0, 0.25), strict=True):
        average.momentum = momentum
        average(step)
        expected = oracle_average([step], momentum, start=expected)
        assert_close(average.value, expected, 1e-12)


def test_average_moves_without_gradients_and_keeps_no_graph():
    steps = batches(23, 3, 5)
    average = FeatureAverage(DIM).double()
    with torch.no_grad():
        average(steps[0])
    average(steps[1].clone().requires_grad_() * 1.0)
    assert_close(average.value, oracle_average(steps, 0.9), 1e-12)
    assert not average.value.requires_grad


@pytest.mark.parametrize("kind", MODULES)
def test_a_classifier_moves_its_average_in_training_only(kind):
    steps = batches(21, 4, 1, 7)
    classifier = MODULES[kind](DIM, 3, momentum=0.7).double()
    for step in steps:
        classifier.train()(step)
        classifier.eval()(step * 100)
    assert_close(classifier.average.value, oracle_average(steps, 0.7), 1e-12)


@pytest.mark.parametrize("kind", MODULES)
def test_state_dict_carries_the_average(kind):
    classifier = trained(kind, dtype=torch.float32).train()
    file = io.BytesIO()
    torch.save(classifier.state_dict(), file)
    file.seek(0)
    loaded, twin = MODULES[kind](DIM, 7, num_heads=2), copy.deepcopy(classifier)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert classifier.average.value.abs().max() > 0
    (step,) = batches(40, 6, dtype=torch.float32)
    for module in (classifier, loaded, twin):  # each goes on from the same value
        module(step)
        assert torch.equal(module.average.value, classifier.average.value)


@pytest.mark.parametrize(
    "wrong",
    [{"num_heads": 5}, {"num_heads": 0}, {"update_every": 0}, {"momentum": -0.1}, {"momentum": 1.1}, {"momentum": "x"}],
    ids=str,
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(InputError), unchecked():
        FeatureAverage(DIM, **wrong)


# ---------------------------------------------------------------------------------- once per step, on its examples


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", [(3, 1, 6, 2), (1, 1, 1, 9), (4, 0, 4, 4)], ids=str)
def test_four_micro_batches_are_one_batch(sizes, dtype):
    steps = [batches(seed, *sizes, dtype=dtype) for seed in (24, 25, 26)]
    average = FeatureAverage(DIM, update_every=4).to(dtype)
    for count, (*first_three, last) in enumerate(steps, start=1):
        before = average.value.clone()
        for part in first_three:
            average(part)
        assert torch.equal(average.value, before)  # the step is not over
        average(last)
        expected = oracle_average([torch.cat(parts) for parts in steps[:count]], 0.9)
        assert_close(average.value, expected, TOLERANCE[dtype])


def test_update_every_may_change_between_steps():
    one, two, three = batches(27, 3, 1, 5)
    average = FeatureAverage(DIM).double()
    average(one)
    average.update_every = 2
    average(two)
    average(three)
    assert_close(average.value, oracle_average([one, torch.cat([two, three])], 0.9), 1e-12)


def test_a_step_that_broke_off_is_none():
    """Training that died between two micro-batches, and begins anew: it says how many a step has, and all count."""
    lost, *parts = batches(28, 3, 1, 5, 2, 4)
    average = FeatureAverage(DIM, update_every=4).double()
    average(lost)
    average.update_every = 4
    for part in parts:
        assert not average.value.any()
        average(part)
    assert_close(average.value, oracle_average([torch.cat(parts)], 0.9), 1e-12)
    with pytest.raises(InputError, match="update_every: expected a whole number of at least 1, got 0"):
        average.update_every = 0


@pytest.mark.parametrize("update_every", [1, 2])
def test_eval_and_hold_count_for_nothing(update_every):
    *parts, other = batches(28, 3, 1, 5)
    average = FeatureAverage(DIM, update_every=update_every).double()
    average(parts[0])
    before = average.value.clone()
    average.eval()
    average(other)
    average.train()
    with average.hold():
        with average.hold():
            average(other)
        average(other)  # leaving an inner hold does not end the outer one
    assert torch.equal(average.value, before)
    with pytest.raises(KeyError), average.hold():
        raise KeyError
    average(parts[1])  # an error inside the block ended it
    steps = parts if update_every == 1 else [torch.cat(parts)]
    assert_close(average.value, oracle_average(steps, 0.9), 1e-12)


@pytest.mark.parametrize("update_every", [1, 2])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_the_forward_that_checkpointing_repeats_counts_once(use_reentrant, update_every):
    classifier = CausalClassifier(DIM, 3).double()
    classifier.average.update_every = update_every
    forwards = []

    def forward(x):
        forwards.append(x)
        return classifier(x)

    parts = batches(30, 3, 5, 2, 6)
    for part in parts:
        checkpoint(forward, part.clone().requires_grad_(), use_reentrant=use_reentrant).sum().backward()
    assert len(forwards) == 2 * len(parts)
    steps = parts if update_every == 1 else [torch.cat(parts[:2]), torch.cat(parts[2:])]
    assert_close(classifier.average.value, oracle_average(steps, 0.9), 1e-12)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_two_checkpoints_before_one_backward_count_twice(use_reentrant):
    first, second, third = batches(31, 4, 3, 2)
    classifier = CausalClassifier(DIM, 3).double()
    outs = [checkpoint(classifier, x.clone().requires_grad_(), use_reentrant=use_reentrant) for x in (first, second)]
    sum(out.sum() for out in outs).backward()
    assert_close(classifier.average.value, oracle_average([first, second], 0.9), 1e-12)
    classifier(third).sum().backward()  # and a plain step after it still counts
    assert_close(classifier.average.value, oracle_average([first, second, third], 0.9), 1e-12)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf], ids=str)
def test_a_batch_without_rows_or_with_a_value_that_is_not_finite_changes_nothing(value):
    good = batches(36, 4, 3)
    bad = torch.rand(5, DIM, dtype=torch.float64)[: 0 if value is None else 5]
    bad[2:3, 7] = math.nan if value is None else value
    average = FeatureAverage(DIM).double()
    average(bad)
    assert_close(average.value, torch.zeros(DIM), 0)
    average(good[0])
    average(bad)
    average(good[1])
    assert_close(average.value, oracle_average(good, 0.9), 1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_micro_batch_that_is_not_finite_spoils_its_own_step_only(value):
    first, spoiled, *good = batches(38, 4, 3, 2, 2)
    spoiled[0, 0] = value
    average = FeatureAverage(DIM, update_every=2).double()
    average(first)
    average(spoiled)
    assert_close(average.value, torch.zeros(DIM), 0)
    for part in good:
        average(part)
    assert_close(average.value, oracle_average([torch.cat(good)], 0.9), 1e-12)


# ----------------------------------------------------------------------------------------------- float32 at least


def test_average_is_float32_under_autocast():
    backbone, classifier = torch.nn.Linear(DIM, DIM), CausalClassifier(DIM, 3)
    seen = []
    for step in batches(32, 5, 3, 8, dtype=torch.float32):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = backbone(step)
            F.cross_entropy(classifier(features), torch.zeros(len(step), dtype=torch.int64)).backward()
            direction = classifier.average.direction()
        assert features.dtype is torch.bfloat16
        assert classifier.average.value.dtype is torch.float32
        seen.append(features.detach())
        expected = oracle_average(seen, 0.9)
        assert_close(classifier.average.value, expected, 1e-6)
        assert_close(direction, oracle_direction(expected, 2), 1e-5)


@pytest.mark.parametrize(
    "cast",
    [
        lambda module: module.half(),
        lambda module: module.bfloat16(),
        lambda module: module.to(device="cpu", dtype=torch.float16),
        lambda module: torch.nn.Sequential(module).half()[0],
    ],
    ids=("half", "bfloat16", "to", "inside another"),
)
def test_casting_a_classifier_to_half_keeps_its_average(cast):
    *steps, last = batches(33, 5, 3, 4, dtype=torch.float32)
    classifier = CausalClassifier(DIM, 3)
    for step in steps:
        classifier(step)
    before = classifier.average.value.clone()
    classifier = cast(classifier)
    assert classifier.average.value.dtype is torch.float32
    assert torch.equal(classifier.average.value, before)
    last = last.to(classifier.weight.dtype)
    classifier(last)
    assert_close(classifier.average.value, oracle_average([*steps, last], 0.9), 1e-6)


@pytest.mark.parametrize("update_every", [1, 2])
def test_mean_of_half_features_is_taken_in_float32(update_every):
    # 2000 rows of 300 sum to 600000, far above float16's 65504; 1/2048 beside 1 is lost when summed in half
    x = torch.full((2000, DIM), 300.0, dtype=torch.float16)
    x[::2, 0], x[1::2, 0] = 1.0, 1.0 + 2.0**-10
    average = FeatureAverage(DIM, update_every=update_every).half()
    for _ in range(update_every):
        average(x)
    assert_close(average.value, oracle_average([x], 0.9), 1e-6)
    assert average.value[0].item() == pytest.approx(1 + 2.0**-11, rel=1e-6)
