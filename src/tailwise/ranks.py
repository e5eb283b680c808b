"""The processes that train together: `torchrun` starts them, everything here works for a single one too."""

import gc
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")
LONGEST_WAIT = timedelta(days=1)  # for one process that decodes a data set
DEAD_AFTER = timedelta(minutes=30)  # in training; by itself torch waits ten of them on GPUs
_launch: Any = None  # the store of torchrun, one for all its attempts
_waiting: Any = None  # the group of processes that wait so long


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, for the length of the block; alone without torchrun."""
    global _launch, _waiting
    if not launched() or dist.is_initialized():
        yield
        return
    from torch.distributed.rendezvous import rendezvous  # not in every build of torch

    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # torchrun keeps one store for all its attempts: without a name of its own, an attempt may read the address of a
    # process of the one before, and wait half an hour for the dead
    _launch, own_rank, number = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt-{attempt}", _launch)  # type: ignore[attr-defined]  # not in its stubs
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=number, timeout=DEAD_AFTER)
    _waiting = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    yield
    # Not after an error: the others may be waiting in the middle of a reduction, and torchrun ends them.
    wait()  # who leaves first would cut the others off
    _launch = _waiting = None
    gc.collect()  # a model that is still wrapped holds the group, whose threads would outlive it
    dist.destroy_process_group()


def leave() -> NoReturn:
    """End a process that torchrun started, its work done.

    Threads of torch's gloo that still hold a tensor when the interpreter goes abort the process now and then
    (pytorch pull request 179291), which torchrun takes for a death: go without taking the interpreter down.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def remember(value: str) -> None:
    """Tell a later attempt of this launch of torchrun, which starts the processes anew when one of them dies."""
    if _launch is not None and is_main():
        _launch.set("tailwise", value)


def recalled() -> str:
    """What this launch of torchrun was last told to `remember`, the same in every process; "" is nothing."""
    return agree(_launch.get("tailwise").decode() if _launch is not None and _launch.check(["tailwise"]) else "")


def count() -> int:
    """How many processes there are.

    >>> count(), rank(), is_main(), agree("mine")
    (1, 0, True, 'mine')
    """
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if _together() else 0


def local_rank() -> int:
    """Which of the processes on this machine this is, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def count_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes files and speaks for all."""
    return rank() == 0


def agree(value: Value) -> Value:
    """The main process's value, in every process."""
    if count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def wait() -> None:
    """Until every process is here: what one has written the others may read, and writing may take hours."""
    if count() > 1:
        dist.all_gather_object([None] * count(), None, group=_waiting)


def gathered(value: Value) -> list[Value]:
    """Every process's value, in the order of ranks, in every process."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def from_main(tensors: Iterable[Tensor]) -> None:
    """Put the main process's values into every process's tensors, in place."""
    if count() == 1:
        return
    for tensor in tensors:
        value = tensor.detach().contiguous()
        dist.broadcast(value, 0)
        tensor.detach().copy_(value)


def total(value: Tensor) -> Tensor:
    """The sum over all processes, a new tensor on the same device; nothing waits for the device."""
    if count() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
