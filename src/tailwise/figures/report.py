"""What `tailwise report` shows of runs, computed from their folders; `report.page` makes a page of it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tailwise import checks
from tailwise.adjust.paths import Paths
from tailwise.counts import GROUPS, ClassCounts
from tailwise.evaluate import Store, shot_accuracy
from tailwise.experiments import files
from tailwise.experiments.adjusters import features_of, strength_name
from tailwise.experiments.measure import grid
from tailwise.experiments.settings import flat
from tailwise.experiments.strengths import folded_at, strength_paths
from tailwise.experiments.trained import Trained
from tailwise.figures import Source, grad_cam_panels
from tailwise.figures.pictures import picture_of
from tailwise.recipes.datasets import described
from tailwise.recipes.methods import sweepable
from tailwise.report.page import Panels, data_uri, packed, png, render_page
from tailwise.report.summary import combined, compared, mean_and_std, over_seeds, summarize

STEPS = {"alpha": 0.05, "norm_power": 0.02}  # of the slider
MEANINGS = {
    "alpha": "At alpha 0 the classifier is as trained; alpha is how much of the head direction's effect is subtracted "
    "from every logit.",
    "norm_power": "At power 0 the weights are as trained, without bias; each class's weights are divided by "
    "their length to this power.",
}
SHOWN = 12  # samples of each kind of change


def write_report(
    sources: Sequence[Source],
    out: Path,
    command: str,
    draw_panels: Callable[[Sequence[Source]], Panels] = grad_cam_panels,
) -> None:
    """Write the page of these runs, whole or not at all.

    Args:
        sources: the runs, at least one.
        out: the file.
        command: what the reader could call to make it again.
        draw_panels: gives the Grad-CAM panels; where it cannot, the page says why.

    Raises:
        InputError: stores gone and no data to make them from; a file that cannot be written.
    """
    files.check_place(out)
    record = report_record(sources, command)
    try:
        panels, why = draw_panels(sources), None
    except checks.InputError as error:
        panels, why = [], str(error)
    files.write_text(out, render_page({**record, "no_panels": why}, panels))


def report_record(sources: Sequence[Source], command: str) -> dict[str, Any]:
    """All that the page shows, but for panels.

    Raises:
        InputError: no runs; stores gone and no data to make them from.
    """
    if not sources:
        raise checks.InputError("report: expected at least one run folder, got none")
    results = {str(source.run.path): source.results for source in sources}
    first = sources[0].run.recipe
    summary = combined(first.name, results) if len(sources) == 1 else compared(results)
    names = list(dict.fromkeys(source.run.recipe.data.name for source in sources))
    return {
        "title": first.name if len(sources) == 1 else f"{', '.join(names)}: {len(sources)} runs",
        "caption": "; ".join(dict.fromkeys(caption(source) for source in sources)),
        "summary": summary,
        "runs": [run_record(source) for source in sources],
        "provenance": [provenance(source) for source in sources],
        "no_panels": None,
        "command": command,
        "version": sources[0].results[0]["versions"].get("tailwise", ""),
    }


def caption(source: Source) -> str:
    """Data, seeds and protocol of a run."""
    recipe = source.run.recipe
    over = over_seeds([seed.seed for seed in source.run.seeds])
    return f"{described(recipe.data)}; {over}; protocol {recipe.protocol}"


def run_record(source: Source) -> dict[str, Any]:
    """One run at every strength of the method that its classifier has one for."""
    method = sweepable(source.run.recipe.classifier.name)
    name = strength_name(method)
    assert name is not None
    values = grid(method, None, STEPS[name])
    results = source.results[0]
    published = ClassCounts(tuple(results["published_counts"]))
    seeds, accuracies = [], []
    for seed in source.seeds:
        test, paths = seed.stores.test(), strength_paths(seed, method, values)
        labels = np.asarray(test.labels)
        accuracies.append([shot_accuracy(paths.at(value), labels, published) for value in values])
        seeds.append((seed, test, paths))
    chosen = _chosen(source, method, name)
    start = _nearest(values, float(np.median(chosen["values"]) if chosen else 1.0))
    label = name.replace("_", " ")
    return {
        "title": f"{source.run.recipe.title}: {method}" if source.run.recipe.title != method else method,
        "about": f"{method} on test images, {caption(source)}.",
        "meaning": MEANINGS[name],
        "label": label,
        "values": values,
        "start": start,
        "chosen": chosen,
        "names": [str(name) for name in results["class_names"]],
        "published": list(published.per_class),
        "counts": results["counts"],
        "groupOf": [GROUPS.index(published.group_of(c)) for c in range(published.num_classes)],
        "figures": {
            group: [mean_and_std([at[place][group] for at in accuracies]) for place in range(len(values))]
            for group in (*GROUPS, "all")
        },
        "seeds": [_packed(test, paths) for _, test, paths in seeds],
        "changed": changed(*seeds[0], method, label, start or 1.0),
    }


def changed(seed: Trained, test: Store, paths: Paths, method: str, label: str, against: float) -> dict[str, Any] | None:
    """The test images whose prediction changes most from strength 0 to `against`, and their pictures; None if none.

    How much: the total variation distance between the probabilities before and after.
    """
    labels, before, after = np.asarray(test.labels), paths.at(0.0), paths.at(against)
    rows = np.flatnonzero(before != after)
    if not len(rows):
        return None
    some = features_of(test)[rows]
    probabilities = [_probabilities(seed, method, value, some) for value in (0.0, against)]
    distance = 0.5 * (probabilities[1] - probabilities[0]).abs().sum(dim=1).numpy()
    order = rows[np.argsort(-distance, kind="stable")]
    kinds = {
        "Became right": after[order] == labels[order],
        "Became wrong": before[order] == labels[order],
        "Wrong before and after": (before[order] != labels[order]) & (after[order] != labels[order]),
    }
    pictures, why = _pictures(seed, test)
    ids = [str(name) for name in test.ids]
    return {
        "about": f"Of seed {seed.seed}, from {label} 0 to {against:g}: those whose probabilities moved most. Each has "
        f"its class, what it is predicted as at the slider's {label}, and below that its path from 0 on, filled where "
        f"it is right.{why}",
        "total": len(rows),
        "kinds": [
            {
                "title": title,
                "total": int(kind.sum()),
                "samples": [
                    {"row": row, "id": ids[row], "picture": pictures(row)} for row in order[kind][:SHOWN].tolist()
                ],
            }
            for title, kind in kinds.items()
        ],
    }


def provenance(source: Source) -> dict[str, Any]:
    """Where the numbers of a run come from: settings, seeds, hashes, versions."""
    recipe, first = source.run.recipe, source.results[0]
    settings = recipe.model_dump(mode="json")
    facts = {
        "recipe": recipe.name,
        "run folder": str(source.run.path),
        "protocol": recipe.protocol,
        "data": f"{described(recipe.data)}, {len(first['counts'])} classes, {sum(first['counts'])} training images",
        "seeds": ", ".join(str(seed.seed) for seed in source.run.seeds),
        "versions": ", ".join(f"{name} {version}" for name, version in first["versions"].items()),
    }
    return {
        "title": recipe.name,
        "facts": list(facts.items()),
        "seeds": [{key: result[key] for key in ("seed", "checkpoint", "subset_hash")} for result in source.results],
        "settings": [(name, "none" if value is None else value) for name, value in flat(settings).items()],
    }


def _chosen(source: Source, method: str, name: str) -> dict[str, Any] | None:
    """The strengths that the run's own row has, one for each seed; None where it has no such row."""
    row = next((row for row in summarize(source.results) if row["method"] == method), None)
    if row is None:
        return None
    values, origin = row[name]["values"], row[name]["from"]
    how = {"given": "given", "recipe": "the recipe's", "learned": "learned on train"}.get(origin, f"chosen on {origin}")
    listed = ", ".join(f"{value:g}" for value in values)
    return {"values": values, "text": f"{how}{', a seed each' if len(set(values)) > 1 else ''}: {listed}"}


def _nearest(values: Sequence[float], wanted: float) -> float:
    return min(values, key=lambda value: abs(value - wanted))


def _packed(test: Store, paths: Paths) -> dict[str, str]:
    return {
        "labels": packed(test.labels, "u2"),
        "pieces": packed(paths.pieces, "u2"),
        "starts": packed(paths.starts, "f8"),
        "classes": packed(paths.classes, "u2"),
    }


@torch.no_grad()
def _probabilities(seed: Trained, method: str, value: float, features: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = folded_at(seed, method, value)(features)
    return logits.double().softmax(dim=1)


def _pictures(seed: Trained, test: Store) -> tuple[Callable[[int], str | None], str]:
    """What gives the picture of a test image, and why there is none where there is none."""
    try:
        data = seed.data
        picture_of(data, seed.recipe, 0)
    except checks.InputError as error:
        return lambda _: None, f" Without pictures: {error}."
    place = {name: number for number, name in enumerate(data.test.ids.tolist())}

    def picture(row: int) -> str:
        image = picture_of(data, seed.recipe, place[test.ids[row].item()])
        return data_uri(png(np.rint(255.0 * image).astype(np.uint8)))

    return picture, ""
