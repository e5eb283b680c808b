"""Runs that differ in one setting, side by side, from their results alone."""

from collections.abc import Callable, Sequence

import numpy as np

from tailwise import checks
from tailwise.counts import GROUPS
from tailwise.figures.source import Source, caption, line, line_of, owns, published, ratio
from tailwise.report.figures import Categories, Curves, Line, Panel, Values
from tailwise.report.summary import Result, summarize

Setting = Callable[[Source], str]


def classifiers_by_sampler(sources: Sequence[Source]) -> Categories:
    """Accuracy of each classifier on features learned under each sampler (Kang et al. 2020, Fig. 1), by group."""
    title = "Accuracy by classifier, on features learned under each sampler"
    return _side_by_side(sources, "sampler", lambda source: source.run.recipe.stages[0].sampler, title, "method")


def backbones(sources: Sequence[Source]) -> Categories:
    """Accuracy of each method on each backbone (Kang et al. 2020, Fig. 5), by group."""
    title = "Accuracy by backbone, of each method"
    return _side_by_side(sources, "backbone", lambda source: source.run.recipe.backbone.name, title, "setting")


def momentum(sources: Sequence[Source]) -> Curves:
    """Relative change of accuracy against the momentum of the optimiser (Tang et al. 2020, Fig. 1c), by group.

    100 (accuracy / accuracy under the largest momentum - 1) of each seed, on the same subset, of the trained classifier
    itself. A group with no image right under the largest momentum has no relative change.

    Raises:
        InputError: runs of one momentum alone, two of one, or of different methods, seeds or subsets.
    """
    found: dict[float, Source] = {}
    for source in sources:
        value = source.run.recipe.stages[0].momentum
        _refuse_second(found.setdefault(value, source), source, f"momentum {value:g}")
    if len(found) < 2 or len(owns(sources)) > 1:
        got = f"{', '.join(f'{value:g}' for value in found)} of {', '.join(owns(sources))}"
        raise checks.InputError(f"figure: momentum expected runs of one method under at least two momenta, got {got}")
    values = sorted(found)
    base = found[values[-1]]
    for source in sources:
        if _subsets(source.results) != _subsets(base.results):
            raise checks.InputError(f"{source.run.path}: expected the seeds and subsets of {base.run.path}, got others")
    sizes = published(base).group_sizes
    lines = []
    for group, size in {**sizes, "all": sum(sizes.values())}.items():
        at = [_accuracies(found[value], group) for value in values]
        changes = np.stack([_relative(accuracies, at[-1]) for accuracies in at], axis=1)
        of_base = line("", [np.array([accuracy]) for accuracy in at[-1]]).mean[0]
        name = f"{group} ({size})" + ("" if np.isnan(of_base) else f": {of_base:.1f} % at {values[-1]:g}")
        lines.append(line(name, list(changes)))
    rates = sorted({source.run.recipe.stages[0].learning_rate for source in sources})
    note = f"learning rate {' to '.join(dict.fromkeys(f'{rate:g}' for rate in (rates[0], rates[-1])))}"
    return Curves(
        f"Relative change of test accuracy, from momentum {values[-1]:g}",
        f"{caption(sources, owns(sources))}; {note}",
        "momentum",
        f"change in % of that at {values[-1]:g}",
        np.array(values),
        (Panel("", tuple(lines)),),
        is_change=True,
        x_is_momentum=True,
    )


def _side_by_side(sources: Sequence[Source], name: str, setting: Setting, title: str, along: str) -> Categories:
    """Accuracy by group of each (method, setting); along: which of the two the axis is of, the other has lines."""
    found: dict[tuple[str, str], tuple[Result, Source]] = {}
    for source in sources:
        for row in summarize(source.results):
            key = row["method"], setting(source)
            other = found.setdefault(key, (row, source))[1]
            _refuse_second(other, source, f"{key[0]} under the {name} {key[1]}")
    methods = list(dict.fromkeys(method for method, _ in found))
    settings = list(dict.fromkeys(value for _, value in found))
    several = any(len(source.results) > 1 for source in sources)
    names, lines = (methods, settings) if along == "method" else (settings, methods)

    def line_for(one: str, group: str) -> Line:
        keys = [(other, one) if along == "method" else (one, other) for other in names]
        return line_of(one, [found[key][0][group] if key in found else None for key in keys], several=several)

    sizes = published(sources[0]).group_sizes
    panels = tuple(
        Panel(f"{group} ({sizes[group]})" if group in sizes else group, tuple(line_for(one, group) for one in lines))
        for group in (*GROUPS, "all")
    )
    axis = "classifier" if along == "method" else name
    return Categories(title, caption(sources, methods), axis, "test accuracy in %", tuple(names), panels)


def _refuse_second(first: Source, source: Source, what: str) -> None:
    if first is not source:
        raise checks.InputError(f"{source.run.path}: expected one run with {what}, got {first.run.path}, too")


def _subsets(results: Sequence[Result]) -> list[tuple[int, str]]:
    return [(result["seed"], result["subset_hash"]) for result in results]


def _accuracies(source: Source, group: str) -> Values:
    """Of the trained classifier, one for each seed; NaN for an empty group."""
    return np.array([result["rows"][source.own][group] for result in source.results], dtype=np.float64)


def _relative(values: Values, base: Values) -> Values:
    return 100 * (ratio(values, base) - 1)
