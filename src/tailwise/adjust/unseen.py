"""Classes without a training image: never predicted by an adjusted classifier, unless asked for."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.shapes import Float, Int


def mask_unseen(
    logits: Float[Tensor, "N C"], counts: ClassCounts | None, *, allow_unseen: bool = False
) -> Float[Tensor, "N C"]:
    """The logits, with -inf for every class that has no training image.

    What a re-balanced classifier says of such a class is noise: a weight row that was only ever pushed away, which
    normalization makes as long as the others.

    Args:
        logits: [N, C].
        counts: training images per class; None where they are not known, which masks nothing.
        allow_unseen: leave the logits as they are.

    Raises:
        InputError: counts of another number of classes.

    Warns:
        UserWarning: which classes are masked; Python's default filter shows it once.

    Limit case: every class with at least one image leaves the logits as they are.

    >>> mask_unseen(torch.ones(1, 3), ClassCounts((5, 1, 2)))
    tensor([[1., 1., 1.]])
    """
    if counts is None:
        return logits
    if counts.num_classes != logits.shape[1]:
        raise checks.InputError(f"counts: expected {logits.shape[1]} classes, got {counts.num_classes}")
    unseen = [c for c, n in enumerate(counts.per_class) if n == 0]
    if not unseen or allow_unseen:
        return logits
    shown = ", ".join(map(str, unseen[:5])) + (", ..." if len(unseen) > 5 else "")
    # one place and one text: Python's default filter shows it once
    warnings.warn(
        f"{len(unseen)} of {counts.num_classes} classes have no training image and are never predicted "
        f"({shown}); with allow_unseen they may be",
        UserWarning,
        stacklevel=1,
    )
    mask = torch.zeros(counts.num_classes, dtype=torch.bool, device=logits.device)
    mask[unseen] = True
    return logits.masked_fill(mask, -torch.inf)


@contextmanager
def unseen_expected() -> Iterator[None]:
    """No warning inside of classes without an image: a fold, or a stream so far, lacks some that the data has."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\d+ of \d+ classes have no training image", UserWarning)
        yield


def refuse_masked(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> None:
    """Refuse a label whose logit is -inf: its cross-entropy is infinite whatever is chosen by it."""
    if (logits.gather(1, labels[:, None]) == -torch.inf).any():
        raise checks.InputError("labels: expected classes whose logits are finite, got one that is never predicted")


def bias_of_unseen(
    bias: Float[Tensor, " C"] | None, weight: Float[Tensor, "C D"], counts: ClassCounts | None, *, allow_unseen: bool
) -> Float[Tensor, " C"] | None:
    """The bias with -inf for unseen classes; None stays None where there are none."""
    before = torch.zeros_like(weight[:, 0]) if bias is None else bias
    after = mask_unseen(before[None], counts, allow_unseen=allow_unseen)[0]
    return bias if torch.equal(after, before) else after
