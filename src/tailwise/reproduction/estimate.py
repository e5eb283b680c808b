"""How long training will take and how much memory, from steps of the real thing or from what was trained before."""

import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tailwise import checks
from tailwise.data import LongTailedData
from tailwise.detect import DetectionData
from tailwise.experiments import files, runs
from tailwise.recipes.build import build_compute, build_model, cpu_threads
from tailwise.recipes.build_detection import build_detection_load, build_detection_stage, build_detector
from tailwise.recipes.build_stages import build_load, build_stages, build_view
from tailwise.recipes.detection import DetectionRecipe
from tailwise.recipes.schema import Recipe
from tailwise.seeds import mixed_seed
from tailwise.train import Batches, Compute, Stage, fit
from tailwise.train.compute import peak_memory

FAILURES = (checks.InputError, torch.OutOfMemoryError)  # that cost one training and not the whole table
STEPS, SECONDS = 3, 3.0  # that a timing takes, whichever ends first, after a step to warm up


@dataclass(frozen=True)
class Cost:
    """Of one epoch in seconds, and the most memory in bytes; start: of the first step, which compiles.

    origin: "log" of epochs that were trained, "steps" that were timed here.
    """

    epoch: float
    memory: int
    origin: Literal["log", "steps"]
    start: float = 0.0


class _Enough(Exception):  # noqa: N818  # no error: it ends a timing
    """The steps that were to be timed are done."""


@dataclass
class _Timed:
    """The batches of an epoch; notes when each is asked for, and ends when enough were."""

    batches: Any
    device: torch.device
    asked: list[float]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.asked.append(time.perf_counter())
            warm = self.asked[1:]
            if len(warm) > STEPS or (len(warm) > 1 and warm[-1] - warm[0] > SECONDS):
                raise _Enough
            yield batch


def why(failure: Exception) -> str:
    """What is said of one of `FAILURES`, on a line."""
    return "out of memory" if isinstance(failure, torch.OutOfMemoryError) else str(failure)


def timed_cost(recipe: Recipe, data: LongTailedData, device: torch.device) -> Cost:
    """Of an epoch of a recipe's first stage, from a few of its steps: the real model, batch and loss on this device.

    Memory on a CPU is the most that this process has held so far, which earlier timings are part of.

    Raises:
        InputError: settings that do not fit the data.
    """
    placed = data.to(device)
    with cpu_threads(recipe), torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed(0))
        model = build_model(recipe, placed.counts.num_classes)
        (stage,) = build_stages(recipe.stages[:1], recipe, model, placed, 0)
        load = build_load(recipe.stages[:1], placed, 0)
        view, compute = build_view(recipe.stages[0], model), build_compute(recipe, device)
        return _timed_steps(view, stage, load, compute, device)


def timed_detector_cost(recipe: DetectionRecipe, data: DetectionData, device: torch.device) -> Cost:
    """As `timed_cost`, of a detector: in steps of one image, which a CPU may need half a minute for.

    Memory is that of one image at a time.

    Raises:
        InputError: settings that do not fit the data.
    """
    single = recipe.training.model_copy(update={"batch_size": 1, "accumulate": 1})
    alone = recipe.model_copy(update={"training": single})
    with cpu_threads(recipe), torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed(0))
        detector = build_detector(recipe, data.counts, len(data.train)).to(device)
        stage, load = build_detection_stage(alone, data, 0), build_detection_load(alone, data, 0, device)
        return _timed_steps(detector, stage, load, Compute(device, recipe.compute.precision), device)


def _timed_steps(
    model: nn.Module, stage: Stage, load: Callable[[Stage, int], Batches], compute: Compute, device: torch.device
) -> Cost:
    asked = list[float]()
    enough = replace(stage, epochs=STEPS + 2)  # where an epoch is a single step
    with contextlib.suppress(_Enough):
        fit(model, [enough], lambda _, epoch: _Timed(load(stage, epoch), device, asked), compute=compute)
    first, *others = (after - before for before, after in itertools.pairwise(asked))
    step = statistics.median(others)
    return Cost(step * len(load(stage, 1)), peak_memory(device), "steps", start=max(0.0, first - step))


def logged_cost(path: Path) -> tuple[int, Cost | None]:
    """(epochs done, what one took) by a log; (0, None) if there is none."""
    lines = path.read_text().splitlines() if path.is_file() else []
    records: list[dict[str, Any]] = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:  # of a write that was cut off
            continue
    if not records:
        return 0, None
    first = [record for record in records if record["stage"] == records[0]["stage"]]
    seconds = statistics.median(record["seconds"] for record in first)
    return len(records), Cost(seconds, max(record["memory"] for record in records), "log")


def epochs_done(folder: Path, seed: int) -> tuple[int, Cost | None]:
    """Of an unfinished seed of a run, and of what any seed of it took an epoch."""
    own, cost = logged_cost(files.partial(folder / f"seed-{seed}") / runs.LOG)
    if cost is None:
        logs = (logged_cost(path)[1] for path in sorted(folder.glob(f"seed-*/{runs.LOG}")))
        cost = next((found for found in logs if found), None)
    return own, cost


def seconds_of(text: str) -> float:
    """A length of time in seconds.

    Raises:
        InputError: anything else than whole numbers of d, h, m and s in this order, such as 45m or 1h30m.

    >>> seconds_of("45m"), seconds_of("1h30m")
    (2700.0, 5400.0)
    """
    units, rest, total = {"d": 86_400, "h": 3600, "m": 60, "s": 1}, text, 0.0
    for unit, length in units.items():
        number, found, after = rest.partition(unit)
        if found and number.isascii() and number.isdecimal():
            total, rest = total + int(number) * length, after
    if rest or not total:
        raise checks.InputError(f"budget: expected a time such as 45m, 2h or 1h30m, got '{text}'")
    return total
