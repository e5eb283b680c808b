"""Test sets of another class distribution: reweighted, subsampled, or of a distribution to be estimated."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.evaluate.metrics import Classes
from tailwise.seeds import mixed_seed

Direction = Literal["forward", "backward"]
Prior = Sequence[float] | NDArray[np.floating]


def prior_weights(labels: Classes, target_prior: Prior | None) -> NDArray[np.float64]:
    """What each sample weighs for its class to come as often as `target_prior` says: q_y / n_y, [N]; they sum to 1.

    Args:
        labels: classes, in 0..C-1, [N].
        target_prior: q, frequencies that sum to 1, [C]; None is uniform over the classes that have a sample.

    Raises:
        InputError: a prior that is none, a class of the prior without a sample, a label that is no class of it.

    Limit case: the frequencies of the labels themselves weigh all samples alike.

    >>> prior_weights(np.array([0, 0, 1]), [0.5, 0.5])
    array([0.25, 0.25, 0.5 ])
    """
    if not len(labels):
        raise checks.InputError("labels: expected at least one, got none")
    if target_prior is None:
        seen = np.bincount(labels)
        return np.asarray(1 / (seen[labels] * (seen > 0).sum()))
    q = checks.prior("target_prior", target_prior, len(target_prior))
    checks.labels_in_range("labels", labels, len(q))
    seen = np.bincount(labels, minlength=len(q))
    absent = np.flatnonzero((q > 0) & (seen == 0))
    if len(absent):
        raise checks.InputError(
            f"target_prior: expected frequency 0 for classes without a sample, got {q[absent[0]]:g} "
            f"for class {absent[0]} ({len(absent)} such)"
        )
    return np.asarray(q[labels] / seen[labels])


def accuracy_under_prior(predicted: Classes, labels: Classes, target_prior: Prior) -> float:
    """Percent right if the classes came as often as `target_prior` says: sum_c q_c accuracy_c.

    The accuracy of each class does not depend on how often it comes, so one labelled set, of any distribution, tells
    the accuracy under all.

    Args:
        predicted: classes, [N].
        labels: the truth, in 0..C-1, [N].
        target_prior: q, frequencies that sum to 1, [C].

    Raises:
        InputError: different lengths; as `prior_weights`.

    Limit cases: a uniform prior is `mean_per_class_accuracy`, the frequencies of the labels top-1 over samples.

    >>> accuracy_under_prior(np.array([0, 1, 1]), np.array([0, 0, 1]), [0.75, 0.25])
    62.5
    """
    if len(predicted) != len(labels):
        raise checks.InputError(f"predicted: expected one class for each of {len(labels)} labels, got {len(predicted)}")
    return float(100 * prior_weights(labels, target_prior) @ (predicted == labels))


def shifted_prior(counts: ClassCounts, ratio: float, direction: Direction) -> NDArray[np.float64]:
    """The class distribution of a shifted test set: q_c ~ ratio^(-r_c / (C - 1)) (Hong et al. 2021, section 4).

    r_c is the rank of class c by training images, most first: "forward" is long-tailed as training was, "backward" has
    the ranks reversed, so that the classes rarest in training come most.

    Args:
        counts: of the training set; of equally many images the lower class goes first.
        ratio: N_max / N_min of the test set, at least 1; the paper has 2, 5, 10, 25, 50.
        direction: "forward" or "backward".

    Raises:
        InputError: a ratio below 1, an unknown direction, a single class.

    Limit case: ratio 1 is uniform.

    >>> shifted_prior(ClassCounts((3, 90, 30)), 4.0, "forward").round(3)
    array([0.143, 0.571, 0.286])
    """
    checks.number("ratio", ratio, at_least=1)
    checks.choice("direction", direction, get_args(Direction))
    checks.whole("num_classes", counts.num_classes, at_least=2)
    rank = np.argsort(np.argsort(-np.asarray(counts.per_class), kind="stable"), kind="stable")
    if direction == "backward":
        rank = counts.num_classes - 1 - rank
    share = float(ratio) ** (-rank / (counts.num_classes - 1))
    return np.asarray(share / share.sum())


def shifted_indices(
    labels: Classes, counts: ClassCounts, ratio: float, direction: Direction, *, seed: int
) -> NDArray[np.int64]:
    """Which samples of a test set make a shifted one (Hong et al. 2021, section 4), ascending.

    Class c keeps int(n ratio^(-r_c / (C - 1))) samples, n being those of the smallest class, and at least 1; r_c as in
    `shifted_prior`. Which ones is decided by a hash of seed and place: subsets are nested over ratios, and the same
    under every release of every library.

    Args:
        labels: of the test set, in 0..C-1, [N]; every class has a sample.
        counts, ratio, direction: as in `shifted_prior`.
        seed: at least 0.

    Raises:
        InputError: a class without a sample; as `shifted_prior`.

    Limit case: ratio 1 is balanced.

    >>> shifted_indices(np.repeat([0, 1], 4), ClassCounts((9, 3)), 4.0, "forward", seed=0)
    array([0, 1, 2, 3, 5])
    """
    prior = shifted_prior(counts, ratio, direction)
    checks.labels_in_range("labels", labels, counts.num_classes)
    checks.whole("seed", seed, at_least=0)
    there = np.bincount(labels, minlength=counts.num_classes)
    if not there.all():
        raise checks.InputError(f"labels: expected a sample of every class, got none of class {int(there.argmin())}")
    sizes = np.maximum(1, (there.min() * prior / prior.max() + 1e-9).astype(np.int64))
    keys = np.array([mixed_seed(seed, place) for place in range(len(labels))])
    order = np.lexsort((keys, labels))  # by class, within it by key
    place_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(there) - there, there)
    return np.sort(order[place_in_class < sizes[labels[order]]])


@dataclass(frozen=True)
class EstimatedPrior:
    """A class distribution estimated from predictions. prior: [C], sums to 1. steps: taken. converged: or given up."""

    prior: NDArray[np.float64]
    steps: int
    converged: bool


def estimate_prior(
    probabilities: NDArray[np.floating], source_prior: Prior, *, tolerance: float = 1e-6, max_steps: int = 1000
) -> EstimatedPrior:
    """The class distribution behind unlabelled samples, by expectation maximisation (Saerens et al. 2002).

    From q = p, repeat q_c <- mean over samples of  P_c q_c / p_c / sum_c' (P_c' q_c' / p_c'): the likelihood of the
    samples never falls. It takes the probabilities by their word: calibrate them first (`fit_temperature`), on data
    of the source prior.

    Args:
        probabilities: P, of unlabelled samples, [N, C].
        source_prior: p, which the probabilities were made for, [C]: that of training; uniform after an adjustment to
            a uniform prior.
        tolerance: converged when no frequency moves by more in a step.
        max_steps: given up after so many.

    Raises:
        InputError: rows that are no probabilities, a prior that is none, a class of frequency 0 that is predicted.

    Warns:
        UserWarning: not converged.

    Limit cases: probabilities all equal to the source prior say nothing, and it is returned; one-hot rows are counted.

    >>> estimate_prior(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]), [0.5, 0.5]).prior
    array([0.25, 0.75])
    """
    checks.probabilities("probabilities", probabilities)
    if not len(probabilities):
        raise checks.InputError("probabilities: expected at least one sample, got none")
    p = checks.prior("source_prior", source_prior, probabilities.shape[1])
    checks.number("tolerance", tolerance, above=0)
    checks.whole("max_steps", max_steps)
    impossible = np.flatnonzero((p == 0) & (probabilities > 0).any(axis=0))
    if len(impossible):
        raise checks.InputError(
            f"source_prior: expected a frequency above 0 for every class that is predicted, "
            f"got 0 for class {impossible[0]}"
        )
    likelihood = np.asarray(probabilities, dtype=np.float64) / np.where(p > 0, p, 1)
    q = p
    for step in range(1, max_steps + 1):
        joint = likelihood @ q
        before, q = q, q * (likelihood.T @ (1 / joint)) / len(likelihood)
        if np.abs(q - before).max() <= tolerance:
            return EstimatedPrior(q / q.sum(), step, converged=True)
    warnings.warn(
        f"estimated prior: not converged after {max_steps} steps, it still moves by {np.abs(q - before).max():.1e}",
        UserWarning,
        stacklevel=2,
    )
    return EstimatedPrior(q / q.sum(), max_steps, converged=False)
