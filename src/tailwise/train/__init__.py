"""The training loop, its stages, schedules and checkpoints."""

from tailwise.train.checkpoint import Checkpoint, load_checkpoint, load_state, save_checkpoint
from tailwise.train.loop import Batches, EpochEnd, fit, only_trainable
from tailwise.train.schedules import Schedule, constant, cosine, multistep
from tailwise.train.snapshot import Snapshot, snapshot_of
from tailwise.train.stage import Sampler, Stage

__all__ = [
    "Batches",
    "Checkpoint",
    "EpochEnd",
    "Sampler",
    "Schedule",
    "Snapshot",
    "Stage",
    "constant",
    "cosine",
    "fit",
    "load_checkpoint",
    "load_state",
    "multistep",
    "only_trainable",
    "save_checkpoint",
    "snapshot_of",
]
