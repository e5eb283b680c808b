"""digit-scenes-lt: its pixels are frozen, its annotation is federated and true; detections are drawn legibly."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tailwise.checks import InputError
from tailwise.data import all_digits
from tailwise.detect import (
    Detections,
    average_precision,
    digit_scenes_lt,
    encode,
    frequency_of,
    read_split,
    scenes,
    write_split,
)
from tailwise.detect.precision import FIGURES
from tailwise.report import drawing
from tailwise.report.drawing import draw_detections, save_png

PAGE = Path(__file__).parents[1] / "docs/detection.md"
TINY = {"max_train": 5, "imbalance_ratio": 5, "val_per_class": 1, "test_per_class": 1}


@pytest.fixture(scope="module")
def small_and_painted():
    """A smaller data set, and what lies in its scenes, annotated or not: (class, source digit) lists of each split."""
    kept, original = [], scenes._painted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "_painted", lambda scene, draws: (kept.append(scene), original(scene, draws))[1])
        data = digit_scenes_lt(1, max_train=150, imbalance_ratio=75, val_per_class=2, test_per_class=3)
    test, val = len(data.test), len(data.val)
    return data, {"test": kept[:test], "val": kept[test : test + val], "train": kept[test + val :]}


@pytest.fixture(scope="module")
def small(small_and_painted):
    return small_and_painted[0]


@pytest.fixture(scope="module")
def painted(small_and_painted):
    return small_and_painted[1]


def digest(split):
    sha = hashlib.sha256()
    for example, image in zip(split, split.truth.images, strict=True):
        sha.update(example.image.numpy().tobytes() + image.boxes.tobytes() + image.labels.tobytes())
        sha.update(repr((image.masks, sorted(image.negative), sorted(image.not_exhaustive), image.file)).encode())
    return sha.hexdigest()


def test_the_published_data_set_is_frozen():
    """Seed 0 at full size, to the last pixel, mask and federated set."""
    data = digit_scenes_lt(0)
    assert {name: digest(getattr(data, name)) for name in ("train", "val", "test")} == {
        "train": "6c12fcccce1334e6282c180f046000bffb9509e3ac9d9e6ea1ecd5a69bb009e3",
        "val": "49ddff70c25e557449135395a599f16a128c1d059543e7b07cfb5f6012985f18",
        "test": "a75a348efe57de9a1a74e26464139020b5d866a37fec81c96a8c73cff2956c3c",
    }
    frequencies = [category.frequency for category in data.train.truth.categories]
    assert {f: frequencies.count(f) for f in "rcf"} == {"r": 13, "c": 16, "f": 11}
    assert [len(split) for split in (data.train, data.val, data.test)] == [1097, 207, 502]
    assert data.counts.imbalance_ratio > 200


def test_training_is_long_tailed_and_the_rest_balanced(small, painted):
    counts = {name: np.bincount([c for scene in painted[name] for c, _ in scene], minlength=40) for name in painted}
    assert set(counts["val"]) == {2}
    assert set(counts["test"]) == {3}
    assert sorted(counts["train"], reverse=True) == [int(150 * 75 ** (-c / 39)) for c in range(40)]
    assert small.counts == small.train.truth.counts_by_instances()
    images = small.train.truth.counts_by_images().per_class
    for split in (small.train, small.val, small.test):
        assert [c.frequency for c in split.truth.categories] == [frequency_of(n) for n in images]
    assert all(2 <= len(scene) <= 6 for scene in painted["train"][:-1])


def test_no_source_digit_is_in_two_splits(painted):
    used = {name: {source for scene in painted[name] for _, source in scene} for name in painted}
    assert not used["train"] & used["val"] | used["train"] & used["test"] | used["val"] & used["test"]
    labels = all_digits().labels
    for c, source in (pair for scenes_of in painted.values() for scene in scenes_of for pair in scene):
        assert scenes.CLASS_NAMES[c].endswith(str(int(labels[source])))


def test_annotation_is_federated_and_true(small, painted):
    """Verified absence is true; only frequent classes go unannotated; what is left out of one is said."""
    unseen = partly = 0
    frequent = {c for c, n in enumerate(np.bincount([c for s in painted["train"] for c, _ in s])) if n > 100}
    for name in painted:
        for scene, image in zip(painted[name], getattr(small, name).truth.images, strict=True):
            there, annotated = [c + 1 for c, _ in scene], image.labels.tolist()
            assert len(image.negative) == scenes.NEGATIVES
            assert not image.negative & set(there)
            for label in set(there):
                missing = there.count(label) - annotated.count(label)
                assert missing >= 0
                assert (label in image.not_exhaustive) == (0 < missing < there.count(label))
                if missing:
                    assert label - 1 in frequent
                partly += 0 < missing < there.count(label)
                unseen += missing == there.count(label)
            assert image.not_exhaustive <= set(there)
    assert unseen > 10
    assert partly > 3


def test_masks_cover_ink_of_the_class_and_nothing_twice(small):
    colours = torch.tensor(list(scenes.COLOURS.values())).float()
    for example in small.train:
        masks = example.masks.bool()
        assert not len(masks) or masks.sum(dim=0).max() == 1
        for mask, box, label in zip(masks, example.boxes, example.labels, strict=True):
            y, x = mask.nonzero(as_tuple=True)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            ink = example.image[:, mask].float().median(dim=1).values
            assert (colours - ink).norm(dim=1).argmin() == (label - 1) % 4


def test_the_same_seed_gives_the_same_scenes_and_another_does_not():
    first, again, other = (digest(digit_scenes_lt(seed, **TINY).test) for seed in (1, 1, 2))
    assert first == again != other
    with pytest.raises(InputError, match="seed"):
        digit_scenes_lt(-1)
    with pytest.raises(InputError, match="val_per_class"):
        digit_scenes_lt(0, val_per_class=0)


def test_on_disk_it_is_an_lvis_data_set(small, tmp_path):
    write_split(small.val, tmp_path / "annotations/val.json", tmp_path / "images")
    again = read_split(tmp_path / "annotations/val.json", tmp_path / "images")
    assert digest(again) == digest(small.val)
    assert again.truth.categories == small.val.truth.categories
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations", "images"]


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_what_is_annotated_is_a_perfect_answer_and_one_class_too_far_a_wrong_one(small, kind):
    answers = [example.as_detections() for example in small.test]
    assert average_precision(small.test.truth, answers, kind) == dict.fromkeys(FIGURES, pytest.approx(100))
    shifted = [replace(answer, labels=answer.labels % 40 + 1) for answer in answers]
    assert average_precision(small.test.truth, shifted, kind)["AP"] < 1


def test_the_page_shows_what_it_says(small, tmp_path, monkeypatch):
    """The code of docs/detection.md runs as written, here on a smaller data set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tailwise.detect.digit_scenes_lt", lambda seed, **_: small)
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S):
        exec(code, {})
    with Image.open("detection-scenes.png") as shown, Image.open(PAGE.with_name("detection-scenes.png")) as published:
        assert shown.size == published.size


# --- drawing ------------------------------------------------------------------------------------------------------


def found(*boxes, scores=None, masks=None):
    n = len(boxes)
    scores = np.linspace(0.9, 0.2, n) if scores is None else np.array(scores)
    labels = np.arange(1, n + 1, dtype=np.int64)
    return Detections(1, np.array(boxes, dtype=np.float32).reshape(-1, 4), scores.astype(np.float32), labels, masks)


NAMES = [f"class {c}" for c in range(30)]


@pytest.fixture
def placed(monkeypatch):
    """Every place that a name was given, with the picture's size."""
    places, original = [], drawing._place

    def spy(box, size, picture, taken):
        places.append((original(box, size, picture, taken), picture))
        return places[-1][0]

    monkeypatch.setattr(drawing, "_place", spy)
    return places


def test_names_neither_overlap_nor_leave_the_picture(placed):
    """Even where six boxes are the same, or touch the edge."""
    image = np.full((3, 80, 80), 90, dtype=np.uint8)
    draw_detections(image, {"a": found(*[[30, 30, 50, 50]] * 6, [0, 0, 9, 9], [70, 70, 80, 80])}, NAMES)
    boxes = [place for place, _ in placed]
    assert len(boxes) == 8
    for i, a in enumerate(boxes):
        assert 0 <= a[0] < a[2] <= 480
        assert 0 <= a[1] < a[3] <= 480
        assert all(drawing._common(a, b) == 0 for b in boxes[:i])


def test_panels_stand_side_by_side_magnified(placed):
    image = np.zeros((3, 40, 60), dtype=np.uint8)
    picture = draw_detections(image, {"before": found([2, 20, 30, 38]), "after": found()}, NAMES)
    assert picture.size == (2 * 480 + drawing.GAP, 22 + 320)
    left, right = np.asarray(picture)[22:, :480], np.asarray(picture)[22:, 488:]
    assert not right.any()  # nothing found, nothing drawn
    assert left[20 * 8 + 60, 2 * 8].any()  # the box's left edge
    assert not left[20 * 8 + 60, 2 * 8 + 4].any()
    assert len(placed) == 1


def test_a_mask_is_outlined_and_tinted_and_nothing_else_is():
    image = np.full((3, 480, 480), 100, dtype=np.uint8)
    mask = np.zeros((1, 480, 480), dtype=bool)
    mask[:, 300:310, 200:210] = True
    picture = draw_detections(image, {"a": found([190, 290, 220, 320], masks=encode(mask))}, NAMES)
    pixels = np.asarray(picture)[22:]
    colour = np.array(drawing._colour(1))
    assert np.abs(pixels[305, 205] - (75 + 0.25 * colour)).max() <= 1
    assert (pixels[300, 205] == colour).all()  # its outline
    assert (pixels[315, 215] == 100).all()


def test_the_best_are_drawn_and_the_doubtful_left_out(placed):
    image = np.zeros((3, 480, 480), dtype=np.uint8)
    many = found(*[[i * 40, 100, i * 40 + 30, 130] for i in range(10)])
    draw_detections(image, {"a": many}, NAMES, min_score=0.5)
    assert len(placed) == (many.scores >= 0.5).sum() == 6
    draw_detections(image, {"a": many}, NAMES, limit=3)
    assert len(placed) == 9
    for panels, message in (({}, "at least one, got none"), ({"a": many}, r"labels in 1\.\.4, got 5 in 'a'")):
        with pytest.raises(InputError, match=message):
            draw_detections(image, panels, NAMES[:4])


def test_a_png_is_written(tmp_path):
    picture = draw_detections(np.zeros((3, 40, 40), dtype=np.uint8), {"a": found([1, 1, 20, 20])}, NAMES)
    save_png(picture, tmp_path / "p.png")
    with Image.open(Path(tmp_path / "p.png")) as again:
        np.testing.assert_array_equal(np.asarray(again), np.asarray(picture))
    assert len(list(tmp_path.iterdir())) == 1
