"""Two features, five classes, a long tail: what each classifier decides where, trained here and now."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tailwise.adjust import fit_lws, fit_ncm, fold_tau_norm, fold_tde, relearn
from tailwise.classifiers import CausalClassifier, LinearClassifier
from tailwise.report.figures import Region, Regions

ANGLES = (90, 18, 162, 234, 306)  # of the class centres, in degrees: a circle, on which no class has a better place
RADIUS, SPREAD = 2.0, 0.8
COUNTS = (250, 100, 40, 15, 5)  # training samples per class
TEST = 2000  # samples per class
TRAINING: Any = {"epochs": 20, "batch_size": 32, "learning_rate": 0.1}
REACH, GRID = 4.5, 160
Classifier = TypeVar("Classifier", bound=nn.Module)


def decision_regions(seed: int = 0) -> Regions:
    """Decision regions of our classifiers on two features (after Kang et al. 2020, Fig. 4), in a few seconds.

    Classes are N(m_c, 0.8^2), their centres m_c on a circle of radius 2, drawn from `seed`. Classifiers have no bias,
    so each class owns a cone, as in the paper's figure; all are trained or fitted by functions of `tailwise.adjust`.
    Norm power and alpha are given, to show what they do, not chosen.
    """
    num_classes = len(COUNTS)
    (x, y), (test_x, test_y) = _samples(COUNTS, 2 * seed), _samples((TEST,) * num_classes, 2 * seed + 1)

    def trained(make: Callable[[], Classifier], *, balanced: bool) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = make()
        return relearn(classifier, x, y, num_classes, balanced=balanced, seed=seed, **TRAINING)

    linear = partial(LinearClassifier, 2, num_classes, bias=False)
    joint = trained(linear, balanced=False)
    causal = trained(partial(CausalClassifier, 2, num_classes, num_heads=1), balanced=False)
    classifiers: dict[str, nn.Module] = {
        "joint": joint,
        "tau-norm, power 0.5": fold_tau_norm(joint, 0.5),
        "tau-norm, power 1": fold_tau_norm(joint, 1.0),
        "NCM": fit_ncm(x, y, num_classes),
        "cRT": trained(linear, balanced=True),
        "LWS": fit_lws(x, y, joint, seed=seed, **TRAINING),
        "causal": causal,
        "TDE, alpha 0.5": fold_tde(causal, 0.5),
    }
    reach = torch.linspace(-REACH, REACH, GRID)
    grid = torch.stack(torch.meshgrid(reach, reach, indexing="xy"), dim=-1)
    panels = []
    for name, classifier in classifiers.items():
        with torch.no_grad():
            predicted = classifier(grid.flatten(0, 1)).argmax(dim=1).view(grid.shape[:2])
            right = (classifier(test_x).argmax(dim=1) == test_y).double()
        rarest = 100 * right[test_y == num_classes - 1].mean()
        title = f"{name}\nright: rarest {rarest:.0f} %, all {100 * right.mean():.0f} %"
        panels.append(Region(title, predicted.numpy()))
    return Regions(
        "Decision regions of classifiers of two features",
        f"trained here, on no run: {num_classes} classes, imbalance ratio {COUNTS[0] / COUNTS[-1]:g}; classifiers "
        f"without bias; seed {seed}; n: training samples of a class; right: of {TEST:,} test samples a class",
        tuple(f"n = {count}" for count in COUNTS),
        reach.double().numpy(),
        reach.double().numpy(),
        x.double().numpy(),
        y.numpy(),
        tuple(panels),
    )


def _samples(counts: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """So many of each class, [N, 2] and [N]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    angles = torch.tensor(ANGLES).deg2rad()[labels]
    centres = RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)
    return centres + SPREAD * torch.randn(len(labels), 2, generator=generator), labels
