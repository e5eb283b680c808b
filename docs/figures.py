"""Draw the figures of the docs from trained runs, as `tailwise plot` does, in few colours.

    tailwise train digits-lt --out runs/figures/papers
    tailwise train digits-lt/kang-figure-1 --out runs/figures/kang-figure-1
    tailwise train digits-lt/momentum --out runs/figures/momentum
    tailwise train digits-lt/momentum-matched --out runs/figures/momentum-matched
    tailwise train digits-lt/decoupling backbone.name=digits-net-two-branch --out runs/figures/two-branch
    python docs/figures.py runs/figures                  # all that have runs
    python docs/figures.py runs/figures alpha grad-cam   # these

Those of docs/reproduction.md come from the runs that it tells of, in runs/figures/cifar100-lt. Each is written to
docs/figures/NAME.png, small enough for a page.
"""

import io
import sys
from functools import partial
from pathlib import Path

from PIL import Image

from tailwise.experiments import measure
from tailwise.experiments.runs import open_runs
from tailwise.figures import Source, figure_data
from tailwise.report.figures import rendered

OUT = Path(__file__).parent / "figures"
COLOURS = 64
WIDTHS, MOST_BYTES = (1200, 1000, 900, 800), 60_000  # the widest, in pixels, that is small enough
# picture: figure, folders of runs, rows
PICTURES: dict[str, tuple[str, list[str], list[str]]] = {
    "alpha": ("alpha", ["papers/tde"], []),
    "norm-power": ("norm-power", ["papers/decoupling"], []),
    "momentum": ("momentum", ["momentum"], []),
    "momentum-matched": ("momentum", ["momentum-matched"], []),
    "weight-norms": ("weight-norms", ["papers/decoupling"], []),
    "weight-norms-tde": ("weight-norms", ["papers/linear", "papers/tde"], []),
    "feature-norms": ("feature-norms", ["papers/linear", "papers/tde"], []),
    "head-cosine": ("head-cosine", ["papers/tde"], []),
    "confusion": ("confusion", ["papers/linear", "papers/decoupling", "papers/tde"], ["linear", "lws", "tde"]),
    "reliability": ("reliability", ["papers/linear", "papers/decoupling", "papers/tde"], ["linear", "lws", "tde"]),
    "grad-cam": ("grad-cam", ["papers/linear", "papers/decoupling", "papers/tde"], ["linear", "joint", "lws", "tde"]),
    "sampling": ("sampling", ["papers/linear"], []),
    "classifiers-by-sampler": ("classifiers-by-sampler", ["kang-figure-1"], []),
    "backbones": ("backbones", ["papers/decoupling", "two-branch"], []),
    "decision-regions": ("decision-regions", [], []),
    "one-dimensional": ("one-dimensional", [], []),
    "cifar100-lt-alpha": ("alpha", ["cifar100-lt/tde"], []),
    "cifar100-lt-head-cosine": ("head-cosine", ["cifar100-lt/tde"], []),
    "cifar100-lt-weight-norms": ("weight-norms", ["cifar100-lt/decoupling"], ["joint", "tau-norm", "crt", "lws"]),
}


def main() -> None:
    """Draw the pictures named on the command line, or all."""
    runs, *names = sys.argv[1:]
    OUT.mkdir(exist_ok=True)
    for name in names or PICTURES:
        figure, folders, methods = PICTURES[name]
        if missing := [folder for folder in folders if not (Path(runs) / folder).exists()]:
            print(f"{name}: no {missing[0]} in {runs}")
            continue
        opened = [run for folder in folders for run in open_runs(Path(runs) / folder)]
        sources = [Source(run, lambda seed: measure.open_trained(seed, None)) for run in opened]
        png = rendered(figure_data(figure, sources, methods), ["png"])["png"]
        (OUT / f"{name}.png").write_bytes(next(filter(is_small, map(partial(narrowed, png), WIDTHS))))


def narrowed(png: bytes, width: int) -> bytes:
    """The picture in few colours, at most so wide."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((width, 10 * width))
    file = io.BytesIO()
    picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return file.getvalue()


def is_small(png: bytes) -> bool:
    """Whether a page can well have it."""
    return len(png) < MOST_BYTES


if __name__ == "__main__":
    main()
