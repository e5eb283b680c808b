"""What an audit says of a data set: its tail, its duplicates, its classes too small, the rule for a recipe."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jpeg_trees import benchmark_tree, folder_tree, jpeg
from reports import run
from tailwise.checks import InputError
from tailwise.counts import ClassCounts
from tailwise.data import audits, digits_lt
from tailwise.data.auditing import audit, gini, suits
from tailwise.data.duplicates import _alike, difference_hash, duplicates
from tailwise.data.folders import folder_index
from tailwise.data.listed import prepare_listed
from tailwise.report.data import bars

COUNTS = {"cat": 9, "dog": 4, "owl": 2}


@pytest.fixture
def divided(tmp_path):
    """train, val and test of three classes; no two images alike."""
    for part, first in (("train", 0), ("val", 100), ("test", 200)):
        folder_tree(tmp_path / part, COUNTS if part == "train" else {"cat": 2, "dog": 1}, first)
    return tmp_path


def audited(path, **more):
    index = folder_index(path)
    return audit("photos", {part: index.split(part) for part in index.parts}, index.class_names, **more)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=15).filter(any))
def test_gini_is_half_the_mean_difference(counts):
    differences = [abs(a - b) for a in counts for b in counts]
    assert gini(counts) == pytest.approx(np.mean(differences) / (2 * np.mean(counts)))
    assert gini([7] * len(counts)) == pytest.approx(0)


def test_an_audit_counts(divided):
    record = audited(divided)
    assert record["counts"] == [9, 4, 2]
    assert record["images"] == {"train": 15, "val": 3, "test": 3}
    assert record["imbalance_ratio"] == 4.5
    assert record["group_sizes"] == {"many": 0, "medium": 0, "few": 3}
    assert record["too_small"] == [{"class": "owl", "images": 2}]
    assert record["duplicates"] == []
    assert record["unreadable"] == []
    assert audited(divided, compare=False)["duplicates"] is None
    (divided / "test/dog/000.jpg").unlink()
    (divided / "test/dog").rmdir()
    assert [one["class"] for one in audited(divided, compare=False)["too_small"]] == ["dog", "owl"]
    with pytest.raises(InputError, match="expected train, got none"):
        audit("x", {}, ["a"])


def stored_anew(content, size, quality):
    file = io.BytesIO()
    Image.open(io.BytesIO(content)).resize((size, size)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def test_duplicates_are_found_across_splits_and_classes(divided):
    (divided / "test/cat/copy.jpg").write_bytes(jpeg(3, 0))
    (divided / "train/dog/copy.jpg").write_bytes(jpeg(5, 0))
    (divided / "val/dog/anew.jpg").write_bytes(stored_anew(jpeg(1, 1), 40, 60))
    (divided / "train/cat/anew.jpg").write_bytes(stored_anew(jpeg(2, 0), 40, 60))  # within a split and a class: fine
    (divided / "train/cat/broken.jpg").write_bytes(jpeg(6)[:200])
    plain = io.BytesIO()
    Image.new("RGB", (24, 24), (9, 9, 9)).save(plain, "PNG")
    for part, more in (("train", b""), ("val", b"\0")):
        (divided / part / "cat/plain.png").write_bytes(plain.getvalue() + more)  # surfaces are not compared
    record = audited(divided)
    assert [(pair["kind"], *pair["ids"]) for pair in record["duplicates"]] == [
        ("same bytes", "train/cat/003.jpg", "test/cat/copy.jpg"),
        ("same bytes", "train/cat/005.jpg", "train/dog/copy.jpg"),
        ("look alike", "train/dog/001.jpg", "val/dog/anew.jpg"),
    ]
    assert record["duplicates"][1]["labels"] == (0, 1)
    [broken] = record["unreadable"]
    assert "train/cat/broken.jpg: not a readable image" in broken


def test_hash_is_bit_by_bit():
    rng = np.random.default_rng(0)
    thumbnail = rng.integers(0, 256, (8, 9), dtype=np.uint8)
    bits = "".join(str(int(thumbnail[y, x] > thumbnail[y, x + 1])) for y in range(8) for x in range(8))
    assert difference_hash(thumbnail) == int(bits, 2)


def test_pictures_look_alike_by_hash_and_by_correlation_across_splits():
    steps = np.tile(np.array([8, 7, 6, 5, 4, 5, 6, 7, 8]), (8, 1))  # the same hash, whatever is added to a row
    rising, falling = (np.uint8(steps + 20 * rows[:, None]) for rows in (np.arange(8), np.arange(8)[::-1]))
    thumbnails = np.stack([rising, rising + 3, falling, rising, steps.astype(np.uint8)])
    assert len({difference_hash(one) for one in thumbnails}) == 1
    assert _alike(thumbnails, np.array([0, 0, 1, 1, 2])) == [(0, 3), (1, 3)]


def test_images_in_memory_are_compared_too():
    data = digits_lt(0)
    both = {"train": data.train, "test": data.train.take(np.array([4]))}
    pairs, _ = duplicates(both)
    assert [pair.kind for pair in pairs] == ["same bytes"]
    assert pairs[0].ids == (data.train.ids[4],) * 2
    assert duplicates({"train": data.train, "test": data.test})[0] == []  # small shapes look alike: not compared


@pytest.mark.parametrize(
    ("counts", "judged", "recipe", "settings"),
    [
        ((60, 50, 40), 1.0, "joint", ["backbone.frozen=true"]),
        ((9000, 9000), 1.0, "joint", []),
        ((500, 5), 0.4, "logit-adjustment", ["backbone.frozen=true"]),
        ((9000, 1500), 0.5, "decoupling", []),
        ((9000, 5), 1.0, "decoupling", ["backbone.frozen=true"]),
    ],
)
def test_the_rule_for_a_recipe(counts, judged, recipe, settings):
    rule = suits(ClassCounts(counts), judged=judged)
    assert (rule["recipe"], rule["settings"]) == (recipe, settings)
    assert suits(ClassCounts(counts), judged=judged, pretrained=False)["settings"] == []


def test_no_frozen_backbone_is_advised_where_none_is_pretrained():
    """Digits are 8 x 8 pixels; `backbone.frozen=true` is refused there."""
    assert audits.audited("digits-lt", None, {}, compare=False)["suits"]["settings"] == []


def test_what_is_suggested_can_be_trained():
    from tailwise.recipes.catalog import RECIPES

    assert {f"own/{name}" for name in ("joint", "logit-adjustment", "decoupling", "tde")} <= set(RECIPES)


def test_bars_of_many_classes_are_of_ranges():
    lines = bars([1000] * 5 + [0] * 5 + list(range(1, 91)), [str(c) for c in range(100)])
    assert len(lines) == 20
    assert lines[0].split()[:2] == ["1-5", "1,000..1,000"]
    assert lines[0].count("█") == 40
    assert lines[-1].split() == ["96-100", "0..0"]
    lengths = [line.count("█") for line in lines]
    assert lengths == sorted(lengths, reverse=True)
    assert bars([0, 1], ["a", "b"]) == ["b  1  █", "a  0  "]


# ---- the command


def command(capsys, *arguments):
    return run(capsys, "data", "audit", *arguments)


def test_the_command_draws_and_tells(divided, capsys, tmp_path):
    (divided / "test/cat/copy.jpg").write_bytes(jpeg(3, 0))
    (divided / "test/cat/x.heic").write_bytes(b"a format that is not read")
    (divided / "val/empty").mkdir()
    code, out, err = command(capsys, divided, "--on-bad", "skip", "--out", tmp_path / "tail.png")
    assert (code, err) == (0, "")
    assert "imbalance ratio 4.5, Gini 0.311" in out
    assert "too small to be validated and tested, 1 class (with images): owl (2)" in out
    assert "train/cat/003.jpg in train, test/cat/copy.jpg in test" in out
    assert "no pairs that look alike in two splits" in out
    assert "to begin with: decoupling backbone.frozen=true" in out
    assert (tmp_path / "tail.png").read_bytes().startswith(b"\x89PNG")
    assert "passed over, no images by their ending or in no class's folder: .heic 1; 1 in all\n1 left out:\n" in out
    record = json.loads(command(capsys, divided, "--on-bad", "skip", "--json", "--no-duplicates")[1])
    assert record["passed_over"] == {".heic": 1, ".png": 1}  # the figure lies there, too
    assert record["left_out"] == [f"{divided}/val/empty: expected classes that train has, too, got 'empty'"]
    assert record["duplicates"] is None
    assert record["counts"] == [9, 4, 2]


def test_nothing_is_written_beside_the_data(tmp_path, capsys):
    folder_tree(tmp_path, COUNTS)
    assert command(capsys, tmp_path)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == list(COUNTS)


def test_benchmarks_by_name(tmp_path, capsys, monkeypatch):
    prepare_listed(benchmark_tree(tmp_path, "places-lt"), tmp_path)
    code, out, _ = command(capsys, "places-lt", "--data-dir", tmp_path)
    assert code == 0
    assert "places-lt: 3 classes; images: train 23, val 6, test 6" in out
    assert command(capsys, "digits-lt", "--no-duplicates")[0] == 0
    code, _, err = command(capsys, tmp_path / "gone")
    assert code == 2
    assert "expected a path to your own data or one of imagenet-lt, places-lt" in err
    assert "needs a local copy" in command(capsys, "imagenet-lt")[2]
    for name, more, message in (
        ("places-lt", ("--root", tmp_path), "root: expected none for places-lt, which is no data of your own"),
        ("digits-lt", ("--on-bad", "skip"), "on_bad: expected none for digits-lt, which is no data of your own"),
        (tmp_path, ("--data-dir", tmp_path), f"data_dir: expected none for {tmp_path}, which is data of your own"),
    ):
        code, _, err = command(capsys, name, "--no-duplicates", *more)
        assert (code, err) == (2, f"tailwise: {message}\n")
