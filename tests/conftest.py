"""What several test modules share."""

import numpy as np
import pytest
from hypothesis import settings

from reports import call
from tailwise.experiments.build_data import build_data
from tailwise.recipes.overrides import override

settings.register_profile("patient", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("patient")


@pytest.fixture(scope="session")
def short_runs(tmp_path_factory):
    """The folders of a causal and of a linear run of two seeds, so short that much depends on strength still."""
    folder = tmp_path_factory.mktemp("short-runs")
    for name in ("tde", "linear"):
        call("train", f"digits-lt/{name}", "stages.0.epochs=3", "--seeds", "2", "--out", folder / name)
    return folder / "tde", folder / "linear"


@pytest.fixture(scope="session")
def data_of(tmp_path_factory):
    """A recipe's data, CIFAR's with two images a class, each made once."""
    folder, made = tmp_path_factory.mktemp("cifar"), {}
    for classes in (10, 100):
        labels = np.repeat(np.arange(classes), 2)
        images = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"cifar{classes}.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)

    def find_data(recipe):
        name = recipe.data.name
        if name not in made:
            small = [] if name == "digits-lt" else ["data.imbalance_ratio=1", "protocol=paper"]
            made[name] = build_data(override([recipe], small)[0], 0, folder)
        return made[name]

    return find_data
