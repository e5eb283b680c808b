"""From settings to data: subsets, benchmarks and the user's own, and what a network sees of an image of theirs."""

import os
from functools import lru_cache
from pathlib import Path

import torch

from tailwise import checks, ranks
from tailwise.counts import ClassCounts
from tailwise.data import (
    LongTailedData,
    Normalize,
    cifar,
    cifar_lt,
    digits,
    digits_lt,
    ids_hash,
    under_protocol,
)
from tailwise.data.decoded import decoded_splits
from tailwise.data.hugging_face import HUB
from tailwise.data.index import ImageIndex
from tailwise.data.listed import read_listed
from tailwise.data.local import local_folder
from tailwise.data.own import own_data, splits_of
from tailwise.data.splits import SPLITS
from tailwise.data.transforms import IMAGENET, INATURALIST, CentreView
from tailwise.experiments.frozen import as_features
from tailwise.experiments.left_out import readable
from tailwise.recipes.build import find_device
from tailwise.recipes.build_backbone import normalize_of
from tailwise.recipes.datasets import OnDiskSettings, OwnSettings
from tailwise.recipes.schema import Recipe

# Shape of an image and what a network sees of it, known without the data.
IN_MEMORY: dict[str, tuple[tuple[int, int, int], Normalize]] = {
    "digits-lt": ((1, 8, 8), digits.NORMALIZE),
    "cifar10-lt": ((3, 32, 32), cifar.NORMALIZE),
    "cifar100-lt": ((3, 32, 32), cifar.NORMALIZE),
}
MOST_WORKERS = 16


def build_data(recipe: Recipe, seed: int, data_dir: Path | None, device: torch.device | None = None) -> LongTailedData:
    """The recipe's data as its protocol uses it.

    Args:
        recipe: its data, its protocol, and its backbone if that is frozen.
        seed: of a training, which a subset may go by.
        data_dir: where local data sets lie.
        device: where a frozen backbone computes; None is a GPU where there is one.

    Raises:
        InputError: data that is not there, or will not do.
    """
    settings, kept, size = recipe.data, None, None
    subset_seed = subset_seed_of(recipe, seed)
    if isinstance(settings, OnDiskSettings):
        data, kept = _on_disk(recipe, settings, data_dir)
        size = settings.size
    elif settings.name == "digits-lt":
        data = digits_lt(
            subset_seed,
            imbalance_ratio=settings.imbalance_ratio,
            profile=settings.profile,
            max_count=settings.max_count,
        )
    else:
        data = cifar_lt(
            {"cifar10-lt": 10, "cifar100-lt": 100}[settings.name],
            subset_seed,
            data_dir=data_dir,
            imbalance_ratio=settings.imbalance_ratio,
            profile=settings.profile,
            max_count=settings.max_count,
        )
    if recipe.backbone.frozen:
        data = as_features(data, recipe.backbone, kept, size=size, device=device or find_device("auto"))
    return under_protocol(data, recipe.protocol, subset_seed)


def images_of(recipe: Recipe) -> tuple[tuple[int, int, int], Normalize, CentreView | None]:
    """Of the images a recipe's network takes: shape, normalization, and the view of a file; None for a plain resize.

    Raises:
        InputError: a backbone that nobody knows.
    """
    settings = recipe.data
    if not isinstance(settings, OnDiskSettings):
        return *IN_MEMORY[settings.name], None
    usual = INATURALIST if settings.name == "inaturalist-2018" else IMAGENET
    shape = (3, settings.size, settings.size)
    return shape, normalize_of(recipe.backbone.name, usual), CentreView(settings.size, settings.resize)


def subset_seed_of(recipe: Recipe, seed: int) -> int:
    """Which subset a training seed sees: the recipe's, or its own."""
    return seed if recipe.data.subset_seed is None else recipe.data.subset_seed


def _on_disk(recipe: Recipe, settings: OnDiskSettings, data_dir: Path | None) -> tuple[LongTailedData, Path | None]:
    """The data, and the folder for what is made of it."""
    if ranks.is_main():  # it may write splits, which the others then find
        _index(settings, data_dir)
    ranks.wait()
    index, published, beside = _index(settings, data_dir)
    kept = Path(settings.kept) if settings.kept is not None else beside and beside / ".tailwise"
    workers = _workers(recipe.compute.workers)
    _, normalize, view = images_of(recipe)
    if settings.on_bad == "skip":
        index = readable(index, _named(kept, "on_bad=skip"))
    splits = {part: index.split(part, workers=workers) for part in index.parts}
    train, test = splits["train"], splits["test"]
    subset_hash = ids_hash(train.ids, test.ids)
    if settings.cache is not None:
        splits = decoded_splits(splits, settings.cache, _named(kept, "cache"))
    data = LongTailedData(
        name=settings.name,
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
        counts=index.counts("train"),
        published_counts=published,
        class_names=index.class_names,
        subset_hash=subset_hash,
        normalize=normalize,
        view=view,
        left_out=index.skipped,
    )
    return data, kept


@lru_cache(maxsize=4)  # a table of a million rows takes seconds, and every seed asks for it
def _index(settings: OnDiskSettings, data_dir: Path | None) -> tuple[ImageIndex, ClassCounts, Path | None]:
    """Where the images lie, the counts of the whole training set, and a folder beside the images, if they have one."""
    if not isinstance(settings, OwnSettings):
        where = local_folder(data_dir, settings.name)
        return *read_listed(settings.name, where), where
    if settings.path is None:
        raise checks.InputError("data.path: expected the user's own images, as in data.path=photos, got none")
    index = own_data(
        settings.path,
        root=None if settings.root is None else Path(settings.root),
        path_column=settings.path_column,
        label_column=settings.label_column,
        split_column=settings.split_column,
        on_bad=settings.on_bad,
        splits=_splits(settings.path, settings.kept),
    )
    path = Path(settings.path)
    beside = path if path.is_dir() else path.parent
    return index, index.counts("train"), None if settings.path.startswith(HUB) else beside


def _splits(path: str, kept: str | None) -> Path | None:
    """Where splits are stored if not beside the data: in `kept`, unless some are beside it already."""
    beside = splits_of(path)
    if kept is None or (beside is not None and beside.exists()):
        return None
    own = Path(kept) / f"{os.path.basename(os.path.abspath(path.removeprefix(HUB)))}.{SPLITS}"
    unnamed = Path(kept) / SPLITS  # as they were called before
    return unnamed if unnamed.exists() and not own.exists() else own


def _named(kept: Path | None, setting: str) -> Path:
    if kept is None:
        raise checks.InputError(f"data.kept: expected a folder, which data.{setting} writes to, got none")
    return kept


def _workers(asked: int | None) -> int:
    """The processes that read images for this one: as asked, or what its share of the CPUs leaves beside itself."""
    if asked is not None:
        return asked
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cpus // ranks.count_here() - 1) if cpus > ranks.count_here() else 0
