"""The rows of runs side by side."""

from pathlib import Path

from tailwise import checks
from tailwise.experiments import runs
from tailwise.report.page import Results
from tailwise.report.summary import compared


def compare(*run_folders: Path | str) -> Results:
    """The result rows of runs side by side, a table in a terminal and in a notebook.

    Args:
        run_folders: run folders, or folders that hold several runs.

    Raises:
        InputError: none given, no run in one of them.
    """
    opened = [run for folder in run_folders for run in runs.open_runs(Path(folder))]
    if not opened:
        raise checks.InputError("compare: expected at least one run folder, got none")
    return Results(compared({str(run.path): [seed.results() for seed in run.seeds] for run in opened}))
