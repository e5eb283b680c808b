"""What it takes to index a million images of one's own, and to look for duplicates.

    python benchmarks/own_data.py --folder SCRATCH --out results/own-data.json

Makes 1,000 class folders of 1,000 empty files each in SCRATCH (they stay for the next time), a table of them as CSV and
Parquet, and 2,000 photographs of 500 x 375 pixels of noise. Each form is indexed in a process of its own; memory is the
peak less what the process had before.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from records import write

CLASSES, PER_CLASS, PHOTOGRAPHS = 1000, 1000, 2000
FORMS = ("table, CSV", "table, Parquet", "folder per class", "duplicates")


def make(folder):
    """The files and tables, unless they are there."""
    if (folder / "images.parquet").is_file():
        return
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    rows = []
    for c in range(CLASSES):
        (folder / f"images/class{c:04d}").mkdir(parents=True, exist_ok=True)
        for i in range(PER_CLASS):
            rows.append((f"images/class{c:04d}/image{c:04d}_{i:06d}.jpg", f"class{c:04d}"))
            (folder / rows[-1][0]).touch()
    with (folder / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    rng = np.random.default_rng(0)
    for i in range(PHOTOGRAPHS):
        path = folder / f"photographs/{'train' if i % 2 else 'test'}/all/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    columns = dict(zip(("path", "label"), map(list, zip(*rows, strict=True)), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "images.parquet")


def measure(folder, form):
    """Seconds and megabytes of one form, in this process."""
    from tailwise.data import folder_index, table_index
    from tailwise.data.duplicates import duplicates
    from tailwise.train.compute import peak_memory

    photographs = folder_index(folder / "photographs") if form == "duplicates" else None
    work = {
        "table, CSV": lambda: table_index(folder / "images.csv"),
        "table, Parquet": lambda: table_index(folder / "images.parquet"),
        "folder per class": lambda: folder_index(folder / "images"),
        "duplicates": lambda: duplicates({part: photographs.split(part) for part in photographs.parts}),
    }[form]

    def peak():
        return peak_memory(torch.device("cpu")) / 2**20

    before, cpu, wall = peak(), time.process_time(), time.perf_counter()
    work()
    return {
        "form": form,
        "images": PHOTOGRAPHS if form == "duplicates" else CLASSES * PER_CLASS,
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "megabytes": peak() - before,
    }


def table(record):
    """As the docs print it."""
    lines = [f"{'':18}{'images':>10}{'CPU s':>8}{'wall s':>8}{'MB':>6}"]
    for row in record["own_data"]:
        figures = f"{row['cpu_seconds']:>8.1f}{row['wall_seconds']:>8.1f}{row['megabytes']:>6.0f}"
        lines.append(f"{row['form']:18}{row['images']:>10,}{figures}")
    return "\n".join(lines) + "\n"


def main():
    """Make, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--form", choices=FORMS)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.form:
        print(json.dumps(measure(asked.folder, asked.form)))
        return
    make(asked.folder)
    rows = []
    for form in FORMS:
        command = [sys.executable, __file__, "--folder", str(asked.folder), "--form", form]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    record = {"own_data": rows}
    print(table(record), end="")
    if asked.out:
        write(asked.out, record)


if __name__ == "__main__":
    main()
