"""The training loop: every method in the library goes through it, and it knows none of them."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tailwise import checks, ranks
from tailwise.train.compute import Compute, device_of, peak_memory
from tailwise.train.snapshot import Progress, Snapshot, put_back, put_back_random, take_snapshot
from tailwise.train.stage import Stage
from tailwise.train.step import Training


@runtime_checkable
class Batches(Protocol):
    """The (images, labels) batches of one epoch; labels are what the stage's loss takes, a row per image.

    images: a tensor, or whatever the model takes that has `len` and `tensor_split` as a tensor has.
    """

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[Any, Tensor]]: ...


@runtime_checkable
class GoesOn(Protocol):
    """Batches that need not be read from the first one on."""

    def since(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All but the first `batch` batches."""


@dataclass(frozen=True)
class EpochEnd:
    """What is known when an epoch ends. epoch counts from 1 within its stage; seconds are of training alone.

    memory: the most this process has held so far, in bytes, on the GPU if it trains there.
    """

    stage: str
    epoch: int
    epochs: int
    loss: float
    learning_rate: float
    images: int
    seconds: float
    memory: int


def fit(
    model: nn.Module,
    stages: Sequence[Stage],
    load: Callable[[Stage, int], Batches],
    *,
    on_epoch: Callable[[EpochEnd], None] = lambda _: None,
    on_pause: Callable[[Callable[[], Snapshot]], None] = lambda _: None,
    resume: Snapshot | None = None,
    compute: Compute = Compute(),  # noqa: B008  # immutable
) -> None:
    """Train `model` through `stages`, in place.

    Each step takes one batch, in `accumulate` micro-batches, and weighs every example alike: one batch of 256, four
    micro-batches of 64, and two processes with 128 each move weights and feature average by the same amount. Under
    torchrun every process calls this with its own part of each batch; uneven parts are no different, but each has an
    image. Batch-norm statistics are, when an epoch ends, the main process's. Nothing waits for the device within an
    epoch.

    Args:
        model: images -> logits, or whatever the stage's loss takes.
        stages: in order; each starts with a fresh optimiser.
        load: (stage, epoch counted from 1) -> that epoch's batches.
        on_epoch: called after each epoch; may put the model in eval mode.
        on_pause: called between any two steps with a function that takes a snapshot, for whoever wants one.
        resume: go on from this snapshot; the rest is, bit for bit, what it would have been.
        compute: on which device and how, by default where the model is; `load` gives batches on that device.

    Raises:
        InputError: an unknown module name in `trainable`, a loss with parameters of its own to learn, an epoch without
            a batch, a process without an image, parameters that take no part beside several processes, a loss that is
            not finite, or a snapshot that does not fit.
    """
    first = _stage_of(resume, stages) if resume else 0
    for number, stage in enumerate(stages[first:], first):
        only = only_trainable(model, stage.trainable, bn_drift=stage.legacy_bn_drift)
        with only as set_train_mode, compute.placed(model):
            training = Training(model, stage, compute)
            done = put_back(resume, training) if resume and number == first else Progress(stage=number)
            while done.epoch <= stage.epochs:
                set_train_mode()
                training.start_epoch(done.epoch)
                batches = load(stage, done.epoch)
                if not len(batches):
                    raise checks.InputError(
                        f"batch_size: expected at most the number of training images with drop_last, "
                        f"got {stage.batch_size}"
                    )
                if done.batch > len(batches):
                    raise checks.InputError(
                        f"snapshot: expected one within an epoch of {len(batches)} batches, got one after {done.batch}"
                    )
                start = time.perf_counter() - done.seconds
                rest = _since(batches, done.batch)
                if resume and done.batch:  # who begins to read may draw random numbers, and had drawn them by then
                    put_back_random(resume)
                for images, labels in rest:
                    done.learning_rate = stage.learning_rate(done.epoch - 1 + done.batch / len(batches))
                    training.set_learning_rate(done.learning_rate)
                    done.loss_sum = done.loss_sum + training.step(images, labels)
                    done.images += len(labels)
                    done.batch += 1
                    done.seconds = time.perf_counter() - start
                    on_pause(partial(take_snapshot, training, done))
                end = _epoch_end(model, stage, done, start)
                training.share_buffers()
                with training.averaged():
                    on_epoch(end)
                done = Progress(stage=number, epoch=done.epoch + 1)
                on_pause(partial(take_snapshot, training, done))
            training.keep_average()


def _stage_of(resume: Snapshot, stages: Sequence[Stage]) -> int:
    number, epoch = resume.progress["stage"], resume.progress["epoch"]
    if number >= len(stages) or epoch > stages[number].epochs + 1:  # that is where one after the last epoch stands
        lengths = ", ".join(str(stage.epochs) for stage in stages)
        raise checks.InputError(
            f"snapshot: expected one of stages of {lengths} epochs, got one in epoch {epoch} of stage {number + 1}"
        )
    return int(number)


def _since(batches: Batches, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All but the first `batch` batches; those that can be left unread are, the others are read by now."""
    if isinstance(batches, GoesOn):
        return batches.since(batch)
    rest = iter(batches)
    deque(islice(rest, batch), maxlen=0)
    return rest


def _epoch_end(model: nn.Module, stage: Stage, done: Progress, start: float) -> EpochEnd:
    images = int(ranks.total(torch.tensor(done.images)))
    loss = float(ranks.total(done.loss_sum)) / images  # waits for the device, so that now the epoch is over
    seconds = time.perf_counter() - start
    if not math.isfinite(loss) or not all(p.isfinite().all() for p in model.parameters()):
        raise checks.InputError(
            f"stage '{stage.name}': training diverged in epoch {done.epoch}, "
            f"loss {loss:g} at learning rate {done.learning_rate:g}"
        )
    memory = peak_memory(device_of(model))
    return EpochEnd(stage.name, done.epoch, stage.epochs, loss, done.learning_rate, images, seconds, memory)


@contextmanager
def only_trainable(
    model: nn.Module, trainable: Iterable[str], *, bn_drift: bool = False
) -> Iterator[Callable[[], None]]:
    """Freeze what lies in none of the named modules: parameters take no gradient, modules stay in eval mode.

    Gives a function that puts the rest in train mode, or everything with `bn_drift`; what a module's own `train` keeps
    in eval mode stays there. On leaving, every parameter is as trainable as before.

    Raises:
        InputError: a name that is no module of `model`.
    """
    names = [name for name, _ in model.named_modules()]
    prefixes = [checks.choice("trainable", prefix, names) for prefix in trainable]

    def inside(name: str) -> bool:
        return any(prefix == "" or name == prefix or name.startswith(prefix + ".") for prefix in prefixes)

    def set_train_mode() -> None:
        model.train(bn_drift)
        for prefix in () if bn_drift else prefixes:
            model.get_submodule(prefix).train()

    before = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = parameter.requires_grad and inside(name)
    try:
        yield set_train_mode
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = before[name]
