"""The subsets of CIFAR-LT are frozen: from labels alone, for ever the same."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tailwise.data import ids_hash, long_tailed_counts, long_tailed_indices

RESULTS = Path(__file__).parents[1] / "results"
SUBSETS = json.loads((RESULTS / "cifar-lt-subsets.json").read_text())["subsets"]
PUBLISHED = {10: 19_573, 50: 12_608, 100: 10_847}  # training images of CIFAR-100-LT, exp, as the authors' code has them


# Labels 0, 1, ..., 9, 0, 1, ... in CIFAR-10's size: what any clone can compute. Written down once, never to change.
@pytest.mark.parametrize(
    ("ratio", "profile", "seed", "images", "frozen"),
    [
        (100, "exp", 0, 12406, "d27ccc1f25b8c517"),
        (100, "exp", 4, 12406, "972c1e3974f670f0"),
        (10, "step", 1, 27500, "44431f55bad2e9a6"),
        (200, "step", 2, 25125, "1fe0039c69a3a708"),
    ],
)
def test_a_subset_of_known_labels_is_the_frozen_one(ratio, profile, seed, images, frozen):
    labels = np.arange(50_000) % 10
    counts = long_tailed_counts(10, 5000, ratio, profile)
    chosen = long_tailed_indices(labels, counts, dataset="cifar10", seed=seed)
    assert len(chosen) == images
    assert ids_hash(np.array([f"train/{i:05d}" for i in chosen])).startswith(frozen)
    # and by the definition, for one class
    keys = {hashlib.sha256(f"cifar10/{seed}/7/{i}".encode()).digest(): i for i in range(7, 50_000, 10)}
    first = {keys[key] for key in sorted(keys)[: counts[7]]}
    assert first == {i for i in chosen.tolist() if i % 10 == 7}


def test_the_record_is_of_every_subset():
    asked = {(profile, ratio) for profile in ("exp", "step") for ratio in (10, 20, 50, 100, 200)}
    assert {(one["profile"], one["ratio"]) for one in SUBSETS if one["data"] == "cifar100-lt"} == asked
    for one in SUBSETS:
        num_classes = {"cifar10-lt": 10, "cifar100-lt": 100}[one["data"]]
        counts = long_tailed_counts(num_classes, 50_000 // num_classes, one["ratio"], one["profile"])
        assert (one["images"], one["largest"], one["smallest"]) == (sum(counts), max(counts), min(counts))
        if one["data"] == "cifar100-lt" and one["profile"] == "exp":
            assert one["images"] == PUBLISHED.get(one["ratio"], one["images"])
    hashes = [value for one in SUBSETS for value in one["hashes"]]
    assert len(set(hashes)) == len(hashes) == 5 * len(SUBSETS)
    assert all(len(value) == 64 for value in hashes)


def test_the_record_agrees_with_runs():
    [recorded] = [one for one in SUBSETS if (one["data"], one["profile"], one["ratio"]) == ("cifar100-lt", "exp", 100)]
    runs = json.loads((RESULTS / "cifar100-lt-tde.json").read_text())
    assert runs["subset_hashes"] == [recorded["hashes"][0] for _ in runs["seeds"]]  # all on subset seed 0
