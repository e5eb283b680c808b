"""What a training step of each rival costs, relative to plain cross-entropy.

    python benchmarks/rivals.py --out results/rivals-cost.json

CIFAR-100-LT's shapes with random pictures, two-branch ResNet-32, batches of 64, float32: forward, backward and
optimiser, and for two streams both. Plain and rival take turns; a figure is the median of their ratios.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from records import write
from tailwise.experiments.build_data import build_data
from tailwise.recipes.build import build_model
from tailwise.recipes.build_stages import build_load, build_stages, build_view
from tailwise.recipes.catalog import RECIPES
from tailwise.recipes.overrides import override
from tailwise.recipes.rivals import RIVALS
from tailwise.train import Compute
from tailwise.train.step import Training

SMALL = ["stages.0.batch_size=64", "protocol=paper", "data.imbalance_ratio=10"]


def pictures(folder):
    """Random ones, in CIFAR-100's layout."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 30)
    images = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "cifar100.npz", x_train=images, y_train=labels, x_test=images[::30], y_test=labels[::30])


def steps_of(method, folder):
    """A function that takes some steps of a rival, and says how long they took."""
    recipe = override([RECIPES[f"cifar100-lt/{method}"]], SMALL)[0]
    data = build_data(recipe, 0, folder)
    model = build_model(recipe, 100)
    (stage,) = build_stages(recipe.stages, recipe, model, data, 0)
    view = build_view(recipe.stages[0], model).train()
    training = Training(view, stage, Compute())
    training.start_epoch(1)
    load, batches = build_load(recipe.stages, data, 0), []

    def take(number):
        start = time.perf_counter()
        for _ in range(number):
            if not batches:
                batches.append(iter(load(stage, 1)))
            batch = next(batches[0], None)
            if batch is None:
                batches.clear()
                batches.append(iter(load(stage, 1)))
                batch = next(batches[0])
            training.step(*batch)
        return time.perf_counter() - start

    return take


def table(record):
    """The ratios as lines, dearest last."""
    rows = sorted(record["ratios"].items(), key=lambda item: item[1])
    return "".join(f"{name:24} {ratio:5.2f}\n" for name, ratio in rows)


def main():
    """Time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        pictures(Path(folder))
        plain = steps_of("joint", Path(folder))
        plain(2)
        for method in ("cosine", "de-confound", *RIVALS):
            rival = steps_of(method, Path(folder))
            rival(1)
            pairs = [(rival(asked.steps), plain(asked.steps)) for _ in range(asked.pairs)]
            ratios[method] = statistics.median(a / b for a, b in pairs)
            print(f"{method:24} {ratios[method]:5.2f}", flush=True)
    if asked.out:
        write(asked.out, {"ratios": ratios, "pairs": asked.pairs, "steps": asked.steps})


if __name__ == "__main__":
    main()
