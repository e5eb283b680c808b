"""`tailwise reproduce`."""

import time
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from tailwise import checks
from tailwise.cli.options import DataDir, Device, Json
from tailwise.cli.output import Output, print_json, warnings_as_notes


def reproduce(
    table: Annotated[str | None, Parameter(help="A table such as tang-3 or kang-1; none lists them all.")] = None,
    /,
    *settings: Annotated[
        str,
        Parameter(
            help="Overrides; with any but compute.*, data.kept, data.workers, detector.framework it is not what the "
            "paper trained."
        ),
    ],
    rows: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            metavar="ROW",
            help="Only these: tde, 'cifar100-lt-50/*', 'Focal Loss'. More than one: --rows a --rows b.",
        ),
    ] = None,
    seeds: Annotated[int, Parameter(help="Training seeds 0 to N-1, all on one subset.")] = 3,
    subset_seed: Annotated[int, Parameter(help="Which subset; the authors' own is not known.")] = 0,
    protocol: Annotated[
        list[Literal["paper", "clean", "legacy"]] | None,
        Parameter(negative="", help="What to train under (default: paper, which printed numbers are compared under)."),
    ] = None,
    budget: Annotated[
        str | None, Parameter(help="When to stop, such as 45m or 2h; the same command goes on from there.")
    ] = None,
    dry_run: Annotated[bool, Parameter(negative="", help="Print the plan and the estimates, train nothing.")] = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    out: Annotated[Path, Parameter(help="Where runs lie; those of `tailwise train` below it count, too.")] = Path(
        "runs/reproduce"
    ),
    record: Annotated[
        Path | None, Parameter(help="A JSON file to keep the result in, seeds of earlier calls included.")
    ] = None,
    json: Json = False,
) -> None:
    """Train what a table of the papers needs, and print its numbers beside ours."""
    from tailwise.reproduction.targets import TABLES, about

    if table is None:
        if json:
            print_json({"tables": {name: about(name) for name in TABLES}})
            return
        from tailwise.report.reproduction import print_tables

        print_tables(Output(), {name: about(name) for name in TABLES})
        return
    checks.choice("table", table, TABLES)

    from tailwise import ranks

    if ranks.launched():
        raise checks.InputError(
            "reproduce: expected a single process, got torchrun; train with `tailwise train` below --out, "
            "and reproduce finds what is there"
        )

    from tailwise.report.progress import watching
    from tailwise.report.reproduction import print_plan, print_reproduction
    from tailwise.reproduction.estimate import seconds_of
    from tailwise.reproduction.plan import Request, plan, plan_record
    from tailwise.reproduction.reproduce import Recorded, work

    until = None if budget is None else time.monotonic() + seconds_of(budget)  # planning times steps, too
    asked = Request(
        table=table,
        out=out,
        rows=tuple(rows or ()),
        seeds=seeds,
        subset_seed=subset_seed,
        protocols=tuple(protocol or ("paper",)),
        settings=settings,
        data_dir=data_dir,
        device=device,
    )
    notes = Console(stderr=True, quiet=json)
    with warnings_as_notes():
        made = plan(asked, lambda line: notes.print(line, highlight=False, markup=False))
        if not (json and not dry_run):
            if json:
                print_json(plan_record(made))
            else:
                print_plan(Output(), plan_record(made))
                print()
        if dry_run:
            return
        recorded = Recorded(made, record)
        with watching(notes) as shown:
            went_wrong = work(made, shown, None if until is None else until - time.monotonic(), recorded.write)
        result = recorded.write()
    if json:
        print_json({**result, "notes": list(went_wrong)})
        return
    print_reproduction(Output(), result, asked_alone=True)
    for line in (*went_wrong, *(f"wrote {path}" for path in recorded.paths)):
        Output().print(line, highlight=False, markup=False, soft_wrap=True)
