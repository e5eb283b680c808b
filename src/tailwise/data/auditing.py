"""How long a data set's tail is, what is wrong with its splits, and which recipe to begin with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.data.contract import Split
from tailwise.data.duplicates import duplicates
from tailwise.data.on_disk import DiskSplit
from tailwise.data.readable import Progress

BALANCED = 2.0  # imbalance ratio below which there is nothing to re-balance
FEW_IMAGES = 10_000  # training images below which a network that knows other pictures sees more than one can learn


def gini(counts: Sequence[int]) -> float:
    """Gini coefficient of images per class: 0 if all classes have as many, near 1 if one class has all.

        G = sum_i (2 i - C - 1) n_i / (C sum_i n_i), n_1 <= ... <= n_C

    Raises:
        InputError: no class, or no image.

    >>> gini([5, 5, 5]), gini([0, 0, 10])
    (0.0, 0.6666666666666666)
    """
    values = np.sort(np.asarray(ClassCounts(tuple(counts)).per_class, dtype=np.float64))
    ranks = 2 * np.arange(1, len(values) + 1) - len(values) - 1
    return float((ranks * values).sum() / (len(values) * values.sum()))


def audit(
    name: str,
    parts: Mapping[str, Split | DiskSplit],
    class_names: Sequence[str],
    *,
    compare: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What there is to know about a data set before one trains on it, as plain JSON.

    Args:
        name: of the data.
        parts: train, and val and test where there are any.
        class_names: [C], class 0 first.
        compare: read every image, and look for ones that are in two splits or under two classes.
        progress: told (done, of how many) images.

    Returns:
        classes, images by part, counts of train by class, imbalance_ratio, gini, group_sizes; too_small: classes that
        have no val or no test image, with their images in all; duplicates, unreadable: None if not compared; suits.

    Raises:
        InputError: no train.
    """
    if "train" not in parts:
        raise checks.InputError("parts: expected train, got none")
    by_part = {
        part: np.bincount(split.labels.numpy(), minlength=len(class_names)).tolist() for part, split in parts.items()
    }
    counts = ClassCounts(tuple(by_part["train"]))
    held = [part for part in by_part if part != "train"]
    unjudged = [c for c in range(len(class_names)) if any(by_part[part][c] == 0 for part in held)]
    pairs, broken = duplicates(parts, progress=progress) if compare else ([], [])
    return {
        "name": name,
        "classes": len(class_names),
        "class_names": list(class_names),
        "images": {part: len(split) for part, split in parts.items()},
        "counts": list(counts.per_class),
        "imbalance_ratio": counts.imbalance_ratio,
        "gini": gini(counts.per_class),
        "group_sizes": counts.group_sizes,
        "too_small": [
            {"class": class_names[c], "images": sum(numbers[c] for numbers in by_part.values())} for c in unjudged
        ],
        "duplicates": [asdict(pair) for pair in pairs] if compare else None,
        "unreadable": broken if compare else None,
        "suits": suits(
            counts, judged=1 - len(unjudged) / len(class_names), pretrained=isinstance(parts["train"], DiskSplit)
        ),
    }


def suits(counts: ClassCounts, *, judged: float, pretrained: bool = True) -> dict[str, Any]:
    """Which recipe to begin with, by rule, and why: a rule of thumb, to be replaced by your own comparison.

    - Classes within a factor of 2: "joint", plain training; there is nothing to re-balance.
    - Fewer than half of the classes have val and test images: "logit-adjustment", which has no strength to choose.
    - Otherwise "decoupling": plain training, then ncm, tau-norm, crt and lws on the same features, their strengths
      chosen on val, and logit-adjustment, which needs the counts alone; "tde" is the row to compare with.

    With fewer than 10,000 training images the backbone stays as it was pretrained: `backbone.frozen=true`.

    Args:
        counts: of train.
        judged: share of the classes that val and test have images of, in [0, 1].
        pretrained: whether there are pretrained networks for such images.

    >>> suits(ClassCounts((500, 60, 5)), judged=1.0)["recipe"]
    'decoupling'
    """
    ratio = f"the largest class has {counts.imbalance_ratio:,.4g} times the images of the smallest"
    if counts.imbalance_ratio < BALANCED:
        recipe, why = "joint", [f"{ratio}: there is nothing to re-balance"]
    elif judged < 0.5:
        recipe = "logit-adjustment"
        why = [ratio, f"val and test judge {judged:.0%} of the classes: too few to choose a strength on"]
    else:
        recipe, why = (
            "decoupling",
            [
                f"{ratio}: train plainly, re-balance the classifier, choose on val",
                "compare with logit-adjustment of the same run (tailwise adjust RUN --method logit-adjustment) and tde",
            ],
        )
    settings = []
    if counts.total < FEW_IMAGES and pretrained:
        settings.append("backbone.frozen=true")
        why.append(f"{counts.total:,} training images: fewer than it takes to train a backbone")
    return {"recipe": recipe, "settings": settings, "why": why}
