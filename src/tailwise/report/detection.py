"""Tables of average precision, from stored records alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tailwise.report.summary import Result, listed, mean_and_std, over_seeds
from tailwise.report.table import figure

PRECISIONS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "APbox")


def combined_precision(name: str, runs: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """One record of all detection runs of a recipe or suite: mean and spread over seeds, a row per way to predict.

    Args:
        name: of the recipe or suite.
        runs: run folder -> its seeds' results.
    """
    first = next(iter(runs.values()))
    rows = []
    for results in runs.values():
        everywhere = set.intersection(*(set(result["rows"]) for result in results))
        for method in (name for name in results[0]["rows"] if name in everywhere):
            each = [result["rows"][method] for result in results]
            row: dict[str, Any] = {"recipe": results[0]["recipe"]["name"], "method": method}
            row["framework"] = results[0]["recipe"]["detector"]["framework"]
            row["seeds"] = [result["seed"] for result in results]
            row |= {key: mean_and_std([one[key] for one in each]) for key in PRECISIONS}
            row |= {key: mean_and_std([one[key] for one in each]) for key in each[0] if key.startswith("box-")}
            row |= {key: each[0][key] for key in ("alpha", "exempt_background") if key in each[0]}
            rows.append(row)
    return {
        "name": name,
        "seeds": sorted({result["seed"] for results in runs.values() for result in results}),
        "masks": first[0]["recipe"]["detector"]["masks"],
        "group_sizes": {group: _size([result["frequencies"].count(group) for result in first]) for group in "rcf"},
        "rows": rows,
        "runs": list(runs),
        "versions": first[0]["versions"],
    }


def _size(of_seeds: list[int]) -> int | str:
    """Of a group of classes; each seed may draw other training images, which decide how frequent a class is."""
    low, high = min(of_seeds), max(of_seeds)
    return low if low == high else f"{low}-{high}"


def print_precision(console: Console, record: dict[str, Any], lines: Sequence[str] = ()) -> None:
    """The table of such a record, in percent; best AP in bold, notes and lines below."""
    sizes, rows = record["group_sizes"], record["rows"]
    seeds = [row.get("seeds", record["seeds"]) for row in rows]  # rows of older records have none
    differ = any(some != seeds[0] for some in seeds)
    over = "mean ± std over the seeds below" if differ else over_seeds(record["seeds"])
    console.print(
        f"{record['name']}: average precision in %, {over}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("framework", no_wrap=True)
    table.add_column("method", no_wrap=True)
    headers = {"APr": f"APr ({sizes['r']})", "APc": f"APc ({sizes['c']})", "APf": f"APf ({sizes['f']})"}
    for name in PRECISIONS:
        table.add_column(headers.get(name, name), justify="right", no_wrap=True)
    best = max((row["AP"]["mean"] for row in rows if row["AP"]), default=None)
    for row in rows:
        cells = [row["framework"], row["method"], *(figure(row[name]) for name in PRECISIONS)]
        table.add_row(*cells, style="bold" if row["AP"] and row["AP"]["mean"] == best else None)
    before = console.width
    console.width = 10_000
    console.width = max(before, console.measure(table).maximum)  # a narrow terminal breaks lines, but cuts no figure
    console.print(table)
    console.width = before
    what = "AP of masks" if record.get("masks", True) else "AP of boxes, as APbox"
    notes = [f"{what}, mean over IoU 0.5 to 0.95 and classes; r, c, f: rare, common, frequent classes; APbox: of boxes"]
    each = zip(rows, seeds, strict=True)
    notes += [f"{row['recipe'].split('/')[1]}, {row['method']}: {listed(some)}" for row, some in each if differ]
    notes += [f"{row['method']}: alpha {row['alpha']:g}" for row in rows if "alpha" in row]
    for line in (*notes, *lines):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
