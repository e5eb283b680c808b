"""Tiny real JPEG images, laid out as the benchmarks and users lay out theirs."""

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from tailwise.counts import ClassCounts
from tailwise.data.benchmarks import LISTED, Listed
from tailwise.data.index import ImageIndex
from tailwise.data.listed import counts_hash

COUNTS = {"cat": 12, "dog": 5, "eel": 3, "owl": 2}  # images of each class of a user's own
TRAIN = (14, 6, 3)  # training images of the three classes of a tiny benchmark
WNIDS = ("n01440764", "n01443537", "n01484850")
SCENES = ("airfield", "airplane_cabin", "airport_terminal")
SPECIES = ("Plantae", "Insecta", "Aves")


def jpeg(number: int, class_number: int = 0, size: int = 24) -> bytes:
    """A JPEG of its own for each number: noise on the colour of its class, which a network can learn."""
    rng = np.random.default_rng([class_number, number])
    colour = np.array([(class_number * 67) % 256, (class_number * 131 + 50) % 256, (class_number * 29 + 120) % 256])
    blocks = np.repeat(np.repeat(rng.integers(-70, 71, (4, 4, 3)), size // 4, axis=0), size // 4, axis=1)
    pixels = np.clip(colour + blocks, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_image(path: Path, number: int, class_number: int = 0) -> None:
    """The JPEG of these numbers at this place, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(number, class_number))


def folder_tree(root: Path, counts: Mapping[str, int], first: int = 0) -> list[str]:
    """A folder per class with so many images each; the paths below root. first: the number of the first image."""
    paths = []
    for c, (name, count) in enumerate(counts.items()):
        for i in range(count):
            paths.append(f"{name}/{i:03d}.jpg")
            write_image(root / paths[-1], first + i, c)
    return paths


def named(index: ImageIndex, part: str | None = None) -> dict[str, str]:
    """{id: class name}, of a part or of all."""
    rows = np.arange(len(index.labels)) if part is None else index.parts[part]
    labels = index.labels[rows].tolist()
    return dict(zip(index.source.names[rows].tolist(), [index.class_names[c] for c in labels], strict=True))


def every(counts: Mapping[str, int] = COUNTS, top: str = "") -> dict[str, str]:
    """{id: class name} of a `folder_tree`; top: what its paths begin with."""
    return {f"{top}{name}/{i:03d}.jpg": name for name, n in counts.items() for i in range(n)}


# ---- benchmarks, in the exact layout of each, with three classes


def _places(part: str, name: str, c: int, i: int) -> str:
    """The path of an image, as the benchmark's published list has it."""
    held = {"train": 0, "val": 100, "test": 200}[part]
    if name == "imagenet-lt":
        return (
            f"val/{WNIDS[c]}/ILSVRC2012_val_{100 * c + i:08d}.JPEG"
            if part == "test"
            else f"train/{WNIDS[c]}/{WNIDS[c]}_{held + i}.JPEG"
        )
    if name == "places-lt":
        return (
            f"val/{SCENES[c]}/Places365_val_{100 * c + i:08d}.jpg"
            if part == "test"
            else f"train/{SCENES[c]}/{held + i:08d}.jpg"
        )
    return f"train_val2018/{SPECIES[c]}/{c}/{held + 1000 * c + i:032x}.jpg"


def tiny_benchmark(name: str) -> Listed:
    """What would be published about a benchmark of three classes."""
    facts = LISTED[name]
    counts = ClassCounts(TRAIN)
    return replace(
        facts,
        num_classes=3,
        totals={part: sum(TRAIN) if part == "train" else 6 for part in facts.lists},
        largest=max(TRAIN),
        smallest=min(TRAIN),
        group_sizes=counts.group_sizes,
        counts_hash=counts_hash(TRAIN),
        list_hashes={},
    )


def benchmark_tree(data_dir: Path, name: str, *, flat: bool = False, annotations: bool = False) -> Listed:
    """Lists and images of a tiny benchmark, as its pages say to lay them out, and what would be published about it.

    flat: images of val/ lie there without a folder of their class, as they are unpacked. annotations: iNaturalist's
    JSON files in place of lists.
    """
    facts = tiny_benchmark(name)
    root = data_dir if name == "inaturalist-2018" else data_dir / facts.folders[1]
    for part in facts.lists:
        rows = []
        for c in range(3):
            for i in range(TRAIN[c] if part == "train" else 2):
                path = _places(part, name, c, i)
                rows.append((path, c))
                top, *_, file = path.split("/")
                on_disk = f"{top}/{file}" if flat and top == "val" else path
                write_image(root / on_disk, 1000 * len(part) + i, c)
        if annotations and facts.annotations:
            content = {
                "images": [{"id": n, "file_name": path} for n, (path, _) in enumerate(rows)],
                "annotations": [{"id": n, "image_id": n, "category_id": c} for n, (_, c) in enumerate(rows)],
                "categories": [{"id": c, "name": f"species {c}"} for c in range(3)],
            }
            (data_dir / facts.annotations[part]).write_text(json.dumps(content))
        else:
            (data_dir / "lists").mkdir(exist_ok=True)
            (data_dir / "lists" / facts.lists[part]).write_text("".join(f"{path} {c}\n" for path, c in rows))
    return facts
