"""`tailwise data`: prepare, audit."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console

from tailwise import checks
from tailwise.cli.options import DataDir, Json
from tailwise.cli.output import Output, print_json

data = App(name="data", help="Verify data sets, make their splits, look at their tails.")

OnBad = Literal["error", "skip"]
ON_BAD_HELP = "what a row or file that will not do means: an error, or leave it out, counted and listed."
Root = Annotated[Path | None, Parameter(help="Of a table: the folder that its paths start from (default: its own).")]
PathColumn = Annotated[str | None, Parameter(help="Of a table (default: path).")]
LabelColumn = Annotated[str | None, Parameter(help="Of a table or data set (default: label).")]
SplitColumn = Annotated[str | None, Parameter(help="Of a table (default: split, where there is one).")]
DECODE_HELP = "Decode every image in full, which finds truncated ones; otherwise their first bytes are looked at."


@data.command
def prepare(
    name: Annotated[
        str, Parameter(help="imagenet-lt, places-lt, inaturalist-2018, cifar10, cifar100, lvis-v0.5, lvis-v1 or own.")
    ],
    /,
    *,
    data_dir: Annotated[Path, Parameter(help="Where its files lie, or are to lie; of own: the folder or table.")],
    decode: Annotated[bool, Parameter(negative="", help=DECODE_HELP)] = False,
    on_bad: Annotated[OnBad, Parameter(help=f"Not of CIFAR and LVIS: {ON_BAD_HELP}")] = "error",
    download: Annotated[bool, Parameter(help="Whether CIFAR may be downloaded.")] = True,
    splits: Annotated[Path | None, Parameter(help="Of own: where drawn splits are stored.")] = None,
    redraw: Annotated[bool, Parameter(negative="", help="Of own: draw splits anew although some are stored.")] = False,
    root: Root = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    json: Json = False,
) -> None:
    """Say what to download from where, verify what is there, and store the splits to train on.

    Exits with 2 while something is missing, broken, or not as published.
    """
    from tailwise.data.preparing import prepare as prepared
    from tailwise.report.data import print_prepared
    from tailwise.report.progress import counting

    with counting(Console(stderr=True, quiet=json), "images") as progress:
        state = prepared(
            name,
            data_dir,
            decode=decode,
            on_bad=on_bad,
            download=download,
            splits=splits,
            redraw=redraw,
            table={
                "root": root,
                "path_column": path_column,
                "label_column": label_column,
                "split_column": split_column,
            },
            progress=progress,
        )
    if json:
        print_json(state.record())
    else:
        print_prepared(Output(), state.record())
    if not state.ready:
        raise checks.InputError(f"{name}: not ready to be trained on")


@data.command
def audit(
    name: Annotated[str, Parameter(help="Your own data (a folder, a table, shards), or a benchmark that is prepared.")],
    /,
    *,
    data_dir: DataDir = None,
    root: Root = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    on_bad: Annotated[OnBad, Parameter(help=f"Of your own data: {ON_BAD_HELP}")] = "error",
    duplicates: Annotated[bool, Parameter(help="Whether to read every image and look for duplicates.")] = True,
    out: Annotated[
        Path | None, Parameter(help="Draw the curve of images per class: NAME.png, NAME.svg, or both.")
    ] = None,
    json: Json = False,
) -> None:
    """How long the tail is, which images are in two splits, which classes are too small, what to begin with.

    Nothing is written but the figure that --out asks for, which needs matplotlib (extra `plots`).
    """
    from tailwise.data.audits import audited
    from tailwise.figures.audits import draw_counts
    from tailwise.report.data import print_audit
    from tailwise.report.progress import counting

    table = {"root": root, "path_column": path_column, "label_column": label_column, "split_column": split_column}
    with counting(Console(stderr=True, quiet=json), "images") as progress:
        record = audited(name, data_dir, table, on_bad=on_bad, compare=duplicates, progress=progress)
    wrote = [] if out is None else draw_counts(record, out)
    if json:
        print_json(record | {"wrote": [str(path) for path in wrote]})
    else:
        print_audit(Output(), record, [f"wrote {path}" for path in wrote])
