"""Mixing two streams: slow float64 loops from the papers' equations, limit cases, and any number of processes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tailwise import ClassCounts, InputError
from tailwise.data import (
    CutMix,
    EpochBatches,
    MixedBatches,
    Mixup,
    MixupAndCutMix,
    Remix,
    Split,
    cutmix,
    mixed_target,
    mixup,
    pair,
    permuted,
    random_crop,
    remix_lam,
)

C = 5
COUNTS = ClassCounts((90, 30, 29, 10, 1))


def two_batches(n=4, height=6, width=5):
    generator = torch.Generator().manual_seed(n)
    images, others = torch.rand(2, n, 2, height, width, generator=generator, dtype=torch.float64)
    labels, other_labels = torch.randint(0, C, (2, n), generator=generator)
    return images, labels, others, other_labels


# ---- functions


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_mixup_is_its_equation(lam):
    images, _, others, _ = two_batches()
    mixed = mixup(images, others, lam)
    for place in np.ndindex(*images.shape):
        assert float(mixed[place]) == pytest.approx(lam * float(images[place]) + (1 - lam) * float(others[place]))


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 0.84, 1.0])
@pytest.mark.parametrize("centre", [(0.0, 0.0), (0.5, 0.5), (0.99, 0.3), (0.2, 0.99)])
def test_cutmix_is_a_box_and_knows_its_area(lam, centre):
    images, _, others, _ = two_batches()
    mixed, kept = cutmix(images, others, lam, centre)
    sides = [round(size * math.sqrt(1 - lam)) for size in (6, 5)]
    first = [int(c * size) - side // 2 for c, size, side in zip(centre, (6, 5), sides, strict=True)]
    cut = 0
    for row in range(6):
        for column in range(5):
            inside = all(0 <= at - f < side for at, f, side in zip((row, column), first, sides, strict=True))
            cut += inside
            assert torch.equal(mixed[..., row, column], (others if inside else images)[..., row, column])
    assert kept == pytest.approx(1 - cut / 30)
    if centre == (0.5, 0.5):
        assert kept == pytest.approx(lam, abs=0.12)  # whole pixels
    if lam == 1:
        assert torch.equal(mixed, images)
        assert kept == 1


def test_what_is_mixed_is_not_modified():
    images, _, others, _ = two_batches()
    before = images.clone(), others.clone()
    mixup(images, others, 0.4)
    cutmix(images, others, 0.4, (0.5, 0.5))
    assert torch.equal(images, before[0])
    assert torch.equal(others, before[1])


@pytest.mark.parametrize("lam", [0.25, torch.tensor([0.0, 0.25, 0.5, 1.0])])
def test_targets_are_shared_between_the_labels(lam):
    labels, other_labels = torch.tensor([0, 1, 2, 4]), torch.tensor([3, 1, 0, 2])
    target = mixed_target(labels, other_labels, lam, C)
    for row, (y, other) in enumerate(zip(labels, other_labels, strict=True)):
        share = float(lam if isinstance(lam, float) else lam[row])
        expected = [share * (c == y) + (1 - share) * (c == other) for c in range(C)]
        assert target[row].tolist() == pytest.approx([float(value) for value in expected])
    assert torch.equal(mixed_target(labels, other_labels, 1.0, C), torch.eye(C)[labels])


@pytest.mark.parametrize(("kappa", "tau"), [(3.0, 0.5), (9.0, 0.5), (1.0, 0.7), (3.0, 0.0), (3.0, 1.0)])
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 0.6, 1.0])
def test_remix_is_its_equation(kappa, tau, lam):
    pairs = [(n, m) for n in COUNTS.per_class for m in COUNTS.per_class]
    ours = remix_lam(lam, *torch.tensor(pairs, dtype=torch.float64).T, kappa=kappa, tau=tau)
    for share, (n, m) in zip(ours.tolist(), pairs, strict=True):
        if n / m <= 1 / kappa and 1 - lam < tau:
            assert share == 1
        elif n / m >= kappa and lam < tau:
            assert share == 0
        else:
            assert share == pytest.approx(lam)
    if tau == 0:
        assert ours.tolist() == pytest.approx([lam] * len(pairs))


def test_remix_leans_to_the_rare_class_whichever_comes_first():
    labels, other_labels = torch.tensor([0, 3]), torch.tensor([3, 0])
    counts = torch.tensor([90.0, 10.0])
    for lam in (0.2, 0.8):
        share = remix_lam(lam, counts, counts.flip(0))
        target = mixed_target(labels, other_labels, share, C)
        assert (target[:, 3] >= torch.tensor([1 - lam, lam]) - 1e-6).all()
        assert 1 in target[:, 3]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Mixup(C, beta=0.0), "beta"),
        (lambda: CutMix(C, beta=-1.0), "beta"),
        (lambda: MixupAndCutMix(C, beta=0.0), "beta"),
        (lambda: Remix(COUNTS, beta=0.0), "beta"),
        (lambda: Remix(COUNTS, kappa=0.5), "kappa"),
        (lambda: Remix(COUNTS, tau=1.5), "tau"),
        (lambda: remix_lam(0.5, torch.ones(1), torch.ones(1), tau=-0.1), "tau"),
    ],
)
def test_settings_outside_their_range_are_named(make, named):
    with pytest.raises(InputError, match=named):
        make()


# ---- rules


def fixed(lam, *uniform):
    """Draws that are known."""

    class Known(np.random.Generator):
        left = iter(uniform)

        def beta(self, a, b):
            assert (a, b) == (0.7, 0.7)
            return lam

        def random(self):
            return next(self.left)

    return Known(np.random.PCG64(0))


def test_each_rule_is_its_functions():
    images, labels, others, other_labels = batch = two_batches()
    mixed, target = Mixup(C, beta=0.7)(*batch, fixed(0.3))
    assert torch.equal(mixed, mixup(images, others, 0.3))
    assert torch.equal(target, mixed_target(labels, other_labels, 0.3, C))

    mixed, target = CutMix(C, beta=0.7)(*batch, fixed(0.3, 0.9, 0.1))
    cut, kept = cutmix(images, others, 0.3, (0.9, 0.1))
    assert kept != pytest.approx(0.3)
    assert torch.equal(mixed, cut)
    assert torch.equal(target, mixed_target(labels, other_labels, kept, C))

    mixed, target = Remix(COUNTS, beta=0.7, kappa=2.0, tau=0.6)(*batch, fixed(0.3))
    counts = torch.tensor(COUNTS.per_class).float()
    share = remix_lam(0.3, counts[labels], counts[other_labels], kappa=2.0, tau=0.6)
    assert torch.equal(mixed, mixup(images, others, 0.3))
    assert torch.equal(target, mixed_target(labels, other_labels, share, C))

    views, targets = MixupAndCutMix(C, beta=0.7)(*batch, fixed(0.3, 0.9, 0.1))
    assert torch.equal(views, torch.stack([mixup(images, others, 0.3), cut], dim=1))
    assert torch.equal(targets[:, 0], mixed_target(labels, other_labels, 0.3, C))
    assert torch.equal(targets[:, 1], mixed_target(labels, other_labels, kept, C))

    views, targets = pair(*batch, fixed(0.3))
    assert torch.equal(views, torch.stack([images, others], dim=1))
    assert torch.equal(targets, torch.stack([labels, other_labels], dim=1))


def test_the_two_views_have_a_lam_each():
    draws = np.random.Generator(np.random.PCG64(0))
    images, labels, others, _ = two_batches()
    _, targets = MixupAndCutMix(2, beta=1.0)(images, torch.zeros_like(labels), others, torch.ones_like(labels), draws)
    again = np.random.Generator(np.random.PCG64(0))
    lam, other, row, column = again.beta(1.0, 1.0), again.beta(1.0, 1.0), again.random(), again.random()
    assert targets[0, 0, 0] == pytest.approx(lam)
    assert targets[0, 1, 0] == pytest.approx(cutmix(images, others, other, (row, column))[1])


# ---- batches


def stream(n=11, seed=5, **settings):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(40) % C, np.arange(40))
    indices = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:n]
    return EpochBatches(
        split,
        indices,
        4,
        lambda x: x.double() / 255,
        augment=lambda x, draws: random_crop(x, draws, padding=1, flip=True),
        seed=seed,
        **settings,
    )


def test_permuted_is_the_same_samples_in_another_order_within_the_batch():
    """With what augmentation did to each: what is mixed is a permutation of the batch."""
    batches = stream(n=32)
    moved = 0
    for (images, labels), (others, other_labels) in zip(batches, permuted(batches), strict=True):
        pairs = [
            {(tuple(x.flatten().tolist()), int(y)) for x, y in zip(*b, strict=True)}
            for b in ((images, labels), (others, other_labels))
        ]
        assert pairs[0] == pairs[1]
        moved += int((images != others).flatten(1).any(dim=1).sum())
    assert moved > 16
    twice = torch.cat([images for images, _ in permuted(permuted(batches))])
    assert sorted(map(str, twice)) == sorted(str(x) for images, _ in batches for x in images)
    assert not torch.equal(permuted(batches).indices, permuted(replace(batches, seed=6)).indices)


RULES = {
    "mixup": (Mixup(C), permuted),
    "cutmix": (CutMix(C), permuted),
    "remix": (Remix(COUNTS), permuted),
    "pair": (pair, lambda first: stream(seed=9, rank=first.rank, num_ranks=first.num_ranks)),
    "mixup and cutmix": (
        MixupAndCutMix(C),
        lambda first: stream(seed=9, rank=first.rank, num_ranks=first.num_ranks),
    ),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_together_have_the_whole_batches(name, processes):
    """One process with 4 = two with 2: the same images and targets, in the same order, uneven last batches included."""
    rule, second = RULES[name]

    def batches(rank, num_ranks):
        first = stream(rank=rank, num_ranks=num_ranks)
        return list(MixedBatches(first, second(first), rule, seed=7))

    whole = batches(0, 1)
    parts = [batches(rank, processes) for rank in range(processes)]
    assert len(whole) == 3
    for number, (images, target) in enumerate(whole):
        assert torch.equal(torch.cat([part[number][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[number][1] for part in parts]), target)


def test_every_batch_and_every_seed_has_draws_of_its_own():
    def shares(seed):
        first = stream(n=32)
        zero, one = (replace(first.split, labels=torch.full((40,), label)) for label in (0, 1))
        first, second = replace(first, split=zero), replace(permuted(first), split=one)
        batches = MixedBatches(first, second, Mixup(2, beta=0.5), seed=seed)
        assert len(batches) == 8
        return [float(target[0, 0]) for _, target in batches]

    assert len(set(shares(1) + shares(2))) == 16
    assert shares(1) == shares(1)


def test_lam_follows_the_beta_distribution():
    draws = [np.random.Generator(np.random.PCG64(seed)) for seed in range(2000)]
    image, label = torch.ones(1, 1, 1, 1), torch.zeros(1, dtype=torch.long)
    lam = torch.cat([Mixup(2, beta=0.5)(image, label, 0 * image, label, d)[0].flatten() for d in draws])
    assert float(lam.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(lam.var()) == pytest.approx(1 / 8, abs=0.01)  # Beta(a, a): 1 / (4 (2 a + 1))


@pytest.mark.parametrize(
    "changes", [{"n": 10}, {"drop_last": True}, {"rank": 1, "num_ranks": 2}, {"num_ranks": 2}], ids=str
)
def test_streams_of_other_batches_are_refused(changes):
    with pytest.raises(InputError, match="second: expected batches of the first one's sizes, 11 images"):
        MixedBatches(stream(), stream(**changes), pair)
