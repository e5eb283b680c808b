"""Does TDE help when the test set is long-tailed, too? digits-lt, forward and backward test priors.

    python benchmarks/shift.py         # five seeds, some minutes; the table of docs/own_features.md

Strengths are chosen on validation images weighted to the test prior; nothing is chosen on test images.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from tailwise import Store
from tailwise.adjust import combine, tde_components
from tailwise.data import digits_lt
from tailwise.evaluate import accuracy_under_prior, shifted_prior
from tailwise.recipes import experiment, measure
from tailwise.recipes.catalog import find
from tailwise.recipes.runs import SeedFolder
from tailwise.recipes.watch import Silent

SHIFTS = (
    ("forward", 50), ("forward", 10), ("forward", 2), ("forward", 1),
    ("backward", 2), ("backward", 10), ("backward", 50),
)  # fmt: skip
COLUMNS = ("plain", "alpha", "alpha(q)", "prior", "prior(q)", "both(q)")


def rows(seed: SeedFolder) -> list[list[float]]:
    """The accuracies of one seed: a row for each shift, a column for each adjustment."""
    trained = measure.open_trained(seed, None, device="cpu")
    val, test = (Store.load(seed.store(split), trained.digest) for split in ("val", "test"))
    counts, truth = digits_lt(seed.seed).counts, np.array(test.labels)
    parts = tde_components(torch.from_numpy(np.array(val.features)), trained.model.classifier)
    labels = torch.from_numpy(np.array(val.labels))
    a, b = tde_components(torch.from_numpy(np.array(test.features)), trained.model.classifier)
    uniform, table = combine(parts, labels, None, resamples=1).alpha, []
    for direction, ratio in SHIFTS:
        q = shifted_prior(counts, ratio, direction)
        offset = torch.from_numpy(np.log(counts.prior / q)).float()
        both = combine(parts, labels, counts.prior, target_prior=q, resamples=1)
        strength = both.strength_alone.value if both.strength_alone else 0.0
        adjusted = (
            a,
            a - uniform * b,
            a - both.alpha_alone.value * b,
            a - offset,
            a - strength * offset,
            a - both.alpha * b - both.strength * offset,
        )
        table.append([accuracy_under_prior(z.argmax(dim=1).numpy(), truth, q) for z in adjusted])
    return table


def main() -> None:
    """Train, measure and print means of accuracies, then mean and spread of the differences to plain."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        (run,) = experiment.train(
            [find("digits-lt/tde")[0]], range(5), out, data_dir=None, watch=Silent(), device="cpu"
        )
        found = np.array([rows(seed) for seed in run.seeds])
    gain = found - found[:, :, :1]
    print(" " * 12, *(f"{name:>16}" for name in COLUMNS))
    for place, (direction, ratio) in enumerate(SHIFTS):
        cells = [f"{found[:, place, 0].mean():.1f}"]
        cells += [f"{g.mean():+.1f} ± {g.std(ddof=1):.1f}" for g in gain[:, place, 1:].T]
        print(f"{direction:>8} {ratio:<3}", *(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
