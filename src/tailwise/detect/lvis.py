"""LVIS v0.5 and v1.0 from a local copy: its annotation files beside COCO's folders of images."""

import os
from pathlib import Path

from tailwise import checks
from tailwise.detect.contract import DetectionData
from tailwise.detect.folders import read_split

FILES = {
    "lvis-v0.5": ("lvis_v0.5_train.json", "lvis_v0.5_val.json"),
    "lvis-v1": ("lvis_v1_train.json", "lvis_v1_val.json"),
}


def lvis(version: str, data_dir: Path | None = None) -> DetectionData:
    """LVIS as it is trained and reported on: train, and val as the test split. Counts are of images, as LVIS's own.

    Args:
        version: "lvis-v0.5" or "lvis-v1".
        data_dir: holds the two files, itself or in annotations/, and train2017/ and val2017/. If None, the
            environment variable TAILWISE_DATA is asked; its lvis/ is looked into, too.

    Raises:
        InputError: an unknown version, no such folder, a file that is absent or will not do.
    """
    checks.choice("version", version, FILES)
    where = data_dir or (Path(os.environ["TAILWISE_DATA"]) if os.environ.get("TAILWISE_DATA") else None)
    if where is None:
        raise checks.InputError(f"data-dir: {version} needs a local copy; give --data-dir or set TAILWISE_DATA")
    roots = (where, where / "lvis")
    splits = []
    for name in FILES[version]:
        places = [(root / folder / name, root) for root in roots for folder in ("", "annotations")]
        found = next(((path, root) for path, root in places if path.is_file()), None)
        if found is None:
            raise checks.InputError(f"data-dir: expected {name} in {where} or its annotations/, got none")
        splits.append(read_split(*found))
    train, val = splits
    if [one.id for one in train.truth.categories] != [one.id for one in val.truth.categories]:
        raise checks.InputError(f"data-dir: expected the same categories in both files of {version}, got others")
    return DetectionData(version, train, None, val, train.truth.counts_by_images())
