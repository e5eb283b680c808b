"""Train, val and test of a user's own images: drawn once, stored, and compared with the images ever after."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpeg_trees import COUNTS, every, folder_tree, named, write_image
from tailwise.checks import InputError
from tailwise.data import LooseFiles, string_array
from tailwise.data.folders import folder_index
from tailwise.data.index import ImageIndex
from tailwise.data.own import own_data
from tailwise.data.splits import draw_splits, drawn_test_sizes, read_splits, splits_hash, stored_splits


@pytest.fixture
def tree(tmp_path):
    folder_tree(tmp_path / "photos", COUNTS)
    return tmp_path / "photos"


def index_of_counts(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    ids = string_array(f"{c}/{i}.jpg" for i, c in enumerate(labels.tolist()))
    return ImageIndex(LooseFiles(Path(), ids), labels, tuple(map(str, range(len(counts)))), {})


@settings(max_examples=40)
@given(st.lists(st.integers(0, 7) | st.sampled_from([99, 130, 600]), min_size=1, max_size=5), st.integers(0, 3))
def test_every_class_of_three_is_tested_and_none_loses_all(counts, seed):
    index = index_of_counts(counts)
    if max(counts) < 3:
        with pytest.raises(InputError, match="a class of at least 3 images"):
            draw_splits(index, seed=seed)
        return
    divided = draw_splits(index, seed=seed)
    rows = np.concatenate(list(divided.parts.values()))
    assert sorted(rows.tolist()) == list(range(sum(counts)))
    for n, train, val, test in zip(
        counts, *(divided.counts(part).per_class for part in ("train", "val", "test")), strict=True
    ):
        assert train >= min(n, 1)
        assert (val >= 1) == (test >= 1) == (n >= 3)
        assert val <= 20
        assert test <= 100
        assert test == drawn_test_sizes([n])[0]


def test_splits_are_by_the_documented_hash():
    divided = draw_splits(index_of_counts((40, 4)), seed=3)
    for c in (0, 1):
        names = [name for name in divided.source.names.tolist() if name.startswith(f"{c}/")]
        order = sorted(names, key=lambda name: hashlib.sha256(f"own/3/{name}".encode()).digest())
        sizes = {"test": 8, "val": 8} if c == 0 else {"test": 1, "val": 1}
        for part, size in sizes.items():
            got = [name for name in named(divided, part) if name.startswith(f"{c}/")]
            assert sorted(got) == sorted(order[:size])
            order = order[size:]


def test_only_what_is_missing_is_drawn(tmp_path):
    folder_tree(tmp_path / "train", COUNTS)
    folder_tree(tmp_path / "test", {"cat": 1, "owl": 1})
    index = folder_index(tmp_path)
    divided = draw_splits(index)
    assert named(divided, "test") == named(index, "test")
    assert divided.counts("val").per_class == (2, 1, 1, 0)
    assert named(divided, "train") | named(divided, "val") == named(index, "train")
    folder_tree(tmp_path / "val", {"cat": 1})
    assert stored_splits(folder_index(tmp_path), tmp_path / "splits").counts("val").per_class == (1, 0, 0, 0)
    assert not (tmp_path / "splits").exists()


def test_splits_are_drawn_once(tree):
    first = own_data(tree)
    again = own_data(tree, seed=5)  # a stored split keeps its seed
    assert splits_hash(again) == splits_hash(first)
    assert named(again, "test") == named(first, "test")
    assert splits_hash(own_data(tree, seed=5, redraw=True)) != splits_hash(first)
    about = json.loads((tree / "tailwise-splits/splits.json").read_text())
    assert about["seed"] == 5
    assert about["drawn"] == ["train", "val", "test"]
    assert about["counts"]["test"] == [2, 1, 1, 0]
    assert sorted(child.name for child in tree.iterdir()) == [*COUNTS, "tailwise-splits"]


def test_a_part_of_which_all_is_left_out_is_named(tmp_path):
    for part, n in (("train", 5), ("val", 1), ("test", 5)):
        folder_tree(tmp_path / part, {"cat": n, "dog": n})
    index, left_out = folder_index(tmp_path), ["val/cat/000.jpg", "val/dog/000.jpg"]
    with pytest.raises(InputError, match=r"val: expected images that will do, got none of 2 .*val/cat/000"):
        stored_splits(index, tmp_path / "splits", leave_out=left_out)
    assert not (tmp_path / "splits").exists()


def test_a_redraw_of_whole_data_removes_what_was_left_out(tmp_path):
    for part in ("train", "val", "test"):
        folder_tree(tmp_path / part, {"cat": 3, "dog": 3})
    index, place = folder_index(tmp_path), tmp_path / "splits"
    stored_splits(index, place, leave_out=["train/cat/000.jpg"])
    assert len(stored_splits(index, place).parts["train"]) == 5
    assert len(stored_splits(index, place, redraw=True).parts["train"]) == 6
    assert not place.exists()
    assert len(stored_splits(index, place).parts["train"]) == 6


def test_a_redraw_replaces_nothing_but_splits(tree):
    with pytest.raises(InputError, match=r"a folder of stored splits, got .*photos without splits\.json"):
        own_data(tree, splits=tree, redraw=True)
    assert named(folder_index(tree)) == every()
    (tree.parent / "notes.txt").write_text("a file")
    with pytest.raises(InputError, match=r"a folder of stored splits, got .*notes\.txt without splits\.json"):
        own_data(tree, splits=tree.parent / "notes.txt", redraw=True)
    (tree.parent / "empty").mkdir()
    assert len(own_data(tree, splits=tree.parent / "empty", redraw=True).parts) == 3


def test_what_changed_is_said_and_nothing_is_drawn_again(tree):
    before = own_data(tree)
    kept = {path: path.read_bytes() for path in (tree / "tailwise-splits").iterdir()}
    write_image(tree / "cat/new.jpg", 99)
    (tree / "dog/000.jpg").rename(tree / "eel/moved.jpg")
    with pytest.raises(InputError, match=r"2 added \(first: cat/new\.jpg\), 1 removed \(first: dog/000\.jpg\).*redraw"):
        own_data(tree)
    assert {path: path.read_bytes() for path in (tree / "tailwise-splits").iterdir()} == kept
    after = own_data(tree, redraw=True)
    stayed = named(before, "test").keys() & named(after, "test").keys()
    assert len(stayed) >= 3  # of four
    with pytest.raises(InputError, match="23 of another class"):
        own_data(tree, class_names=["dog", "cat", "owl", "eel"])


def test_splits_that_were_changed_or_broken(tree):
    own_data(tree)
    place = tree / "tailwise-splits"
    text = (place / "val.txt").read_text()
    (place / "val.txt").write_text(text.replace("cat", "dog"))
    with pytest.raises(InputError, match="somebody changed them"):
        own_data(tree)
    (place / "val.txt").unlink()
    with pytest.raises(InputError, match=r"val\.txt: not a readable list \(No such file"):
        own_data(tree)
    (place / "splits.json").write_text('{"format": "other", "class_names": [], "hash": "", "counts": {}}')
    with pytest.raises(InputError, match="expected format tailwise-splits/1, got other"):
        read_splits(place)
    (place / "splits.json").write_text("{")
    with pytest.raises(InputError, match="not a readable record of splits"):
        read_splits(place)


def test_splits_lie_where_they_are_wanted(tree, tmp_path, monkeypatch):
    own_data(tree, splits=tmp_path / "elsewhere/mine")
    assert (tmp_path / "elsewhere/mine/test.txt").is_file()
    assert not (tree / "tailwise-splits").exists()
    (tmp_path / "t.csv").write_text(
        "path,label\n" + "".join(f"photos/{path},{name}\n" for path, name in every().items())
    )
    own_data(tmp_path / "t.csv")
    assert (tmp_path / "t.tailwise-splits/test.txt").is_file()

    def full(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", full)
    with pytest.raises(InputError, match=r"cannot write the splits \(Read-only file system\); name another folder"):
        own_data(tree)


def test_what_a_killed_run_of_the_same_number_left_is_in_nobodys_way(tree):
    left = tree / f".tailwise-splits.partial-{os.getpid()}"
    left.mkdir()
    place = tree / "tailwise-splits"
    own_data(tree)
    assert left.exists()
    assert place.stat().st_mode == left.stat().st_mode
    assert sorted(child.name for child in tree.iterdir()) == sorted([*COUNTS, left.name, place.name])


def test_a_write_that_fails_leaves_the_old_splits(tree, monkeypatch):
    before = splits_hash(own_data(tree, seed=3))
    rename = os.rename

    def fails(source, target):
        if "partial" in str(source):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(InputError, match="No space left"):
        own_data(tree, seed=1, redraw=True)
    monkeypatch.undo()
    assert splits_hash(own_data(tree)) == before
    assert sorted(child.name for child in tree.iterdir()) == [*COUNTS, "tailwise-splits"]
