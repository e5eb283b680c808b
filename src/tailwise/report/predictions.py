"""Predictions as lines of text: CSV, or a JSON object each."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

COLUMNS = ("path", "row", "rank", "before", "before_probability", "after", "after_probability", "error")


def csv_lines(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A head, then a line for each record and rank; one with `error` alone for what could not be read.

    >>> side = [{"class": "cat", "probability": 0.75}]
    >>> print("".join(csv_lines([{"path": "a.png", "before": side, "after": side}])))
    path,row,rank,before,before_probability,after,after_probability,error
    a.png,,1,cat,0.75,cat,0.75,
    """
    yield _csv(COLUMNS)
    for record in records:
        where = record["path"], record.get("row", "")
        if "error" in record:
            yield _csv((*where, *[""] * 5, record["error"]))
            continue
        for rank, (before, after) in enumerate(zip(record["before"], record["after"], strict=True), start=1):
            sides = [value for side in (before, after) for value in (side["class"], f"{side['probability']:.6g}")]
            yield _csv((*where, rank, *sides, ""))


def json_lines(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A line for each record, as it is.

    >>> list(json_lines([{"path": "a.png", "error": "no such file"}]))
    ['{"path": "a.png", "error": "no such file"}\\n']
    """
    for record in records:
        yield json.dumps(record, allow_nan=False) + "\n"


def _csv(cells: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()
