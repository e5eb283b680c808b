"""An epoch of class-balanced indices at iNaturalist 2018's size, against a per-sample Python iterator.

    python benchmarks/sampling.py

437,513 images of 8,142 classes with a Zipf-like tail (the sizes matter, not the exact counts). Prints each draw rule's
median milliseconds and its speed against two iterators, measured in turn in one run: a sum-tree that is walked for each
sample, as the field's code has it for square-root and progressive sampling, and the leanest iterator we could write.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from tailwise import ClassCounts
from tailwise.sampling import Members, class_aware_draw, class_draw, class_probabilities, cyclic_draw, instance_draw

IMAGES, CLASSES, PAIRS = 437_513, 8_142, 5


def zipf_counts() -> ClassCounts:
    """Counts proportional to 1 / (rank + 25), at least 2, that sum to IMAGES."""
    weights = 1 / (np.arange(CLASSES) + 25.0)
    counts = np.maximum(2, (IMAGES * weights / weights.sum()).astype(int))
    counts[0] += IMAGES - counts.sum()
    return ClassCounts(tuple(counts.tolist()))


def per_sample(by_class: list[list[int]], size: int) -> Iterator[int]:
    """Class-balanced sampling one index at a time: a random class, then the next image of its shuffled cycle."""
    places = [0] * len(by_class)
    for _ in range(size):
        c = random.randrange(len(by_class))
        if places[c] == len(by_class[c]):
            random.shuffle(by_class[c])
            places[c] = 0
        yield by_class[c][places[c]]
        places[c] += 1


class SumTree:
    """Draws one image at a time in proportion to its weight: each node holds the sum of the two below it."""

    def __init__(self, weights: list[float]) -> None:
        self.size = 1 << (len(weights) - 1).bit_length()
        self.sums = [0.0] * self.size + weights + [0.0] * (self.size - len(weights))
        for node in range(self.size - 1, 0, -1):
            self.sums[node] = self.sums[2 * node] + self.sums[2 * node + 1]

    def draw(self) -> int:
        """An image, found from the root down."""
        sums, node = self.sums, 1
        left = random.random() * sums[1]
        while node < self.size:
            node *= 2
            if left >= sums[node]:
                left -= sums[node]
                node += 1
        return node - self.size


def milliseconds(run: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Time each rule and the iterator in turn, PAIRS times; print medians."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    counts = zipf_counts()
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), counts.per_class))
    members = Members.of(labels, counts)
    balanced = class_probabilities(counts, 0)
    by_class = [np.flatnonzero(labels == c).tolist() for c in range(CLASSES)]
    tree = SumTree((1.0 / np.asarray(counts.per_class)[labels]).tolist())
    rules: dict[str, Callable[[], object]] = {
        "sum-tree, per sample": lambda: [tree.draw() for _ in range(IMAGES)],
        "lean iterator, per sample": lambda: list(per_sample(by_class, IMAGES)),
        "instance": partial(instance_draw, IMAGES, 0, 1),
        "class-balanced": partial(class_draw, members, balanced, 0, 1),
        "class-balanced-cyclic": partial(cyclic_draw, members, balanced, 0, 1),
        "class-aware": partial(class_aware_draw, members, 0, 1),
    }
    times: dict[str, list[float]] = {name: [] for name in rules}
    for _ in range(PAIRS):
        for name, rule in rules.items():
            times[name].append(milliseconds(rule))
    tree_time, lean_time, *_ = (statistics.median(values) for values in times.values())
    print(f"an epoch of {IMAGES:,} indices over {CLASSES:,} classes, median of {PAIRS}")
    for name, values in times.items():
        median = statistics.median(values)
        print(
            f"  {name:26} {median:8.1f} ms   {tree_time / median:6.1f} x the sum-tree's speed, "
            f"{lean_time / median:5.1f} x the lean iterator's"
        )


if __name__ == "__main__":
    main()
