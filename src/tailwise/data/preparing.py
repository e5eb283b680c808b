"""A data set by name, verified: the one entrance to every kind of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tailwise import checks
from tailwise.data.benchmarks import CIFAR, LISTED, LVIS
from tailwise.data.index import ImageIndex, OnBad, some_of_every_class
from tailwise.data.listed import prepare_listed
from tailwise.data.own import no_more, read_own, splits_of
from tailwise.data.prepare_cifar import prepare_cifar
from tailwise.data.prepare_lvis import prepare_lvis
from tailwise.data.prepared import Prepared
from tailwise.data.readable import Progress, unreadable
from tailwise.data.splits import stored_splits

NAMES = (*LISTED, *CIFAR, *LVIS, "own")


def prepare(
    name: str,
    data_dir: Path,
    *,
    decode: bool = False,
    on_bad: OnBad = "error",
    download: bool = True,
    splits: Path | None = None,
    redraw: bool = False,
    table: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Verify a data set, and store the splits it is trained on.

    Args:
        name: one of `NAMES`.
        data_dir: what holds its files; of "own" the folder, table or shards themselves.
        decode: decode every image in full, not only look at its first bytes.
        on_bad: "error": what is missing or broken makes it unusable; "skip", not of CIFAR and LVIS: it is left out, and
            listed.
        download: whether CIFAR may be downloaded.
        splits, redraw: of "own", as in `own_data`.
        table: of "own", root, path_column, label_column and split_column of `own_data` where they are not the usual.
        progress: told (done, of how many) images.

    Returns:
        What was found; `ready` says whether it can be trained on.

    Raises:
        InputError: an unknown name, an option that is not of this data, or input that its reader refuses.
    """
    checks.choice("data", name, NAMES)
    if name != "own":
        no_more({"splits": splits, "redraw": redraw or None, **(table or {})}, name, "no data of your own")
    if name in (*CIFAR, *LVIS) and on_bad != "error":
        raise checks.InputError(f"on_bad: expected error for {name}, of which no part is left out, got {on_bad}")
    if name in LISTED:
        return prepare_listed(LISTED[name], data_dir, decode=decode, on_bad=on_bad, progress=progress)
    if name in CIFAR:
        return prepare_cifar(CIFAR[name], data_dir, download=download)
    if name in LVIS:
        return prepare_lvis(LVIS[name], data_dir, decode=decode, progress=progress)
    index = read_own(data_dir, table or {}, on_bad=on_bad)
    return _prepare_own(index, data_dir, decode, on_bad, splits or splits_of(data_dir), redraw, progress)


def _prepare_own(
    index: ImageIndex,
    data: Path,
    decode: bool,
    on_bad: OnBad,
    place: Path | None,
    redraw: bool,
    progress: Progress | None,
) -> Prepared:
    broken = unreadable(index.source, np.arange(len(index.labels)), decode=decode, progress=progress)
    lines = tuple(why for _, why in broken)
    if broken and on_bad == "error":
        return Prepared("own", unreadable=lines, passed_over=index.ignored, root=data)
    rows = [row for row, _ in broken]
    some_of_every_class(index.labels, np.delete(index.labels, rows), index.class_names, lines)
    left_out = [str(name) for name in index.source.names[rows]]
    divided = stored_splits(index, place, redraw=redraw, leave_out=left_out)
    return Prepared(
        "own",
        unreadable=lines,
        skipped=(*index.skipped, *lines),
        passed_over=index.ignored,
        root=data,
        images={part: len(rows) for part, rows in divided.parts.items()},
        wrote=place if place and place.exists() else None,
    )
