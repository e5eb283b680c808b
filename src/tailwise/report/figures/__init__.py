"""The figures of both papers, drawn from plain data: `data` is what, `draw` is how."""

from tailwise.report.figures.classes import running_mean
from tailwise.report.figures.data import (
    Calibration,
    Categories,
    Confusions,
    Curves,
    FigureData,
    Illustration,
    Line,
    Matrix,
    Panel,
    PerClass,
    Region,
    Regions,
    Reliabilities,
    Seen,
    Sights,
    Situation,
    Values,
)
from tailwise.report.figures.draw import draw, need_matplotlib, rendered

__all__ = [
    "Calibration",
    "Categories",
    "Confusions",
    "Curves",
    "FigureData",
    "Illustration",
    "Line",
    "Matrix",
    "Panel",
    "PerClass",
    "Region",
    "Regions",
    "Reliabilities",
    "Seen",
    "Sights",
    "Situation",
    "Values",
    "draw",
    "need_matplotlib",
    "rendered",
    "running_mean",
]
