"""Read trained runs again: their models, their rows at another strength, their curves, their adjusted classifiers."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tailwise import checks
from tailwise.adjust import choose
from tailwise.evaluate import metric
from tailwise.experiments import files, runs
from tailwise.experiments.adjusters import strength_name, sweep
from tailwise.experiments.kept import adjusted_path, load_adjusted
from tailwise.experiments.owned import owned
from tailwise.experiments.resume import Log, Place
from tailwise.experiments.rows import Row, row_of
from tailwise.experiments.second import epochs_on_images
from tailwise.experiments.settings import check_settings, recorded
from tailwise.experiments.trained import AS_IT_IS, Asked, Trained, trained_data
from tailwise.experiments.watch import Silent, Val, Watch, epoch_record
from tailwise.recipes.build import build_model, find_device, take_over_scale
from tailwise.recipes.schema import Recipe
from tailwise.recognizer import Recognizer
from tailwise.train import Checkpoint, EpochEnd, load_checkpoint, load_state


def load_model(folder: Path | str, method: str | None = None) -> Recognizer:
    """The trained model of one seed's folder, in eval mode: images (normalized) -> logits.

    Args:
        folder: such as runs/digits-lt/tde/seed-0.
        method: the adjusted model that `tailwise adjust` or a second stage wrote, in place of the trained one.

    Raises:
        InputError: no run there, no such adjustment, or a checkpoint that is corrupt or does not fit.
    """
    folder = Path(os.path.abspath(folder))  # ".", too, has the run as its parent
    if not (folder / runs.CHECKPOINT).is_file():
        raise checks.InputError(
            f"folder: expected a seed's folder with {runs.CHECKPOINT}, such as RUN/seed-0, got {folder}"
        )
    recipe = runs.open_run(folder.parent).recipe
    model, checkpoint = _load(recipe, folder / runs.CHECKPOINT)
    if method is None:
        return model
    path = adjusted_path(folder, method)
    if not path.exists():
        raise checks.InputError(f"method: nothing adjusted by '{method}' in {folder}; run `tailwise adjust` first")
    return load_adjusted(path, model, checkpoint.digest).model


def open_trained(
    seed: runs.SeedFolder, data_dir: Path | None, recipe: Recipe | None = None, device: str = "auto"
) -> Trained:
    """A seed's model as it was trained; `recipe` may differ from the run's in what comes after training.

    Stores that are gone, or not of this checkpoint, are made again from the images when they are needed, on `device`;
    where they cannot be written, they are not kept.

    Raises:
        InputError: a corrupt checkpoint, or not that of the results; no such device.
    """
    model, checkpoint = _load(seed.recipe, seed.checkpoint)
    runs.check_digest(seed.path, checkpoint.digest)
    find_data = trained_data(seed.recipe, seed.seed, data_dir, find_device(device))
    about = checkpoint.meta
    return Trained(
        seed.path, recipe or seed.recipe, seed.seed, model, checkpoint.digest, about, find_data, must_keep=False
    )


def measure(trained: Trained, methods: Sequence[str], asked: Asked = AS_IT_IS) -> dict[str, Any]:
    """A seed's result, measured again from its stores: the rows of `methods`.

    Raises:
        InputError: stores gone and no data to make them from; "auto" without val.
    """
    return _result(trained, {method: trained.row(method, asked) for method in methods})


def val_row(trained: Trained, method: str, asked: Asked = AS_IT_IS) -> Row:
    """A method's row on val, by which epoch and strength may have been chosen: for numbers printed of val.

    Arguments and errors as in `Trained.row`; without val, too.
    """
    return trained.row_of(trained.made(method, asked), on_val=True)


def adjust(
    trained: Trained,
    method: str,
    asked: Asked = AS_IT_IS,
    watch: Watch = Silent(),  # noqa: B008  # stateless
    *,
    save_every: float | None = None,
    until: float | None = None,
) -> tuple[dict[str, Any], Path]:
    """Make a method's adjusted model and keep it beside the checkpoint; returns the result and the file.

    The result has two rows, the classifier's own and the adjusted.

    Args:
        save_every: seconds between two snapshots of a second stage on images, from the last of which it goes on when
            called again; None keeps none.
        until: when to stop with a snapshot, as in `experiment.train`.

    Raises:
        InputError: as `measure`; TakenError, if another process trains or writes in the seed's folder.
        OutOfTime: the second stage was not done by then.
    """
    own, recipe = trained.recipe.methods[0], trained.recipe
    label, epochs = f"{recipe.name} seed {trained.seed}, {method}", epochs_on_images(recipe, method)
    numbers = itertools.count(1)
    settings = {
        "recipe": recorded(recipe),
        "seed": trained.seed,
        "method": method,
        "subset_hash": trained.about["subset_hash"],
        "of": trained.digest,
    }
    with owned(trained.folder):
        trained.check_same_stage(method)  # before anything is tracked
        place = None
        if epochs and save_every is not None:
            log = Log(trained.folder / f"last-{method}.jsonl")
            place = Place(trained.folder / f"last-{method}.safetensors", save_every, log, 0, settings, until)
            trained = replace(trained, place=lambda _: place)

        def on_epoch(end: EpochEnd, val: Val | None) -> None:
            watch.epoch(log.write(end, val) if place else epoch_record(next(numbers), end, val))

        try:
            if epochs:
                watch.begin(label, epochs, settings, trained.folder)
            row, path = trained.adjust(method, asked, on_epoch)
        except BaseException:
            watch.stopped(kept=place is not None and place.path.exists())
            raise
        if place:
            for left in (place.path, log.path):
                left.unlink(missing_ok=True)
        if epochs:
            watch.done(label, f"test {row['all']:.1f}", {method: row})
        results = files.read_json(trained.folder / runs.RESULTS)  # what `compare` reads
        results["rows"][method] = row
        files.write_json(trained.folder / runs.RESULTS, results)
    return _result(trained, {own: trained.row(own), method: row}), path


def strength_curve(
    trained: Trained, method: str, asked: Asked = AS_IT_IS, values: tuple[float, ...] | None = None
) -> dict[str, Any]:
    """The whole curve of a method's strength, on val (where there is one) and on test.

    The value is chosen on val alone, by the metric; the test curve is for looking at.

    Raises:
        InputError: a method without a strength; what it needs is not there.
    """
    choice = trained.choice(asked)
    val = trained.stores.val()
    curve: dict[str, Any] = {"method": method, "strength": strength_name(method), "metric": choice.metric}
    own_val = {"val": val} if val is not None and val.split == "val" else {}  # under legacy val is test
    for split, store in {**own_val, "test": trained.stores.test()}.items():
        tried, predictions = sweep(method, trained.model.classifier, store, choice, values)
        rows = [row_of(predicted, store, trained.published) for predicted in predictions]
        curve["values"] = list(tried)
        curve[split] = {group: [row[group] for row in rows] for group in ("many", "medium", "few", "all")}
        if store is val or (val is not None and not own_val):
            score = metric(choice.metric, np.asarray(store.labels), trained.published)
            chosen = choose(tried, predictions, score)
            curve[split]["metric"] = list(chosen.scores)
            curve["chosen"] = {"value": chosen.chosen, "from": store.split, "by": choice.metric}
    return curve


def sweep_strength(
    trained: Trained, method: str, asked: Asked = AS_IT_IS, values: tuple[float, ...] | None = None
) -> tuple[dict[str, Any], Path]:
    """The curve of `strength_curve`, kept in the seed's folder; returns it and its file."""
    curve = strength_curve(trained, method, asked, values)
    path = trained.folder / "sweeps" / f"{method}.json"
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise checks.InputError(f"{path.parent}: cannot make the folder ({error.strerror})") from error
    files.write_json(path, curve)
    return curve, path


def grid(method: str, highest: float | None, step: float) -> tuple[float, ...]:
    """0, step, 2 step, ... up to `highest` (None: 5 for alpha, 2 for the norm power).

    Raises:
        InputError: a method without a strength, a highest below 0, a step not above 0, more than 10,000 values.

    >>> grid("tde", 1.0, 0.25)
    (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    name = strength_name(method)
    if name is None:
        raise checks.InputError(f"method: expected one with a strength to sweep (tde, tau-norm), got {method}")
    last = checks.number("highest", {"alpha": 5.0, "norm_power": 2.0}[name] if highest is None else highest, at_least=0)
    steps = last / checks.number("step", step, above=0)
    if steps > 10_000:
        raise checks.InputError(f"step: expected at most 10,000 values up to {last:g}, got {step:g}")
    return tuple(round(step * i, 10) for i in range(int(steps + 1e-9) + 1))


def _result(trained: Trained, rows: dict[str, Any]) -> dict[str, Any]:
    return {**trained.about, "checkpoint": trained.digest, "rows": rows}


def _load(recipe: Recipe, path: Path) -> tuple[Recognizer, Checkpoint]:
    checkpoint = load_checkpoint(path)
    check_settings(path, checkpoint.meta, recipe)
    with torch.random.fork_rng(devices=[]):  # initial weights are overwritten: leave the caller's random state alone
        model = build_model(recipe, len(checkpoint.meta["counts"]), fetch=False)
    load_state(model, checkpoint.state)
    take_over_scale(recipe, model)
    return model.eval(), checkpoint
