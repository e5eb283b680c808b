"""Rows of a result: a trained classifier's own accuracy, and its accuracy after each adjustment."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tailwise import checks
from tailwise.adjust import ALPHAS, head_cosine, sweep_alpha, tde_components
from tailwise.counts import GROUPS, ClassCounts
from tailwise.evaluate import Store, mean_per_class_accuracy, per_class_accuracy, shot_accuracy
from tailwise.recipes.methods import METHODS, methods_for

Alpha = float | Literal["auto"]
Row = dict[str, Any]


def rows_of(
    classifier: nn.Module,
    test: Store,
    val: Store | None,
    *,
    methods: Sequence[str],
    counts: ClassCounts,
    alpha: Alpha,
) -> dict[str, Row]:
    """One row per method id: accuracy by group in percent, and what was chosen where.

    Args:
        classifier: as trained, in eval mode.
        test: what is reported.
        val: what `alpha="auto"` is chosen on, by mean per-class accuracy.
        methods: ids that the classifier can answer for.
        counts: published training counts.
        alpha: of the rows that have one.

    Raises:
        InputError: alpha "auto" without val.
    """
    return {
        method: _tde_row(classifier, test, val, counts, alpha)
        if METHODS[method].adjust
        else _row(test.logits.argmax(axis=1), test, counts)
        for method in methods
    }


def applicable(classifier: str, method: str | None) -> list[str]:
    """The method ids to report for a trained classifier: all, or the one asked for.

    Raises:
        InputError: an unknown id, or one of another classifier.
    """
    own = methods_for(classifier)
    if method is None:
        return own
    checks.choice("method", method, METHODS)
    if method not in own:
        raise checks.InputError(
            f"method: '{method}' needs a {METHODS[method].classifier} classifier, this run trained {classifier}; "
            f"it can answer for: {', '.join(own)}"
        )
    return [method]


def _chosen_alpha(classifier: Any, val: Store) -> float:
    labels, num_classes = np.asarray(val.labels), val.logits.shape[1]
    components = tde_components(_features(val), classifier)
    sweep = sweep_alpha(components, lambda predicted: mean_per_class_accuracy(predicted, labels, num_classes), ALPHAS)
    return sweep.chosen


@torch.no_grad()
def _tde_row(classifier: Any, test: Store, val: Store | None, counts: ClassCounts, alpha: Alpha) -> Row:
    if alpha != "auto":
        value, chosen_on = alpha, "given"
    elif val is not None:
        value, chosen_on = _chosen_alpha(classifier, val), val.split
    else:
        raise checks.InputError("alpha: 'auto' needs a validation split and this run has none; give a number")
    features = _features(test)
    a, b = tde_components(features, classifier)
    logits = (a - value * b).numpy()
    checks.finite(f"logits at alpha {value:g}", logits)
    row = _row(logits.argmax(axis=1), test, counts)
    cosines = head_cosine(features, classifier).numpy()
    group_of = np.array([counts.group_of(c) for c in range(counts.num_classes)])[np.asarray(test.labels)]
    row["alpha"] = {"value": value, "from": chosen_on}
    row["head_cosine"] = {
        group: float(cosines[group_of == group].mean()) if (group_of == group).any() else None for group in GROUPS
    }
    return row


def _row(predicted: Any, test: Store, counts: ClassCounts) -> Row:
    labels = np.asarray(test.labels)
    per_class = per_class_accuracy(predicted, labels, counts.num_classes)
    return {
        **shot_accuracy(predicted, labels, counts),
        "per_class": [None if np.isnan(value) else float(value) for value in per_class],
    }


def _features(store: Store) -> Tensor:
    return torch.from_numpy(np.array(store.features))
