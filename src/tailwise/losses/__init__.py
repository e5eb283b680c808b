"""Losses `(logits [N, C], target, ..., reduction) -> scalar or [N]`; "mean" is the mean over samples.

Each is a function and a module of the same name. `target` is classes [N], or, where the mathematics allows it, a
distribution over them for each sample [N, C]. `counts` are the training images per class that the model is trained on.
Those of `metric` take features [N, D] in place of logits, and give a scalar.
"""

from tailwise.losses.deferred import DeferredReweighting
from tailwise.losses.margins import LDAM, ldam
from tailwise.losses.metric import (
    CrossEntropyAndMetric,
    LiftedStructured,
    RangeLoss,
    lifted_structured,
    range_loss,
)
from tailwise.losses.plain import CrossEntropy, cross_entropy
from tailwise.losses.priors import (
    BalancedSoftmax,
    LogitAdjustedCrossEntropy,
    VSLoss,
    balanced_softmax,
    logit_adjusted_cross_entropy,
    vs_loss,
)
from tailwise.losses.reweighting import (
    ClassBalanced,
    ClassBalancedSigmoid,
    Focal,
    class_balanced,
    class_balanced_sigmoid,
    class_balanced_weights,
    focal,
)
from tailwise.losses.suppression import (
    Equalization,
    EqualizationSigmoid,
    Seesaw,
    equalization,
    equalization_sigmoid,
    seesaw,
)

__all__ = [
    "LDAM",
    "BalancedSoftmax",
    "ClassBalanced",
    "ClassBalancedSigmoid",
    "CrossEntropy",
    "CrossEntropyAndMetric",
    "DeferredReweighting",
    "Equalization",
    "EqualizationSigmoid",
    "Focal",
    "LiftedStructured",
    "LogitAdjustedCrossEntropy",
    "RangeLoss",
    "Seesaw",
    "VSLoss",
    "balanced_softmax",
    "class_balanced",
    "class_balanced_sigmoid",
    "class_balanced_weights",
    "cross_entropy",
    "equalization",
    "equalization_sigmoid",
    "focal",
    "ldam",
    "lifted_structured",
    "logit_adjusted_cross_entropy",
    "range_loss",
    "seesaw",
    "vs_loss",
]
