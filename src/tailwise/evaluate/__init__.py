"""Stored predictions and the metrics that read them."""

from tailwise.evaluate.calibration import (
    Reliability,
    classwise_calibration_error,
    expected_calibration_error,
    reliability,
)
from tailwise.evaluate.metrics import (
    METRICS,
    geometric_mean_accuracy,
    group_confusion,
    harmonic_mean_accuracy,
    macro_f1,
    mean_per_class_accuracy,
    metric,
    per_class_accuracy,
    shot_accuracy,
    top_k_accuracy,
    worst_class_accuracy,
)
from tailwise.evaluate.predict import NoClassifier, extract, predict
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
    "NoClassifier",
    "Reliability",
    "Store",
    "accuracy_under_prior",
    "classwise_calibration_error",
    "estimate_prior",
    "expected_calibration_error",
    "extract",
    "geometric_mean_accuracy",
    "group_confusion",
    "harmonic_mean_accuracy",
    "macro_f1",
    "mean_per_class_accuracy",
    "metric",
    "per_class_accuracy",
    "predict",
    "prior_weights",
    "reliability",
    "shifted_indices",
    "shifted_prior",
    "shot_accuracy",
    "top_k_accuracy",
    "worst_class_accuracy",
]
