"""Data sets, their long-tailed subsets, protocols and batches."""

from tailwise.data.augment import Normalize, random_crop
from tailwise.data.cifar import cifar_lt, read_cifar
from tailwise.data.contract import LongTailedData, Split
from tailwise.data.digits import digits_lt
from tailwise.data.loading import EpochBatches
from tailwise.data.long_tail import frozen_order, ids_hash, long_tailed_counts, long_tailed_indices, val_sizes
from tailwise.data.mix import (
    CutMix,
    MixedBatches,
    Mixup,
    MixupAndCutMix,
    Remix,
    cutmix,
    mixed_target,
    mixup,
    pair,
    permuted,
    remix_lam,
)
from tailwise.data.protocols import PROTOCOLS, Protocol, under_protocol

__all__ = [
    "PROTOCOLS",
    "CutMix",
    "EpochBatches",
    "LongTailedData",
    "MixedBatches",
    "Mixup",
    "MixupAndCutMix",
    "Normalize",
    "Protocol",
    "Remix",
    "Split",
    "cifar_lt",
    "cutmix",
    "digits_lt",
    "frozen_order",
    "ids_hash",
    "long_tailed_counts",
    "long_tailed_indices",
    "mixed_target",
    "mixup",
    "pair",
    "permuted",
    "random_crop",
    "read_cifar",
    "remix_lam",
    "under_protocol",
    "val_sizes",
]
