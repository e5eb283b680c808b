"""The three evaluation protocols: what is trained on, and what choices are made on."""

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.data.contract import LongTailedData
from tailwise.data.long_tail import frozen_order, val_sizes

Protocol = Literal["clean", "paper", "legacy"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


def under_protocol(data: LongTailedData, protocol: Protocol, seed: int) -> LongTailedData:
    """The data as a protocol uses it.

    clean: epoch and settings are chosen on val; where the data set has none it is carved from train, stratified.
    paper: the full published training set, no val: published settings, last epoch.
    legacy: the full published training set, and val *is* test, as in the authors' code.

    Args:
        data: as its reader made it.
        protocol: one of `PROTOCOLS`.
        seed: of the carved split.

    Raises:
        InputError: an unknown protocol, or no class large enough to validate.
    """
    checks.choice("protocol", protocol, PROTOCOLS)
    if protocol == "paper":
        return replace(data, val=None)
    if protocol == "legacy":
        return replace(data, val=data.test)
    if data.val is not None:
        return data
    labels = data.train.labels.numpy()
    sizes = val_sizes(data.counts.per_class)
    if not any(sizes):
        raise checks.InputError(
            "protocol: expected a class with at least 3 training images to carve val from, got none"
        )
    # num_classes from the counts: the last classes may have no image
    orders = frozen_order(labels, f"{data.name}/val", seed)
    taken = np.sort(np.concatenate([order[:n] for order, n in zip(orders, sizes, strict=False)]))
    kept = np.setdiff1d(np.arange(len(labels)), taken)
    train = data.train.take(kept)
    return replace(
        data,
        train=train,
        val=data.train.take(taken),
        counts=ClassCounts.of_labels(train.labels.numpy(), data.counts.num_classes),
    )
