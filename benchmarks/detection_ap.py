"""Average precision at LVIS's size: 5,000 images x 300 detections of 1,203 classes, time and peak memory.

    python benchmarks/detection_ap.py            # writes results/detection-ap.json
    python benchmarks/detection_ap.py 500        # fewer images, prints only

Images, annotations and detections are random, near the truth or not; 480 x 640 pixels, 12 annotations and 10 verified
absences an image, much as in LVIS v1.0. Boxes and masks are measured in processes of their own, boxes also with all
classes evaluated at a time. Seconds are of the processor. Memory is what evaluation adds to the process: its highest,
less what it held before.
"""

import argparse
import multiprocessing
import resource
import time
from importlib.metadata import version
from typing import Any

import numpy as np

from records import RESULTS, write
from tailwise.detect import Category, Detections, ImageTruth, Rle, Truth, average_precision, encode, precision
from tailwise.detect.precision import Kind

IMAGES, PER_IMAGE, CLASSES = 5_000, 300, 1_203
HEIGHT, WIDTH = 480, 640
ANNOTATIONS, ABSENT = 12, 10


def boxes_at(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random boxes inside the image, most of them small."""
    size = np.minimum(8 + rng.exponential(60, (count, 2)), [WIDTH - 1, HEIGHT - 1])
    corner = rng.random((count, 2)) * ([WIDTH, HEIGHT] - size)
    return np.concatenate([corner, corner + size], axis=1)


def ellipses(rng: np.random.Generator, count: int) -> tuple[Rle, ...]:
    """A store of masks to take from: what a mask is costs, not which box it fits."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rles: list[Rle] = []
    for x1, y1, x2, y2 in boxes_at(rng, count):
        mask = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1
        rles += encode(mask[None])
    return tuple(rles)


def case(images: int) -> tuple[Truth, list[Detections]]:
    """Everything random, from one seed. Classes are drawn with a long tail."""
    rng = np.random.default_rng(0)
    store = ellipses(rng, 200)
    prior = 1 / (np.arange(CLASSES) + 10.0)
    prior /= prior.sum()
    truths, found = [], []
    for image_id in range(images):
        boxes, labels = boxes_at(rng, ANNOTATIONS), 1 + rng.choice(CLASSES, ANNOTATIONS, p=prior)
        absent = np.setdiff1d(1 + rng.choice(CLASSES, ABSENT), labels)
        masks = tuple(store[i] for i in rng.integers(0, len(store), ANNOTATIONS))
        truths.append(
            ImageTruth(
                image_id=image_id,
                file="",
                height=HEIGHT,
                width=WIDTH,
                boxes=boxes,
                labels=labels,
                is_crowd=np.zeros(ANNOTATIONS, dtype=np.bool_),
                areas=np.ones(ANNOTATIONS),
                annotation_ids=np.arange(ANNOTATIONS),
                masks=masks,
                negative=frozenset(absent.tolist()),
            )
        )
        near = rng.integers(0, ANNOTATIONS, PER_IMAGE)
        moved = boxes[near] + rng.normal(0, 3, (PER_IMAGE, 4))
        right = rng.random(PER_IMAGE) < 0.3
        found.append(
            Detections(
                image_id,
                moved.astype(np.float32),
                rng.random(PER_IMAGE, dtype=np.float32),
                np.where(right, labels[near], 1 + rng.choice(CLASSES, PER_IMAGE, p=prior)),
                tuple(masks[i] if r else store[i] for i, r in zip(near, right, strict=True)),
            )
        )
    categories = tuple(Category(c + 1, str(c), "f" if c < 405 else "c" if c < 866 else "r") for c in range(CLASSES))
    return Truth(categories, tuple(truths)), found


def peak_mib() -> float:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(kind: Kind, images: int, block: int) -> dict[str, float]:
    """Seconds, MiB and the figure that came out, with `block` classes evaluated at a time."""
    precision.BLOCK = block
    truth, found = case(images)
    # what is imported is not what is measured
    average_precision(Truth(truth.categories, truth.images[:1]), found[:1], kind)
    before, start = peak_mib(), time.process_time()
    figures = average_precision(truth, found, kind)
    seconds = time.process_time() - start
    return {"seconds": round(seconds, 1), "added_mib": round(peak_mib() - before), "AP": round(figures["AP"] or 0, 3)}


def table(record: dict[str, Any]) -> str:
    """The record as the page has it."""
    lines = [f"{'':28}  CPU seconds  memory added"]
    lines += [
        f"{name:28}  {row['seconds']:>11.1f}  {row['added_mib']:>8,} MiB"
        for name, row in record.items()
        if isinstance(row, dict) and "seconds" in row
    ]
    detail = f"{record['images']:,} images x {record['detections_per_image']} detections, {record['classes']:,} classes"
    return "\n".join([detail, "", *lines]) + "\n"


def main() -> None:
    """Measure boxes and masks, each in a new process; write the record at full size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=int, nargs="?", default=IMAGES)
    images = parser.parse_args().images
    record: dict[str, Any] = {"images": images, "detections_per_image": PER_IMAGE, "classes": CLASSES}
    for name, kind, block in (
        ("box", "box", precision.BLOCK),
        ("mask", "mask", precision.BLOCK),
        ("box, all classes at a time", "box", CLASSES),
    ):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            record[name] = pool.apply(measured, (kind, images, block))
        print(name, record[name], flush=True)
    record["faster-coco-eval"] = version("faster-coco-eval")
    if images == IMAGES:
        write(RESULTS / "detection-ap.json", record)


if __name__ == "__main__":
    main()
