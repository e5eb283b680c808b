"""Is a probability what it says? Calibration errors as functions on arrays, in percent."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwise import checks

Numbers = NDArray[np.floating]


@dataclass(frozen=True)
class Reliability:
    """What a reliability diagram shows: per bin of confidence, how confident and how often right.

    edges: of the bins, ascending from 0 to 1, [B + 1]; bin b holds edges[b] < confidence <= edges[b + 1]. confidence,
    accuracy: means in each bin, in 0..1, NaN where it is empty, [B]. count: samples in each bin, [B].
    """

    edges: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]


def reliability(probabilities: Numbers, labels: NDArray[np.int64], *, num_bins: int = 15) -> Reliability:
    """Confidence and accuracy in bins of equal width (Guo et al. 2017, section 2).

    Confidence is the highest probability of a sample, and it is right if that class is its label.

    Args:
        probabilities: rows that sum to 1, [N, C].
        labels: the truth, in 0..C-1, [N].
        num_bins: B.

    Raises:
        InputError: rows that are no probabilities (logits, say), different lengths, no samples, a label outside 0..C-1.

    >>> bins = reliability(np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]), np.array([0, 1, 1]), num_bins=2)
    >>> bins.count, bins.confidence.round(2), bins.accuracy.round(2)
    (array([0, 3]), array([ nan, 0.77]), array([ nan, 0.67]))
    """
    p = _checked(probabilities, labels)
    edges = np.linspace(0, 1, checks.whole("num_bins", num_bins) + 1)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    bins = _bin_of(confidence, edges)
    count = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an empty bin
        sure, accuracy = (np.bincount(bins, weights=w, minlength=num_bins) / count for w in (confidence, right))
    return Reliability(edges, sure, accuracy, count)


def expected_calibration_error(probabilities: Numbers, labels: NDArray[np.int64], *, num_bins: int = 15) -> float:
    """ECE: sum_b n_b / N |accuracy_b - confidence_b|, in percent (Guo et al. 2017, Eq. 3).

    Arguments and errors as in `reliability`.

    Limit cases: one bin is |accuracy - mean confidence|; sure and right is 0, sure and wrong is 100.

    >>> expected_calibration_error(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))
    50.0
    """
    bins = reliability(probabilities, labels, num_bins=num_bins)
    gaps = np.abs(bins.accuracy - bins.confidence)[bins.count > 0]
    return float(100 * (gaps * bins.count[bins.count > 0]).sum() / bins.count.sum())


def classwise_calibration_error(probabilities: Numbers, labels: NDArray[np.int64], *, num_bins: int = 15) -> float:
    """Class-wise ECE: 1/C sum_c sum_b n_bc / N |frequency_bc - mean probability_bc|, in percent (Kull et al. 2019).

    The N probabilities of each class c are binned; in a bin, as many samples should be of class c as they say. Sees a
    tail that is never confident, which ECE, looking at the predicted class alone, does not.

    Arguments and errors as in `reliability`.

    >>> classwise_calibration_error(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))
    50.0
    """
    p = _checked(probabilities, labels)
    edges = np.linspace(0, 1, checks.whole("num_bins", num_bins) + 1)
    total = 0.0
    for c in range(p.shape[1]):  # one class at a time: N numbers, not N x C once more
        total += np.abs(np.bincount(_bin_of(p[:, c], edges), weights=p[:, c] - (labels == c), minlength=num_bins)).sum()
    return float(100 * total / p.size)


def _bin_of(values: Numbers, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin with edges[b] < value <= edges[b + 1]; 0 lies in the first one."""
    return np.clip(np.searchsorted(edges, values, side="left") - 1, 0, len(edges) - 2)


def _checked(probabilities: Numbers, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    checks.probabilities("probabilities", probabilities)
    if len(labels) != len(probabilities) or not len(labels):
        raise checks.InputError(
            f"labels: expected one for each of {len(probabilities)} samples, at least one, got {len(labels)}"
        )
    checks.labels_in_range("labels", labels, probabilities.shape[1])
    return np.asarray(probabilities, dtype=np.float64)
