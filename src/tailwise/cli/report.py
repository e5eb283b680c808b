"""`tailwise report`."""

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tailwise import checks
from tailwise.cli.options import DataDir, Device, Json
from tailwise.cli.output import print_json, warnings_as_notes


def report(
    *run_folders: Annotated[Path, Parameter(help="Run folders, or folders that hold several runs.")],
    out: Annotated[Path, Parameter(name=["--out", "-o"], help="The file to write.")] = Path("report.html"),
    data_dir: DataDir = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Explain runs in one HTML file: results, a slider for alpha or norm power, classes, changed predictions, settings.

    The file needs no network and opens from disk. At each value of its slider it shows what `tailwise evaluate`
    prints.
    """
    if not run_folders:
        raise checks.InputError("report: expected at least one run folder, got none")
    if out.suffix.lower() not in (".html", ".htm"):
        raise checks.InputError(f"out: expected a name that ends in .html, got {out}")
    from tailwise.experiments import measure
    from tailwise.experiments.runs import open_runs
    from tailwise.figures import Source
    from tailwise.figures.report import write_report

    opened = [run for folder in run_folders for run in open_runs(folder)]
    sources = [Source(run, lambda seed: measure.open_trained(seed, data_dir, device=device)) for run in opened]
    with warnings_as_notes():
        write_report(sources, out, shlex.join(["tailwise", "report", *map(str, run_folders), "--out", str(out)]))
    if json:
        print_json({"runs": [str(run.path) for run in opened], "wrote": str(out)})
        return
    print(f"wrote {out}")
