"""Every seed of a recipe, of any kind: each into a folder of its own, each by one process, watched while it trains."""

import contextlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tailwise import checks, ranks
from tailwise.experiments import files, runs
from tailwise.experiments.owned import LOCKS, owned
from tailwise.experiments.settings import recorded, what_counts
from tailwise.experiments.watch import Watch
from tailwise.recipes.detection import DetectionRecipe
from tailwise.recipes.overrides import AnyRecipe
from tailwise.recipes.schema import Recipe
from tailwise.train import compiler_works


@dataclass(frozen=True)
class How:
    """What a run depends on beside recipe and seed; none of it changes the result. The terms are those of `train`."""

    data_dir: Path | None
    watch: Watch
    device: torch.device
    resume: bool
    save_every: float
    until: float | None


def train_seeds(
    recipe: AnyRecipe,
    seeds: Sequence[int],
    folder: Path,
    how: How,
    fmt: str,
    train_one: Callable[[AnyRecipe, int, Path, str, How], tuple[str, Mapping[str, Mapping[str, Any]]]],
) -> None:
    """Every seed of a recipe, each into a folder of its own; a seed that another process trains is refused.

    Args:
        fmt: what kind of run it is, as recipe.json says.
        train_one: (recipe, seed, its folder, label, how) -> a line to say of it, and its rows.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise checks.InputError(f"out: cannot make {folder} ({error.strerror})") from error
    try:
        for seed in seeds:
            place = folder / f"seed-{seed}"
            if _finished(place, how):
                continue
            with owned(place):
                if _finished(place, how):  # by another process just now
                    continue
                check_same(recipe, folder / runs.RECIPE, "resume" if how.resume else "out")
                ranks.wait()
                if ranks.is_main():
                    files.write_json(folder / runs.RECIPE, {"format": fmt, "recipe": recorded(recipe)})
                _watched(recipe, seed, place, how, train_one)
    except BaseException:
        if not any((*folder.glob("seed-*"), *folder.glob(f"{LOCKS}*"))):  # nothing to keep: leave no trace
            (folder / runs.RECIPE).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty after all: not ours alone
                for path in made:
                    path.rmdir()
        raise


def check_same(recipe: Recipe | DetectionRecipe, path: Path, argument: str = "resume") -> None:
    """Raises InputError where a run that is to go on was begun with other settings; argument: what asks for it."""
    if not path.exists():
        return
    there = what_counts(files.read_json(path).get("recipe"))
    here = what_counts(recorded(recipe))
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            raise checks.InputError(
                f"{argument}: expected the settings that {path} was begun with, {key} {there.get(key)}, "
                f"got {here.get(key)}"
            )


def _finished(place: Path, how: How) -> bool:
    """Whether a seed is done already; raises InputError, in every process, if it should not be."""
    there = ranks.agree((place / runs.RESULTS).exists())
    if there and not how.resume:
        raise checks.InputError(f"out: expected a seed that is not trained yet, got {place} with {runs.RESULTS}")
    return there


def _watched(
    recipe: AnyRecipe,
    seed: int,
    folder: Path,
    how: How,
    train_one: Callable[[AnyRecipe, int, Path, str, How], tuple[str, Mapping[str, Mapping[str, Any]]]],
) -> None:
    label = f"{recipe.name} seed {seed}"
    try:
        line, rows = train_one(recipe, seed, folder, label, how)
    except BaseException:
        how.watch.stopped(kept=files.partial(folder).exists())
        raise
    how.watch.done(label, line, rows)


def versions(device: torch.device, *, compiled: bool) -> dict[str, str]:
    """What a number depends on beside recipe and data."""
    return {
        "tailwise": importlib.metadata.version("tailwise"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "compiled": str(compiled and compiler_works(device.type)),
        "threads": str(torch.get_num_threads()),
        "processes": str(ranks.count()),
    }
