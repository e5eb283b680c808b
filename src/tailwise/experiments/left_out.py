"""Images that cannot be read, left out before anything is counted: found once, written down, the same ever after."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from tailwise import checks, ranks
from tailwise.data.index import ImageIndex, some_of_every_class
from tailwise.data.long_tail import ids_hash
from tailwise.data.readable import unreadable
from tailwise.data.stamps import kept_place
from tailwise.experiments.files import read_json, write_json


def readable(index: ImageIndex, kept: Path) -> ImageIndex:
    """The index without the images that cannot be decoded, which its `skipped` names.

    Every image is decoded once. What is found is written to a file in `kept` and taken from there as long as no image's
    file changes, so that all seeds and all commands see the same data. Counts are of what is left.

    Args:
        index: as its reader made it.
        kept: a folder for what is made of the data.

    Raises:
        InputError: a part, or a class to train on, with no image left; a file that cannot be written or read.
    """
    names = index.source.names
    rows = np.unique(np.concatenate(list(index.parts.values())))
    name = f"unreadable-{ids_hash(names[rows])[:16]}"
    path = kept_place(kept, name, index.source, rows, ".json")
    if ranks.is_main() and not path.exists():
        found = {str(names[row]): why for row, why in unreadable(index.source, rows, decode=True)}
        try:
            kept.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise checks.InputError(
                f"{kept}: cannot make the folder ({error.strerror}); data.kept=FOLDER names another"
            ) from error
        write_json(path, {"images": len(rows), "unreadable": found})
    ranks.wait()
    found = read_json(path)["unreadable"]
    bad = (
        np.flatnonzero(np.isin(names, np.array(list(found), dtype=names.dtype)))
        if found
        else np.array([], dtype=np.int64)
    )
    parts = {part: np.setdiff1d(images, bad) for part, images in index.parts.items()}
    for part, images in parts.items():
        if not len(images):
            raise checks.InputError(
                f"{part}: expected images that can be read, got none ({next(iter(found.values()))})"
            )
    before, after = (index.labels[some["train"]] for some in (index.parts, parts))
    some_of_every_class(before, after, index.class_names, list(found.values()), "train")
    return replace(index, parts=parts, skipped=(*index.skipped, *found.values()))
