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
    title = f"{record['name']}: accuracy in %, mean ± std over seeds {', '.join(map(str, seeds))}"
    table = Table(
        title=escape(f"{title}; protocol {record['protocol']}"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    if side_by_side:
        table.add_column("run", overflow="fold")
    table.add_column("method", no_wrap=True)
    for group in GROUPS:
        table.add_column(f"{group} ({sizes[group]})" if sizes else group, justify="right", no_wrap=True)
    if side_by_side:
        table.add_column("all - first", justify="right", no_wrap=True)
    best = max((row["all"]["mean"] for row in rows if row["all"]), default=None)
    for row in rows:
        cells = [row["method"], *(figure(row[group]) for group in GROUPS)]
        if side_by_side:
            cells = [escape(row["run"]), *cells, figure(row["difference"], "+")]
        table.add_row(*cells, style="bold" if row["all"] and row["all"]["mean"] == best else None)
    console.print(table)
    for line in [*_notes(rows), *lines]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_recipes(console: Console, recipes: Sequence[dict[str, Any]], suites: Mapping[str, Sequence[str]]) -> None:
    """Every recipe with what it trains and the paper's number, and the suites."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("recipe", "backbone", "classifier", "epochs", "seeds"):
        table.add_column(column, no_wrap=True)
    table.add_column("published (all)", overflow="fold")
    for recipe in recipes:
        published = "\n".join(f"{p['method']} {p['all']:.1f}, {p['source']}" for p in recipe["published"])
        epochs = " + ".join(str(stage["epochs"]) for stage in recipe["stages"])
        table.add_row(
            recipe["name"],
            recipe["backbone"]["name"],
            recipe["classifier"]["name"],
            epochs,
            str(recipe["seeds"]),
            escape(published or "-"),
        )
    console.print(table)
    for name, members in suites.items():
        methods = ", ".join(member.split("/")[1] for member in members)
        console.print(f"suite {name}: {methods}", highlight=False, markup=False, soft_wrap=True)


def _notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the TDE figures rest on: each alpha and where it came from, and how features lean to the head direction."""
    notes = []
    for row in rows:
        if "alpha" not in row:
            continue
        values = row["alpha"]["values"]
        shown = f"{values[0]:g}" if len(set(values)) == 1 else ", ".join(f"{value:g}" for value in values)
        lean = " / ".join("-" if c is None else f"{c['mean']:.2f}" for c in row["head_cosine"].values())
        origin = {"val": "chosen on val", "given": "given"}[row["alpha"]["from"]]
        notes.append(f"{row['method']}: alpha {shown} ({origin}); cos to the head direction many / medium / few {lean}")
    return notes
