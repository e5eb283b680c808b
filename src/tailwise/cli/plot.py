"""`tailwise plot`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tailwise import checks
from tailwise.cli.options import DataDir, Device, Json
from tailwise.cli.output import print_json, warnings_as_notes

FIGURES = (
    "alpha",
    "norm-power",
    "weight-norms",
    "feature-norms",
    "head-cosine",
    "confusion",
    "reliability",
    "sampling",
    "classifiers-by-sampler",
    "one-dimensional",
)


def plot(
    *run_folders: Annotated[Path, Parameter(help="Run folders, or folders that hold several; none: one-dimensional.")],
    figure: Annotated[str, Parameter(help=f"One of {', '.join(FIGURES)}.")],
    out: Annotated[
        Path | None,
        Parameter(help="NAME.png, NAME.svg, or NAME for both (default: figures/FIGURE in the first folder)."),
    ] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Draw a figure of the papers from trained runs, as PNG and SVG: means over seeds, classes from head to tail.

    Needs matplotlib: pip install 'tailwise[plots]'.
    """
    checks.choice("figure", figure, FIGURES)
    from tailwise.report.figures import need_matplotlib

    need_matplotlib()
    from tailwise.recipes import figures, measure
    from tailwise.recipes.runs import open_runs

    if out is not None:
        figures.check_ending(out)
    opened = [run for folder in run_folders for run in open_runs(folder)]
    sources = [figures.Source(run, lambda seed: measure.open_trained(seed, data_dir, device=device)) for run in opened]
    with warnings_as_notes():
        data = figures.figure_data(figure, sources)
        wrote = figures.write_figure(data, out or figures.default_place(figure, run_folders))
    if json:
        print_json({"figure": figure, "title": data.title, "caption": data.caption, "wrote": [str(p) for p in wrote]})
        return
    print(f"{data.title}: {data.caption}")
    for path in wrote:
        print(f"wrote {path}")
