"""Images per second from disk to the device, against torchvision's ImageFolder with torch's DataLoader, in one run.

    python benchmarks/loading.py                              # writes results/loading.json
    python benchmarks/loading.py --data photos --workers 1 2 4 8

Without --data it draws photographs of 500 x 375 pixels, textured so that a JPEG is as large as ImageNet's (100 kB).
Each round reads the same files by every way, one after the other, so that a busy machine slows them all; a ratio is the
median of the rounds' ratios. What is timed is a whole epoch of training batches, workers already started:
random resized crop, flip and the papers' colour jitter at 224 pixels, normalized float32 at the end.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from records import write
from tailwise.data import DiskSplit, EpochBatches
from tailwise.data.decoded import decode
from tailwise.data.folders import folder_index
from tailwise.data.transforms import IMAGENET, RandomView

BATCH, SIZE, CACHE = 64, 224, 256
WAYS = ("ImageFolder and DataLoader", "tailwise, from files", "tailwise, decoded once")


def draw_photos(root: Path, number: int) -> None:
    """JPEGs of the size and weight of ImageNet's, in two class folders."""
    rng = np.random.default_rng(0)
    for i in range(number):
        pixels = np.zeros((375, 500, 3))
        for scale, strength in ((4, 60.0), (16, 40.0), (64, 25.0), (500, 13.0)):  # patches of light, and grain
            coarse = rng.normal(0, strength, (scale * 3 // 4, scale, 3))
            rows, columns = (np.arange(side) * coarse.shape[axis] // side for axis, side in enumerate((375, 500)))
            pixels += coarse[rows][:, columns]
        path = root / f"class-{i % 2}" / f"{i:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(np.clip(pixels + 120, 0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
        path.write_bytes(content.getvalue())


def image_folder(root: Path, workers: int) -> Callable[[], Iterator[Any]]:
    """What a user of torchvision writes: its transforms, float32 made in the worker."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    steps = [
        v2.RandomResizedCrop(SIZE),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.4, 0.4, 0.4, 0),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET.mean, IMAGENET.std),
    ]
    data = ImageFolder(str(root), v2.Compose(steps))
    cuda = torch.cuda.is_available()
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0, pin_memory=cuda)

    def epoch() -> Iterator[Any]:
        for images, labels in loader:
            yield (images.cuda(non_blocking=True), labels.cuda(non_blocking=True)) if cuda else (images, labels)

    return epoch


def ours(root: Path, workers: int, kept: Path | None) -> Callable[[], Iterator[Any]]:
    """Batches as training has them, from the files or from the decoded cache in `kept`."""
    index = folder_index(root)
    rows = np.arange(len(index.labels))
    source = index.source if kept is None else decode(index.source, rows, CACHE, kept, workers=workers)
    split = DiskSplit(source, rows, torch.from_numpy(index.labels), workers)
    split = split.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def epoch() -> Iterator[Any]:
        order = torch.randperm(len(split))
        return iter(EpochBatches(split, order, BATCH, IMAGENET, augment=RandomView(SIZE, jitter=0.4)))

    return epoch


def seconds_of(epoch: Callable[[], Iterator[Any]]) -> float:
    """Of a whole epoch."""
    start = time.perf_counter()
    for images, _ in epoch():
        assert images.dtype == torch.float32
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measured(root: Path, kept: Path, workers: int, rounds: int) -> dict[str, Any]:
    """Images per second of each way, and its ratio to the first."""
    ways = dict(
        zip(WAYS, (image_folder(root, workers), ours(root, workers, None), ours(root, workers, kept)), strict=True)
    )
    number = len(folder_index(root).labels)
    for epoch in ways.values():
        seconds_of(epoch)  # starts the workers, and the files are in memory for all
    taken = [{way: seconds_of(epoch) for way, epoch in ways.items()} for _ in range(rounds)]
    return {
        way: {
            "images_per_second": number / statistics.median(times[way] for times in taken),
            "ratio": statistics.median(times[WAYS[0]] / times[way] for times in taken),
            "ratios": [times[WAYS[0]] / times[way] for times in taken],
        }
        for way in WAYS
    }


def table(record: dict[str, Any]) -> str:
    """The record as docs/data.md shows it."""
    lines = [f" {'workers':>7}  {'':28}{'images/s':>9}  {'a worker':>8}  {'ratio':>5}", " " + "─" * 62]
    for workers, ways in record["by_workers"].items():
        for way, found in ways.items():
            rate = found["images_per_second"]
            each = rate / max(int(workers), 1)
            lines.append(f" {workers:>7}  {way:28}{rate:9.0f}  {each:8.0f}  {found['ratio']:5.2f}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of images per class")
    parser.add_argument("--images", type=int, default=256, help="how many to draw without --data")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/loading.json"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = asked.data or Path(folder) / "photos"
        if asked.data is None:
            root.mkdir()
            draw_photos(root, asked.images)
        sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
        by_workers = {str(n): measured(root, Path(folder) / "kept", n, asked.rounds) for n in asked.workers}
    record = {
        "images": len(sizes),
        "mean_bytes": statistics.fmean(sizes),
        "cpus": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "by_workers": by_workers,
    }
    write(asked.out, record)
    print(table(record), end="")


if __name__ == "__main__":
    main()
