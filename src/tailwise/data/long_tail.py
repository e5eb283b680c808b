"""Which images make a long-tailed subset: pure, seeded, hashed."""

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tailwise import checks

Profile = Literal["exp", "step"]


def long_tailed_counts(
    num_classes: int, max_count: int, imbalance_ratio: float, profile: Profile = "exp"
) -> tuple[int, ...]:
    """Training images of each class, most in class 0.

    exp: int(max_count * ratio^(-c / (C - 1))) (Cui et al. 2019). step: the first half of the classes keep
    max_count, the others int(max_count / ratio).

    Args:
        num_classes: C, at least 2.
        max_count: images of class 0.
        imbalance_ratio: N_max / N_min, at least 1 (100, not 0.01).
        profile: "exp" or "step".

    Raises:
        InputError: a value outside its range, or a ratio that leaves a class empty.

    Limit case: ratio 1 is balanced.

    >>> long_tailed_counts(10, 110, 50)
    (110, 71, 46, 29, 19, 12, 8, 5, 3, 2)
    """
    checks.whole("num_classes", num_classes, at_least=2)
    checks.whole("max_count", max_count)
    checks.number("imbalance_ratio", imbalance_ratio, at_least=1)
    checks.choice("profile", profile, ("exp", "step"))
    smallest = 1 / imbalance_ratio  # the authors' form, so that rounding agrees with theirs
    if profile == "exp":
        counts = tuple(int(max_count * smallest ** (c / (num_classes - 1))) for c in range(num_classes))
    else:
        counts = tuple(max_count if c < num_classes // 2 else int(max_count * smallest) for c in range(num_classes))
    if min(counts) < 1:
        raise checks.InputError(
            f"imbalance_ratio: expected a ratio that leaves every class an image, got {imbalance_ratio:g} "
            f"with {max_count} images in the largest class"
        )
    return counts


def largest_count(available: int, max_count: int | None) -> int:
    """N_max: `max_count`, or all there are.

    Raises:
        InputError: fewer there than asked for.

    >>> largest_count(500, None), largest_count(500, 108)
    (500, 108)
    """
    if max_count is None:
        return available
    if checks.whole("max_count", max_count) > available:
        raise checks.InputError(f"max_count: expected at most the {available} images of a class, got {max_count}")
    return max_count


def frozen_order(
    labels: NDArray[np.int64], dataset: str, seed: int, names: NDArray[Any] | None = None
) -> list[NDArray[np.int64]]:
    """The images of each class, in an order that no library's random stream can change.

    Within a class, by SHA-256 of "dataset/seed/class/index". Taking the first n of each class gives subsets that
    are nested over n and drawn without replacement.

    Args:
        labels: classes in 0..C-1, [N].
        dataset: part of the key, so that two data sets never share an order.
        seed: the subset seed.
        names: unique, one for each, [N]: "dataset/seed/name" is the key then, so that where an image stands among the
            others changes nothing.

    Returns:
        For each class, indices into `labels`.

    >>> [order.tolist() for order in frozen_order(np.array([0, 1, 0, 0]), "toy", seed=0)]
    [[2, 3, 0], [1]]
    """
    checks.whole("seed", seed, at_least=0)
    # sorted by class once: to search all labels for each class would take the product of the two
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    orders = []
    for c, members in enumerate(by_class):
        own = (f"{c}/{i}" for i in members.tolist()) if names is None else names[members].tolist()
        keys = [hashlib.sha256(f"{dataset}/{seed}/{name}".encode()).digest() for name in own]
        keyed = zip(keys, members.tolist(), strict=True)
        orders.append(np.array([i for _, i in sorted(keyed)], dtype=np.int64))
    return orders


def long_tailed_indices(
    labels: NDArray[np.int64], counts: tuple[int, ...], *, dataset: str, seed: int
) -> NDArray[np.int64]:
    """The first `counts[c]` images of each class in `frozen_order`, ascending.

    Raises:
        InputError: a class has fewer images than asked for.

    >>> long_tailed_indices(np.array([0, 1, 0, 0]), (2, 1), dataset="toy", seed=0)
    array([1, 2, 3])
    """
    orders = frozen_order(labels, dataset, seed)
    for c, (order, n) in enumerate(zip(orders, counts, strict=True)):
        if len(order) < n:
            raise checks.InputError(f"counts: expected at most {len(order)} images of class {c}, got {n}")
    return np.sort(np.concatenate([order[:n] for order, n in zip(orders, counts, strict=True)]))


def val_sizes(counts: Iterable[int]) -> tuple[int, ...]:
    """How many training images of each class a carved validation split takes.

    A fifth, at least 1 and at most 20, from every class with 3 images or more: rare classes are validated, no class
    is emptied, and the many-shot classes, which need no more than 20 to be judged, keep the rest.

    >>> val_sizes([500, 60, 5, 3, 2, 0])
    (20, 12, 1, 1, 0, 0)
    """
    return tuple(min(20, max(1, n // 5)) if n >= 3 else 0 for n in counts)


def ids_hash(*ids: NDArray[Any]) -> str:
    """SHA-256 of lists of sample ids, as hexadecimal digits; the order of the ids counts.

    >>> ids_hash(np.array(["a", "b"]))[:16]
    'dd31f7aed6a0d50f'
    """
    digest = hashlib.sha256()
    for names in ids:
        digest.update(("\n".join(names.tolist()) + "\n\n").encode())
    return digest.hexdigest()
