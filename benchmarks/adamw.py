"""AdamW on the causal classifier: digits-lt, validation images only.

python benchmarks/adamw.py    # ten settings, two seeds each, some minutes; writes results/adamw.json
python docs/tables.py         # then: the table of docs/pitfalls.md
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from records import RESULTS, seeds_of, write
from tailwise import Store
from tailwise.adjust import sweep_alpha, tde_components
from tailwise.evaluate import metric
from tailwise.experiments import experiment, measure
from tailwise.experiments.watch import Silent
from tailwise.recipes.catalog import find
from tailwise.recipes.overrides import override

SEEDS = range(2)
SETTINGS = [
    ("SGD", 0.2, None, 5e-4),
    ("AdamW", 0.001, (0.9, 0.999), 5e-4),
    ("AdamW", 0.003, (0.9, 0.999), 0.05),
    ("AdamW", 0.01, (0.9, 0.99), 0.05),
    ("AdamW", 0.003, (0.9, 0.99), 0.5),
    ("AdamW", 0.01, (0.9, 0.99), 0.0),
    ("AdamW", 0.03, (0.9, 0.99), 0.0),
    ("AdamW", 0.05, (0.9, 0.999), 5e-4),
    ("AdamW", 0.1, (0.9, 0.99), 0.0),
    ("AdamW", 0.2, (0.9, 0.999), 5e-4),
]


def table(record: dict[str, Any]) -> str:
    """As it stands in docs/pitfalls.md."""
    lines = ["optimiser  learning rate  momentum or betas  weight decay  plain   TDE  weight length"]
    for row in record["settings"]:
        betas = ", ".join(f"{beta:g}" for beta in row["betas"] or (0.9,))
        plain, tde, length = np.mean([row["plain"], row["tde"], row["length"]], axis=1)
        lines.append(
            f"{row['optimizer']:<9} {row['learning_rate']:>14g} {betas:>18} {row['weight_decay']:>13g} "
            f"{plain:>6.1f} {tde:>5.1f} {length:>14.2f}"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train with each setting: accuracy on validation images before and after TDE, and the weights' length."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows: list[dict[str, Any]] = []
    for name, rate, betas, decay in SETTINGS:
        asked = {"learning_rate": rate, "weight_decay": decay}
        if betas:
            asked |= {"optimizer": "adamw", "momentum": betas[0], "beta2": betas[1]}
        (recipe,) = override(find("digits-lt/tde"), [f"stages.0.{key}={value}" for key, value in asked.items()])
        found = []
        with tempfile.TemporaryDirectory() as folder:
            (run,) = experiment.train(
                [recipe], SEEDS, Path(folder) / "run", data_dir=None, watch=Silent(), device="cpu"
            )
            seeds = seeds_of(run)
            for seed in run.seeds:
                trained = measure.open_trained(seed, None, device="cpu")
                val, classifier = Store.load(seed.store("val"), trained.digest), trained.model.classifier
                parts = tde_components(torch.from_numpy(np.array(val.features)), classifier)
                swept = sweep_alpha(parts, metric("mean-per-class", np.array(val.labels), trained.data.counts))
                found.append((swept.scores[0], max(swept.scores), float(classifier.weight.detach().norm(dim=1).mean())))
        plain, tde, length = zip(*found, strict=True)
        setting = {"optimizer": name, "learning_rate": rate, "betas": betas, "weight_decay": decay}
        rows.append(setting | {"plain": plain, "tde": tde, "length": length, "seeds": seeds})
        print(table({"settings": rows[-1:]}).splitlines()[-1], flush=True)
    write(RESULTS / "adamw.json", {"settings": rows})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
