"""Sharpness-aware minimisation (SAM; Foret et al. 2021): the gradient is taken where, nearby, the loss is worst."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Holds(Protocol):
    """A module whose state moves with its forwards, and that can be kept from it."""

    def hold(self) -> AbstractContextManager[None]:
        """No forward inside moves the state."""


@runtime_checkable
class TracksStatistics(Protocol):
    """A batch norm, as torch has them."""

    track_running_stats: bool


@contextmanager
def at_worst_nearby(model: nn.Module, rho: float) -> Iterator[None]:
    """The model at w + rho g / |g| (Foret et al. 2021, Eq. 2), for the length of the block; at w, to the bit, after it.

    g is the gradient that the parameters hold, |g| its norm over all of them together. Of several processes each must
    hold the whole gradient, and all are at the same place. A loss scaler's factor cancels.

    Args:
        model: with gradients; what has none is not moved.
        rho: the distance, at least 0.

    Limit cases: rho = 0, a gradient of zeros and one that is not finite (a loss scaler skips that step) move nothing.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> model.weight.grad = torch.tensor([[3.0, 4.0]])
    >>> with at_worst_nearby(model, rho=0.5):
    ...     model.weight.tolist()
    [[0.30000001192092896, 0.4000000059604645]]
    """
    moved = [parameter for parameter in model.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter in moved]
    with torch.no_grad():
        length = nn.utils.get_total_norm(gradients)
        usable = (length > 0) & length.isfinite()
        for parameter, gradient in zip(moved, gradients, strict=True):
            parameter.add_(torch.where(usable, rho / length * gradient, 0))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, before, strict=True):
                parameter.copy_(value)


@contextmanager
def held(*modules: object) -> Iterator[None]:
    """No forward inside moves a batch norm's statistics, or the state of a module that can `hold`.

    A second pass over the same batch, at weights that are not kept, is not to be counted. Batch norm goes on to
    normalize by the batch, and a frozen one by its statistics. What is not a module, a loss that is a function, is let
    be.
    """
    inside = [part for module in modules if isinstance(module, nn.Module) for part in module.modules()]
    tracking = [part for part in inside if isinstance(part, TracksStatistics) and part.track_running_stats]
    with ExitStack() as stack:
        for part in inside:
            if isinstance(part, Holds):
                stack.enter_context(part.hold())
        for part in tracking:
            part.track_running_stats = False
        try:
            yield
        finally:
            for part in tracking:
                part.track_running_stats = True
