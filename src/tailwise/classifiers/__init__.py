"""features [N, D] -> logits [N, C]: linear, cosine, capsule and causal."""

from tailwise.classifiers.average import FeatureAverage
from tailwise.classifiers.functional import (
    capsule_logits,
    causal_logits,
    cosine_logits,
    normalized_logits,
)
from tailwise.classifiers.linear import LinearClassifier
from tailwise.classifiers.normalized import (
    CapsuleClassifier,
    CausalClassifier,
    CosineClassifier,
    FoldedClassifier,
    NormalizedClassifier,
)

__all__ = [
    "CapsuleClassifier",
    "CausalClassifier",
    "CosineClassifier",
    "FeatureAverage",
    "FoldedClassifier",
    "LinearClassifier",
    "NormalizedClassifier",
    "capsule_logits",
    "causal_logits",
    "cosine_logits",
    "normalized_logits",
]
