"""From data to a figure and its files. matplotlib is imported when something is drawn, never before."""

import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tailwise import checks
from tailwise.report.figures.classes import draw_classes
from tailwise.report.figures.data import (
    Categories,
    Confusions,
    Curves,
    FigureData,
    Illustration,
    PerClass,
    Regions,
    Reliabilities,
    Sights,
)
from tailwise.report.figures.panels import (
    draw_categories,
    draw_confusions,
    draw_curves,
    draw_illustration,
    draw_reliabilities,
)
from tailwise.report.figures.pictures import draw_regions, draw_sights
from tailwise.report.figures.style import STYLE

CHARACTERS = 13.5  # that fit into an inch of a heading
LEAST_WIDTH = 6.4  # of a figure in inches, so that its title has room


@dataclass(frozen=True)
class Kind:
    """How a kind of data is drawn. columns: of panels, at most. size: of a panel in inches; lone: of a single one."""

    draw: Callable[[Sequence[Any], Any], None]
    columns: int
    size: tuple[float, float]
    share_y: bool = False
    lone: tuple[float, float] | None = None


KINDS: dict[type[FigureData], Kind] = {
    Curves: Kind(draw_curves, 2, (4.6, 3.4), share_y=True),
    PerClass: Kind(draw_classes, 2, (5.2, 3.8), lone=(7.2, 4.0)),
    Categories: Kind(draw_categories, 4, (3.1, 3.6), share_y=True),
    Confusions: Kind(draw_confusions, 3, (3.2, 2.9)),
    Reliabilities: Kind(draw_reliabilities, 3, (3.4, 2.9)),
    Illustration: Kind(draw_illustration, 4, (3.2, 3.0), share_y=True),
    Sights: Kind(draw_sights, 1, (1.5, 1.75)),
    Regions: Kind(draw_regions, 4, (2.6, 3.1)),
}


def need_matplotlib() -> None:
    """Raises InputError where there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401  # to see whether it is there
    except ImportError as error:
        raise checks.InputError(f"plot: expected the package matplotlib; {checks.extra('plots')}") from error


def draw(data: FigureData) -> Any:
    """The `matplotlib.figure.Figure` of some data; nothing is shown, and pyplot is left alone.

    Raises:
        InputError: matplotlib is not installed.
    """
    need_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    kind = KINDS[type(data)]
    columns = data.columns if isinstance(data, Sights) else min(kind.columns, len(data.panels))
    rows = -(-len(data.panels) // columns)
    width, height = kind.lone if kind.lone and len(data.panels) == 1 else kind.size
    width = max(width, LEAST_WIDTH / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows + (1.0 if data.title else 0.1)), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=kind.share_y)
        axes = list(grid.flat)[: len(data.panels)]
        for unused in list(grid.flat)[len(data.panels) :]:
            unused.set_visible(False)
        _heading(figure, data)
        kind.draw(axes, data)
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
