"""Run folders of detectors: as `runs` has them, with figures of average precision in results.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailwise import checks
from tailwise.experiments import files, runs
from tailwise.recipes.detection import DetectionRecipe

FORMAT = "tailwise-detection-run/1"
RESULT_KEYS = {"seed", "counts", "frequencies", "class_names", "versions", "checkpoint", "rows"}


@dataclass(frozen=True)
class DetectionSeed:
    """One finished run of a recipe."""

    path: Path
    recipe: DetectionRecipe
    seed: int

    def results(self) -> dict[str, Any]:
        """What was measured when the run ended.

        Raises:
            InputError: a file that is absent, no JSON or no result.
        """
        path = self.path / runs.RESULTS
        content = files.read_json(path)
        absent = RESULT_KEYS - content.keys()
        if absent or not isinstance(content["rows"], dict):
            missing = ", ".join(sorted(absent)) or "rows by name"
            raise checks.InputError(f"{path}: expected a result with {missing}, got none")
        return content


@dataclass(frozen=True)
class DetectionRun:
    """A run folder: its recipe and its finished seeds, ascending."""

    path: Path
    recipe: DetectionRecipe
    seeds: tuple[DetectionSeed, ...]

    def seed(self, number: int | None) -> DetectionSeed:
        """The folder of a seed; None asks for the first.

        Raises:
            InputError: no such seed here.
        """
        return runs.chosen_seed(self.seeds, number)


def is_detection(path: Path) -> bool:
    """Whether a run folder holds a detector; errors as in `open_detection_run`."""
    return runs.format_of(path) == FORMAT


def open_detection_run(path: Path) -> DetectionRun:
    """The run in this folder.

    Raises:
        InputError: no run folder, one of another kind or with a corrupt recipe, one without a finished seed.
    """
    recipe = runs.read_recipe(path, FORMAT, DetectionRecipe)
    seeds = tuple(DetectionSeed(path / f"seed-{n}", recipe, n) for n in runs.finished_seeds(path))
    return DetectionRun(path, recipe, seeds)
