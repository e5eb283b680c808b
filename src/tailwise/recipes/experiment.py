"""Train a recipe over seeds, keep what its protocol chooses, measure it, write it down."""

import contextlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tailwise import checks
from tailwise.data import LongTailedData
from tailwise.evaluate import Store, mean_per_class_accuracy, predict
from tailwise.recipes import runs
from tailwise.recipes.build import (
    build_data,
    build_load,
    build_model,
    build_stages,
    cpu_threads,
    in_order,
    subset_seed_of,
)
from tailwise.recipes.methods import reported
from tailwise.recipes.rows import Alpha, rows_of
from tailwise.recipes.schema import Recipe
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
        build_stages(recipe, model, data, seeds[0])
        alpha_of(recipe)
    folders = {recipe.name: folder if len(recipes) == 1 else folder / recipe.method for recipe in recipes}
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


def alpha_of(recipe: Recipe) -> Alpha:
    """The alpha a recipe reports at: as set, or what its protocol says.

    Raises:
        InputError: "auto" under a protocol without val.
    """
    alpha = recipe.tde.alpha
    if alpha is None:
        alpha = "auto" if recipe.protocol == "clean" else recipe.tde.fixed_alpha
    if alpha == "auto" and recipe.protocol == "paper":
        raise checks.InputError("tde.alpha: 'auto' needs a validation split and protocol paper has none; give a number")
    return alpha


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
    watch.begin(label, sum(stage.epochs for stage in recipe.stages))
    with cpu_threads(recipe), torch.random.fork_rng(devices=[]), runs.new_folder(folder) as written:
        torch.manual_seed(mixed_seed(seed))
        model = build_model(recipe, data.counts.num_classes)
        keep = _BestOnVal(model, data, recipe)
        with (written / runs.LOG).open("w") as log:

            def on_epoch(end: EpochEnd) -> None:
                score = keep.consider()
                print(json.dumps({**asdict(end), "val": score}), file=log, flush=True)
                watch.epoch(end, score)

            stages = build_stages(recipe, model, data, seed)
            fit(model, stages, build_load(recipe, data, seed), on_epoch=on_epoch)
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
        val, test = write_stores(model, data, digest, written / "stores")
        rows = rows_of(
            model.classifier,
            test,
            val,
            methods=reported(recipe.method),
            counts=data.published_counts,
            alpha=alpha_of(recipe),
        )
        result = {**about, "checkpoint": digest, "rows": rows, "seconds": time.perf_counter() - start}
        runs.write_json(written / runs.RESULTS, result)
    accuracy = ", ".join(f"{method} {row['all']:.1f}" for method, row in rows.items())
    watch.done(label, f"epoch {epoch} kept, test {accuracy}")


class _BestOnVal:
    """The weights that the protocol keeps: best on val (the later of equals), or the last ones without val."""

    def __init__(self, model: Recognizer, data: LongTailedData, recipe: Recipe) -> None:
        self.model, self.data, self.recipe = model, data, recipe
        self.epoch, self.best_epoch, self.best = 0, 0, -1.0
        self.state: dict[str, Tensor] = {}

    def consider(self) -> float | None:
        self.epoch += 1
        if self.data.val is None:
            return None
        score = self._score()
        if score >= self.best:
            self.best, self.best_epoch = score, self.epoch
            self.state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return score

    def restore(self) -> int:
        if self.data.val is None:
            return self.epoch
        self.model.load_state_dict(self.state)
        return self.best_epoch

    def _score(self) -> float:
        store = _predict(self.model, self.data, "val", "")
        if self.recipe.protocol == "legacy":  # the authors select on test, with TDE active
            rows = rows_of(
                self.model.classifier,
                store,
                store,
                methods=reported(self.recipe.method)[-1:],
                counts=self.data.published_counts,
                alpha=alpha_of(self.recipe),
            )
            return float(next(iter(rows.values()))["all"])
        return mean_per_class_accuracy(store.logits.argmax(axis=1), store.labels, self.data.counts.num_classes)


def write_stores(model: Recognizer, data: LongTailedData, digest: str, folder: Path) -> tuple[Store | None, Store]:
    """Predict val (if there is one) and test, and keep both below `folder`."""
    stores = {split: _predict(model, data, split, digest) for split in ("val", "test") if getattr(data, split)}
    for split, store in stores.items():
        store.save(folder / split)
    return stores.get("val"), stores["test"]


def _predict(model: Recognizer, data: LongTailedData, split: str, digest: str) -> Store:
    part = getattr(data, split)
    # under protocol legacy val is test, and what is chosen on it must say so
    name = "test" if part is data.test else split
    return predict(model, in_order(data, part), ids=part.ids, checkpoint=digest, split=name)


def versions() -> dict[str, str]:
    """What a number depends on beside the recipe."""
    return {
        "tailwise": importlib.metadata.version("tailwise"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }
