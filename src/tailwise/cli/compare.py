"""`tailwise compare`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tailwise import checks
from tailwise.cli.options import Json
from tailwise.cli.output import show


def compare(
    *run_folders: Annotated[Path, Parameter(help="Run folders, or folders that hold several runs.")],
    json: Json = False,
) -> None:
    """Put runs side by side; differences are paired over the seeds that share a subset."""
    if not run_folders:
        raise checks.InputError("compare: expected at least one run folder, got none")
    from tailwise.recipes.runs import open_runs
    from tailwise.report.summary import compared

    opened = [run for folder in run_folders for run in open_runs(folder)]
    results = {str(run.path): [seed.results() for seed in run.seeds] for run in opened}
    show(compared(results), json)
