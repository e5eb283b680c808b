"""`tailwise adjust`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from tailwise import checks
from tailwise.cli.options import POWERS, AlphaText, DataDir, Device, Json, Method, Metric, PowerText, Track, strength_of
from tailwise.cli.output import print_json, show, warnings_as_notes


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
    val_features: Annotated[
        Path | None, Parameter(help="With --weights: features to choose the method on; default: folds of --features.")
    ] = None,
    val_labels: Annotated[Path | None, Parameter(help="Their classes.")] = None,
    counts: Annotated[
        Path | None,
        Parameter(help="With --weights: images per class that it was trained on [C]; default: those of --labels."),
    ] = None,
    out: Annotated[
        Path | None, Parameter(help="With --weights: the file to write (default: adjusted.safetensors).")
    ] = None,
    json: Json = False,
) -> None:
    """Adjust a trained run: choose a strength or train a second stage, write the new classifier beside the old.

    With --weights W --features F --labels Y --method plain|la|tau-norm|lws|crt|ncm|tde|auto it adjusts the last layer
    of any model; --alpha and --power are numbers then, and tde is a heuristic (the mean feature as head direction).
    """
    files = (weights, features, labels, val_features, val_labels, counts)
    if any(files):
        of_runs = {
            "metric": metric,
            "data-dir": data_dir,
            "device": None if device == "auto" else device,
            "track": track,
        }
        _adjust_plain(run, settings, files, out, method, alpha, power, of_runs, json=json)
        return
    if run is None:
        raise checks.InputError("adjust: expected a run folder, or --weights, --features and --labels, got neither")
    if out is not None:
        raise checks.InputError(f"out: expected --weights, got the run {run}, which keeps what is made of it")
    strengths = strength_of("alpha", alpha, ("auto",)), strength_of("power", power, POWERS)
    from tailwise.experiments.runs import open_run
    from tailwise.recipes.catalog import with_second_stage
    from tailwise.recipes.methods import asked_rows, checked_adjuster
    from tailwise.recipes.overrides import override_after_training

    opened = open_run(run)
    kind = opened.recipe.classifier.name
    chosen = checked_adjuster(kind, method)
    asked_rows(opened.rows, kind, chosen, alpha=alpha is not None, power=power is not None)
    asked_metric = [f"metric={metric}"] if metric else []  # a second stage's epoch is chosen by it, too
    recipe = override_after_training(with_second_stage(opened.recipe, chosen), chosen, [*settings, *asked_metric])

    from tailwise.experiments import measure
    from tailwise.experiments.second import epochs_on_images
    from tailwise.experiments.trained import Asked
    from tailwise.experiments.watch import Together
    from tailwise.report.progress import watching
    from tailwise.report.summary import combined
    from tailwise.report.trackers import trackers

    if track and not epochs_on_images(recipe, chosen):
        raise checks.InputError(f"track: expected a second stage with epochs on images, got {chosen}, which has none")
    tracked = trackers(track or [])
    asked, done = Asked(*strengths), []
    with warnings_as_notes(), watching(Console(stderr=True, quiet=json)) as shown:
        watch = Together(shown, tracked)
        for seed in opened.seeds:
            trained = measure.open_trained(seed, data_dir, recipe, device)
            result, path = measure.adjust(trained, chosen, asked, watch)
            done.append((result, str(path)))
    written = [path for _, path in done]
    record = combined(recipe.name, {str(run): [result for result, _ in done]}) | {"wrote": written}
    show(record, json, lines=[f"wrote {path}" for path in written])


def _adjust_plain(
    run: Path | None,
    settings: Sequence[str],
    files: tuple[Path | None, ...],
    out: Path | None,
    method: str | None,
    alpha: str | None,
    power: str | None,
    of_runs: Mapping[str, Any],
    *,
    json: bool,
) -> None:
    weights, features, labels, val_features, val_labels, counts = files
    if run or settings or not (weights and features and labels):
        raise checks.InputError(
            "adjust: expected a run folder, or --weights, --features and --labels, got a part of both"
        )
    for name, given in of_runs.items():
        if given is not None:
            raise checks.InputError(f"{name}: expected a run folder, got --weights")
    for name, given, owner in (("alpha", alpha, "tde"), ("power", power, "tau-norm")):
        if given is not None and method != owner:
            raise checks.InputError(f"{name}: expected --method {owner}, got {method or 'auto'}")
    strength = strength_of("alpha", alpha, ()) if alpha is not None else strength_of("power", power, ())
    if val_features and method not in (None, "auto"):
        raise checks.InputError(f"val-features: expected --method auto, which chooses on them, got {method}")
    from tailwise.own_features import adjust_plain, read_plain, write_plain

    model = read_plain(weights, features, labels, val_features, val_labels, counts)
    result = adjust_plain(model, method or "auto", strength=strength)
    out = out or Path("adjusted.safetensors")
    write_plain(result, out)
    record = {"method": result.method, **result.notes, "wrote": [str(out)]}
    if json:
        print_json(record)
        return
    if "chosen_on" in result.notes:
        print(f"mean per-class accuracy in %, 95 % interval, on {result.notes['chosen_on']}")
    for name, told in result.notes.get("scores", {}).items():
        low, high = told["interval"]
        print(f"{name:<10} {told['score']:5.1f}  [{low:.1f}, {high:.1f}]")
    own = {name: value for name, value in result.notes.items() if name not in ("scores", "chosen_on")}
    print(f"{result.method}{''.join(f', {name} {value}' for name, value in own.items())}")
    print(f"wrote {out}")
