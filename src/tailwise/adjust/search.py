"""Choose an adjustment's strength on validation data, never on test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tailwise import checks

ALPHAS: tuple[float, ...] = tuple(round(0.1 * step, 1) for step in range(51))  # 0.0 .. 5.0, as Tang et al.'s Fig. 4


@dataclass(frozen=True)
class Sweep:
    """The score of each value tried, and the value chosen.

    values: the grid, ascending. scores: one per value, higher is better. chosen: one of `values`.
    """

    values: tuple[float, ...]
    scores: tuple[float, ...]
    chosen: float


def sweep_alpha(
    components: tuple[Tensor, Tensor],
    score: Callable[[NDArray[np.int64]], float],
    alphas: Sequence[float] = ALPHAS,
) -> Sweep:
    """Score the predictions argmax(a - alpha * b) of every alpha and choose the best.

    Small validation sets tie often. Of the tied best values the middle one is chosen: the edge of a plateau is
    where the next sample would break it.

    Args:
        components: (a, b) of `tde_components` on the validation features, each [N, C].
        score: predictions [N] -> number, higher is better (mean per-class accuracy, say).
        alphas: the grid.

    Raises:
        InputError: an empty grid, or a score that is not a number.

    >>> a, b = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> sweep_alpha((a, b), lambda predicted: float(predicted[0] == 1), alphas=(0.0, 2.0, 3.0, 4.0)).chosen
    3.0
    """
    if not alphas:
        raise checks.InputError("alphas: expected at least one value, got none")
    a, b = components
    scores = tuple(float(score((a - alpha * b).argmax(dim=1).cpu().numpy())) for alpha in alphas)
    for alpha, value in zip(alphas, scores, strict=True):
        checks.number(f"score at alpha {alpha:g}", value)
    best = [alpha for alpha, value in zip(alphas, scores, strict=True) if value == max(scores)]
    return Sweep(tuple(alphas), scores, best[len(best) // 2])
