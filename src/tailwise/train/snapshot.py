"""Where training stands between two steps, and everything needed to go on exactly from there."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tailwise import checks, ranks
from tailwise.train.step import Training


@dataclass
class Progress:
    """How far training has come. stage from 0, epoch of the stage from 1, batch: how many of the epoch are done.

    images, seconds, loss_sum (over samples): of the epoch so far. learning_rate: of the last step.
    """

    stage: int = 0
    epoch: int = 1
    batch: int = 0
    images: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))


@dataclass(frozen=True)
class Snapshot:
    """Training between two steps. tensors: of model, optimiser, random state. progress: JSON values of `Progress`."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


def take_snapshot(training: Training, progress: Progress) -> Snapshot:
    """Training as it stands, in copies; every process calls this, and the main process's is the one to keep.

    Within an epoch the others' buffers, such as batch norm's, are their own.
    """
    tensors = training.state()
    tensors |= {"random": torch.stack(ranks.gathered(torch.get_rng_state()))}
    tensors |= {"loss_sum": torch.stack(ranks.gathered(progress.loss_sum.cpu()))}
    if torch.cuda.is_available():
        tensors["random_device"] = torch.stack(ranks.gathered(torch.cuda.get_rng_state()))
    values = {name: value for name, value in asdict(progress).items() if name != "loss_sum"}
    values["images"] = int(ranks.total(torch.tensor(progress.images)))
    return Snapshot({name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}, values)


def put_back(snapshot: Snapshot, training: Training) -> Progress:
    """Bring training and random state to where the snapshot was taken; returns how far that was.

    Exact with as many processes as the snapshot was taken with; each then goes on with its own sum of losses, for
    another order of adding would round otherwise.

    Raises:
        InputError: names or shapes that do not fit.
    """
    training.load_state(snapshot.tensors)
    put_back_random(snapshot)
    sums = snapshot.tensors["loss_sum"]
    own = sums[ranks.rank()] if len(sums) == ranks.count() else sums.sum() * ranks.is_main()
    done = Progress(**snapshot.progress, loss_sum=own.clone())
    if not ranks.is_main():
        done.images = 0  # all of them are with the main process
    return done


def put_back_random(snapshot: Snapshot) -> None:
    """Bring the random state to where the snapshot was taken."""
    states = snapshot.tensors["random"]
    torch.set_rng_state(states[ranks.rank() % len(states)].clone())  # a view of a later row is refused
    if torch.cuda.is_available() and "random_device" in snapshot.tensors:
        torch.cuda.set_rng_state(snapshot.tensors["random_device"][ranks.rank() % len(states)].clone())


def snapshot_of(tensors: dict[str, Tensor], progress: Mapping[str, Any]) -> Snapshot:
    """The snapshot in a file.

    Raises:
        InputError: what stands there is no progress of training.
    """
    for name, least in (("stage", 0), ("epoch", 1), ("batch", 0), ("images", 0)):
        checks.whole(name, progress.get(name, -1), at_least=least)
    absent = {"random", "loss_sum"} - tensors.keys()
    if absent or progress.keys() != asdict(Progress()).keys() - {"loss_sum"}:
        raise checks.InputError(f"snapshot: expected {', '.join(sorted(absent)) or 'other progress'}, got none")
    return Snapshot(tensors, dict(progress))
