"""The losses: slow float64 loops from the papers' equations, limit cases, gradients, and what each promises."""

import math
from functools import partial

import pytest
import torch

import tailwise.losses
from tailwise import ClassCounts, InputError
from tailwise.losses import (
    LDAM,
    BalancedSoftmax,
    ClassBalanced,
    CrossEntropy,
    Focal,
    LogitAdjustedCrossEntropy,
    balanced_softmax,
    class_balanced,
    class_balanced_weights,
    cross_entropy,
    focal,
    ldam,
    logit_adjusted_cross_entropy,
)

C = 5
COUNTS = (400, 60, 12, 3, 1)
WITH_UNSEEN = (400, 60, 0, 3, 1)

# No default among the settings: a loss that forgets one shows. (function, module of the same settings)
LOSSES = {
    "CrossEntropy": (lambda counts: cross_entropy, lambda counts: CrossEntropy()),
    "Focal": (lambda counts: partial(focal, gamma=1.5), lambda counts: Focal(gamma=1.5)),
    "Focal, detached": (
        lambda counts: partial(focal, gamma=1.5, detach=True),
        lambda counts: Focal(gamma=1.5, detach=True),
    ),
    "ClassBalanced": (
        lambda counts: partial(class_balanced, counts=counts, beta=0.99),
        lambda counts: ClassBalanced(counts, beta=0.99),
    ),
    "ClassBalanced, focal": (
        lambda counts: partial(class_balanced, counts=counts, beta=0.99, gamma=0.5),
        lambda counts: ClassBalanced(counts, beta=0.99, gamma=0.5),
    ),
    "LDAM": (
        lambda counts: partial(ldam, counts=counts, max_margin=0.4, scale=7.0),
        lambda counts: LDAM(counts, max_margin=0.4, scale=7.0),
    ),
    "BalancedSoftmax": (lambda counts: partial(balanced_softmax, counts=counts), BalancedSoftmax),
    "LogitAdjustedCrossEntropy": (
        lambda counts: partial(logit_adjusted_cross_entropy, counts=counts, temperature=1.7),
        lambda counts: LogitAdjustedCrossEntropy(counts, temperature=1.7),
    ),
}
SOFT = [name for name in LOSSES if name != "LDAM"]  # a margin on "the target" needs one
every_loss = pytest.mark.parametrize("name", LOSSES)


def test_every_public_loss_is_here():
    modules = {name for name in tailwise.losses.__all__ if name[0].isupper()} - {"DeferredReweighting"}
    assert modules == {name.partition(",")[0] for name in LOSSES}
    functions = {name for name in tailwise.losses.__all__ if name[0].islower()} - {"class_balanced_weights"}
    assert functions == {
        getattr(make(ClassCounts(COUNTS)), "func", cross_entropy).__name__ for make, _ in LOSSES.values()
    }


def sample(seed=0, n=9):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, C, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, C, (n,), generator=generator)


def of(name, counts=COUNTS):
    return LOSSES[name][0](ClassCounts(counts))


# ---- oracles


def log_softmax(row):
    total = sum(math.exp(z) for z in row if z > -math.inf)
    return [z - math.log(total) if z > -math.inf else -math.inf for z in row]


def effective(n, beta):
    return (1 - beta**n) / (1 - beta)


def cui_weights(counts, beta):
    raw = [1 / effective(n, beta) if n else 0.0 for n in counts]
    mean = sum(raw) / sum(n > 0 for n in counts)
    return [w / mean for w in raw]


def oracle(name, row, y, counts):
    if name.startswith(("CrossEntropy", "Focal")):
        p = math.exp(log_softmax(row)[y])
        return -((1 - p) ** (1.5 if "Focal" in name else 0)) * math.log(p)
    if name.startswith("ClassBalanced"):
        p = math.exp(log_softmax(row)[y])
        return -cui_weights(counts, 0.99)[y] * (1 - p) ** (0.5 if "focal" in name else 0) * math.log(p)
    if name == "LDAM":
        smallest = min(n for n in counts if n)
        moved = list(row)
        moved[y] -= 0.4 * (smallest / counts[y]) ** 0.25
        return -log_softmax([7.0 * z if n else -math.inf for z, n in zip(moved, counts, strict=True)])[y]
    power = {"BalancedSoftmax": 1.0, "LogitAdjustedCrossEntropy": 1.7}[name]
    share = [(n / sum(counts)) ** power for n in counts]
    return -math.log(share[y] * math.exp(row[y]) / sum(s * math.exp(z) for s, z in zip(share, row, strict=True)))


@every_loss
@pytest.mark.parametrize("counts", [COUNTS, (7, 7, 7, 7, 7), WITH_UNSEEN])
def test_loss_is_its_equation(name, counts):
    logits, target = sample()
    target = torch.where(torch.tensor(counts)[target] > 0, target, 0)
    expected = [oracle(name, row, y, counts) for row, y in zip(logits.tolist(), target.tolist(), strict=True)]
    losses = of(name, counts)(logits, target, reduction="none")
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(of(name, counts)(logits, target), losses.mean())


def test_weights_of_the_effective_number():
    """Cui et al. 2019: E_n = (1 - beta^n) / (1 - beta); also where beta^n is all but 1, in float32."""
    counts = torch.tensor(WITH_UNSEEN)
    for beta in (0.0, 0.9, 0.9999, 1 - 1e-9):
        weights = class_balanced_weights(counts.float(), beta=beta)
        torch.testing.assert_close(weights, torch.tensor(cui_weights(WITH_UNSEEN, beta)), rtol=1e-4, atol=1e-6)
        assert float(weights[counts > 0].mean()) == pytest.approx(1)


# ---- limit cases


@pytest.mark.parametrize(
    "limit",
    [
        partial(focal, gamma=0.0),
        partial(class_balanced, counts=ClassCounts(COUNTS), beta=0.0),
        partial(class_balanced, counts=ClassCounts((9,) * C), beta=0.999),
        partial(ldam, counts=ClassCounts(COUNTS), max_margin=0.0, scale=1.0),
        partial(balanced_softmax, counts=ClassCounts((3,) * C)),
        partial(logit_adjusted_cross_entropy, counts=ClassCounts(COUNTS), temperature=0.0),
        partial(logit_adjusted_cross_entropy, counts=ClassCounts((3,) * C), temperature=2.0),
    ],
)
def test_limits_are_cross_entropy(limit):
    logits, target = sample()
    torch.testing.assert_close(limit(logits, target), cross_entropy(logits, target))


def test_a_temperature_of_one_is_balanced_softmax():
    logits, target = sample()
    counts = ClassCounts(COUNTS)
    torch.testing.assert_close(
        logit_adjusted_cross_entropy(logits, target, counts, temperature=1.0), balanced_softmax(logits, target, counts)
    )


# ---- what every loss promises


@every_loss
def test_gradients(name):
    logits, target = sample(n=4)
    loss = of(name)
    if "detached" not in name:
        assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.requires_grad_())
        return
    # the factor is a number: the gradient is that of cross-entropy, weighed by it
    (own,) = torch.autograd.grad(loss(logits.requires_grad_(), target), logits)
    p = logits.softmax(1).gather(1, target[:, None])
    weighed = ((1 - p.detach()) ** 1.5 * -p.log()).mean()
    torch.testing.assert_close(own, torch.autograd.grad(weighed, logits)[0])


@every_loss
def test_the_order_of_classes_does_not_matter(name):
    logits, target = sample()
    order = torch.tensor([3, 0, 4, 1, 2])
    place = torch.argsort(order)
    shuffled = of(name, tuple(COUNTS[i] for i in order.tolist()))
    torch.testing.assert_close(shuffled(logits[:, order], place[target]), of(name)(logits, target))


@pytest.mark.parametrize("name", SOFT)
def test_a_mixture_of_two_classes_costs_their_mixture(name):
    """mixup: 0.3 of one target's loss and 0.7 of the other's; a distribution on one class is that class."""
    logits, target = sample()
    other = (target + 1) % C
    one_hot = [torch.nn.functional.one_hot(t, C).double() for t in (target, other)]
    loss = partial(of(name), reduction="none")
    torch.testing.assert_close(loss(logits, one_hot[0]), loss(logits, target))
    mixed = loss(logits, 0.3 * one_hot[0] + 0.7 * one_hot[1])
    torch.testing.assert_close(mixed, 0.3 * loss(logits, target) + 0.7 * loss(logits, other))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 80.0])
def test_finite_whatever_the_logits_and_counts(name, dtype, scale):
    logits, target = sample()
    target = torch.where(torch.tensor(WITH_UNSEEN)[target] > 0, target, 0)
    logits = (scale * logits).to(dtype).requires_grad_()
    loss = of(name, WITH_UNSEEN)(logits, target)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("name", ["LDAM", "BalancedSoftmax", "LogitAdjustedCrossEntropy"])
def test_a_class_without_an_image_is_masked_unless_allowed(name):
    logits, target = sample()
    target = torch.zeros_like(target)
    masked, allowed = of(name, WITH_UNSEEN), partial(of(name, WITH_UNSEEN), allow_unseen=True)
    louder = logits.clone()
    louder[:, 2] += 5
    torch.testing.assert_close(masked(louder, target), masked(logits, target))
    assert allowed(louder, target) > allowed(logits, target)
    assert allowed(logits, torch.full_like(target, 2)).isfinite()
    torch.testing.assert_close(allowed(logits, target), of(name, (400, 60, 1, 3, 1))(logits, target))


@every_loss
def test_the_module_is_the_function(name):
    logits, target = sample()
    module = LOSSES[name][1](ClassCounts(COUNTS))
    torch.testing.assert_close(module(logits, target), of(name)(logits, target))
    assert not list(module.parameters())
    if "counts" in dict(module.named_buffers()):
        assert module.to("meta").counts.device.type == "meta"  # moves along


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith(("CrossEntropy", "Focal"))])
def test_counts_of_another_length_are_named(name):
    logits, target = sample()
    with pytest.raises(InputError, match="counts: expected 5 classes, as the logits have, got 3"):
        of(name, (4, 3, 2))(logits, target)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(focal, gamma=-1.0), "gamma"),
        (partial(class_balanced, counts=ClassCounts(COUNTS), beta=1.0), "beta"),
        (partial(ldam, counts=ClassCounts(COUNTS), scale=0.0), "scale"),
        (partial(ldam, counts=ClassCounts(COUNTS), max_margin=-0.1), "max_margin"),
        (partial(logit_adjusted_cross_entropy, counts=ClassCounts(COUNTS), temperature=-1.0), "temperature"),
    ],
)
def test_settings_outside_their_range_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(*sample())
