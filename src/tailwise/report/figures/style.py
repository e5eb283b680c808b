"""One look for all figures: colours are Okabe and Ito's, and what a colour tells, a marker or a dash tells, too."""

from typing import Any

from tailwise.report.figures.data import Line

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


def look(number: int) -> dict[str, Any]:
    """Colour, marker and dash of the line of this number."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
    }


def shortened(text: str, longest: int) -> str:
    """At most so many characters, the last a "…" where some are left out.

    >>> shortened("remote controller", 8)
    'remote …'
    """
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def band(axis: Any, x: Any, line: Line, colour: str) -> None:
    """The spread on both sides."""
    if line.std is not None:
        axis.fill_between(x, line.mean - line.std, line.mean + line.std, color=colour, alpha=0.15, linewidth=0)


def plain_log(axis: Any) -> None:
    """Plain numbers on a logarithmic axis, and some between the decades where it spans few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    short = high < 40 * low
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if short else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
