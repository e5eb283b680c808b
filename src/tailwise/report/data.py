"""What is known about a data set, for a terminal: whether it is ready, how long its tail is."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

SHOWN = 10  # of many files
LINES, WIDTH, LONGEST = 20, 40, 24  # of the bars; of a class name


DUPLICATES = {
    "same bytes": "pairs of the same bytes in two splits or classes",
    "look alike": "pairs that look alike in two splits",
}


def print_prepared(console: Console, record: dict[str, Any]) -> None:
    """The record of `tailwise.data.Prepared`: what agrees with what is published, what is missing, what to do."""

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    where = f" in {record['root']}" if record["root"] else ""
    say(f"{record['name']}{where}: {'ready' if record['ready'] else 'not ready'}")
    if record["checks"]:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for column, justify in (("", "left"), ("published", "right"), ("here", "right"), ("", "left")):
            table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]  # one of rich's words
        for check in record["checks"]:
            hashed = len(check["expected"]) >= 32
            expected, found = (check[key][:12] if hashed else check[key] for key in ("expected", "found"))
            table.add_row(check["what"], expected, found, "" if check["ok"] else "differs")
        console.print(table)
    if record["images"]:
        say("images: " + ", ".join(f"{part} {number:,}" for part, number in record["images"].items()))
    for kind in ("missing", "unreadable"):
        _listed(say, kind, record[kind])
    rows = record["skipped"][: len(record["skipped"]) - len(record["missing"]) - len(record["unreadable"])]
    _listed(say, "left out", rows)
    _passed_over(say, record["passed_over"])
    for number, need in enumerate(record["needs"], 1):
        say(f"{number}. {need['what']}")
        for word, key in (("from", "page"), ("terms", "terms"), ("to", "place")):
            say(f"   {word:6}{need[key]}")
    if record["wrote"]:
        say(f"splits: {record['wrote']}")


def print_audit(console: Console, record: dict[str, Any], lines: Sequence[str] = ()) -> None:
    """The record of `tailwise.data.audit`: the tail as bars, its numbers, what to look at, what to begin with."""

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    images = ", ".join(f"{part} {number:,}" for part, number in record["images"].items())
    say(f"{record['name']}: {record['classes']:,} classes; images: {images}")
    _passed_over(say, record["passed_over"])
    _listed(say, "left out", record["left_out"])
    say("")
    for line in bars(record["counts"], record["class_names"]):
        say(line)
    say("")
    groups = " / ".join(f"{number:,}" for number in record["group_sizes"].values())
    say(f"imbalance ratio {record['imbalance_ratio']:,.4g}, Gini {record['gini']:.3f}")
    say(f"classes with many (> 100) / medium / few (< 20) training images: {groups}")
    if record["too_small"]:
        some = ", ".join(f"{one['class']} ({one['images']})" for one in record["too_small"][:SHOWN])
        more = ", ..." if len(record["too_small"]) > SHOWN else ""
        number = len(record["too_small"])
        classes = f"{number:,} class{'es' * (number > 1)}"
        say(f"too small to be validated and tested, {classes} (with images): {some}{more}")
    if record["duplicates"] is None:
        say("duplicates: not looked for")
    for kind, what in DUPLICATES.items() if record["duplicates"] is not None else ():
        pairs = [_pair(pair) for pair in record["duplicates"] if pair["kind"] == kind]
        _listed(say, what, pairs)
        if not pairs:
            say(f"no {what}")
    _listed(say, "unreadable", record["unreadable"] or [])
    suits = record["suits"]
    say(f"to begin with: {' '.join([suits['recipe'], *suits['settings']])}")
    for why in suits["why"]:
        say(f"  {why}")
    for line in lines:
        say(line)


def bars(counts: Sequence[int], class_names: Sequence[str]) -> list[str]:
    """Training images per class from head to tail, a line for each of up to 20 classes or ranges of them, logarithmic.

    >>> for line in bars([1, 100, 10], ["rare", "common", "known"]): print(line)
    common  100  ████████████████████████████████████████
    known    10  ████████████████████
    rare      1  █
    """
    order = sorted(range(len(counts)), key=lambda c: (-counts[c], c))
    ends = [round(i * len(order) / LINES) for i in range(LINES + 1)] if len(order) > LINES else range(len(order) + 1)
    ranges = [order[a:b] for a, b in itertools.pairwise(ends)]
    if len(order) > LINES:
        names = [f"{a + 1}-{b}" for a, b in itertools.pairwise(ends)]
        numbers = [f"{counts[part[0]]:,}..{counts[part[-1]]:,}" for part in ranges]
    else:
        names = [class_names[part[0]][:LONGEST] for part in ranges]
        numbers = [f"{counts[part[0]]:,}" for part in ranges]
    middle = [sorted(counts[c] for c in part)[len(part) // 2] for part in ranges]
    # 1 image is one block, the largest class is all of them, no image is none
    lengths = [
        round(1 + (WIDTH - 1) * math.log(max(n, 1)) / max(math.log(max(middle)), 1e-9)) if n else 0 for n in middle
    ]
    left, right = max(map(len, names)), max(map(len, numbers))
    return [f"{a:<{left}}  {b:>{right}}  {'█' * n}" for a, b, n in zip(names, numbers, lengths, strict=True)]


def _pair(pair: dict[str, Any]) -> str:
    (one, other), (part, other_part) = pair["ids"], pair["parts"]
    other_class = "" if pair["labels"][0] == pair["labels"][1] else ", of another class"
    return f"{one} in {part}, {other} in {other_part}{other_class}"


def _passed_over(say: Any, endings: Mapping[str, int]) -> None:
    if endings:
        named = [f"{ending or 'without ending'} {number:,}" for ending, number in endings.items()]
        more = f", and {len(named) - SHOWN:,} more endings" if len(named) > SHOWN else ""
        say(
            f"passed over, no images by their ending or in no class's folder: {', '.join(named[:SHOWN])}{more}; "
            f"{sum(endings.values()):,} in all"
        )


def _listed(say: Any, what: str, lines: Sequence[str]) -> None:
    if lines:
        say(f"{len(lines):,} {what}:")
        for line in lines[:SHOWN]:
            say(f"  {line}")
        if len(lines) > SHOWN:
            say(f"  and {len(lines) - SHOWN:,} more; --json lists all")
