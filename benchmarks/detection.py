"""What the real configuration costs: a forward and backward pass of a detector for LVIS, and a prediction, on a CPU.

    python benchmarks/detection.py --json results/detection-cpu.json  # ResNet-101, cascade, 1,203 classes, 1333 x 800
    python benchmarks/detection.py --framework htc --backbone resnext101-64x4d  # another

One image of noise with 12 instances; no weights are downloaded, for they cost the same. Time is the process's own, on
one thread; memory is the most that the process has held, before and after.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from records import write
from tailwise.counts import ClassCounts
from tailwise.detect import Example, encode
from tailwise.detect.inference import Inference
from tailwise.recipes.build_detection import build_detector
from tailwise.recipes.detection_catalog import find_detection
from tailwise.recipes.overrides import override
from tailwise.train.compute import peak_memory

CLASSES, INSTANCES = 1203, 12


def example(height: int, width: int) -> Example:
    """Noise, with rectangles said to be instances."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, [[width - 300, height - 300]] * INSTANCES)
    boxes = np.concatenate([corners, corners + rng.integers(20, 300, (INSTANCES, 2))], axis=1)
    masks = np.zeros((INSTANCES, height, width), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    return Example(
        image=torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8)),
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        labels=torch.from_numpy(rng.integers(1, CLASSES + 1, INSTANCES)),
        is_crowd=torch.zeros(INSTANCES, dtype=torch.bool),
        rles=encode(masks),
        image_id=1,
    )


def measure(framework: str, backbone: str) -> dict[str, Any]:
    """Seconds and bytes of one training pass and one prediction."""
    settings = [f"detector.framework={framework}", f"detector.backbone={backbone}", "detector.pretrained=false"]
    (recipe,) = override(find_detection("lvis-v1/tde"), settings)
    torch.manual_seed(0)
    detector = build_detector(recipe, ClassCounts((10,) * CLASSES), images=10 * CLASSES)
    for name, module in detector.backbone.named_modules():
        if name.endswith("bn3"):  # frozen, without statistics of its own: noise would grow from block to block
            module.weight.mul_(0.1)
    one = example(800, 1333)
    here = torch.device("cpu")
    memory = {"built": peak_memory(here)}
    start = time.process_time()
    losses = detector([one])
    forward = time.process_time() - start
    torch.stack(list(losses.values())).sum().backward()
    backward = time.process_time() - start - forward
    memory["trained"] = peak_memory(here)
    finite = all(p.grad is not None and bool(p.grad.isfinite().all()) for p in detector.parameters() if p.requires_grad)
    detector.eval().zero_grad(set_to_none=True)
    start = time.process_time()
    regions = detector.look([one.image])
    look = time.process_time() - start
    hows = [Inference(), Inference(alpha=1.5, exempt_background=False), Inference(alpha=1.5)]
    found = detector.detections(regions, *hows)
    decide = time.process_time() - start - look
    memory["predicted"] = peak_memory(here)
    return {
        "framework": framework,
        "backbone": backbone,
        "classes": CLASSES,
        "image": [800, 1333],
        "parameters": sum(p.numel() for p in detector.parameters()),
        "losses": {name: round(loss.item(), 4) for name, loss in losses.items()},
        "gradients_finite": finite,
        "detections": [len(answers[0]) for answers in found],
        "cpu_seconds": {"forward": forward, "backward": backward, "look": look, "detections_of_3_rows": decide},
        "peak_memory_bytes": memory,
    }


def table(record: dict[str, Any]) -> str:
    """What it cost, as text."""
    seconds, memory = record["cpu_seconds"], record["peak_memory_bytes"]
    height, width = record["image"]
    rows = [
        ("forward", seconds["forward"], None),
        ("forward and backward", seconds["forward"] + seconds["backward"], memory["trained"]),
        ("look at the image", seconds["look"], None),
        ("detections, 3 rows", seconds["detections_of_3_rows"], memory["predicted"]),
    ]
    head = (
        f"{record['framework']}, {record['backbone']}, {record['classes']:,} classes, one image of {width} x {height}, "
        f"{record['parameters'] / 1e6:.0f} million parameters\n"
    )
    lines = [f"{'':22}{'CPU s':>8}{'peak GiB':>10}"]
    lines += [f"{name:22}{s:8.1f}{'' if m is None else f'{m / 2**30:.1f}':>10}" for name, s, m in rows]
    return head + "\n".join(line.rstrip() for line in lines) + "\n"


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", default="cascade", choices=("mask-rcnn", "cascade", "htc"))
    parser.add_argument("--backbone", default="resnet101", choices=("resnet50", "resnet101", "resnext101-64x4d"))
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(asked.framework, asked.backbone)
    print(table(figures), end="")
    if asked.json:
        write(asked.json, figures)


if __name__ == "__main__":
    main()
