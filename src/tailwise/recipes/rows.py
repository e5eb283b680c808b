"""Rows of a result: what a classifier's predictions on test amount to, by group and by class."""

from typing import Any

import numpy as np
from torch import nn

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.evaluate import Store, per_class_accuracy, shot_accuracy
from tailwise.recipes.adjusters import features_of

Row = dict[str, Any]


def own_row(test: Store, counts: ClassCounts) -> Row:
    """Accuracy in percent of the logits in a store; counts are the published ones."""
    return row_of(test.logits.argmax(axis=1), test, counts)


def adjusted_row(classifier: nn.Module, test: Store, counts: ClassCounts) -> Row:
    """Accuracy in percent of an adjusted classifier on stored features.

    Raises:
        InputError: logits that are no numbers; -inf, of a class never to be predicted, is one.
    """
    logits = classifier(features_of(test)).detach().numpy()
    checks.predictable("adjusted logits", logits)
    return row_of(logits.argmax(axis=1), test, counts)


def row_of(predicted: Any, test: Store, counts: ClassCounts) -> Row:
    """Accuracy in percent of predictions [N]: by group, over all samples, and per class (None: no sample)."""
    labels = np.asarray(test.labels)
    per_class = per_class_accuracy(predicted, labels, counts.num_classes)
    return {
        **shot_accuracy(predicted, labels, counts),
        "per_class": [None if np.isnan(value) else float(value) for value in per_class],
    }
