"""`tailwise export`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tailwise.cli.options import POWERS, AlphaText, DataDir, Json, Method, PowerText, RunFolder, Seed, strength_of
from tailwise.cli.output import print_json, warnings_as_notes


def export(
    run: RunFolder,
    /,
    *,
    format: Annotated[  # the option's name
        Literal["onnx", "torch-export", "safetensors"],
        Parameter(help="onnx: for onnxruntime. torch-export: for torch alone. safetensors: for tailwise and the hub."),
    ] = "safetensors",
    method: Method = None,
    alpha: AlphaText = None,
    power: PowerText = None,
    seed: Seed = None,
    out: Annotated[Path | None, Parameter(help="A new folder (default: exported/METHOD-FORMAT in the seed's).")] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Write a run's adjusted model as one file of plain tensors, with a model card: from images as bytes to logits."""
    from tailwise.experiments.runs import open_run
    from tailwise.recipes.methods import deployed_method

    strengths = strength_of("alpha", alpha, ("auto",)), strength_of("power", power, POWERS)
    opened = open_run(run)
    given = {"alpha": alpha is not None, "power": power is not None}
    chosen = deployed_method(opened.rows, opened.recipe.classifier.name, method, **given)
    folder = opened.seed(seed)

    from tailwise.deployment import deploy
    from tailwise.experiments import measure
    from tailwise.experiments.trained import Asked

    with warnings_as_notes():
        wrote = deploy.export(measure.open_trained(folder, data_dir), chosen, Asked(*strengths), format, out)
    if json:
        print_json({"method": chosen, "seed": folder.seed, "wrote": [str(wrote)]})
    else:
        print(f"wrote {wrote}: {chosen} of seed {folder.seed}, and its model card")
