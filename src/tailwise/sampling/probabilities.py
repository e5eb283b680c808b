"""How likely each class is drawn, and how often an image is repeated."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tailwise import checks
from tailwise.counts import ClassCounts

Probabilities = NDArray[np.float64]
Reading = Literal["paper", "authors"]


def class_probabilities(counts: ClassCounts, q: float) -> Probabilities:
    """p_j = n_j^q / sum_i n_i^q: the probability of drawing class j (Kang et al. 2020, Eq. 1).

    Args:
        counts: training images per class.
        q: in [0, 1]; 1 is instance-balanced, 1/2 square-root, 0 class-balanced sampling.

    Returns:
        [C], summing to 1; an empty class has probability 0 for every q.

    Raises:
        InputError: q outside [0, 1].

    Limit case: q = 1 is the prior of the training set.

    >>> class_probabilities(ClassCounts((90, 10, 0)), q=0)
    array([0.5, 0.5, 0. ])
    """
    if not 0 <= q <= 1:
        raise checks.InputError(f"q: expected a number in [0, 1], got {q!r}")
    n = np.asarray(counts.per_class, dtype=np.float64)
    weights = np.where(n > 0, n**q, 0.0)  # 0^0 is 1: an empty class must not be drawn
    return np.asarray(weights / weights.sum())


def progressive_probabilities(
    counts: ClassCounts, epoch: int, num_epochs: int, reading: Reading = "paper"
) -> Probabilities:
    """From instance- to class-balanced over training: (1 - l) p^IB + l p^CB (Kang et al. 2020, Eq. 2).

    Args:
        counts: training images per class.
        epoch: t; 0..T under "paper", 1..T under "authors".
        num_epochs: T, at least 1.
        reading: "paper" has l = t / T, the authors' code l = (t - 1) / (T - 1), and 1 where T = 1.

    Returns:
        [C], summing to 1; an empty class has probability 0.

    Raises:
        InputError: an epoch outside its range, an unknown reading.

    Limit cases: l = 0 is instance-balanced, l = 1 class-balanced.

    >>> progressive_probabilities(ClassCounts((90, 10)), epoch=5, num_epochs=10)
    array([0.7, 0.3])
    """
    checks.whole("num_epochs", num_epochs)
    checks.choice("reading", reading, ("paper", "authors"))
    first = 0 if reading == "paper" else 1
    if not first <= checks.whole("epoch", epoch, at_least=0) <= num_epochs:
        raise checks.InputError(f"epoch: expected {first}..{num_epochs} under reading '{reading}', got {epoch}")
    done, last = (epoch, num_epochs) if reading == "paper" else (epoch - 1, num_epochs - 1)
    share = done / last if last else 1.0
    return (1 - share) * class_probabilities(counts, 1) + share * class_probabilities(counts, 0)


def reverse_probabilities(counts: ClassCounts) -> Probabilities:
    """p_j proportional to n_max / n_j: rare classes most often (Zhou et al. 2020, BBN's reversed sampler).

    Returns:
        [C], summing to 1; an empty class has probability 0.

    Limit case: uniform counts give uniform probabilities.

    >>> reverse_probabilities(ClassCounts((90, 10, 0)))
    array([0.1, 0.9, 0. ])
    """
    n = np.asarray(counts.per_class, dtype=np.float64)
    weights = np.divide(n.max(), n, out=np.zeros_like(n), where=n > 0)
    return np.asarray(weights / weights.sum())


def repeat_factors(counts: ClassCounts, threshold: float) -> NDArray[np.float64]:
    """r_j = max(1, sqrt(threshold / f_j)): how often an image of class j appears in an epoch (Gupta et al. 2019).

    f_j is the fraction of training images of class j (one class per image here; detection takes the largest r_j of the
    classes in an image).

    Args:
        counts: training images per class.
        threshold: classes rarer than this fraction are repeated; above 0. LVIS uses 0.001.

    Returns:
        [C], at least 1; 1 for an empty class, which has no image to repeat.

    Raises:
        InputError: threshold not above 0.

    Limit case: a threshold at or below the rarest class's frequency repeats nothing.

    >>> repeat_factors(ClassCounts((99, 1)), threshold=0.04)
    array([1., 2.])
    """
    checks.number("threshold", threshold, above=0)
    frequency = counts.prior
    factors = np.sqrt(np.divide(threshold, frequency, out=np.ones_like(frequency), where=frequency > 0))
    return np.maximum(1.0, factors)
