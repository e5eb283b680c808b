"""`tailwise detect`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tailwise import checks
from tailwise.cli.options import AlphaText, Device, Json, Seed, strength_of
from tailwise.cli.output import print_json, warnings_as_notes


def detect(
    image: Annotated[Path, Parameter(help="A PNG, JPEG, ... in colour.")],
    /,
    *,
    run: Annotated[Path, Parameter(help="The run folder of a detector, such as runs/digit-scenes-lt/tde.")],
    alpha: AlphaText = None,
    seed: Seed = None,
    out: Annotated[Path | None, Parameter(help="The picture (default: IMAGE-detected.png, in this folder).")] = None,
    min_score: Annotated[float, Parameter(help="Leave out what is less probable.")] = 0.3,
    limit: Annotated[int, Parameter(help="The most that is drawn, the most probable first.")] = 30,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Draw boxes, masks and names of what a detector finds in an image, before and after TDE side by side."""
    strength = strength_of("alpha", alpha, ())
    checks.number("min_score", min_score, at_least=0, below=1)
    checks.whole("limit", limit)

    from tailwise.recipes.detection_predict import found_in
    from tailwise.recipes.detection_runs import open_detection_run
    from tailwise.report.drawing import draw_detections, save_png

    opened = open_detection_run(run).seed(seed)
    path = out or Path(f"{image.stem}-detected.png")
    with warnings_as_notes():
        pixels, panels, names = found_in(opened, image, alpha=strength, device=device)
        picture = draw_detections(pixels.numpy(), panels, names, min_score=min_score, limit=limit)
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
                        if score >= min_score
                    ]
                    for title, found in panels.items()
                },
            }
        )
        return
    for title, found in panels.items():
        shown = found.take((found.scores >= min_score).nonzero()[0])
        listed = [f"{names[label - 1]} {score:.2f}" for label, score in zip(shown.labels, shown.scores, strict=True)]
        print(f"{title}: {', '.join(listed) or 'nothing'}")
    print(f"wrote {path}")
