"""Head direction and class prior removed together: both are linear in what is stored.

With a and b of `tde_components`, p the class prior of training and q that of the target,

    logits = (a - alpha b - strength (log p - log q)) / temperature:

alpha removes what the head direction says (Tang et al. 2020, Eq. 8), strength what the prior says (Menon et al. 2021,
Eq. 9; q as in Hong et al. 2021). All three are searched on stored components, and fold into one matrix and bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailwise import checks
from tailwise.adjust.choose import Interval, interval_of, scores_of, times_drawn
from tailwise.adjust.nearest_mean import class_labels
from tailwise.adjust.search import ALPHAS, BLOCK
from tailwise.adjust.temperature import fit_temperature, fold_temperature
from tailwise.adjust.total_direct_effect import fold_tde
from tailwise.classifiers import FoldedClassifier, NormalizedClassifier
from tailwise.evaluate.prior_shift import Prior, prior_weights
from tailwise.shapes import Float, Int

STRENGTHS: tuple[float, ...] = tuple(round(0.1 * step, 1) for step in range(21))  # 0.0 .. 2.0


@dataclass(frozen=True)
class Alone:
    """The best of one part with the other left out, and what the combination adds to it.

    value: of alpha or strength. score: in percent, on the samples it was chosen on. gain, interval: by how many points
    the combination is ahead on samples that chose neither: the mean over resamples, and where 95 % of them lie.
    """

    value: float
    score: float
    gain: float
    interval: Interval

    @property
    def beaten(self) -> bool:
        """Whether the whole interval says so."""
        return self.interval[0] > 0


@dataclass(frozen=True)
class Combination:
    """What was chosen together, and whether that is better than either part.

    alpha, strength, temperature: of the combination. score: in percent, on the samples it was chosen on.
    strength_alone: None where the prior is not known.
    """

    alpha: float
    strength: float
    temperature: float
    score: float
    alpha_alone: Alone
    strength_alone: Alone | None


@torch.no_grad()
def combine(
    components: tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]],
    labels: Int[Tensor, " N"],
    source_prior: Prior | None,
    *,
    target_prior: Prior | None = None,
    alphas: Sequence[float] = ALPHAS,
    strengths: Sequence[float] = STRENGTHS,
    resamples: int = 200,
    seed: int = 0,
) -> Combination:
    """Search (alpha, strength) for the most right under the target prior, then the temperature of least cross-entropy.

    Temperature changes no prediction, so that choosing it last loses nothing. Every pair is tried in one pass over the
    components. The gains are honest: in each bootstrap resample all is chosen anew, and scored on the samples that were
    not drawn.

    Args:
        components: (a, b) of `tde_components` on validation features, or cross-fitted.
        labels: the truth, [N].
        source_prior: p, class frequencies of training, [C]; None where they are not known: alpha alone is searched.
        target_prior: q, to be right under, [C]; None is uniform over the classes with a sample.
        alphas, strengths: ascending grids that hold 0.
        resamples, seed: of the bootstrap.

    Raises:
        InputError: components and labels that do not fit, a grid without 0, a prior that does not sum to 1.

    Limit cases: alphas (0,) is post-hoc logit adjustment, strengths (0,) total direct effect; a uniform p alone needs
    no strength.

    >>> a, b = torch.tensor([[2.0, 1.0], [2.0, 1.5]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> best = combine((a, b), torch.tensor([0, 1]), None, alphas=(0.0, 0.7, 2.0))
    >>> best.alpha, best.strength, best.score
    (0.7, 0.0, 100.0)
    """
    a, b = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in components)  # numpy has no bfloat16
    num_classes = a.shape[1]
    if len(labels) != len(a) or not len(labels):
        raise checks.InputError(f"labels: expected one for each of {len(a)} samples, at least one, got {len(labels)}")
    labels = class_labels(labels, num_classes, a.device)
    truth = labels.cpu().numpy()
    strengths = strengths if source_prior is not None else (0.0,)
    for name, grid in (("alphas", alphas), ("strengths", strengths)):
        if list(grid) != sorted(grid) or 0 not in grid:
            raise checks.InputError(f"{name}: expected an ascending grid that holds 0, got {list(grid)}")
        for value in grid:
            checks.number(name, value)
    offset, never = (part.to(a.device) for part in _log_ratio(source_prior, target_prior, num_classes))
    offset = offset.to(a.dtype)
    weights, drawn = 100 * prior_weights(truth, target_prior), times_drawn(truth, resamples, seed)

    right = _right(a, b, offset, never, truth, alphas, strengths)
    scores = scores_of(right, np.column_stack([weights, weights[:, None] * drawn]))
    pairs = np.array([(alpha, strength) for alpha in alphas for strength in strengths])
    both = _chosen(scores, pairs, np.arange(len(pairs)))
    alpha, strength = (float(value) for value in pairs[both[0]])
    logits = (a - alpha * b - strength * offset).masked_fill(never, -torch.inf)
    usable = ~never[labels]  # what is never predicted has no finite cross-entropy
    present = _present_prior(truth[usable.cpu().numpy()], target_prior, num_classes)
    temperature = fit_temperature(logits[usable], labels[usable], target_prior=present)

    undrawn = undrawn_weights(truth, weights, drawn)

    def alone(left_out: int) -> Alone:
        part = _chosen(scores, pairs, np.flatnonzero(pairs[:, left_out] == 0))
        gains = [
            float((right[together].astype(float) - right[apart]) @ undrawn[:, resample])
            for resample, (together, apart) in enumerate(zip(both[1:], part[1:], strict=True))
        ]
        value, score = pairs[part[0], 1 - left_out], scores[part[0], 0]
        return Alone(float(value), float(score), float(np.mean(gains)), interval_of(gains))

    return Combination(
        alpha,
        strength,
        temperature,
        float(scores[both[0], 0]),
        alpha_alone=alone(1),
        strength_alone=None if source_prior is None else alone(0),
    )


def fold_combination(
    classifier: NormalizedClassifier,
    alpha: float,
    strength: float,
    temperature: float,
    source_prior: Prior | None,
    *,
    target_prior: Prior | None = None,
) -> FoldedClassifier:
    """A classifier whose forward is (a - alpha b - strength (log p - log q)) / temperature.

    Args:
        classifier: causal, cosine or capsule.
        alpha, strength, temperature: of `combine`.
        source_prior, target_prior: p and q; a class of frequency 0 in either is never predicted. None as in `combine`.

    Raises:
        InputError: a strength without a prior, a prior that does not sum to 1; as `fold_tde`.

    Limit cases: strength 0 and temperature 1 are `fold_tde`; alpha 0, too, is the classifier.

    >>> classifier = tailwise.classifiers.CausalClassifier(8, 2)
    >>> x = torch.rand(5, 8); a, b = tailwise.tde_components(x, classifier)
    >>> folded = fold_combination(classifier, 1.5, 1.0, 2.0, [0.75, 0.25])
    >>> torch.allclose(folded(x), (a - 1.5 * b - torch.tensor([0.75, 0.25]).log()) / 2, atol=1e-5)
    True
    """
    checks.number("strength", strength)
    if source_prior is None and strength:
        raise checks.InputError(
            f"source_prior: expected the class frequencies of training for strength {strength:g}, got none"
        )
    folded = fold_tde(classifier, alpha)
    offset, never = (
        part.to(folded.weight.device) for part in _log_ratio(source_prior, target_prior, len(folded.weight))
    )
    bias = (-strength * offset).masked_fill(never, -torch.inf).to(folded.weight.dtype)
    if not bias.any():
        return fold_temperature(folded, temperature)
    with_prior = FoldedClassifier(folded.weight, num_heads=folded.num_heads, norm=folded.norm, bias=bias)
    return fold_temperature(with_prior, temperature)


def _log_ratio(source: Prior | None, target: Prior | None, num_classes: int) -> tuple[Tensor, Tensor]:
    """(log p - log q [C], 0 where either is 0; which classes those are [C]); a uniform q would only add a constant."""
    total, never = torch.zeros(num_classes, dtype=torch.float64), torch.zeros(num_classes, dtype=torch.bool)
    for name, prior, sign in (("source_prior", source, 1), ("target_prior", target, -1)):
        if source is not None and prior is not None:
            p = torch.from_numpy(checks.prior(name, prior, num_classes))
            total, never = total + sign * p.where(p > 0, 1).log(), never | (p == 0)
    return total.masked_fill(never, 0), never


def _right(
    a: Tensor,
    b: Tensor,
    offset: Tensor,
    never: Tensor,
    labels: NDArray[np.int64],
    alphas: Sequence[float],
    strengths: Sequence[float],
) -> NDArray[np.bool_]:
    """Whether each pair, alpha by alpha, is right on each sample, [pairs, N].

    By blocks that stay in the cache, in numpy: its argmax takes a tenth of the time of torch's on a CPU.
    """
    right = np.empty((len(alphas) * len(strengths), len(a)), dtype=bool)
    shifts = [(strength * offset).masked_fill(never, torch.inf).cpu().numpy() for strength in strengths]
    size = max(1, BLOCK // a.shape[1])
    for start in range(0, len(a), size):
        rows = slice(start, start + size)
        of_a, of_b, target = a[rows].cpu().numpy(), b[rows].cpu().numpy(), labels[rows]
        shifted = np.empty_like(of_a)
        for number, alpha in enumerate(alphas):
            logits = of_a - np.asarray(alpha, dtype=of_b.dtype) * of_b
            for place, shift in enumerate(shifts, number * len(shifts)):
                np.equal(np.subtract(logits, shift, out=shifted).argmax(axis=1), target, out=right[place, rows])
    return right


def _chosen(scores: NDArray[np.float64], pairs: NDArray[np.float64], places: NDArray[np.int64]) -> list[int]:
    """For each column of scores the best of these places; of tied ones that nearest to the middle of all of them."""
    chosen = []
    for column in scores[places].T:
        best = places[column >= column.max() - 1e-9]
        away = np.abs(pairs[best] - pairs[best].mean(axis=0)).sum(axis=1)
        chosen.append(int(best[away.argmin()]))
    return chosen


def undrawn_weights(
    labels: NDArray[np.int64], weights: NDArray[np.float64], drawn: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`weights` for what a resample has not drawn, [N, resamples]; a class that is all drawn is left out."""
    of_class = np.bincount(labels, weights=weights)  # 100 q_c
    result = np.empty_like(drawn)
    for resample in range(drawn.shape[1]):
        out = drawn[:, resample] == 0
        left = np.bincount(labels, weights=out, minlength=len(of_class))
        share = np.where(left > 0, of_class, 0)
        share *= 100 / (share.sum() or 1)
        result[:, resample] = out * (share / np.maximum(left, 1))[labels]
    return result


def _present_prior(labels: NDArray[np.int64], target_prior: Prior | None, num_classes: int) -> NDArray[np.float64]:
    """The target prior over the classes that have a sample; uniform where it is None."""
    prior = np.ones(num_classes) if target_prior is None else np.asarray(target_prior, dtype=np.float64)
    prior = prior * (np.bincount(labels, minlength=num_classes) > 0)
    return np.asarray(prior / prior.sum())
