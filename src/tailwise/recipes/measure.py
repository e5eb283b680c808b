"""Read trained runs again: their model, their rows at another alpha, their adjusted classifiers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tailwise import checks
from tailwise.adjust import fold_tde
from tailwise.classifiers import FoldedClassifier
from tailwise.counts import ClassCounts
from tailwise.evaluate import Store
from tailwise.recipes import runs
from tailwise.recipes.build import build_data, build_model, cpu_threads
from tailwise.recipes.experiment import alpha_of, write_stores
from tailwise.recipes.methods import METHODS
from tailwise.recipes.rows import Alpha, rows_of
from tailwise.recipes.schema import Recipe
from tailwise.recognizer import Recognizer
from tailwise.train import Checkpoint, load_checkpoint, load_state, save_checkpoint


def load_model(folder: Path | str, method: str | None = None) -> Recognizer:
    """The trained model of one seed's folder, in eval mode: images (normalized) -> logits.

    Args:
        folder: such as runs/digits-lt/tde/seed-0.
        method: put the adjusted classifier that `tailwise adjust` wrote in place of the trained one.

    Raises:
        InputError: no run there, no such adjustment, or a checkpoint that is corrupt or does not fit.
    """
    folder = Path(folder)
    if not (folder / runs.CHECKPOINT).is_file():
        raise checks.InputError(
            f"folder: expected a seed's folder with {runs.CHECKPOINT}, such as RUN/seed-0, got {folder}"
        )
    recipe = runs.open_run(folder.parent).recipe
    model, _ = _load(recipe, folder / runs.CHECKPOINT)
    if method is not None:
        path = adjusted_path(folder, method)
        if not path.exists():
            raise checks.InputError(f"method: nothing adjusted by '{method}' in {folder}; run `tailwise adjust` first")
        adjusted = load_checkpoint(path)
        model.classifier = FoldedClassifier(
            adjusted.state["weight"], num_heads=adjusted.meta["num_heads"], norm=adjusted.meta["norm"]
        )
    return model.eval()


def adjusted_path(folder: Path, method: str) -> Path:
    """Where `adjust` keeps the classifier of a method, below a seed's folder."""
    return folder / "adjusted" / f"{method}.safetensors"


def measure(
    seed: runs.SeedFolder, methods: Sequence[str], alpha: Alpha | None, data_dir: Path | None
) -> dict[str, Any]:
    """A seed's result, measured from its stores: the rows of `methods` at this alpha (None: the recipe's own).

    Stores that are gone, or not of this checkpoint, are made again from the images.

    Raises:
        InputError: a corrupt checkpoint; stores gone and no data to make them from; alpha "auto" without val.
    """
    return _measure(seed, *_load(seed.recipe, seed.checkpoint), methods, alpha, data_dir)


def _measure(
    seed: runs.SeedFolder,
    model: Recognizer,
    checkpoint: Checkpoint,
    methods: Sequence[str],
    alpha: Alpha | None,
    data_dir: Path | None,
) -> dict[str, Any]:
    val, test = _stores(seed, model, checkpoint, data_dir)
    rows = rows_of(
        model.classifier,
        test,
        val,
        methods=methods,
        counts=ClassCounts(tuple(checkpoint.meta["published_counts"])),
        alpha=alpha_of(seed.recipe) if alpha is None else alpha,
    )
    return {**checkpoint.meta, "checkpoint": checkpoint.digest, "rows": rows}


def adjust(
    seed: runs.SeedFolder, method: str, alpha: Alpha | None, data_dir: Path | None
) -> tuple[dict[str, Any], Path]:
    """Fold the chosen adjustment into a classifier beside the checkpoint; returns the result and the file.

    The result has two rows, the classifier's own and the adjusted. Errors as in `measure`.
    """
    own = next(name for name, m in METHODS.items() if m.classifier == METHODS[method].classifier)
    model, checkpoint = _load(seed.recipe, seed.checkpoint)
    result = _measure(seed, model, checkpoint, [own, method], alpha, data_dir)
    value = result["rows"][method]["alpha"]["value"]
    folded = fold_tde(model.classifier, value)  # type: ignore[arg-type]  # methods that adjust have an average
    path = adjusted_path(seed.path, method)
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise checks.InputError(f"{path.parent}: cannot make the folder ({error.strerror})") from error
    about = {"method": method, "alpha": value, "num_heads": folded.num_heads, "norm": folded.norm}
    save_checkpoint(path, folded.state_dict(), {**about, "of": result["checkpoint"], "row": result["rows"][method]})
    return result, path


def _load(recipe: Recipe, path: Path) -> tuple[Recognizer, Checkpoint]:
    checkpoint = load_checkpoint(path)
    if checkpoint.meta.get("recipe") != recipe.model_dump(mode="json"):
        raise checks.InputError(f"{path}: expected a checkpoint of the run's {runs.RECIPE}, got one of other settings")
    with torch.random.fork_rng(devices=[]):  # initial weights are overwritten: leave the caller's random state alone
        model = build_model(recipe, len(checkpoint.meta["counts"]))
    load_state(model, checkpoint.state)
    return model.eval(), checkpoint


def _stores(
    seed: runs.SeedFolder, model: Recognizer, checkpoint: Checkpoint, data_dir: Path | None
) -> tuple[Store | None, Store]:
    try:
        val = None if seed.recipe.protocol == "paper" else Store.load(seed.store("val"), checkpoint.digest)
        return val, Store.load(seed.store("test"), checkpoint.digest)
    except checks.InputError as lost:
        try:
            data = build_data(seed.recipe, seed.seed, data_dir)
        except checks.InputError as error:
            raise checks.InputError(f"{lost}; and without its data it cannot be made again: {error}") from error
        with cpu_threads(seed.recipe):
            return write_stores(model, data, checkpoint.digest, seed.path / "stores")
