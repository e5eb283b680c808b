"""Stored predictions and the metrics that read them."""

from tailwise.evaluate.metrics import mean_per_class_accuracy, per_class_accuracy, shot_accuracy
from tailwise.evaluate.predict import predict
from tailwise.evaluate.store import Store

__all__ = ["Store", "mean_per_class_accuracy", "per_class_accuracy", "predict", "shot_accuracy"]
