"""Data sets, their long-tailed subsets, protocols and batches."""

from tailwise.data.auditing import audit
from tailwise.data.augment import Normalize, random_crop
from tailwise.data.cifar import cifar_lt, read_cifar
from tailwise.data.contract import LongTailedData, Split
from tailwise.data.digits import all_digits, digits_lt
from tailwise.data.folders import folder_index
from tailwise.data.hugging_face import dataset_index
from tailwise.data.index import ImageIndex
from tailwise.data.listed import read_listed
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
from tailwise.data.on_disk import DiskSplit, LooseFiles, Source, string_array
from tailwise.data.own import own_data
from tailwise.data.preparing import prepare
from tailwise.data.protocols import PROTOCOLS, Protocol, under_protocol
from tailwise.data.shards import shard_index
from tailwise.data.splits import draw_splits, stored_splits
from tailwise.data.streaming import StreamedShards
from tailwise.data.tables import table_index

__all__ = [
    "PROTOCOLS",
    "CutMix",
    "DiskSplit",
    "EpochBatches",
    "ImageIndex",
    "LongTailedData",
    "LooseFiles",
    "MixedBatches",
    "Mixup",
    "MixupAndCutMix",
    "Normalize",
    "Protocol",
    "Remix",
    "Source",
    "Split",
    "StreamedShards",
    "all_digits",
    "audit",
    "cifar_lt",
    "cutmix",
    "dataset_index",
    "digits_lt",
    "draw_splits",
    "folder_index",
    "frozen_order",
    "ids_hash",
    "long_tailed_counts",
    "long_tailed_indices",
    "mixed_target",
    "mixup",
    "own_data",
    "pair",
    "permuted",
    "prepare",
    "random_crop",
    "read_cifar",
    "read_listed",
    "remix_lam",
    "shard_index",
    "stored_splits",
    "string_array",
    "table_index",
    "under_protocol",
    "val_sizes",
]
