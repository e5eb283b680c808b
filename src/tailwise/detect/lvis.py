"""LVIS v0.5 and v1.0 from a local copy: its annotation files beside COCO's folders of images."""

import warnings
from dataclasses import replace
from pathlib import Path

from tailwise import checks
from tailwise.data.benchmarks import LVIS
from tailwise.data.local import local_folder
from tailwise.data.prepare_lvis import annotation_file, image_folders
from tailwise.detect.annotations import OnBad
from tailwise.detect.contract import DetectionData, DetectionSplit
from tailwise.detect.folders import read_split


def lvis(version: str, data_dir: Path | None = None, *, on_bad: OnBad = "error") -> DetectionData:
    """LVIS as it is trained and reported on: train, and val as the test split. Counts are of images, as LVIS's own.

    Args:
        version: "lvis-v0.5" or "lvis-v1".
        data_dir: as `tailwise data prepare` verifies it: the two files are in it or in a folder of it, train2017/ and
            val2017/ in it or in its coco/, lvis/ or images/. If None, the environment variable TAILWISE_DATA is asked.
        on_bad: "skip" leaves out bad annotations and absent images, with a warning that says how many and why.

    Raises:
        InputError: an unknown version, no such folder, a file that is absent or will not do.
    """
    checks.choice("version", version, LVIS)
    where = local_folder(data_dir, version)
    splits = []
    for name in LVIS[version].annotations.values():
        path = annotation_file(where, name)
        if path is None:
            raise checks.InputError(
                f"data-dir: expected {name} in {where} or a folder of it, got none; "
                f"tailwise data prepare {version} says what to download"
            )
        splits.append(read_split(path, _images_of(path, where), on_bad=on_bad))
        if skipped := splits[-1].truth.skipped:
            warnings.warn(f"{name}: left out {len(skipped)} (first: {skipped[0]})", stacklevel=2)
    train, val = splits
    if [one.id for one in train.truth.categories] != [one.id for one in val.truth.categories]:
        raise checks.InputError(f"data-dir: expected the same categories in both files of {version}, got others")
    # rare, common and frequent are of the training images, whatever the other file says
    test = DetectionSplit(replace(val.truth, categories=train.truth.categories), val.read)
    return DetectionData(version, train, None, test, train.truth.counts_by_images())


def _images_of(annotations: Path, data_dir: Path) -> Path:
    """The folder that has COCO's, or the one that the annotation file lies in."""
    beside = annotations.parent.parent if annotations.parent.name == "annotations" else annotations.parent
    coco = [folder for folder in image_folders(data_dir) if any(folder.glob("*2017/"))]
    return coco[0] if coco else beside
