"""One torch sampler for every draw rule: seeded, resumable, the same global batches for any number of ranks."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from tailwise import checks
from tailwise.sampling.draws import Indices
from tailwise.shapes import Int


class EpochSampler(Sampler[int]):
    """The images of each epoch, as one global sequence of which every rank takes its slice of each global batch.

    Global batch b is places b * batch_size .. (b + 1) * batch_size of the epoch's sequence; rank r of R takes the r-th
    of R equal consecutive parts (the first ones one longer where it does not divide). So 1, 2 or 4 ranks see the same
    global batches, whatever the draw rule, and an epoch that does not divide loses and repeats nothing. A last batch of
    fewer images than ranks leaves some ranks without one: a loop in which all of them meet at every step drops it.

    Args:
        draw: epoch, counted from 1, -> indices of the epoch, a pure function; see `tailwise.sampling.draws`.
        batch_size: images per optimiser step over all ranks.
        rank, num_ranks: which part this process takes.

    Raises:
        InputError: a value outside its range, fewer images in a batch than ranks.

    Limit case: one rank iterates over the draw itself.

    >>> from functools import partial
    >>> from tailwise.sampling import instance_draw
    >>> whole = list(EpochSampler(partial(instance_draw, 10, 0), batch_size=4))
    >>> half = EpochSampler(partial(instance_draw, 10, 0), batch_size=4, rank=1, num_ranks=2)
    >>> list(half) == whole[2:4] + whole[6:8] + whole[9:10]
    True
    """

    def __init__(
        self, draw: Callable[[int], Indices], *, batch_size: int = 1, rank: int = 0, num_ranks: int = 1
    ) -> None:
        self.draw = draw
        self.batch_size = checks.whole("batch_size", batch_size)
        self.num_ranks = checks.whole("num_ranks", num_ranks)
        if not 0 <= rank < num_ranks:
            raise checks.InputError(f"rank: expected 0..{num_ranks - 1}, got {rank!r}")
        if batch_size < num_ranks:
            raise checks.InputError(f"batch_size: expected at least num_ranks {num_ranks}, got {batch_size}")
        self.rank = rank
        self.epoch = 1
        self.batch = 0  # global batches of this epoch already given out
        self._start = 0  # where the next iteration begins: 0 unless a state was loaded

    def indices(self, epoch: int) -> Int[Tensor, " N"]:
        """The global sequence of an epoch, int64."""
        return torch.from_numpy(self.draw(checks.whole("epoch", epoch)))

    def set_epoch(self, epoch: int) -> None:
        """Start at the first batch of this epoch, counted from 1."""
        self.epoch, self.batch, self._start = checks.whole("epoch", epoch), 0, 0

    def __iter__(self) -> Iterator[int]:
        """This rank's indices of the epoch; the next whole iteration is the next epoch.

        An iteration that is given up leaves the epoch to be iterated again; loader workers may have drawn all of it by
        then, so call `set_epoch` where that matters. After `load_state_dict` it begins at that batch.
        """
        batches = self._my_batches()
        self.batch, self._start = self._start, 0
        while self.batch < len(batches):
            mine = batches[self.batch]
            self.batch += 1
            yield from mine.tolist()
        self.set_epoch(self.epoch + 1)

    def __len__(self) -> int:
        """Indices this rank takes in the whole of the current epoch."""
        return sum(len(batch) for batch in self._my_batches())

    def _my_batches(self) -> list[Tensor]:
        batches = torch.split(self.indices(self.epoch), self.batch_size)
        return [torch.tensor_split(batch, self.num_ranks)[self.rank] for batch in batches]

    def state_dict(self, *, batches_done: int | None = None) -> dict[str, int]:
        """Where to go on. Loader workers draw ahead: with them, say how many batches were trained on."""
        return {"epoch": self.epoch, "batch": self.batch if batches_done is None else batches_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` stood, in this epoch, at that global batch, also with another number of ranks.

        Raises:
            InputError: a state without a valid epoch and batch; the sampler is left as it was.
        """
        epoch = checks.whole("state['epoch']", state.get("epoch", 0))
        batch = checks.whole("state['batch']", state.get("batch", -1), at_least=0)
        batches = -(-len(self.indices(epoch)) // self.batch_size)
        if batch > batches:
            raise checks.InputError(f"state['batch']: expected at most the epoch's {batches} batches, got {batch}")
        self.epoch, self.batch, self._start = epoch, batch, batch
