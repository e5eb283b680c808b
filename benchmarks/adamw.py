"""AdamW on the causal classifier: digits-lt, validation images only.

python benchmarks/adamw.py    # nine settings, two seeds each, some minutes; the table of docs/pitfalls.md
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from tailwise import Store
from tailwise.adjust import sweep_alpha, tde_components
from tailwise.evaluate import metric
from tailwise.recipes import experiment, measure
from tailwise.recipes.catalog import find
from tailwise.recipes.overrides import override
from tailwise.recipes.watch import Silent

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


def main() -> None:
    """Train with each setting; print accuracy on validation images before and after TDE, and the weights' length."""
    for name, rate, betas, decay in SETTINGS:
        asked = {"learning_rate": rate, "weight_decay": decay}
        if betas:
            asked |= {"optimizer": "adamw", "momentum": betas[0], "beta2": betas[1]}
        (recipe,) = override(find("digits-lt/tde"), [f"stages.0.{key}={value}" for key, value in asked.items()])
        found = []
        with tempfile.TemporaryDirectory() as folder:
            (run,) = experiment.train(
                [recipe], range(2), Path(folder) / "run", data_dir=None, watch=Silent(), device="cpu"
            )
            for seed in run.seeds:
                trained = measure.open_trained(seed, None, device="cpu")
                val, classifier = Store.load(seed.store("val"), trained.digest), trained.model.classifier
                parts = tde_components(torch.from_numpy(np.array(val.features)), classifier)
                swept = sweep_alpha(parts, metric("mean-per-class", np.array(val.labels), trained.data.counts))
                found.append((swept.scores[0], max(swept.scores), float(classifier.weight.detach().norm(dim=1).mean())))
        plain, tde, length = np.mean(found, axis=0)
        print(
            f"{name} {rate:g} betas {betas} decay {decay:g}: {plain:.1f}, TDE {tde:.1f}, length {length:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
