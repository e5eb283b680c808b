"""Lines over classes, from head to tail; of many classes, points and a running mean."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwise.report.figures.data import Line, PerClass, Values
from tailwise.report.figures.style import GREY, band, look, plain_log, shortened

NAMED_CLASSES = 20  # more are numbered by rank
LONGEST_NAME = 14  # characters below an axis
SEPARATE_CLASSES = 50  # more are points and a running mean, or the line would be a band of noise


def draw_classes(axes: Sequence[Any], data: PerClass) -> None:
    """Each class a point at its rank; the count curve behind."""
    ranks = np.arange(1, len(data.counts) + 1)
    for axis, panel in zip(axes, data.panels, strict=True):
        for number, line in enumerate(panel.lines):
            shown = look(number)
            if len(ranks) <= SEPARATE_CLASSES or not data.smooth:
                axis.plot(ranks, line.mean, label=line.label, markevery=max(1, len(ranks) // 50), **shown)
                band(axis, ranks, line, shown["color"])
                continue
            points = {"linestyle": "", "marker": ".", "markersize": 1.8, "alpha": 0.35, "color": shown["color"]}
            axis.plot(ranks, line.mean, rasterized=True, **points)  # thousands of shapes make an SVG slow
            smoothed = Line(line.label, running_mean(line.mean), None if line.std is None else running_mean(line.std))
            axis.plot(ranks, smoothed.mean, label=line.label, markevery=max(1, len(ranks) // 10), **shown)
            band(axis, ranks, smoothed, shown["color"])
        if data.log:
            axis.set_yscale("log")
            plain_log(axis.yaxis)
        axis.set_title(panel.title, pad=16 if panel.title else None)
        _class_axis(axis, data)
        if data.show_counts:
            _count_curve(axis, ranks, data.counts)
    axes[0].set_ylabel(data.y_label)


def running_mean(values: Values) -> Values:
    """Mean of each value's neighbours, a twentieth of all, fewer at the ends; NaN are left out.

    >>> running_mean(np.array([1.0, np.nan, 3.0, 0.0]))
    array([1. , 2. , 1.5, 1.5])
    """
    half, known = max(1, len(values) // 40), ~np.isnan(values)
    window = np.ones(2 * half + 1)
    total = np.convolve(np.where(known, values, 0.0), window)[half : len(values) + half]
    count = np.convolve(known.astype(float), window)[half : len(values) + half]
    return np.asarray(np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5))


def _class_axis(axis: Any, data: PerClass) -> None:
    """Classes from head to tail, the groups' bounds and names above."""
    from matplotlib.ticker import MaxNLocator

    num_classes = len(data.names)
    if num_classes <= NAMED_CLASSES:
        names = [shortened(name, LONGEST_NAME) for name in data.names]
        long = max(map(len, names)) > 3
        turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if long else {}
        axis.set_xticks(range(1, num_classes + 1), names, **turned)
        axis.set_xlabel("class, head to tail")
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        many = num_classes > SEPARATE_CLASSES and data.smooth
        axis.set_xlabel(f"rank of the class, head to tail{' (points: classes; lines: running means)' * many}")
    axis.set_xlim(0.5, num_classes + 0.5)
    axis.grid(False, axis="x")
    start, centres, labels = 0, [], []
    for name, size in data.group_sizes.items():
        if size:
            if start:
                axis.axvline(start + 0.5, color=GREY, linewidth=0.8)
            labels.append(f"{name} ({size})")
            centres.append((start + size / 2) / num_classes)
        start += size
    width = 0.72 * axis.figure.get_figwidth() / len(data.panels) * 72  # of the axes, in points, about
    for centre, label in zip(_apart(centres, [5.2 * len(text) / width for text in labels]), labels, strict=True):
        axis.text(centre, 1.01, label, transform=axis.transAxes, ha="center", va="bottom", fontsize=8, color="#404040")


def _apart(centres: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Centres moved until labels of these widths, in order within 0..1, no longer touch: to the right, then back."""
    moved = list(centres)
    for i, width in enumerate(widths):
        before = moved[i - 1] + widths[i - 1] / 2 if i else 0.0
        moved[i] = max(moved[i], before + width / 2)
    for i in reversed(range(len(widths))):
        after = moved[i + 1] - widths[i + 1] / 2 if i + 1 < len(widths) else 1.0
        moved[i] = min(moved[i], after - widths[i] / 2)
    return moved


def _count_curve(axis: Any, ranks: Any, counts: NDArray[np.int64]) -> None:
    behind = axis.twinx()
    behind.set_label("counts")
    behind.stairs(
        np.maximum(counts, 0.5), np.append(ranks - 0.5, len(ranks) + 0.5), baseline=0.5, fill=True, color="#ebebeb"
    )
    behind.set_yscale("log")
    behind.set_ylim(0.5, 2 * counts.max())
    behind.set_ylabel("training images", color=GREY)
    behind.tick_params(colors=GREY)
    behind.grid(False)
    behind.spines["right"].set_visible(True)
    behind.spines["right"].set_color("#bcbcbc")
    plain_log(behind.yaxis)
    axis.set_zorder(behind.get_zorder() + 1)
    axis.patch.set_visible(False)
