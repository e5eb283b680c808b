"""Write the result tables of README.md and docs/*.md from the records in results/, never by hand.

    python docs/tables.py            # rewrite them
    python docs/tables.py --check    # exit 1 and name the pages that would change

A table stands in the fenced block below a line `<!-- table: NAME -->`, and results/NAME.json is what the command
printed with --json, or what a script of benchmarks/ wrote. The table scale-plan has no record: it is arithmetic.
"""

import io
import json
import re
import sys
from pathlib import Path

from rich.console import Console

from tailwise.report.data import print_audit
from tailwise.report.detection import print_precision
from tailwise.report.reproduction import print_reproduction
from tailwise.report.table import print_record, print_sweep

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import adamw  # noqa: E402  # after the path to it
import cifar_subsets  # noqa: E402  # after the path to it
import claims  # noqa: E402  # after the path to it
import combination  # noqa: E402  # after the path to it
import curves  # noqa: E402  # after the path to it
import detection  # noqa: E402  # after the path to it
import detection_ap  # noqa: E402  # after the path to it
import detection_strength  # noqa: E402  # after the path to it
import estimator  # noqa: E402  # after the path to it
import loading  # noqa: E402  # after the path to it
import oltr_tde  # noqa: E402  # after the path to it
import own_data  # noqa: E402  # after the path to it
import report  # noqa: E402  # after the path to it
import scale_plan  # noqa: E402  # after the path to it
import shift  # noqa: E402  # after the path to it
import speed  # noqa: E402  # after the path to it

TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n```text\n).*?(^```$)", flags=re.M | re.S)

OF_SCRIPTS = {
    "adamw": adamw.table,
    "combination": combination.table,
    "detection-ap": detection_ap.table,
    "detection-cpu": detection.table,
    "digit-scenes-lt-strength": detection_strength.table,
    "estimator": estimator.table,
    "oltr-tde": oltr_tde.table,
    "report": report.table,
    "shift": shift.table,
    "speed": speed.table,
}


def rendered(name: str) -> str:
    """The table that the command printed, as text."""
    if name == "scale-plan":
        return scale_plan.table(scale_plan.Plan())
    if name in ("estimator-cost", "estimator-logistic"):
        table = estimator.cost_table if name == "estimator-cost" else estimator.logistic_table
        return table(json.loads((ROOT / "results/estimator.json").read_text()))
    record = json.loads((ROOT / f"results/{name}.json").read_text())
    if name in OF_SCRIPTS:
        return OF_SCRIPTS[name](record)
    if "subsets" in record:
        return cifar_subsets.table(record)
    if "own_data" in record:
        return own_data.table(record)
    if "by_workers" in record:
        return loading.table(record)
    if "curves" in record:
        return curves.table(record)
    if "claims" in record:
        return claims.table(record)
    out = io.StringIO()
    if record.get("format", "").startswith("tailwise-reproduction"):
        print_reproduction(Console(file=out, width=120), record)
        return _stripped(out)
    show = print_sweep if "strength" in record else print_audit if "gini" in record else print_record
    if any("framework" in row for row in record.get("rows", [])):
        show = print_precision
    show(Console(file=out, width=120), record)
    return _stripped(out)


def _stripped(out: io.StringIO) -> str:
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n") + "\n"


def with_tables(page: str) -> str:
    """The page with every table in it rendered anew."""
    return TABLE.sub(lambda found: found[1] + rendered(found[2]) + found[3], page)


def main() -> None:
    """Rewrite the pages, or check them."""
    changed = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = page.read_text()
        after = with_tables(before)
        if after != before:
            changed.append(str(page.relative_to(ROOT)))
            if "--check" not in sys.argv[1:]:
                page.write_text(after)
    if changed:
        print("changed:", ", ".join(changed))
        sys.exit("--check" in sys.argv[1:])


if __name__ == "__main__":
    main()
