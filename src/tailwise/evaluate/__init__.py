"""Stored predictions and the metrics that read them."""

from tailwise.evaluate.metrics import (
    METRICS,
    harmonic_mean_accuracy,
    mean_per_class_accuracy,
    metric,
    per_class_accuracy,
    shot_accuracy,
    worst_class_accuracy,
)
from tailwise.evaluate.predict import predict
from tailwise.evaluate.store import Store

__all__ = [
    "METRICS",
    "Store",
    "harmonic_mean_accuracy",
    "mean_per_class_accuracy",
    "metric",
    "per_class_accuracy",
    "predict",
    "shot_accuracy",
    "worst_class_accuracy",
]
