"""Images named by a table, CSV, TSV or Parquet: a row with path and label for each, perhaps with its split."""

import csv
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tailwise import checks
from tailwise.data.folders import files_there
from tailwise.data.index import (
    ImageIndex,
    OnBad,
    Refused,
    classes_of,
    index_of,
    one_spelling,
    part_number,
    unfit_class_name,
    unfit_id,
)
from tailwise.data.on_disk import LooseFiles, string_array

DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"
Row = tuple[int, str, str, str | None]  # number, path, label, split


def table_index(
    path: Path,
    *,
    root: Path | None = None,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str | None = None,
    class_names: Sequence[str] | None = None,
    on_bad: OnBad = "error",
) -> ImageIndex:
    """The images that a table names.

    Args:
        path: of the table: .csv or .tsv (UTF-8, with a line of column names), or .parquet.
        root: the folder that paths start from (default: the table's); absolute paths are taken as they are.
        path_column, label_column: names of the columns. A label is a name, or a class number where all of them are;
            spaces around it are none of it.
        split_column: of train / val / test (default: "split" where there is one).
        class_names: class 0 first; for numbers, or for names in an order other than the alphabet's.
        on_bad: "error", or "skip" to leave out rows that will not do; `skipped` of the index lists them.

    Raises:
        InputError: no such file, a column that is not there, Parquet without pyarrow; or, naming the row: a path that
            is empty, no file, above its folder, or in the table before; a label outside its range; a class name that
            will not do; an unknown split.
    """
    refused = Refused(on_bad)
    folder = root or path.parent
    below = os.path.join(os.path.abspath(folder), "")
    names: dict[str, str] = {}  # in order, and none twice, however it is spelled
    numbers, codes, parts = array("q"), array("q"), array("b")
    texts: dict[str, int] = {}  # label texts, numbered as they come
    for number, name, label, part in _rows(path, (path_column, label_column), split_column, refused):
        text = label.strip()
        unfit_label = None if text in texts else unfit_class_name(text)
        if not unfit_label:  # also of a row that is refused, so that no class is lost with it
            texts.setdefault(text, len(texts))
        if unfit := unfit_id(name):
            refused(f"{path}, row {number}: got {unfit}")
        elif (plain := one_spelling(name, below)) in names:
            refused(f"{path}, row {number}: got {name} a second time; an image has one label and one split")
        elif unfit_label:
            refused(f"{path}, row {number}: got {unfit_label}")
        elif (known := part_number(part)) is None:
            refused(f"{path}, row {number}: expected a split train, val or test, got {part!r}")
        else:
            names[plain] = name
            numbers.append(number)
            codes.append(texts[text])
            parts.append(known)
    if not names:
        raise checks.InputError(f"{path}: expected a row for each image, got none that will do")
    paths = list(names.values())
    del names
    class_of_text, all_names = classes_of(list(texts), class_names, str(path))
    class_of_code = np.array([class_of_text.get(text, -1) for text in texts])
    labels = class_of_code[np.frombuffer(codes, dtype=np.int64)]
    there = files_there(folder, paths)
    for i in np.flatnonzero(~there | (labels < 0)).tolist():
        if labels[i] < 0:
            wrong = f"a label among the {len(all_names)} class names, got {list(texts)[codes[i]]!r}"
        else:
            wrong = f"an image file {folder / paths[i]}, got none"
        refused(f"{path}, row {numbers[i]}: expected {wrong}")
    kept = np.flatnonzero(there & (labels >= 0))
    return index_of(
        LooseFiles(folder, string_array(paths if len(kept) == len(paths) else [paths[i] for i in kept.tolist()])),
        labels[kept],
        np.frombuffer(parts, dtype=np.int8)[kept],
        all_names,
        refused,
        expected=class_of_code[class_of_code >= 0],
    )


def _rows(path: Path, needed: tuple[str, str], split_column: str | None, refused: Refused) -> Iterator[Row]:
    try:
        if path.suffix.lower() == PARQUET:
            yield from _parquet_rows(path, needed, split_column)
        else:
            yield from _text_rows(path, needed, split_column, refused)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise checks.InputError(
            f"{path}: not a readable table ({getattr(error, 'strerror', None) or error})"
        ) from error


def _columns(path: Path, there: Sequence[str], needed: tuple[str, str], split_column: str | None) -> list[int]:
    """Places of path, label and split among the columns; without the last where there is no split."""
    wanted = [*needed, *([split_column or "split"] if split_column or "split" in there else [])]
    for column in wanted:
        if column not in there:
            raise checks.InputError(f"{path}: expected a column {column!r}, got none{checks.nearest(column, there)}")
    return [there.index(column) for column in wanted]


def _text_rows(path: Path, needed: tuple[str, str], split_column: str | None, refused: Refused) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=DELIMITERS.get(path.suffix.lower(), ","), strict=True)
        header = next(reader, [])
        places = _columns(path, header, needed, split_column)
        name, label = places[:2]
        split = places[2] if len(places) == 3 else None
        for row in reader:
            if len(row) == len(header):
                yield reader.line_num, row[name], row[label], None if split is None else row[split]
            elif row:
                refused(f"{path}, row {reader.line_num}: expected {len(header)} values, got {len(row)}")


def _parquet_rows(path: Path, needed: tuple[str, str], split_column: str | None) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise checks.InputError(f"{path}: Parquet needs pyarrow; {checks.extra('parquet')}") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            there = table.schema_arrow.names
            wanted = [there[place] for place in _columns(path, there, needed, split_column)]
            for column in wanted:
                _text_or_number(path, column, table.schema_arrow.field(column).type)
            number = 0
            for batch in table.iter_batches(columns=wanted):
                columns = [
                    ["" if value is None else str(value) for value in batch[name].to_pylist()] for name in wanted
                ]
                for name, label, *split in zip(*columns, strict=True):
                    number += 1
                    yield number, name, label, split[0] if split else None
    except pyarrow.ArrowException as error:
        raise checks.InputError(f"{path}: not a readable Parquet file ({error})") from error


def _text_or_number(path: Path, column: str, kind: Any) -> None:
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    text = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)
    if not text and not pyarrow.types.is_integer(kind):
        raise checks.InputError(f"{path}: expected column {column!r} to hold text or whole numbers, got {kind}")
