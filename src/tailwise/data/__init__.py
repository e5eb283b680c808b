"""Data sets, their long-tailed subsets, protocols and batches."""

from tailwise.data.augment import Normalize, random_crop
from tailwise.data.cifar import cifar_lt, read_cifar
from tailwise.data.contract import LongTailedData, Split
from tailwise.data.digits import digits_lt
from tailwise.data.loading import EpochBatches
from tailwise.data.long_tail import frozen_order, ids_hash, long_tailed_counts, long_tailed_indices, val_sizes
from tailwise.data.protocols import PROTOCOLS, Protocol, under_protocol

__all__ = [
    "PROTOCOLS",
    "EpochBatches",
    "LongTailedData",
    "Normalize",
    "Protocol",
    "Split",
    "cifar_lt",
    "digits_lt",
    "frozen_order",
    "ids_hash",
    "long_tailed_counts",
    "long_tailed_indices",
    "random_crop",
    "read_cifar",
    "under_protocol",
    "val_sizes",
]
