"""The figures of both papers, drawn from plain data: one function for each kind, one style for all.

Colours are Okabe and Ito's, and what a colour tells, a marker or a dash pattern tells, too. Classes go from head to
tail. matplotlib is imported when something is drawn, never before.
"""

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwise import checks

Values = NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("-", "--", "-.", ":")
GREY = "#767676"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.titlesize": 10,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "svg.hashsalt": "tailwise",  # the same data, the same file
    "savefig.dpi": 144,
}
NAMED_CLASSES = 20  # more are numbered by rank
LONGEST_NAME = 14  # characters below an axis
CHARACTERS = 13.5  # that fit into an inch of a heading
SEPARATE_CLASSES = 50  # more are points and a running mean, or the line would be a band of noise


@dataclass(frozen=True)
class Line:
    """mean, std: over seeds, [n]; NaN where nothing was measured. std is None for a single seed."""

    label: str
    mean: Values
    std: Values | None = None


@dataclass(frozen=True)
class Panel:
    """marks: values of x to point out; what they are is in the title."""

    title: str
    lines: tuple[Line, ...]
    marks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Curves:
    """Percents over x, as accuracy against alpha. title: what is drawn; caption: of what data, method and seeds."""

    title: str
    caption: str
    x_label: str
    y_label: str
    x: Values
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class PerClass:
    """Lines over classes, which are in order from head to tail, as is everything [C].

    names: of the classes. counts: training images, [C]. group_sizes: of many, medium and few, which follow one another
    in that order. show_counts: their curve behind the lines. log: a logarithmic y.
    """

    title: str
    caption: str
    y_label: str
    names: tuple[str, ...]
    counts: NDArray[np.int64]
    group_sizes: Mapping[str, int]
    panels: tuple[Panel, ...]
    show_counts: bool = True
    log: bool = False


@dataclass(frozen=True)
class Categories:
    """A value for each of a few names: a panel for each group, a line, drawn as points, for each of another kind."""

    title: str
    caption: str
    x_label: str
    y_label: str
    names: tuple[str, ...]
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Matrix:
    """mean, std: in percent, [true group, predicted group]; NaN for a group without a sample."""

    title: str
    mean: Values
    std: Values | None = None


@dataclass(frozen=True)
class Confusions:
    """Confusion between groups, a matrix for each row of a result."""

    title: str
    caption: str
    groups: tuple[str, ...]
    panels: tuple[Matrix, ...]


@dataclass(frozen=True)
class Calibration:
    """accuracy: of the samples in each bin of confidence, in percent, [B]. share: of all samples, in percent, [B]."""

    title: str
    accuracy: Line
    share: Values


@dataclass(frozen=True)
class Reliabilities:
    """Reliability diagrams, one for each row of a result. edges: of the bins, in percent, [B + 1]."""

    title: str
    caption: str
    edges: Values
    panels: tuple[Calibration, ...]


@dataclass(frozen=True)
class Situation:
    """Densities of two classes over a logit, where it is cut, and how many of each class are right, in percent.

    before: both densities as they were; boundary_before: where it was cut; None if nothing has moved.
    """

    title: str
    head: Values
    tail: Values
    boundary: float
    right: Mapping[str, float]
    before: tuple[Values, Values] | None = None
    boundary_before: float | None = None


@dataclass(frozen=True)
class Illustration:
    """Situations side by side over one x."""

    title: str
    caption: str
    x_label: str
    x: Values
    panels: tuple[Situation, ...]


FigureData = Curves | PerClass | Categories | Confusions | Reliabilities | Illustration


def need_matplotlib() -> None:
    """Raises InputError where there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401  # to see whether it is there
    except ImportError as error:
        raise checks.InputError("plot: expected the package matplotlib; pip install 'tailwise[plots]'") from error


def draw(data: FigureData) -> Any:
    """The `matplotlib.figure.Figure` of some data; nothing is shown, and pyplot is left alone.

    Raises:
        InputError: matplotlib is not installed.
    """
    need_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    columns = _columns(data)
    rows = -(-len(data.panels) // columns)
    width, height = _panel_size(data)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows + 1.0), layout="constrained")
        grid = figure.subplots(
            rows, columns, squeeze=False, sharey=isinstance(data, Curves | Categories | Illustration)
        )
        axes = list(grid.flat)[: len(data.panels)]
        for unused in list(grid.flat)[len(data.panels) :]:
            unused.set_visible(False)
        _heading(figure, data)
        if isinstance(data, Curves):
            _curves(axes, data)
        elif isinstance(data, PerClass):
            _per_class(axes, data)
        elif isinstance(data, Categories):
            _categories(axes, data)
        elif isinstance(data, Confusions):
            _confusions(axes, data)
        elif isinstance(data, Reliabilities):
            _reliabilities(axes, data)
        else:
            _illustration(axes, data)
        _legend(figure, axes)
    return figure


def rendered(data: FigureData, formats: Sequence[str]) -> dict[str, bytes]:
    """The files of a figure by format (png, svg): the same bytes for the same data.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure, files = draw(data), {}
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a class name that the font has no letters for
        for kind in formats:
            file = io.BytesIO()
            figure.savefig(file, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None})
            files[kind] = file.getvalue()
    return files


# ---- one function for each kind


def _curves(axes: Sequence[Any], data: Curves) -> None:
    for axis, panel in zip(axes, data.panels, strict=True):
        for number, line in enumerate(panel.lines):
            look = _look(number)
            axis.plot(data.x, line.mean, label=line.label, markevery=max(1, len(data.x) // 10), **look)
            _band(axis, data.x, line, look["color"])
        for mark in panel.marks:
            axis.axvline(mark, color=GREY, linestyle=":", linewidth=1.2)
        axis.set_title(panel.title)
        axis.set_xlabel(data.x_label)
        axis.margins(x=0.01)
    axes[0].set_ylabel(data.y_label)
    axes[0].set_ylim(-3, 103)  # percent; a spread may say more


def _per_class(axes: Sequence[Any], data: PerClass) -> None:
    ranks = np.arange(1, len(data.counts) + 1)
    for axis, panel in zip(axes, data.panels, strict=True):
        for number, line in enumerate(panel.lines):
            look = _look(number)
            if len(ranks) <= SEPARATE_CLASSES:
                axis.plot(ranks, line.mean, label=line.label, **look)
                _band(axis, ranks, line, look["color"])
                continue
            points = {"linestyle": "", "marker": ".", "markersize": 1.8, "alpha": 0.35, "color": look["color"]}
            axis.plot(ranks, line.mean, rasterized=True, **points)  # thousands of shapes make an SVG slow
            smoothed = Line(line.label, running_mean(line.mean), None if line.std is None else running_mean(line.std))
            axis.plot(ranks, smoothed.mean, label=line.label, markevery=max(1, len(ranks) // 10), **look)
            _band(axis, ranks, smoothed, look["color"])
        if data.log:
            axis.set_yscale("log")
            _plain_log(axis.yaxis)
        axis.set_title(panel.title, pad=16 if panel.title else None)
        _class_axis(axis, data)
        if data.show_counts:
            _count_curve(axis, ranks, data.counts)
    axes[0].set_ylabel(data.y_label)


def _categories(axes: Sequence[Any], data: Categories) -> None:
    places = np.arange(len(data.names))
    for axis, panel in zip(axes, data.panels, strict=True):
        offsets = np.linspace(-0.25, 0.25, len(panel.lines)) if len(panel.lines) > 1 else [0.0]
        for number, (line, offset) in enumerate(zip(panel.lines, offsets, strict=True)):
            look = _look(number) | {"linestyle": ""}
            axis.errorbar(places + offset, line.mean, yerr=line.std, label=line.label, capsize=2, elinewidth=1, **look)
        axis.set_xticks(places, data.names, rotation=30, ha="right", rotation_mode="anchor")
        axis.set_xlim(-0.5, len(data.names) - 0.5)
        axis.set_title(panel.title)
        axis.set_xlabel(data.x_label)
    axes[0].set_ylabel(data.y_label)


def _confusions(axes: Sequence[Any], data: Confusions) -> None:
    places = range(len(data.groups))
    for axis, panel in zip(axes, data.panels, strict=True):
        axis.imshow(np.ma.masked_invalid(panel.mean), vmin=0, vmax=100, cmap="Blues")
        axis.set_facecolor("#f0f0f0")
        for true in places:
            for predicted in places:
                value = panel.mean[true, predicted]
                spread = np.nan if panel.std is None else panel.std[true, predicted]
                text = "-" if np.isnan(value) else f"{value:.1f}"
                text += "" if np.isnan(spread) else f"\n± {spread:.1f}"
                axis.text(predicted, true, text, ha="center", va="center", color="white" if value > 55 else "black")
        axis.set_xticks(places, [name.replace(" ", "\n") for name in data.groups])
        axis.set_yticks(places, [name.replace(" ", "\n") for name in data.groups])
        axis.grid(False)
        axis.set_title(panel.title)
        axis.set_xlabel("predicted class is of")
        axis.set_ylabel("true class is of")


def _reliabilities(axes: Sequence[Any], data: Reliabilities) -> None:
    left, width = data.edges[:-1], np.diff(data.edges)
    for axis, panel in zip(axes, data.panels, strict=True):
        axis.bar(left, panel.accuracy.mean, width, align="edge", color="#56B4E9", edgecolor="#0072B2", label="accuracy")
        if panel.accuracy.std is not None:
            axis.errorbar(
                left + width / 2, panel.accuracy.mean, panel.accuracy.std, fmt="none", color="#0072B2", elinewidth=1
            )
        axis.plot((0, 100), (0, 100), color="#000000", linestyle="--", linewidth=1, label="as confident as right")
        axis.stairs(panel.share, data.edges, color="#D55E00", linewidth=1.3, label="share of samples")
        axis.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence in %", ylabel="%")
        axis.set_title(panel.title)


def _illustration(axes: Sequence[Any], data: Illustration) -> None:
    for axis, panel in zip(axes, data.panels, strict=True):
        if panel.before is not None:
            for density, colour in zip(panel.before, ("#0072B2", "#D55E00"), strict=True):
                axis.plot(data.x, density, color=colour, linestyle=":", linewidth=1.2)
        for name, density, colour, dash in (
            ("head", panel.head, "#0072B2", "-"),
            ("tail", panel.tail, "#D55E00", "--"),
        ):
            axis.plot(data.x, density, color=colour, linestyle=dash, label=f"{name} class")
            axis.fill_between(data.x, density, color=colour, alpha=0.15, linewidth=0)
        if panel.boundary_before is not None:
            axis.axvline(panel.boundary_before, color="#000000", linestyle=":", linewidth=1.2)
        axis.axvline(panel.boundary, color="#000000", label="decision boundary")
        right = ", ".join(f"{name} {value:.0f} %" for name, value in panel.right.items())
        axis.set_title(f"{panel.title}\nright: {right}")
        axis.set_xlabel(data.x_label)
        axis.set_yticks([])
        axis.margins(x=0)
    axes[0].set_ylim(bottom=0)  # of all: y is shared


# ---- what they share


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


def _look(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
    }


def _band(axis: Any, x: Any, line: Line, colour: str) -> None:
    if line.std is not None:
        axis.fill_between(x, line.mean - line.std, line.mean + line.std, color=colour, alpha=0.15, linewidth=0)


def _class_axis(axis: Any, data: PerClass) -> None:
    """Classes from head to tail, the groups' bounds and names above."""
    from matplotlib.ticker import MaxNLocator

    num_classes = len(data.names)
    if num_classes <= NAMED_CLASSES:
        names = [n if len(n) <= LONGEST_NAME else f"{n[: LONGEST_NAME - 1]}…" for n in data.names]
        long = max(map(len, names)) > 3
        turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if long else {}
        axis.set_xticks(range(1, num_classes + 1), names, **turned)
        axis.set_xlabel("class, head to tail")
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        many = num_classes > SEPARATE_CLASSES
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
    width = 0.72 * _panel_size(data)[0] * 72  # of the axes, in points, about
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
    _plain_log(behind.yaxis)
    axis.set_zorder(behind.get_zorder() + 1)
    axis.patch.set_visible(False)


def _plain_log(axis: Any) -> None:
    """Plain numbers on a logarithmic axis, and some between the decades where it spans few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    short = high < 40 * low
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if short else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _columns(data: FigureData) -> int:
    most = {Curves: 2, PerClass: 2, Categories: 4, Confusions: 3, Reliabilities: 3, Illustration: 4}[type(data)]
    return min(most, len(data.panels))


def _panel_size(data: FigureData) -> tuple[float, float]:
    """Width and height of a panel in inches; a figure of one panel is wide enough for its title."""
    if isinstance(data, PerClass):
        return (7.2, 4.0) if len(data.panels) == 1 else (5.2, 3.8)
    sizes: dict[type, tuple[float, float]] = {
        Curves: (4.6, 3.4),
        Categories: (3.1, 3.6),
        Confusions: (3.2, 2.9),
        Reliabilities: (3.4, 2.9),
        Illustration: (3.2, 3.0),
    }
    width, height = sizes[type(data)]
    return max(width, 6.4 / _columns(data)), height


def _heading(figure: Any, data: FigureData) -> None:
    room = int(figure.get_figwidth() * CHARACTERS)
    lines = [line for text in (data.title, data.caption) for line in textwrap.wrap(text, room)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", linespacing=1.4)


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        longest = max(map(len, found))
        columns = max(1, min(len(found), int(figure.get_figwidth() * 12 / (longest + 9))))
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns)
