"""A run at every strength: what each test image is predicted as, equal to what `tailwise evaluate` finds."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailwise.adjust import fold_tau_norm, fold_tde
from tailwise.adjust.paths import Paths, Scores, doubtful, joined, scores_by_alpha, scores_by_norm_power
from tailwise.classifiers import FoldedClassifier
from tailwise.experiments.adjusters import features_of, strength_name
from tailwise.experiments.rows import blocks, predicted_by
from tailwise.experiments.trained import Trained

ROWS = 512  # lines of so many samples at a time
FOLDS: dict[str, Callable[..., FoldedClassifier]] = {"alpha": fold_tde, "norm_power": fold_tau_norm}
SCORES: dict[str, Callable[..., Scores]] = {"alpha": scores_by_alpha, "norm_power": scores_by_norm_power}


def folded_at(trained: Trained, method: str, value: float) -> FoldedClassifier:
    """The adjusted classifier of a method at a strength, as `experiments.adjusters` makes it."""
    name = strength_name(method)
    assert name is not None
    return FOLDS[name](trained.model.classifier, value, counts=trained.counts, allow_unseen=trained.recipe.allow_unseen)


@torch.no_grad()
def strength_paths(trained: Trained, method: str, values: Sequence[float]) -> Paths:
    """The predictions on test at every strength up to the last of `values`.

    At each of `values` they are those of the adjusted classifier itself, whatever rounding makes of near ties: where it
    could decide, the classifier is asked, with the block of features that `tailwise evaluate` would give it. Between
    them they are exact for the stored weights and features.

    Args:
        trained: one seed's model.
        method: its id; one with a strength (tde, cosine-tde, capsule-tde, tau-norm).
        values: ascending, from 0 on.

    Raises:
        InputError: stores gone and no data to make them from.
    """
    name = strength_name(method)
    assert name is not None
    counts = {"counts": trained.counts, "allow_unseen": trained.recipe.allow_unseen}
    features, classifier = features_of(trained.stores.test()), trained.model.classifier
    found = [doubtful(SCORES[name](part, classifier, **counts), values) for part in torch.split(features, ROWS)]
    doubt = np.concatenate([doubt for _, doubt in found])
    return _settled(trained, method, features, joined(paths for paths, _ in found), doubt, values)


def _settled(
    trained: Trained, method: str, features: Tensor, paths: Paths, doubt: NDArray[np.bool_], values: Sequence[float]
) -> Paths:
    """The paths, with what the classifier says wherever rounding could decide."""
    rows, places, classes = [], [], []
    for number, value in enumerate(values):
        asked = [part for part in blocks(len(features)) if doubt[part, number].any()]
        if not asked:
            continue
        classifier = folded_at(trained, method, value)
        exact = paths.at(value)
        for part in asked:
            predicted = predicted_by(classifier, features[part])
            other = np.flatnonzero(predicted != exact[part])
            rows.append(part.start + other)
            places.append(np.full(len(other), value))
            classes.append(predicted[other])
    if not rows:
        return paths
    return paths.corrected(np.concatenate(rows), np.concatenate(places), np.concatenate(classes))
