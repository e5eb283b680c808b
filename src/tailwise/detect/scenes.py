"""digit-scenes-lt: scikit-learn's real digits in four colours on cluttered canvases; needs no download.

40 classes (digit and colour) with boxes, instance masks and LVIS's federated annotation. Drawn in whole numbers from
raw Philox bits, so that every machine and library version makes the same pixels.
"""

import hashlib
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailwise import checks
from tailwise.data import all_digits, frozen_order, long_tailed_counts
from tailwise.detect.annotations import frequency_of
from tailwise.detect.canvas import Draws, blend, cluttered, enlarged
from tailwise.detect.contract import Category, DetectionData, DetectionSplit, ImageTruth, Truth
from tailwise.detect.masks import area, box_of, encode
from tailwise.seeds import mixed_seed

COLOURS = {"red": (225, 55, 60), "yellow": (235, 205, 40), "green": (50, 185, 75), "blue": (75, 125, 245)}
CLASS_NAMES = tuple(f"{colour} {digit}" for digit in range(10) for colour in COLOURS)
SIDE = 80  # pixels of a canvas
FEWEST, MOST = 2, 6  # digits of a scene
SMALLEST, LARGEST = 14, 28  # height of a pasted 8 x 8 digit, in pixels
SOURCES = {"test": 50, "val": 20}  # digits of each of the ten kinds; the others are train's
NEGATIVES = 12  # classes verified to be absent in each image
PERCENT_UNSEEN, PERCENT_PARTLY = 15, 50  # of the chances to leave frequent classes unannotated
TRIES = 20  # places tried for a digit, of which the least covered is taken


def digit_scenes_lt(
    seed: int,
    *,
    max_train: int = 600,
    imbalance_ratio: float = 300,
    val_per_class: int = 20,
    test_per_class: int = 50,
) -> DetectionData:
    """Scenes of 2 to 6 digits on 80 x 80 pixels; 40 classes, long-tailed in training, balanced in val and test.

    The class of rank r among 40 has int(max_train * ratio^(-r / 39)) training instances; ranks are by SHA-256 of the
    name, the same for every seed. Rare, common and frequent are LVIS's own: up to 10, up to 100, more training images.
    Val and test have as many instances of every class. No source digit is in two splits, and each seed draws all anew.

    As in LVIS, annotation is federated. Of each image 12 absent classes are verified to be absent. A frequent class
    that is there is sometimes neither annotated nor listed, and where it is there twice, one may be left out, which
    makes it "not exhaustive": what an annotator missed is no background, in training as in evaluation.

    Args:
        seed: the subset seed, at least 0.
        max_train: training instances of the most frequent class.
        imbalance_ratio: N_max / N_min over training instances.
        val_per_class, test_per_class: instances of each class there, annotated or not.

    Raises:
        InputError: a value outside its range; faster-coco-eval is not installed.

    >>> data = digit_scenes_lt(seed=0, max_train=10, imbalance_ratio=5, val_per_class=1, test_per_class=1)
    >>> data.counts.num_classes, data.class_names[5], data.train[0].masks.shape[1:]
    (40, 'yellow 1', torch.Size([80, 80]))
    """
    checks.whole("seed", seed, at_least=0)
    ranked = sorted(range(len(CLASS_NAMES)), key=lambda c: hashlib.sha256(CLASS_NAMES[c].encode()).digest())
    counts = dict(zip(ranked, long_tailed_counts(len(ranked), max_train, imbalance_ratio), strict=True))
    frequent = frozenset(c for c, count in counts.items() if frequency_of(count) == "f")
    sources = frozen_order(all_digits().labels.numpy(), "digit-scenes", seed)
    checks.whole("val_per_class", val_per_class)
    checks.whole("test_per_class", test_per_class)
    balanced = {"test": test_per_class, "val": val_per_class}
    splits: dict[str, DetectionSplit] = {}
    for number, name in enumerate(("test", "val", "train")):
        own = [digits[: SOURCES.get(name)] for digits in sources]
        sources = [digits[len(taken) :] for digits, taken in zip(sources, own, strict=True)]
        wanted = dict.fromkeys(counts, balanced[name]) if name in balanced else counts
        splits[name] = _split(name, Draws(mixed_seed(seed, number)), wanted, own, frequent)
    images_of = splits["train"].truth.counts_by_images().per_class
    categories = tuple(Category(c + 1, name, frequency_of(images_of[c])) for c, name in enumerate(CLASS_NAMES))
    train, val, test = (
        DetectionSplit(replace(splits[name].truth, categories=categories), splits[name].read)
        for name in ("train", "val", "test")
    )
    return DetectionData("digit-scenes-lt", train, val, test, train.truth.counts_by_instances())


def _split(
    name: str, draws: Draws, wanted: dict[int, int], sources: list[NDArray[np.int64]], frequent: frozenset[int]
) -> DetectionSplit:
    """`wanted` instances of each class, dealt to scenes at random; digit d is one of `sources[d]`, all in turn."""
    classes = np.repeat(list(wanted), list(wanted.values()))
    classes = classes[draws.order(len(classes))]
    turns = [np.resize(own[draws.order(len(own))], len(classes)).tolist() for own in sources]
    drawn = [(int(c), turns[c // len(COLOURS)].pop()) for c in classes]
    images: list[NDArray[np.uint8]] = []
    truths: list[ImageTruth] = []
    while drawn:
        count = draws.one(FEWEST, MOST)
        scene, drawn = drawn[:count], drawn[count:]
        pixels, masks = _painted(scene, draws)
        images.append(pixels)
        truths.append(_annotated(f"{name}/{len(truths) + 1:06d}.png", scene, masks, frequent, draws))
    numbered, next_id = [], 1
    for i, truth in enumerate(truths):
        ids = np.arange(next_id, next_id + len(truth.labels))
        numbered.append(replace(truth, image_id=i + 1, annotation_ids=ids))
        next_id += len(ids)
    nameless = tuple(Category(c + 1, name) for c, name in enumerate(CLASS_NAMES))
    return DetectionSplit(Truth(nameless, tuple(numbered)), InMemory(torch.from_numpy(np.stack(images))))


class InMemory:
    """Reads image number i of uint8 [N, 3, H, W]."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __call__(self, index: int) -> Tensor:
        return self.images[index]


def _painted(scene: list[tuple[int, int]], draws: Draws) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A scene [3, SIDE, SIDE] and what is visible of each digit, [count, SIDE, SIDE]; later ones lie on top."""
    canvas, masks = cluttered(draws, SIDE), np.zeros((len(scene), SIDE, SIDE), dtype=np.bool_)
    for i, (c, source) in enumerate(scene):
        height = draws.one(SMALLEST, LARGEST)
        width = height * draws.one(75, 100) // 100
        digit = enlarged(all_digits().images[source, 0].numpy().astype(np.int64) * 16, height, width)
        cover = np.clip((digit - 88) * 2, 0, 255)  # a steeper edge than 8 pixels give
        places = np.stack([draws.between(0, SIDE - height, TRIES), draws.between(0, SIDE - width, TRIES)], axis=1)
        taken: NDArray[np.int64] = masks.sum(axis=0)
        y, x = min(
            places.tolist(), key=lambda place: taken[place[0] : place[0] + height, place[1] : place[1] + width].sum()
        )
        here = slice(y, y + height), slice(x, x + width)
        ink = np.clip(np.array(list(COLOURS.values())[c % len(COLOURS)]) + draws.between(-20, 20, 3), 0, 255)
        canvas[here] = blend(canvas[here], ink, cover)
        visible = cover >= 128
        masks[:, *here] &= ~visible
        masks[i][here] = visible
    return canvas.transpose(2, 0, 1).astype(np.uint8), masks


def _annotated(
    file: str, scene: list[tuple[int, int]], masks: NDArray[np.bool_], frequent: frozenset[int], draws: Draws
) -> ImageTruth:
    """What a federated annotator wrote down of a scene."""
    labels = np.array([c + 1 for c, _ in scene])
    written: NDArray[np.bool_] = np.asarray(masks.sum(axis=(1, 2)) > 0)
    not_exhaustive = set()
    for label in sorted(set(labels.tolist())):
        own = np.flatnonzero(labels == label)
        unseen, partly = draws.between(1, 100, 2) <= (PERCENT_UNSEEN, PERCENT_PARTLY)
        if label - 1 in frequent and unseen:
            written[own] = False
        elif label - 1 in frequent and partly and len(own) > 1:
            written[own[0]] = False
            not_exhaustive.add(label)
    absent = np.setdiff1d(np.arange(1, len(CLASS_NAMES) + 1), labels)
    rles = encode(masks[written])
    return ImageTruth(
        image_id=0,
        file=file,
        height=SIDE,
        width=SIDE,
        boxes=np.array([box_of(rle) for rle in rles], dtype=np.float64).reshape(-1, 4),
        labels=labels[written],
        is_crowd=np.zeros(len(rles), dtype=np.bool_),
        areas=np.array([area(rle) for rle in rles], dtype=np.float64),
        annotation_ids=np.zeros(len(rles), dtype=np.int64),
        masks=rles,
        negative=frozenset(absent[draws.order(len(absent))[:NEGATIVES]].tolist()),
        not_exhaustive=frozenset(not_exhaustive),
    )
