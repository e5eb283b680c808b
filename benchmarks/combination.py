"""Head direction and prior removed together: is that better than either alone? A finished run's stored features.

    python benchmarks/combination.py runs/cifar100-lt/tde      # a minute; writes results/combination.json
    python docs/tables.py                                      # then: the table of docs/own_features.md

Each seed's stored test images play the validation images of `combine`. Its gains are measured, in each of 200
resamples, on images that had no part in the choice; the scores are not, and are no result to compare with others.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from records import RESULTS, seeds_of, write
from tailwise import ClassCounts, Store
from tailwise.adjust import combine, tde_components
from tailwise.classifiers import CausalClassifier
from tailwise.experiments.runs import open_run
from tailwise.train import load_checkpoint


@torch.no_grad()
def measured(seed: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What `combine` says of one seed, at a uniform target prior."""
    checkpoint = load_checkpoint(seed / "checkpoint.safetensors")
    test, train = (Store.load(seed / "stores" / split, checkpoint.digest) for split in ("test", "train"))
    state = {name[11:]: value for name, value in checkpoint.state.items() if name.startswith("classifier.")}
    num_classes, width = state["weight"].shape
    classifier = CausalClassifier(width, num_classes, **settings)
    classifier.load_state_dict(state)
    parts = tde_components(torch.from_numpy(np.array(test.features)), classifier)
    prior = ClassCounts.of_labels(np.array(train.labels), num_classes).prior
    return asdict(combine(parts, torch.from_numpy(np.array(test.labels)), prior))


def table(record: dict[str, Any]) -> str:
    """As it stands in docs/own_features.md: a row for each seed."""
    lines = ["data         seed  alpha  strength    T   over alpha alone       over the prior alone"]
    for data, seeds in record["found"].items():
        for seed, found in enumerate(seeds):
            gains = []
            for alone in (found["alpha_alone"], found["strength_alone"]):
                low, high = alone["interval"]
                gains.append(f"{alone['gain']:+.1f} [{low:+.1f}, {high:+.1f}]")
            lines.append(
                f"{data:<12} {seed:>4} {found['alpha']:>6.1f} {found['strength']:>9.1f} {found['temperature']:>4.1f}   "
                f"{gains[0]:<22} {gains[1]}".rstrip()
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure a run of cifar100-lt, add what benchmarks/shift.py found on digits-lt, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder of cifar100-lt/tde")
    opened = open_run(parser.parse_args().run)
    settings = {key: value for key, value in opened.recipe.classifier.model_dump().items() if key != "name"}
    digits = json.loads((RESULTS / "shift.json").read_text())
    record = {
        "found": {
            "digits-lt": digits["combine"],
            opened.recipe.data.name: [measured(seed.path, settings) for seed in opened.seeds],
        },
        "runs": {"digits-lt": digits["seeds"], opened.recipe.data.name: seeds_of(opened)},
    }
    write(RESULTS / "combination.json", record)
    print(table(record))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
