"""`tailwise train`."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tailwise import checks
from tailwise.cli.detection import train_detection
from tailwise.cli.options import DataDir, Device, Json, Seeds, Track
from tailwise.cli.output import of_seeds, show
from tailwise.cli.training import train_into_folder


def train(
    name: Annotated[str, Parameter(help="A recipe (digits-lt/tde) or a suite (digits-lt); see `tailwise recipes`.")],
    /,
    *settings: Annotated[str, Parameter(help="Overrides such as stages.0.epochs=20 or classifier.num_heads=4.")],
    seeds: Seeds = None,
    protocol: Annotated[
        Literal["clean", "paper", "legacy"] | None,
        Parameter(
            help="clean (default): choose on val. paper: published settings. legacy: choose on test, as the authors."
        ),
    ] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    out: Annotated[Path | None, Parameter(help="A new folder for the run (default: runs/NAME).")] = None,
    resume: Annotated[
        bool, Parameter(negative="", help="Go on with the run in --out, or the last of runs/NAME, where it stopped.")
    ] = False,
    save_every: Annotated[float, Parameter(help="Seconds between two snapshots that --resume can go on from.")] = 60.0,
    track: Track = None,
    json: Json = False,
) -> None:
    """Train a recipe, or all recipes of a suite on the same subsets, and print one table."""
    from tailwise.recipes.catalog import RECIPES, SUITES, find
    from tailwise.recipes.detection_catalog import DETECTION_RECIPES, DETECTION_SUITES
    from tailwise.recipes.overrides import override

    checks.choice("recipe", name, [*SUITES, *RECIPES, *DETECTION_SUITES, *DETECTION_RECIPES])
    how: dict[str, Any] = {
        "seeds": seeds,
        "data_dir": data_dir,
        "device": device,
        "out": out,
        "resume": resume,
        "save_every": save_every,
        "track": track or [],
        "json": json,
    }
    if name in DETECTION_SUITES or name in DETECTION_RECIPES:
        if protocol is not None:
            raise checks.InputError(
                f"protocol: expected none for a detector, whose settings are published ones, got {protocol}"
            )
        train_detection(name, settings, **how)
        return
    chosen = override(find(name), [*settings, *([f"protocol={protocol}"] if protocol else [])])

    from tailwise.experiments import experiment
    from tailwise.report.summary import combined

    done = train_into_folder(experiment.train, chosen, name, **how)
    if done is None:
        return
    trained, folder = done
    results = {str(run.path): [seed.results() for seed in run.seeds] for run in trained}
    seeds_there = len(trained[0].seeds)
    asked = [*settings, "--seeds", str(seeds_there), *(["--protocol", protocol] if protocol else [])]
    show(
        combined(name, results) | {"command": shlex.join(["tailwise", "train", name, *asked]), "wrote": [str(folder)]},
        json,
        lines=[
            f"wrote {folder}: checkpoints, features and results, {of_seeds(len(trained), seeds_there)}",
            f"next: tailwise sweep {trained[-1].path}",
        ],
    )
