"""Lines over classes, from head to tail."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tailwise import checks
from tailwise.adjust import head_cosine
from tailwise.classifiers import FoldedClassifier, LinearClassifier, NormalizedClassifier
from tailwise.counts import ClassCounts
from tailwise.evaluate import Store
from tailwise.experiments.adjusters import features_of
from tailwise.experiments.trained import Trained
from tailwise.figures.source import Source, caption, every_row, label, lacks, line, owns, published, ratio, rows
from tailwise.report.figures import Panel, PerClass, Values
from tailwise.sampling import class_probabilities, progressive_probabilities


def weight_norms(sources: Sequence[Source]) -> PerClass:
    """|w_j| of each class, as trained and after each adjustment (Tang et al. 2020, Fig. 6; Kang et al. 2020, Fig. 2).

    A classifier that is no single matrix, such as layers of them, has no such norm and is left out.
    """
    lines, left_out = [], []
    for name, seeds in every_row(sources):
        weights = [weight_of(measured.classifier) for measured in seeds]
        norms = [torch.linalg.vector_norm(w, dim=1).double().numpy() for w in weights if w is not None]
        if len(norms) < len(weights):
            left_out.append(seeds[0].method)
        else:
            lines.append((name, norms))
    more = f"; without {', '.join(left_out)}, which are no single matrix" if left_out else ""
    title = "Length of each class's weights, as trained and after each adjustment"
    return _per_class(sources, title, "|w_j|", lines, rows(sources), more=more, log=True)


def feature_norms(sources: Sequence[Source]) -> PerClass:
    """Mean |x| over the test images of each class (Tang et al. 2020, Fig. 1b)."""

    def norms(seed: Trained) -> Values:
        test = seed.stores.test()
        return _class_means(torch.linalg.vector_norm(features_of(test), dim=1), test)

    lines = [(label(sources, source, source.own), [norms(seed) for seed in source.seeds]) for source in sources]
    return _per_class(
        sources, "Mean length of features by class", "mean |x|", lines, owns(sources), more="; test images"
    )


def head_cosines(sources: Sequence[Source]) -> PerClass:
    """Mean cos(x, d) to the head direction d over the test images of each class (Tang et al. 2020, Assumption 1)."""

    def cosines(source: Source, seed: Trained) -> Values:
        classifier = seed.model.classifier
        if not isinstance(classifier, NormalizedClassifier):
            raise lacks(source, "head-cosine", "a head direction (classifier cosine, capsule or causal)")
        test = seed.stores.test()
        return _class_means(head_cosine(features_of(test), classifier).detach(), test)

    lines = [
        (label(sources, source, source.own), [cosines(source, seed) for seed in source.seeds]) for source in sources
    ]
    title = "How far features lean to the head direction, by class"
    return _per_class(sources, title, "mean cos(x, d)", lines, owns(sources), more="; test images")


def sampling(sources: Sequence[Source]) -> PerClass:
    """Probability of drawing each class (Kang et al. 2020, Fig. 3), from the counts of the training images alone."""
    if len(sources) > 1:
        got = ", ".join(str(source.run.path) for source in sources)
        raise checks.InputError(f"figure: sampling is made from one run, got {got}")
    (source,) = sources
    epochs = source.run.recipe.stages[0].epochs
    counts = [ClassCounts(tuple(result["counts"])) for result in source.results]
    fixed = {"instance-balanced, q = 1": 1.0, "square-root, q = 1/2": 0.5, "class-balanced, q = 0": 0.0}
    left = [(name, [class_probabilities(c, q) for c in counts]) for name, q in fixed.items()]
    times = sorted({round(epochs * part / 4) for part in range(5)})
    right = [
        (f"progressive, epoch {t} of {epochs}", [progressive_probabilities(c, t, epochs) for c in counts])
        for t in times
    ]
    whole = _per_class(sources, "Probability of drawing each class", "p_j", left, (), log=True, show_counts=False)
    progressive = _per_class(sources, "", "", right, ()).panels[0]
    panels = Panel("", whole.panels[0].lines), Panel("", progressive.lines)
    return PerClass(**{**vars(whole), "panels": panels})


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
    counts, result = published(sources[0]), sources[0].results[0]
    order = np.argsort(-np.array(counts.per_class), kind="stable")
    return PerClass(
        title,
        caption(sources, methods) + more,
        y_label,
        tuple(str(result["class_names"][c]) for c in order),
        np.array(result["counts"])[order],
        counts.group_sizes,
        (Panel("", tuple(line(name, [values[order] for values in seeds]) for name, seeds in lines)),),
        show_counts,
        log,
    )


def _class_means(values: Tensor, store: Store) -> Values:
    """The mean over the samples of each class, [C]; NaN for a class without one."""
    labels, num_classes = np.asarray(store.labels), store.logits.shape[1]
    total = np.bincount(labels, weights=values.double().numpy(), minlength=num_classes)
    return ratio(total, np.bincount(labels, minlength=num_classes))


def weight_of(classifier: nn.Module) -> Tensor | None:
    """The matrix of a classifier; None where it is no single one."""
    if isinstance(classifier, LinearClassifier | NormalizedClassifier | FoldedClassifier):
        return classifier.weight.detach()
    return None
