"""Each draw rule itself, against slow loops and by distribution; the sampler over ranks and resumed."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailwise import ClassCounts, InputError
from tailwise.sampling import (
    EpochSampler,
    Members,
    class_aware_draw,
    class_draw,
    class_probabilities,
    cyclic_draw,
    instance_draw,
    p_by_k_draw,
    progressive_probabilities,
    repeat_draw,
    repeat_factors,
    reverse_probabilities,
)

COUNTS = ClassCounts((400, 100, 20, 4, 1, 0))
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(6), COUNTS.per_class))
MEMBERS = Members.of(LABELS, COUNTS)
some_counts = st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any).map(tuple)

# ---- probabilities


@given(some_counts, st.sampled_from([0, 0.25, 0.5, 1]))
def test_class_probabilities_are_equation_1(counts, q):
    weights = [n**q if n > 0 else 0 for n in counts]
    expected = [weight / sum(weights) for weight in weights]
    np.testing.assert_allclose(class_probabilities(ClassCounts(counts), q), expected, rtol=1e-12)


def test_limits_of_q():
    np.testing.assert_allclose(class_probabilities(COUNTS, 1), COUNTS.prior)
    np.testing.assert_allclose(class_probabilities(COUNTS, 0), [0.2] * 5 + [0])
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="q: expected a number in"):
            class_probabilities(COUNTS, bad)


@pytest.mark.parametrize(
    ("reading", "epoch", "num_epochs", "share"),
    [
        ("paper", 0, 8, 0),
        ("paper", 8, 8, 1),
        ("paper", 2, 8, 0.25),
        ("paper", 1, 1, 1),
        ("authors", 1, 9, 0),
        ("authors", 9, 9, 1),
        ("authors", 3, 9, 0.25),
        ("authors", 1, 1, 1),
    ],
)
def test_progressive_is_equation_2_in_both_readings(reading, epoch, num_epochs, share):
    expected = (1 - share) * COUNTS.prior + share * np.array([0.2] * 5 + [0])
    np.testing.assert_allclose(progressive_probabilities(COUNTS, epoch, num_epochs, reading), expected)


@pytest.mark.parametrize(("reading", "epoch"), [("paper", 9), ("authors", 0), ("authors", 9)])
def test_progressive_refuses_epochs_outside(reading, epoch):
    with pytest.raises(InputError, match=r"epoch: expected [01]\.\.8"):
        progressive_probabilities(COUNTS, epoch, 8, reading)


def test_reverse_is_proportional_to_one_over_n():
    inverse = np.array([1 / 400, 1 / 100, 1 / 20, 1 / 4, 1, 0])
    np.testing.assert_allclose(reverse_probabilities(COUNTS), inverse / inverse.sum())


@given(some_counts, st.floats(1e-4, 1))
def test_repeat_factors_are_gupta_et_al(counts, threshold):
    total = sum(counts)
    expected = [max(1.0, (threshold / (n / total)) ** 0.5) if n else 1.0 for n in counts]
    np.testing.assert_allclose(repeat_factors(ClassCounts(counts), threshold), expected, rtol=1e-12)
    rarest = min(n for n in counts if n) / total
    np.testing.assert_allclose(repeat_factors(ClassCounts(counts), rarest * 0.999), 1)


# ---- draw rules

Z = 5.0  # standard errors: one false alarm in a million


def chi_square_z(drawn, probabilities):
    """How far class frequencies are from their expectation, in standard deviations of the chi-square statistic."""
    p = probabilities[probabilities > 0]
    observed = np.bincount(LABELS[drawn], minlength=6)[probabilities > 0]
    statistic = ((observed - len(drawn) * p) ** 2 / (len(drawn) * p)).sum()
    freedom = len(p) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


def epochs_of(draw, epochs=40):
    return np.concatenate([draw(epoch) for epoch in range(1, epochs + 1)])


@pytest.mark.parametrize("rule", [class_draw, cyclic_draw])
@pytest.mark.parametrize("q", [0, 0.5, 1])
def test_classes_are_drawn_by_their_probability(rule, q):
    drawn = epochs_of(lambda epoch: rule(MEMBERS, class_probabilities(COUNTS, q), 0, epoch))
    assert abs(chi_square_z(drawn, class_probabilities(COUNTS, q))) < Z
    for wrong in {0, 0.5, 1} - {q}:  # the test has the power to tell them apart
        assert chi_square_z(drawn, class_probabilities(COUNTS, wrong)) > 100
    assert 5 not in LABELS[drawn]


@pytest.mark.parametrize("rule", [class_draw, cyclic_draw])
@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([0.5, 0.5], r"a frequency for each of 6 classes, got \[2\]"),
        ([0, 0, 0, 0, 0, 1.0], "0 for a class without an image, got 1 for class 5"),
        ([0.5, 0, 0.6, 0, 0, -0.1], "at least 0 that sum to 1"),
        ([np.nan, 1, 0, 0, 0, 0], "at least 0 that sum to 1"),
    ],
)
def test_probabilities_that_do_not_fit_are_named(rule, probabilities, message):
    with pytest.raises(InputError, match=f"^probabilities: expected .*{message}"):
        rule(MEMBERS, np.array(probabilities), 0, 1)


@pytest.mark.parametrize("rule", [class_draw, cyclic_draw])
def test_classes_come_in_no_order(rule):
    classes = LABELS[rule(MEMBERS, class_probabilities(COUNTS, 0), 0, 1)]
    again = (classes[1:] == classes[:-1]).mean()
    assert abs(again - 0.2) < Z * (0.2 * 0.8 / len(classes)) ** 0.5  # five classes alike: one neighbour in five


def test_images_of_a_class_are_drawn_alike_and_with_replacement():
    drawn = class_draw(MEMBERS, np.array([0, 1.0, 0, 0, 0, 0]), 0, 1)
    times = np.bincount(drawn, minlength=len(LABELS))[LABELS == 1]
    assert times.sum() == len(LABELS)
    assert times.std() > 1  # a cycle would give 5 or 6 each
    many = epochs_of(lambda epoch: class_draw(MEMBERS, np.array([0, 1.0, 0, 0, 0, 0]), 0, epoch))
    times = np.bincount(many, minlength=len(LABELS))[LABELS == 1]
    assert abs(((times - times.mean()) ** 2 / times.mean()).sum() - 99) / (2 * 99) ** 0.5 < Z


def test_cyclic_draw_gives_every_image_its_turn():
    drawn = cyclic_draw(MEMBERS, class_probabilities(COUNTS, 0), 0, 1)
    for c in range(5):
        mine = drawn[LABELS[drawn] == c]
        for start in range(0, len(mine), COUNTS.per_class[c]):
            turn = mine[start : start + COUNTS.per_class[c]]
            assert len(set(turn)) == len(turn)
    rounds = drawn[LABELS[drawn] == 2][:40].reshape(2, 20)
    assert not np.array_equal(*rounds)  # each round in another order


@given(st.integers(1, 300), st.integers(0, 3), st.integers(1, 3))
def test_instance_draw_is_a_fresh_permutation(n, seed, epoch):
    drawn = instance_draw(n, seed, epoch)
    assert sorted(drawn.tolist()) == list(range(n))
    assert np.array_equal(drawn, instance_draw(n, seed, epoch))
    if n > 20:
        assert not np.array_equal(drawn, instance_draw(n, seed, epoch + 1))
        assert not np.array_equal(drawn, instance_draw(n, seed + 1, epoch))


@given(some_counts, st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=60)
def test_class_aware_is_the_authors_two_cycles(counts, samples_per_class, seed):
    """Loop over several epochs: classes in cycles without replacement, images of each class likewise."""
    labels = np.repeat(np.arange(len(counts)), counts)
    members = Members.of(labels, ClassCounts(counts))
    draw = partial(class_aware_draw, members, seed, samples_per_class=samples_per_class)
    sequence = np.concatenate([draw(epoch=epoch) for epoch in (1, 2, 3)])
    assert len(draw(epoch=1)) == len(labels)
    present = [c for c, n in enumerate(counts) if n]
    visits = [sequence[i : i + samples_per_class] for i in range(0, len(sequence), samples_per_class)]
    order = [labels[visit[0]] for visit in visits]
    assert all((labels[visit] == c).all() for visit, c in zip(visits, order, strict=True))
    for start in range(0, len(order), len(present)):
        cycle = order[start : start + len(present)]
        assert len(set(cycle)) == len(cycle)
    for c in present:
        mine = [i for i in sequence if labels[i] == c]
        for start in range(0, len(mine), counts[c]):
            turn = mine[start : start + counts[c]]
            assert len(set(turn)) == len(turn)


def test_repeat_draw_repeats_by_its_factor():
    factors = np.array([1.0, 1.25, 2.0, 3.5, 1.0, 1.0])
    drawn = epochs_of(lambda epoch: repeat_draw(MEMBERS, factors, 0, epoch))
    times = np.bincount(drawn, minlength=len(LABELS)) / 40
    assert (times[LABELS == 0] == 1).all()
    assert (times[LABELS == 2] == 2).all()
    assert times[LABELS == 1].mean() == pytest.approx(1.25, abs=Z * (0.25 * 0.75 / 4000) ** 0.5)
    one = np.bincount(repeat_draw(MEMBERS, factors, 0, 1), minlength=len(LABELS))[LABELS == 3]
    assert set(one) <= {3, 4}


@given(some_counts, st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=60)
def test_p_by_k_fills_every_batch(counts, p, k, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    members = Members.of(labels, ClassCounts(counts))
    draw = partial(p_by_k_draw, members, seed, classes_per_batch=p, images_per_class=k)
    present = [c for c, n in enumerate(counts) if n]
    if p > len(present):
        with pytest.raises(InputError, match=f"classes_per_batch: expected at most the {len(present)} classes, got"):
            draw(epoch=1)
        return
    if p * k > len(labels):
        with pytest.raises(InputError, match=f"images_per_class: expected .* {len(labels)} images, got {p} x {k}"):
            draw(epoch=1)
        return
    drawn = draw(epoch=1)
    assert len(drawn) == len(labels) // (p * k) * (p * k)
    assert np.array_equal(drawn, draw(epoch=1))
    visits = drawn.reshape(-1, k)
    classes = labels[visits]
    assert (classes == classes[:, :1]).all()
    for batch in classes[:, 0].reshape(-1, p):
        assert len(set(batch)) == p
    for visit, c in zip(visits, classes[:, 0], strict=True):
        times = np.bincount(visit, minlength=len(labels))[labels == c]
        assert times.max() - times.min() <= 1  # different images, or all of them as often as each other
    for c in present:  # each image once before any again, but for those that do not fill a visit
        mine = visits[classes[:, 0] == c]
        in_round = counts[c] // k
        for start in range(0, len(mine), max(in_round, 1)):
            turn = mine[start : start + in_round]
            assert len(set(turn.ravel())) == turn.size


def test_p_by_k_draws_classes_and_images_alike():
    draw = partial(p_by_k_draw, MEMBERS, classes_per_batch=3, images_per_class=4)
    drawn = epochs_of(lambda epoch: draw(0, epoch))
    share = np.bincount(LABELS[drawn], minlength=6) / len(drawn)
    # 40 epochs of 43 batches, each with 3 of 5 classes: 0.2, with a batch's standard deviation of 0.49 / 3
    np.testing.assert_allclose(share[:5], 0.2, atol=Z * 0.163 / (40 * 43) ** 0.5)
    assert share[5] == 0
    times = np.bincount(drawn, minlength=len(LABELS))[LABELS == 1]
    assert times.min() > 0.7 * times.mean()
    assert times.max() < 1.3 * times.mean()
    assert not np.array_equal(draw(0, 1), draw(0, 2))
    assert not np.array_equal(draw(0, 1), draw(1, 1))
    steps = np.diff(LABELS[draw(0, 1)[::4]].reshape(-1, 3))
    assert (steps > 0).any()  # classes come in no order
    assert (steps < 0).any()


def test_members_refuse_other_counts():
    with pytest.raises(InputError, match="expected 2 images of class 0, got 3"):
        Members.of(np.array([0, 0, 1]), ClassCounts((3, 1)))


# ---- the sampler


RULES = {
    "instance": partial(instance_draw, len(LABELS), 7),
    "class-balanced": partial(class_draw, MEMBERS, class_probabilities(COUNTS, 0), 7),
    "cyclic": partial(cyclic_draw, MEMBERS, class_probabilities(COUNTS, 0), 7),
    "class-aware": partial(class_aware_draw, MEMBERS, 7),
    "p by k": partial(p_by_k_draw, MEMBERS, 7, classes_per_batch=4, images_per_class=8),
    "repeat": partial(repeat_draw, MEMBERS, repeat_factors(COUNTS, 0.1), 7),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_share_each_global_batch(rule, num_ranks):
    batch_size = 32
    for epoch in (1, 2):
        samplers = [
            EpochSampler(RULES[rule], batch_size=batch_size, rank=rank, num_ranks=num_ranks)
            for rank in range(num_ranks)
        ]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        lengths = [len(sampler) for sampler in samplers]
        shares = [list(sampler) for sampler in samplers]
        assert lengths == [len(share) for share in shares]
        whole = RULES[rule](epoch).tolist()
        for start in range(0, len(whole), batch_size):
            batch = whole[start : start + batch_size]
            sizes = [len(part) for part in np.array_split(batch, num_ranks)]
            parts = [[share.pop(0) for _ in range(size)] for share, size in zip(shares, sizes, strict=True)]
            assert sum(parts, []) == batch  # noqa: RUF017  # a few short lists
        assert not any(shares)


@pytest.mark.parametrize("rule", RULES)
def test_resumed_in_the_middle_it_goes_on_with_any_number_of_ranks(rule):
    whole = EpochSampler(RULES[rule], batch_size=32)
    iterator = iter(whole)
    for _ in range(3 * 32):
        next(iterator)
    state = whole.state_dict()
    for _ in range(2 * 32):  # loader workers draw ahead
        next(iterator)
    assert whole.state_dict(batches_done=3) == state
    whole.load_state_dict(state)
    rest = list(whole) + list(whole)
    resumed = EpochSampler(RULES[rule], batch_size=32)
    resumed.load_state_dict(state)
    assert list(resumed) + list(resumed) == rest
    pair = [EpochSampler(RULES[rule], batch_size=32, rank=rank, num_ranks=2) for rank in (0, 1)]
    for sampler in pair:
        sampler.load_state_dict(state)
    first = [list(sampler)[:16] for sampler in pair]
    assert first[0] + first[1] == rest[:32]


def test_a_peek_costs_nothing():
    sampler = EpochSampler(RULES["class-balanced"], batch_size=32)
    first = next(iter(sampler))
    assert list(sampler) == RULES["class-balanced"](1).tolist()
    assert first == RULES["class-balanced"](1)[0]
    assert list(sampler) == RULES["class-balanced"](2).tolist()


def test_seeds_make_other_sequences():
    for rule in (class_draw, cyclic_draw):
        p = class_probabilities(COUNTS, 0)
        assert not np.array_equal(rule(MEMBERS, p, 0, 1), rule(MEMBERS, p, 1, 1))
        assert not np.array_equal(rule(MEMBERS, p, 0, 1), rule(MEMBERS, p, 0, 2))
    assert not np.array_equal(class_aware_draw(MEMBERS, 0, 1), class_aware_draw(MEMBERS, 1, 1))


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"rank": 2, "num_ranks": 2}, "rank"),
        ({"batch_size": 1, "num_ranks": 2}, "batch_size"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_sampler_refuses(bad, named):
    with pytest.raises(InputError, match=named):
        EpochSampler(RULES["instance"], **bad)


def test_bad_state_is_refused_and_changes_nothing():
    sampler = EpochSampler(RULES["instance"], batch_size=4)
    sampler.set_epoch(3)
    for state in ({}, {"epoch": 0, "batch": 1}, {"epoch": 2, "batch": -1}, {"epoch": 2, "batch": 999}):
        with pytest.raises(InputError, match="state"):
            sampler.load_state_dict(state)
        assert sampler.state_dict() == {"epoch": 3, "batch": 0}
