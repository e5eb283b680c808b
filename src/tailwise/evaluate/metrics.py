"""Accuracies as functions on arrays, in percent. `None` where there is nothing to measure, never 0."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tailwise import checks
from tailwise.counts import GROUPS, ClassCounts

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
    _check_shapes(predicted, labels)
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


def group_confusion(predicted: Classes, labels: Classes, counts: ClassCounts) -> NDArray[np.float64]:
    """Percent of each group's samples that are taken for a class of each group, right or wrong, [3, 3].

    Row and column are many, medium, few; a row is the mean over its group's classes, as in `shot_accuracy`, and sums
    to 100. NaN for a group of which no class has a sample.

    Arguments and errors as in `shot_accuracy`; a prediction outside 0..C-1 is an error, too.

    >>> group_confusion(np.array([0, 1, 1]), np.array([0, 0, 1]), ClassCounts((200, 5)))
    array([[ 50.,   0.,  50.],
           [ nan,  nan,  nan],
           [  0.,   0., 100.]])
    """
    _check_predicted(predicted, labels, counts.num_classes)
    in_group = np.zeros((len(GROUPS), counts.num_classes), dtype=bool)
    for row, classes in zip(in_group, counts.groups.values(), strict=True):
        row[classes] = True
    # of class c, the percent taken for each group: the accuracy of having hit that group
    hits = [per_class_accuracy(np.where(row[predicted], labels, -1), labels, counts.num_classes) for row in in_group]
    known = ~np.isnan(hits[0])
    confusion = np.full((len(GROUPS), len(GROUPS)), np.nan)
    for true, row in enumerate(in_group):
        if (row & known).any():
            confusion[true] = [hit[row & known].mean() for hit in hits]
    return confusion


def harmonic_mean_accuracy(predicted: Classes, labels: Classes, num_classes: int) -> float:
    """The harmonic mean of `per_class_accuracy`: near the worst classes, where the plain mean forgives them.

    A class never predicted right counts as 0.1 %, so that choices which leave one such class can be told apart.

    >>> harmonic_mean_accuracy(np.array([0, 1, 1]), np.array([0, 0, 1]), num_classes=2)
    66.66...
    """
    per_class = per_class_accuracy(predicted, labels, num_classes)
    known = np.maximum(per_class[~np.isnan(per_class)], 0.1)
    return float(len(known) / (1 / known).sum())


def geometric_mean_accuracy(predicted: Classes, labels: Classes, num_classes: int) -> float:
    """The geometric mean of `per_class_accuracy`, between the plain and the harmonic one.

    A class never predicted right counts as 0.1 %, as in `harmonic_mean_accuracy`.

    >>> geometric_mean_accuracy(np.array([0, 1, 1]), np.array([0, 0, 1]), num_classes=2)
    70.71...
    """
    per_class = per_class_accuracy(predicted, labels, num_classes)
    known = np.maximum(per_class[~np.isnan(per_class)], 0.1)
    return float(np.exp(np.log(known).mean()))


def macro_f1(predicted: Classes, labels: Classes, num_classes: int) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN), in percent: beside accuracy it sees what is wrongly claimed.

    The mean is over the classes that have a sample, as in `mean_per_class_accuracy`. Arguments and errors as there;
    a prediction outside 0..C-1 is an error, too.

    >>> macro_f1(np.array([0, 1, 1]), np.array([0, 0, 1]), num_classes=2)
    66.66...
    """
    _check_predicted(predicted, labels, num_classes)
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    there, claimed = np.bincount(labels, minlength=num_classes), np.bincount(predicted, minlength=num_classes)
    known = there > 0
    return float(100 * np.mean(2 * right[known] / (there[known] + claimed[known])))


def top_k_accuracy(logits: NDArray[np.floating], labels: Classes, k: int = 5) -> float | None:
    """Percent of samples whose class is among the k with the highest logits; of equal ones the lower class goes first.

    Args:
        logits: [N, C]; -inf for a class that is never predicted.
        labels: the truth, in 0..C-1, [N].
        k: at least 1.

    Returns:
        None where there are no more than k classes.

    Raises:
        InputError: different lengths, no samples, a label outside 0..C-1, logits with NaN.

    Limit case: k = 1 is top-1 over samples.

    >>> top_k_accuracy(np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), np.array([1, 2]), k=2)
    50.0
    """
    checks.whole("k", k)
    if len(logits) != len(labels) or not len(labels):
        raise checks.InputError(f"labels: expected one for each of {len(logits)} rows, at least one, got {len(labels)}")
    checks.labels_in_range("labels", labels, logits.shape[1])
    checks.predictable("logits", logits)
    if logits.shape[1] <= k:
        return None
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None]))
    return float(100.0 * np.mean((before.sum(axis=1) < k) & np.isfinite(own[:, 0])))


def worst_class_accuracy(predicted: Classes, labels: Classes, num_classes: int) -> float:
    """The least of `per_class_accuracy`.

    >>> worst_class_accuracy(np.array([0, 1, 1]), np.array([0, 0, 1]), num_classes=2)
    50.0
    """
    return float(np.nanmin(per_class_accuracy(predicted, labels, num_classes)))


def _check_shapes(predicted: Classes, labels: Classes) -> None:
    if np.ndim(labels) != 1 or np.ndim(predicted) != 1:
        shapes = f"{list(np.shape(predicted))} and {list(np.shape(labels))}"
        raise checks.InputError(f"predicted: expected classes [N] and labels [N], got {shapes}")
    if len(predicted) != len(labels) or not len(labels):
        raise checks.InputError(
            f"predicted: expected one class for each of {len(labels)} labels, at least one, got {len(predicted)}"
        )


def _check_predicted(predicted: Classes, labels: Classes, num_classes: int) -> None:
    """What `per_class_accuracy` refuses, and predictions that are no class: they would be taken for another one."""
    per_class_accuracy(predicted, labels, num_classes)
    checks.labels_in_range("predicted", predicted, num_classes)


def _right(predicted: Classes, labels: Classes) -> float:
    """Percent of all samples."""
    _check_shapes(predicted, labels)
    return float(100.0 * np.mean(predicted == labels))


METRICS = ("mean-per-class", "all", "many", "medium", "few", "harmonic-mean", "worst-class")


def metric(name: str, labels: Classes, counts: ClassCounts) -> Callable[[Classes], float]:
    """What choices are made by: predictions -> percent, on these labels.

    Args:
        name: one of `METRICS`. "all" is top-1 over samples, a group the mean of its classes' accuracies.
        labels: the truth, [N].
        counts: of the benchmark's published training set, which the groups go by.

    Raises:
        InputError: an unknown name; a group of which no class has a sample.

    >>> metric("few", np.array([0, 0, 1]), ClassCounts((200, 5)))(np.array([0, 1, 1]))
    100.0
    """
    checks.choice("metric", name, METRICS)
    num_classes = counts.num_classes
    if name in GROUPS:
        if not np.isin(labels, counts.groups[name]).any():
            raise checks.InputError(f"metric: expected a group with samples to choose on, got '{name}', which has none")
        return lambda predicted: float(shot_accuracy(predicted, labels, counts)[name] or 0.0)
    if name == "all":
        return lambda predicted: _right(predicted, labels)
    by_name = {
        "mean-per-class": mean_per_class_accuracy,
        "harmonic-mean": harmonic_mean_accuracy,
        "worst-class": worst_class_accuracy,
    }
    return lambda predicted: by_name[name](predicted, labels, num_classes)
