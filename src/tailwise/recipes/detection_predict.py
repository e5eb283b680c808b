"""What a trained detector finds in one image, as it was trained and with total direct effect."""

from pathlib import Path

from torch import Tensor

from tailwise import checks
from tailwise.data.files import read_pixels
from tailwise.detect import Detections
from tailwise.recipes.build import cpu_threads, find_device
from tailwise.recipes.build_detection import inference_of
from tailwise.recipes.detection import WITHOUT_EXEMPTION
from tailwise.recipes.detection_experiment import open_detector
from tailwise.recipes.detection_runs import DetectionSeed


def found_in(
    seed: DetectionSeed, path: Path, *, alpha: float | None = None, device: str = "auto"
) -> tuple[Tensor, dict[str, Detections], tuple[str, ...]]:
    """The image, uint8 [3, H, W]; what is found in it, by a title for each way to predict; the names of the classes.

    alpha: of TDE, in place of the recipe's. TDE without exemption, which is there to be compared with, is left out.

    Raises:
        InputError: a file that is no image, a corrupt checkpoint, an alpha where there is no TDE.
    """
    recipe = seed.recipe
    rows = [row for row in recipe.rows if not row.endswith(WITHOUT_EXEMPTION)]
    hows = [inference_of(recipe, row, alpha) for row in rows]
    if alpha is not None and all(how.alpha is None for how in hows):
        raise checks.InputError(f"alpha: expected a run with TDE, got one of {recipe.name}")
    image, where = read_pixels(path), find_device(device)
    detector, names = open_detector(seed, where)
    with cpu_threads(recipe):
        answers = detector.detections(detector.look([image.to(where)]), *hows)
    titles = [row if how.alpha is None else f"{row}, alpha {how.alpha:g}" for row, how in zip(rows, hows, strict=True)]
    return image, {title: answer[0] for title, answer in zip(titles, answers, strict=True)}, names
