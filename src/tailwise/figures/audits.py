"""The figure of an audit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tailwise.figures import write_figure
from tailwise.report.figures import Line, Panel, PerClass


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
