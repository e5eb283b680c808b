"""What a detector is trained on: batches of examples, repeated images, LVIS where it lies."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tailwise.checks import InputError
from tailwise.counts import ClassCounts
from tailwise.data import benchmarks
from tailwise.data.preparing import prepare
from tailwise.detect import Truth, digit_scenes_lt, write_split
from tailwise.detect.loading import ExampleBatches, Examples, flipped, image_repeat_draw
from tailwise.detect.lvis import lvis
from tailwise.recipes.build_detection import (
    build_detection_load,
    build_detection_stage,
)
from tailwise.recipes.detection_catalog import find_detection
from tailwise.recipes.overrides import override


@pytest.fixture(scope="module")
def data():
    return digit_scenes_lt(0, max_train=6, imbalance_ratio=3, val_per_class=1, test_per_class=1)


def test_batches_are_the_same_for_any_number_of_processes(data):
    indices = torch.tensor([3, 1, 4, 1, 5, 9, 2])
    settings = {"batch_size": 4, "flip": True, "seed": 5}
    whole = [ids.tolist() for _, ids in ExampleBatches(data.train, indices, **settings)]
    parts = [list(ExampleBatches(data.train, indices, rank=r, num_ranks=2, **settings)) for r in range(2)]
    assert whole == [[4, 2, 5, 2], [6, 10, 3]]
    assert [a.tolist() + b.tolist() for (_, a), (_, b) in zip(*parts, strict=True)] == whole
    images = [one.image for examples, _ in ExampleBatches(data.train, indices, **settings) for one in examples]
    again = [one.image for step in zip(*parts, strict=True) for examples, _ in step for one in examples]
    assert all(torch.equal(a, b) for a, b in zip(images, again, strict=True))
    turned = [not torch.equal(image, data.train[int(i)].image) for image, i in zip(images, indices, strict=True)]
    assert any(turned)
    assert not all(turned)
    dropped = ExampleBatches(data.train, indices, batch_size=4, drop_last=True)
    assert len(dropped) == len(list(dropped)) == 1
    with pytest.raises(InputError, match="batch_size: expected a last batch of at least 2 images"):
        ExampleBatches(data.train, indices[:5], batch_size=4, num_ranks=2)
    for settings, batches in ((["training.drop_last=true"], 1), ([], 2)):
        (recipe,) = override(find_detection("digit-scenes-lt/tde"), ["training.batch_size=30", *settings])
        stage = build_detection_stage(recipe, data, 0)
        assert len(build_detection_load(recipe, data, 0, torch.device("cpu"))(stage, 1)) == batches


def unreadable(index):
    raise InputError(f"{index}.jpg: not a readable image")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_said_in_one_line(data, workers):
    split = replace(data.train, read=unreadable)
    with pytest.raises(InputError, match=r"^3\.jpg: not a readable image$"):
        list(ExampleBatches(split, torch.tensor([3, 1]), batch_size=2, workers=workers))


def test_a_loader_leaves_training_its_random_numbers(data):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(ExampleBatches(data.train, torch.arange(4), batch_size=2, flip=True)))
    assert torch.equal(torch.get_rng_state(), before)


def test_flipped_twice_is_as_before_and_once_is_a_mirror(data):
    one = data.train[0]
    mirror = flipped(one)
    assert torch.equal(mirror.masks, one.masks.flip(2))
    for mask, (x1, y1, x2, y2) in zip(mirror.masks, mirror.boxes.int().tolist(), strict=True):
        assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
    back = flipped(mirror)
    assert torch.equal(back.image, one.image)
    assert torch.equal(back.boxes, one.boxes)
    assert back.rles == one.rles
    assert flipped(replace(one, rles=())).rles == ()


def test_examples_come_apart_as_a_tensor_does():
    for size in (1, 4, 7):
        for number in (1, 2, 3):
            parts = Examples(range(size)).tensor_split(number)
            assert [list(part) for part in parts] == [part.tolist() for part in torch.arange(size).tensor_split(number)]


def test_an_image_is_repeated_as_its_rarest_class_asks(data):
    images = data.train.truth.images
    crowd = replace(images[0], is_crowd=np.ones(len(images[0].labels), dtype=bool))
    truth = Truth(data.train.truth.categories, (crowd, *images[1:]))
    counts = truth.counts_by_images()
    expected = []
    for image in truth.images:
        classes = set(image.labels[~image.is_crowd].tolist())
        fractions = [counts.per_class[label - 1] / len(truth.images) for label in classes]
        expected.append(max([1.0, *((0.3 / fraction) ** 0.5 for fraction in fractions)]))
    drawn = np.stack(
        [np.bincount(image_repeat_draw(truth, counts, 0.3, 0, e), minlength=len(expected)) for e in range(400)]
    )
    assert expected[0] == 1
    assert max(expected) > 1.5
    np.testing.assert_allclose(drawn.mean(axis=0), expected, atol=0.1)
    assert sorted(image_repeat_draw(truth, counts, 0.0, 0, 1).tolist()) == list(range(len(expected)))


def test_the_warm_up_is_as_long_where_images_are_repeated(data):
    settings = ["training.batch_size=2", "training.repeat_threshold=0.9", "training.warmup_iterations=20"]
    (recipe,) = override(find_detection("digit-scenes-lt/repeat-factor"), settings)
    stage = build_detection_stage(recipe, data, 0)
    steps = len(build_detection_load(recipe, data, 0, torch.device("cpu"))(stage, 1))
    assert steps > 0.6 * len(data.train)
    assert stage.learning_rate(19 / steps) < stage.learning_rate(20 / steps) == recipe.training.learning_rate


def test_lvis_is_found_where_it_lies(tmp_path, data):
    few = data.train.take(range(3))
    names = ("lvis_v1_train.json", "lvis_v1_val.json")
    for file in names:
        write_split(few, tmp_path / "lvis" / "annotations" / file, tmp_path / "lvis")
    read = lvis("lvis-v1", tmp_path)
    assert (len(read.train), read.val, len(read.test)) == (3, None, 3)
    assert read.counts == ClassCounts(few.truth.counts_by_images().per_class)
    assert torch.equal(read.train[1].image, few[1].image)
    with pytest.raises(InputError, match=r"data-dir: expected lvis_v0.5_train.json in"):
        lvis("lvis-v0.5", tmp_path)


def test_lvis_leaves_out_what_is_bad_if_asked_and_groups_by_training_images(tmp_path, data):
    few = data.train.take(range(3))
    for part in ("train", "val"):
        path = tmp_path / f"lvis_v1_{part}.json"
        write_split(few, path, tmp_path)
        content = json.loads(path.read_text())
        content["annotations"][0]["bbox"][2] = 0
        for category in content["categories"]:
            category |= {"frequency": None, "image_count": 11 if part == "train" else 1}
        path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"lvis_v1_train.json: annotation 1: expected a box wider"):
        lvis("lvis-v1", tmp_path)
    with pytest.warns(UserWarning, match=r"lvis_v1_(train|val).json: left out 1 \(first: annotation 1: expected a box"):
        read = lvis("lvis-v1", tmp_path, on_bad="skip")
    whole = sum(len(image.labels) for image in few.truth.images)
    assert [sum(len(i.labels) for i in s.truth.images) for s in (read.train, read.test)] == [whole - 1] * 2
    assert {category.frequency for category in read.test.truth.categories} == {"c"}


def test_lvis_is_read_where_its_verification_finds_it(tmp_path, data, monkeypatch):
    few = data.train.take(range(3))
    facts = benchmarks.LVIS["lvis-v0.5"]
    for part, file in facts.annotations.items():
        images = tuple(replace(one, file=f"{part}2017/{one.image_id:012d}.png") for one in few.truth.images)
        named = replace(few, truth=replace(few.truth, images=images))
        write_split(named, tmp_path / "lvis_annotations" / file, tmp_path / "coco")
    known = replace(facts, categories=40, totals={})
    monkeypatch.setitem(benchmarks.LVIS, "lvis-v0.5", known)
    prepared = prepare("lvis-v0.5", tmp_path)
    assert (prepared.ready, prepared.root) == (True, tmp_path / "coco")
    read = lvis("lvis-v0.5", tmp_path)
    assert torch.equal(read.test[2].image, few[2].image)
