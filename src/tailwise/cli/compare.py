"""`tailwise compare`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tailwise.cli.options import Json, Metrics
from tailwise.cli.output import show


def compare(
    *run_folders: Annotated[Path, Parameter(help="Run folders, or folders that hold several runs.")],
    metrics: Metrics = False,
    json: Json = False,
) -> None:
    """Put runs side by side; differences are paired over the seeds that share a subset."""
    from tailwise.experiments.compare import compare as side_by_side

    show(side_by_side(*run_folders).record, json, metrics=metrics)
