"""Losses of features: slow float64 loops from the papers' equations, batches without pairs, gradients."""

import math
from functools import partial
from itertools import combinations

import pytest
import torch

import tailwise.losses
from tailwise import ClassCounts, InputError
from tailwise.losses import (
    BalancedSoftmax,
    CrossEntropyAndMetric,
    LiftedStructured,
    RangeLoss,
    balanced_softmax,
    cross_entropy,
    lifted_structured,
    range_loss,
)

# No default among the settings: a loss that forgets one shows. (function, module of the same settings)
METRICS = {
    "RangeLoss": (
        partial(range_loss, k=3, margin=4.0, intra_weight=0.7, inter_weight=0.3),
        RangeLoss(k=3, margin=4.0, intra_weight=0.7, inter_weight=0.3),
    ),
    "LiftedStructured": (partial(lifted_structured, margin=1.5), LiftedStructured(margin=1.5)),
}
every_metric = pytest.mark.parametrize("name", METRICS)


def test_every_public_metric_loss_is_here():
    public = {name for name in tailwise.losses.__all__ if "metric" in getattr(tailwise.losses, name).__module__}
    functions = {function.func.__name__ for function, _ in METRICS.values()}
    assert public == {*METRICS, *functions, "CrossEntropyAndMetric"}


def sample(seed=0, classes=4):
    """Classes of 1 to 5 images; every pair of images at another distance."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.tensor([0, 1, 2, 2, 3, 0, 0, 3, 0, 2, 0, 3]) % classes
    return torch.randn(12, 6, generator=generator, dtype=torch.float64), target


# ---- oracles


def squared(a, b):
    return sum((u - v) ** 2 for u, v in zip(a, b, strict=True))


def range_oracle(features, target, k, margin, intra_weight, inter_weight):
    """Zhang et al. 2017: the harmonic mean of the k largest ranges in each class; the two nearest centers."""
    intra, centers = 0.0, []
    for c in sorted(set(target)):
        mine = [x for x, y in zip(features, target, strict=True) if y == c]
        ranges = sorted((squared(a, b) for a, b in combinations(mine, 2)), reverse=True)[:k]
        if ranges:
            intra += len(ranges) / sum(1 / d for d in ranges)
        centers.append([sum(column) / len(mine) for column in zip(*mine, strict=True)])
    nearest = min((squared(a, b) for a, b in combinations(centers, 2)), default=math.inf)
    return intra_weight * intra + inter_weight * max(0.0, margin - nearest)


def lifted_oracle(features, target, margin):
    """Oh Song et al. 2016, Eq. 4."""
    n = range(len(target))
    distance = [[math.sqrt(squared(a, b)) for b in features] for a in features]
    pairs = [(i, j) for i, j in combinations(n, 2) if target[i] == target[j]]
    total = 0.0
    for i, j in pairs:
        others = sum(math.exp(margin - distance[i][m]) for m in n if target[m] != target[i])
        others += sum(math.exp(margin - distance[j][m]) for m in n if target[m] != target[j])
        total += max(0.0, math.log(others) + distance[i][j]) ** 2 if others else 0.0
    return total / (2 * len(pairs)) if pairs else 0.0


ORACLES = {
    "RangeLoss": partial(range_oracle, k=3, margin=4.0, intra_weight=0.7, inter_weight=0.3),
    "LiftedStructured": partial(lifted_oracle, margin=1.5),
}


@every_metric
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_loss_is_its_equation(name, seed, classes, scale):
    features, target = sample(seed, classes=classes)
    features = scale * features
    expected = ORACLES[name](features.tolist(), target.tolist())
    assert float(METRICS[name][0](features, target)) == pytest.approx(expected)
    torch.testing.assert_close(METRICS[name][1](features, target), METRICS[name][0](features, target))


def test_the_oracles_see_both_sides_of_each_hinge():
    """Small features are nearer than any margin, large ones are not; the loss must be tested on both sides."""
    near, far = (range_oracle((s * sample()[0]).tolist(), sample()[1].tolist(), 1, 4.0, 0.0, 1.0) for s in (0.3, 9.0))
    assert near > 0 == far
    line = torch.tensor([[0.0], [0.1], [50.0]], dtype=torch.float64)
    assert lifted_oracle(line.tolist(), [0, 0, 1], 1.0) == 0 == float(lifted_structured(line, torch.tensor([0, 0, 1])))


# ---- what every metric loss promises


@every_metric
def test_gradients(name):
    features, target = sample()
    assert torch.autograd.gradcheck(lambda x: METRICS[name][0](x, target), features.requires_grad_())


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "target",
    [[0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 1, 1], [0]],
    ids=["no pair", "one class", "pairs", "one image"],
)
@pytest.mark.parametrize(
    "make",
    [torch.zeros, torch.ones, torch.randn, lambda *shape: 1e-21 * torch.randn(shape)],
    ids=["zero", "equal", "random", "all but zero"],  # the squares of the last leave float32
)
def test_loss_and_gradient_are_finite(name, dtype, target, make):
    features = make(len(target), 6).to(dtype).requires_grad_()
    loss = METRICS[name][0](features, torch.tensor(target))
    loss.backward()
    assert loss.isfinite()
    assert features.grad.isfinite().all()
    assert features.grad.dtype == dtype


@every_metric
def test_a_batch_that_compares_nothing_costs_nothing(name):
    features, _ = sample()
    loss = partial(METRICS[name][0], **({"inter_weight": 0.0} if name == "RangeLoss" else {}))
    assert float(loss(features, torch.arange(len(features)))) == 0
    if name == "LiftedStructured":
        assert float(loss(features, torch.zeros(len(features), dtype=torch.int64))) == 0


def test_equal_images_have_no_range():
    features, target = torch.ones(4, 6), torch.tensor([0, 0, 1, 1])
    assert float(range_loss(features, target, inter_weight=0.0)) == pytest.approx(0, abs=1e-6)


@every_metric
def test_names_and_order_of_classes_and_images_do_not_matter(name):
    features, target = sample()
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(1))
    named = torch.tensor([7, 2, 40, 0])[target]
    torch.testing.assert_close(METRICS[name][0](features[order], named[order]), METRICS[name][0](features, target))


def test_near_images_keep_their_distance_in_float32():
    """What |a|^2 + |b|^2 - 2ab would lose: two images apart by little, far from 0."""
    features = torch.tensor([[1000.0, 0.0], [1000.0, 0.125], [0.0, 0.0]])
    assert float(range_loss(features, torch.tensor([0, 0, 1]))) == 0.125**2


# ---- with a loss of logits


def test_cross_entropy_and_metric_is_their_weighed_sum():
    features, target = sample()
    logits = features[:, :4]
    loss = CrossEntropyAndMetric(METRICS["RangeLoss"][1], weight=0.2)
    expected = cross_entropy(logits, target) + 0.2 * METRICS["RangeLoss"][0](features, target)
    torch.testing.assert_close(loss((logits, features), target), expected)
    counts = ClassCounts((9, 5, 2, 1))
    loss = CrossEntropyAndMetric(METRICS["LiftedStructured"][1], weight=0.2, cross_entropy=BalancedSoftmax(counts))
    expected = balanced_softmax(logits, target, counts) + 0.2 * METRICS["LiftedStructured"][0](features, target)
    torch.testing.assert_close(loss((logits, features), target), expected)
    assert "cross_entropy.counts" in loss.state_dict()


def test_without_weight_it_is_cross_entropy_whatever_the_features():
    features, target = sample()
    loss = CrossEntropyAndMetric(range_loss, weight=0.0)
    assert torch.equal(loss((features, torch.full_like(features, torch.nan)), target), cross_entropy(features, target))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (partial(RangeLoss, k=0), "k"),
        (partial(RangeLoss, margin=-1.0), "margin"),
        (partial(RangeLoss, intra_weight=-1.0), "intra_weight"),
        (partial(RangeLoss, inter_weight=-1.0), "inter_weight"),
        (partial(LiftedStructured, margin=-1.0), "margin"),
        (partial(CrossEntropyAndMetric, range_loss, weight=-1.0), "weight"),
        (partial(range_loss, *sample(), k=0), "k"),
        (partial(range_loss, *sample(), margin=-1.0), "margin"),
        (partial(range_loss, *sample(), intra_weight=-1.0), "intra_weight"),
        (partial(range_loss, *sample(), inter_weight=-1.0), "inter_weight"),
        (partial(lifted_structured, *sample(), margin=-1.0), "margin"),
    ],
)
def test_settings_outside_their_range_are_named(make, named):
    with pytest.raises(InputError, match=f"^{named}: "):
        make()
