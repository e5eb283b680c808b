"""What region classifiers are trained by, and what their averages take in: oracles from the definitions, and limits."""

import datetime
import math
import os
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist

from causal_oracles import assert_close, batches, oracle_average
from tailwise.checks import InputError
from tailwise.classifiers import CausalClassifier, LinearClassifier
from tailwise.counts import ClassCounts
from tailwise.detect.region_classifier import RegionClassifier
from tailwise.detect.region_losses import (
    EachAgainstTheRest,
    Federated,
    RegionLoss,
    SeesawWithObjectness,
    WithBackground,
    balanced_with_background,
    equalization_with_background,
    federated,
    sampled_classes,
)
from tailwise.losses import CrossEntropy, Focal

COUNTS = ClassCounts((600, 60, 6, 1))
IMAGES = 610  # of which some show several classes
C = COUNTS.num_classes
LOSSES = {
    "cross-entropy": lambda: WithBackground(C, CrossEntropy(reduction="none")),
    "focal": lambda: WithBackground(C, Focal(reduction="none")),
    "balanced softmax": lambda: balanced_with_background(COUNTS),
    "equalization": lambda: equalization_with_background(COUNTS, IMAGES, threshold=0.02),
    "federated": lambda: EachAgainstTheRest(C, Federated(COUNTS, num_sampled=2)),
    "seesaw": lambda: SeesawWithObjectness(C),
}
TARGET = torch.tensor([0, 1, 4, 0, 2, 3, 1])


def logits_for(loss, seed=0):
    return torch.randn(len(TARGET), loss.num_outputs, generator=torch.Generator().manual_seed(seed)).double()


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def binary(z, meant):
    return -math.log(sigmoid(z) if meant else 1 - sigmoid(z))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_gives_probabilities_and_takes_regions_without_any(name):
    loss = LOSSES[name]()
    assert isinstance(loss, RegionLoss)
    logits = logits_for(loss).requires_grad_()
    value = loss(logits, TARGET)
    value.backward()
    assert value > 0
    assert logits.grad.isfinite().all()
    scores = loss.scores(logits)
    assert scores.shape == (len(TARGET), C)
    assert ((scores > 0) & (scores < 1)).all()
    nothing = loss(logits[:0], TARGET[:0])
    assert nothing == 0
    nothing.backward()
    background = loss(logits[TARGET == 0], TARGET[TARGET == 0])
    assert background.isfinite()


def test_cross_entropy_with_background():
    loss = LOSSES["cross-entropy"]()
    z = logits_for(loss)
    expected = np.mean([-np.log(softmax(row)[t]) for row, t in zip(z.numpy(), TARGET, strict=True)])
    assert loss(z, TARGET).item() == pytest.approx(expected)
    assert loss.scores(z)[2].tolist() == pytest.approx(softmax(z[2].numpy())[1:].tolist())


def test_balanced_softmax_leaves_background_as_likely():
    loss, z = balanced_with_background(COUNTS), logits_for(LOSSES["balanced softmax"]())
    n = np.array([np.mean(COUNTS.per_class), *COUNTS.per_class])
    expected = np.mean(
        [-np.log(n[t] * np.exp(row[t]) / (n * np.exp(row)).sum()) for row, t in zip(z.numpy(), TARGET, strict=True)]
    )
    assert loss(z, TARGET).item() == pytest.approx(expected, rel=1e-5)
    even = balanced_with_background(ClassCounts((7,) * C))
    assert even(z, TARGET).item() == pytest.approx(LOSSES["cross-entropy"]()(z, TARGET).item(), rel=1e-5)


def test_equalization_lets_background_alone_discourage_rare_classes():
    loss = equalization_with_background(COUNTS, IMAGES, threshold=0.0095)
    z = logits_for(loss)
    rare = [n / IMAGES < 0.0095 for n in COUNTS.per_class]
    assert rare == [False, False, False, True]  # of all counts' sum, 667, the third's 6 are less than that
    expected = 0.0
    for row, t in zip(z.tolist(), TARGET.tolist(), strict=True):
        for c in range(C):
            if t == c + 1 or t == 0 or not rare[c]:
                expected += binary(row[c] + math.log(0.001 / 0.999), t == c + 1)
    assert loss(z, TARGET).item() == pytest.approx(expected / len(TARGET), rel=1e-5)


@pytest.mark.parametrize(("name", "prior"), [("equalization", 0.001), ("federated", 0.01)])
def test_sigmoids_start_from_their_prior(name, prior):
    """From one half, the loss of LVIS's 1,203 classes starts at 834, and training diverges."""
    loss = LOSSES[name]()
    z = torch.zeros(3, C)
    assert loss.scores(z).unique().item() == pytest.approx(prior)
    of_classes = 2 if name == "federated" else C  # sampled ones
    assert loss(z, torch.zeros(3, dtype=torch.int64)).item() == pytest.approx(
        -of_classes * math.log(1 - prior), rel=1e-4
    )
    with pytest.raises(InputError, match="prior: expected a finite number above 0 and below 1, got 1"):
        EachAgainstTheRest(C, Federated(COUNTS), prior=1)


def test_federated_is_a_sum_over_the_sampled_classes():
    z = logits_for(LOSSES["federated"]())
    target, foreground = (TARGET - 1).clamp_min(0), TARGET > 0
    sampled = torch.tensor([True, False, True, True])
    got = federated(z, target, foreground, sampled)
    for row, t, value in zip(z.tolist(), TARGET.tolist(), got.tolist(), strict=True):
        assert value == pytest.approx(sum(binary(row[c], t == c + 1) for c in range(C) if sampled[c]))


def test_sampled_classes_hold_those_present_and_more_by_the_root_of_their_images():
    torch.manual_seed(0)
    images = torch.tensor([100.0, 25.0, 4.0, 1.0, 0.0])
    present = torch.tensor([False, False, False, True, False])
    draws = torch.stack([sampled_classes(present, images, 2) for _ in range(4000)])
    assert draws[:, 3].all()
    assert not draws[:, 4].any()
    assert (draws.sum(dim=1) == 2).all()
    shares = draws[:, :3].double().mean(dim=0)
    assert shares.tolist() == pytest.approx([10 / 17, 5 / 17, 2 / 17], abs=0.03)
    assert sampled_classes(present, images, 1).tolist() == present.tolist()
    assert sampled_classes(present, images, 9).tolist() == [True] * 4 + [False]


def test_federated_draws_the_classes_of_the_batch_and_no_more_than_it_may():
    torch.manual_seed(0)
    loss = Federated(COUNTS, num_sampled=2)
    z, foreground = torch.zeros(3, C), torch.tensor([True, True, False])
    target = torch.tensor([3, 1, 0])  # the last is background, whatever its class
    assert loss(z, target, foreground).tolist() == pytest.approx([2 * math.log(2)] * 3)
    alone = torch.tensor([[9.0, 0.0, -9.0, 0.0]])
    expected = sum(binary(alone[0, c].item(), c == 1) for c in (1, 3))
    assert federated(
        alone, torch.tensor([1]), torch.tensor([True]), torch.tensor([False, True, False, True])
    ).item() == pytest.approx(expected)


def test_seesaw_is_told_by_objects_and_objectness_by_all():
    loss = SeesawWithObjectness(C)
    z = logits_for(loss)
    loss(z, TARGET)  # the first step's counts hold from the second on
    seen = [max(int((c + 1 == TARGET).sum()), 1) for c in range(C)]
    assert loss.seesaw.counts.tolist() == [2, 1, 1, 1]
    expected = 0.0
    for row, t in zip(z.numpy(), TARGET.tolist(), strict=True):
        expected -= math.log(softmax(row[:2])[int(t > 0)])
        if t:
            i, s = t - 1, softmax(row[2:])
            weight = [min(1, seen[j] / seen[i]) ** 0.8 * max(1, s[j] / s[i]) ** 2 if j != i else 1 for j in range(C)]
            expected -= math.log(np.exp(row[2 + i]) / (np.array(weight) * np.exp(row[2:])).sum())
    assert loss(z, TARGET).item() == pytest.approx(expected / len(TARGET), rel=1e-4)
    row = z[1].numpy()
    assert loss.scores(z)[1].tolist() == pytest.approx((softmax(row[:2])[1] * softmax(row[2:])).tolist())


STEPS = batches(42, 8, 8, 8, 8, dim=4)
LABELS = [
    torch.tensor(labels)
    for labels in ([0, 1, 0, 2, 0, 0, 3, 1], [0] * 8, [0, 0, 0, 5, 0, 0, 0, 0], [1, 1, 0, 0, 0, 2, 2, 0])
]
OF_RANK = (slice(0, 3), slice(3, 8))  # of the third step's regions the only object is on rank 1


def average_after(part=slice(None), **settings):
    regions = RegionClassifier(CausalClassifier(4, 6, momentum=0.9), **settings).double()
    for step, labels in zip(STEPS, LABELS, strict=True):
        regions(step[part], labels[part])
    return regions.classifier.average.value


def test_the_average_is_of_foreground_alone_and_a_step_without_any_leaves_it():
    taken = [step[labels > 0] for step, labels in zip(STEPS, LABELS, strict=True)]
    expected = oracle_average([step for step in taken if len(step)], 0.9)
    assert_close(average_after(), expected, 1e-12)


def test_the_legacy_average_takes_background_and_leaves_out_the_first_class():
    taken = [step[labels != 1] for step, labels in zip(STEPS, LABELS, strict=True)]
    assert_close(average_after(legacy_average=True), oracle_average(taken, 0.9), 1e-12)


def test_logits_are_the_classifiers_own_and_inference_moves_nothing():
    x = STEPS[0].float()
    for make in (partial(CausalClassifier, 4, 6), partial(LinearClassifier, 4, 6)):
        classifier = make()
        regions = RegionClassifier(classifier)
        torch.testing.assert_close(regions(x, LABELS[0]), classifier.eval()(x))
    causal = RegionClassifier(CausalClassifier(4, 6)).eval()
    causal(x, LABELS[0])
    assert not causal.classifier.average.value.any()


def run_rank(rank, folder):
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # the machine's own name need not resolve
    patience = datetime.timedelta(seconds=20)  # for a rank that waits in vain
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=patience)
    held = {"average": average_after(OF_RANK[rank])}
    seesaw = SeesawWithObjectness(C).double()
    for labels in LABELS:
        own = labels[OF_RANK[rank]].clamp_max(C)
        seesaw(torch.zeros(len(own), seesaw.num_outputs).double(), own)
    held["counts"] = seesaw.seesaw.counts
    torch.save(held, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_ranks_with_uneven_foreground_hold_what_one_would(tmp_path):
    torch.multiprocessing.start_processes(run_rank, args=(tmp_path,), nprocs=2, start_method="fork")
    held = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for one in held:
        assert_close(one["average"], average_after().numpy(), 1e-12)
        assert one["counts"].tolist() == [4, 3, 1, 1]
