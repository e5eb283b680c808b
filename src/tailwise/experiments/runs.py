"""Run folders: RUN/recipe.json and one sub-folder per seed.

RUN/seed-0/ holds checkpoint.safetensors (the weights the protocol chose), results.json (what was measured), log.jsonl
(a line per epoch) and stores/ (features and logits of val and test).
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ValidationError

from tailwise import checks, ranks
from tailwise.experiments import files
from tailwise.experiments.owned import LOCKS
from tailwise.experiments.settings import whole_stage
from tailwise.recipes.methods import METHODS
from tailwise.recipes.schema import Recipe

FORMAT = "tailwise-run/1"
Settled = TypeVar("Settled", bound=BaseModel)  # a recipe of some kind
Seeded = TypeVar("Seeded", bound="HasSeed")
RECIPE, CHECKPOINT, RESULTS, LOG = "recipe.json", "checkpoint.safetensors", "results.json", "log.jsonl"
RESULT_KEYS = {"seed", "subset_hash", "protocol", "published_counts", "versions", "checkpoint", "rows"}


@runtime_checkable
class HasSeed(Protocol):
    """A finished seed of some kind of run."""

    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class SeedFolder:
    """One finished run of a recipe."""

    path: Path
    recipe: Recipe
    seed: int

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    def store(self, split: str) -> Path:
        return self.path / "stores" / split

    def results(self) -> dict[str, Any]:
        """What was measured when the run ended.

        Raises:
            InputError: a file that is absent, no JSON or no result.
        """
        path = self.path / RESULTS
        content = files.read_json(path)
        absent = RESULT_KEYS - content.keys()
        if absent:
            raise checks.InputError(f"{path}: expected a result with {', '.join(sorted(absent))}, got none")
        for key, kind in (("seed", int), ("published_counts", list), ("rows", dict)):
            if not isinstance(content[key], kind):
                raise checks.InputError(f"{path}: expected {key} of type {kind.__name__}, got {content[key]!r}")
        for row in content["rows"].values():
            if "second_stage" in row:
                row["second_stage"] = whole_stage(row["second_stage"])
        return content


@dataclass(frozen=True)
class Run:
    """A run folder: its recipe and its finished seeds, ascending."""

    path: Path
    recipe: Recipe
    seeds: tuple[SeedFolder, ...]

    def seed(self, number: int | None) -> SeedFolder:
        """The folder of a seed; None asks for the first.

        Raises:
            InputError: no such seed here.
        """
        return chosen_seed(self.seeds, number)

    @property
    def rows(self) -> list[str]:
        """What it reports: its recipe's methods, and those that every seed was adjusted by since, in METHODS' order."""
        kept = [{path.stem for path in seed.path.glob("adjusted/*.safetensors")} for seed in self.seeds]
        own, *others = self.recipe.methods
        return [own, *(name for name in METHODS if name in set.intersection(*kept).union(others))]


def chosen_seed(seeds: Sequence[Seeded], number: int | None) -> Seeded:
    """The seed of this number, the first for None; errors as in `Run.seed`."""
    for seed in seeds:
        if number in (None, seed.seed):
            return seed
    raise checks.InputError(f"seed: expected one of {', '.join(str(seed.seed) for seed in seeds)}, got {number}")


def open_run(path: Path) -> Run:
    """The run in this folder.

    Raises:
        InputError: no run folder, one with a corrupt recipe, one without a finished seed.
    """
    recipe = read_recipe(path, FORMAT, Recipe)
    return Run(path, recipe, tuple(SeedFolder(path / f"seed-{n}", recipe, n) for n in finished_seeds(path)))


def read_recipe(path: Path, fmt: str, kind: type[Settled]) -> Settled:
    """The recipe of the run in this folder, of the given kind.

    Raises:
        InputError: no run folder, a run of another kind, a corrupt recipe.
    """
    found = format_of(path)
    if found != fmt:
        raise checks.InputError(f"{path / RECIPE}: expected format {fmt}, got {found}")
    try:
        return kind.model_validate(files.read_json(path / RECIPE)["recipe"])
    except (ValidationError, KeyError) as error:
        raise checks.InputError(f"{path / RECIPE}: not a recipe of this version of tailwise") from error


def format_of(path: Path) -> str:
    """What kind of run a folder holds, as its recipe says.

    Raises:
        InputError: no run folder.
    """
    if not (path / RECIPE).is_file():
        inside = sorted(str(child.parent) for child in path.glob(f"*/{RECIPE}")) if path.is_dir() else []
        hint = f"; it holds the runs {', '.join(inside)}" if inside else ""
        found = "a folder without one" if path.is_dir() else "a file" if path.exists() else "nothing there"
        raise checks.InputError(f"{path}: expected a run folder with {RECIPE}, got {found}{hint}")
    return str(files.read_json(path / RECIPE).get("format", "none"))


def finished_seeds(path: Path) -> list[int]:
    """The seeds of a run that have a result, ascending.

    Raises:
        InputError: none.
    """
    names = [child.parent.name.removeprefix("seed-") for child in path.glob(f"seed-*/{RESULTS}")]
    numbers = sorted(int(name) for name in names if name.isascii() and name.isdecimal())
    if not numbers:
        raise checks.InputError(f"{path}: expected at least one finished seed, got none")
    return numbers


def open_runs(path: Path) -> list[Run]:
    """The run in this folder, or the runs of the suite in it; errors as in `open_run`."""
    members = [child.parent for child in path.glob(f"*/{RECIPE}")] if path.is_dir() else []
    if not members:
        return [open_run(path)]
    opened = (open_run(member) for member in sorted(members))
    return sorted(opened, key=lambda run: list(METHODS).index(run.recipe.methods[0]))


def free_folder(name: str, out: Path | None) -> Path:
    """Where new runs go: `out`, or runs/NAME, or behind the last of runs/NAME-2, runs/NAME-3, ..., made at once.

    Who makes a folder has its name: of two that look for one together, each gets its own.

    Raises:
        InputError: `out` is there already and is not an empty folder; the folder cannot be made.
    """
    if out is not None:
        if out.exists() and not (out.is_dir() and all(child.name.startswith(LOCKS) for child in out.iterdir())):
            raise checks.InputError(f"out: expected a new or empty folder, got {out}, which holds something")
        return out
    number = max(_numbers(name), default=0)
    while True:
        number += 1
        folder = _numbered(name, number)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise checks.InputError(f"out: cannot make {folder} ({error.strerror})") from error


@contextmanager
def new_folder(name: str, out: Path | None) -> Iterator[Path]:
    """`free_folder`, the same for all processes; what it made goes again where the block fails and left it empty.

    Raises:
        InputError: as `free_folder`, in every process.
    """
    missing = [path for path in (Path("runs") / name).parents if not path.exists()]
    found: Path | checks.InputError | None = None
    if ranks.is_main():
        try:
            found = free_folder(name, out)
        except checks.InputError as error:
            found = error
    found = ranks.agree(found)
    if isinstance(found, checks.InputError):
        raise found
    assert found
    try:
        yield found
    except BaseException:
        if out is None and ranks.is_main():
            with contextlib.suppress(OSError):  # something is in it
                for path in (found, *missing):
                    path.rmdir()
        raise


def last_folder(name: str, out: Path | None) -> Path:
    """Where the run that is to go on lies: `out`, or the newest of runs/NAME, runs/NAME-2, ...; it may not be there."""
    if out is not None:
        return out
    return _numbered(name, max(_numbers(name), default=1))


def _numbered(name: str, number: int) -> Path:
    return Path("runs") / (name if number == 1 else f"{name}-{number}")


def _numbers(name: str) -> list[int]:
    """Of runs/NAME, which is the first, and its successors, some of which may have been removed."""
    first = _numbered(name, 1)
    found = [path.name.removeprefix(f"{first.name}-") for path in first.parent.glob(f"{first.name}-*")]
    return [1] * first.exists() + [int(text) for text in found if text.isascii() and text.isdecimal()]


def check_begun(folder: Path, *, suite: bool) -> None:
    """Refuse to go on with a folder in which no such run was begun.

    Raises:
        InputError: nothing there, or a single run where a suite is wanted, or the other way round.
    """
    single, several = (folder / RECIPE).is_file(), any(folder.glob(f"*/{RECIPE}"))
    if not (several and not single if suite else single):
        wanted = f"the folder of a suite, with */{RECIPE}" if suite else f"a run folder with {RECIPE}"
        found = "a single run" if single else "a suite" if several else "none there"
        raise checks.InputError(f"resume: expected {wanted} at {folder}, got {found}")


def check_digest(folder: Path, digest: str) -> None:
    """Refuse a seed whose results are not of its checkpoint, whose digest this is.

    Raises:
        InputError: they are of another one; no readable result.
    """
    of = files.read_json(folder / RESULTS).get("checkpoint")
    if of != digest:
        raise checks.InputError(
            f"{folder / RESULTS}: expected results of {CHECKPOINT}, {digest[:12]}, got those of {str(of)[:12]}; "
            "two trainings are mixed here"
        )
