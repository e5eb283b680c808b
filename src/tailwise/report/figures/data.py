"""What can be drawn, as plain data: one class for each kind of figure.

Where there are classes, they are in order from head to tail.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


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
    """Percents over x, as accuracy against alpha. title: what is drawn; caption: of what data, method and seeds.

    is_change: percents of change, about 0. x_is_momentum: x in [0, 1), widened towards 1.
    """

    title: str
    caption: str
    x_label: str
    y_label: str
    x: Values
    panels: tuple[Panel, ...]
    is_change: bool = False
    x_is_momentum: bool = False


@dataclass(frozen=True)
class PerClass:
    """Lines over classes, which are in order from head to tail, as is everything [C].

    names: of the classes. counts: training images, [C]. group_sizes: of many, medium and few, which follow one another
    in that order. show_counts: their curve behind the lines. log: a logarithmic y. smooth: of many classes, draw points
    and a running mean in place of a line.
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
    smooth: bool = True


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


@dataclass(frozen=True)
class Seen:
    """An image, 0 to 1, [H, W] or [H, W, 3]; where: what speaks for a class in it, 0 to 1, [H, W], or None."""

    title: str
    image: Values
    where: Values | None = None


@dataclass(frozen=True)
class Sights:
    """Images in rows, `columns` panels to each: the image, then where each method sees the class."""

    title: str
    caption: str
    columns: int
    panels: tuple[Seen, ...]


@dataclass(frozen=True)
class Region:
    """predicted: the class of each point of a grid, [y, x]."""

    title: str
    predicted: NDArray[np.int64]


@dataclass(frozen=True)
class Regions:
    """What classifiers of two features decide where. names: of classes, head to tail.

    x, y: of the grid. points, labels: training samples, [N, 2] and [N].
    """

    title: str
    caption: str
    names: tuple[str, ...]
    x: Values
    y: Values
    points: Values
    labels: NDArray[np.int64]
    panels: tuple[Region, ...]


FigureData = Curves | PerClass | Categories | Confusions | Reliabilities | Illustration | Sights | Regions
