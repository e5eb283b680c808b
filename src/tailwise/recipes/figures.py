"""What each figure of `tailwise plot` shows, computed from runs; `report.figures` draws it.

Where there are classes, they go from head to tail: by published training images, most first. Values are means over
seeds, with their spread.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tailwise import checks
from tailwise.adjust import head_cosine
from tailwise.classifiers import FoldedClassifier, LinearClassifier, NormalizedClassifier
from tailwise.counts import GROUPS, ClassCounts
from tailwise.evaluate import (
    Store,
    expected_calibration_error,
    group_confusion,
    reliability,
)
from tailwise.recipes.adjusters import features_of
from tailwise.recipes.measure import strength_curve
from tailwise.recipes.methods import METHODS, sweepable
from tailwise.recipes.runs import Run, SeedFolder, write_bytes
from tailwise.recipes.trained import Trained
from tailwise.report.figures import (
    Calibration,
    Categories,
    Confusions,
    Curves,
    FigureData,
    Illustration,
    Line,
    Matrix,
    Panel,
    PerClass,
    Reliabilities,
    Situation,
    rendered,
)
from tailwise.report.summary import over_seeds, summarize, swept
from tailwise.sampling import class_probabilities, progressive_probabilities

Values = NDArray[np.float64]
FORMATS = ("png", "svg")


@dataclass(frozen=True)
class Source:
    """A run that a figure is made from. open_seed: gives a seed's model, asked only where results will not do."""

    run: Run
    open_seed: Callable[[SeedFolder], Trained]

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


def figure_data(name: str, sources: Sequence[Source]) -> FigureData:
    """The data of a figure, one of `FIGURES`.

    Raises:
        InputError: an unknown name, no run where one is needed, runs of different data, a run (named) without what the
            figure needs.
    """
    checks.choice("figure", name, FIGURES)
    if name == "one-dimensional":
        if sources:
            raise checks.InputError(f"figure: one-dimensional is made from no run, got {sources[0].run.path}")
        return one_dimensional()
    if not sources:
        raise checks.InputError(f"figure: {name} expected at least one run folder, got none")
    _same_data(sources)
    return FIGURES[name](sources)


def write_figure(data: FigureData, out: Path) -> list[Path]:
    """Write OUT.png and OUT.svg, or the one that `out` ends in; returns the files.

    Both are drawn before the first is written, and each is written whole or not at all.

    Raises:
        InputError: no matplotlib, another ending, a file that cannot be written.
    """
    kind = check_ending(out)
    files = rendered(data, [kind] if kind else FORMATS)
    paths = {name: out if kind else out.with_name(f"{out.name}.{name}") for name in files}
    for name, content in files.items():
        write_bytes(paths[name], content)
    return list(paths.values())


def default_place(name: str, folders: Sequence[Path]) -> Path:
    """figures/NAME in the first folder, or NAME where there is none.

    Raises:
        InputError: the folder cannot be made.
    """
    if not folders:
        return Path(name)
    place = folders[0] / "figures"
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise checks.InputError(f"{place}: cannot make the folder ({error.strerror})") from error
    return place / name


def check_ending(out: Path) -> str | None:
    """png, svg, or None for a name without an ending.

    Raises:
        InputError: another ending.

    >>> check_ending(Path("a.svg")), check_ending(Path("plots/a"))
    ('svg', None)
    """
    kind = out.suffix.removeprefix(".").lower()
    if kind and kind not in FORMATS:
        raise checks.InputError(f"out: expected a name that ends in .png or .svg, or in neither for both, got {out}")
    return kind or None


# ---- the figures


def alpha(sources: Sequence[Source]) -> Curves:
    """Accuracy by group against alpha (Tang et al. 2020, Fig. 4): the curves of `tailwise sweep`."""
    return _strength_curves(sources, "tde", "Accuracy by group against alpha of total direct effect", "alpha")


def norm_power(sources: Sequence[Source]) -> Curves:
    """Accuracy by group against the norm power of tau-norm (Kang et al. 2020, Fig. 2 right)."""
    return _strength_curves(sources, "tau-norm", "Accuracy by group against norm power", "norm power")


def weight_norms(sources: Sequence[Source]) -> PerClass:
    """|w_j| of each class, as trained and after each adjustment (Tang et al. 2020, Fig. 6; Kang et al. 2020, Fig. 2).

    A classifier that is no single matrix, such as layers of them, has no such norm and is left out.
    """
    lines, left_out = [], []
    for source in sources:
        for method in source.run.rows:
            weights = [_weight(seed.on_test(method)[0]) for seed in source.seeds]
            norms = [torch.linalg.vector_norm(w, dim=1).double().numpy() for w in weights if w is not None]
            if len(norms) < len(weights):
                left_out.append(method)
            else:
                lines.append((_label(sources, source, method), norms))
    more = f"; without {', '.join(left_out)}, which are no single matrix" if left_out else ""
    title = "Length of each class's weights, as trained and after each adjustment"
    return _per_class(sources, title, "|w_j|", lines, _rows(sources), more=more, log=True)


def feature_norms(sources: Sequence[Source]) -> PerClass:
    """Mean |x| over the test images of each class (Tang et al. 2020, Fig. 1b)."""

    def norms(seed: Trained) -> Values:
        test = seed.stores.test()
        return _class_means(torch.linalg.vector_norm(features_of(test), dim=1), test)

    lines = [(_label(sources, source, source.own), [norms(seed) for seed in source.seeds]) for source in sources]
    return _per_class(
        sources, "Mean length of features by class", "mean |x|", lines, _owns(sources), more="; test images"
    )


def head_cosines(sources: Sequence[Source]) -> PerClass:
    """Mean cos(x, d) to the head direction d over the test images of each class (Tang et al. 2020, Assumption 1)."""

    def cosines(source: Source, seed: Trained) -> Values:
        classifier = seed.model.classifier
        if not isinstance(classifier, NormalizedClassifier):
            raise _lacks(source, "head-cosine", "a head direction (classifier cosine, capsule or causal)")
        test = seed.stores.test()
        return _class_means(head_cosine(features_of(test), classifier).detach(), test)

    lines = [
        (_label(sources, source, source.own), [cosines(source, seed) for seed in source.seeds]) for source in sources
    ]
    title = "How far features lean to the head direction, by class"
    return _per_class(sources, title, "mean cos(x, d)", lines, _owns(sources), more="; test images")


def confusion(sources: Sequence[Source]) -> Confusions:
    """Which group the predicted classes are of, for the test images of each group, in every row of the runs."""
    panels = []
    for source in sources:
        for method in source.run.rows:
            found = _line("", [_confusion(seed, method).ravel() for seed in source.seeds])
            shape = (len(GROUPS), len(GROUPS))
            spread = None if found.std is None else found.std.reshape(shape)
            panels.append(Matrix(_label(sources, source, method), found.mean.reshape(shape), spread))
    sizes = _published(sources[0]).group_sizes
    title = "Percent of each group's test images predicted as a class of each group, right or wrong"
    return Confusions(
        title, _caption(sources, _rows(sources)), tuple(f"{g} ({sizes[g]})" for g in GROUPS), tuple(panels)
    )


def reliabilities(sources: Sequence[Source]) -> Reliabilities:
    """Accuracy by confidence and expected calibration error (Guo et al. 2017), in every row of the runs."""
    panels, edges = [], np.zeros(0)
    for source in sources:
        for method in source.run.rows:
            bins, errors = [], []
            for seed in source.seeds:
                logits, test = _logits(seed, method)
                probabilities = logits.double().softmax(dim=1).numpy()
                bins.append(reliability(probabilities, np.asarray(test.labels)))
                errors.append(expected_calibration_error(probabilities, np.asarray(test.labels)))
            edges = 100 * bins[0].edges
            ece = _line("", [np.array([error]) for error in errors])
            spread = "" if ece.std is None else f" ± {ece.std[0]:.1f}"
            panels.append(
                Calibration(
                    f"{_label(sources, source, method)}\nECE {ece.mean[0]:.1f}{spread} %",
                    _line("accuracy", [100 * b.accuracy for b in bins]),
                    np.mean([100 * b.count / b.count.sum() for b in bins], axis=0),
                )
            )
    title = "Accuracy of test images by confidence, and expected calibration error (ECE)"
    return Reliabilities(title, _caption(sources, _rows(sources)), edges, tuple(panels))


def sampling(sources: Sequence[Source]) -> PerClass:
    """Probability of drawing each class (Kang et al. 2020, Fig. 3), from the counts of the training images alone."""
    if len(sources) > 1:
        raise checks.InputError(f"figure: sampling is made from one run, got {', '.join(_paths(sources))}")
    (source,) = sources
    epochs = source.run.recipe.stages[0].epochs
    counts = [ClassCounts(tuple(result["counts"])) for result in source.results]
    fixed = {"instance-balanced, q = 1": 1.0, "square-root, q = 1/2": 0.5, "class-balanced, q = 0": 0.0}
    left = [(label, [class_probabilities(c, q) for c in counts]) for label, q in fixed.items()]
    times = sorted({round(epochs * part / 4) for part in range(5)})
    right = [
        (f"progressive, epoch {t} of {epochs}", [progressive_probabilities(c, t, epochs) for c in counts])
        for t in times
    ]
    whole = _per_class(sources, "Probability of drawing each class", "p_j", left, (), log=True, show_counts=False)
    progressive = _per_class(sources, "", "", right, ()).panels[0]
    panels = Panel("", whole.panels[0].lines), Panel("", progressive.lines)
    return PerClass(**{**vars(whole), "panels": panels})


def classifiers_by_sampler(sources: Sequence[Source]) -> Categories:
    """Accuracy of each classifier on features learned under each sampler (Kang et al. 2020, Fig. 1), by group."""
    found: dict[tuple[str, str], tuple[dict[str, Any], Source]] = {}
    for source in sources:
        sampler = source.run.recipe.stages[0].sampler
        for row in summarize(source.results):
            other = found.setdefault((row["method"], sampler), (row, source))[1]
            if other is not source:
                raise checks.InputError(
                    f"{source.run.path}: expected one run with {row['method']} under the sampler {sampler}, "
                    f"got {other.run.path}, too"
                )
    methods = list(dict.fromkeys(method for method, _ in found))
    samplers = list(dict.fromkeys(sampler for _, sampler in found))
    several = any(len(source.results) > 1 for source in sources)

    def line(sampler: str, group: str) -> Line:
        cells = [found[m, sampler][0][group] if (m, sampler) in found else None for m in methods]
        return _line_of(sampler, cells, several)

    sizes = _published(sources[0]).group_sizes
    panels = tuple(
        Panel(f"{group} ({sizes[group]})" if group in sizes else group, tuple(line(s, group) for s in samplers))
        for group in (*GROUPS, "all")
    )
    title = "Accuracy by classifier, on features learned under each sampler"
    return Categories(title, _caption(sources, methods), "classifier", "test accuracy in %", tuple(methods), panels)


def one_dimensional(separation: float = 1.2, ratio: float = 50.0, worse: float = 0.7) -> Illustration:
    """Two classes on one axis: what re-balancing (NDE) and TDE do to a classifier (Tang et al. 2020, Fig. 7).

    A head and a tail class are N(+m, 1) and N(-m, 1). The classifier that is best on training data has the logit
    z = 2 m x + log(ratio), cut at 0: log(ratio) is what training prefers the head by. Two-stage re-balancing cuts the
    same z at log(ratio); TDE takes log(ratio) from z and cuts at 0: the same decisions. One-stage re-balancing has
    z = 2 m' x, with m' = worse * m: that its features are worse is the paper's claim, an assumption here.

    Args:
        separation: m.
        ratio: training images of the head class for each of the tail class.
        worse: m' / m, at most 1.

    >>> conventional, _, two_stage, tde = one_dimensional().panels
    >>> two_stage.right == tde.right, conventional.right["tail"] < tde.right["tail"]
    (True, True)
    """
    m, offset = checks.number("separation", separation, above=0), math.log(checks.number("ratio", ratio, above=0))
    least = checks.number("worse", worse, above=0) * m
    reach = 2 * m * m + 3.2 * 2 * m
    z = np.linspace(-reach, reach + offset, 401)

    def densities(m: float, shift: float) -> tuple[Values, Values]:
        head, tail = (_normal((z - shift - mean) / (2 * m)) / (2 * m) for mean in (2 * m * m, -2 * m * m))
        return head, tail

    def right(m: float, beyond: float) -> dict[str, float]:
        """Percent right of a cut that lies `beyond` the middle of both classes, to the head's side."""
        head, tail = _below(m - beyond / (2 * m)), _below(m + beyond / (2 * m))
        return {"head": 100 * head, "tail": 100 * tail, "mean": 50 * (head + tail)}

    trained = densities(m, offset)
    panels = (
        Situation("conventional", *trained, 0.0, right(m, -offset)),
        Situation("one-stage re-balancing", *densities(least, 0.0), 0.0, right(least, 0.0)),
        Situation("two-stage re-balancing (NDE)", *trained, offset, right(m, 0.0), boundary_before=0.0),
        Situation("total direct effect (TDE)", *densities(m, 0.0), 0.0, right(m, 0.0), before=trained),
    )
    caption = (
        f"computed, no run: N(+{m:g}, 1) and N(-{m:g}, 1), imbalance ratio {ratio:g}; one-stage features "
        f"{worse:g} as far apart, by assumption; dotted: before; right: of balanced test data"
    )
    return Illustration("A head and a tail class in one dimension", caption, "logit", z, panels)


FIGURES: dict[str, Callable[[Sequence[Source]], FigureData]] = {
    "alpha": alpha,
    "norm-power": norm_power,
    "weight-norms": weight_norms,
    "feature-norms": feature_norms,
    "head-cosine": head_cosines,
    "confusion": confusion,
    "reliability": reliabilities,
    "sampling": sampling,
    "classifiers-by-sampler": classifiers_by_sampler,
    "one-dimensional": lambda _: one_dimensional(),
}


# ---- what they share


def _strength_curves(sources: Sequence[Source], adjust: str, title: str, x_label: str) -> Curves:
    panels, grid, methods = [], np.zeros(0), []
    for source in sources:
        method = sweepable(source.run.recipe.classifier.name)
        if METHODS[method].adjust != adjust:
            kinds = {"tde": "a cosine, capsule or causal classifier", "tau-norm": "a linear classifier"}
            raise _lacks(source, x_label.replace(" ", "-"), kinds[adjust])
        record = swept(source.run.recipe.name, source.results, [strength_curve(s, method) for s in source.seeds])
        methods += [source.own, method]
        grid, chosen = np.array(record["values"]), record["chosen"]
        sizes = {**record["group_sizes"]}
        for split in (name for name in ("val", "test") if name in record):
            lines = [
                _line_of(f"{group} ({sizes[group]})", cells, len(source.results) > 1)
                for group, cells in record[split].items()
                if group in sizes
            ]
            here = chosen is not None and chosen["from"] == split
            note = ", dotted: chosen here" if here else ""
            marks = tuple(sorted(set(chosen["values"]))) if here else ()
            panels.append(Panel(f"{method}, {split}{note}", tuple(lines), marks))
    return Curves(title, _caption(sources, list(dict.fromkeys(methods))), x_label, "accuracy in %", grid, tuple(panels))


def _per_class(
    sources: Sequence[Source],
    title: str,
    y_label: str,
    lines: Sequence[tuple[str, Sequence[Values]]],
    methods: Sequence[str],
    *,
    more: str = "",
    log: bool = False,
    show_counts: bool = True,
) -> PerClass:
    """A figure over classes: the values of each line are one [C] for each seed, in the order of class numbers."""
    published, result = _published(sources[0]), sources[0].results[0]
    order = np.argsort(-np.array(published.per_class), kind="stable")
    return PerClass(
        title,
        _caption(sources, methods) + more,
        y_label,
        tuple(str(result["class_names"][c]) for c in order),
        np.array(result["counts"])[order],
        published.group_sizes,
        (Panel("", tuple(_line(label, [values[order] for values in seeds]) for label, seeds in lines)),),
        show_counts,
        log,
    )


def _line(label: str, seeds: Sequence[Values]) -> Line:
    """Mean and sample standard deviation over seeds of what was measured, NaN where nothing or too little was."""
    values = np.stack(seeds).astype(np.float64)
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    mean = _ratio(np.where(known, values, 0).sum(axis=0), count)
    if len(seeds) == 1:
        return Line(label, mean)
    square = np.where(known, (values - mean) ** 2, 0).sum(axis=0)
    return Line(label, mean, np.sqrt(_ratio(square, count - 1)))


def _line_of(label: str, cells: Sequence[dict[str, float | None] | None], several: bool) -> Line:
    """The line of cells as `report.summary` makes them; None becomes NaN."""
    mean, std = (
        np.array([np.nan if cell is None or cell[key] is None else cell[key] for cell in cells], dtype=np.float64)
        for key in ("mean", "std")
    )
    return Line(label, mean, std if several else None)


def _ratio(total: NDArray[Any], count: NDArray[Any]) -> Values:
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def _class_means(values: Tensor, store: Store) -> Values:
    """The mean over the samples of each class, [C]; NaN for a class without one."""
    labels, num_classes = np.asarray(store.labels), store.logits.shape[1]
    total = np.bincount(labels, weights=values.double().numpy(), minlength=num_classes)
    return _ratio(total, np.bincount(labels, minlength=num_classes))


def _weight(classifier: nn.Module) -> Tensor | None:
    if isinstance(classifier, LinearClassifier | NormalizedClassifier | FoldedClassifier):
        return classifier.weight.detach()
    return None


@torch.no_grad()
def _logits(seed: Trained, method: str) -> tuple[Tensor, Store]:
    """A method's logits on test: the stored ones of the trained classifier, as its row has them."""
    classifier, test, _ = seed.on_test(method)
    if METHODS[method].adjust is None:
        return torch.from_numpy(np.array(test.logits)), test
    return classifier(features_of(test)), test


def _confusion(seed: Trained, method: str) -> Values:
    logits, test = _logits(seed, method)
    return group_confusion(logits.argmax(dim=1).numpy(), np.asarray(test.labels), seed.published)


def _published(source: Source) -> ClassCounts:
    return ClassCounts(tuple(source.results[0]["published_counts"]))


def _label(sources: Sequence[Source], source: Source, method: str) -> str:
    """The method, and the recipe where several runs have one."""
    others = [row for other in sources if other is not source for row in other.run.rows]
    return f"{source.run.recipe.title}: {method}" if method in others else method


def _owns(sources: Sequence[Source]) -> list[str]:
    return list(dict.fromkeys(source.own for source in sources))


def _rows(sources: Sequence[Source]) -> list[str]:
    return list(dict.fromkeys(row for source in sources for row in source.run.rows))


def _caption(sources: Sequence[Source], methods: Sequence[str]) -> str:
    """Data, methods, seeds and protocol."""
    recipe = sources[0].run.recipe
    over = {source.run.recipe.title: over_seeds([seed.seed for seed in source.run.seeds]) for source in sources}
    seeds = [f"{title}: {text}" for title, text in over.items()]
    if len(set(over.values())) == 1:
        seeds = list(over.values())[:1]
    protocols = dict.fromkeys(source.run.recipe.protocol for source in sources)
    data = f"{recipe.data.name}, imbalance ratio {recipe.data.imbalance_ratio:g}"
    return "; ".join(filter(None, (data, ", ".join(methods), *seeds, f"protocol {', '.join(protocols)}")))


def _same_data(sources: Sequence[Source]) -> None:
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


def _paths(sources: Sequence[Source]) -> list[str]:
    return [str(source.run.path) for source in sources]


def _lacks(source: Source, figure: str, needed: str) -> checks.InputError:
    found = source.run.recipe.classifier.name
    return checks.InputError(f"{source.run.path}: figure {figure} needs {needed}, this run trained {found}")


def _normal(x: Values) -> Values:
    return np.asarray(np.exp(-x * x / 2) / math.sqrt(2 * math.pi))


def _below(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))
