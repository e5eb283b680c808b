"""Runs of random classifiers, as training would leave them, and what tests of figures ask of the data."""

import json
import statistics

import numpy as np
import pytest
import torch

from tailwise import CausalClassifier, LinearClassifier
from tailwise.classifiers import FoldedClassifier
from tailwise.evaluate import Store
from tailwise.experiments.kept import save_adjusted
from tailwise.experiments.runs import Run, SeedFolder
from tailwise.experiments.trained import Trained
from tailwise.figures import Source
from tailwise.recipes.catalog import RECIPES
from tailwise.recognizer import Recognizer

D = 16
DIGITS = (110, 71, 46, 29, 19, 12, 8, 5, 3, 2)


class Width(torch.nn.Module):
    """A backbone that is never asked for features."""

    num_features = D


def made_run(
    folder, counts, *, linear=False, seeds=2, per_class=4, shuffle=False, title=None, names=None, salt=0, **settings
):
    """A run of random classifiers and stores, as training would leave it; classes may be in any order.

    settings: of the first stage, or `backbone`.
    """
    counts = np.array(counts)
    if shuffle:
        counts = np.random.default_rng(5).permutation(counts)
    num_classes = len(counts)
    recipe = RECIPES["digits-lt/decoupling" if linear else "digits-lt/tde"]
    change = {"methods": ("joint", "ncm", "tau-norm", "crt")} if linear else {}
    if "backbone" in settings:
        change["backbone"] = recipe.backbone.model_copy(update={"name": settings.pop("backbone")})
    if settings:
        change["stages"] = (recipe.stages[0].model_copy(update=settings),)
    if title:
        change["name"] = f"digits-lt/{title}"
    recipe = recipe.model_copy(update=change)
    opened = {}
    for seed in range(seeds):
        torch.manual_seed(100 * salt + seed)
        path = folder / f"seed-{seed}"
        classifier = LinearClassifier(D, num_classes) if linear else CausalClassifier(D, num_classes)
        classifier.weight.data *= torch.from_numpy(counts).float().clamp_min(1)[:, None] ** 0.3
        if not linear:
            classifier(torch.rand(8, D))
        classifier.eval()
        centres = torch.randn(num_classes, D) + 0.5
        for split in ("train", "val", "test"):
            labels = torch.arange(num_classes).repeat_interleave(per_class)
            features = centres[labels] + 0.5 * torch.randn(len(labels), D)
            with torch.no_grad():
                logits = classifier(features)
            arrays = (x.numpy() for x in (features, logits, labels, torch.arange(len(labels))))
            Store(*arrays, checkpoint="digest", split=split).save(path / "stores" / split)
        about = {
            "seed": seed,
            "subset_hash": "h",
            "protocol": "clean",
            "published_counts": counts.tolist(),
            "counts": counts.tolist(),
            "class_names": names or [f"{c}" for c in range(num_classes)],
            "versions": {},
        }
        model = Recognizer(Width(), classifier)
        if linear:
            crt = FoldedClassifier(torch.randn(num_classes, D))
            notes = {"method": "crt", "of": "digest", "seed": seed, "notes": {}}
            save_adjusted(path / "adjusted/crt.safetensors", Recognizer(Width(), crt), notes, own_features=False)
        trained = Trained(path, recipe, seed, model, "digest", about, lambda: pytest.fail("no images are needed"))
        rows = {method: trained.row(method) for method in recipe.methods}
        (path / "results.json").write_text(
            json.dumps({**about, "recipe": recipe.model_dump(), "checkpoint": "digest", "rows": rows})
        )
        opened[seed] = trained
    run = Run(folder, recipe, tuple(SeedFolder(folder / f"seed-{s}", recipe, s) for s in range(seeds)))
    return Source(run, lambda seed: opened[seed.seed])


def head_to_tail(source):
    counts = source.results[0]["published_counts"]
    return sorted(range(len(counts)), key=lambda c: -counts[c])


def expect_line(line, seeds, order=None):
    """Mean and sample standard deviation, class by class, with the standard library."""
    seeds = [values if order is None else [values[c] for c in order] for values in seeds]
    assert line.mean.tolist() == pytest.approx([statistics.fmean(cell) for cell in zip(*seeds, strict=True)])
    if len(seeds) == 1:
        assert line.std is None
    else:
        spread = [statistics.stdev(cell) for cell in zip(*seeds, strict=True)]
        assert line.std.tolist() == pytest.approx(spread, abs=1e-6)


def by_label(panel):
    return {line.label: line for line in panel.lines}
