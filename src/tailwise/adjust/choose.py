"""Choose a strength without the test set, and say how sure the choice is.

On validation data (`choose_with_interval`), by the authors' rule of thumb (`heuristic_alpha`), or, where there is no
validation data, on training data that the classifier has not seen (`cross_fitted_predictions`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailwise import checks
from tailwise.adjust.nearest_mean import check_samples
from tailwise.adjust.search import middle_of_best
from tailwise.adjust.total_direct_effect import head_cosine
from tailwise.adjust.unseen import unseen_expected
from tailwise.classifiers import NormalizedClassifier
from tailwise.evaluate.prior_shift import Prior, prior_weights
from tailwise.seeds import mixed_seed
from tailwise.shapes import Float, Int

NO_DIRECTION = 0.25  # below this mean cosine, that of centered features, alpha would be above 4 and remove nothing real
COVERED = (2.5, 97.5)  # percentiles: an interval holds 95 % of the resamples
Interval = tuple[float, float]
Classifier = TypeVar("Classifier")


@dataclass(frozen=True)
class Chosen:
    """A strength and how sure it is.

    value: the one chosen. interval: of the values that resamples of the data would choose. score: of the chosen value,
    in percent, None where nothing was scored. score_interval: of its score over the resamples.
    """

    value: float
    interval: Interval
    score: float | None = None
    score_interval: Interval | None = None


def choose_with_interval(
    values: Sequence[float],
    predictions: NDArray[np.int64],
    labels: NDArray[np.int64],
    *,
    target_prior: Prior | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> Chosen:
    """The value that is most often right, with its intervals over bootstrap resamples.

    A score is sum_c q_c accuracy_c, so that a resample costs one weighted sum per value: samples are drawn again
    within each class, and all resamples are one matrix product. Of tied best values the middle one is chosen.

    Args:
        values: the grid, ascending, [V].
        predictions: of each value, [V, N]; `predictions_by_alpha`, `predictions_by_norm_power`.
        labels: the truth, [N]: validation, or what `cross_fitted_predictions` held out.
        target_prior: q, class frequencies to be right under; None is uniform over the classes with a sample, which
            is mean per-class accuracy.
        resamples: how many.
        seed: of the resamples, at least 0.

    Raises:
        InputError: values that do not ascend, shapes that do not fit, a prior of classes without a sample.

    Limit case: one value is chosen whatever the data.

    >>> predictions = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 1]])
    >>> choose_with_interval((0.0, 1.0, 2.0), predictions, np.array([0, 0, 0, 1])).value
    1.0
    """
    right, weights = checked_right(len(values), predictions, labels), 100 * prior_weights(labels, target_prior)
    if list(values) != sorted(values):
        raise checks.InputError(f"values: expected an ascending grid, got {list(values)}")
    drawn = times_drawn(labels, resamples, seed)
    scores = scores_of(right, np.column_stack([weights, weights[:, None] * drawn]))
    best, *resampled = (middle_of_best(column) for column in scores.T)
    spread = interval_of([values[place] for place in resampled])
    return Chosen(float(values[best]), spread, float(scores[best, 0]), interval_of(scores[best, 1:]))


def alpha_of(mean_cosine: float) -> float:
    """The alpha of alpha * mean cos = 1, or 0 where features lie around 0 and have no direction in common.

    >>> alpha_of(0.5), alpha_of(0.01)
    (2.0, 0.0)
    """
    return 1 / mean_cosine if mean_cosine > NO_DIRECTION else 0.0


@torch.no_grad()
def heuristic_alpha(
    features: Float[Tensor, "N D"], classifier: NormalizedClassifier, *, resamples: int = 200, seed: int = 0
) -> Chosen:
    """The alpha of alpha * mean cos(x, d) = 1, the rule of thumb of Tang et al.'s authors; needs no label.

    It is 0 where features lie around 0, as centered ones do, and have no direction in common: a mean cosine of 0.25 or
    less.

    Args:
        features: of training or validation samples, [N, D].
        classifier: causal, cosine or capsule.
        resamples, seed: of the interval, over samples.

    Raises:
        InputError: features whose mean cosine is below -0.25, which lean away from the head direction; as
            `head_cosine`.

    Limit case: features that all lie along the head direction give 1.

    >>> classifier = tailwise.classifiers.CausalClassifier(2, 3, num_heads=1)
    >>> _ = classifier(torch.tensor([[1.0, 0.0]]))
    >>> round(heuristic_alpha(torch.tensor([[3.0, 4.0]]), classifier).value, 3)
    1.667
    """
    cosines = head_cosine(features, classifier).double().cpu().numpy()
    if not len(cosines) or cosines.mean() < -NO_DIRECTION:
        found = f"a mean cosine of {cosines.mean():.2f}" if len(cosines) else "none"
        raise checks.InputError(f"features: expected some that lean to the head direction, got {found}")
    drawn = times_drawn(np.zeros(len(cosines), dtype=np.int64), resamples, seed)
    resampled = [alpha_of(mean) for mean in cosines @ drawn / len(cosines)]
    return Chosen(alpha_of(float(cosines.mean())), interval_of(resampled))


def cross_fitted_predictions(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    fit: Callable[[Tensor, Tensor], Classifier],
    predict: Callable[[Classifier, Tensor], NDArray[np.int64]],
    *,
    folds: int = 5,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Predictions for each training sample by a classifier that has not seen it, [V, N].

    What takes the place of validation data where there is none: a classifier's own training samples would say that
    nothing needs adjusting. Each class is dealt out to the folds evenly. The only sample of a class is predicted by
    a classifier that knows nothing of the class, and says as little about any value, provided that this classifier
    never predicts the class: give what `fit` or `predict` adjusts with the counts of the labels that `fit` was given.
    What keeps the rows of a layer that was trained elsewhere knows the class from there and may predict it.
    Of such classes no warning is given.

    Args:
        features: of the training samples, [N, D].
        labels: their classes, [N].
        num_classes: C.
        fit: features, labels -> classifier, or whatever `predict` takes; called once for each fold, with all others.
        predict: classifier, features -> predictions of every value, [V, n].
        folds: how many, 2 to N.
        seed: of the folds, at least 0.

    Raises:
        InputError: features and labels that do not fit, fewer than two folds, more folds than samples.

    >>> from tailwise.adjust import fit_ncm
    >>> x, y = torch.eye(2).repeat(4, 1), torch.arange(2).repeat(4)
    >>> predict = lambda classifier, x: classifier(x).argmax(dim=1)[None].numpy()
    >>> cross_fitted_predictions(x, y, 2, lambda x, y: fit_ncm(x, y, 2), predict)
    array([[0, 1, 0, 1, 0, 1, 0, 1]])
    """
    labels = check_samples(features, labels, num_classes)
    if checks.whole("folds", folds, at_least=2) > len(labels):
        raise checks.InputError(f"folds: expected at most one for each of {len(labels)} samples, got {folds}")
    keys = np.array([mixed_seed(checks.whole("seed", seed, at_least=0), place) for place in range(len(labels))])
    fold_of = np.empty(len(labels), dtype=np.int64)
    fold_of[np.lexsort((keys, labels.cpu().numpy()))] = np.arange(len(labels)) % folds  # on from class to class
    predicted: NDArray[np.int64] | None = None
    for fold in range(folds):
        mine = np.flatnonzero(fold_of == fold)
        others, held_out = (torch.from_numpy(part) for part in (np.flatnonzero(fold_of != fold), mine))
        with unseen_expected():
            found = predict(fit(features[others], labels[others]), features[held_out])
        if predicted is None:
            predicted = np.empty((len(found), len(labels)), dtype=np.int64)
        predicted[:, mine] = found
    assert predicted is not None
    return predicted


def choose_method(
    names: Sequence[str],
    predictions: NDArray[np.int64],
    labels: NDArray[np.int64],
    *,
    score: Callable[[NDArray[np.int64], NDArray[np.int64]], float] | None = None,
    resamples: int = 100,
    seed: int = 0,
) -> tuple[str, dict[str, Chosen]]:
    """The first method that is within one standard error of the best (Breiman et al. 1984, section 3.4.3).

    The highest of many scores that each rest on a few rare samples is mostly luck. So the order of `names` decides
    unless the data does: what comes first, the model as it is or what changes least, is taken unless the best is ahead
    of it by more than the standard error of their difference, over resamples of the same samples for both.

    Args:
        names: of the methods, the preferred first, [M].
        predictions: of each, on samples that it was not fitted on, [M, N].
        labels: the truth, [N].
        score: (predictions, labels) -> number, higher is better; None is mean per-class accuracy in percent.
        resamples: how many, within each class.
        seed: of the resamples.

    Returns:
        The name, and for each method its score with the interval over resamples (`value` is its place in `names`).

    Raises:
        InputError: shapes that do not fit, a score that is not a number.

    Limit case: the first method is chosen where all predict alike.

    >>> truth = np.array([0, 1] * 20)
    >>> choose_method(("plain", "better"), np.stack([truth * 0, truth]), truth)[0]
    'better'
    """
    checked_right(len(names), predictions, labels)
    order, drawn = np.arange(len(labels)), times_drawn(labels, resamples, seed).astype(np.int64)
    places = [order, *(np.repeat(order, times) for times in drawn.T)]
    score = score or (lambda predicted, truth: 100 * float(prior_weights(truth, None) @ (predicted == truth)))
    scores = np.array([[score(row[place], labels[place]) for place in places] for row in predictions])
    for name, value in zip(names, scores[:, 0], strict=True):
        checks.number(f"score of {name}", float(value))
    behind = scores[scores[:, 0].argmax()] - scores
    near = behind[:, 0] <= behind[:, 1:].std(axis=1)
    told = {
        name: Chosen(float(place), (float(place), float(place)), float(row[0]), interval_of(row[1:]))
        for place, (name, row) in enumerate(zip(names, scores, strict=True))
    }
    return names[int(near.argmax())], told


def checked_right(num_values: int, predictions: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which predictions are right, [V, N]; refuses shapes that do not fit."""
    if predictions.shape != (num_values, len(labels)) or not predictions.size:
        raise checks.InputError(
            f"predictions: expected shape [{num_values}, {len(labels)}], a row for each value and a column for each "
            f"label, got {list(predictions.shape)}"
        )
    right: NDArray[np.bool_] = predictions == labels
    return right


def times_drawn(labels: NDArray[np.int64], resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each sample is drawn in each resample of its class, with replacement, [N, resamples]."""
    checks.whole("resamples", resamples)
    random = np.random.default_rng(mixed_seed(checks.whole("seed", seed, at_least=0)))
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    first, size = (np.repeat(values, sizes) for values in (np.cumsum(sizes) - sizes, sizes))
    drawn = np.empty((len(labels), resamples))
    for resample in range(resamples):
        places = first + (random.random(len(labels)) * size).astype(np.int64)
        drawn[order, resample] = np.bincount(places, minlength=len(labels))
    return drawn


def scores_of(right: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted sums of what is right, [V, columns]; some values at a time, since `right` grows eightfold."""
    return np.concatenate([part @ weights for part in np.array_split(right, max(1, right.size // 2**23))])


def interval_of(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    """Where 95 % of the values lie."""
    low, high = np.percentile(np.asarray(values), COVERED)
    return float(low), float(high)
