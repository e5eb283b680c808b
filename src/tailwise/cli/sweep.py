"""`tailwise sweep`."""

from typing import Annotated

from cyclopts import Parameter

from tailwise.cli.options import DataDir, Device, Json, Method, Metric, RunFolder
from tailwise.cli.output import Output, command_line, print_json, warnings_as_notes


def sweep(
    run: RunFolder,
    /,
    *,
    method: Method = None,
    metric: Metric = None,
    highest: Annotated[float | None, Parameter(help="Last value of the grid (default: alpha 5, norm power 2).")] = None,
    step: Annotated[float, Parameter(help="From one value to the next.")] = 0.1,
    data_dir: DataDir = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Accuracy by group at every alpha (Tang et al., Fig. 4) or norm power (Kang et al., Fig. 2); stores the curve."""
    from tailwise.experiments.runs import open_run
    from tailwise.recipes.methods import checked_adjuster, sweepable

    opened = open_run(run)
    kind = opened.recipe.classifier.name
    chosen = checked_adjuster(kind, method or sweepable(kind))

    from tailwise.experiments import measure
    from tailwise.experiments.trained import Asked
    from tailwise.report.summary import swept
    from tailwise.report.table import print_sweep

    values, asked = measure.grid(chosen, highest, step), Asked(metric=metric)
    with warnings_as_notes():
        done = [
            measure.sweep_strength(measure.open_trained(seed, data_dir, device=device), chosen, asked, values)
            for seed in opened.seeds
        ]
    record = swept(opened.recipe.name, [seed.results() for seed in opened.seeds], [curve for curve, _ in done])
    command = command_line("sweep", run, method=method, metric=metric, highest=highest, step=step)
    record |= {"command": command, "wrote": [str(path) for _, path in done]}
    if json:
        print_json(record)
    else:
        print_sweep(Output(), record)
