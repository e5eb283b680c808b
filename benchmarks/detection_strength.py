"""What alpha does to a trained detector's average precision, with background exempted and without, over its seeds.

    tailwise train digit-scenes-lt --seeds 3 --out runs/digit-scenes-lt
    python benchmarks/detection_strength.py runs/digit-scenes-lt/tde    # writes results/digit-scenes-lt-strength.json

Of the images that are reported on, for looking at: nothing is chosen by it. Alpha 0 is no TDE, but the stages are
averaged as probabilities, as TDE's are, and not as logits; "none" is the recipe's own row without TDE.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from records import RESULTS, write
from tailwise.experiments.detection_experiment import measured, open_detector
from tailwise.experiments.detection_runs import DetectionSeed, open_detection_run
from tailwise.recipes.build_detection import build_detection_data, inference_of
from tailwise.report.detection import PRECISIONS
from tailwise.report.summary import mean_and_std
from tailwise.report.table import figure

ALPHAS = (0.0, 0.75, 1.5, 3.0)


def rows_of(seed: DetectionSeed, data_dir: Path | None) -> dict[str, dict[str, float | None]]:
    """Average precision of a seed by alpha, exempted and not."""
    own, tde = seed.recipe.rows[0], seed.recipe.rows[-1]
    how = inference_of(seed.recipe, tde)
    hows = {"none": inference_of(seed.recipe, own)}
    for exempt in (True, False):
        for alpha in ALPHAS:
            word = "exempted" if exempt else "not exempted"
            hows[f"{alpha:g}, {word}"] = replace(how, alpha=alpha, exempt_background=exempt)
    device = torch.device("cpu")
    detector, _ = open_detector(seed, device)
    rows, _ = measured(detector, build_detection_data(seed.recipe, seed.seed, data_dir).test, hows, device)
    return {name: {key: row[key] for key in PRECISIONS} for name, row in rows.items()}


def table(record: dict[str, Any]) -> str:
    """A line for each alpha, with background exempted and without."""
    seeds = record["seeds"]
    lines = [f"{record['recipe']}: average precision in %, seeds {', '.join(map(str, seeds))}", ""]
    lines.append(f"{'alpha, background':<22}" + "".join(f"{name:>13}" for name in PRECISIONS))
    lines.append("─" * len(lines[-1]))
    for name, row in record["rows"].items():
        lines.append(f"{name:<22}" + "".join(f"{figure(row[key]):>13}" for key in PRECISIONS))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder of a detector with TDE")
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    run = open_detection_run(given.run)
    each = [rows_of(seed, given.data_dir) for seed in run.seeds]
    rows = {name: {key: mean_and_std([seed[name][key] for seed in each]) for key in PRECISIONS} for name in each[0]}
    made_of = [seed.results()["checkpoint"] for seed in run.seeds]
    record = {"recipe": run.recipe.name, "seeds": [seed.seed for seed in run.seeds], "of": made_of, "rows": rows}
    print(table(record), end="")
    write(RESULTS / "digit-scenes-lt-strength.json", record)


if __name__ == "__main__":
    main()
