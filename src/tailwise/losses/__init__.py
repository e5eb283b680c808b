"""Losses `(logits [N, C], target [N], ..., reduction) -> scalar or [N]`; "mean" is the mean over samples."""

from tailwise.losses.plain import CrossEntropy, cross_entropy

__all__ = ["CrossEntropy", "cross_entropy"]
