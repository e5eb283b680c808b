"""How much of an image Grad-CAM covers, by method: of rare test images, for docs/figures.md.

    tailwise train digits-lt --out runs/figures/papers
    python benchmarks/grad_cam.py runs/figures/papers    # writes results/digits-lt-grad-cam.json

The share of an image that speaks for its true class at least half as much as the place that does so most, in percent:
mean over the test images of group few, then mean and sample standard deviation over seeds.
"""

import argparse
import statistics
from pathlib import Path

import torch

from records import RESULTS, seeds_of, write
from tailwise.adjust import grad_cam
from tailwise.deployment.deploy import plain_model
from tailwise.experiments import measure
from tailwise.experiments.runs import open_run
from tailwise.experiments.trained import Trained

METHODS = {"linear": ["linear"], "decoupling": ["joint", "lws"], "tde": ["de-confound", "tde"]}


def covered(seed: Trained, method: str) -> float:
    """Of one seed's images."""
    data = seed.data
    few = torch.isin(data.test.labels, torch.from_numpy(data.published_counts.groups["few"]))
    model = plain_model(seed.made(method))
    images, labels = data.normalize(data.test.images[few]), data.test.labels[few]
    where = grad_cam(model.backbone, model.classifier, images, labels)
    return 100 * float((where > where.amax(dim=(1, 2), keepdim=True) / 2).double().mean())


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help=f"the folder of the runs {', '.join(METHODS)}")
    asked = parser.parse_args()
    covers, about = {}, {}
    for run, methods in METHODS.items():
        opened = open_run(asked.runs / run)
        about[run] = seeds_of(opened)
        seeds = [measure.open_trained(seed, None, device="cpu") for seed in opened.seeds]
        for method in methods:
            values = [covered(seed, method) for seed in seeds]
            covers[method] = {"mean": statistics.fmean(values), "std": statistics.stdev(values)}
    write(RESULTS / "digits-lt-grad-cam.json", {"covered": covers, "runs": about})


if __name__ == "__main__":
    main()
