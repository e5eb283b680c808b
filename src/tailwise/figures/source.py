"""What figures are made from, and what they share: rows of runs, lines over seeds, captions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.evaluate import Store
from tailwise.experiments.adjusters import features_of, strength_name
from tailwise.experiments.runs import Run, SeedFolder
from tailwise.experiments.trained import AS_IT_IS, Asked, Made, Trained
from tailwise.recipes.datasets import described
from tailwise.recipes.methods import METHODS, adjusters_of
from tailwise.report.figures import Line, Values
from tailwise.report.summary import over_seeds


@dataclass(frozen=True)
class Source:
    """A run that a figure is made from.

    open_seed: gives a seed's model, asked only where results will not do. asked_rows: those to show in place of what
    the run reports. asked: how strong they are, or what that is chosen by.
    """

    run: Run
    open_seed: Callable[[SeedFolder], Trained]
    asked_rows: tuple[str, ...] | None = None
    asked: Asked = AS_IT_IS

    @cached_property
    def results(self) -> list[dict[str, Any]]:
        return [seed.results() for seed in self.run.seeds]

    @cached_property
    def seeds(self) -> list[Trained]:
        return [self.open_seed(seed) for seed in self.run.seeds]

    @property
    def own(self) -> str:
        """The method of the trained classifier itself."""
        return self.run.recipe.methods[0]

    @property
    def rows(self) -> Sequence[str]:
        return self.run.rows if self.asked_rows is None else self.asked_rows


@dataclass(frozen=True)
class Measured:
    """A method of one seed, and the test images as its classifier sees them."""

    seed: Trained
    made: Made

    @property
    def method(self) -> str:
        return self.made.method

    @property
    def classifier(self) -> nn.Module:
        return self.made.model.classifier

    @property
    def test(self) -> Store:
        return self.made.stores.test()

    @cached_property
    def logits(self) -> Tensor:
        """On the test images; the stored ones of the trained classifier, as its row has them."""
        if METHODS[self.method].adjust is None:
            return torch.from_numpy(np.array(self.test.logits))
        with torch.no_grad():
            logits: Tensor = self.classifier(features_of(self.test))
            return logits


def measure_row(source: Source, seed: Trained, method: str) -> Measured:
    """A method of one seed of a run, as strong as is asked."""
    return Measured(seed, seed.made(method, source.asked))


def every_row(sources: Sequence[Source]) -> Iterator[tuple[str, list[Measured]]]:
    """Each row of each run, of every seed, under its label: the method, its strength, and what else tells it apart."""
    for source in sources:
        for method in source.rows:
            seeds = [measure_row(source, seed, method) for seed in source.seeds]
            yield label(sources, source, method) + strength_of(seeds), seeds


def strength_of(seeds: Sequence[Measured]) -> str:
    """Over seeds, to stand behind a method; nothing for a method without one."""
    name = strength_name(seeds[0].method)
    if name is None:
        return ""
    values = sorted({measured.made.notes[name]["value"] for measured in seeds})
    ends = [f"{value:.3g}" for value in (values[0], values[-1])]
    return f", {name.removeprefix('norm_')} {' to '.join(dict.fromkeys(ends))}"


def with_rows(sources: Sequence[Source], methods: Sequence[str], asked: Asked) -> list[Source]:
    """The runs with the rows that are asked for; a run that has none of them is left out.

    Without methods: what each run reports, and those that a given strength belongs to.

    Raises:
        InputError: an unknown method, one that no run has, a strength that no row has.
    """
    given = {"tde": asked.alpha, "tau-norm": asked.power}
    found = []
    for source in sources:
        kind = source.run.recipe.classifier.name
        made = [name for name in adjusters_of(kind) if METHODS[name].adjust != "second-stage"]
        if methods:
            rows = [name for name in methods if name in source.run.rows or name in made]
        else:
            there = {METHODS[name].adjust for name in source.run.rows}
            new = [adjust for adjust, strength in given.items() if strength is not None and adjust not in there]
            rows = [*source.run.rows, *(name for name in made if METHODS[name].adjust in new)]
        found.append(replace(source, asked_rows=tuple(rows), asked=asked))
    every = list(dict.fromkeys(row for source in found for row in source.rows))
    for method in methods:
        checks.choice("method", method, METHODS)
        if method not in every:
            reported = dict.fromkeys(row for source in sources for row in source.run.rows)
            raise checks.InputError(f"method: expected one of these runs, as {', '.join(reported)}, got '{method}'")
    for name, adjust in (("alpha", "tde"), ("power", "tau-norm")):
        if given[adjust] is not None and not any(METHODS[row].adjust == adjust for row in every):
            raise checks.InputError(f"{name}: expected a method that has one, got {', '.join(every)}")
    if asked.metric and not any(METHODS[row].adjust in given for row in every):
        raise checks.InputError(f"metric: expected a method whose strength is chosen, got {', '.join(every)}")
    return [source for source in found if source.rows]


def line(label: str, seeds: Sequence[Values]) -> Line:
    """Mean and sample standard deviation over seeds of what was measured, NaN where nothing or too little was."""
    values = np.stack(seeds).astype(np.float64)
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    mean = ratio(np.where(known, values, 0).sum(axis=0), count)
    if len(seeds) == 1:
        return Line(label, mean)
    square = np.where(known, (values - mean) ** 2, 0).sum(axis=0)
    return Line(label, mean, np.sqrt(ratio(square, count - 1)))


def line_of(label: str, cells: Sequence[dict[str, float | None] | None], *, several: bool) -> Line:
    """The line of cells as `report.summary` makes them; None becomes NaN. several: whether there are several seeds."""
    mean, std = (
        np.array([np.nan if cell is None or cell[key] is None else cell[key] for cell in cells], dtype=np.float64)
        for key in ("mean", "std")
    )
    return Line(label, mean, std if several else None)


def ratio(total: NDArray[Any], count: NDArray[Any]) -> Values:
    """total / count, NaN where count is 0."""
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def published(source: Source) -> ClassCounts:
    """Images per class of the published training set, which groups and the order of classes go by."""
    return ClassCounts(tuple(source.results[0]["published_counts"]))


def label(sources: Sequence[Source], source: Source, method: str) -> str:
    """The method, and the run where several have it."""
    others = [row for other in sources if other is not source for row in other.rows]
    return f"{name_of(sources, source)}: {method}" if method in others else method


def name_of(sources: Sequence[Source], source: Source) -> str:
    """What tells a run from the others: its recipe, else its folder's name, else the whole path."""
    names = [(one.run.recipe.title, one.run.path.name) for one in sources]
    for part, name in enumerate((source.run.recipe.title, source.run.path.name)):
        if [pair[part] for pair in names].count(name) == 1:
            return name
    return str(source.run.path)


def owns(sources: Sequence[Source]) -> list[str]:
    """The method of each trained classifier, once."""
    return list(dict.fromkeys(source.own for source in sources))


def rows(sources: Sequence[Source]) -> list[str]:
    """Each row of any run, once."""
    return list(dict.fromkeys(row for source in sources for row in source.rows))


def caption(sources: Sequence[Source], methods: Sequence[str]) -> str:
    """Data, methods, seeds and protocol."""
    recipe = sources[0].run.recipe
    over = [over_seeds([seed.seed for seed in source.run.seeds]) for source in sources]
    seeds = [f"{name_of(sources, source)}: {text}" for source, text in zip(sources, over, strict=True)]
    if len(set(over)) == 1:
        seeds = over[:1]
    protocols = dict.fromkeys(source.run.recipe.protocol for source in sources)
    return "; ".join(
        filter(None, (described(recipe.data), ", ".join(methods), *seeds, f"protocol {', '.join(protocols)}"))
    )


def check_same_data(sources: Sequence[Source]) -> None:
    """Refuse runs of different data or counts, and results that do not say."""
    first = sources[0]
    for source in sources:
        for result in source.results:
            for key in ("published_counts", "counts", "class_names"):
                if result.get(key) is None:
                    raise checks.InputError(f"{source.run.path}: expected results with {key}, got none")
                if source.run.recipe.data.name != first.run.recipe.data.name or result[key] != first.results[0][key]:
                    raise checks.InputError(
                        f"{source.run.path}: expected a run of the same data and training images per class as "
                        f"{first.run.path}, got {source.run.recipe.data.name} with other {key.replace('_', ' ')}"
                    )


def lacks(source: Source, figure: str, needed: str) -> checks.InputError:
    """What to raise for a run that a figure cannot be made of."""
    found = source.run.recipe.classifier.name
    return checks.InputError(f"{source.run.path}: figure {figure} needs {needed}, this run trained {found}")
