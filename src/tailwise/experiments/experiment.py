"""Train a recipe over seeds, keep what its protocol chooses, measure it, write it down."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tailwise import checks, ranks
from tailwise.data import LongTailedData
from tailwise.evaluate import Store, metric
from tailwise.experiments import files, runs
from tailwise.experiments.adjusters import choice_of, sweep
from tailwise.experiments.build_data import build_data, subset_seed_of
from tailwise.experiments.keep import BestOnVal
from tailwise.experiments.over_seeds import How, check_same, train_seeds, versions
from tailwise.experiments.resume import Log, Place, fit_kept, trained_once
from tailwise.experiments.rows import Row
from tailwise.experiments.second import epochs_on_images, try_second_stage
from tailwise.experiments.settings import recorded
from tailwise.experiments.stores import first_image
from tailwise.experiments.trained import Trained
from tailwise.experiments.watch import Val, Watch
from tailwise.recipes.build import (
    build_compute,
    build_model,
    cpu_threads,
    find_device,
    take_over_scale,
)
from tailwise.recipes.build_stages import build_load, build_stages, build_view
from tailwise.recipes.methods import METHODS, tde_of
from tailwise.recipes.schema import Recipe
from tailwise.recognizer import Recognizer
from tailwise.seeds import mixed_seed
from tailwise.train import EpochEnd


def train(
    recipes: Sequence[Recipe],
    seeds: Sequence[int],
    folder: Path,
    *,
    data_dir: Path | None,
    watch: Watch,
    device: str = "auto",
    resume: bool = False,
    save_every: float = 60.0,
    until: float | None = None,
) -> list[runs.Run]:
    """Train every recipe with every seed; one recipe goes to `folder`, several each to a sub-folder of it.

    Everything is checked before anything is written: data, model and stages of every recipe are built first. A seed's
    folder appears when it is complete; until then what there is of it lies in seed-K.partial.

    Args:
        device: "cpu", "cuda" or "auto", a GPU where there is one.
        resume: leave out the seeds that are complete, go on with the one that is not. The results are, bit for bit,
            those of a run that was never stopped.
        save_every: seconds between two snapshots: at most that much training is lost.
        until: when to stop, with a snapshot, on the clock of `time.monotonic`; None is never.

    Raises:
        InputError: anything in recipes, data or folder that will not do; a run of other settings to go on with.
        OutOfTime: it was not done by then; `resume` goes on.
    """
    checks.number("save_every", save_every, at_least=0)
    where = find_device(device)
    for recipe in recipes:
        data = build_data(recipe, seeds[0], data_dir, where)
        with torch.random.fork_rng(devices=[]):
            model = build_model(recipe, data.counts.num_classes)
            _try_one_image(recipe, model, data)
            build_stages(recipe.stages, recipe, model, data, seeds[0])
            build_view(recipe.stages[0], model)
            build_load(recipe.stages, data, seeds[0])
            for method in recipe.methods[1:]:
                if method in recipe.second:
                    try_second_stage(recipe, method, model, data)
        choice_of(recipe, data.counts, data.published_counts)
        metric(recipe.metric, (data.val or data.train).labels.numpy(), data.published_counts)
    folders = {recipe.name: folder if len(recipes) == 1 else folder / recipe.title for recipe in recipes}
    if resume:
        for recipe in recipes:
            check_same(recipe, folders[recipe.name] / runs.RECIPE)
    how = How(data_dir, watch, where, resume, save_every, until)
    for recipe in recipes:
        train_seeds(recipe, seeds, folders[recipe.name], how, runs.FORMAT, _trained_one)
    return [runs.open_run(folders[recipe.name]) for recipe in recipes]


def _try_one_image(recipe: Recipe, model: Recognizer, data: LongTailedData) -> None:
    image = first_image(data)
    try:
        with torch.no_grad():
            model.eval()(image)
    except (RuntimeError, TypeError) as error:
        shape = list(image.shape[1:])
        raise checks.InputError(
            f"backbone.name: expected a network for images of shape {shape}, got {recipe.backbone.name}"
        ) from error


def _trained_one(recipe: Recipe, seed: int, folder: Path, label: str, how: How) -> tuple[str, dict[str, Row]]:
    start = time.perf_counter()
    data = build_data(recipe, seed, how.data_dir, how.device).to(how.device)
    with cpu_threads(recipe), torch.random.fork_rng(devices=[]), files.unfinished_folder(folder) as written:
        about = {
            "recipe": recorded(recipe),
            "seed": seed,
            "subset_seed": subset_seed_of(recipe, seed),
            "subset_hash": data.subset_hash,
            "data_hash": data.data_hash,
            "protocol": recipe.protocol,
            "counts": list(data.counts.per_class),
            "published_counts": list(data.published_counts.per_class),
            "class_names": list(data.class_names),
            "versions": versions(how.device, compiled=recipe.compute.compile),
            **({"left_out": list(data.left_out)} if data.left_out else {}),
        }
        log = Log(written / runs.LOG)
        epochs = {"first": sum(stage.epochs for stage in recipe.stages)}
        epochs |= {method: epochs_on_images(recipe, method) for method in recipe.methods}
        how.watch.begin(label, sum(epochs.values()), about, written)

        def on_epoch(end: EpochEnd, val: Val | None) -> None:
            how.watch.epoch(log.write(end, val))

        def place(training: str) -> Place:
            """Of the first stages' training, or of a method's second stage."""
            order = ["first", *recipe.methods]
            before = sum(epochs[name] for name in order[: order.index(training)])
            return Place(written / f"last-{training}.safetensors", how.save_every, log, before, about, how.until)

        torch.manual_seed(mixed_seed(seed))
        model = build_model(recipe, data.counts.num_classes)

        def first_stages() -> int:
            keep = BestOnVal(model, data, recipe, _score(recipe, data))
            stages = build_stages(recipe.stages, recipe, model, data, seed)
            load, compute = build_load(recipe.stages, data, seed), build_compute(recipe, how.device)
            view = build_view(recipe.stages[0], model)
            return fit_kept(view, stages, load, keep, place("first"), on_epoch, compute)

        checkpoint = trained_once(written / runs.CHECKPOINT, model, about, first_stages)
        take_over_scale(recipe, model)
        meta, digest = checkpoint.meta, checkpoint.digest
        trained = Trained(written, recipe, seed, model.eval(), digest, meta, lambda: data, place)
        trained.stores.val()  # kept whether or not a row needs it
        rows = {}
        for method in recipe.methods:
            to_train = METHODS[method].adjust == "second-stage" and not trained.has(method)
            rows[method] = trained.adjust(method, on_epoch=on_epoch)[0] if to_train else trained.row(method)
        if ranks.is_main():
            for snapshot in written.glob("last-*.safetensors"):
                snapshot.unlink()
            result = {**meta, "checkpoint": digest, "rows": rows, "seconds": time.perf_counter() - start}
            files.write_json(written / runs.RESULTS, result)
    accuracy = ", ".join(f"{method} {row['all']:.1f}" for method, row in rows.items())
    return f"epoch {meta['epoch']} kept, test {accuracy}", rows


def _score(recipe: Recipe, data: LongTailedData) -> Callable[[nn.Module, Store], float] | None:
    """What the first stage's epoch is chosen by: its own logits, or under legacy, as the authors do, TDE's."""
    tde = tde_of(recipe.classifier.name)
    if recipe.protocol != "legacy" or tde is None or tde not in recipe.methods:
        return None
    choice = replace(choice_of(recipe, data.counts, data.published_counts), metric="all")

    def score(classifier: nn.Module, store: Store) -> float:
        values = None if choice.alpha == "auto" else (choice.alpha,)
        _, predictions = sweep(tde, classifier, store, choice, values)
        return max(float(100.0 * np.mean(predicted == store.labels)) for predicted in predictions)

    return score
