"""What every test and every docstring example shares."""

import os

# a run must not find the data of whoever runs the tests
os.environ.pop("TAILWISE_DATA", None)
# What the tests compute is tiny, here and in the processes they start: a second thread gains nothing, and on a shared
# machine the two wait for each other at every step, which made some tests ten times as slow.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


# The files that take longest go first, so that at the end no process waits for another that began one of them late;
# pytest-xdist would begin with those of most tests, which are the quick ones.
LONGEST = ("test_readme", "test_ranks", "test_cli", "test_resume", "test_reproduce", "test_catalog")


def pytest_configure(config):
    """Leave the order of the files to what follows."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """The longest first, the others as they were."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    torch.manual_seed(0)
    import tailwise.classifiers

    doctest_namespace.update(np=np, torch=torch, tailwise=tailwise)


def pytest_terminal_summary(terminalreporter):
    """Say what was left out, and how to have it."""
    skipped = [report for report in terminalreporter.stats.get("skipped", ()) if "no browser" in str(report.longrepr)]
    if skipped:
        what = "browser tests skipped: they need Debian's chromium and chromium-driver"
        terminalreporter.write_line(f"{len(skipped)} {what}; the command stands in CONTRIBUTING.md")
