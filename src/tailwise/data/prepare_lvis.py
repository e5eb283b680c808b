"""LVIS: its annotations and COCO's images, verified. What is in them is read by `tailwise.detect`."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tailwise import checks
from tailwise.data.benchmarks import Lvis, needed
from tailwise.data.folders import files_there
from tailwise.data.index import unfit_id
from tailwise.data.on_disk import LooseFiles, string_array
from tailwise.data.prepared import Check, Prepared
from tailwise.data.readable import Progress, unreadable

FOLDERS = (".", "coco", "coco/images", "lvis", "lvis/images", "images")


def prepare_lvis(facts: Lvis, data_dir: Path, *, decode: bool = False, progress: Progress | None = None) -> Prepared:
    """Verify the annotation files against what is published, and that every image they name is there.

    Arguments as in `prepare_listed`; nothing is written.

    Raises:
        InputError: an annotation file in another form.
    """
    places = {part: annotation_file(data_dir, name) for part, name in facts.annotations.items()}
    annotations = {part: path for part, path in places.items() if path is not None}
    if len(annotations) < len(places):
        return Prepared(facts.name, needs=needed(facts.needs, data_dir))
    compared, named = list[Check](), dict[str, None]()
    for part, path in annotations.items():
        content = _read(path)
        compared.append(Check(f"{part} categories", f"{facts.categories:,}", f"{len(content['categories']):,}"))
        totals = facts.totals.get(part, (None, None))
        for what, total in zip(("images", "annotations"), totals, strict=True):
            if total is not None:
                compared.append(Check(f"{part} {what}", f"{total:,}", f"{len(content[what]):,}"))
        named |= dict.fromkeys(_image_path(path, image, part) for image in content["images"])
    if not all(check.ok for check in compared):
        return Prepared(facts.name, tuple(compared))
    names = list(named)
    folders = image_folders(data_dir)
    here = [files_there(folder, names) for folder in folders]
    best = int(np.argmax([there.sum() for there in here]))
    root, there = folders[best], here[best]
    if not there.any():
        return Prepared(facts.name, tuple(compared), needed(facts.needs[1:], data_dir))
    missing = tuple(str(root / names[i]) for i in np.flatnonzero(~there))
    broken = unreadable(LooseFiles(root, string_array(names)), np.flatnonzero(there), decode=decode, progress=progress)
    return Prepared(facts.name, tuple(compared), (), missing, tuple(why for _, why in broken), root=root)


def image_folders(data_dir: Path) -> list[Path]:
    """The folders that train2017/ and val2017/ may lie in."""
    return [data_dir / folder for folder in FOLDERS if (data_dir / folder).is_dir()]


def annotation_file(data_dir: Path, name: str) -> Path | None:
    """Where an annotation file lies: in the folder, in one of it, or in that one's annotations/."""
    places = (data_dir / name, *sorted(data_dir.glob(f"*/{name}")), *sorted(data_dir.glob(f"*/annotations/{name}")))
    return next((place for place in places if place.is_file()), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise checks.InputError(f"{path}: not a readable annotation file ({error})") from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise checks.InputError(
            f"{path}: expected annotations in LVIS's form, with lists {', '.join(keys)}, got another"
        )
    return content


def _image_path(path: Path, image: Any, part: str) -> str:
    """`train2017/000000391895.jpg`: val of v1.0 has images of train2017, too, as their address says."""
    try:
        address = str(image.get("coco_url") or f"{part}2017/{str(image['file_name'])[-16:]}")
    except (AttributeError, KeyError) as error:
        raise checks.InputError(f"{path}: expected coco_url or file_name of each image, got {image!r}"[:200]) from error
    name = "/".join(address.split("/")[-2:])
    if unfit := unfit_id(name):
        raise checks.InputError(f"{path}: got {unfit}")
    return name
