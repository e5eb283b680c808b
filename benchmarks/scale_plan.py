"""What many classes on many GPUs would cost: arithmetic from sizes and stated rates. Nothing here is measured.

python benchmarks/scale_plan.py                     # 100,000 classes on 64 GPUs, as docs/scale.md has it
python benchmarks/scale_plan.py --classes 8142 --gpus 8 --bandwidth 12.5e9
"""

import argparse
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Plan:
    """Sizes, and rates that are assumed.

    batch: images per GPU. bandwidth: bytes a second that each GPU sends in an all-reduce. rate: floating-point
    operations a second that a GPU sustains, a multiply-add being two. backbone_params, backbone_flops: ResNet-50
    without its last layer; of an image's forward. room: bytes of a GPU that the backbone leaves. node_memory: bytes of
    a machine's main memory. val: images of the split that alpha is chosen on.
    """

    classes: int = 100_000
    width: int = 2_048
    gpus: int = 64
    per_node: int = 8
    batch: int = 512
    val: int = 500_000
    bandwidth: float = 25e9
    rate: float = 100e12
    backbone_params: float = 23.5e6
    backbone_flops: float = 8.2e9
    room: float = 40e9
    node_memory: float = 1e12


# The weight, and what a step holds at its peak in sizes of it, as `scale.py` measures it: 9 (gradient, momentum, the
# normalized weight, what its backward pass needs for a moment); and DistributedDataParallel's buckets.
COPIES = 11
LOGITS = 3  # logits, their log-softmax, their gradient

Row = tuple[str, str, str]


def rows(p: Plan) -> list[Row]:
    """(quantity, arithmetic, value); a row without value heads the ones below it."""
    weight = 4 * p.classes * p.width
    logits = p.batch * p.classes
    flops = 6 * p.batch * p.width * p.classes
    backbone = 3 * p.batch * p.backbone_flops
    ring = 2 * (p.gpus - 1) / p.gpus
    global_batch = p.gpus * p.batch
    hidden = 2 / 3 * backbone / p.rate
    a_class = COPIES * 4 * p.width + LOGITS * 4 * p.batch
    a_sample = 4 * (p.width + p.classes) + 16
    part = (p.gpus - 1) / p.gpus * 4 * global_batch * p.width
    gathered = p.per_node * 2 * 4 * p.val
    store_arithmetic = f"{size(p.node_memory)} / ({p.per_node} x 2 x 4 x {p.val:,})"
    outlasts = f"{seconds(hidden)} x {size(p.bandwidth)}/s / (2 (P - 1) / P x 4 D)"
    sharded = 2 * part + 16 * global_batch
    return [
        ("the classifier on each GPU", "", ""),
        ("weight, float32", f"4 C D = 4 x {p.classes:,} x {p.width:,}", size(weight)),
        (f"all {COPIES} copies in a step", f"{COPIES} x 4 C D", size(COPIES * weight)),
        ("the same, as bf16 under autocast adds", "2 C D", size(weight / 2)),
        ("logits, float32", f"4 n C = 4 x {p.batch} x {p.classes:,}", size(4 * logits)),
        ("logits, bf16", "2 n C", size(2 * logits)),
        (f"all {LOGITS} of their size in a step", f"{LOGITS} x 4 n C", size(LOGITS * 4 * logits)),
        ("FLOPs of a step", "6 n D C", f"{flops:.2g}"),
        ("time of a step", f"6 n D C / {p.rate:.0e}", seconds(flops / p.rate)),
        ("backbone, for comparison: FLOPs", f"3 n {p.backbone_flops:.2g}", f"{backbone:.2g}"),
        ("backbone, time", f"/ {p.rate:.0e}", seconds(backbone / p.rate)),
        ("all-reduce, per GPU and step", "", ""),
        ("gradient of the classifier", "4 C D", size(weight)),
        ("sent in a ring", f"2 (P - 1) / P x 4 C D, P = {p.gpus}", size(ring * weight)),
        *(
            (f"time at {size(bandwidth)}/s", "sent / bandwidth", seconds(ring * weight / bandwidth))
            for bandwidth in sorted({3e9, 12.5e9, p.bandwidth, 300e9})
        ),
        ("gradient of the backbone", f"4 x {p.backbone_params:.3g}", size(4 * p.backbone_params)),
        ("feature average", "4 (D + 1)", size(4 * (p.width + 1))),
        ("on disk and in main memory", "", ""),
        ("checkpoint", "4 C D + backbone", size(weight + 4 * p.backbone_params)),
        ("snapshot to resume from (+ momentum)", "twice that", size(2 * (weight + 4 * p.backbone_params))),
        ("Store, one image", "4 (D + C) + 16", size(a_sample)),
        ("  without its logits", "4 D + 16", size(4 * p.width + 16)),
        (f"Store, {p.val:,} images", f"x {p.val:,}", size(p.val * a_sample)),
        ("  without its logits", "", size(p.val * (4 * p.width + 16))),
        ("components a and b of the sweep", f"2 x 4 C x {p.val:,}", size(8 * p.classes * p.val)),
        ("predictions of 51 alphas", f"51 x 8 x {p.val:,}", size(51 * 8 * p.val)),
        ("confusion matrix, if it were dense", "8 C^2", size(8 * p.classes**2)),
        ("classes at which a limit is crossed", "", ""),
        ("main memory, Store gathered by each process", store_arithmetic, number(p.node_memory / gathered)),
        ("sharding sends less", f"C > P n = {p.gpus} x {p.batch}", number(global_batch)),
        ("all-reduce outlasts the backbone's backward", outlasts, number(hidden * p.bandwidth / (ring * 4 * p.width))),
        ("the GPU is full", f"{size(p.room)} / ({COPIES} x 4 D + {LOGITS} x 4 n)", number(p.room / a_class)),
        ("sharded by class over all GPUs", "", ""),
        ("copies of the weight, per GPU", f"{COPIES} x 4 C D / P", size(COPIES * weight / p.gpus)),
        ("logits, per GPU", "4 (P n) (C / P), as before", size(4 * logits)),
        ("features gathered, gradients scattered", "2 (P - 1) / P x 4 P n D", size(2 * part)),
        ("maxima and sums of the softmax, all-reduced", "2 x 4 P n", size(8 * global_batch)),
        (f"time at {size(p.bandwidth)}/s", "the two / bandwidth", seconds(sharded / p.bandwidth)),
    ]  # fmt: skip


def size(value: float) -> str:
    """Bytes in decimal units.

    >>> size(8196), size(819_200_000), size(2.5e12)
    ('8.2 kB', '819 MB', '2.5 TB')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            scaled = value / scale
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.3g} {unit}"
    return f"{value:.0f} B"


def seconds(value: float) -> str:
    """A time in ms.

    >>> seconds(0.0645)
    '64 ms'
    """
    return f"{1000 * value:.0f} ms" if value >= 0.01 else f"{1000 * value:.2g} ms"


def number(value: float) -> str:
    """A number of classes, to two digits or so: the rates behind it are no better known.

    >>> number(130_232), number(32_768)
    ('130,000', '33,000')
    """
    return f"{float(f'{value:.2g}'):,.0f}"


def table(p: Plan) -> str:
    """The rows, aligned."""
    found = rows(p)
    first, second = (max(len(row[column]) for row in found) for column in (0, 1))
    lines = []
    for name, arithmetic, value in found:
        if not value:
            lines += ["", name]
        else:
            lines.append(f"  {name:{first}}  {arithmetic:{second}}  {value:>9}")
    return "\n".join(lines).strip("\n") + "\n"


def main() -> None:
    """Print the plan of the sizes and rates given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Plan):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=type(field.default), default=field.default, help=f"{field.default:g}")
    print(table(Plan(**vars(parser.parse_args()))), end="")


if __name__ == "__main__":
    main()
