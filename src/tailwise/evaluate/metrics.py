"""Accuracies as functions on arrays, in percent. `None` where there is nothing to measure, never 0."""

import numpy as np
from numpy.typing import NDArray

from tailwise import checks
from tailwise.counts import ClassCounts

Classes = NDArray[np.int64]


def per_class_accuracy(predicted: Classes, labels: Classes, num_classes: int) -> NDArray[np.float64]:
    """Percent of each class's samples predicted right, [C]; NaN for a class without a sample.

    Args:
        predicted: classes, [N].
        labels: the truth, in 0..C-1, [N].
        num_classes: C.

    Raises:
        InputError: different lengths, no samples, a label outside 0..C-1.

    >>> per_class_accuracy(np.array([0, 1, 1]), np.array([0, 0, 1]), num_classes=2)
    array([ 50., 100.])
    """
    if len(predicted) != len(labels) or not len(labels):
        raise checks.InputError(
            f"predicted: expected one class for each of {len(labels)} labels, at least one, got {len(predicted)}"
        )
    checks.labels_in_range("labels", labels, num_classes)
    seen = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    accuracy = np.full(num_classes, np.nan)
    accuracy[seen > 0] = 100.0 * right[seen > 0] / seen[seen > 0]
    return accuracy


def mean_per_class_accuracy(predicted: Classes, labels: Classes, num_classes: int) -> float:
    """The mean of `per_class_accuracy` over the classes that have a sample: what choices are made by.

    >>> mean_per_class_accuracy(np.array([0, 1, 1]), np.array([0, 0, 1]), num_classes=2)
    75.0
    """
    return float(np.nanmean(per_class_accuracy(predicted, labels, num_classes)))


def shot_accuracy(predicted: Classes, labels: Classes, counts: ClassCounts) -> dict[str, float | None]:
    """Percent right over many-, medium- and few-shot classes and over all samples.

    A group's figure is the mean of its classes' accuracies, as in both papers (Liu et al. 2019); "all" is top-1
    over samples, the same as the mean over classes on a balanced test set.

    Args:
        predicted: classes, [N].
        labels: the truth, [N].
        counts: of the benchmark's published training set.

    Returns:
        "many", "medium", "few" and "all"; None for a group of which no class has a sample.

    Raises:
        InputError: as `per_class_accuracy`.

    >>> shot_accuracy(np.array([0, 1, 1]), np.array([0, 0, 1]), ClassCounts((200, 5)))
    {'many': 50.0, 'medium': None, 'few': 100.0, 'all': 66.66...}
    """
    per_class = per_class_accuracy(predicted, labels, counts.num_classes)
    accuracy: dict[str, float | None] = {}
    for group, classes in counts.groups.items():
        measured = per_class[classes][~np.isnan(per_class[classes])]
        accuracy[group] = float(measured.mean()) if len(measured) else None
    accuracy["all"] = float(100.0 * np.mean(predicted == labels))
    return accuracy
