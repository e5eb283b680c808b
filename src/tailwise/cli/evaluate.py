"""`tailwise evaluate`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tailwise import checks
from tailwise.cli.detection import evaluate_detection
from tailwise.cli.options import (
    POWERS,
    AlphaText,
    DataDir,
    Device,
    Json,
    Method,
    Metric,
    Metrics,
    PowerText,
    RunFolder,
    strength_of,
)
from tailwise.cli.output import command_line, show, warnings_as_notes


def evaluate(
    run: RunFolder,
    /,
    *,
    method: Method = None,
    alpha: AlphaText = None,
    power: PowerText = None,
    metric: Metric = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    metrics: Metrics = False,
    detections: Annotated[
        Path | None,
        Parameter(help="Of a detector: also write what it found there, as the json that evaluation servers take."),
    ] = None,
    json: Json = False,
) -> None:
    """Measure a trained run again, at any alpha or norm power, from its stored features; a detector from its images."""
    from tailwise.experiments.detection_runs import is_detection
    from tailwise.recipes.methods import METHODS, asked_rows

    if is_detection(run):
        if power is not None or metric is not None or metrics:
            raise checks.InputError("power, metric, metrics: expected none for a detector")
        strength = strength_of("alpha", alpha, ())
        evaluate_detection(
            run, method=method, alpha=strength, detections=detections, data_dir=data_dir, device=device, json=json
        )
        return
    if detections is not None:
        raise checks.InputError(f"detections: expected the run of a detector, got {run}")

    if method is not None:
        checks.choice("method", method, METHODS)
    strengths = strength_of("alpha", alpha, ("auto",)), strength_of("power", power, POWERS)
    from tailwise.experiments.runs import open_run

    opened = open_run(run)
    kind = opened.recipe.classifier.name
    rows = asked_rows(opened.rows, kind, method, alpha=alpha is not None, power=power is not None)
    if metric and not any(METHODS[row].adjust in ("tde", "tau-norm") for row in rows):
        raise checks.InputError(f"metric: expected a method whose strength is chosen, got {', '.join(rows)}")

    from tailwise.experiments import measure
    from tailwise.experiments.trained import Asked
    from tailwise.report.summary import combined

    asked = Asked(*strengths, metric)
    with warnings_as_notes():
        results = [
            measure.measure(measure.open_trained(seed, data_dir, device=device), rows, asked) for seed in opened.seeds
        ]
    command = command_line("evaluate", run, method=method, alpha=alpha, power=power, metric=metric)
    show(combined(opened.recipe.name, {str(run): results}) | {"command": command}, json, metrics=metrics)
