"""Draw rules: which images an epoch holds, in which order. Pure functions of (labels, seed, epoch), vectorised.

An epoch is always as long as instance-balanced sampling's, except under repeat factors and for P x K batches, which are
whole.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.sampling.probabilities import Probabilities
from tailwise.seeds import mixed_seed

Indices = NDArray[np.int64]
TABLE = 1 << 16


@dataclass(frozen=True)
class Members:
    """The images of each class: `images[starts[c] : starts[c] + sizes[c]]` are those of class c."""

    images: Indices
    starts: Indices
    sizes: Indices

    @classmethod
    def of(cls, labels: Indices, counts: ClassCounts) -> "Members":
        """Sort images by class.

        Raises:
            InputError: labels whose counts are not `counts`.
        """
        checks.labels_in_range("labels", labels, counts.num_classes)
        sizes = np.bincount(labels, minlength=counts.num_classes)
        wrong = np.flatnonzero(sizes != np.asarray(counts.per_class))
        if len(wrong):
            c = wrong[0]
            raise checks.InputError(f"counts: expected {sizes[c]} images of class {c}, got {counts.per_class[c]}")
        return cls(np.argsort(labels, kind="stable"), np.cumsum(sizes) - sizes, sizes)


def instance_draw(num_samples: int, seed: int, epoch: int) -> Indices:
    """Every image once, in a fresh order (Kang et al. 2020, Eq. 1 with q = 1).

    >>> sorted(instance_draw(4, seed=0, epoch=1).tolist())
    [0, 1, 2, 3]
    """
    checks.whole("num_samples", num_samples)
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    return np.asarray(torch.randperm(num_samples, generator=generator).numpy())


def class_draw(members: Members, probabilities: Probabilities, seed: int, epoch: int) -> Indices:
    """A class by its probability, then an image of the class, both with replacement (Kang et al. 2020, Eq. 1).

    Raises:
        InputError: probabilities [C] that do not sum to 1, or are above 0 for a class without an image.

    >>> members = Members.of(np.array([0, 0, 0, 1]), ClassCounts((3, 1)))
    >>> class_draw(members, np.array([0.0, 1.0]), seed=0, epoch=1)
    array([3, 3, 3, 3])
    """
    rng = _rng(seed, epoch)
    classes = _classes(rng, probabilities, members)
    place = (rng.random(len(classes)) * members.sizes[classes]).astype(np.int64)
    return np.asarray(members.images[members.starts[classes] + place])


def cyclic_draw(members: Members, probabilities: Probabilities, seed: int, epoch: int) -> Indices:
    """A class by its probability, then the class's images in a shuffled cycle, each once before any again.

    The authors' variant (their `ClassPrioritySampler`). Departure: their cycles go on from epoch to epoch, these start
    anew, so that an epoch does not depend on those before it. Raises what `class_draw` does.

    >>> members = Members.of(np.array([0, 0, 1, 1]), ClassCounts((2, 2)))
    >>> sorted(cyclic_draw(members, np.array([0.0, 1.0]), seed=0, epoch=1).tolist())
    [2, 2, 3, 3]
    """
    classes = _classes(_rng(seed, epoch), probabilities, members)
    return _cyclic_images(members, classes, _visits(classes, len(members.sizes)), mixed_seed(seed, epoch))


def class_aware_draw(members: Members, seed: int, epoch: int, samples_per_class: int = 4) -> Indices:
    """Classes in a shuffled cycle; each visit takes the next `samples_per_class` images of the class's own cycle.

    The authors' `ClassAwareSampler`, which both papers' class-balanced stages used. Both cycles go on over epochs, as
    theirs do; epoch 1 is the first.

    >>> members = Members.of(np.array([0, 0, 0, 0, 1, 1, 1, 1]), ClassCounts((4, 4)))
    >>> sorted(class_aware_draw(members, seed=0, epoch=1).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    checks.whole("samples_per_class", samples_per_class)
    present = np.flatnonzero(members.sizes)
    # Position in the endless sequence -> visit -> (cycle over classes, place in that cycle). Every class is visited
    # once a cycle, so the cycle alone says which of its images are next: no epoch needs those before it.
    position = np.arange((epoch - 1) * len(members.images), epoch * len(members.images))
    visit, nth = np.divmod(position, samples_per_class)
    cycle, place = np.divmod(visit, len(present))
    orders = np.stack([_rng(seed, c).permutation(present) for c in range(cycle[0], cycle[-1] + 1)])
    classes = orders[cycle - cycle[0], place]
    return _cyclic_images(members, classes, cycle * samples_per_class + nth, mixed_seed(seed))


def p_by_k_draw(members: Members, seed: int, epoch: int, *, classes_per_batch: int, images_per_class: int) -> Indices:
    """Batches of `classes_per_batch` classes with `images_per_class` images each (P x K; Hermans et al. 2017).

    The batches follow one another, each class's images side by side. Classes come in shuffled cycles, of which those
    that do not fill a batch are left out, so no class is twice in a batch and all are drawn alike. The images of a
    visit are the next of the class's shuffled cycle: different ones, or each in turn where the class has fewer.

    Args:
        members: the images of each class; classes without an image are never drawn.
        seed, epoch: what the draw depends on, and nothing else.
        classes_per_batch: P, at most the classes that have an image.
        images_per_class: K.

    Returns:
        Indices of as many whole batches as the training images make.

    Raises:
        InputError: fewer classes than P, fewer images than P x K.

    >>> members = Members.of(np.array([0, 0, 0, 0, 1, 1, 2, 2]), ClassCounts((4, 2, 2)))
    >>> drawn = p_by_k_draw(members, 0, 1, classes_per_batch=3, images_per_class=2)
    >>> sorted(drawn[drawn > 3].tolist()), len(drawn)
    ([4, 5, 6, 7], 6)
    """
    per_batch = checks.whole("classes_per_batch", classes_per_batch)
    k = checks.whole("images_per_class", images_per_class)
    present = np.flatnonzero(members.sizes)
    if per_batch > len(present):
        raise checks.InputError(f"classes_per_batch: expected at most the {len(present)} classes, got {per_batch}")
    batches = len(members.images) // (per_batch * k)
    if not batches:
        raise checks.InputError(
            f"images_per_class: expected batches of at most the {len(members.images)} images, got {per_batch} x {k}"
        )
    batches_per_cycle = len(present) // per_batch
    cycles = -(-batches // batches_per_cycle)
    orders = _rng(seed, epoch).random((cycles, len(present))).argsort(axis=1)[:, : batches_per_cycle * per_batch]
    classes = present[orders.ravel()[: batches * per_batch]]
    # a visit never straddles two rounds of the class's cycle, unless the class is smaller: then it starts with one
    sizes = members.sizes[classes]
    rounds, place = np.divmod(_visits(classes, len(members.sizes)), np.maximum(sizes // k, 1))
    visit = (rounds * sizes + place * k)[:, None] + np.arange(k)
    return _cyclic_images(members, np.repeat(classes, k), visit.ravel(), mixed_seed(seed, epoch))


def repeat_draw(members: Members, factors: NDArray[np.float64], seed: int, epoch: int) -> Indices:
    """Each image as often as its class's repeat factor, fractions by chance, in a fresh order (Gupta et al. 2019).

    >>> members = Members.of(np.array([0, 1]), ClassCounts((1, 1)))
    >>> sorted(repeat_draw(members, np.array([1.0, 3.0]), seed=0, epoch=1).tolist())
    [0, 1, 1, 1]
    """
    rng = _rng(seed, epoch)
    wanted = np.repeat(factors, members.sizes)
    times = np.floor(wanted + rng.random(len(wanted))).astype(np.int64)
    return rng.permutation(np.repeat(members.images, times))


def _rng(*seeds: int) -> np.random.Generator:
    # PCG64's stream is frozen by NumPy's compatibility policy; the distributions used here are uniform ones
    return np.random.Generator(np.random.PCG64(mixed_seed(*seeds)))


def _classes(rng: np.random.Generator, probabilities: Probabilities, members: Members) -> Indices:
    """Draw a class for each image there is, by inverting the distribution function.

    It starts from a table: most draws need no search at all.
    """
    probabilities = checks.prior("probabilities", probabilities, len(members.sizes))
    empty = np.flatnonzero((members.sizes == 0) & (probabilities > 0))
    if len(empty):
        raise checks.InputError(
            f"probabilities: expected 0 for a class without an image, got {probabilities[empty[0]]:g} "
            f"for class {empty[0]}"
        )
    edges = np.cumsum(probabilities)
    edges /= edges[-1]
    table = np.searchsorted(edges, np.arange(TABLE) / TABLE, side="right")
    uniform = rng.random(len(members.images))
    drawn = table[(uniform * TABLE).astype(np.int64)]
    below = np.flatnonzero(uniform >= edges[drawn])  # an edge lies between the place in the table and the number
    while len(below):
        drawn[below] += 1
        below = below[uniform[below] >= edges[drawn[below]]]
    return np.asarray(drawn)


def _visits(classes: Indices, num_classes: int) -> Indices:
    """For each place of a sequence of classes, how often its class came before."""
    order = np.argsort(classes, kind="stable")
    sizes = np.bincount(classes, minlength=num_classes)
    visit = np.empty_like(classes)
    visit[order] = np.arange(len(classes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return visit


def _cyclic_images(members: Members, classes: Indices, visit: Indices, seed: int) -> Indices:
    """For each place of a sequence, the `visit`-th image of its class's endless shuffled cycle.

    Round r of class c is a permutation that depends on (seed, c, r) alone.
    """
    sizes = members.sizes[classes]
    rounds, offset = np.divmod(visit, sizes)
    span = int(rounds.max()) + 1
    pairs, which = np.unique(classes * span + rounds, return_inverse=True)  # the (class, round) that occur
    pair_class = pairs // span
    pair_sizes = members.sizes[pair_class]
    starts = np.cumsum(pair_sizes) - pair_sizes
    group = np.repeat(np.arange(len(pairs)), pair_sizes)
    item = np.arange(len(group)) - starts[group]
    keys = _hash(_hash(pair_class * np.int64(0x9E3779B1) + pairs % span, seed)[group] + item.astype(np.uint64), seed)
    shuffled = item[np.lexsort((keys, group))]
    return np.asarray(members.images[members.starts[classes] + shuffled[starts[which] + offset]])


def _hash(values: NDArray[np.integer], seed: int) -> NDArray[np.uint64]:
    """splitmix64 of each value, as `seeds.mixed_seed` has it for one."""
    with np.errstate(over="ignore"):
        x = values.astype(np.uint64) + np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))
