"""Train a detector over seeds, measure it, write it down; the same loop, snapshots and folders as everything else."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tailwise import checks, ranks
from tailwise.counts import ClassCounts
from tailwise.detect import DetectionData, Detections, DetectionSplit, average_precision
from tailwise.detect.detector import Detector
from tailwise.detect.inference import Inference
from tailwise.experiments import files, runs
from tailwise.experiments.detection_runs import FORMAT, DetectionRun, DetectionSeed, open_detection_run
from tailwise.experiments.keep import LastEpoch
from tailwise.experiments.over_seeds import How, check_same, train_seeds, versions
from tailwise.experiments.owned import owned
from tailwise.experiments.resume import Log, Place, fit_kept, trained_once
from tailwise.experiments.settings import check_settings, recorded
from tailwise.experiments.watch import Val, Watch
from tailwise.recipes.build import cpu_threads, find_device
from tailwise.recipes.build_detection import (
    build_detection_data,
    build_detection_load,
    build_detection_stage,
    build_detector,
    inference_of,
)
from tailwise.recipes.detection import DetectionRecipe
from tailwise.seeds import mixed_seed
from tailwise.train import Compute, EpochEnd, load_checkpoint, load_state, on_device

Row = dict[str, float | bool | None]
AT_ONCE = 4  # images predicted together


def train_detectors(
    recipes: Sequence[DetectionRecipe],
    seeds: Sequence[int],
    folder: Path,
    *,
    data_dir: Path | None,
    watch: Watch,
    device: str = "auto",
    resume: bool = False,
    save_every: float = 60.0,
    until: float | None = None,
) -> list[DetectionRun]:
    """Train every recipe with every seed; one recipe goes to `folder`, several each to a sub-folder of it.

    Data and detector of every recipe are made before anything is written. The last epoch's weights are kept. Arguments
    and errors as in `experiment.train`.
    """
    checks.number("save_every", save_every, at_least=0)
    where = find_device(device)
    for recipe in recipes:
        data = build_detection_data(recipe, seeds[0], data_dir)
        with torch.random.fork_rng(devices=[]):
            build_detector(recipe, data.counts, len(data.train))
        build_detection_stage(recipe, data, seeds[0])
        _reported(data)
    folders = {recipe.name: folder if len(recipes) == 1 else folder / recipe.title for recipe in recipes}
    if resume:
        for recipe in recipes:
            check_same(recipe, folders[recipe.name] / runs.RECIPE)
    how = How(data_dir, watch, where, resume, save_every, until)
    for recipe in recipes:
        train_seeds(recipe, seeds, folders[recipe.name], how, FORMAT, _trained_one)
    return [open_detection_run(folders[recipe.name]) for recipe in recipes]


def _reported(data: DetectionData) -> DetectionSplit:
    split = data.test or data.val
    if split is None:
        raise checks.InputError(f"data: expected images to report on, {data.name} has training images only")
    return split


def _trained_one(recipe: DetectionRecipe, seed: int, folder: Path, label: str, how: How) -> tuple[str, dict[str, Row]]:
    start = time.perf_counter()
    data = build_detection_data(recipe, seed, how.data_dir)
    with cpu_threads(recipe), torch.random.fork_rng(devices=[]), files.unfinished_folder(folder) as written:
        about = {
            "recipe": recorded(recipe),
            "seed": seed,
            "counts": list(data.counts.per_class),
            "frequencies": [category.frequency for category in data.train.truth.categories],
            "class_names": list(data.class_names),
            "train_images": len(data.train),
            "data_hash": data.data_hash,
            "versions": versions(how.device, compiled=False),
        }
        log = Log(written / runs.LOG)
        how.watch.begin(label, recipe.training.epochs, about, written)

        def on_epoch(end: EpochEnd, val: Val | None) -> None:
            how.watch.epoch(log.write(end, val))

        torch.manual_seed(mixed_seed(seed))
        detector = build_detector(recipe, data.counts, len(data.train))

        def stage() -> int:
            stages = [build_detection_stage(recipe, data, seed)]
            load = build_detection_load(recipe, data, seed, how.device)
            place = Place(written / "last-first.safetensors", how.save_every, log, 0, about, how.until)
            compute = Compute(how.device, recipe.compute.precision)
            return fit_kept(detector, stages, load, LastEpoch(), place, on_epoch, compute)

        checkpoint = trained_once(written / runs.CHECKPOINT, detector, about, stage)
        hows = {row: inference_of(recipe, row) for row in recipe.rows}
        rows, _ = measured(detector, _reported(data), hows, how.device)
        if ranks.is_main():
            (written / "last-first.safetensors").unlink(missing_ok=True)
            seconds = time.perf_counter() - start
            result = {**checkpoint.meta, "checkpoint": checkpoint.digest, "rows": rows, "seconds": seconds}
            files.write_json(written / runs.RESULTS, result)
    return "AP " + ", ".join(f"{name} {row['AP'] or 0:.1f}" for name, row in rows.items()), rows


def measured(
    detector: Detector, split: DetectionSplit, hows: Mapping[str, Inference], device: torch.device
) -> tuple[dict[str, Row], dict[str, list[Detections]]]:
    """Average precision of each row in percent, and the detections; images are looked at once for all rows.

    Of masks where there are mask heads, with the boxes' as APbox.
    """
    found = predicted(detector, split, hows, device)
    rows = {name: _row(split, answers, hows[name], bool(detector.mask_heads)) for name, answers in found.items()}
    return rows, found


def predicted(
    detector: Detector, split: DetectionSplit, hows: Mapping[str, Inference], device: torch.device
) -> dict[str, list[Detections]]:
    """What is found in every image, in the split's order, by row; each process takes a part of the images."""
    mine = torch.arange(len(split)).tensor_split(ranks.count())[ranks.rank()].tolist()
    found: dict[str, dict[int, Detections]] = {name: {} for name in hows}
    was_training = detector.training
    with on_device(detector.eval(), device):
        for batch in _of_one_size(split, mine):
            examples = [split[index] for index in batch]
            regions = detector.look([one.image.to(device) for one in examples], [one.image_id for one in examples])
            for name, answers in zip(hows, detector.detections(regions, *hows.values()), strict=True):
                found[name].update(zip(batch, answers, strict=True))
    detector.train(was_training)
    in_order = {name: [answers[index] for index in mine] for name, answers in found.items()}
    return {name: [one for part in ranks.gathered(answers) for one in part] for name, answers in in_order.items()}


def _of_one_size(split: DetectionSplit, indices: Sequence[int]) -> list[list[int]]:
    """A few images at a time: beside a larger one an image is padded, and what is found in it depends on that."""
    of_size: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        image = split.truth.images[index]
        of_size.setdefault((image.height, image.width), []).append(index)
    return [same[start : start + AT_ONCE] for same in of_size.values() for start in range(0, len(same), AT_ONCE)]


def add_rows(
    seed: DetectionSeed, rows: Sequence[str], *, alpha: float, data_dir: Path | None = None, device: str = "auto"
) -> None:
    """Measure a finished seed's detector for more rows, or at another alpha, and keep them in its result.

    Errors as in `measured_again`; TakenError, if another process trains or writes here.
    """
    with owned(seed.path):
        found, _, _ = measured_again(seed, rows, alpha=alpha, data_dir=data_dir, device=device)
        result = seed.results()
        files.write_json(seed.path / runs.RESULTS, {**result, "rows": {**result["rows"], **found["rows"]}})


def _row(split: DetectionSplit, answers: Sequence[Detections], how: Inference, masks: bool) -> Row:
    box = average_precision(split.truth, answers, "box")
    figures = average_precision(split.truth, answers, "mask") if masks else box
    row: Row = {**figures, **{f"box-{name}": value for name, value in box.items()}, "APbox": box["AP"]}
    return row | ({} if how.alpha is None else {"alpha": how.alpha, "exempt_background": how.exempt_background})


def open_detector(seed: DetectionSeed, device: torch.device) -> tuple[Detector, tuple[str, ...]]:
    """A run's trained detector, in eval mode, and the names of its classes; from the checkpoint alone.

    Raises:
        InputError: a corrupt checkpoint, one of other settings than the recipe's, or not that of the results.
    """
    path = seed.path / runs.CHECKPOINT
    checkpoint = load_checkpoint(path)
    check_settings(path, checkpoint.meta, seed.recipe)
    names = tuple(checkpoint.meta["class_names"])
    settings = seed.recipe.detector.model_copy(update={"pretrained": False})  # the checkpoint has all weights
    with torch.random.fork_rng(devices=[]):
        recipe = seed.recipe.model_copy(update={"detector": settings})
        counts = ClassCounts(tuple(checkpoint.meta["counts"]))
        detector = build_detector(recipe, counts, sum(counts.per_class))  # how many images matters to training alone
    load_state(detector, checkpoint.state)
    runs.check_digest(seed.path, checkpoint.digest)
    return detector.eval().to(device), names


def measured_again(
    seed: DetectionSeed,
    rows: Sequence[str],
    *,
    alpha: float | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
) -> tuple[dict[str, Any], dict[str, list[Detections]], DetectionSplit]:
    """A finished seed's result with these rows, predicted anew, their detections, and what they were judged by.

    alpha: of the rows with TDE, in place of the recipe's.

    Raises:
        InputError: as `open_detector`; other data than the detector was trained and measured with.
    """
    where = find_device(device)
    result = seed.results()
    detector, names = open_detector(seed, where)
    data = build_detection_data(seed.recipe, seed.seed, data_dir)
    if len(names) != data.counts.num_classes:
        raise checks.InputError(
            f"{seed.path}: trained for {len(names)} classes, got data with {data.counts.num_classes}"
        )
    frequencies = [category.frequency for category in data.train.truth.categories]
    same = tuple(result["counts"]) == data.counts.per_class and result["frequencies"] == frequencies
    if names != data.class_names or not same:
        raise checks.InputError(f"{seed.path}: trained on other data: class names, counts or frequencies differ")
    here = data.data_hash
    if (there := result.get("data_hash", here)) != here:  # results have not always held one
        raise checks.InputError(f"{seed.path}: of images and annotations {there[:12]}, got others, {here[:12]}")
    split = _reported(data)
    with cpu_threads(seed.recipe):
        figures, found = measured(detector, split, {row: inference_of(seed.recipe, row, alpha) for row in rows}, where)
    return {**result, "rows": figures}, found, split
