"""A user's own data, in whichever of four forms, as one index divided into train, val and test."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tailwise import checks
from tailwise.data.folders import folder_index
from tailwise.data.hugging_face import HUB, dataset_index, is_dataset
from tailwise.data.index import ImageIndex, OnBad
from tailwise.data.shards import shard_index, shards_in
from tailwise.data.splits import SPLITS, draw_splits, stored_splits
from tailwise.data.tables import DELIMITERS, PARQUET, table_index


def own_data(
    data: Path | str | Any,
    *,
    root: Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    class_names: Sequence[str] | None = None,
    on_bad: OnBad = "error",
    splits: Path | None = None,
    seed: int = 0,
    redraw: bool = False,
) -> ImageIndex:
    """Images of a user's own, each with a class, divided into train, val and test.

    The form is known by what is there: a folder of class folders (`folder_index`); a table that ends in .csv, .tsv or
    .parquet (`table_index`); a Hugging Face data set, the folder that its save_to_disk wrote, or "hf:NAME" of the hub
    (`dataset_index`); a .tar file, or a folder of them (`shard_index`).

    What the data does not divide itself is drawn, stratified, and stored beside it (`stored_splits`).

    Args:
        data: a path, or a Hugging Face `Dataset` or `DatasetDict`.
        root, path_column, label_column, split_column: of a table (default: path, label, and split where there is one);
            label_column of a Hugging Face data set, too.
        class_names: class 0 first, in an order of the user's own.
        on_bad: "error", or "skip" to leave out what will not do; `skipped` of the index lists it.
        splits: the folder that drawn splits are stored in (default: tailwise-splits in a folder, NAME.tailwise-splits
            beside a file); needed where that cannot be written.
        seed: of a new draw.
        redraw: draw anew although splits are stored.

    Raises:
        InputError: nothing there, no form that is known, or as the reader of the form or the splits say.
    """
    table = {"root": root, "path_column": path_column, "label_column": label_column, "split_column": split_column}
    index = read_own(data, table, class_names, on_bad)
    return stored_splits(index, splits or splits_of(data), seed=seed, redraw=redraw)


def read_own(
    data: Path | str | Any, table: Mapping[str, Any], class_names: Sequence[str] | None = None, on_bad: OnBad = "error"
) -> ImageIndex:
    """The images of `own_data`, divided as they came; table: the options of a table that are not None."""
    options = {key: value for key, value in table.items() if value is not None}
    more: dict[str, Any] = {"class_names": class_names, "on_bad": on_bad}
    if is_dataset(data):
        label_column = options.pop("label_column", None)
        no_more(options, data)
        return dataset_index(data, label_column=label_column, **more)
    path = Path(data)
    if path.suffix.lower() in (*DELIMITERS, PARQUET):
        return table_index(path, **options, **more)
    no_more(options, data)
    if path.suffix == ".tar" or shards_in(path):
        return shard_index(path, **more)
    if path.is_dir():
        return folder_index(path, **more)
    there = "another file" if path.exists() else "nothing there"
    raise checks.InputError(
        f"{path}: expected a folder of class folders, a table (.csv, .tsv, .parquet), shards (.tar) or a Hugging Face "
        f"data set, got {there}"
    )


def no_more(options: Mapping[str, Any], data: Any, what: str = "no table") -> None:
    """Refuse options, other than None, that would change nothing about some data; what: it is."""
    for name, given in options.items():
        if given is not None:
            raise checks.InputError(f"{name}: expected none for {data}, which is {what}")


def splits_of(data: Path | str | Any) -> Path | None:
    """Where the splits of some data are stored if no other place is named; None for what has no place on a disk."""
    if not isinstance(data, str | Path) or str(data).startswith(HUB):
        return None
    path = Path(data)
    return path / SPLITS if path.is_dir() else path.with_name(f"{path.stem}.{SPLITS}")


def as_divided(index: ImageIndex, data: Path | str | Any) -> ImageIndex:
    """The index with the splits that are stored for it, or those that would be drawn; nothing is written.

    Raises:
        InputError: stored splits that do not fit the data.
    """
    place = splits_of(data)
    return draw_splits(index) if place is None or not place.exists() else stored_splits(index, place)
