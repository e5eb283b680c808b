"""Train a recipe over seeds, keep what its protocol chooses, measure it, write it down."""

import contextlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from tailwise import checks
from tailwise.data import LongTailedData
from tailwise.evaluate import Store
from tailwise.recipes import runs
from tailwise.recipes.adjusters import choice_of, sweep
from tailwise.recipes.build import (
    build_data,
    build_load,
    build_model,
    build_stages,
    cpu_threads,
    subset_seed_of,
)
from tailwise.recipes.keep import BestOnVal
from tailwise.recipes.methods import METHODS, tde_of
from tailwise.recipes.schema import Recipe
from tailwise.recipes.second import try_second_stage
from tailwise.recipes.trained import Trained
from tailwise.recognizer import Recognizer
from tailwise.seeds import mixed_seed
from tailwise.train import EpochEnd, fit, save_checkpoint


@runtime_checkable
class Watch(Protocol):
    """Told how training goes; draws it or stays silent."""

    def begin(self, label: str, epochs: int) -> None: ...
    def epoch(self, end: EpochEnd, val: float | None) -> None: ...
    def done(self, label: str, line: str) -> None: ...


def train(
    recipes: Sequence[Recipe], seeds: Sequence[int], folder: Path, *, data_dir: Path | None, watch: Watch
) -> list[runs.Run]:
    """Train every recipe with every seed; one recipe goes to `folder`, several each to a sub-folder of it.

    Everything is checked before anything is written: data, model and stages of every recipe are built first. A seed's
    folder appears when it is complete.

    Raises:
        InputError: anything in recipes, data or folder that will not do.
    """
    for recipe in recipes:
        data = build_data(recipe, seeds[0], data_dir)
        with torch.random.fork_rng(devices=[]):
            model = build_model(recipe, data.counts.num_classes)
            _try_one_image(recipe, model, data)
            build_stages(recipe.stages, recipe, model, data, seeds[0])
            for method in recipe.methods[1:]:
                if method in recipe.second:
                    try_second_stage(recipe, method, model, data)
        choice_of(recipe, data.counts, data.published_counts)
    folders = {recipe.name: folder if len(recipes) == 1 else folder / recipe.title for recipe in recipes}
    return [_train_seeds(recipe, seeds, folders[recipe.name], data_dir, watch) for recipe in recipes]


def _try_one_image(recipe: Recipe, model: Recognizer, data: LongTailedData) -> None:
    try:
        with torch.no_grad():
            model.eval()(data.normalize(data.train.images[:1]))
    except (RuntimeError, TypeError) as error:
        shape = list(data.train.images.shape[1:])
        raise checks.InputError(
            f"backbone.name: expected a network for images of shape {shape}, got {recipe.backbone.name}"
        ) from error


def _train_seeds(recipe: Recipe, seeds: Sequence[int], folder: Path, data_dir: Path | None, watch: Watch) -> runs.Run:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise checks.InputError(f"out: cannot make {folder} ({error.strerror})") from error
    try:
        runs.write_json(folder / runs.RECIPE, {"format": runs.FORMAT, "recipe": recipe.model_dump(mode="json")})
        for seed in seeds:
            _train_one(recipe, seed, folder / f"seed-{seed}", data_dir, watch)
    except BaseException:
        if not any(folder.glob(f"seed-*/{runs.RESULTS}")):  # nothing to keep: leave no trace
            (folder / runs.RECIPE).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty after all: not ours alone
                for path in made:
                    path.rmdir()
        raise
    return runs.open_run(folder)


def _train_one(recipe: Recipe, seed: int, folder: Path, data_dir: Path | None, watch: Watch) -> None:
    start = time.perf_counter()
    data = build_data(recipe, seed, data_dir)
    label = f"{recipe.name} seed {seed}"
    on_images = [s.stage for m, s in recipe.second.items() if m in recipe.methods and s.on == "images"]
    watch.begin(label, sum(stage.epochs for stage in (*recipe.stages, *on_images)))
    with cpu_threads(recipe), torch.random.fork_rng(devices=[]), runs.new_folder(folder) as written:
        torch.manual_seed(mixed_seed(seed))
        model = build_model(recipe, data.counts.num_classes)
        keep = BestOnVal(model, data, recipe, _score(recipe, data))
        with (written / runs.LOG).open("w") as log:

            def on_epoch(end: EpochEnd, score: float | None) -> None:
                print(json.dumps({**asdict(end), "val": score}), file=log, flush=True)
                watch.epoch(end, score)

            stages = build_stages(recipe.stages, recipe, model, data, seed)
            load = build_load(recipe.stages, data, seed)
            fit(model, stages, load, on_epoch=lambda end: on_epoch(end, keep.consider()))
            epoch = keep.restore()
            about = {
                "recipe": recipe.model_dump(mode="json"),
                "seed": seed,
                "subset_seed": subset_seed_of(recipe, seed),
                "subset_hash": data.subset_hash,
                "protocol": recipe.protocol,
                "epoch": epoch,
                "counts": list(data.counts.per_class),
                "published_counts": list(data.published_counts.per_class),
                "class_names": list(data.class_names),
                "versions": versions(),
            }
            digest = save_checkpoint(written / runs.CHECKPOINT, model.state_dict(), about)
            trained = Trained(written, recipe, seed, model.eval(), digest, about, lambda: data)
            trained.stores.val()  # kept whether or not a row needs it
            rows = {}
            for method in recipe.methods:
                second = METHODS[method].adjust == "second-stage"
                rows[method] = trained.adjust(method, on_epoch=on_epoch)[0] if second else trained.row(method)
        result = {**about, "checkpoint": digest, "rows": rows, "seconds": time.perf_counter() - start}
        runs.write_json(written / runs.RESULTS, result)
    accuracy = ", ".join(f"{method} {row['all']:.1f}" for method, row in rows.items())
    watch.done(label, f"epoch {epoch} kept, test {accuracy}")


def _score(recipe: Recipe, data: LongTailedData) -> Callable[[Recognizer, Store], float] | None:
    """What the first stage's epoch is chosen by: its own logits, or under legacy, as the authors do, TDE's."""
    tde = tde_of(recipe.classifier.name)
    if recipe.protocol != "legacy" or tde is None or tde not in recipe.methods:
        return None
    choice = replace(choice_of(recipe, data.counts, data.published_counts), metric="all")

    def score(model: Recognizer, store: Store) -> float:
        values = None if choice.alpha == "auto" else (choice.alpha,)
        _, predictions = sweep(tde, model.classifier, store, choice, values)
        return max(float(100.0 * np.mean(predicted == store.labels)) for predicted in predictions)

    return score


def versions() -> dict[str, str]:
    """What a number depends on beside the recipe."""
    return {
        "tailwise": importlib.metadata.version("tailwise"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }
