"""Methods with modules or a training step of their own.

A view has the `backbone` and the `classifier` that are used afterwards, and whatever the method needs in training only.
A loss understands what its view gives. Both are told when an epoch starts: `start_epoch(epoch, epochs)`, from 1.
"""

from tailwise.methods.bbn import BilateralLoss, BilateralView, bilateral_alpha, bilateral_features
from tailwise.methods.glmc import GlmcLoss, GlmcView, consistency, inverse_frequency_weights

__all__ = [
    "BilateralLoss",
    "BilateralView",
    "GlmcLoss",
    "GlmcView",
    "bilateral_alpha",
    "bilateral_features",
    "consistency",
    "inverse_frequency_weights",
]
