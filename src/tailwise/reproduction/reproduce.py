"""Reproduce a table: do what its plan leaves to be done, and the record of what came of it."""

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tailwise import checks
from tailwise.data.protocols import PROTOCOLS
from tailwise.experiments import detection_experiment, experiment, files, measure, runs
from tailwise.experiments.detection_runs import DetectionSeed
from tailwise.experiments.owned import TakenError, owned
from tailwise.experiments.resume import OutOfTime
from tailwise.experiments.trained import Asked, Trained
from tailwise.experiments.watch import Watch
from tailwise.machine import hardware
from tailwise.recipes.detection import DetectionRecipe
from tailwise.recipes.schema import Recipe, SecondStageSettings
from tailwise.report.reproduction import markdown
from tailwise.reproduction.estimate import FAILURES, why
from tailwise.reproduction.evidence import (
    Begun,
    begun_below,
    compared,
    first_stage,
    kept,
    of_another_benchmark,
    preferred,
    row_name,
    usable_rows,
)
from tailwise.reproduction.plan import (
    WITHOUT_EFFECT,
    Job,
    Plan,
    Request,
    changes,
    planned,
    protocol_of,
    run_to_go_on,
    subset_seed_of,
)
from tailwise.reproduction.targets import Target, about

FORMAT = "tailwise-reproduction/1"
LIKE_PRINTED = (*WITHOUT_EFFECT, "detector.framework")  # settings with which a number may still be compared


@dataclass(frozen=True)
class _Seed:
    """A finished seed and its results; `opened` where a row of it has to be computed, once for all of them."""

    folder: runs.SeedFolder | DetectionSeed
    results: dict[str, Any]
    data_dir: Path | None

    @cached_property
    def opened(self) -> Trained:
        assert isinstance(self.folder, runs.SeedFolder)
        return measure.open_trained(self.folder, self.data_dir, device="cpu")


Disk = dict[str, list[_Seed]]


def work(
    made: Plan, watch: Watch, budget: float | None = None, on_done: Callable[[], object] = lambda: None
) -> list[str]:
    """Run what is left; each seed's result is on disk when it is done. Returns what went wrong, a line each.

    With a budget, a run that was begun goes on; a new one starts if its estimate fits into what is left, the very
    first one in any case, so that calls with a small budget add up. What trains when the budget ends stops with a
    snapshot.

    Args:
        budget: seconds; None is as long as it takes.
        on_done: called after each job.
    """
    until, notes, worked = None if budget is None else time.monotonic() + budget, [], False
    left = made.left
    while left:
        job = next_job(left, None if until is None else until - time.monotonic(), worked=worked)
        if job is None:
            break
        left.remove(job)
        try:
            notes += _run(job, made.request, watch, until)
        except OutOfTime:
            left.append(job)
            break
        except TakenError as error:
            job.lacks = "in work"
            notes.append(f"{job.recipe.name} seed {job.seed}: {error}")
            continue
        except FAILURES as error:
            job.lacks = f"failed: {why(error)}"
            notes.append(f"{job.recipe.name} seed {job.seed}: {why(error)}")
        worked = True
        on_done()
    for job in left:
        job.lacks = "budget"
    return notes


def next_job(left: Sequence[Job], seconds: float | None, *, worked: bool) -> Job | None:
    """The job to do next; seconds: what is left of the budget, None for no end."""
    if seconds is None:
        return left[0]
    if worked and seconds <= 0:
        return None
    for job in left:
        if job.begun or (job.seconds is not None and job.seconds <= seconds):
            return job
    return None if worked else left[0]


def record(made: Plan, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Everything that is known of a table: a line for each number, and the seeds they rest on.

    Args:
        before: an earlier record, whose seeds are kept where their folders are gone.

    Raises:
        InputError: an earlier record of another table, another subset or other settings.
    """
    request = made.request
    if before is not None and (before.get("format"), before.get("name")) != (FORMAT, request.table):
        raise checks.InputError(f"record: expected one of {request.table}, got one of {before.get('name', 'no table')}")
    if before is not None:
        for what, there, here in (
            ("subset seed", before["subset_seed"], subset_seed_of(made)),
            ("settings", _but(WITHOUT_EFFECT, before["settings"]), _but(WITHOUT_EFFECT, request.settings)),
        ):
            if there != here:  # its lines would be written over by those of another experiment
                raise checks.InputError(f"record: expected one of {what} {_said(here)}, got {_said(there)}")
    runs_there = {run["key"]: dict(run) for run in (before or {}).get("runs", [])}
    disk = _finished(begun_below(request.out), request.data_dir)
    second = _second_stages(made)
    lines = []
    for target in made.targets:
        seeds_of: dict[str, list[dict[str, Any]]] = {}
        key, lost, asked = None, None, target in made.asked
        for protocol, recipe, found in _under(target, request):
            if isinstance(recipe, Recipe):
                recipe = recipe.model_copy(update={"second": {**recipe.second, **second[found]}})
            seeds_of[protocol], without = _collect(target, recipe, found, disk, runs_there)
            key, lost = (found, without) if protocol == target.under else (key, lost)
        failed = next((job.lacks for job in made.jobs if job.key == key and job.lacks), None)
        of_row = (job.failed[target.method] for job in made.jobs if job.key == key and target.method in job.failed)
        failed = next((f"failed: {text}" for text in of_row), failed)
        reason = _reason(target, seeds_of.get(target.under, []), failed or lost, request)
        line = compared(target, seeds_of, reason)
        if target.asked or asked or line["ours"]:
            lines.append({**line, "asked": asked, "key": key})
    return {
        "format": FORMAT,
        "name": request.table,
        "about": about(request.table),
        "command": command_of(request),
        "subset_seed": subset_seed_of(made),
        "settings": list(request.settings),
        "hardware": hardware(),
        "lines": lines,
        "runs": list(runs_there.values()),
    }


class Recorded:
    """The record of a plan, written anew whenever there is more to say.

    paths: a JSON file and a page in the folder of the runs, and the file asked for.
    """

    def __init__(self, made: Plan, to: Path | None) -> None:
        self.made = made
        place = made.request.out / f"reproduce-{made.request.table}"
        self.own, self.page, self.to = place.with_suffix(".json"), place.with_suffix(".md"), to
        self.paths = [self.own, self.page, *([to] if to else [])]
        self.before = files.read_json(to) if to is not None and to.exists() else None
        if to is not None and not to.parent.is_dir():
            raise checks.InputError(f"record: expected a folder to write in, got {to.parent}, which is none")
        _make_folder(made.request.out)
        record(made, self.before)  # what will not do is found before anything is trained

    def write(self) -> dict[str, Any]:
        """Write and return it."""
        content = record(self.made, self.before)
        files.write_json(self.own, content)
        files.write_text(self.page, markdown(content))
        if self.to is not None:
            files.write_json(self.to, content)
        return content


def command_of(request: Request) -> str:
    """The command that asks for the same, on any machine.

    >>> command_of(Request("tang-3", Path("runs"), rows=("tde",)))
    'tailwise reproduce tang-3 --rows tde --seeds 3 --subset-seed 0 --protocol paper'
    """
    options = [("--rows", word) for word in request.rows]
    options += [("--seeds", str(request.seeds)), ("--subset-seed", str(request.subset_seed))]
    options += [("--protocol", protocol) for protocol in request.protocols]
    words = [word for option in options for word in option]
    return shlex.join(["tailwise", "reproduce", request.table, *request.settings, *words])


def _run(job: Job, request: Request, watch: Watch, until: float | None) -> list[str]:
    """Train a job's seed if it is not there, then every row that is missing. Returns why some could not be made."""
    how: dict[str, Any] = {"data_dir": request.data_dir, "device": request.device, "watch": watch, "until": until}
    if job.finished is None:
        _make_folder(request.out)
        with owned(request.out / f"seed-{job.seed}-{job.key}"):  # calls of other tables may have folders of other names
            run = run_to_go_on(begun_below(request.out), job.key, job.seed, request)  # begun by one since the plan
            job.run, job.folder = (run, run.path) if run else (job.run, job.folder)
            begun = job.begins_with
            if isinstance(begun, DetectionRecipe):
                detection_experiment.train_detectors([begun], [job.seed], job.folder, resume=True, **how)
            else:
                experiment.train([begun], [job.seed], job.folder, resume=True, **how)
            job.run = Begun(job.folder, begun)
    seed, whole = job.finished, job.whole
    if isinstance(seed, DetectionSeed):
        assert isinstance(whole, DetectionRecipe)
        if job.missing:
            alpha = whole.inference.alpha
            detection_experiment.add_rows(
                seed, job.missing, alpha=alpha, data_dir=request.data_dir, device=request.device
            )
        return []
    assert seed
    assert isinstance(whole, Recipe)
    notes = []
    planned_after = {key: getattr(whole, key) for key in ("tde", "tau_norm", "ncm", "metric")}
    for method in job.missing:
        recipe = seed.recipe.model_copy(update={**planned_after, "second": {**seed.recipe.second, **whole.second}})
        try:
            trained = measure.open_trained(seed, request.data_dir, recipe, request.device)
            measure.adjust(trained, method, save_every=60.0, watch=watch, until=until)
        except TakenError:
            raise
        except FAILURES as error:
            job.failed[method] = why(error)
            notes.append(f"{job.recipe.name} seed {job.seed}, {method}: {why(error)}")
    return notes


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise checks.InputError(f"out: cannot make {out} ({error.strerror})") from error


def _finished(begun: Sequence[Begun], data_dir: Path | None = None) -> Disk:
    """First stage -> the finished seeds of it, each from the run that a plan goes on with."""
    fitting: dict[tuple[str, int], list[Begun]] = {}
    for run in begun:
        for number in run.seeds:
            fitting.setdefault((first_stage(run.recipe, number), number), []).append(run)
    found: Disk = {}
    for (key, number), there in fitting.items():
        seed = preferred(there, number).seed(number)
        if seed:
            found.setdefault(key, []).append(_Seed(seed, seed.results(), data_dir))
    return found


def _under(target: Target, request: Request) -> Iterator[tuple[str, Recipe | DetectionRecipe, str]]:
    """(protocol, recipe, first stage) of each protocol that a target's number may be found under."""
    for protocol in PROTOCOLS if target.recipe else ():
        recipe = planned(target, protocol, request)
        if protocol == (target.under if target.on_val else protocol_of(recipe)):
            yield protocol, recipe, first_stage(recipe, 0)


def _second_stages(made: Plan) -> dict[str, dict[str, SecondStageSettings]]:
    """First stage -> the second stages of the rows made from it, each by the recipe that reports it."""
    found: dict[str, dict[str, SecondStageSettings]] = {}
    for target in made.targets:
        for _, recipe, key in _under(target, made.request):
            stages = recipe.second if isinstance(recipe, Recipe) else {}
            found.setdefault(key, {}).update({name: one for name, one in stages.items() if name == target.method})
    return found


def _collect(
    target: Target, recipe: Recipe | DetectionRecipe, key: str, disk: Disk, runs_there: dict[str, Any]
) -> tuple[list[dict[str, Any]], str | None]:
    """What is known of every seed of a first stage, and why a row cannot be made of one.

    What is on disk goes into `runs_there` by the first stage.
    """
    lost = None
    known = {seed["seed"]: seed for seed in runs_there.get(key, {}).get("seeds", [])}
    for seed in disk.get(key, []):
        rows, earlier = usable_rows(seed.results, recipe), known.get(seed.folder.seed)
        if (target.alpha is not None or target.on_val) and isinstance(recipe, Recipe):
            of = measure.val_row if target.on_val else Trained.row
            try:
                rows[row_name(target)] = of(seed.opened, target.method, Asked(alpha=target.alpha))
            except checks.InputError as error:  # such as a checkpoint that is gone: the other seeds have theirs
                lost = f"failed: {error}"
        found = kept(seed.results, rows)
        if earlier and earlier["checkpoint"] == seed.results["checkpoint"]:
            found["rows"] = {**earlier["rows"], **found["rows"]}
        known[seed.folder.seed] = found
    if known:
        seeds = [known[number] for number in sorted(known)]
        changed = [f"{name}={value}" for name, value in changes(recipe).items()]
        runs_there[key] = {"key": key, "recipe": recipe.name, "changed": changed, "seeds": seeds}
    return list(runs_there.get(key, {}).get("seeds", [])), lost


def _reason(target: Target, seeds: Sequence[dict[str, Any]], failed: str | None, request: Request) -> str | None:
    """Why there is no number to compare; None if there is one."""
    if target.recipe is None:
        return target.lacks
    if not any(row_name(target) in seed["rows"] for seed in seeds):
        return failed or "no run yet"
    other = _but(LIKE_PRINTED, request.settings)
    if other:
        return f"other settings: {', '.join(other)}"
    return of_another_benchmark(planned(target, target.under, request), seeds)


def _but(keys: tuple[str, ...], settings: Sequence[str]) -> list[str]:
    return [setting for setting in settings if not setting.startswith(keys)]


def _said(value: int | list[str] | None) -> str:
    return ", ".join(value) or "none" if isinstance(value, list) else str(value)
