"""What a trained detector finds in images, as it was trained and with total direct effect."""

from pathlib import Path

from torch import Tensor

from tailwise import checks
from tailwise.data.files import read_pixels
from tailwise.detect import Detections, Truth, read_split
from tailwise.detect.inference import Inference
from tailwise.experiments.detection_experiment import open_detector, predicted
from tailwise.experiments.detection_runs import DetectionSeed
from tailwise.recipes.build import cpu_threads, find_device
from tailwise.recipes.build_detection import inference_of
from tailwise.recipes.detection import WITHOUT_EXEMPTION, DetectionRecipe


def found_in(
    seed: DetectionSeed, path: Path, *, alpha: float | None = None, device: str = "auto"
) -> tuple[Tensor, dict[str, Detections], tuple[str, ...]]:
    """The image, uint8 [3, H, W]; what is found in it, by a title for each way to predict; the names of the classes.

    alpha: of TDE, in place of the recipe's. TDE without exemption, which is there to be compared with, is left out.

    Raises:
        InputError: a file that is no image, a corrupt checkpoint, an alpha where there is no TDE.
    """
    hows = _hows(seed.recipe, alpha)
    image, where = read_pixels(path), find_device(device)
    detector, names = open_detector(seed, where)
    with cpu_threads(seed.recipe):
        answers = detector.detections(detector.look([image.to(where)]), *hows.values())
    titles = [row if how.alpha is None else f"{row}, alpha {how.alpha:g}" for row, how in hows.items()]
    return image, {title: answer[0] for title, answer in zip(titles, answers, strict=True)}, names


def found_in_all(
    seed: DetectionSeed, listing: Path, images: Path, *, alpha: float | None = None, device: str = "auto"
) -> tuple[dict[str, list[Detections]], Truth]:
    """What is found in all images that a json file lists, by row, and that file; it needs no annotations.

    Args:
        listing: in LVIS's or COCO's form, as `read_truth` has it.
        images: the folder that `read_split` finds the images in.
        alpha: as in `found_in`.

    Raises:
        InputError: as `found_in`; a file with other categories than the detector was trained for, an absent image.
    """
    hows, where = _hows(seed.recipe, alpha), find_device(device)
    detector, names = open_detector(seed, where)
    split = read_split(listing, images)
    there = tuple(category.name for category in split.truth.categories)
    if there != names:
        raise checks.InputError(
            f"{listing}: expected the {len(names)} categories that {seed.path} was trained for, by the order of their "
            f"ids, got {len(there)}"
            + next((f" (first: {b} for {a})" for a, b in zip(names, there, strict=False) if a != b), "")
        )
    with cpu_threads(seed.recipe):
        return predicted(detector, split, hows, where), split.truth


def _hows(recipe: DetectionRecipe, alpha: float | None) -> dict[str, Inference]:
    rows = [row for row in recipe.rows if not row.endswith(WITHOUT_EXEMPTION)]
    hows = {row: inference_of(recipe, row, alpha) for row in rows}
    if alpha is not None and all(how.alpha is None for how in hows.values()):
        raise checks.InputError(f"alpha: expected a run with TDE, got one of {recipe.name}")
    return hows
