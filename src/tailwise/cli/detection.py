"""What `train` and `evaluate` do for a detector."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tailwise import checks
from tailwise.cli.output import Output, of_seeds, print_json, warnings_as_notes
from tailwise.cli.training import train_into_folder


def train_detection(name: str, settings: Sequence[str], *, json: bool, **how: Any) -> None:
    """Train a detection recipe or suite and print one table; the terms are those of `train_into_folder`."""
    from tailwise.recipes.detection_catalog import find_detection
    from tailwise.recipes.overrides import override

    chosen = override(find_detection(name), settings)

    from tailwise.experiments.detection_experiment import train_detectors
    from tailwise.report.detection import combined_precision

    done = train_into_folder(train_detectors, chosen, name, json=json, **how)
    if done is None:
        return
    trained, folder = done
    results = {str(run.path): [seed.results() for seed in run.seeds] for run in trained}
    command = shlex.join(["tailwise", "train", name, *settings, "--seeds", str(len(trained[0].seeds))])
    record = combined_precision(name, results) | {"command": command, "wrote": [str(folder)]}
    _show(
        record,
        json,
        [
            f"wrote {folder}: checkpoints and results, {of_seeds(len(trained), len(trained[0].seeds))}",
            f"next: tailwise detect IMAGE --run {trained[-1].path}",
        ],
    )


def evaluate_detection(
    run: Path,
    *,
    method: str | None,
    alpha: float | None,
    detections: Path | None,
    data_dir: Path | None,
    device: str,
    json: bool,
) -> None:
    """Measure a trained detector again; the terms are those of `evaluate`."""
    from tailwise.experiments.detection_runs import open_detection_run

    opened = open_detection_run(run)
    if method is not None:
        checks.choice("method", method, opened.recipe.rows)
    rows = opened.recipe.rows if method is None else (method,)

    from tailwise.experiments.detection_experiment import measured_again
    from tailwise.recipes.build_detection import inference_of
    from tailwise.report.detection import combined_precision

    if alpha is not None and all(inference_of(opened.recipe, row).alpha is None for row in rows):
        raise checks.InputError(f"alpha: expected a row with TDE, got {', '.join(rows)} of {opened.recipe.name}")
    results, wrote = [], []
    with warnings_as_notes():
        for seed in opened.seeds:
            result, found, split = measured_again(seed, rows, alpha=alpha, data_dir=data_dir, device=device)
            results.append(result)
            if detections is not None:
                wrote += write_all(detections / f"seed-{seed.seed}", found, split.truth, "detections")
    _show(
        combined_precision(opened.recipe.name, {str(run): results}) | {"wrote": wrote},
        json,
        [f"wrote {path}" for path in wrote],
    )


def write_all(folder: Path, found: dict[str, Any], truth: Any, argument: str) -> list[str]:
    """FOLDER/ROW.json for each row, as servers take it; the paths. argument: what the folder was given by."""
    from tailwise.detect import write_results

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for row, answers in found.items():
            write_results(folder / f"{row}.json", answers, truth)
    except OSError as error:
        raise checks.InputError(f"{argument}: cannot write to {folder} ({error.strerror})") from error
    return [str(folder / f"{row}.json") for row in found]


def _show(record: dict[str, Any], json: bool, lines: Sequence[str]) -> None:
    from tailwise.report.detection import print_precision

    if json:
        print_json(record)
    else:
        print_precision(Output(), record, lines)
