"""Which training images an epoch draws, in which order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tailwise import checks
from tailwise.seeds import mixed_seed
from tailwise.shapes import Int


@dataclass(frozen=True)
class InstanceSampler:
    """Every training image once per epoch, in a fresh order (Kang et al. 2020, Eq. 1 with q = 1).

    The order is a pure function of (seed, epoch), the same on every machine and rank.

    Args:
        num_samples: N.
        seed: of the order.

    Raises:
        InputError: no samples, a negative seed.

    >>> sorted(InstanceSampler(4, seed=0).indices(epoch=1).tolist())
    [0, 1, 2, 3]
    """

    num_samples: int
    seed: int

    def __post_init__(self) -> None:
        checks.whole("num_samples", self.num_samples)
        checks.whole("seed", self.seed, at_least=0)

    def indices(self, epoch: int) -> Int[Tensor, " N"]:
        """The sample indices of epoch 1, 2, ..., int64 [N]."""
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        return torch.randperm(self.num_samples, generator=generator)
