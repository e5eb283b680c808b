"""Accuracy against the strength of an adjustment."""

from collections.abc import Sequence

import numpy as np

from tailwise.experiments.measure import strength_curve
from tailwise.figures.source import Source, caption, lacks, line_of
from tailwise.recipes.methods import METHODS, sweepable
from tailwise.report.figures import Curves, Panel
from tailwise.report.summary import swept


def alpha(sources: Sequence[Source]) -> Curves:
    """Accuracy by group against alpha (Tang et al. 2020, Fig. 4): the curves of `tailwise sweep`."""
    return _strength_curves(sources, "tde", "Accuracy by group against alpha of total direct effect", "alpha")


def norm_power(sources: Sequence[Source]) -> Curves:
    """Accuracy by group against the norm power of tau-norm (Kang et al. 2020, Fig. 2 right)."""
    return _strength_curves(sources, "tau-norm", "Accuracy by group against norm power", "norm power")


def _strength_curves(sources: Sequence[Source], adjust: str, title: str, x_label: str) -> Curves:
    panels, grid, methods = [], np.zeros(0), []
    for source in sources:
        method = sweepable(source.run.recipe.classifier.name)
        if METHODS[method].adjust != adjust:
            kinds = {"tde": "a cosine, capsule or causal classifier", "tau-norm": "a linear classifier"}
            raise lacks(source, x_label.replace(" ", "-"), kinds[adjust])
        record = swept(
            source.run.recipe.name,
            source.results,
            [strength_curve(seed, method, source.asked) for seed in source.seeds],
        )
        methods += [source.own, method]
        grid, chosen = np.array(record["values"]), record["chosen"]
        sizes = {**record["group_sizes"]}
        for split in (name for name in ("val", "test") if name in record):
            lines = [
                line_of(f"{group} ({sizes[group]})", cells, several=len(source.results) > 1)
                for group, cells in record[split].items()
                if group in sizes
            ]
            here = chosen is not None and chosen["from"] == split
            note = ", dotted: chosen here" if here else ""
            marks = tuple(sorted(set(chosen["values"]))) if here else ()
            panels.append(Panel(f"{method}, {split}{note}", tuple(lines), marks))
    return Curves(title, caption(sources, list(dict.fromkeys(methods))), x_label, "accuracy in %", grid, tuple(panels))
