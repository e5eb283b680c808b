"""Curves of cost against size: the exponent of each, the table and the picture of them all. Measures nothing itself.

    python benchmarks/curves.py results/scale.json                        # print the table again
    python benchmarks/curves.py results/scale.json --plot docs/scale.png  # and draw; needs matplotlib

A record, as `benchmarks/scale.py --json` writes it, has "curves". A curve is a dict: "part" (which row of
the picture), "name", "against" (the unit of x), "at" (what was kept fixed) and "points", each {"x", "seconds",
"bytes"}; a measure that a curve has no use for is absent from its points.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMIT = 1.15  # sorting is n log n, about 1.07 here, and larger arrays miss the caches more often
# Below these a difference of two readings is noise: pages come in clusters, a call of Python's costs microseconds.
FLOOR = {"seconds": 1e-4, "bytes": 2.0**20}
REFERENCES = {"sampler": "random reads (reference)", "Store": "plain write (reference)"}  # of the curves of a part
PER_CLASS = 10  # samples, where they grow with the classes

Curve = dict[str, Any]


def upper_half(curve: Curve, measure: str) -> list[tuple[float, float]]:
    """The (x, y) that an exponent is fitted to: the larger half of the sizes, without what is too small to measure.

    At the small end constant overheads dominate, and every curve looks flat.
    """
    points = sorted(curve["points"], key=lambda point: point["x"])
    large = points[len(points) // 2 :] if len(points) > 3 else points
    floor = FLOOR[measure] if curve["against"] != "processes" else 0.0  # what processes send is counted, not sampled
    return [(p["x"], p[measure]) for p in large if p.get(measure) is not None and p[measure] > floor]


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """(exponent, factor) of y = factor * x^exponent, least squares of log y on log x; None for fewer than 2 points.

    >>> line([(1.0, 3.0), (10.0, 300.0), (100.0, 30000.0)])
    (2.0, 3.0)
    """
    if len(points) < 2:
        return None
    xs, ys = zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - x_mean) ** 2 for x in xs)
    exponent = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread
    return round(exponent, 6), round(math.exp(y_mean - exponent * x_mean), 15)


def exponent(curve: Curve, measure: str) -> float | None:
    """Of the upper half; None where the cost is too small to measure."""
    fitted = line(upper_half(curve, measure))
    return None if fitted is None else fitted[0]


def allowed(record: dict[str, Any], curve: Curve, measure: str) -> float:
    """The exponent that still counts as linear.

    A draw reads its arrays in random order, and from some size on no cache holds them: each read then takes several
    times as long, which bends a curve although the work is linear. A write takes new pages from the system. So each has
    a reference beside it that is nothing but so many reads or bytes, and the exponent of that, over the same sizes, is
    what linear work has on that machine.
    """
    wanted = REFERENCES.get(curve["part"])
    against = "samples" if curve["against"] == "classes and samples" else curve["against"]
    found = [other for other in record["curves"] if other["name"] == wanted and other["against"] == against]
    own = [x * (PER_CLASS if against != curve["against"] else 1) for x, _ in upper_half(curve, measure)]
    if measure != "seconds" or not found or not own:
        return LIMIT
    points = [(p["x"], p[measure]) for p in found[0]["points"] if 0.9 * min(own) <= p["x"] <= 1.1 * max(own)]
    fitted = line(points)
    return LIMIT if fitted is None else LIMIT + max(0.0, fitted[0] - 1.0)


def too_steep(record: dict[str, Any]) -> list[str]:
    """The curves that grow faster than linearly, with what the exponent is."""
    found = []
    for curve in record["curves"]:
        for measure in FLOOR:
            steepness, limit = exponent(curve, measure), allowed(record, curve, measure)
            if steepness is not None and steepness > limit and curve["name"] not in REFERENCES.values():
                named = f"{curve['part']}, {curve['name']} against {curve['against']}"
                found.append(f"{named}: {measure} grow with exponent {steepness:.2f}, above {limit:.2f}")
    return found


def size(x: float) -> str:
    """A size in powers of ten.

    >>> size(1000), size(31623), size(4)
    ('10^3', '10^4.5', '4')
    """
    power = math.log10(x)
    return f"10^{round(2 * power) / 2:g}" if x >= 100 and abs(2 * power - round(2 * power)) < 0.01 else f"{x:,.0f}"


def amount(value: float | None, measure: str) -> str:
    """Seconds or bytes in a unit that suits them.

    >>> amount(0.0123, "seconds"), amount(3.2e9, "bytes"), amount(None, "bytes")
    ('12 ms', '3.2 GB', '-')
    """
    if value is None:
        return "-"
    times, sizes = {"s": 1.0, "ms": 1e-3, "us": 1e-6}, {"GB": 1e9, "MB": 1e6, "kB": 1e3}
    units = times if measure == "seconds" else sizes
    unit, scale = next(((u, s) for u, s in units.items() if value >= s), list(units.items())[-1])
    scaled = value / scale
    return f"{scaled:.0f} {unit}" if scaled >= 10 else f"{scaled:.1f} {unit}"


def table(record: dict[str, Any]) -> str:
    """One line for each curve: its range, what the largest size cost and the exponents."""
    header = ("what", "against", "range", "kept fixed", "time", "~", "memory", "~")
    rows = [header]
    for curve in record["curves"]:
        points = sorted(curve["points"], key=lambda point: point["x"])
        cells = [curve["name"], curve["against"], f"{size(points[0]['x'])}..{size(points[-1]['x'])}", curve["at"]]
        for measure in FLOOR:
            found = exponent(curve, measure)
            cells += [amount(points[-1].get(measure), measure), "-" if found is None else f"{abs(found):.2f}"]
            if found is not None and round(found, 2) < 0:
                cells[-1] = "-" + cells[-1]
        rows.append(tuple(cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for number, row in enumerate(rows):
        part = record["curves"][number - 1]["part"] if number else None
        if number == 1 or (number > 1 and part != record["curves"][number - 2]["part"]):
            lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
        left = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(row[4:], widths[4:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines) + "\n"


# ---- the picture

# Okabe and Ito's palette, without its yellow, and markers: either tells the curves apart alone.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw(record: dict[str, Any], path: Path) -> None:
    """Small multiples: for each part and unit of x, time and memory beside each other."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("--plot needs matplotlib (extra `plots`)") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pairs = list(dict.fromkeys((curve["part"], curve["against"]) for curve in record["curves"]))
    rows = math.ceil(len(pairs) / 2)
    figure, axes = pyplot.subplots(rows, 4, figsize=(17, 3.4 * rows), squeeze=False, layout="constrained")
    places = iter(axes.flat)
    for part, against in pairs:
        for measure in FLOOR:
            _panel(next(places), record, part, against, measure)
    for axis in places:
        axis.set_visible(False)
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)


def _panel(axis: Any, record: dict[str, Any], part: str, against: str, measure: str) -> None:
    own = [curve for curve in record["curves"] if curve["part"] == part]
    names = list(dict.fromkeys(curve["name"] for curve in own))
    for curve in own:
        points = [(p["x"], p[measure]) for p in curve["points"] if curve["against"] == against and p.get(measure)]
        if not points:
            continue
        number = names.index(curve["name"])
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        fitted = line(upper_half(curve, measure))
        label = f"{curve['name']}: {'small' if fitted is None else f'{fitted[0]:.2f}'.replace('-0.00', '0.00')}"
        axis.plot(*zip(*points, strict=True), marker, color=colour, markersize=5, label=label, alpha=0.85)
        if fitted is not None:
            xs = [x for x, _ in upper_half(curve, measure)]
            axis.plot(xs, [fitted[1] * x ** fitted[0] for x in xs], "-", color=colour, linewidth=1.5)
    axis.set_xscale("log")
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    middle, half = math.sqrt(low * high), max(math.sqrt(high / low), 10.0)  # what is flat must look flat
    low, high = middle / half, middle * half
    lines = len(axis.get_legend_handles_labels()[0])
    columns = 2 if lines > 4 else 1
    share = 0.075 * math.ceil(lines / columns) + 0.05  # of the panel, for the legend
    axis.set_ylim(low, high * (high / low) ** (share / (1 - share)))
    if against == "processes":
        axis.set_xticks([1, 2, 4], ["1", "2", "4"])
        axis.set_xlim(0.9, 4.5)
        axis.minorticks_off()
    axis.set_title(
        f"{part}: {'time' if measure == 'seconds' else 'bytes sent' if part == 'ranks' else 'memory'}",
        fontsize=10.5,
        loc="left",
        weight="bold",
    )
    axis.set_xlabel(against, fontsize=9)
    axis.set_ylabel(_label(part, measure), fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(
        fontsize=8.5 if columns == 1 else 7,
        ncols=columns,
        loc="upper left",
        frameon=False,
        borderaxespad=0.3,
        labelspacing=0.25,
        columnspacing=0.8,
        handletextpad=0.2,
    )


def _label(part: str, measure: str) -> str:
    if part == "ranks":
        return "CPU seconds an image" if measure == "seconds" else "bytes a step and process"
    return "CPU seconds" if measure == "seconds" else "bytes"


def main() -> None:
    """Print the table of a record, draw it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    record = json.loads(arguments.record.read_text())
    print(table(record), end="")
    if arguments.plot:
        draw(record, arguments.plot)


if __name__ == "__main__":
    main()
