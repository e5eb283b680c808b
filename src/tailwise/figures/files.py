"""Where a figure goes: OUT.png and OUT.svg, or one of them."""

from collections.abc import Sequence
from pathlib import Path

from tailwise import checks
from tailwise.experiments.files import write_bytes
from tailwise.report.figures import FigureData, rendered

FORMATS = ("png", "svg")


def write_figure(data: FigureData, out: Path) -> list[Path]:
    """Write OUT.png and OUT.svg, or the one that `out` ends in; returns the files.

    Both are drawn before the first is written, and each is written whole or not at all.

    Raises:
        InputError: no matplotlib, another ending, a file that cannot be written.
    """
    kind = check_ending(out)
    files = rendered(data, [kind] if kind else FORMATS)
    paths = {name: out if kind else out.with_name(f"{out.name}.{name}") for name in files}
    for name, content in files.items():
        write_bytes(paths[name], content)
    return list(paths.values())


def default_place(name: str, folders: Sequence[Path]) -> Path:
    """figures/NAME in the first folder, or NAME where there is none.

    Raises:
        InputError: the folder cannot be made.
    """
    if not folders:
        return Path(name)
    place = folders[0] / "figures"
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise checks.InputError(f"{place}: cannot make the folder ({error.strerror})") from error
    return place / name


def check_ending(out: Path) -> str | None:
    """png, svg, or None for a name without an ending.

    Raises:
        InputError: another ending, or no name at all.

    >>> check_ending(Path("a.svg")), check_ending(Path("plots/a"))
    ('svg', None)
    """
    kind = out.suffix.removeprefix(".").lower()
    if kind and kind not in FORMATS:
        raise checks.InputError(f"out: expected a name that ends in .png or .svg, or has no ending for both, got {out}")
    if not out.name:
        raise checks.InputError(f"out: expected a file's name, got {out}")
    return kind or None
