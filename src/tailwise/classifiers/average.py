"""The moving average of features, whose unit vector is the head direction (Tang et al. 2020, Assumption 1)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tailwise import checks
from tailwise.classifiers.functional import unit
from tailwise.shapes import Float


class FeatureAverage(nn.Module):
    """Exponential moving average of features, moved once per optimiser step.

    x_t = momentum * x_{t-1} + mean of the step's features  (Tang et al. 2020, Assumption 1; no (1 - momentum)
    factor, since only the direction is used). The mean weighs every example alike, over micro-batches and over
    ranks. It is kept in float32 at least, also under autocast, and never waits for the device.

    A classifier calls it on every forward. It listens in train mode only, never to the forward that activation
    checkpointing repeats, and ignores a step without examples or with a feature that is not finite (a loss
    scaler skips that step too).

    Args:
        num_features: width D of the features.
        num_heads: K, the number of equal parts D is split into; divides D.
        momentum: decay rate mu in [0, 1]; 1 keeps a plain sum. May be reassigned while training.
        update_every: forwards per optimiser step, for gradient accumulation. May be reassigned between steps: that
            begins a new one, so that what was seen of a step that broke off is left out.

    Raises:
        InputError: a value outside its range, D not divisible by K.

    Limit case: with no step taken the average is 0 and so is every direction, and TDE equals Eq. 7.

    >>> average = FeatureAverage(4, num_heads=2, momentum=0.9)
    >>> average(torch.tensor([[3.0, 4.0, 0.0, 0.0]]))
    >>> average.direction()
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """

    value: Tensor

    def __init__(self, num_features: int, *, num_heads: int = 1, momentum: float = 0.9, update_every: int = 1) -> None:
        super().__init__()
        checks.whole("num_features", num_features)
        checks.divides(checks.whole("num_heads", num_heads), num_features)
        if checks.number("momentum", momentum, at_least=0) > 1:
            raise checks.InputError(f"momentum: expected a number in [0, 1], got {momentum!r}")
        self.num_heads = num_heads
        self.momentum = momentum
        self.update_every = update_every
        wide = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.register_buffer("value", torch.zeros(num_features, dtype=wide))
        self._held = False

    @property
    def update_every(self) -> int:
        return self._update_every

    @update_every.setter
    def update_every(self, forwards: int) -> None:
        self._update_every = checks.whole("update_every", forwards)
        # Sums and example counts of the step's forwards so far. No buffers: DistributedDataParallel would overwrite
        # them with rank 0's at every forward.
        self._pending: list[tuple[Tensor, int]] = []

    @torch.no_grad()
    def forward(self, features: Float[Tensor, "N D"]) -> None:
        """Take in the features of one forward; the average moves at the `update_every`-th."""
        if not self.training or self._held or _inside_backward():
            return
        self._pending.append((features.to(self.value.dtype).sum(dim=0), len(features)))
        if len(self._pending) >= self.update_every:
            self._move()

    def direction(self) -> Float[Tensor, "K d"]:
        """The head direction of each head: unit vectors [K, D/K], 0 where the average is 0."""
        return unit(self.value.view(self.num_heads, -1))

    @contextmanager
    def hold(self) -> Iterator[None]:
        """No forward inside moves the average: for a repeated forward on the same batch (SAM's second pass)."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    def _move(self) -> None:
        total = torch.stack([features for features, _ in self._pending]).sum(dim=0)
        # new_full, not new_tensor: a fill on the device, where a copy from the host would wait
        total = torch.cat([total, total.new_full((1,), float(sum(count for _, count in self._pending)))])
        self._pending.clear()
        # Every rank comes here at every step, examples or not: a reduction that one rank skips hangs the rest.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        count = total[-1]
        mean = total[:-1] / count.clamp_min(1)
        usable = (count > 0) & mean.isfinite().all()
        self.value.copy_(torch.where(usable, self.momentum * self.value + mean, self.value))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FeatureAverage":
        # `.half()` and `.bfloat16()` would round a sum that can be thousands of times one feature: follow the
        # device, keep the precision.
        before = self.value
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if torch.finfo(self.value.dtype).bits < 32:
            self.value = before.to(self.value.device)
        return self

    def extra_repr(self) -> str:
        return f"{len(self.value)}, num_heads={self.num_heads}, momentum={self.momentum:g}"


def _inside_backward() -> bool:
    # Activation checkpointing runs a forward a second time, inside the backward pass. torch.utils.checkpoint
    # itself asks this question this way; there is no public name for it.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
