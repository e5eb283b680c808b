"""Learning rates as functions of the epochs done: 0 at the start, 0.5 half-way through the first epoch."""

import math
from collections.abc import Callable, Sequence

from tailwise import checks

Schedule = Callable[[float], float]


def constant(peak: float) -> Schedule:
    """The same learning rate throughout.

    >>> constant(0.1)(7.5)
    0.1
    """
    checks.number("learning_rate", peak, above=0)
    return lambda _: peak


def cosine(peak: float, epochs: int, *, warmup_epochs: float = 0, warmup_from: float = 0.04) -> Schedule:
    """A linear warm-up to `peak`, then half a cosine down to 0 at `epochs` (Loshchilov and Hutter 2017).

    Args:
        peak: the highest learning rate.
        epochs: where it reaches 0.
        warmup_epochs: below `epochs`.
        warmup_from: where the warm-up line starts, as a fraction of `peak`; at 0 the first step would be wasted.

    Raises:
        InputError: a value outside its range.

    Limit case: no warm-up starts at `peak`.

    >>> cosine(0.2, 90)(45)
    0.1
    """
    checks.number("learning_rate", peak, above=0)
    checks.number("epochs", epochs, above=0)
    checks.number("warmup_epochs", warmup_epochs, at_least=0, below=epochs)
    checks.number("warmup_from", warmup_from, at_least=0)

    def rate(done: float) -> float:
        if done < warmup_epochs:
            return peak * (warmup_from + (1 - warmup_from) * done / warmup_epochs)
        return peak * 0.5 * (1 + math.cos(math.pi * (done - warmup_epochs) / (epochs - warmup_epochs)))

    return rate


def multistep(
    peak: float, milestones: Sequence[int], *, factor: float, warmup_epochs: int = 0, warmup_from: float = 1 / 3
) -> Schedule:
    """Steps down by `factor` from each milestone epoch on, constant within an epoch, after a linear warm-up.

    Epoch e (counted from 1) of the warm-up runs at peak * (warmup_from * (1 - e / W) + e / W); from epoch
    `milestones[i]` on it is peak * factor^(i+1). This is what the schedule of Zhou et al. 2020 (BBN) and Tang et
    al. 2020 amounts to, which is stepped before each epoch.

    Args:
        peak: the learning rate between warm-up and first milestone.
        milestones: epochs, counted from 1, ascending.
        factor: of each step, in (0, 1].
        warmup_epochs: W.
        warmup_from: where the warm-up line starts, as a fraction of `peak`.

    Raises:
        InputError: a value outside its range, milestones that do not ascend.

    Limit case: no milestone and no warm-up is `constant`.

    >>> rate = multistep(0.2, [120, 160], factor=0.01, warmup_epochs=5)
    >>> [round(rate(epoch - 1), 6) for epoch in (1, 5, 119, 120, 160)]
    [0.093333, 0.2, 0.2, 0.002, 2e-05]
    """
    checks.number("learning_rate", peak, above=0)
    _check_factor(factor)
    checks.number("warmup_epochs", warmup_epochs, at_least=0)
    checks.number("warmup_from", warmup_from, at_least=0)
    if list(milestones) != sorted(milestones):
        raise checks.InputError(f"milestones: expected ascending epochs, got {list(milestones)}")

    def rate(done: float) -> float:
        epoch = math.floor(done) + 1
        if epoch < warmup_epochs:
            warm = epoch / warmup_epochs
            return peak * (warmup_from * (1 - warm) + warm)
        passed = sum(epoch >= milestone for milestone in milestones)
        return float(peak * factor**passed)

    return rate


def warm_multistep(
    peak: float, milestones: Sequence[int], *, factor: float = 0.1, warmup_epochs: float = 0, warmup_from: float = 0.001
) -> Schedule:
    """Steps down by `factor` when so many epochs are done, after a linear warm-up at every step, as detectors train.

    peak * (warmup_from + (1 - warmup_from) * e / W) for e < W epochs done, then peak * factor^(milestones reached).
    Other than in `multistep`, a warm-up may last part of an epoch, and milestones are epochs done.

    Args:
        peak: the learning rate between warm-up and first milestone.
        milestones: epochs done, ascending.
        factor: of each step, in (0, 1].
        warmup_epochs: W; a number of iterations over the iterations of an epoch, say.
        warmup_from: where the warm-up line starts, as a fraction of `peak`.

    Raises:
        InputError: a value outside its range, milestones that do not ascend.

    Limit case: no milestone and no warm-up is `constant`.

    >>> rate = warm_multistep(0.02, [16, 19], warmup_epochs=0.5)
    >>> [round(rate(done), 6) for done in (0, 0.25, 0.5, 15.9, 16, 19)]
    [2e-05, 0.01001, 0.02, 0.02, 0.002, 0.0002]
    """
    checks.number("learning_rate", peak, above=0)
    _check_factor(factor)
    checks.number("warmup_epochs", warmup_epochs, at_least=0)
    checks.number("warmup_from", warmup_from, above=0)
    if list(milestones) != sorted(milestones):
        raise checks.InputError(f"milestones: expected ascending epochs, got {list(milestones)}")

    def rate(done: float) -> float:
        warm = warmup_from + (1 - warmup_from) * done / warmup_epochs if done < warmup_epochs else 1.0
        return float(peak * warm * factor ** sum(done >= milestone for milestone in milestones))

    return rate


def _check_factor(factor: float) -> None:
    if checks.number("factor", factor, above=0) > 1:
        raise checks.InputError(f"factor: expected a number in (0, 1], got {factor!r}")
