"""Does TDE help when the test set is long-tailed, too? digits-lt, forward and backward test priors.

    python benchmarks/shift.py         # five seeds, some minutes; writes results/shift.json
    python docs/tables.py              # then: the tables of docs/own_features.md

Strengths are chosen on validation images weighted to the test prior; nothing is chosen on test images.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from records import RESULTS, seeds_of, write
from tailwise import Store
from tailwise.adjust import combine, fit_temperature, tde_components
from tailwise.data import digits_lt
from tailwise.evaluate import accuracy_under_prior, estimate_prior, shifted_indices, shifted_prior
from tailwise.experiments import experiment, measure
from tailwise.experiments.runs import SeedFolder
from tailwise.experiments.watch import Silent
from tailwise.recipes.catalog import find

SEEDS = range(5)
SHIFTS = tuple(("forward", ratio) for ratio in (50, 25, 10, 5, 2, 1)) + tuple(
    ("backward", ratio) for ratio in (2, 5, 10, 25, 50)
)
COLUMNS = ("plain", "TDE", "TDE (q)", "prior", "prior (q)", "TDE, prior (q)", "prior (EM)", "TDE, prior (EM)")


@torch.no_grad()
def rows(seed: SeedFolder) -> tuple[list[list[float]], list[float]]:
    """Of one seed: the accuracies, a row for each shift and a column for each adjustment; how far each estimated prior
    is from the true one, in total variation.
    """
    trained = measure.open_trained(seed, None, device="cpu")
    val, test = (Store.load(seed.store(split), trained.digest) for split in ("val", "test"))
    counts, truth = digits_lt(seed.seed).counts, np.array(test.labels)
    parts = tde_components(torch.from_numpy(np.array(val.features)), trained.model.classifier)
    labels = torch.from_numpy(np.array(val.labels))
    a, b = tde_components(torch.from_numpy(np.array(test.features)), trained.model.classifier)
    temperature = fit_temperature(parts[0], labels, target_prior=counts.prior)
    uniform, table, off = combine(parts, labels, None, resamples=1).alpha, [], []
    for direction, ratio in SHIFTS:
        q = shifted_prior(counts, ratio, direction)
        mine = shifted_indices(truth, counts, ratio, direction, seed=seed.seed)  # unlabelled, to estimate q on
        found = estimate_prior((a[mine] / temperature).softmax(dim=1).double().numpy(), counts.prior).prior
        off.append(float(np.abs(found - q).sum() / 2))
        cells = []
        for target in (q, np.maximum(found, 1e-4) / np.maximum(found, 1e-4).sum()):
            offset = torch.from_numpy(np.log(counts.prior / target)).float()
            both = combine(parts, labels, counts.prior, target_prior=target, resamples=1)
            alone = both.strength_alone.value if both.strength_alone else 0.0
            together = a - both.alpha * b - both.strength * offset
            cells.append((a - both.alpha_alone.value * b, a - offset, a - alone * offset, together))
        known, estimated = cells
        adjusted = (a, a - uniform * b, *known, estimated[1], estimated[3])
        table.append([accuracy_under_prior(z.argmax(dim=1).numpy(), truth, q) for z in adjusted])
    return table, off


@torch.no_grad()
def gains(seed: SeedFolder) -> dict[str, Any]:
    """What `combine` says on the validation images of one seed, at a uniform prior."""
    trained = measure.open_trained(seed, None, device="cpu")
    val = Store.load(seed.store("val"), trained.digest)
    parts = tde_components(torch.from_numpy(np.array(val.features)), trained.model.classifier)
    return asdict(combine(parts, torch.from_numpy(np.array(val.labels)), digits_lt(seed.seed).counts.prior))


def cells_of(gain: np.ndarray) -> list[str]:
    """Mean and spread over seeds, of each column."""
    return [f"{column.mean():+.1f} ± {column.std(ddof=1):.1f}" for column in gain.T]


def table(record: dict[str, Any]) -> str:
    """As it stands in docs/own_features.md."""
    found, off = np.array(record["accuracy"]), np.array(record["off"])
    lines = [" ".join(("test prior      plain", *(f"{name:>15}" for name in record["columns"][1:]), "  EM is off"))]
    for place, (direction, ratio) in enumerate(record["shifts"]):
        gain = cells_of(found[:, place, 1:] - found[:, place, :1])
        name = "uniform" if ratio == 1 else f"{direction} {ratio}"
        cells = " ".join(f"{cell:>15}" for cell in gain)
        lines.append(f"{name:<14} {found[:, place, 0].mean():6.1f} {cells} {off[:, place].mean():11.2f}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, measure, write the record and print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        (run,) = experiment.train([find("digits-lt/tde")[0]], SEEDS, out, data_dir=None, watch=Silent(), device="cpu")
        found = [rows(seed) for seed in run.seeds]
        combined, seeds = [gains(seed) for seed in run.seeds], seeds_of(run)
    record = {
        "shifts": SHIFTS,
        "columns": COLUMNS,
        "accuracy": [accuracy for accuracy, _ in found],
        "off": [off for _, off in found],
        "combine": combined,
        "seeds": seeds,
    }
    write(RESULTS / "shift.json", record)
    print(table(record))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
