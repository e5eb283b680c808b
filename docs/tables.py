"""Write the result tables of README.md and docs/*.md from the records in results/, never by hand.

    python docs/tables.py            # rewrite them
    python docs/tables.py --check    # exit 1 and name the pages that would change

A table stands in the fenced block below a line `<!-- table: NAME -->`, and results/NAME.json is what the command
printed with --json, or `benchmarks/scale.py`. The table scale-plan has no record: it is arithmetic.
"""

import io
import json
import re
import sys
from pathlib import Path

from rich.console import Console

from tailwise.report.table import print_record, print_sweep

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import curves  # noqa: E402  # after the path to it
import oltr_tde  # noqa: E402  # after the path to it
import scale_plan  # noqa: E402  # after the path to it
import speed  # noqa: E402  # after the path to it

TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n```text\n).*?(^```$)", flags=re.M | re.S)


def rendered(name: str) -> str:
    """The table that the command printed, as text."""
    if name == "scale-plan":
        return scale_plan.table(scale_plan.Plan())
    record = json.loads((ROOT / f"results/{name}.json").read_text())
    if name in ("speed", "oltr-tde"):
        return {"speed": speed, "oltr-tde": oltr_tde}[name].table(record)
    if "curves" in record:
        return curves.table(record)
    out = io.StringIO()
    show = print_sweep if "strength" in record else print_record
    show(Console(file=out, width=120), record)
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
