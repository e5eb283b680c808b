import json
import re

import numpy as np
import pytest
import torch

from causal_oracles import unchecked
from tailwise import ClassCounts, InputError


def test_groups_have_the_published_bounds():
    counts = ClassCounts((101, 100, 20, 19, 0))
    assert [counts.group_of(c) for c in range(5)] == ["many", "medium", "medium", "few", "few"]
    assert {g: c.tolist() for g, c in counts.groups.items()} == {"many": [0], "medium": [1, 2], "few": [3, 4]}


def test_empty_group_is_empty():
    assert ClassCounts((500, 400)).groups["few"].tolist() == []


def test_prior_and_ratio_ignore_nothing_and_absent_classes_respectively():
    counts = ClassCounts((6, 2, 0))
    np.testing.assert_allclose(counts.prior, [0.75, 0.25, 0.0])
    assert counts.imbalance_ratio == 3.0
    assert counts.total == 8


def test_counts_of_any_kind_are_the_same_counts():
    """As numpy and torch count; small integers do not overflow, and what is kept goes into JSON."""
    expected = ClassCounts((200, 0, 100))
    given = [200, 0, 100]
    for counts in (given, np.array(given), torch.tensor(given), tuple(np.array(given, np.uint8))):
        with unchecked():
            found = ClassCounts(counts)
        assert (found, hash(found), found.total) == (expected, hash(expected), 300)
        assert json.dumps(found.per_class) == "[200, 0, 100]"


@pytest.mark.parametrize("bad", [(), (0, 0), (3, -1), 3, "35", np.array(3), np.ones(2), np.ones((2, 2), int), {3: 5}])
def test_refuses(bad):
    with pytest.raises(InputError, match="per_class"), unchecked():
        ClassCounts(bad)


@pytest.mark.parametrize(
    ("labels", "got"), [([0.6, 1.9], "float64 [2]"), (np.eye(3, dtype=int), "int64 [3, 3]"), (["a"], "<U1 [1]")]
)
def test_labels_are_whole_numbers_in_a_row(labels, got):
    with pytest.raises(InputError, match=r"^labels: expected whole numbers \[N\], got " + re.escape(got)), unchecked():
        ClassCounts.of_labels(labels, num_classes=3)


def test_of_labels_names_the_wrong_label():
    with pytest.raises(InputError, match=r"expected labels in 0\.\.2, got 3 at position 1"):
        ClassCounts.of_labels(np.array([0, 3, 5]), num_classes=3)
