"""The command `tailwise`: verbs only. What they do is in `recipes`, how it looks in `report`."""

import json as jsonlib
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from tailwise import checks

app = App(
    name="tailwise",
    help="Long-tailed recognition: train, debias and explain classifiers when a few classes own most of the data.",
    help_epilogue="Start with: tailwise train digits-lt",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)

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
POWERS = ("auto", "train", "learned")

Seeds = Annotated[int | None, Parameter(help="Seeds 0 to N-1; each draws its own subset (default: the recipe's).")]
DataDir = Annotated[Path | None, Parameter(help="Where local data sets lie (default: $TAILWISE_DATA).")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], Parameter(help="Where to compute; auto is a GPU where there is one.")
]
Track = Annotated[
    list[Literal["tensorboard", "wandb", "mlflow"]] | None,
    Parameter(negative="", help="Send every epoch to a tracker, too; more than one: --track wandb --track mlflow."),
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object and nothing else.")]
Method = Annotated[str | None, Parameter(help="A row: linear, tau-norm, ncm, crt, lws, tde, ...; `tailwise recipes`.")]
AlphaText = Annotated[str | None, Parameter(help="Strength of TDE: a number, or auto (chosen on val).")]
PowerText = Annotated[
    str | None,
    Parameter(help="Norm power of tau-norm: a number, auto (chosen on val), train (re-balanced train) or learned."),
]
Metric = Annotated[
    Literal["mean-per-class", "all", "many", "medium", "few", "harmonic-mean", "worst-class"] | None,
    Parameter(help="What strength and epoch are chosen by (default: the recipe's, mean-per-class)."),
]
Seed = Annotated[int | None, Parameter(help="Whose model, where a run has several seeds (default: the first).")]
RunFolder = Annotated[Path, Parameter(help="A run folder, such as runs/digits-lt/tde.")]


@app.command
def recipes(*, json: Json = False) -> None:
    """List the recipes and suites that `train` knows."""
    from tailwise.recipes.catalog import RECIPES, SUITES

    if json:
        _print_json(
            {
                "suites": {name: list(members) for name, members in SUITES.items()},
                "recipes": [recipe.model_dump(mode="json") for recipe in RECIPES.values()],
            }
        )
        return
    from tailwise.report.table import print_recipes

    print_recipes(Console(), [recipe.model_dump() for recipe in RECIPES.values()], SUITES)


@app.command
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
    from tailwise.recipes.catalog import find
    from tailwise.recipes.overrides import override

    chosen = override(find(name), [*settings, *([f"protocol={protocol}"] if protocol else [])])
    numbers = range(checks.whole("seeds", chosen[0].seeds if seeds is None else seeds))

    from tailwise import ranks
    from tailwise.recipes import experiment, runs
    from tailwise.recipes.watch import Together
    from tailwise.report.progress import watching
    from tailwise.report.summary import combined
    from tailwise.report.trackers import trackers

    tracked = trackers(track or [])
    with ranks.joined(), _warnings_as_notes():
        resume = resume or ranks.restarted()
        folder = ranks.agree(runs.last_folder(name, out) if resume else runs.free_folder(name, out))
        if resume and not ranks.restarted():
            runs.check_begun(folder, suite=len(chosen) > 1)
        with watching(Console(stderr=True, quiet=json or not ranks.is_main())) as shown:
            trained = experiment.train(
                chosen,
                list(numbers),
                folder,
                data_dir=data_dir,
                watch=Together(shown, tracked if ranks.is_main() else {}),
                device=device,
                resume=resume,
                save_every=save_every,
            )
        if not ranks.is_main():
            return
    results = {str(run.path): [seed.results() for seed in run.seeds] for run in trained}
    seeds_there = len(trained[0].seeds)
    asked = [*settings, "--seeds", str(seeds_there), *(["--protocol", protocol] if protocol else [])]
    _show(
        combined(name, results) | {"command": shlex.join(["tailwise", "train", name, *asked]), "wrote": [str(folder)]},
        json,
        lines=[
            f"wrote {folder}: checkpoints, features and results, {len(trained)} recipes x {seeds_there} seeds",
            f"next: tailwise sweep {trained[-1].path}",
        ],
    )


@app.command
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
    json: Json = False,
) -> None:
    """Measure a trained run again, at any alpha or norm power, from its stored features."""
    from tailwise.recipes.methods import METHODS, asked_rows

    if method is not None:
        checks.choice("method", method, METHODS)
    strengths = _strength("alpha", alpha, ("auto",)), _strength("power", power, POWERS)
    from tailwise.recipes.runs import open_run

    opened = open_run(run)
    kind = opened.recipe.classifier.name
    rows = asked_rows(opened.rows, kind, method, alpha=alpha is not None, power=power is not None)
    if metric and not any(METHODS[row].adjust in ("tde", "tau-norm") for row in rows):
        raise checks.InputError(f"metric: expected a method whose strength is chosen, got {', '.join(rows)}")

    from tailwise.recipes import measure
    from tailwise.recipes.trained import Asked
    from tailwise.report.summary import combined

    asked = Asked(*strengths, metric)
    with _warnings_as_notes():
        results = [
            measure.measure(measure.open_trained(seed, data_dir, device=device), rows, asked) for seed in opened.seeds
        ]
    _show(combined(opened.recipe.name, {str(run): results}), json)


@app.command
def adjust(
    run: Annotated[Path | None, Parameter(help="A run folder; none with --weights.")] = None,
    /,
    *settings: Annotated[str, Parameter(help="Overrides of what follows training: second.crt.stage.epochs=5.")],
    method: Method = None,
    alpha: AlphaText = None,
    power: PowerText = None,
    metric: Metric = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    track: Track = None,
    weights: Annotated[
        Path | None,
        Parameter(help="Last layer of a plain model, not of a run: weight, bias (.npy, .npz, .safetensors)."),
    ] = None,
    features: Annotated[Path | None, Parameter(help="With --weights: features [N, D].")] = None,
    labels: Annotated[Path | None, Parameter(help="With --weights: their classes [N], whole numbers from 0.")] = None,
    out: Annotated[Path, Parameter(help="With --weights: the file to write.")] = Path("adjusted.safetensors"),
    json: Json = False,
) -> None:
    """Adjust a trained run: choose a strength or train a second stage, write the new classifier beside the old.

    With --weights W --features F --labels Y --method plain|la|tau-norm|lws|crt|ncm|tde|auto it adjusts the last layer
    of any model; --alpha and --power are numbers then, and tde is a heuristic (the mean feature as head direction).
    """
    if weights or features or labels:
        _adjust_plain(run, settings, weights, features, labels, out, method, alpha, power, json=json)
        return
    if run is None:
        raise checks.InputError("adjust: expected a run folder, or --weights, --features and --labels, got neither")
    strengths = _strength("alpha", alpha, ("auto",)), _strength("power", power, POWERS)
    from tailwise.recipes.catalog import with_second_stage
    from tailwise.recipes.methods import asked_rows, checked_adjuster
    from tailwise.recipes.overrides import override_after_training
    from tailwise.recipes.runs import open_run

    opened = open_run(run)
    kind = opened.recipe.classifier.name
    chosen = checked_adjuster(kind, method)
    asked_rows(opened.rows, kind, chosen, alpha=alpha is not None, power=power is not None)
    asked_metric = [f"metric={metric}"] if metric else []  # a second stage's epoch is chosen by it, too
    recipe = override_after_training(with_second_stage(opened.recipe, chosen), chosen, [*settings, *asked_metric])

    from tailwise.recipes import measure
    from tailwise.recipes.second import epochs_on_images
    from tailwise.recipes.trained import Asked
    from tailwise.recipes.watch import Together
    from tailwise.report.progress import watching
    from tailwise.report.summary import combined
    from tailwise.report.trackers import trackers

    if track and not epochs_on_images(recipe, chosen):
        raise checks.InputError(f"track: expected a second stage with epochs on images, got {chosen}, which has none")
    tracked = trackers(track or [])
    asked, done = Asked(*strengths), []
    with _warnings_as_notes(), watching(Console(stderr=True, quiet=json)) as shown:
        watch = Together(shown, tracked)
        for seed in opened.seeds:
            trained = measure.open_trained(seed, data_dir, recipe, device)
            result, path = measure.adjust(trained, chosen, asked, watch)
            done.append((result, str(path)))
    written = [path for _, path in done]
    record = combined(recipe.name, {str(run): [result for result, _ in done]}) | {"wrote": written}
    _show(record, json, lines=[f"wrote {path}" for path in written])


@app.command
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
    from tailwise.recipes.methods import checked_adjuster, sweepable
    from tailwise.recipes.runs import open_run

    opened = open_run(run)
    kind = opened.recipe.classifier.name
    chosen = checked_adjuster(kind, method or sweepable(kind))

    from tailwise.recipes import measure
    from tailwise.recipes.trained import Asked
    from tailwise.report.summary import swept
    from tailwise.report.table import print_sweep

    values, asked = measure.grid(chosen, highest, step), Asked(metric=metric)
    with _warnings_as_notes():
        done = [
            measure.sweep_strength(measure.open_trained(seed, data_dir, device=device), chosen, asked, values)
            for seed in opened.seeds
        ]
    record = swept(opened.recipe.name, [seed.results() for seed in opened.seeds], [curve for curve, _ in done])
    record |= {"wrote": [str(path) for _, path in done]}
    if json:
        _print_json(record)
    else:
        print_sweep(Console(), record)


@app.command
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
    from tailwise.recipes.methods import deployed_method
    from tailwise.recipes.runs import open_run

    strengths = _strength("alpha", alpha, ("auto",)), _strength("power", power, POWERS)
    opened = open_run(run)
    given = {"alpha": alpha is not None, "power": power is not None}
    chosen = deployed_method(opened.rows, opened.recipe.classifier.name, method, **given)
    folder = opened.seed(seed)

    from tailwise.recipes import deploy, measure
    from tailwise.recipes.trained import Asked

    with _warnings_as_notes():
        wrote = deploy.export(measure.open_trained(folder, data_dir), chosen, Asked(*strengths), format, out)
    if json:
        _print_json({"method": chosen, "seed": folder.seed, "wrote": [str(wrote)]})
    else:
        print(f"wrote {wrote}: {chosen} of seed {folder.seed}, and its model card")


@app.command
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
    from tailwise.recipes.methods import deployed_method
    from tailwise.recipes.runs import open_run, write_text

    strengths = _strength("alpha", alpha, ("auto",)), _strength("power", power, POWERS)
    opened = open_run(run)
    given = {"alpha": alpha is not None, "power": power is not None}
    chosen = deployed_method(opened.rows, opened.recipe.classifier.name, method, **given)
    folder = opened.seed(seed)

    from tailwise.recipes import measure
    from tailwise.recipes.predict import Failures, predictions
    from tailwise.recipes.trained import Asked
    from tailwise.report.predictions import csv_lines, json_lines

    failures = Failures()
    with _warnings_as_notes():
        trained = measure.open_trained(folder, data_dir, device=device)
        records = predictions(trained, chosen, Asked(*strengths), paths, top_k, device, failures)
        lines = csv_lines(records) if format == "csv" else json_lines(records)
        if out is not None:
            write_text(out, "".join(lines))
        else:
            sys.stdout.writelines(lines)
    failures.raise_any()


@app.command
def compare(
    *run_folders: Annotated[Path, Parameter(help="Run folders, or folders that hold several runs.")],
    json: Json = False,
) -> None:
    """Put runs side by side; differences are paired over the seeds that share a subset."""
    if not run_folders:
        raise checks.InputError("compare: expected at least one run folder, got none")
    from tailwise.recipes.runs import open_runs
    from tailwise.report.summary import compared

    opened = [run for folder in run_folders for run in open_runs(folder)]
    results = {str(run.path): [seed.results() for seed in run.seeds] for run in opened}
    _show(compared(results), json)


@app.command
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
    with _warnings_as_notes():
        data = figures.figure_data(figure, sources)
        wrote = figures.write_figure(data, out or figures.default_place(figure, run_folders))
    if json:
        _print_json({"figure": figure, "title": data.title, "caption": data.caption, "wrote": [str(p) for p in wrote]})
        return
    print(f"{data.title}: {data.caption}")
    for path in wrote:
        print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command; exit 0, or 2 with one line on standard error for input that will not do."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a table must not be lost to a terminal that knows no "±"
            stream.reconfigure(errors="replace")
    try:
        app(list(sys.argv[1:] if arguments is None else arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(" ".join(str(error).split()))
    except checks.InputError as error:
        _fail(str(error))
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("tailwise: interrupted; `tailwise train` goes on where it stopped with --resume", file=sys.stderr)
        sys.exit(130)
    if "torch" in sys.modules:
        from tailwise import ranks

        if ranks.launched():
            ranks.leave()
    sys.exit(0)


def _fail(line: str) -> NoReturn:
    print(f"tailwise: {line}", file=sys.stderr)
    sys.exit(2)


def _adjust_plain(
    run: Path | None,
    settings: Sequence[str],
    weights: Path | None,
    features: Path | None,
    labels: Path | None,
    out: Path,
    method: str | None,
    alpha: str | None,
    power: str | None,
    *,
    json: bool,
) -> None:
    if run or settings or not (weights and features and labels):
        raise checks.InputError(
            "adjust: expected a run folder, or --weights, --features and --labels, got a part of both"
        )
    for name, given, owner in (("alpha", alpha, "tde"), ("power", power, "tau-norm")):
        if given is not None and method != owner:
            raise checks.InputError(f"{name}: expected --method {owner}, got {method or 'auto'}")
    strength = _strength("alpha", alpha, ()) if alpha is not None else _strength("power", power, ())
    from tailwise.recipes.plain import adjust_plain, read_plain, write_plain

    result = adjust_plain(read_plain(weights, features, labels), method or "auto", strength=strength)
    write_plain(result, out)
    record = {"method": result.method, **result.notes, "wrote": [str(out)]}
    if json:
        _print_json(record)
        return
    for name, told in result.notes.get("scores", {}).items():
        low, high = told["interval"]
        print(f"{name:<10} {told['score']:5.1f}  [{low:.1f}, {high:.1f}]")
    own = {name: value for name, value in result.notes.items() if name != "scores"}
    print(f"{result.method}{''.join(f', {name} {value}' for name, value in own.items())}")
    print(f"wrote {out}")


def _strength(name: str, text: str | None, words: Sequence[str]) -> Any:
    """The strength asked for: a number, one of the words, or None for the recipe's own."""
    if text is None or text in words:
        return text
    try:
        value = checks.number(name, float(text))
    except ValueError:
        raise checks.InputError(f"{name}: expected a finite number or {' or '.join(words)}, got '{text}'") from None
    if name == "power" and abs(value) > 10:
        raise checks.InputError(f"power: expected a number in [-10, 10], got {text}")
    return value


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Show each of our own warnings once, as a line, without the place in the source; others as Python does."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *more: Any, **named: Any) -> None:
        if Path(filename).is_relative_to(Path(__file__).parent):
            print(f"note: {message}", file=sys.stderr)
        else:
            usual(message, category, filename, *more, **named)

    with warnings.catch_warnings():
        warnings.simplefilter("once", UserWarning)
        # torch's DistributedDataParallel on a convolution of one channel; "not an error", as it says itself
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        warnings.showwarning = show
        yield


def _show(record: dict[str, Any], json: bool, *, lines: Sequence[str] = ()) -> None:
    from tailwise.report.table import print_record

    if json:
        _print_json(record)
    else:
        print_record(Console(), record, lines)


def _print_json(content: dict[str, Any]) -> None:
    print(jsonlib.dumps(content, indent=1, allow_nan=False))
