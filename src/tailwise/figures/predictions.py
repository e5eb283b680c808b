"""What is predicted, and how surely."""

from collections.abc import Sequence

import numpy as np

from tailwise.counts import GROUPS
from tailwise.evaluate import expected_calibration_error, group_confusion, reliability
from tailwise.figures.source import Measured, Source, caption, every_row, line, published, rows
from tailwise.report.figures import Calibration, Confusions, Matrix, Reliabilities, Values


def confusion(sources: Sequence[Source]) -> Confusions:
    """Which group the predicted classes are of, for the test images of each group, in every row of the runs."""
    panels = []
    shape = (len(GROUPS), len(GROUPS))
    for label, seeds in every_row(sources):
        found = line(label, [_confusion(measured).ravel() for measured in seeds])
        spread = None if found.std is None else found.std.reshape(shape)
        panels.append(Matrix(found.label, found.mean.reshape(shape), spread))
    sizes = published(sources[0]).group_sizes
    title = "Percent of each group's test images predicted as a class of each group, right or wrong"
    return Confusions(title, caption(sources, rows(sources)), tuple(f"{g} ({sizes[g]})" for g in GROUPS), tuple(panels))


def reliabilities(sources: Sequence[Source]) -> Reliabilities:
    """Accuracy by confidence and expected calibration error (Guo et al. 2017), in every row of the runs."""
    panels, edges = [], np.zeros(0)
    for label, seeds in every_row(sources):
        bins, errors = [], []
        for measured in seeds:
            probabilities = measured.logits.double().softmax(dim=1).numpy()
            labels = np.asarray(measured.test.labels)
            bins.append(reliability(probabilities, labels))
            errors.append(expected_calibration_error(probabilities, labels))
        edges = 100 * bins[0].edges
        ece = line("", [np.array([error]) for error in errors])
        spread = "" if ece.std is None else f" ± {ece.std[0]:.1f}"
        panels.append(
            Calibration(
                f"{label}\nECE {ece.mean[0]:.1f}{spread} %",
                line("accuracy", [100 * b.accuracy for b in bins]),
                np.mean([100 * b.count / b.count.sum() for b in bins], axis=0),
            )
        )
    title = "Accuracy of test images by confidence, and expected calibration error (ECE)"
    return Reliabilities(title, caption(sources, rows(sources)), edges, tuple(panels))


def _confusion(measured: Measured) -> Values:
    predicted = measured.logits.argmax(dim=1).numpy()
    return group_confusion(predicted, np.asarray(measured.test.labels), measured.seed.published)
