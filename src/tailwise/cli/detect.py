"""`tailwise detect`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tailwise import checks
from tailwise.cli.detection import write_all
from tailwise.cli.options import Device, Json, Seed, strength_of
from tailwise.cli.output import print_json, warnings_as_notes


def detect(
    image: Annotated[
        Path, Parameter(help="A PNG, JPEG, ... in colour; or a json file that lists images, as LVIS's test sets are.")
    ],
    /,
    *,
    run: Annotated[Path, Parameter(help="The run folder of a detector, such as runs/digit-scenes-lt/tde.")],
    alpha: Annotated[str | None, Parameter(help="Strength of TDE: a number (default: the recipe's).")] = None,
    seed: Seed = None,
    images: Annotated[Path | None, Parameter(help="Of a json file: the folder with train2017/ or the files.")] = None,
    out: Annotated[
        Path | None,
        Parameter(help="The picture (default: IMAGE-detected.png here); of a json file the folder of results."),
    ] = None,
    min_score: Annotated[float | None, Parameter(help="Of a picture: leave out what is less probable (0.3).")] = None,
    limit: Annotated[int | None, Parameter(help="Of a picture: the most that is shown, the best first (30).")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Draw boxes, masks and names of what a detector finds in an image, before and after TDE side by side.

    Of a json file nothing is drawn: what is found in its images is written as the evaluation servers of LVIS and COCO
    take it, a file for each row.
    """
    strength = strength_of("alpha", alpha, ())
    if image.suffix == ".json" and (min_score is not None or limit is not None):
        raise checks.InputError(f"min-score, limit: expected a picture, got {image}, of which all is written")
    least = checks.number("min_score", 0.3 if min_score is None else min_score, at_least=0, below=1)
    most = checks.whole("limit", 30 if limit is None else limit)

    from tailwise.deployment.detection_predict import found_in, found_in_all
    from tailwise.experiments.detection_runs import open_detection_run
    from tailwise.report.drawing import draw_detections, save_png

    opened = open_detection_run(run).seed(seed)
    if image.suffix == ".json":
        folder, place = out or Path(f"{image.stem}-detected"), images or image.parent
        with warnings_as_notes():
            every, truth = found_in_all(opened, image, place, alpha=strength, device=device)
        _show_wrote(write_all(folder, every, truth, "out"), json)
        return
    if images is not None:
        raise checks.InputError(f"images: expected a json file that lists them, got {image}")
    path = out or Path(f"{image.stem}-detected.png")
    with warnings_as_notes():
        pixels, panels, names = found_in(opened, image, alpha=strength, device=device)
        for title, found in panels.items():
            best = (-found.scores).argsort(kind="stable")[:most]
            panels[title] = found.take(best[found.scores[best] >= least])
        picture = draw_detections(pixels.numpy(), panels, names, limit=most)
    try:
        save_png(picture, path)
    except OSError as error:
        raise checks.InputError(f"out: cannot write {path} ({error.strerror})") from error
    if json:
        print_json(
            {
                "wrote": str(path),
                "panels": {
                    title: [
                        {"name": names[label - 1], "score": score, "box": box}
                        for label, score, box in zip(
                            found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True
                        )
                    ]
                    for title, found in panels.items()
                },
            }
        )
        return
    for title, found in panels.items():
        listed = [f"{names[label - 1]} {score:.2f}" for label, score in zip(found.labels, found.scores, strict=True)]
        print(f"{title}: {', '.join(listed) or 'nothing'}")
    print(f"wrote {path}")


def _show_wrote(paths: list[str], json: bool) -> None:
    if json:
        print_json({"wrote": paths})
    else:
        print("\n".join(f"wrote {path}" for path in paths))
