"""An audit of data by its name, and the figure of its tail."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tailwise import checks
from tailwise.data.auditing import audit
from tailwise.data.benchmarks import LISTED
from tailwise.data.cifar import cifar_lt
from tailwise.data.contract import LongTailedData
from tailwise.data.digits import digits_lt
from tailwise.data.index import ImageIndex, OnBad
from tailwise.data.listed import read_listed
from tailwise.data.own import as_divided, read_own
from tailwise.data.readable import Progress
from tailwise.figures import write_figure
from tailwise.report.figures import Line, Panel, PerClass

IN_MEMORY = ("digits-lt", "cifar10-lt", "cifar100-lt")


def audited(
    name: str,
    data_dir: Path | None,
    table: Mapping[str, Any],
    *,
    on_bad: OnBad = "error",
    compare: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The record of `tailwise.data.audit`, of a benchmark by name, or of a user's own data at a path.

    Splits that are stored are used; where none are, those that would be drawn are, and nothing is written.

    Raises:
        InputError: neither a benchmark nor data; data that its reader refuses.
    """
    if name in IN_MEMORY:
        data = digits_lt(0) if name == "digits-lt" else cifar_lt(int(name[5:-3]), 0, data_dir=data_dir)
        return audit(name, _parts(data), data.class_names, compare=compare, progress=progress)
    if name in LISTED:
        index, _ = read_listed(name, data_dir)
    elif Path(name).exists() or name.startswith("hf:"):
        index = as_divided(read_own(name, table, on_bad=on_bad), name)
    else:
        raise checks.InputError(
            f"data: expected a path to your own data or one of {', '.join((*LISTED, *IN_MEMORY))}, got '{name}'"
        )
    return audit(name, _parts(index), index.class_names, compare=compare, progress=progress)


def _parts(data: LongTailedData | ImageIndex) -> dict[str, Any]:
    if isinstance(data, ImageIndex):
        return {part: data.split(part) for part in data.parts}
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return {part: split for part, split in parts.items() if split is not None}


def draw_counts(record: Mapping[str, Any], out: Path) -> list[Path]:
    """Write the figure of an audit: training images per class, from head to tail.

    Raises:
        InputError: no matplotlib, another ending, a file that cannot be written.
    """
    counts = np.array(record["counts"])
    order = np.argsort(-counts, kind="stable")
    groups = ", ".join(f"{number:,} {group}" for group, number in record["group_sizes"].items())
    data = PerClass(
        title=f"Training images per class: {record['name']}",
        caption=f"imbalance ratio {record['imbalance_ratio']:,.4g}, Gini {record['gini']:.3f}; classes: {groups}",
        y_label="training images",
        names=tuple(record["class_names"][c] for c in order),
        counts=counts[order],
        group_sizes=record["group_sizes"],
        panels=(Panel("", (Line("training images", np.where(counts > 0, counts, np.nan)[order]),)),),
        show_counts=False,
        log=True,
        smooth=False,
    )
    return write_figure(data, out)
