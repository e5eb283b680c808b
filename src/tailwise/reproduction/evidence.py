"""What runs on disk say of the numbers of a table: found by what they were trained as, wherever they lie."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tailwise.data.long_tail import long_tailed_counts
from tailwise.experiments import detection_runs, files, runs
from tailwise.experiments.adjusters import strengths_of
from tailwise.experiments.detection_runs import DetectionSeed
from tailwise.recipes.catalog import with_second_stage
from tailwise.recipes.datasets import BenchmarkSettings, SubsetSettings
from tailwise.recipes.detection import DetectionRecipe
from tailwise.recipes.methods import tde_of
from tailwise.recipes.schema import Recipe, SecondStageSettings
from tailwise.recipes.stages import Settings
from tailwise.report.detection import PRECISIONS
from tailwise.report.summary import mean_and_std
from tailwise.reproduction.targets import VAL_IS_TEST, Target

DEEPEST = 4  # folders between --out and a run
FIRST_STAGE = {"data", "backbone", "classifier", "stages", "protocol", "metric", "allow_unseen"}
AFTER_TRAINING = ("name", "rows", "seeds", "compute")  # of a detector's settings: those that training does not see
# Training images that the published numbers are of; CIFAR's follow from ratio and classes. LVIS v0.5's page says "57k".
BENCHMARK = {"imagenet-lt": 115_846, "places-lt": 62_500, "inaturalist-2018": 437_513, "lvis-v1": 100_170}
ABOUT = {"lvis-v0.5": 57_000}
CIFAR_CLASSES = {"cifar10-lt": 10, "cifar100-lt": 100}
GROUPS = ("many", "medium", "few", "all")
KEPT = (*GROUPS, *PRECISIONS, "alpha", "norm_power", "head_cosine", "distance")  # of a row, in a record


@dataclass(frozen=True)
class Begun:
    """A run folder, perhaps without a finished seed; recipe: what it was begun with."""

    path: Path
    recipe: Recipe | DetectionRecipe

    def seed(self, number: int) -> runs.SeedFolder | DetectionSeed | None:
        """The folder of a seed, None if it is not finished."""
        folder = self.path / f"seed-{number}"
        if not (folder / runs.RESULTS).is_file():
            return None
        if isinstance(self.recipe, DetectionRecipe):
            return DetectionSeed(folder, self.recipe, number)
        return runs.SeedFolder(folder, self.recipe, number)

    @property
    def seeds(self) -> list[int]:
        """Those that were begun or finished."""
        names = [path.name.removeprefix("seed-").removesuffix(files.PARTIAL) for path in self.path.glob("seed-*")]
        return sorted({int(name) for name in names if name.isascii() and name.isdecimal()})


def first_stage(recipe: Recipe | DetectionRecipe, seed: int) -> str:
    """What makes two first stages the same training: their settings but for how arithmetic is done, and the subset.

    Two recipes of one first stage, such as those of two adjusters, share the run. A detector's is all of its training.
    """
    told = _told(recipe)
    if isinstance(recipe, DetectionRecipe):
        settings = {key: value for key, value in told.items() if key not in AFTER_TRAINING}
        thresholds = {key: value for key, value in told.get("inference", {}).items() if key != "alpha"}
        settings = {**settings, "inference": thresholds}
    else:
        settings = {key: value for key, value in told.items() if key in FIRST_STAGE}
        if recipe.protocol == "paper":
            settings.pop("metric", None)  # no epoch is chosen by it
        if recipe.protocol == "legacy" and tde_of(recipe.classifier.name) in recipe.methods:
            settings["epoch_by_alpha"] = strengths_of(recipe)[0]  # the epoch is chosen by TDE's accuracy
    for name in ("kept", "workers"):
        settings["data"].pop(name, None)  # where images lie and who reads them is no setting of training
    if isinstance(recipe, Recipe) and isinstance(recipe.data, BenchmarkSettings) and not _carved(recipe):
        settings["data"].pop("subset_seed", None)
    elif getattr(recipe.data, "subset_seed", seed) is None:
        settings["data"]["subset_seed"] = seed
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _carved(recipe: Recipe) -> bool:
    """Whether a benchmark's val is a part of train, drawn by the subset seed; else that seed draws nothing."""
    return recipe.protocol == "clean" and recipe.data.name in VAL_IS_TEST


def _told(settings: Settings) -> dict[str, Any]:
    """The settings that are not their defaults, with the kind of each, as plain JSON.

    A setting that a later version has, at its default, leaves this as it was: what is recorded today is found by it.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Settings):
            return _told(value)
        return [plain(one) for one in value] if isinstance(value, tuple) else value

    found = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if name in ("kind", "name") or value != field.get_default(call_default_factory=True):
            found[name] = plain(value)
    return found


def begun_below(out: Path) -> list[Begun]:
    """Every run folder in `out`, whose recipe this version can read."""
    found = []
    for depth in range(DEEPEST):
        for path in sorted(out.glob("*/" * depth + runs.RECIPE)):
            try:
                content = files.read_json(path)
                kind = DetectionRecipe if content["format"] == detection_runs.FORMAT else Recipe
                found.append(Begun(path.parent, kind.model_validate(content["recipe"])))
            except (ValidationError, ValueError, KeyError):
                continue
    return found


def run_of(begun: Sequence[Begun], key: str, seed: int) -> Begun | None:
    """The run that has a first stage: with this seed finished, else with it begun, else without it."""
    fitting = [run for run in begun if first_stage(run.recipe, seed) == key]
    return preferred(fitting, seed) if fitting else None


def preferred(fitting: Sequence[Begun], seed: int) -> Begun:
    """Of runs of one first stage the one whose seed counts, and is gone on with; the first of equals."""
    return max(fitting, key=lambda run: (run.seed(seed) is not None, seed in run.seeds))


def usable_rows(results: Mapping[str, Any], recipe: Recipe | DetectionRecipe) -> dict[str, Any]:
    """The rows of a seed that are as the recipe would have them now: its alpha, norm power, distance, second stages."""
    return {name: row for name, row in results["rows"].items() if _as_planned(name, row, recipe)}


def _as_planned(name: str, row: Mapping[str, Any], recipe: Recipe | DetectionRecipe) -> bool:
    if isinstance(recipe, DetectionRecipe):
        return bool(row.get("alpha", recipe.inference.alpha) == recipe.inference.alpha)
    for key, strength in zip(("alpha", "norm_power"), strengths_of(recipe), strict=True):
        if key in row:
            return _strength_as_planned(row[key], strength, recipe.metric)
    if "distance" in row:
        return bool(row["distance"] == ("centered" if name == "ncm-centered" else recipe.ncm.distance))
    if "second_stage" in row:
        expected = with_second_stage(recipe, name).second[name]
        there = {key: row["second_stage"].get(key) for key in ("classifier", "stage", "on")}
        try:
            return SecondStageSettings.model_validate(there) == expected
        except ValidationError:
            return False
    return True


def _strength_as_planned(strength: Mapping[str, Any], expected: float | str, metric: str) -> bool:
    """Whether it is the number expected, or was chosen on what and by what is expected."""
    if not isinstance(expected, str):
        return bool(strength["value"] == expected)
    if expected == "learned":
        return bool(strength["from"] == "learned")
    return strength.get("by") == metric and (strength["from"] == "train") == (expected == "train")


def row_name(target: Target) -> str:
    """What a target's row is called in the evidence: its method, with alpha where that is not the recipe's, and val."""
    alpha = "" if target.alpha is None else f", alpha {target.alpha:g}"
    return f"{target.method}{alpha}{', val' * target.on_val}"


def kept(results: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """What a record keeps of a seed's results, and of these rows."""
    return {
        "seed": results["seed"],
        "subset_seed": results.get("subset_seed", results["seed"]),
        "subset_hash": results.get("subset_hash"),
        "checkpoint": results["checkpoint"],
        "protocol": results.get("protocol", "paper"),
        "seconds": results.get("seconds"),
        "versions": results["versions"],
        "compute": results.get("recipe", {}).get("compute"),
        "train_images": results["train_images"] if "train_images" in results else int(sum(results["published_counts"])),
        "rows": {name: {key: row[key] for key in KEPT if key in row} for name, row in rows.items()},
    }


def of_another_benchmark(recipe: Recipe | DetectionRecipe, seeds: Sequence[Mapping[str, Any]]) -> str | None:
    """Why runs are not of the published training set, such as a miniature of it; None if they are."""
    data = recipe.data
    within = 0
    if isinstance(data, SubsetSettings) and data.name in CIFAR_CLASSES:
        classes = CIFAR_CLASSES[data.name]
        expected = sum(
            long_tailed_counts(classes, data.max_count or 50_000 // classes, data.imbalance_ratio, data.profile)
        )
    elif data.name in BENCHMARK:
        expected = BENCHMARK[data.name]
    elif data.name in ABOUT:
        expected, within = ABOUT[data.name], 500
    else:
        return None
    for seed in seeds:
        if abs(seed["train_images"] - expected) > within:
            return f"other data: {seed['train_images']:,} training images, published {expected:,}"
    return None


def compared(
    target: Target, protocols: Mapping[str, Sequence[Mapping[str, Any]]], reason: str | None
) -> dict[str, Any]:
    """The line of a target: printed, ours under each protocol, difference and verdict.

    Args:
        protocols: the seeds that were run, by protocol.
        reason: why a number cannot stand for the printed one, or was not run; None if nothing speaks against it.
    """
    name = row_name(target)
    ours = {protocol: _ours(name, target.metric, seeds) for protocol, seeds in protocols.items()}
    ours = {protocol: found for protocol, found in ours.items() if found}
    found = ours.get(target.under)
    if found is None and reason is None:
        there = any(name in seed["rows"] for seed in protocols.get(target.under, ()))
        reason = "no class in this group" if there else "no run yet"
    difference = None
    if found is not None and target.printed is not None and reason is None:
        difference = found["mean"] - target.printed
    return {
        "section": target.section,
        "row": target.row,
        "setting": target.setting,
        "metric": target.metric,
        "method": target.method,
        "alpha": target.alpha,
        "recipe": None if target.recipe is None else target.recipe.name,
        "printed": target.printed,
        "printed_spread": target.spread,
        "split": target.split,
        "quoted": target.quoted,
        "under": target.under,
        "ours": ours,
        "difference": difference,
        "tolerance": target.tolerance,
        "verdict": verdict(difference, target.tolerance, len(found["values"]) if found else 0, reason),
        "reason": reason,
    }


def verdict(difference: float | None, tolerance: float | None, runs_there: int, reason: str | None) -> str:
    """What may be said of a mean beside a printed number.

    "pass": at least three seeds, whose mean lies at most the tolerance below it; "pass, above" where it lies more than
    the tolerance above. "off": it does not. Fewer seeds are no verdict, however near they come; neither are any, where
    what is printed was trained in another setting and there is no tolerance.

    >>> verdict(-0.4, 1.0, 3, None), verdict(2.0, 1.0, 3, None), verdict(-1.2, 1.0, 5, None)
    ('pass', 'pass, above', 'off')
    >>> verdict(0.0, 1.0, 1, None), verdict(0.0, 1.0, 2, None), verdict(0.1, 1.0, 3, "other data")
    ('single run', '2 runs', 'not run')
    >>> verdict(0.0, None, 3, None)
    'other setting'
    """
    if reason is not None or runs_there == 0:
        return "not run"
    if tolerance is None:
        return "other setting"
    if runs_there < 3:
        return "single run" if runs_there == 1 else "2 runs"
    if difference is None:
        return "-"
    rounding = 1e-9  # of a mean
    if difference < -tolerance - rounding:
        return "off"
    return "pass" if difference <= tolerance + rounding else "pass, above"


def _ours(name: str, metric: str, seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    there = [seed for seed in seeds if name in seed["rows"]]
    values = {seed["seed"]: seed["rows"][name].get(metric) for seed in there}
    known = {seed: value for seed, value in values.items() if value is not None}
    if not known:
        return None
    return {**(mean_and_std(list(known.values())) or {}), "values": list(known.values()), "seeds": list(known)}
