"""The losses: slow float64 loops from the papers' equations, limit cases, gradients, and what each promises."""

import math
from functools import partial

import pytest
import torch

import tailwise.losses
from causal_oracles import unchecked
from tailwise import ClassCounts, InputError
from tailwise.losses import (
    LDAM,
    BalancedSoftmax,
    ClassBalanced,
    ClassBalancedSigmoid,
    CrossEntropy,
    Equalization,
    EqualizationSigmoid,
    Focal,
    LogitAdjustedCrossEntropy,
    Seesaw,
    VSLoss,
    balanced_softmax,
    class_balanced,
    class_balanced_sigmoid,
    class_balanced_weights,
    cross_entropy,
    equalization,
    equalization_sigmoid,
    focal,
    ldam,
    logit_adjusted_cross_entropy,
    seesaw,
    vs_loss,
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
    "VSLoss": (
        lambda counts: partial(vs_loss, counts=counts, gamma=0.3, temperature=1.7),
        lambda counts: VSLoss(counts, gamma=0.3, temperature=1.7),
    ),
    "ClassBalancedSigmoid": (
        lambda counts: partial(class_balanced_sigmoid, counts=counts, beta=0.99),
        lambda counts: ClassBalancedSigmoid(counts, beta=0.99),
    ),
    "ClassBalancedSigmoid, focal": (
        lambda counts: partial(class_balanced_sigmoid, counts=counts, beta=0.99, gamma=0.5),
        lambda counts: ClassBalancedSigmoid(counts, beta=0.99, gamma=0.5),
    ),
    "Equalization": (  # gamma = 1 leaves nothing to chance; other values have tests of their own
        lambda counts: partial(equalization, counts=counts, threshold=0.02, gamma=1.0),
        lambda counts: Equalization(counts, threshold=0.02, gamma=1.0),
    ),
    "EqualizationSigmoid": (
        lambda counts: partial(equalization_sigmoid, counts=counts, threshold=0.02),
        lambda counts: EqualizationSigmoid(counts, threshold=0.02),
    ),
    "Seesaw": (
        lambda counts: partial(seesaw, counts=counts, p=0.6, q=1.5),
        lambda counts: Seesaw(counts, p=0.6, q=1.5),
    ),
    "Seesaw, mitigation alone": (
        lambda counts: partial(seesaw, counts=counts, p=0.6, q=0.0),
        lambda counts: Seesaw(counts, p=0.6, q=0.0),
    ),
}
# The others compare each class with "the target", and need one
SOFT = [name for name in LOSSES if not name.startswith(("LDAM", "Equalization", "Seesaw"))] + ["EqualizationSigmoid"]
MASKS = ["LDAM", "BalancedSoftmax", "LogitAdjustedCrossEntropy", "VSLoss", "Seesaw"]
every_loss = pytest.mark.parametrize("name", LOSSES)


def test_every_public_loss_is_here():
    """Those of features have tests/test_metric_losses.py."""
    public = {name for name in tailwise.losses.__all__ if "metric" not in getattr(tailwise.losses, name).__module__}
    modules = {name for name in public if name[0].isupper()} - {"DeferredReweighting"}
    assert modules == {name.partition(",")[0] for name in LOSSES}
    functions = {name for name in public if name[0].islower()} - {"class_balanced_weights"}
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
    if name.startswith(("ClassBalancedSigmoid", "EqualizationSigmoid")):
        p = [1 / (1 + math.exp(-z if c == y else z)) for c, z in enumerate(row)]
        if name == "EqualizationSigmoid":
            rare = [n / sum(counts) < 0.02 for n in counts]
            return sum(-(1 - rare[c] * (c != y)) * math.log(p[c]) for c in range(C))
        return cui_weights(counts, 0.99)[y] * sum(
            -((1 - r) ** (0.5 if "focal" in name else 0)) * math.log(r) for r in p
        )
    if name == "Equalization":
        w = [1 - (n / sum(counts) < 0.02) * (c != y) for c, n in enumerate(counts)]
        return -math.log(math.exp(row[y]) / sum(w[c] * math.exp(row[c]) for c in range(C)))
    if name.startswith("Seesaw"):
        q, s = 0.0 if "alone" in name else 1.5, [math.exp(z) for z in log_softmax(row)]
        mitigation = [(n / counts[y]) ** 0.6 if counts[y] > n else 1 for n in counts]
        compensation = [(r / s[y]) ** q if r > s[y] else 1 for r in s]
        return -math.log(
            math.exp(row[y]) / sum(m * r * math.exp(z) for m, r, z in zip(mitigation, compensation, row, strict=True))
        )
    if name.startswith("ClassBalanced"):
        p = math.exp(log_softmax(row)[y])
        return -cui_weights(counts, 0.99)[y] * (1 - p) ** (0.5 if "focal" in name else 0) * math.log(p)
    if name == "LDAM":
        smallest = min(n for n in counts if n)
        moved = list(row)
        moved[y] -= 0.4 * (smallest / counts[y]) ** 0.25
        return -log_softmax([7.0 * z if n else -math.inf for z, n in zip(moved, counts, strict=True)])[y]
    if name == "VSLoss":
        row = [(n / max(counts)) ** 0.3 * z for n, z in zip(counts, row, strict=True)]
    power = {"BalancedSoftmax": 1.0, "LogitAdjustedCrossEntropy": 1.7, "VSLoss": 1.7}[name]
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
        partial(vs_loss, counts=ClassCounts(COUNTS), gamma=0.0, temperature=0.0),
        partial(vs_loss, counts=ClassCounts((3,) * C), gamma=0.7, temperature=2.0),
        partial(equalization, counts=ClassCounts(COUNTS), threshold=0.02, gamma=0.0),
        partial(equalization, counts=ClassCounts(COUNTS), threshold=0.0, gamma=1.0),
        partial(seesaw, counts=ClassCounts(COUNTS), p=0.0, q=0.0),
        partial(seesaw, counts=ClassCounts((3,) * C), p=0.8, q=0.0),
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


@pytest.mark.parametrize(
    "limit",
    [
        partial(class_balanced_sigmoid, counts=ClassCounts(COUNTS), beta=0.0),
        partial(equalization_sigmoid, counts=ClassCounts(COUNTS), threshold=0.0),
    ],
)
def test_sigmoid_limits_are_binary_cross_entropy(limit):
    logits, target = sample()
    binary = torch.nn.functional.binary_cross_entropy_with_logits
    one_hot = torch.nn.functional.one_hot(target, C).double()
    expected = binary(logits, one_hot, reduction="none").sum(1)
    torch.testing.assert_close(limit(logits, target, reduction="none"), expected)


def test_vector_scaling_without_factors_is_logit_adjustment():
    logits, target = sample()
    adjusted = logit_adjusted_cross_entropy(logits, target, ClassCounts(COUNTS), temperature=1.7)
    torch.testing.assert_close(vs_loss(logits, target, ClassCounts(COUNTS), gamma=0.0, temperature=1.7), adjusted)


def test_seesaw_of_the_most_frequent_class_is_balanced_softmax():
    logits, target = sample()
    counts, target = ClassCounts(COUNTS), torch.zeros_like(target)
    balanced = balanced_softmax(logits, target, counts)
    torch.testing.assert_close(seesaw(logits, target, counts, p=1.0, q=0.0), balanced)


# ---- chance, background, counts of one's own


def test_equalization_leaves_each_rare_class_out_by_chance():
    """Tan et al. 2020: beta is 1 with probability gamma; of two rare classes none, one or both are left out."""
    n, gamma = 4000, 0.7
    logits, target = torch.zeros(n, 3), torch.zeros(n, dtype=torch.int64)
    draw = partial(
        equalization, logits, target, ClassCounts((998, 1, 1)), threshold=0.01, gamma=gamma, reduction="none"
    )
    losses = draw(generator=torch.Generator().manual_seed(0))
    for left, share in ((1, gamma**2), (2, 2 * gamma * (1 - gamma)), (3, (1 - gamma) ** 2)):
        times = int(torch.isclose(losses, torch.tensor(float(left)).log(), atol=1e-6).sum())
        assert abs(times - n * share) < 5 * (n * share * (1 - share)) ** 0.5
    assert torch.equal(draw(generator=torch.Generator().manual_seed(0)), losses)
    assert not torch.equal(draw(generator=torch.Generator().manual_seed(1)), losses)


def test_the_module_draws_from_torchs_own_generator():
    logits, target = sample(n=100)
    module = Equalization(ClassCounts(COUNTS), threshold=0.02, gamma=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        drawn = module(logits, target)
        again = module(logits, target)
    expected = equalization(
        logits,
        target,
        ClassCounts(COUNTS),
        threshold=0.02,
        gamma=0.5,
        generator=torch.Generator().manual_seed(7),
    )
    assert torch.equal(drawn, expected)
    assert not torch.equal(drawn, again)


def test_background_tells_every_class_what_it_is_not():
    """Tan et al. 2020: the weight of a rare class is 1 for background, whose labels are all 0."""
    logits, target = sample()
    foreground = torch.arange(len(target)) % 3 > 0
    losses = EqualizationSigmoid(ClassCounts(COUNTS), threshold=0.02, reduction="none")(logits, target, foreground)
    rows = zip(logits.tolist(), target.tolist(), foreground.tolist(), strict=True)
    expected = [
        oracle("EqualizationSigmoid", row, y, COUNTS) if f else sum(math.log(1 + math.exp(z)) for z in row)
        for row, y, f in rows
    ]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))
    labels = torch.nn.functional.one_hot(target, C) * foreground[:, None]
    by_labels = equalization_sigmoid(
        logits, labels.double(), ClassCounts(COUNTS), threshold=0.02, foreground=foreground, reduction="none"
    )
    torch.testing.assert_close(by_labels, losses)


def test_seesaw_counts_what_it_was_trained_on(monkeypatch):
    """Counts of the steps so far, at least 1; of all processes; not of evaluation; kept with the state."""
    monkeypatch.setattr("tailwise.ranks.total", lambda value: 2 * value)  # two processes with equal targets
    logits, target = sample()
    loss = Seesaw(C, p=0.6, q=1.5)
    counts = torch.zeros(C, dtype=torch.int64)
    for seed in range(3):
        logits, target = sample(seed)
        expected = seesaw(logits, target, counts.clamp_min(1), p=0.6, q=1.5)
        torch.testing.assert_close(loss(logits, target), expected)
        counts += 2 * torch.bincount(target, minlength=C)
        assert torch.equal(loss.counts, counts)
        with torch.no_grad():
            loss(logits, target)
        loss.eval()(logits, target)
        loss.train()
        assert torch.equal(loss.counts, counts)
    fresh = Seesaw(C)
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(fresh.counts, counts)
    fixed = Seesaw(ClassCounts(COUNTS))
    fixed(logits, target)
    assert fixed.counts.tolist() == list(COUNTS)


def test_micro_batches_of_seesaw_count_as_one_step():
    whole, parts = Seesaw(C), Seesaw(C, update_every=3)
    for seed in range(2):
        logits, target = sample(seed)
        loss = whole(logits, target)
        shares = [parts(z, y) for z, y in zip(logits.chunk(3), target.chunk(3), strict=True)]
        torch.testing.assert_close(torch.stack(shares).mean(), loss)
        assert torch.equal(parts.counts, whole.counts)


# ---- what every loss promises


@every_loss
def test_gradients(name):
    logits, target = sample(n=4)
    loss = of(name)
    if name == "Seesaw":  # its factors are numbers: the gradient is that of cross-entropy of what they make of z
        (own,) = torch.autograd.grad(loss(logits.requires_grad_(), target), logits)
        images = torch.tensor(COUNTS, dtype=torch.float64)
        mitigation = (images / images[target][:, None]).clamp_max(1) ** 0.6
        compensation = (logits - logits.gather(1, target[:, None])).exp().clamp_min(1) ** 1.5
        made = logits + (mitigation * compensation).log()
        expected = made.softmax(1) - torch.nn.functional.one_hot(target, C)
        torch.testing.assert_close(own, expected.detach() / len(target))
        return
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


@every_loss
def test_a_logit_of_minus_infinity_is_a_class_that_is_not_there(name):
    """Of a class without an image: neither the loss nor its gradient is NaN, whole targets or distributions."""
    logits, target = sample()
    target = torch.where(target == 2, 0, target)
    logits[:, 2] = -math.inf
    soft = torch.nn.functional.one_hot(target, C).double()
    for meant in (target, soft) if name in SOFT else (target,):
        losses = of(name, WITH_UNSEEN)(logits.requires_grad_(), meant, reduction="none")
        expected = of(name, WITH_UNSEEN)(logits.masked_fill(logits == -math.inf, -800), target, reduction="none")
        torch.testing.assert_close(losses, expected)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        assert gradient.isfinite().all()


@every_loss
def test_a_reduction_that_is_none_is_named(name):
    logits, target = sample()
    soft = torch.nn.functional.one_hot(target, C).double()
    for meant in (target, soft) if name in SOFT else (target,):
        with pytest.raises(InputError, match="reduction: unknown value 'sum'; valid: mean, none"), unchecked():
            of(name)(logits, meant, reduction="sum")


@pytest.mark.parametrize("name", MASKS)
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
        (partial(vs_loss, counts=ClassCounts(COUNTS), gamma=-0.1), "gamma"),
        (partial(vs_loss, counts=ClassCounts(COUNTS), temperature=-0.1), "temperature"),
        (partial(class_balanced_sigmoid, counts=ClassCounts(COUNTS), gamma=-1.0), "gamma"),
        (partial(class_balanced_sigmoid, counts=ClassCounts(COUNTS), beta=1.0), "beta"),
        (partial(equalization, counts=ClassCounts(COUNTS), gamma=1.1), "gamma"),
        (partial(equalization, counts=ClassCounts(COUNTS), threshold=-1.0), "threshold"),
        (partial(equalization_sigmoid, counts=ClassCounts(COUNTS), threshold=-1.0), "threshold"),
        (partial(seesaw, counts=ClassCounts(COUNTS), p=-1.0), "p"),
        (partial(seesaw, counts=ClassCounts(COUNTS), q=-1.0), "q"),
        (lambda logits, target: Seesaw(0), "counts"),
    ],
)
def test_settings_outside_their_range_are_named(call, message):
    with pytest.raises(InputError, match=rf"^{message}: "):
        call(*sample())
