"""The plan of a table: which trainings its rows need, what of them is there, and what the rest will take."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tailwise import checks
from tailwise.data.protocols import PROTOCOLS
from tailwise.experiments import files, runs
from tailwise.experiments.build_data import build_data
from tailwise.experiments.detection_runs import DetectionSeed
from tailwise.experiments.second import epochs_on_images
from tailwise.experiments.settings import flat
from tailwise.recipes.build import find_device
from tailwise.recipes.build_detection import build_detection_data
from tailwise.recipes.catalog import RECIPES, with_second_stage
from tailwise.recipes.detection import DetectionRecipe
from tailwise.recipes.detection_catalog import DETECTION_RECIPES
from tailwise.recipes.methods import METHODS, adjusters_of
from tailwise.recipes.overrides import override
from tailwise.recipes.schema import Recipe, SecondStageSettings
from tailwise.reproduction.estimate import FAILURES, Cost, epochs_done, timed_cost, timed_detector_cost, why
from tailwise.reproduction.evidence import Begun, begun_below, first_stage, run_of, usable_rows
from tailwise.reproduction.targets import Target, about, selected, targets_of

# Classifiers whose stores are adjusted in every way that needs no images, for what stands beside the printed rows
PLAIN = ("linear", "joint", "cosine", "capsule", "de-confound")
WITHOUT_EFFECT = ("compute.", "data.kept", "data.workers")  # of settings: what is trained is the same
IDLE = ("data.kept=", "data.workers=", "compute.workers=")  # with which a run may go on, whatever it was begun with
NAMED_ELSEWHERE = {"protocol": "--protocol", "data.subset_seed": "--subset-seed", "seeds": "--seeds"}
FROM_STORES = ("ncm", "ncm-centered", "tau-norm", "crt-stored", "lws-stored", "logit-adjustment")


@dataclass(frozen=True)
class Request:
    """What is to be reproduced.

    table: one of `targets.TABLES`. rows: words that name targets, none is all. seeds: of training, 0 to seeds - 1, all
    on the subset of subset_seed. protocols: trained; printed numbers are compared under "paper". settings: overrides.
    out: where runs lie, those of `tailwise train` too.
    """

    table: str
    out: Path
    rows: tuple[str, ...] = ()
    seeds: int = 3
    subset_seed: int = 0
    protocols: tuple[str, ...] = ("paper",)
    settings: tuple[str, ...] = ()
    data_dir: Path | None = None
    device: str = "auto"


@dataclass
class Job:
    """One seed of one first stage, and the rows made from it.

    recipe: what it would be begun with. run: the folder that has it, or will. methods: rows that are wanted of it.
    second: the second stages of the rows' own recipes. epochs, done: on images, second stages included. lacks: why it
    cannot be run, or was not; said: more of that. failed: rows that could not be made, and why.
    """

    key: str
    seed: int
    recipe: Recipe | DetectionRecipe
    folder: Path
    run: Begun | None
    borrowed: bool
    methods: list[str] = field(default_factory=list)
    second: dict[str, SecondStageSettings] = field(default_factory=dict)
    epochs: int = 0
    done: int = 0
    cost: Cost | None = None
    lacks: str | None = None
    said: str = ""
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def begins_with(self) -> Recipe | DetectionRecipe:
        """What is trained first: as it was begun, else without second stages, of which one may fail and others not."""
        if self.run:
            return self.run.recipe
        if isinstance(self.recipe, DetectionRecipe):
            return self.recipe
        alone = tuple(name for name in self.recipe.methods if name not in self.recipe.second)
        return self.recipe.model_copy(update={"methods": alone, "second": {}})

    @property
    def finished(self) -> runs.SeedFolder | DetectionSeed | None:
        """The seed's folder, once the first stage is trained."""
        there = Begun(self.folder, self.begins_with)
        return there.seed(self.seed)

    @property
    def whole(self) -> Recipe | DetectionRecipe:
        """The recipe with the second stage of every row that is wanted; a detector has none."""
        return self.recipe if isinstance(self.recipe, DetectionRecipe) else _with_second_stages(self.recipe, self)

    @property
    def begun(self) -> bool:
        """Whether something of it is on disk to go on from."""
        return self.finished is not None or any(files.partial(self.folder / f"seed-{self.seed}").glob("*.safetensors"))

    @property
    def missing(self) -> list[str]:
        """Rows that are wanted and not there."""
        seed = self.finished
        there = usable_rows(seed.results(), self.whole) if seed else {}
        return [method for method in self.methods if method not in there]

    @property
    def seconds(self) -> float | None:
        """What is left takes about so long; None where nothing is known."""
        if self.cost is None:
            return None
        return self.cost.epoch * (self.epochs - self.done) + (self.cost.start if self.epochs > self.done else 0.0)


@dataclass(frozen=True)
class Plan:
    """A table's targets and the jobs they need, in the order of work."""

    request: Request
    targets: list[Target]
    asked: list[Target]
    jobs: list[Job]

    @property
    def left(self) -> list[Job]:
        """What can be run and is not done."""
        return [job for job in self.jobs if job.lacks is None and (job.finished is None or job.missing)]


def plan(request: Request, tell: Callable[[str], None] = lambda _: None) -> Plan:
    """What a table needs, what of it is there, and what the rest will take.

    A first stage is one job whatever rows need it, and runs that `tailwise train` left below `out` count. The paper's
    own rows come first, then those it quotes; a run's seeds one after the other.

    Args:
        tell: told what is timed, for it takes some seconds each.

    Raises:
        InputError: no such table, row, setting, protocol or device.
    """
    checks.whole("seeds", request.seeds)
    checks.whole("subset_seed", request.subset_seed, at_least=0)
    for protocol in request.protocols:
        checks.choice("protocol", protocol, PROTOCOLS)
    for setting in request.settings:
        name = setting.partition("=")[0]
        if name in NAMED_ELSEWHERE:
            raise checks.InputError(f"{name}: expected the option {NAMED_ELSEWHERE[name]}, got '{setting}'")
    find_device(request.device)
    targets = targets_of(request.table, request.settings)
    asked = selected(targets, request.rows)
    detectors = any(isinstance(target.recipe, DetectionRecipe) for target in asked)
    if detectors and set(request.protocols) != {"paper"}:
        raise checks.InputError(f"protocol: expected paper, which detectors have, got {', '.join(request.protocols)}")
    begun = begun_below(request.out)
    jobs: dict[tuple[str, int], Job] = {}
    for protocol in dict.fromkeys((*request.protocols, *(target.under for target in asked if target.on_val))):
        for target in asked:
            wanted = protocol in ((target.under,) if target.on_val else request.protocols)
            for seed in range(request.seeds) if target.recipe and wanted else ():
                recipe = planned(target, protocol, request)
                key = first_stage(recipe, seed)
                if (key, seed) not in jobs:
                    run = run_to_go_on(begun, key, seed, request)
                    folder = run.path if run else _new_folder(recipe, key, request.out)
                    jobs[key, seed] = Job(key, seed, recipe, folder, run, borrowed=_borrowed(target))
                job = jobs[key, seed]
                job.borrowed = job.borrowed and _borrowed(target)
                if isinstance(recipe, Recipe):
                    job.second |= {name: stage for name, stage in recipe.second.items() if name == target.method}
                job.methods = list(dict.fromkeys((*job.methods, own_row_of(recipe), target.method)))
    ordered = sorted(jobs.values(), key=lambda job: job.borrowed)  # which keeps the order within each
    _estimate(ordered, request, tell)
    return Plan(request, targets, asked, ordered)


def plan_record(made: Plan) -> dict[str, Any]:
    """A plan as JSON values: each first stage with its seeds, what it still takes, and what cannot be run."""
    by_run: dict[str, list[Job]] = {}
    for job in made.jobs:
        by_run.setdefault(job.key, []).append(job)
    found, every_left = [], made.left
    for jobs in by_run.values():
        first = jobs[0]
        left = [job for job in jobs if job in every_left]
        cost = next((job.cost for job in jobs if job.cost), None)
        found.append(
            {
                "recipe": first.recipe.name,
                "changed": {
                    name: value for name, value in changes(first.recipe).items() if name not in NAMED_ELSEWHERE
                },
                "protocol": protocol_of(first.recipe),
                "folder": str(first.folder),
                "seeds": [job.seed for job in jobs],
                "finished": [job.seed for job in jobs if job.finished],
                "begun": {str(job.seed): job.done for job in jobs if job.begun and not job.finished},
                "left": [job.seed for job in left],
                "rows": first.methods,
                "epochs": first.epochs,
                "seconds": sum(job.seconds or 0.0 for job in left),
                "memory": cost.memory if cost else None,
                "estimated_from": cost.origin if cost else None,
                "goes_on_with": _not_as_asked(first, made.request) if left else [],
                "lacks": first.lacks and first.lacks + f" ({first.said})" * bool(first.said),
            }
        )
    lacking = dict.fromkeys(target.lacks for target in made.asked if target.lacks)
    return {
        "name": made.request.table,
        "about": about(made.request.table),
        "subset_seed": subset_seed_of(made),
        "device": find_device(made.request.device).type,
        "runs": found,
        "seconds": sum(run["seconds"] for run in found),
        "memory": max((job.cost.memory for job in made.jobs if job.cost), default=0),
        "lacks": {reason: sum(target.lacks == reason for target in made.asked) for reason in lacking},
    }


def run_to_go_on(begun: Sequence[Begun], key: str, seed: int, request: Request) -> Begun | None:
    """The run that has a first stage, with what is asked for of who reads its images and where they lie."""
    run = run_of(begun, key, seed)
    if run is None:
        return None
    recipes: list[Any] = [run.recipe]
    idle = [setting for setting in request.settings if setting.startswith(IDLE)]
    return replace(run, recipe=override(recipes, idle)[0])


def subset_seed_of(made: Plan) -> int | None:
    """What a record says of the subset; None of a table of detectors, whose data has none."""
    detectors = all(target.section.startswith("lvis") for target in made.targets)
    return None if detectors else made.request.subset_seed


def planned(target: Target, protocol: str, request: Request) -> Recipe | DetectionRecipe:
    """A target's recipe under a protocol, on the subset asked for; a detector's is as it is."""
    assert target.recipe
    if isinstance(target.recipe, DetectionRecipe):
        return target.recipe
    return override([target.recipe], [f"protocol={protocol}", f"data.subset_seed={request.subset_seed}"])[0]


def protocol_of(recipe: Recipe | DetectionRecipe) -> str:
    """What a recipe is trained under: a detector's last epoch is reported, at the alpha in print."""
    return recipe.protocol if isinstance(recipe, Recipe) else "paper"


def own_row_of(recipe: Recipe | DetectionRecipe) -> str:
    """The row of the trained classifier itself."""
    return recipe.methods[0] if isinstance(recipe, Recipe) else recipe.rows[0]


def changes(recipe: Recipe | DetectionRecipe) -> dict[str, Any]:
    """What a recipe has other than the catalog's of its name, but for how arithmetic is done and where things lie."""
    known: dict[str, Recipe | DetectionRecipe] = {**RECIPES, **DETECTION_RECIPES}
    catalog, own = (flat(one.model_dump(mode="json")) for one in (known[recipe.name], recipe))
    keys = [key for key in own if own[key] != catalog.get(key)]
    return {key: own[key] for key in keys if not key.startswith(WITHOUT_EFFECT)}


def _borrowed(target: Target) -> bool:
    """Whether the paper quotes a row, or does not print it; plain cross-entropy is what all else is compared with."""
    return (target.quoted is not None or not target.asked) and target.method != "joint"


def _not_as_asked(job: Job, request: Request) -> list[str]:
    """How a run does its arithmetic, where something else is asked for: its seeds are trained alike."""
    here, there = (flat(one.compute.model_dump(), "compute") for one in (job.recipe, job.begins_with))
    asked = {setting.partition("=")[0] for setting in request.settings}
    return [f"{name}={_short(there[name])}" for name in here if name in asked and here[name] != there[name]]


def _new_folder(recipe: Recipe | DetectionRecipe, key: str, out: Path) -> Path:
    """A folder below out named after what is trained."""
    changed = changes(recipe)
    words = [f"{name.rpartition('.')[2].replace('_', '-')}-{_short(value)}" for name, value in changed.items()]
    words = words if len(words) <= 4 else [key]
    name = "-".join([recipe.title, *(re.sub(r"[^\w.-]", "", word.removeprefix("protocol-")) for word in words)])
    folder = out / recipe.data.name / name
    return folder.with_name(f"{name}-{key[:6]}") if folder.exists() else folder


def _estimate(jobs: Sequence[Job], request: Request, tell: Callable[[str], None]) -> None:
    """Find out what each job still takes, and which cannot be run; adds the rows that need no training."""
    device = find_device(request.device)
    found: dict[str, Any] = {}
    timed: dict[tuple[str, int], tuple[Cost, int] | str] = {}
    for job in jobs:
        recipe = job.recipe
        after = _count_epochs(job)
        if job.finished:
            job.done = job.epochs - after
            _, job.cost = epochs_done(job.folder, job.seed)
            # stores alone give what needs no epochs on images; a detector looks at the images for every row
            if not job.missing or not (after or isinstance(recipe, DetectionRecipe)):
                continue
        else:
            job.done, job.cost = epochs_done(job.folder, job.seed)
        name = str(recipe.data.model_dump())
        if name not in found:
            try:
                found[name] = _data(recipe, job.seed, request.data_dir, device)
            except checks.InputError as error:
                found[name] = str(error)
        data = found[name]
        if isinstance(data, str):
            job.lacks, job.said = f"no data: {recipe.data.name}", data
            continue
        if job.cost is None:
            like = (str(_alike(recipe)), data.counts.num_classes)
            if like not in timed:
                tell(f"timing some steps of {recipe.name}")
                try:
                    timed[like] = (_timed(recipe, data, device), len(data.train))
                except FAILURES as error:
                    timed[like] = f"failed: {why(error)}"
            known = timed[like]
            if isinstance(known, str):
                job.lacks = known
                continue
            cost, images = known
            job.cost = Cost(cost.epoch * len(data.train) / images, cost.memory, cost.origin, cost.start)


def _count_epochs(job: Job) -> int:
    """Set how many epochs on images a job has, add the rows that need none; returns the epochs of missing rows."""
    recipe = job.recipe
    if isinstance(recipe, DetectionRecipe):
        job.epochs = recipe.training.epochs
        return 0
    if recipe.methods[0] in PLAIN:
        rest = set(adjusters_of(recipe.classifier.name)) - set(job.methods)
        job.methods += [method for method in METHODS if method in rest and _from_stores(method)]
    begun = job.begins_with
    assert isinstance(begun, Recipe)
    whole = _with_second_stages(recipe, job)
    every = dict.fromkeys((*begun.methods, *job.methods))
    job.epochs = sum(epochs_on_images(begun if name in begun.second else whole, name) for name in every)
    job.epochs += sum(stage.epochs for stage in recipe.stages)
    return sum(epochs_on_images(whole, name) for name in job.missing) if job.finished else 0


def _with_second_stages(recipe: Recipe, job: Job) -> Recipe:
    recipe = recipe.model_copy(update={"second": {**recipe.second, **job.second}})
    for method in job.methods:
        recipe = with_second_stage(recipe, method)
    return recipe


def _data(recipe: Recipe | DetectionRecipe, seed: int, data_dir: Path | None, device: torch.device) -> Any:
    if isinstance(recipe, DetectionRecipe):
        return build_detection_data(recipe, seed, data_dir)
    return build_data(recipe, seed, data_dir, device)


def _timed(recipe: Recipe | DetectionRecipe, data: Any, device: torch.device) -> Cost:
    if isinstance(recipe, DetectionRecipe):
        return timed_detector_cost(recipe, data, device)
    return timed_cost(recipe, data, device)


def _alike(recipe: Recipe | DetectionRecipe) -> dict[str, Any]:
    """What the time of a step depends on."""
    parts = {"backbone", "detector", "classifier", "stages", "loss", "training", "compute"}
    return recipe.model_dump(mode="json", include=parts)


def _from_stores(method: str) -> bool:
    return method in FROM_STORES or METHODS[method].adjust == "tde"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
