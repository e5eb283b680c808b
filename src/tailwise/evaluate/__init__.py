"""Stored predictions and the metrics that read them."""

from tailwise.evaluate.calibration import (
    Reliability,
    classwise_calibration_error,
    expected_calibration_error,
    reliability,
)
from tailwise.evaluate.metrics import (
    METRICS,
    group_confusion,
    harmonic_mean_accuracy,
    mean_per_class_accuracy,
    metric,
    per_class_accuracy,
    shot_accuracy,
    worst_class_accuracy,
)
from tailwise.evaluate.predict import predict
from tailwise.evaluate.prior_shift import (
    EstimatedPrior,
    accuracy_under_prior,
    estimate_prior,
    prior_weights,
    shifted_indices,
    shifted_prior,
)
from tailwise.evaluate.store import Store

__all__ = [
    "METRICS",
    "EstimatedPrior",
    "Reliability",
    "Store",
    "accuracy_under_prior",
    "classwise_calibration_error",
    "estimate_prior",
    "expected_calibration_error",
    "group_confusion",
    "harmonic_mean_accuracy",
    "mean_per_class_accuracy",
    "metric",
    "per_class_accuracy",
    "predict",
    "prior_weights",
    "reliability",
    "shifted_indices",
    "shifted_prior",
    "shot_accuracy",
    "worst_class_accuracy",
]
