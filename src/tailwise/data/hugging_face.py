"""Images in a Hugging Face `datasets` data set: one in memory, one saved to disk, or one of the hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwise import checks
from tailwise.data.index import (
    NO_PART,
    ImageIndex,
    OnBad,
    Refused,
    checked_class_names,
    classes_of,
    index_of,
    part_number,
)
from tailwise.data.on_disk import string_array

HUB = "hf:"
SAVED = ("dataset_dict.json", "state.json")  # in a folder that save_to_disk wrote
LABEL_COLUMNS = ("label", "labels", "class", "fine_label")


@dataclass(frozen=True, eq=False)
class DatasetRows:
    """Images that are rows of tables. names: "split/row", [M].

    tables: each with one column, of encoded images. table, number: which row of which table each image is, [M].
    """

    tables: tuple[Any, ...]
    names: NDArray[Any]
    table: NDArray[np.int64]
    number: NDArray[np.int64]

    def read(self, row: int) -> bytes:
        [image] = self.tables[self.table[row]][int(self.number[row])].values()
        if image and image["bytes"] is not None:
            return bytes(image["bytes"])
        try:
            return Path(image["path"]).read_bytes()
        except (OSError, TypeError) as error:
            raise checks.InputError(f"{self.where(row)}: no image that can be read ({error})") from error

    def where(self, row: int) -> str:
        return f"data set row {self.names[row]}"

    def paths(self, rows: NDArray[np.int64]) -> list[str]:
        used = np.unique(self.table[rows]).tolist()
        return [file["filename"] for number in used for file in self.tables[number].cache_files]


def dataset_index(
    data: Any,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    on_bad: OnBad = "error",
) -> ImageIndex:
    """The images of a Hugging Face data set.

    Args:
        data: a `Dataset` or `DatasetDict`, the folder that its `save_to_disk` wrote, or "hf:NAME" of the hub.
        image_column: of type Image (default: the first such).
        label_column: of class labels, whole numbers or text (default: "label", "labels", "class" or "fine_label").
        class_names: class 0 first; in an order of the user's own, or names of the column's numbers where none of them
            is the column's own.
        on_bad: "error", or "skip" to leave out rows whose label is outside its range (-1 is none).

    Raises:
        InputError: `datasets` is not installed; no such data, or no network to get it; a column that is not there or of
            another type; splits with other classes or names; or, naming the row, a label outside its range.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise checks.InputError(f"data: expected the package datasets; {checks.extra('datasets')}") from error
    opened = data if isinstance(data, datasets.Dataset | datasets.DatasetDict) else _open(str(data))
    tables: Mapping[str, Any] = opened if isinstance(opened, datasets.DatasetDict) else {"all": opened}
    divided = len(tables) > 1
    refused = Refused(on_bad)
    parts = [part_number(str(split)) if divided else NO_PART for split in tables]
    for split, part in zip(tables, parts, strict=True):
        if part is None:
            raise checks.InputError(f"data: expected splits train, val and test, got {split!r}")
    column = label_column or _label_column(next(iter(tables.values())))
    found, all_classes = _labels(tables, column, class_names)
    for split, labels in found.items():
        for i in np.flatnonzero(labels < 0).tolist():
            refused(
                f"data set row {split}/{i}: expected a label among the {len(all_classes)} classes, got another or none"
            )
    kept = [np.flatnonzero(labels >= 0) for labels in found.values()]
    table = np.repeat(np.arange(len(kept)), [len(rows) for rows in kept])
    source = DatasetRows(
        tuple(_encoded(rows, image_column or _image_column(rows)) for rows in tables.values()),
        string_array(f"{split}/{i}" for split, rows in zip(tables, kept, strict=True) for i in rows.tolist()),
        table,
        np.concatenate(kept),
    )
    if not len(table):
        raise checks.InputError("data: expected rows of images with labels, got none")
    all_labels = np.concatenate([labels[rows] for labels, rows in zip(found.values(), kept, strict=True)])
    return index_of(source, all_labels, np.array(parts, dtype=np.int8)[table], all_classes, refused)


def is_dataset(data: Any) -> bool:
    """Whether some data is for `dataset_index`."""
    if type(data).__module__.split(".")[0] == "datasets" or str(data).startswith(HUB):
        return True
    return isinstance(data, str | Path) and any((Path(data) / name).is_file() for name in SAVED)


def _open(data: str) -> Any:
    import datasets

    try:
        if data.startswith(HUB):
            return datasets.load_dataset(data.removeprefix(HUB))
        return datasets.load_from_disk(data)
    except Exception as error:  # its own, those of the network, and those of every file format it knows
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise checks.InputError(
            f"{data}: not a data set that can be opened ({reason}); one of the hub needs the network, or a folder that "
            "save_to_disk wrote while there was one"
        ) from error


def _image_column(rows: Any) -> str:
    import datasets

    found = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if not found:
        raise checks.InputError(f"image_column: expected a column of type Image, got {_columns(rows)}")
    return str(found[0])


def _label_column(rows: Any) -> str:
    for name in LABEL_COLUMNS:
        if name in rows.features:
            return name
    raise checks.InputError(f"label_column: expected {', '.join(LABEL_COLUMNS)}, or its name, got {_columns(rows)}")


def _columns(rows: Any) -> str:
    return ", ".join(f"{name} ({type(kind).__name__})" for name, kind in rows.features.items())


def _encoded(rows: Any, column: str) -> Any:
    import datasets

    if not isinstance(rows.features.get(column), datasets.Image):
        raise checks.InputError(f"image_column: expected a column of type Image, got {column!r} of {_columns(rows)}")
    return rows.select_columns([column]).with_format(None).cast_column(column, datasets.Image(decode=False))


def _labels(
    tables: Mapping[str, Any], column: str, class_names: Sequence[str] | None
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """Labels of each split, -1 where there is none that will do, and the classes of all."""
    import datasets

    for rows in tables.values():
        if column not in rows.features:
            raise checks.InputError(f"label_column: expected one of {_columns(rows)}, got {column!r}")
    kinds = [rows.features[column] for rows in tables.values()]
    values = {split: rows.select_columns([column]).with_format(None)[:][column] for split, rows in tables.items()}
    if isinstance(kinds[0], datasets.ClassLabel):
        if any(kind != kinds[0] for kind in kinds):
            raise checks.InputError(f"label_column: expected the same classes in every split, got others of {column!r}")
        names = checked_class_names(class_names or kinds[0].names)
        own = enumerate(kinds[0].names)
        numbers = {c: names.index(name) for c, name in own if name in names} or {c: c for c in range(len(names))}
    elif any(not isinstance(kind, datasets.Value) or kind.dtype[:3] not in ("int", "uin", "str") for kind in kinds):
        raise checks.InputError(
            f"label_column: expected class labels, whole numbers or text, got {column!r}: {kinds[0]}"
        )
    else:
        there = {value for part in values.values() for value in part if value is not None and value != ""}
        fit = [value for value in there if isinstance(value, str) or value >= 0]
        of_text, names = classes_of([str(value) for value in fit], class_names, f"column {column!r}")
        checked_class_names(names)
        numbers = {value: of_text[str(value)] for value in fit if str(value) in of_text}
    return {
        split: np.array([numbers.get(value, -1) for value in part], np.int64) for split, part in values.items()
    }, names
