"""Result tables and the notes below them, for a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tailwise.report.summary import GROUPS, STRENGTHS, listed, over_seeds


def figure(value: dict[str, float | None] | None, sign: str = "") -> str:
    """ "85.2 ± 2.6", "85.2" for a single seed, "-" for an empty group.

    >>> figure({"mean": 85.23, "std": 2.61}), figure(None), figure({"mean": 3.0, "std": None}, "+")
    ('85.2 ± 2.6', '-', '+3.0')
    """
    if value is None:
        return "-"
    spread = "" if value["std"] is None else f" ± {value['std']:.1f}"
    return f"{value['mean']:{sign}.1f}{spread}"


@dataclass(frozen=True)
class Cells:
    """A result table as text. text_columns: how many on the left hold words. best: the rows of the best "all"."""

    title: str
    headers: tuple[str, ...]
    text_columns: int
    rows: tuple[tuple[str, ...], ...]
    best: tuple[bool, ...]
    notes: tuple[str, ...]


def table_of(record: dict[str, Any], *, metrics: bool = False) -> Cells:
    """The table of a record of `report.summary`: accuracy in percent, and notes on its rows.

    metrics: other metrics in the place of the groups.
    """
    rows, sizes = record["rows"], record["group_sizes"]
    side_by_side = any("run" in row for row in rows)
    by_recipe = not side_by_side and len({row["method"] for row in rows}) < len(rows)
    number = {run: f"{n}" for n, run in enumerate(record["runs"], 1)} if side_by_side else {}
    words = [*(["run"] if side_by_side else []), *(["recipe"] if by_recipe else []), "method"]
    columns = _columns(rows, metrics=metrics)
    headers = [f"{name} ({sizes[name]})" if sizes and name in sizes else name for name in columns]
    highest = max((row["all"]["mean"] for row in rows if row["all"]), default=None)

    def cells(row: dict[str, Any]) -> tuple[str, ...]:
        names = {
            "run": number.get(row.get("run", ""), ""),
            "recipe": row["recipe"].split("/")[1],
            "method": row["method"],
        }
        numbers = [figure({**row, **row.get("metrics", {})}.get(name)) for name in columns]
        difference = [figure(row["difference"], "+")] if side_by_side else []
        return (*(names[word] for word in words), *numbers, *difference)

    def where(row: dict[str, Any]) -> str:
        recipe = f"{row['recipe'].split('/')[1]}, " if by_recipe else ""
        return f"run {number[row['run']]}, " if side_by_side else recipe

    seeds = [row.get("seeds", record["seeds"]) for row in rows]  # rows of older records have none
    differ = any(some != seeds[0] for some in seeds)
    if side_by_side:
        of_run = {row["run"]: f", {listed(some)}" * differ for row, some in zip(rows, seeds, strict=True)}
        named = [f"run {n} is {run}{of_run.get(run, '')}" for run, n in number.items()]
    else:
        both = zip(rows, seeds, strict=True)
        named = [f"{where(row)}{row['method']}: {listed(some)}" for row, some in both if differ]
    over = "mean ± std over the seeds below" if differ else over_seeds(record["seeds"])
    if out := record.get("left_out"):
        named.append(f"left out: {len(out)} that could not be read; the first: {out[0]}; results.json lists all")
    return Cells(
        f"{record['name']}: accuracy in %, {over}; protocol {record['protocol']}",
        (*words, *headers, *(["vs first"] if side_by_side else [])),
        len(words),
        tuple(cells(row) for row in rows),
        tuple(row["all"] is not None and row["all"]["mean"] == highest for row in rows),
        (*named, *(where(row) + note for row in rows for note in _notes(row))),
    )


def _columns(rows: Sequence[dict[str, Any]], *, metrics: bool) -> Sequence[str]:
    if not metrics:
        return GROUPS
    # those that were measured: older results have none, few classes no top-5
    measured = [name for row in rows for name, value in row.get("metrics", {}).items() if value is not None]
    return ["all", *dict.fromkeys(measured)]


def print_record(console: Console, record: dict[str, Any], lines: Sequence[str] = (), *, metrics: bool = False) -> None:
    """The table of a record, best "all" in bold, notes and lines below."""
    cells = table_of(record, metrics=metrics)
    console.print(cells.title, highlight=False, markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, header in enumerate(cells.headers):
        words = place < cells.text_columns and header != "run"
        table.add_column(header, justify="left" if words else "right", no_wrap=True)
    for row, best in zip(cells.rows, cells.best, strict=True):
        table.add_row(*row, style="bold" if best else None)
    _print_whole(console, table)
    for line in [*cells.notes, *lines]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_sweep(console: Console, record: dict[str, Any]) -> None:
    """The curve of a strength: mean accuracy in percent by group, on val and on test, and what was chosen."""
    strength, values, seeds = record["strength"].replace("_", " "), record["values"], record["seeds"]
    column = strength.split()[-1]
    over = f"mean over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"single run, seed {seeds[0]}"
    console.print(
        f"{record['name']}, {record['method']}: accuracy in % by {strength}, {over}; protocol {record['protocol']}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    splits = [split for split in ("val", "test") if split in record]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for header in (column, *(f"{split}\n{group}" for split in splits for group in GROUPS), "chosen"):
        table.add_column(header, justify="right")
    chosen = record["chosen"]
    for number, value in enumerate(values):
        means = [record[split][group][number] for split in splits for group in GROUPS]
        times = chosen["values"].count(value) if chosen else 0
        mark = "" if not times else f"x {times}" if len(seeds) > 1 else "*"
        cells = [f"{value:g}", *("-" if mean is None else f"{mean['mean']:.1f}" for mean in means), mark]
        table.add_row(*cells, style="bold" if times else None)
    _print_whole(console, table)
    lines = [f"{strength} {_chosen(chosen)}" if chosen else f"no val: no {strength} was chosen"]
    if "val" in record or not chosen:
        lines.append("the test columns are for looking at: nothing was chosen on them")
    lines += [f"wrote {path}" for path in record["wrote"]]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_whole(console: Console, table: Table) -> None:
    """The table at its own width: a terminal that is narrower breaks lines, but no figure is cut."""
    before = console.width
    console.width = 10_000
    console.width = max(before, console.measure(table).maximum)
    console.print(table)
    console.width = before


def _notes(row: dict[str, Any]) -> list[str]:
    """What a row rests on: its strength and where that came from, how features lean to the head direction."""
    notes = []
    for strength in sorted(STRENGTHS & row.keys()):
        note = f"{row['method']}: {strength.replace('_', ' ')} {_chosen(row[strength])}"
        if "head_cosine" in row:
            lean = " / ".join("-" if c is None else f"{c['mean']:.2f}" for c in row["head_cosine"].values())
            note += f"; cos to the head direction many / medium / few {lean}"
        notes.append(note)
    if row.get("second_stage", {}).get("on") == "features":
        notes.append(f"{row['method']}: second stage on stored features, not on augmented images")
    if row["method"] == "ncm" and row.get("distance", "cosine") != "cosine":
        notes.append(f"ncm: distance {row['distance']}")
    return notes


def _chosen(strength: dict[str, Any]) -> str:
    """ "0.7, 0.9 (chosen on val)"; by what, where that is not the mean over classes."""
    values, origin, by = strength["values"], strength["from"], strength.get("by", "mean-per-class")
    shown = f"{values[0]:.4g}" if len(set(values)) == 1 else ", ".join(f"{value:.4g}" for value in values)
    how = {"given": "given", "recipe": "the recipe's", "learned": "learned on train"}.get(origin, f"chosen on {origin}")
    if origin == "train" and by == "mean-per-class":
        how = "chosen on re-balanced train"
    return f"{shown} ({how}{'' if by == 'mean-per-class' else f' by {by}'})"
