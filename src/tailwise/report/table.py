"""Result tables and the notes below them, for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tailwise.report.summary import GROUPS


def figure(value: dict[str, float | None] | None, sign: str = "") -> str:
    """ "85.2 ± 2.6", "85.2" for a single seed, "-" for an empty group.

    >>> figure({"mean": 85.23, "std": 2.61}), figure(None), figure({"mean": 3.0, "std": None}, "+")
    ('85.2 ± 2.6', '-', '+3.0')
    """
    if value is None:
        return "-"
    spread = "" if value["std"] is None else f" ± {value['std']:.1f}"
    return f"{value['mean']:{sign}.1f}{spread}"


def print_record(console: Console, record: dict[str, Any], lines: Sequence[str] = ()) -> None:
    """The table of a record of `report.summary`: accuracy in percent, best "all" in bold, notes and lines below."""
    rows, sizes = record["rows"], record["group_sizes"]
    side_by_side = any("run" in row for row in rows)
    seeds = record["seeds"]
    over = f"mean ± std over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"single run, seed {seeds[0]}"
    title = f"{record['name']}: accuracy in %, {over}"
    console.print(f"{title}; protocol {record['protocol']}", highlight=False, markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    if side_by_side:
        table.add_column("run", justify="right", min_width=3)
    table.add_column("method", no_wrap=True)
    for group in GROUPS:
        table.add_column(f"{group} ({sizes[group]})" if sizes else group, justify="right", no_wrap=True)
    if side_by_side:
        table.add_column("vs first", justify="right", no_wrap=True)
    best = max((row["all"]["mean"] for row in rows if row["all"]), default=None)
    for row in rows:
        cells = [row["method"], *(figure(row[group]) for group in GROUPS)]
        if side_by_side:
            cells = [str(record["runs"].index(row["run"]) + 1), *cells, figure(row["difference"], "+")]
        table.add_row(*cells, style="bold" if row["all"] and row["all"]["mean"] == best else None)
    console.print(table)
    named = [f"run {number} is {run}" for number, run in enumerate(record["runs"], 1)] if side_by_side else []
    for line in [*named, *_notes(rows), *lines]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_recipes(console: Console, recipes: Sequence[dict[str, Any]], suites: Mapping[str, Sequence[str]]) -> None:
    """Every recipe below the suite it belongs to, with the rows it reports and the paper's numbers."""
    for data in suites:
        members = [recipe for recipe in recipes if recipe["data"]["name"] == data]
        first = members[0]
        epochs = " + ".join(str(stage["epochs"]) for stage in first["stages"])
        trained = ", ".join(member.split("/")[1] for member in suites[data])
        console.print(
            f"{data}: ratio {first['data']['imbalance_ratio']:g}, {first['backbone']['name']}, {epochs} epochs, "
            f"{first['seeds']} seeds; the suite trains {trained}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("recipe", "classifier", "published, all"):
            table.add_column(column, overflow="fold")
        for recipe in members:
            numbers = ", ".join(f"{p['method']} {p['all']:.1f}" for p in recipe["published"])
            sources = ", ".join(dict.fromkeys(p["source"] for p in recipe["published"]))
            published = f"{numbers} ({sources})" if numbers else "-"
            table.add_row(recipe["name"], recipe["classifier"]["name"], escape(published))
        console.print(table)


def _notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the TDE figures rest on: each alpha and where it came from, and how features lean to the head direction."""
    notes = []
    for row in rows:
        if "alpha" not in row:
            continue
        values = row["alpha"]["values"]
        shown = f"{values[0]:g}" if len(set(values)) == 1 else ", ".join(f"{value:g}" for value in values)
        lean = " / ".join("-" if c is None else f"{c['mean']:.2f}" for c in row["head_cosine"].values())
        origin = {"val": "chosen on val", "test": "chosen on test", "given": "given"}[row["alpha"]["from"]]
        notes.append(f"{row['method']}: alpha {shown} ({origin}); cos to the head direction many / medium / few {lean}")
    return notes
