"""digits-lt: scikit-learn's 1,797 real handwritten digits with a long tail; needs no download."""

import functools

import numpy as np
import torch
from numpy.typing import NDArray

from tailwise.counts import ClassCounts
from tailwise.data.augment import Normalize
from tailwise.data.contract import LongTailedData, Split
from tailwise.data.long_tail import Profile, frozen_order, ids_hash, largest_count, long_tailed_counts

TEST_PER_CLASS = 50
VAL_PER_CLASS = 14
MAX_TRAIN = 110
NORMALIZE = Normalize(scale=16.0, mean=(0.3,), std=(0.4,))


def digits_lt(
    seed: int, *, imbalance_ratio: float = 50, profile: Profile = "exp", max_count: int | None = None
) -> LongTailedData:
    """Ten digits of 8 x 8 pixels; per class 50 test, 14 validation and at most 110 training images.

    Training images of digit c: int(110 * ratio^(-c / 9)), so groups of 1 / 3 / 6 classes at ratio 50. Every split is
    drawn anew for each seed.

    Args:
        seed: the subset seed, at least 0.
        imbalance_ratio: N_max / N_min, 1 to 110.
        profile: "exp" or "step".
        max_count: N_max, at most 110; None is 110. With imbalance_ratio 1 each class has as many: a balanced set.

    Raises:
        InputError: a value outside its range.

    >>> data = digits_lt(seed=0)
    >>> data.counts.per_class, len(data.val), len(data.test)
    ((110, 71, 46, 29, 19, 12, 8, 5, 3, 2), 140, 500)
    """
    everything = all_digits()
    counts = long_tailed_counts(10, largest_count(MAX_TRAIN, max_count), imbalance_ratio, profile)
    orders = frozen_order(everything.labels.numpy(), "digits", seed)
    parts: list[NDArray[np.int64]] = []
    for first, sizes in (
        (0, [TEST_PER_CLASS] * 10),
        (TEST_PER_CLASS, [VAL_PER_CLASS] * 10),
        (TEST_PER_CLASS + VAL_PER_CLASS, counts),
    ):
        taken = [order[first : first + size] for order, size in zip(orders, sizes, strict=True)]
        parts.append(np.sort(np.concatenate(taken)))
    test, val, train = (everything.take(part) for part in parts)
    return LongTailedData(
        name="digits-lt",
        train=train,
        val=val,
        test=test,
        counts=ClassCounts(counts),
        published_counts=ClassCounts(counts),
        class_names=tuple(str(digit) for digit in range(10)),
        subset_hash=ids_hash(train.ids, test.ids),
        normalize=NORMALIZE,
    )


@functools.cache
def all_digits() -> Split:
    """scikit-learn's 1,797 digits: values 0..16, [1797, 1, 8, 8]."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return Split(
        images=torch.from_numpy(images.astype(np.uint8)).view(-1, 1, 8, 8),
        labels=torch.from_numpy(labels.astype(np.int64)),
        ids=np.array([f"digits/{i:04d}" for i in range(len(labels))]),
    )
