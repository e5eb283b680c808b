"""`tailwise plot`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tailwise import checks
from tailwise.cli.options import POWERS, AlphaText, DataDir, Device, Json, Metric, PowerText, strength_of
from tailwise.cli.output import print_json, warnings_as_notes

FIGURES = (
    "alpha",
    "norm-power",
    "momentum",
    "weight-norms",
    "feature-norms",
    "head-cosine",
    "confusion",
    "reliability",
    "grad-cam",
    "sampling",
    "classifiers-by-sampler",
    "backbones",
    "decision-regions",
    "one-dimensional",
)


def plot(
    *run_folders: Annotated[
        Path, Parameter(help="Run folders, or folders that hold several; none: decision-regions, one-dimensional.")
    ],
    figure: Annotated[str, Parameter(help=f"One of {', '.join(FIGURES)}.")],
    method: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            help="Rows of weight-norms, confusion, reliability, grad-cam; several: --method joint --method lws.",
        ),
    ] = None,
    alpha: AlphaText = None,
    power: PowerText = None,
    metric: Metric = None,
    seed: Annotated[int | None, Parameter(help="One seed alone (default: all; of grad-cam the first).")] = None,
    out: Annotated[
        Path | None,
        Parameter(help="NAME.png, NAME.svg, or NAME for both (default: figures/FIGURE in the first folder)."),
    ] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Draw a figure of the papers from trained runs, as PNG and SVG: means over seeds, classes from head to tail.

    Needs matplotlib (extra `plots`); grad-cam needs captum, too (extra `explain`).
    """
    checks.choice("figure", figure, FIGURES)
    strengths = strength_of("alpha", alpha, ("auto",)), strength_of("power", power, POWERS)
    from tailwise.report.figures import need_matplotlib

    need_matplotlib()
    from tailwise import figures
    from tailwise.experiments import measure
    from tailwise.experiments.runs import open_runs
    from tailwise.experiments.trained import Asked

    if out is not None:
        figures.check_ending(out)
    opened = [run for folder in run_folders for run in open_runs(folder)]
    if seed is not None:
        opened = [replace(run, seeds=(run.seed(seed),)) for run in opened]
    sources = [figures.Source(run, lambda one: measure.open_trained(one, data_dir, device=device)) for run in opened]
    with warnings_as_notes():
        data = figures.figure_data(figure, sources, method or (), Asked(*strengths, metric))
        wrote = figures.write_figure(data, out or figures.default_place(figure, run_folders))
    if json:
        print_json({"figure": figure, "title": data.title, "caption": data.caption, "wrote": [str(p) for p in wrote]})
        return
    print(f"{data.title}: {data.caption}")
    for path in wrote:
        print(f"wrote {path}")
