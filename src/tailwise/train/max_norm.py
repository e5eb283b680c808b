"""MaxNorm (Alshammari et al. 2022): no row of a weight longer than a radius."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from tailwise import checks


def max_norm(parameter: Tensor, radius: float) -> Tensor:
    """min(1, radius / |w_k|) w_k for each row w_k (Alshammari et al. 2022, their projection onto the ball).

    Args:
        parameter: one row for each output, of any further shape: a class's weights, a filter.
        radius: the longest L2 norm that a row may have, above 0.

    Raises:
        InputError: a radius not above 0.

    Limit case: a radius that no row reaches changes nothing.

    >>> max_norm(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), radius=1.0)
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """
    checks.number("radius", radius, above=0)
    rows = parameter.reshape(len(parameter), -1)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    shrunk: Tensor = rows * (radius / lengths).clamp(max=1)
    return shrunk.view_as(parameter)


def keep_max_norm(optimizer: Optimizer, parameters: Iterable[Tensor], radius: float) -> RemovableHandle:
    """Have `max_norm` hold for some of an optimiser's parameters after each of its steps.

    Returns:
        What ends it, by `remove()`.

    Raises:
        InputError: a radius not above 0.

    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> optimizer = torch.optim.SGD([weight], lr=0.1)
    >>> _ = keep_max_norm(optimizer, [weight], radius=2.5)
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> weight.norm()
    tensor(2.5000, grad_fn=<LinalgVectorNormBackward0>)
    """
    checks.number("radius", radius, above=0)
    kept = list(parameters)

    @torch.no_grad()
    def project(*_: Any) -> None:
        for parameter in kept:
            parameter.copy_(max_norm(parameter, radius))

    return optimizer.register_step_post_hook(project)
