"""How often each class is seen: probabilities, draw rules, one sampler for them all."""

from tailwise.sampling.draws import (
    Members,
    class_aware_draw,
    class_draw,
    cyclic_draw,
    instance_draw,
    p_by_k_draw,
    repeat_draw,
)
from tailwise.sampling.probabilities import (
    class_probabilities,
    progressive_probabilities,
    repeat_factors,
    reverse_probabilities,
)
from tailwise.sampling.sampler import EpochSampler

__all__ = [
    "EpochSampler",
    "Members",
    "class_aware_draw",
    "class_draw",
    "class_probabilities",
    "cyclic_draw",
    "instance_draw",
    "p_by_k_draw",
    "progressive_probabilities",
    "repeat_draw",
    "repeat_factors",
    "reverse_probabilities",
]
