"""Where models see the class of an image: Grad-CAM of several methods, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tailwise import checks
from tailwise.adjust import grad_cam
from tailwise.counts import ClassCounts
from tailwise.data import LongTailedData
from tailwise.deployment.deploy import plain_model
from tailwise.experiments.stores import in_order
from tailwise.figures.pictures import picture_of
from tailwise.figures.source import Source, caption, label, measure_row, published, strength_of
from tailwise.recipes.methods import METHODS
from tailwise.recipes.schema import Recipe
from tailwise.recognizer import Recognizer
from tailwise.report.figures import Seen, Sights, rendered

NUM_IMAGES = 5


@dataclass(frozen=True)
class Look:
    """A method, as it looks at images: its model, and what it predicts of each test image."""

    label: str
    model: Recognizer
    predicted: NDArray[np.int64]


def grad_cams(sources: Sequence[Source], num_images: int = NUM_IMAGES) -> Sights:
    """Grad-CAM of test images of rare classes, through each method's logits (Tang et al. 2020, Fig. 5).

    Methods: those asked for, else each trained classifier, LWS and total direct effect, of the first seed. Images: of
    group few (or the next that has any), those whose prediction the last method changes, to right or to wrong, from
    that of its own run's trained classifier (of the first method, if the last adjusts nothing); one of each class in
    turn, rarest class first, in the order of the test set. If no prediction changes, the first ones in that order.
    Looked at is the logit of the image's true class; each map is shown over its own maximum.

    Raises:
        InputError: no captum, no images there, runs of different test images.
    """
    rows, why = _rows(sources, num_images)
    seed = sources[0].run.seeds[0].seed
    data = caption(sources, ()).partition(";")[0]
    return Sights(
        "Where each method sees the true class of rare test images (Grad-CAM)",
        f"{data}; seed {seed}; {why}; each map over its own maximum",
        len(rows[0][1]),
        tuple(panel for _, row in rows for panel in row),
    )


def grad_cam_panels(sources: Sequence[Source], num_images: int = NUM_IMAGES) -> list[tuple[str, bytes]]:
    """The rows of `grad_cams`, each as a title in words and a PNG: the image and its maps, side by side.

    Raises:
        InputError: as `grad_cams`; no matplotlib.
    """
    panels = []
    for name, row in _rows(sources, num_images)[0]:
        title = "; ".join([name, *(panel.title.replace("\n", " ") for panel in row)])
        panels.append((title, rendered(Sights("", "", len(row), tuple(row)), ["png"])["png"]))
    return panels


def _rows(sources: Sequence[Source], num_images: int) -> tuple[list[tuple[str, list[Seen]]], str]:
    """A row for each image, with its id, and by what the images were chosen."""
    looks = []
    first = sources[0].seeds[0]
    data = first.data
    for source in sources:
        seed = source.seeds[0]
        if not np.array_equal(seed.data.test.ids, data.test.ids):
            raise checks.InputError(f"{seed.folder}: expected the test images of {first.folder}, got others")
        for method in _methods(source):
            measured = measure_row(source, seed, method)
            name = label(sources, source, method) + strength_of([measured])
            looks.append(Look(name, plain_model(measured.made), measured.logits.argmax(dim=1).numpy()))
    before, base = looks[0].predicted, looks[0].label
    if METHODS[method].adjust is not None:
        before, base = np.asarray(seed.stores.test().logits).argmax(axis=1), source.own
    chosen, changed = _choose(before, looks[-1].predicted, data, published(sources[0]), num_images)
    why = f"rare images whose prediction {looks[-1].label} changes from {base}'s"
    if not changed:
        why = f"the first rare images, for {looks[-1].label} changes no prediction of {base}'s"
    return [(str(data.test.ids[index]), _row(looks, first.recipe, data, int(index))) for index in chosen], why


def _methods(source: Source) -> Sequence[str]:
    if source.asked_rows is not None:
        return source.rows
    return [row for row in source.rows if METHODS[row].adjust in (None, "tde") or row in ("lws", "lws-stored")]


def _choose(
    before: NDArray[np.int64], after: NDArray[np.int64], data: LongTailedData, counts: ClassCounts, num_images: int
) -> tuple[NDArray[np.int64], bool]:
    """Places of test images, and whether predictions of those change."""
    labels = data.test.labels.cpu().numpy()
    groups = [np.isin(labels, counts.groups[group]) for group in ("few", "medium", "many")]
    rare = next(group for group in groups if group.any())
    changed = rare & (before != after)
    candidates = np.flatnonzero(changed if changed.any() else rare)
    turn = np.array([np.sum(labels[candidates[:i]] == labels[c]) for i, c in enumerate(candidates)])
    per_class = np.array(counts.per_class)
    order = np.lexsort((labels[candidates], per_class[labels[candidates]], turn))
    return candidates[order[:num_images]], bool(changed.any())


def _row(looks: Sequence[Look], recipe: Recipe, data: LongTailedData, index: int) -> list[Seen]:
    """The image, then where each method sees its class."""
    test, names = data.test, data.class_names
    c = int(test.labels[index])
    image, _ = next(iter(in_order(data, test, torch.tensor([index]))))
    pixels = picture_of(data, recipe, index).transpose(1, 2, 0)
    pixels = pixels if pixels.shape[2] == 3 else pixels[:, :, 0]
    panels = [Seen(f"{names[c]}\n{data.counts.per_class[c]} training images", pixels)]
    for look in looks:
        where = grad_cam(look.model.backbone, look.model.classifier, image.cpu(), torch.tensor([c]))
        values = where[0].double().numpy()
        says = int(look.predicted[index])
        title = f"{look.label}\nsays {names[says]}, {'right' if says == c else 'wrong'}"
        panels.append(Seen(title, pixels, values / max(values.max(), np.finfo(np.float64).tiny)))
    return panels
