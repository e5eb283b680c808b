"""`tailwise features`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tailwise.cli.options import DataDir, Device, Json
from tailwise.cli.output import print_json, warnings_as_notes


def features(
    name: Annotated[str, Parameter(help="Whose images: own, imagenet-lt, places-lt, inaturalist-2018, ...")],
    /,
    *settings: Annotated[
        str, Parameter(help="Such as data.path=photos backbone=timm:vit_base_patch16_clip_224.openai.")
    ],
    out: Annotated[Path, Parameter(help="A new folder, with a store for each of train, val and test.")],
    data_dir: DataDir = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Write what a pretrained backbone makes of every image, for the estimator or any program.

    To train classifiers on such features and see the table, `tailwise train NAME backbone=... backbone.frozen=true`.
    """
    from tailwise.recipes.catalog import find
    from tailwise.recipes.overrides import override

    recipe = override(find(f"{name}/joint"), ["backbone.pretrained=true", *settings])[0]

    from tailwise.experiments.features import write_features

    with warnings_as_notes():
        written = write_features(recipe, out, data_dir, device)
    if json:
        print_json(written)
        return
    for part, shape in written["shapes"].items():
        print(f"{out / part}: {shape[0]} images, {shape[1]} features")
