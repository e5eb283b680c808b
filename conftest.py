"""What every test and every docstring example shares."""

import os

# a run must not find the data of whoever runs the tests
os.environ.pop("TAILWISE_DATA", None)

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    torch.manual_seed(0)
    import tailwise.classifiers

    doctest_namespace.update(np=np, torch=torch, tailwise=tailwise)
