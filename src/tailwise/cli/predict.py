"""`tailwise predict`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tailwise import checks
from tailwise.cli.options import POWERS, AlphaText, DataDir, Device, Method, PowerText, RunFolder, Seed, strength_of
from tailwise.cli.output import warnings_as_notes


def predict(
    run: RunFolder,
    /,
    *paths: Annotated[Path, Parameter(help="Images, folders of images, or .npz / .safetensors files with `features`.")],
    format: Annotated[Literal["csv", "jsonl"], Parameter(help="A table, or a JSON object per line.")] = "csv",
    top_k: Annotated[int, Parameter(help="How many classes to name, the most probable first.")] = 1,
    method: Method = None,
    alpha: AlphaText = None,
    power: PowerText = None,
    seed: Seed = None,
    out: Annotated[Path | None, Parameter(help="A file (default: standard output).")] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """Name the classes of images or stored features, with probabilities before and after adjustment.

    A file that cannot be read has a line that says why; the others are predicted, and the command exits with 2.
    """
    if not paths:
        raise checks.InputError("paths: expected at least one image, folder or file of features, got none")
    from tailwise.experiments.files import check_place, write_lines
    from tailwise.experiments.runs import open_run
    from tailwise.recipes.methods import deployed_method

    if out is not None:
        check_place(out)
    strengths = strength_of("alpha", alpha, ("auto",)), strength_of("power", power, POWERS)
    opened = open_run(run)
    given = {"alpha": alpha is not None, "power": power is not None}
    chosen = deployed_method(opened.rows, opened.recipe.classifier.name, method, **given)
    folder = opened.seed(seed)

    from tailwise.deployment.predict import Failures, predictions
    from tailwise.experiments import measure
    from tailwise.experiments.trained import Asked
    from tailwise.report.predictions import csv_lines, json_lines

    failures = Failures()
    with warnings_as_notes():
        trained = measure.open_trained(folder, data_dir, device=device)
        records = predictions(trained, chosen, Asked(*strengths), paths, top_k, device, failures)
        lines = csv_lines(records) if format == "csv" else json_lines(records)
        if out is not None:
            write_lines(out, lines)
        else:
            sys.stdout.writelines(lines)
    failures.raise_any()
