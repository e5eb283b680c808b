"""Rows of a result: what a classifier's predictions on test amount to, by group and by class."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.evaluate import (
    Store,
    geometric_mean_accuracy,
    harmonic_mean_accuracy,
    macro_f1,
    mean_per_class_accuracy,
    per_class_accuracy,
    shot_accuracy,
    top_k_accuracy,
    worst_class_accuracy,
)
from tailwise.experiments.adjusters import features_of

Row = dict[str, Any]
ROWS = 64  # of features that are predicted at a time


def own_row(test: Store, counts: ClassCounts) -> Row:
    """Accuracy in percent of the logits in a store; counts are the published ones."""
    return row_of(test.logits.argmax(axis=1), test, counts, test.logits)


def adjusted_row(classifier: nn.Module, test: Store, counts: ClassCounts) -> Row:
    """Accuracy in percent of an adjusted classifier on stored features.

    Raises:
        InputError: logits that are no numbers; -inf, of a class never to be predicted, is one.
    """
    features = features_of(test)
    logits = np.concatenate([logits_by(classifier, features[block]) for block in blocks(len(features))])
    return row_of(logits.argmax(axis=1), test, counts, logits)


def blocks(samples: int) -> list[slice]:
    """The parts of a store that are predicted at a time.

    A product's last bits depend on its shape: only the same block gives the same predictions where two classes tie.

    >>> blocks(100)
    [slice(0, 64, None), slice(64, 100, None)]
    """
    return [slice(start, min(start + ROWS, samples)) for start in range(0, samples, ROWS)]


@torch.no_grad()
def logits_by(classifier: nn.Module, block: Tensor) -> NDArray[np.floating]:
    """Logits of an adjusted classifier for one of `blocks` of features.

    Raises:
        InputError: logits that are no numbers; -inf, of a class never to be predicted, is one.
    """
    logits = classifier(block).numpy()
    checks.predictable("adjusted logits", logits)
    return np.asarray(logits)


def predicted_by(classifier: nn.Module, block: Tensor) -> NDArray[np.int64]:
    """What an adjusted classifier predicts for one of `blocks` of features; errors as in `logits_by`."""
    return np.asarray(logits_by(classifier, block).argmax(axis=1))


def row_of(predicted: Any, test: Store, counts: ClassCounts, logits: NDArray[np.floating] | None = None) -> Row:
    """Accuracy in percent of predictions [N]: by group, over all samples, by other metrics, and per class.

    None stands for a class or group without a sample, and for top-5 without logits or with 5 classes at most.
    """
    labels, num_classes = np.asarray(test.labels), counts.num_classes
    per_class = per_class_accuracy(predicted, labels, num_classes)
    return {
        **shot_accuracy(predicted, labels, counts),
        "metrics": {
            "balanced-accuracy": mean_per_class_accuracy(predicted, labels, num_classes),
            "macro-f1": macro_f1(predicted, labels, num_classes),
            "worst-class": worst_class_accuracy(predicted, labels, num_classes),
            "geometric-mean": geometric_mean_accuracy(predicted, labels, num_classes),
            "harmonic-mean": harmonic_mean_accuracy(predicted, labels, num_classes),
            "top-5": None if logits is None else top_k_accuracy(logits, labels),
        },
        "per_class": [None if np.isnan(value) else float(value) for value in per_class],
    }
