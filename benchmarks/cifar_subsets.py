"""The frozen subsets of CIFAR-LT: how many images, and the hash of each, from a verified copy of CIFAR.

    python benchmarks/cifar_subsets.py --data-dir DIR --out results/cifar-lt-subsets.json

A subset follows from the labels alone, in the official order of the images. The hash is what a run's results.json calls
subset_hash: of the ids of its training and test images.
"""

import argparse
from pathlib import Path

from records import write
from tailwise.checks import InputError
from tailwise.data import cifar_lt

RATIOS = (10, 20, 50, 100, 200)
PROFILES = ("exp", "step")
SEEDS = range(5)


def subsets(num_classes, data_dir):
    """A record for each ratio and profile of one data set."""
    for profile in PROFILES:
        for ratio in RATIOS:
            data = [
                cifar_lt(num_classes, seed, data_dir=data_dir, imbalance_ratio=ratio, profile=profile) for seed in SEEDS
            ]
            counts = data[0].counts
            yield {
                "data": data[0].name,
                "profile": profile,
                "ratio": ratio,
                "images": counts.total,
                "largest": max(counts.per_class),
                "smallest": min(counts.per_class),
                "hashes": [one.subset_hash for one in data],
            }


def table(record):
    """The first 12 digits of every hash, as the docs print them."""
    lines = [f"{'data':12}{'profile':8}{'ratio':>5}  {'images':>6}  " + "  ".join(f"{f'seed {s}':12}" for s in SEEDS)]
    for one in record["subsets"]:
        hashes = "  ".join(value[:12] for value in one["hashes"])
        lines.append(f"{one['data']:12}{one['profile']:8}{one['ratio']:>5}  {one['images']:>6}  {hashes}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def main():
    """Compute, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = []
    for num_classes in (10, 100):
        try:
            found += subsets(num_classes, asked.data_dir)
        except InputError as error:
            print(f"cifar{num_classes} left out: {error}")
    record = {"subsets": found}
    print(table(record), end="")
    if asked.out:
        write(asked.out, record)


if __name__ == "__main__":
    main()
