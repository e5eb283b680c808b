"""The training loop, its stages, schedules and checkpoints."""

from tailwise.train.checkpoint import Checkpoint, load_checkpoint, load_state, save_checkpoint
from tailwise.train.compute import Compute, Precision, compiler_works, on_device
from tailwise.train.loop import Batches, EpochEnd, fit, only_trainable
from tailwise.train.max_norm import keep_max_norm, max_norm
from tailwise.train.schedules import Schedule, constant, cosine, multistep, warm_multistep
from tailwise.train.snapshot import Snapshot, snapshot_of
from tailwise.train.stage import Sampler, Stage

__all__ = [
    "Batches",
    "Checkpoint",
    "Compute",
    "EpochEnd",
    "Precision",
    "Sampler",
    "Schedule",
    "Snapshot",
    "Stage",
    "compiler_works",
    "constant",
    "cosine",
    "fit",
    "keep_max_norm",
    "load_checkpoint",
    "load_state",
    "max_norm",
    "multistep",
    "on_device",
    "only_trainable",
    "save_checkpoint",
    "snapshot_of",
    "warm_multistep",
]
