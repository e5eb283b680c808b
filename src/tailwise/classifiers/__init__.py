"""features [N, D] -> logits [N, C]: linear, scaled, MLP, cosine, capsule, causal and folded."""

from tailwise.classifiers.average import FeatureAverage
from tailwise.classifiers.functional import (
    capsule_logits,
    causal_logits,
    cosine_logits,
    normalized_logits,
)
from tailwise.classifiers.linear import LinearClassifier, ScaledClassifier
from tailwise.classifiers.mlp import MlpClassifier
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
    "MlpClassifier",
    "NormalizedClassifier",
    "ScaledClassifier",
    "capsule_logits",
    "causal_logits",
    "cosine_logits",
    "normalized_logits",
]
