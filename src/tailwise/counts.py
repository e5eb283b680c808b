"""Training images per class: made once from the training set, passed to everything that needs them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwise import checks

GROUPS = ("many", "medium", "few")
MANY_ABOVE = 100  # Liu et al. 2019, as both papers use it: many > 100, medium 20..100, few < 20
FEW_BELOW = 20


@dataclass(frozen=True)
class ClassCounts:
    """Training images of each class, `per_class[c]` for class c, from any sequence or array of whole numbers.

    Raises InputError for no classes, a count that is negative or no whole number, or no image at all.

    >>> counts = ClassCounts((500, 60, 5))
    >>> counts.imbalance_ratio, counts.group_of(1), counts.group_sizes
    (100.0, 'medium', {'many': 1, 'medium': 1, 'few': 1})
    """

    per_class: tuple[int, ...]

    def __post_init__(self) -> None:
        given = self.per_class.tolist() if hasattr(self.per_class, "tolist") else self.per_class
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise checks.InputError(f"per_class: expected a count of each class, got {given!r}")
        if not given:
            raise checks.InputError("per_class: expected at least one class, got none")
        # Python's own numbers, which neither overflow nor keep counts out of JSON
        counts = tuple(checks.whole(f"per_class[{c}]", n, at_least=0) for c, n in enumerate(given))
        object.__setattr__(self, "per_class", counts)
        if not any(counts):
            raise checks.InputError("per_class: expected at least one training image, got none")

    @classmethod
    def of_labels(cls, labels: Sequence[int] | NDArray[np.integer], num_classes: int) -> "ClassCounts":
        """Count `labels` (values in 0..num_classes-1; a class may be absent).

        Raises InputError for labels that are not whole numbers in a row, as fractions or a one-hot matrix.

        >>> ClassCounts.of_labels([0, 0, 2], num_classes=3).per_class
        (2, 0, 1)
        """
        array = np.asarray(labels)
        if array.ndim != 1 or (len(array) and not np.issubdtype(array.dtype, np.integer)):
            raise checks.InputError(f"labels: expected whole numbers [N], got {array.dtype} {list(array.shape)}")
        array = array.astype(np.int64)
        checks.labels_in_range("labels", array, checks.whole("num_classes", num_classes))
        return cls(tuple(np.bincount(array, minlength=num_classes).tolist()))

    @property
    def num_classes(self) -> int:
        return len(self.per_class)

    @property
    def total(self) -> int:
        return sum(self.per_class)

    @property
    def prior(self) -> NDArray[np.float64]:
        """Class frequencies [C], summing to 1; 0 for a class without a training image."""
        return np.asarray(self.per_class, dtype=np.float64) / self.total

    @property
    def imbalance_ratio(self) -> float:
        """N_max / N_min over the classes that have a training image (100, never 0.01)."""
        present = [n for n in self.per_class if n > 0]
        return max(present) / min(present)

    def group_of(self, c: int) -> str:
        """'many' (> 100 training images), 'medium' (20..100) or 'few' (< 20)."""
        n = self.per_class[c]
        return "many" if n > MANY_ABOVE else "few" if n < FEW_BELOW else "medium"

    @property
    def groups(self) -> dict[str, NDArray[np.int64]]:
        """The classes of each group, in class order; an empty group is an empty array."""
        names = [self.group_of(c) for c in range(self.num_classes)]
        return {g: np.array([c for c, n in enumerate(names) if n == g], dtype=np.int64) for g in GROUPS}

    @property
    def group_sizes(self) -> dict[str, int]:
        return {group: len(classes) for group, classes in self.groups.items()}
