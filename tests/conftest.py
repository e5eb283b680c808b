"""What several test modules share."""

import pytest

from reports import call


@pytest.fixture(scope="session")
def short_runs(tmp_path_factory):
    """The folders of a causal and of a linear run of two seeds, so short that much depends on strength still."""
    folder = tmp_path_factory.mktemp("short-runs")
    for name in ("tde", "linear"):
        call("train", f"digits-lt/{name}", "stages.0.epochs=3", "--seeds", "2", "--out", folder / name)
    return folder / "tde", folder / "linear"
