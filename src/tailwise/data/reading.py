"""Images on disk, decoded and transformed by worker processes, in batches that depend on neither their number."""

import gc
import signal
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from tailwise import checks
from tailwise.data.files import decoded, image_of_pixels
from tailwise.data.on_disk import DiskSplit, Pixels, Source
from tailwise.seeds import mixed_seed

Transform = Callable[[Any], Tensor]
"""A decoded image -> bytes [3, H, W]. Draws from torch's random state alone; picklable, hashable by its settings."""

AHEAD = 4  # how many parts of a batch each worker reads ahead
Job = tuple[int, int]  # a row of the source, and the seed of its transform


def image_of(source: Source, row: int, transform: Transform, seed: int) -> Tensor:
    """Image `row`, transformed with the random numbers of `seed`; torch's random state is as before.

    Raises:
        InputError: no file, no image, a truncated one; names it.
    """
    if isinstance(source, Pixels):
        image = image_of_pixels(source.pixels(row))
    else:
        image = decoded(source.read(row), source.where(row))
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        return transform(image)
    finally:
        generator.set_state(before)


def read_batches(
    split: DiskSplit, transform: Transform, batches: Sequence[Tensor], seeds: Callable[[int], int]
) -> Iterator[Tensor]:
    """Images of a split, transformed, as bytes [n, 3, H, W] on its device, for each of several lists of jobs.

    The workers divide each batch between them, read ahead, and stay for the next epoch; what comes out is the same for
    any number of them.

    Args:
        split: with the number of workers, and the device.
        transform: of each image.
        batches: for each batch, pairs of (index into the split, place in the epoch), [n, 2].
        seeds: place -> the seed of that image's transform.

    Raises:
        InputError: an image that cannot be read; a worker that died.
    """
    device = split.labels.device
    sizes = [[len(part) for part in _parts(batch, split.workers)] for batch in batches]
    jobs = (
        [(int(split.rows[index]), seeds(place)) for index, place in part.tolist()]
        for batch in batches
        for part in _parts(batch, split.workers)
    )
    with _loader(split, transform, jobs) as loader:
        arrived = arriving(loader)
        for parts in sizes:
            images = [next(arrived).to(device, non_blocking=True) for _ in parts]
            yield images[0] if len(images) == 1 else torch.cat(images)


def _parts(batch: Tensor, workers: int) -> tuple[Tensor, ...]:
    """One for each worker, so that the first batch does not wait for one of them to read it all."""
    return torch.split(batch, -(-len(batch) // max(workers, 1)))


def arriving(loader: "DataLoader[Any]") -> Iterator[Any]:
    """What a loader's workers send, each as it comes; text is what an InputError said there.

    Raises:
        InputError: of that text; a worker that died.
    """
    with _as_asked():
        parts = iter(loader)
    while True:
        try:
            part = next(parts)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            reason = str(error).splitlines()[0]
            raise checks.InputError(f"workers: one died ({reason}); fewer need less memory") from error
        if isinstance(part, str):
            raise checks.InputError(part)
        yield part


class _Images:
    """What a worker has: where images lie, and what is made of them."""

    def __init__(self, source: Source, transform: Transform) -> None:
        self.source, self.transform = source, transform

    def __getitems__(self, jobs: Sequence[Job]) -> Tensor | str:
        try:
            # one that arrives whole: an error raised in a worker comes as the text of its traceback
            images: Tensor = default_collate([image_of(self.source, row, self.transform, seed) for row, seed in jobs])
        except checks.InputError as error:
            return str(error)
        return images


class _Jobs:
    """The parts of an epoch, for a loader that outlives it."""

    def __init__(self) -> None:
        self.parts: Iterator[list[Job]] = iter(())

    def __iter__(self) -> Iterator[list[Job]]:
        return self.parts


def as_it_is(part: Any) -> Any:
    """For a loader whose data set makes whole batches."""
    return part


def _settle(worker: int) -> None:  # noqa: ARG001  # torch tells which
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers it
    gc.freeze()  # what it was forked with is not its own: it must not end the workers of a split that is gone there


# Started once: to start workers anew in every epoch would cost a small data set as much as reading it. They end with
# the split.
_idle: "weakref.WeakKeyDictionary[DiskSplit, dict[Transform, list[tuple[_Jobs, DataLoader[Any]]]]]"
_idle = weakref.WeakKeyDictionary()


@contextmanager
def _loader(split: DiskSplit, transform: Transform, parts: Iterator[list[Job]]) -> "Iterator[DataLoader[Any]]":
    """Workers that read these parts: those of an epoch before, unless another stream is at them."""
    idle = _idle.setdefault(split, {}).setdefault(transform, [])
    jobs, loader = idle.pop() if idle else _started(split, transform)
    jobs.parts = parts
    try:
        yield loader
    except BaseException:  # they are not asked again
        if loader._iterator is not None and split.workers:
            # at once: if the error is kept, they end with it, in an order in which torch waits 5 seconds for each
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]  # of the iterator that has workers
        raise
    idle.append((jobs, loader))


def _started(split: DiskSplit, transform: Transform) -> "tuple[_Jobs, DataLoader[Any]]":
    jobs, several = _Jobs(), split.workers > 0
    with _as_asked():
        loader: DataLoader[Any] = DataLoader(
            _Images(split.source, transform),  # type: ignore[arg-type]  # __getitems__ is all that batches ask for
            batch_sampler=jobs,
            collate_fn=as_it_is,
            num_workers=split.workers,
            prefetch_factor=AHEAD if several else None,
            persistent_workers=several,
            pin_memory=split.labels.device.type == "cuda",
            worker_init_fn=_settle,
            generator=torch.Generator(),  # its own: torch's random state belongs to the model
        )
    return jobs, loader


@contextmanager
def _as_asked() -> Iterator[None]:
    """As many workers as were asked for, without warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        # Python's, of a fork beside threads; workers use none of them
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        yield


def seeds_of(seed: int) -> Callable[[int], int]:
    """Place in the epoch -> the seed of that image's transform."""
    return lambda place: mixed_seed(seed, place)
