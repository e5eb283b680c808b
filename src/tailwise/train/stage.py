"""One training phase as data: what is trainable, which sampler, which loss, how long."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from tailwise import checks


@runtime_checkable
class Sampler(Protocol):
    """Which images each epoch draws, in which order."""

    def indices(self, epoch: int) -> Tensor:
        """int64 indices of epoch 1, 2, ..."""


@runtime_checkable
class MovesOncePerStep(Protocol):
    """A module with state that moves once per optimiser step, told how many forwards a step has."""

    update_every: int


@runtime_checkable
class FollowsEpochs(Protocol):
    """A module, of the model or of the loss, that changes with the epoch and is told when one starts."""

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Epoch 1, 2, ... of the stage's `epochs`."""


def _ignore(learning_rate: float) -> None:
    pass


@dataclass(frozen=True)
class Stage:
    """One training phase. A two-stage method is a list of these.

    name: shown in logs.
    epochs: how long.
    batch_size: images per optimiser step.
    sampler: which images, in which order.
    loss: (what the model returns, what the batch has for labels) -> mean over samples, such as (logits [N, C],
        target [N]). A module is copied for the stage, moves to its device, and its buffers are part of snapshots; it
        has no parameters of its own to learn.
    optimizer: parameters -> optimiser.
    learning_rate: epochs done, a fraction within an epoch -> learning rate; see `train.schedules`. Of the optimiser's
        group that begins with the highest rate; the others keep their ratios to it.
    trainable: module names; what lies in none of them is frozen, parameters and batch-norm statistics alike.
        ("",) is everything, ("classifier",) the classifier alone.
    legacy_bn_drift: keep frozen modules in train mode, so that their batch-norm statistics follow the stage's data
        although no parameter moves. Both papers' code does this; it is no part of either method.
    accumulate: micro-batches per optimiser step; they share `batch_size`.
    drop_last: whether a last, smaller batch is left out.
    clip_norm: the longest a step's gradient, over all parameters, may be; longer ones are shortened to it.
    sharpness: rho of sharpness-aware minimisation: each step's gradient is taken at this distance from the weights,
        where the loss is worst to first order, and clipped there; twice the cost. None takes it at the weights.
    weight_average: decay rate, in [0, 1), of an exponential moving average of all weights and buffers, which takes
        their place when an epoch is measured and when the stage ends.
    on_learning_rate: told each step's learning rate before its forward (the momentum of the feature average may
        follow it).
    """

    name: str
    epochs: int
    batch_size: int
    sampler: Sampler
    loss: Callable[[Any, Tensor], Tensor]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    learning_rate: Callable[[float], float]
    trainable: tuple[str, ...] = ("",)
    legacy_bn_drift: bool = False
    accumulate: int = 1
    drop_last: bool = False
    clip_norm: float | None = None
    sharpness: float | None = None
    weight_average: float | None = None
    on_learning_rate: Callable[[float], None] = _ignore

    def __post_init__(self) -> None:
        if isinstance(self.trainable, str) or not self.trainable:
            raise checks.InputError(
                f"trainable: expected names of modules, such as ('classifier',), got {self.trainable!r}"
            )
        checks.whole("epochs", self.epochs)
        checks.whole("batch_size", self.batch_size)
        checks.whole("accumulate", self.accumulate)
        if self.accumulate > self.batch_size:
            raise checks.InputError(f"accumulate: expected at most batch_size {self.batch_size}, got {self.accumulate}")
        if self.clip_norm is not None:
            checks.number("clip_norm", self.clip_norm, above=0)
        if self.sharpness is not None:
            checks.number("sharpness", self.sharpness, above=0)
        if self.weight_average is not None:
            checks.number("weight_average", self.weight_average, at_least=0, below=1)
