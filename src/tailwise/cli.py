"""The command `tailwise`: verbs only. What they do is in `recipes`, how it looks in `report`."""

import json as jsonlib
import sys
from collections.abc import Sequence
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
)

Seeds = Annotated[int | None, Parameter(help="Seeds 0 to N-1; each draws its own subset (default: the recipe's).")]
DataDir = Annotated[Path | None, Parameter(help="Where local data sets lie (default: $TAILWISE_DATA).")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object and nothing else.")]
Method = Annotated[str | None, Parameter(help="linear, cosine, cosine-tde, capsule, capsule-tde, de-confound or tde.")]
AlphaText = Annotated[str | None, Parameter(help="Strength of TDE: a number, or auto (chosen on val).")]
PowerText = Annotated[str | None, Parameter(help="Norm power: a number, or auto, for a method that has one.")]


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
    out: Annotated[Path | None, Parameter(help="A new folder for the run (default: runs/NAME).")] = None,
    json: Json = False,
) -> None:
    """Train a recipe, or all recipes of a suite on the same subsets, and print one table."""
    from tailwise.recipes.catalog import find
    from tailwise.recipes.overrides import override

    chosen = override(find(name), [*settings, *([f"protocol={protocol}"] if protocol else [])])
    numbers = range(checks.whole("seeds", chosen[0].seeds if seeds is None else seeds))

    from tailwise.recipes import experiment, runs
    from tailwise.report.progress import watching
    from tailwise.report.summary import combined

    folder = runs.free_folder(name, out)
    with watching(Console(stderr=True, quiet=json)) as watch:
        trained = experiment.train(chosen, list(numbers), folder, data_dir=data_dir, watch=watch)
    results = {str(run.path): [seed.results() for seed in run.seeds] for run in trained}
    _show(
        combined(name, results) | {"wrote": [str(folder)]},
        json,
        lines=[
            f"wrote {folder}: checkpoints, features and results, {len(trained)} recipes x {len(numbers)} seeds",
            f"next: tailwise evaluate {trained[-1].path} --alpha 1",
        ],
    )


@app.command
def evaluate(
    run: Annotated[Path, Parameter(help="A run folder, such as runs/digits-lt/tde.")],
    /,
    *,
    method: Method = None,
    alpha: AlphaText = None,
    power: PowerText = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Measure a trained run again, at any alpha, from its stored features."""
    chosen = _adjustment(method, alpha, power)
    from tailwise.recipes.measure import measure
    from tailwise.recipes.rows import applicable
    from tailwise.recipes.runs import open_run
    from tailwise.report.summary import combined

    opened = open_run(run)
    methods = applicable(opened.recipe.classifier.name, method)
    _takes_alpha(methods, alpha)
    results = [measure(seed, methods, chosen, data_dir) for seed in opened.seeds]
    _show(combined(opened.recipe.name, {str(run): results}), json)


@app.command
def adjust(
    run: Annotated[Path, Parameter(help="A run folder, such as runs/digits-lt/tde.")],
    /,
    *,
    method: Method = None,
    alpha: AlphaText = None,
    power: PowerText = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Adjust a trained run: choose alpha, fold it into the classifier, write the new classifier beside the old."""
    chosen = _adjustment(method, alpha, power)
    from tailwise.recipes import measure
    from tailwise.recipes.methods import METHODS
    from tailwise.recipes.rows import applicable
    from tailwise.recipes.runs import open_run
    from tailwise.report.summary import combined

    opened = open_run(run)
    adjusting = [name for name in applicable(opened.recipe.classifier.name, method) if METHODS[name].adjust]
    if not adjusting:
        given = f"'{method}' does not" if method else f"none does for a {opened.recipe.classifier.name} classifier"
        raise checks.InputError(f"method: expected one that adjusts, and {given}")
    done = [measure.adjust(seed, adjusting[0], chosen, data_dir) for seed in opened.seeds]
    written = [str(path) for _, path in done]
    record = combined(opened.recipe.name, {str(run): [result for result, _ in done]}) | {"wrote": written}
    _show(record, json, lines=[f"wrote {path}" for path in written])


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
    except KeyboardInterrupt:
        print("tailwise: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _fail(line: str) -> NoReturn:
    print(f"tailwise: {line}", file=sys.stderr)
    sys.exit(2)


def _adjustment(method: str | None, alpha: str | None, power: str | None) -> Any:
    """The alpha asked for: a number, "auto", or None for the recipe's own."""
    if method is not None:
        from tailwise.recipes.methods import METHODS

        checks.choice("method", method, METHODS)
    if power is not None:
        raise checks.InputError(f"power: expected a method with a norm power, got {method or 'none of this run'}")
    if alpha is None or alpha == "auto":
        return alpha
    try:
        return checks.number("alpha", float(alpha))
    except ValueError:
        raise checks.InputError(f"alpha: expected a finite number or auto, got '{alpha}'") from None


def _takes_alpha(methods: Sequence[str], alpha: str | None) -> None:
    from tailwise.recipes.methods import METHODS

    if alpha is not None and not any(METHODS[name].adjust for name in methods):
        raise checks.InputError(f"alpha: expected a method that takes one, got {', '.join(methods)}")


def _show(record: dict[str, Any], json: bool, *, lines: Sequence[str] = ()) -> None:
    from tailwise.report.table import print_record

    if json:
        _print_json(record)
    else:
        print_record(Console(), record, lines)


def _print_json(content: dict[str, Any]) -> None:
    print(jsonlib.dumps(content, indent=1, allow_nan=False))
