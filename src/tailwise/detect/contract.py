"""What detection is trained on, what it is judged by and what it answers. Labels are 1..C here; 0 is background.

Background is class 0, as torchvision's detectors and `background_exempted` have it by default. Label c is the c-th
category of the file in ascending order of its id (ids may have holes); ids are met in files only. A `ClassCounts` has
no background: its class c is label c + 1. Boxes are x1, y1, x2, y2 in pixels of the image as it is on disk.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.detect.masks import Rle, decode

Frequency = Literal["r", "c", "f"]
FREQUENCIES: tuple[Frequency, ...] = ("r", "c", "f")


@dataclass(frozen=True)
class Category:
    """A class as a file names it: `frequency` is rare, common or frequent among training images, None where unknown."""

    id: int
    name: str
    frequency: Frequency | None = None


@dataclass(frozen=True)
class ImageTruth:
    """What is known of one image.

    image_id: as in the file. file: path below the folder of images. height, width: in pixels.
    boxes: float64 [M, 4], inside the image, wider and higher than 0. labels: int64 [M] in 1..C.
    is_crowd: bool [M]; such a box covers several instances, is no example and no miss. areas: float64 [M], of masks.
    annotation_ids: int64 [M]. masks: M of them, or none at all (boxes only).
    negative: labels verified to be absent. not_exhaustive: labels of which more instances may be there than annotated.
    Of any other label without a box nothing is known, where the file is federated.
    """

    image_id: int
    file: str
    height: int
    width: int
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    annotation_ids: NDArray[np.int64]
    masks: tuple[Rle, ...]
    negative: frozenset[int] = frozenset()
    not_exhaustive: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Truth:
    """An annotation file, read and checked: categories[c] is label c + 1.

    federated: whether absence has to be verified (LVIS) or every instance of every category is annotated (COCO).
    skipped: what was bad and left out, a line each.
    """

    categories: tuple[Category, ...]
    images: tuple[ImageTruth, ...]
    federated: bool = True
    skipped: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """C, without background."""
        return len(self.categories)

    def counts_by_images(self) -> ClassCounts:
        """Images in which each class has an instance, crowds apart; class c is label c + 1.

        Raises InputError where there is no instance at all.
        """
        present = [np.unique(image.labels[~image.is_crowd]) for image in self.images]
        return self._counted(present)

    def counts_by_instances(self) -> ClassCounts:
        """Instances of each class, crowds apart; class c is label c + 1.

        Raises InputError where there is none at all.
        """
        labels = [image.labels[~image.is_crowd] for image in self.images]
        return self._counted(labels)

    def _counted(self, labels: list[NDArray[np.int64]]) -> ClassCounts:
        return ClassCounts.of_labels(np.concatenate([np.empty(0, dtype=np.int64), *labels]) - 1, self.num_classes)


@dataclass(frozen=True)
class Example:
    """One image to train or predict on, with its M annotated instances; M may be 0, and all may be crowds.

    image: uint8 [3, H, W]. boxes: float32 [M, 4]. labels: int64 [M] in 1..C. is_crowd: bool [M].
    rles: M run-length encoded masks, or none at all. negative, not_exhaustive: labels, as in `ImageTruth`.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    is_crowd: Tensor
    rles: tuple[Rle, ...]
    image_id: int
    negative: frozenset[int] = frozenset()
    not_exhaustive: frozenset[int] = frozenset()

    @property
    def masks(self) -> Tensor:
        """uint8 [M, H, W] of 0 and 1, decoded anew at each call.

        Raises InputError where boxes have no masks.
        """
        if len(self.rles) != len(self.labels):
            raise checks.InputError(
                f"image {self.image_id}: expected a mask for each of {len(self.labels)} boxes, got boxes only"
            )
        return torch.from_numpy(decode(self.rles, tuple(self.image.shape[1:])))

    def as_detections(self) -> "Detections":
        """What is annotated, as if it had been found with a score of 1: to be drawn, say."""
        scores = np.ones(len(self.labels), dtype=np.float32)
        masks = self.rles if len(self.rles) == len(self.labels) else None
        return Detections(self.image_id, self.boxes.numpy(), scores, self.labels.numpy(), masks)


@dataclass(frozen=True)
class Detections:
    """What was found in one image, n of any order and number.

    boxes: float32 [n, 4]. scores: float32 [n], probabilities. labels: int64 [n] in 1..C. masks: n of the image's size,
    or None where boxes alone were asked for.
    """

    image_id: int
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: tuple[Rle, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        shapes = {"boxes": self.boxes.shape == (n, 4), "labels": self.labels.shape == (n,)}
        shapes["masks"] = self.masks is None or len(self.masks) == n
        wrong = [name for name, right in shapes.items() if not right]
        if wrong:
            raise checks.InputError(f"image {self.image_id}: expected {wrong[0]} for each of {n} scores, got others")
        checks.finite(f"boxes of image {self.image_id}", self.boxes)
        checks.finite(f"scores of image {self.image_id}", self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> "Detections":
        """The detections at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        masks = None if self.masks is None else tuple(self.masks[i] for i in chosen.tolist())
        return Detections(self.image_id, self.boxes[chosen], self.scores[chosen], self.labels[chosen], masks)


@dataclass(frozen=True)
class DetectionSplit:
    """Images with their truth, as a `torch.utils.data.Dataset` of `Example`s.

    truth: of these images. read: an image's bytes, uint8 [3, H, W], by its place in `truth.images`.
    """

    truth: Truth
    read: Callable[[int], Tensor]

    def __len__(self) -> int:
        return len(self.truth.images)

    def __getitem__(self, index: int) -> Example:
        known = self.truth.images[index]
        image = self.read(index)
        if tuple(image.shape) != (3, known.height, known.width):
            raise checks.InputError(
                f"image {known.image_id} ({known.file}): expected 3 x {known.height} x {known.width} as the "
                f"annotations say, got {' x '.join(map(str, image.shape))}"
            )
        return Example(
            image=image,
            boxes=torch.from_numpy(known.boxes.astype(np.float32)),
            labels=torch.from_numpy(known.labels),
            is_crowd=torch.from_numpy(known.is_crowd),
            rles=known.masks,
            image_id=known.image_id,
            negative=known.negative,
            not_exhaustive=known.not_exhaustive,
        )

    def take(self, indices: Sequence[int]) -> "DetectionSplit":
        """The images at `indices`, in that order, with all categories."""
        chosen = [int(i) for i in indices]
        truth = replace(self.truth, images=tuple(self.truth.images[i] for i in chosen))
        return DetectionSplit(truth, _Chosen(self.read, chosen))


@dataclass(frozen=True)
class _Chosen:
    """Reads the chosen images; unlike a closure it can be sent to a worker process."""

    read: Callable[[int], Tensor]
    chosen: list[int]

    def __call__(self, index: int) -> Tensor:
        return self.read(self.chosen[index])


@dataclass(frozen=True)
class DetectionData:
    """A long-tailed detection data set: what is trained on, what choices are made on, what is reported.

    Every split has the same categories; their frequency is that of the training images. val, test: None where the
    data set has none. counts: training images (of LVIS) or instances (of digit scenes) per class, class c being label
    c + 1; losses and samplers use these.
    """

    name: str
    train: DetectionSplit
    val: DetectionSplit | None
    test: DetectionSplit | None
    counts: ClassCounts

    @property
    def class_names(self) -> tuple[str, ...]:
        """[C]; name c is of label c + 1."""
        return tuple(category.name for category in self.train.truth.categories)

    @property
    def data_hash(self) -> str:
        """SHA-256 of the images' files and of what is annotated in them, of train, val and test."""
        digest = hashlib.sha256()
        for split in (self.train, self.val, self.test):
            for image in split.truth.images if split is not None else ():
                absent, partly = sorted(image.negative), sorted(image.not_exhaustive)
                shape = image.height, image.width, len(image.labels)
                digest.update(repr((image.image_id, image.file, *shape, absent, partly)).encode())
                for values in (image.boxes, image.labels, image.is_crowd):
                    digest.update(values.tobytes())
                for mask in image.masks:
                    digest.update(mask.counts + b"\n")
        return digest.hexdigest()
