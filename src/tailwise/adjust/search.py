"""Choose an adjustment's strength by the predictions it leads to. On which data, the caller says: val, not test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailwise import checks

ALPHAS: tuple[float, ...] = tuple(round(0.1 * step, 1) for step in range(51))  # 0.0 .. 5.0, as Tang et al.'s Fig. 4
NORM_POWERS: tuple[float, ...] = tuple(round(0.1 * step, 1) for step in range(21))  # 0.0 .. 2.0, as Kang et al.'s code
TEMPERATURES: tuple[float, ...] = tuple(round(0.1 * step, 1) for step in range(41))  # 0.0 .. 4.0
# A block of logits stays in the cache while every value is tried on it, and is too small for torch to split over
# threads, which would wait for one another at each of thousands of small steps.
BLOCK = 32_000

Score = Callable[[NDArray[np.int64]], float]


@dataclass(frozen=True)
class Sweep:
    """The score of each value tried, and the value chosen.

    values: the grid, ascending. scores: one per value, higher is better. chosen: one of `values`.
    """

    values: tuple[float, ...]
    scores: tuple[float, ...]
    chosen: float


def predictions_by_alpha(components: tuple[Tensor, Tensor], alphas: Sequence[float] = ALPHAS) -> NDArray[np.int64]:
    """argmax(a - alpha * b) of every alpha, [values, N].

    Args:
        components: (a, b) of `tde_components`, each [N, C].
        alphas: the grid.

    Raises:
        InputError: an empty grid, an alpha that is not finite.

    >>> predictions_by_alpha((torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.0]])), (0.0, 2.0))
    array([[0],
           [1]])
    """
    a, b = components

    def logits(rows: slice, alpha: float, out: Tensor) -> Tensor:
        return torch.sub(a[rows], b[rows], alpha=alpha, out=out)

    return _predictions("alphas", alphas, a, logits)


def predictions_by_norm_power(
    components: tuple[Tensor, Tensor], powers: Sequence[float] = NORM_POWERS
) -> NDArray[np.int64]:
    """argmax(z / n^power) of every power, [values, N].

    Args:
        components: (z, n) of `tau_norm_components`, [N, C] and [C].
        powers: the grid.

    Raises:
        InputError: an empty grid, a power that is not finite.

    >>> predictions_by_norm_power((torch.tensor([[2.0, 1.0]]), torch.tensor([4.0, 1.0])), (0.0, 1.0))
    array([[0],
           [1]])
    """
    z, norms = components
    for power in powers:
        if not -10 <= power <= 10:
            raise checks.InputError(f"powers: expected numbers in [-10, 10], got {power:g}")

    def logits(rows: slice, power: float, out: Tensor) -> Tensor:
        return torch.mul(z[rows], norms**-power, out=out)

    return _predictions("powers", powers, z, logits)


def predictions_by_temperature(
    components: tuple[Tensor, Tensor], temperatures: Sequence[float] = TEMPERATURES
) -> NDArray[np.int64]:
    """argmax(z + temperature * r) of every temperature, [values, N].

    Args:
        components: (z, r) of `log_prior_components`, [N, C] and [C].
        temperatures: the grid.

    Raises:
        InputError: an empty grid, a temperature that is not finite.

    >>> predictions_by_temperature((torch.tensor([[2.0, 1.0]]), torch.tensor([-2.0, 0.0])), (0.0, 1.0))
    array([[0],
           [1]])
    """
    z, ratio = components

    def logits(rows: slice, temperature: float, out: Tensor) -> Tensor:
        return torch.add(z[rows], ratio, alpha=temperature, out=out)

    return _predictions("temperatures", temperatures, z, logits)


def sweep_alpha(components: tuple[Tensor, Tensor], score: Score, alphas: Sequence[float] = ALPHAS) -> Sweep:
    """Score the predictions of every alpha and choose the best.

    Small validation sets tie often. Of the tied best values the middle one is chosen: the edge of a plateau is
    where the next sample would break it.

    Args:
        components, alphas: as in `predictions_by_alpha`, on the validation features.
        score: predictions [N] -> number, higher is better (mean per-class accuracy, say).

    Raises:
        InputError: an empty grid, or a score that is not a number.

    >>> a, b = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> sweep_alpha((a, b), lambda predicted: float(predicted[0] == 1), alphas=(0.0, 2.0, 3.0, 4.0)).chosen
    3.0
    """
    return choose(alphas, predictions_by_alpha(components, alphas), score)


def sweep_norm_power(components: tuple[Tensor, Tensor], score: Score, powers: Sequence[float] = NORM_POWERS) -> Sweep:
    """As `sweep_alpha`, for the powers of the tau-normalized classifier and the components of `tau_norm_components`.

    >>> z, norms = torch.tensor([[2.0, 1.0]]), torch.tensor([4.0, 1.0])
    >>> sweep_norm_power((z, norms), lambda predicted: float(predicted[0] == 1), powers=(0.0, 1.0)).chosen
    1.0
    """
    return choose(powers, predictions_by_norm_power(components, powers), score)


def sweep_temperature(
    components: tuple[Tensor, Tensor], score: Score, temperatures: Sequence[float] = TEMPERATURES
) -> Sweep:
    """As `sweep_alpha`, for the temperatures of logit adjustment and the components of `log_prior_components`.

    >>> z, ratio = torch.tensor([[2.0, 1.0]]), torch.tensor([-2.0, 0.0])
    >>> sweep_temperature((z, ratio), lambda predicted: float(predicted[0] == 1), temperatures=(0.0, 1.0)).chosen
    1.0
    """
    return choose(temperatures, predictions_by_temperature(components, temperatures), score)


def choose(values: Sequence[float], predictions: NDArray[np.int64], score: Score) -> Sweep:
    """Score each row of predictions [values, N]; of tied best values the middle one is chosen.

    Raises:
        InputError: values that do not ascend, a score that is not a number.
    """
    if list(values) != sorted(values):
        raise checks.InputError(f"values: expected an ascending grid, got {list(values)}")
    scores = tuple(float(score(predicted)) for predicted in predictions)
    for value, result in zip(values, scores, strict=True):
        checks.number(f"score at {value:g}", result)
    return Sweep(tuple(values), scores, values[middle_of_best(np.array(scores))])


def middle_of_best(scores: NDArray[np.float64]) -> int:
    """The middle of the highest scores, which may differ by how a sum was rounded."""
    best = np.flatnonzero(scores >= scores.max() - 1e-9)
    return int(best[len(best) // 2])


@torch.no_grad()
def _predictions(
    name: str, values: Sequence[float], like: Tensor, logits: Callable[[slice, float, Tensor], Tensor]
) -> NDArray[np.int64]:
    if not len(values):
        raise checks.InputError(f"{name}: expected at least one value, got none")
    for value in values:
        checks.number(name, value)
    predicted = torch.empty(len(values), len(like), dtype=torch.int64, device=like.device)
    size = max(1, BLOCK // like.shape[1])
    for start in range(0, len(like), size):
        rows = slice(start, min(start + size, len(like)))
        block = torch.empty_like(like[rows])
        for number, value in enumerate(values):
            predicted[number, rows] = _argmax(logits(rows, value, block))
    return predicted.cpu().numpy()


def _argmax(block: Tensor) -> Tensor:
    # on a CPU numpy's takes a tenth of the time of torch's
    if block.device.type == "cpu" and block.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(block.numpy().argmax(axis=1))
    return block.argmax(dim=1)
