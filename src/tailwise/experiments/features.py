"""What a pretrained backbone makes of every image of some data, written for whatever is to read it."""

from pathlib import Path
from typing import Any

from tailwise.experiments.build_data import build_data
from tailwise.experiments.files import write_json
from tailwise.experiments.frozen import features
from tailwise.export import new_folder
from tailwise.recipes.build import cpu_threads, find_device
from tailwise.recipes.datasets import OnDiskSettings
from tailwise.recipes.schema import Recipe

ABOUT = "features.json"


def write_features(recipe: Recipe, out: Path, data_dir: Path | None, device: str) -> dict[str, Any]:
    """Write a store of features for each split to a new folder, whole or not at all, and features.json about them.

    Args:
        recipe: its data, as its protocol divides them, and its backbone.
        out: a new or empty folder.
        data_dir: where local data sets lie.
        device: "cpu", "cuda" or "auto".

    Returns:
        {"shapes", "class_names", "counts", "backbone", "subset_hash"}, which features.json holds, too.

    Raises:
        InputError: data, backbone or device that are not there; a folder that holds something.
    """
    where = find_device(device)
    seen = recipe.backbone.model_copy(update={"frozen": False})
    data = build_data(recipe.model_copy(update={"backbone": seen}), 0, data_dir)
    size = recipe.data.size if isinstance(recipe.data, OnDiskSettings) else None
    with new_folder(out) as folder:
        with cpu_threads(recipe):
            stores = features(data, recipe.backbone, None, size=size, device=where)
        for part, store in stores.items():
            store.save(folder / part)
        about = {
            "backbone": recipe.backbone.model_dump(mode="json"),
            "shapes": {part: list(store.features.shape) for part, store in stores.items()},
            "class_names": list(data.class_names),
            "counts": list(data.counts.per_class),
            "subset_hash": data.subset_hash,
        }
        write_json(folder / ABOUT, about)
    return about
