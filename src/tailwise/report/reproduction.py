"""Printed numbers beside ours, and the plan to get them: tables for a terminal and for a page."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tailwise.report.detection import PRECISIONS
from tailwise.report.summary import GROUPS, mean_and_std
from tailwise.report.table import figure

OVERALL = ("all", "AP")

SETTINGS = {
    "BBN": "(BBN): in the setting of Zhou et al. 2020, which the rows are quoted from",
    "Tang": "(Tang): in the setting of Tang et al. 2020",
    "own": "(own): in the setting of the paper's own rows, not in that of the source it is quoted from: no verdict",
}
FRAMEWORKS = {
    "cascade": "cascade: Cascade Mask R-CNN, which the paper names",
    "htc": "htc: Hybrid Task Cascade without semantic branch, as the authors' settings have it",
    "mask-rcnn": "mask-rcnn: Mask R-CNN",
}
PASS = (
    "pass: the mean of three seeds or more lies at most a tolerance below what is printed: 1 point on CIFAR, for "
    "De-confound and TDE there 1.5, for few and APr 2, for numbers very likely of val or of a split that is not said "
    "1.5, else 0.5; fewer seeds: no verdict"
)


def print_reproduction(console: Console, record: Mapping[str, Any], *, asked_alone: bool = False) -> None:
    """The table of a record of `reproduction.reproduce`: printed, ours, seeds, difference and verdict; notes below.

    asked_alone: without the lines that this call did not ask for.
    """
    _say(console, f"{record['about']}")
    subset = "" if record["subset_seed"] is None else f", subset seed {record['subset_seed']}"
    lines = [line for line in record["lines"] if line["asked"] or not asked_alone]
    under = " and ".join(sorted({line["under"] for line in lines}))
    _say(console, f"in %; compared under protocol {under}{subset}")
    several = len({line["metric"] for line in lines}) > 1
    table = _table("row", *(["metric"] if several else []), "printed", "ours", "seeds", "diff", "verdict")
    for column in table.columns[1 + several : -1]:
        column.justify = "right"
    for section, inside in groupby(_shown(lines), key=_part):
        table.add_row(section, style="bold")
        for line in inside:
            for name, metric, *cells in _cells(line):
                table.add_row(f" {name}", *([metric] if several else []), *cells)
    console.print(table)
    _print_beside(console, record, lines)
    for note in _notes(lines):
        _say(console, note)


def print_plan(console: Console, plan: Mapping[str, Any]) -> None:
    """What is to be trained, what that takes, and what cannot be run."""
    runs = plan["runs"]
    seeds = sum(len(run["left"]) for run in runs)
    none = "nothing left that can be run" if any(run["lacks"] for run in runs) else "nothing left to do"
    _say(console, plan["about"])
    if runs:
        subset = "" if plan["subset_seed"] is None else f" on subset seed {plan['subset_seed']}"
        rest = none if not seeds else f"left: {_count(seeds, 'seed')}, about {span(plan['seconds'])}"
        memory = f" and {plan['memory'] / 1e9:.1f} GB" if seeds and plan["memory"] else ""
        _say(
            console,
            f"{_count(len(runs), 'run')}{subset}; {rest}{memory} on {plan['device']}",
        )
        table = _table("run", "trained", "epochs", "left", "by")
        for column in table.columns[2:4]:
            column.justify = "right"
        for section, inside in groupby(runs, key=_section):
            table.add_row(section, style="bold")
            for run in inside:
                protocol = "" if run["protocol"] == "paper" else f" ({run['protocol']})"
                left = span(run["seconds"]) if run["seconds"] else "no training" if run["left"] else "-"
                by = {"log": "its log", "steps": "timed steps", None: "-"}[run["estimated_from"]]
                name = run["recipe"].split("/")[1]
                trained = f"{len(run['finished'])} of {_count(len(run['seeds']), 'seed')}"
                table.add_row(f" {name}{protocol}", trained, str(run["epochs"]), left, by if run["left"] else "-")
        console.print(table)
        for line in _begun(runs):
            _say(console, line)
        if seeds:
            _say(console, "estimates: training alone, on a machine that does nothing else; memory is that of training")
    for run in runs:
        if run["goes_on_with"]:
            _say(
                console,
                f"{run['recipe']} goes on with {', '.join(run['goes_on_with'])}, as {run['folder']} was begun; "
                "to train as asked: another --out",
            )
    cannot = {run["lacks"]: 0 for run in plan["runs"] if run["lacks"]}
    for run in plan["runs"]:
        if run["lacks"]:
            cannot[run["lacks"]] += 1
    for reason, number in cannot.items():
        _say(console, f"cannot be run, {_count(number, 'run')}: {reason}")
    for reason, number in plan["lacks"].items():
        _say(console, f"cannot be run, {_count(number, 'number')}: {reason}")


def print_tables(console: Console, tables: Mapping[str, str]) -> None:
    """What can be reproduced, by name."""
    width = max(map(len, tables))
    for name, about in tables.items():
        _say(console, f"{name:<{width}}  {about}")


def markdown(record: Mapping[str, Any]) -> str:
    """The whole table of a record for a page."""
    header = ("part", "row", "metric", "printed", "ours", "seeds", "difference", "verdict")
    rows = [header, ("---",) * len(header)]
    for line in record["lines"]:
        rows += [(_part(line), *cells) for cells in _cells(line)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    notes = [f"- {note}" for note in _notes(record["lines"])]
    return "\n".join([f"{record['about']}, in %.", "", *lines, "", *notes, "", f"`{record['command']}`", ""])


def span(seconds: float) -> str:
    """A length of time, to two units.

    >>> span(40), span(2700), span(7500), span(200_000)
    ('40 s', '45 min', '2 h 05 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _shown(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every line, but of a row that was not run the metric over everything alone."""
    for _, inside in groupby(lines, key=lambda line: (line["section"], line["row"], line["setting"])):
        row = list(inside)
        whole = [line for line in row if line["metric"] in OVERALL] or row[-1:]
        yield from row if any(line["ours"] for line in row) else whole


def _part(line: Mapping[str, Any]) -> str:
    """The part of its table that a line stands in; of a detector with its framework."""
    framework = f", {line['setting']}" if line["setting"] in FRAMEWORKS else ""
    return f"{line['section']}{framework}"


def _cells(line: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str, str, str]]:
    """(row, metric, printed, ours, seeds, difference, verdict), then ours under other protocols."""
    both = line["setting"] in SETTINGS and (line["quoted"] or line["printed"] is None)  # a row in two settings
    name = line["row"] + (f" ({line['setting']})" if both else "")
    spread = "" if line["printed_spread"] is None else f" ± {line['printed_spread']:.1f}"
    printed = "-" if line["printed"] is None else f"{line['printed']:.1f}{spread}"
    under = line["under"]
    paper = line["ours"].get(under)
    difference = "-" if line["difference"] is None else f"{line['difference']:+z.1f}"
    verdict = line["verdict"]
    if verdict == "not run" and line["reason"] != "no run yet":
        verdict += f": {_short(line['reason'])}"
    yield name, line["metric"], printed, figure(paper), _runs(paper), difference, verdict
    for protocol, ours in line["ours"].items():
        if protocol != under:
            yield f" under {protocol}", line["metric"], "", figure(ours), _runs(ours), "", ""


def _runs(ours: Mapping[str, Any] | None) -> str:
    return str(len(ours["values"])) if ours else "-"


def _short(reason: str) -> str:
    """What stands in the table of a reason; all of it stands below."""
    return reason.partition(":")[0] if ":" in reason else reason.partition(",")[0]


def _print_beside(console: Console, record: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the runs of these lines that no printed number of the record belongs to."""
    keys = {line["key"] for line in shown}
    found = list(_beside(record, [run for run in record["runs"] if run["key"] in keys]))
    if not found:
        return
    under = " and ".join(sorted({protocol for protocol, *_ in found}))
    _say(console, f"from the same first stages, of test, protocol {under}, no number in print:")
    columns = _columns(record)
    table = _table("row", *columns, "seeds")
    for column in table.columns[1:]:
        column.justify = "right"
    for section, inside in groupby(found, key=lambda row: row[1]):
        table.add_row(section, style="bold")
        for _, _, name, *cells in inside:
            table.add_row(f" {name}", *cells)
    console.print(table)


def _beside(record: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """(protocol, run, row, a cell for each group, seeds) of each row that has no line, run by run."""
    named: dict[str, tuple[str, set[str]]] = {}
    for line in record["lines"]:
        if line["key"]:
            where = f"{line['section']}, {line['recipe'].split('/')[1]}"
            named.setdefault(line["key"], (where, set()))[1].add(line["method"])
    for run in runs:
        section, methods = named[run["key"]]
        names = dict.fromkeys(name for seed in run["seeds"] for name in seed["rows"])
        for name in (name for name in names if name.partition(",")[0] not in methods):
            there = [seed["rows"][name] for seed in run["seeds"] if name in seed["rows"]]
            protocol = run["seeds"][0]["protocol"]
            cells = (figure(mean_and_std([row.get(column) for row in there])) for column in _columns(record))
            yield (protocol, section, name, *cells, str(len(there)))


def _columns(record: Mapping[str, Any]) -> tuple[str, ...]:
    detection = any(line["metric"].startswith("AP") for line in record["lines"])
    return PRECISIONS if detection else GROUPS


def _notes(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    named = " ".join(cells[0] for line in lines for cells in _cells(line))
    yield from (text for setting, text in SETTINGS.items() if f"({setting})" in named)
    yield from (text for framework, text in FRAMEWORKS.items() if any(line["setting"] == framework for line in lines))
    if any(line["verdict"].startswith(("pass", "off")) for line in lines):
        yield PASS
    if any(line["split"] == "very likely val" for line in lines):
        yield "printed of Kang et al. 2020 is very likely of val, ours is of test"
    if any(line["under"] == "clean" for line in lines):
        yield "printed of val, as ours is: under protocol clean, whose epoch is chosen on it"
    for reason in dict.fromkeys(line["reason"] for line in lines if line["verdict"] == "not run"):
        count = sum(line["reason"] == reason and line["verdict"] == "not run" for line in lines)
        yield f"not run, {_count(count, 'number')}: {reason}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _section(run: Mapping[str, Any]) -> str:
    data, changed = run["recipe"].split("/")[0], dict(run["changed"])
    ratio = changed.pop("data.imbalance_ratio", None)
    others = [f"{key}={value}" for key, value in changed.items()]
    return ", ".join([data, *([f"ratio {ratio:g}"] if ratio else []), *others])


def _begun(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each run of which something is there that is not done."""
    for run in runs:
        rows = [f"seed {seed} lacks rows" for seed in run["finished"] if seed in run["left"]]
        begun = [f"seed {seed} is at epoch {epoch}" for seed, epoch in run["begun"].items()]
        if rows or begun:
            yield f"{run['recipe']}: {', '.join([*rows, *begun])}"


def _table(*headers: str) -> Table:
    """A table whose first column gives way where the terminal is narrow."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, header in enumerate(headers):
        table.add_column(header, no_wrap=number > 0, overflow="fold")
    return table


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
