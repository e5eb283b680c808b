"""What `tailwise report` costs for 1,000 classes and 20,000 test images: seconds, memory, size of the page.

    python benchmarks/report.py --out results/report.json
    python benchmarks/report.py --keep DIR      # and keep the run and the page, to look at

The run is made up: classes as far apart, and head classes as much preferred, as training would leave them, on features
above 0 like a network's; no network is trained. Each classifier is measured in a process of its own, on one thread.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from records import write
from tailwise.classifiers import CausalClassifier, LinearClassifier
from tailwise.counts import ClassCounts
from tailwise.data import LongTailedData, Split
from tailwise.evaluate import Store
from tailwise.experiments.runs import Run, SeedFolder
from tailwise.experiments.trained import Trained
from tailwise.figures import Source
from tailwise.figures.report import write_report
from tailwise.recipes.catalog import RECIPES
from tailwise.recognizer import Recognizer
from tailwise.train.compute import peak_memory

CLASSES, IMAGES, WIDTH = 1_000, 20_000, 512
RECIPE = {"causal": "cifar100-lt/tde", "linear": "cifar100-lt/decoupling"}


class Width(torch.nn.Module):
    """A backbone that is never asked for features."""

    num_features = WIDTH


def made_up(folder: Path, kind: str) -> Source:
    """A run of one seed, in a folder."""
    torch.manual_seed(0)
    counts = np.round(1280 * 256.0 ** (-np.arange(CLASSES) / (CLASSES - 1))).astype(int)
    # what distinguishes classes, and what head classes share; a tail class is known less well
    centres = 0.25 * torch.randn(CLASSES, WIDTH)
    labels = torch.arange(CLASSES).repeat_interleave(IMAGES // CLASSES)
    features = (centres[labels] + 0.75 * torch.randn(IMAGES, WIDTH) + 0.3).relu()
    known = torch.from_numpy((counts / counts.max()) ** 0.15).float()[:, None]
    weight = known * centres + (1.2 - known) * 0.25 * torch.randn(CLASSES, WIDTH) + 0.1 * known
    classifier: Any = CausalClassifier(WIDTH, CLASSES) if kind == "causal" else LinearClassifier(WIDTH, CLASSES)
    classifier.weight.data = weight
    with torch.no_grad():
        classifier(features[: IMAGES // 4])
        classifier.eval()
        logits = classifier(features)
    path = folder / "seed-0"
    ids = np.arange(IMAGES).astype(str)
    arrays = (part.numpy() for part in (features, logits, labels))
    Store(*arrays, ids, checkpoint="made up", split="test").save(path / "stores/test")
    recipe = RECIPES[RECIPE[kind]]
    about: dict[str, Any] = {
        "seed": 0,
        "subset_hash": "made up",
        "protocol": recipe.protocol,
        "published_counts": counts.tolist(),
        "counts": counts.tolist(),
        "class_names": [f"class {c}" for c in range(CLASSES)],
        "versions": {"torch": torch.__version__},
    }
    noise = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    test = Split(noise, labels, ids)
    training = ClassCounts(tuple(counts.tolist()))  # its images are never asked for
    data = LongTailedData(
        "made up", test, None, test, training, training, tuple(about["class_names"]), "made up", torch.Tensor.float
    )
    trained = Trained(path, recipe, 0, Recognizer(Width(), classifier), "made up", about, lambda: data)
    rows = {recipe.methods[0]: trained.row(recipe.methods[0])}
    result = {**about, "recipe": recipe.model_dump(mode="json"), "checkpoint": "made up", "rows": rows}
    (path / "results.json").write_text(json.dumps(result))
    return Source(Run(folder, recipe, (SeedFolder(path, recipe, 0),)), lambda _: trained)


def measured(kind: str, folder: Path) -> dict[str, Any]:
    """In this process: CPU seconds of making the page, peak memory of all, bytes of the page."""
    torch.set_num_threads(1)
    source = made_up(folder, kind)
    before = peak_memory(torch.device("cpu"))
    begun = time.process_time()
    write_report([source], folder / "report.html", "benchmarks/report.py", lambda _: [])  # Grad-CAM needs a network
    seconds = time.process_time() - begun
    after = peak_memory(torch.device("cpu"))
    page = (folder / "report.html").stat().st_size
    return {"seconds": seconds, "peak_bytes": after, "before_bytes": before, "page_bytes": page}


def table(record: dict[str, Any]) -> str:
    """The record as text."""
    sizes = f"{record['classes']:,} classes, {record['images']:,} test images, D {record['width']}"
    lines = [f"{sizes}; one thread", "", "classifier  CPU seconds  peak memory     page"]
    for kind, cost in record["classifiers"].items():
        memory, page = cost["peak_bytes"] / 2**30, cost["page_bytes"] / 1e6
        lines.append(f"{kind:10}  {cost['seconds']:11.1f}  {memory:8.2f} GiB  {page:.1f} MB")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure each classifier in its own process, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the record there, too")
    parser.add_argument("--keep", type=Path, help="a folder to keep runs and pages in")
    parser.add_argument("--only", choices=RECIPE, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(measured(asked.only, asked.keep)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        costs = {}
        for kind in RECIPE:
            folder = (asked.keep or Path(temporary)) / kind
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, __file__, "--only", kind, "--keep", str(folder)]
            costs[kind] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    record = {
        "classes": CLASSES,
        "images": IMAGES,
        "width": WIDTH,
        "classifiers": costs,
    }
    print(table(record), end="")
    if asked.out:
        write(asked.out, record)


if __name__ == "__main__":
    main()
