"""What `train` does for every kind of recipe: the folder, processes, progress and trackers."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from tailwise import checks
from tailwise.cli.output import warnings_as_notes


def train_into_folder(
    train: Callable[..., list[Any]],
    chosen: Sequence[Any],
    name: str,
    *,
    seeds: int | None,
    data_dir: Path | None,
    device: str,
    out: Path | None,
    resume: bool,
    save_every: float,
    track: Sequence[Any],
    json: bool,
) -> tuple[list[Any], Path] | None:
    """The trained runs and their folder, by `train`, a function of `experiments`; None in all processes but the first.

    The other terms are those of the command `train`.
    """
    numbers = range(checks.whole("seeds", chosen[0].seeds if seeds is None else seeds))
    from tailwise import ranks
    from tailwise.experiments import runs
    from tailwise.experiments.watch import Together
    from tailwise.report.progress import watching
    from tailwise.report.trackers import trackers

    tracked = trackers(track)
    with ranks.joined(), warnings_as_notes(), ExitStack() as stack:
        if begun := ranks.recalled():
            folder, resume = Path(begun), True
        elif resume:
            folder = ranks.agree(runs.last_folder(name, out))
            runs.check_begun(folder, suite=len(chosen) > 1)
        else:
            folder = stack.enter_context(runs.new_folder(name, out))
        ranks.remember(str(folder))
        stack.callback(_forget_unused, folder)
        with watching(Console(stderr=True, quiet=json or not ranks.is_main())) as shown:
            trained = train(
                chosen,
                list(numbers),
                folder,
                data_dir=data_dir,
                watch=Together(shown, tracked if ranks.is_main() else {}),
                device=device,
                resume=resume,
                save_every=save_every,
            )
        return (trained, folder) if ranks.is_main() else None


def _forget_unused(folder: Path) -> None:
    """Let torchrun's next attempt look for a folder again: what is empty goes, and its name may be another's then."""
    from tailwise import ranks

    if ranks.is_main() and not (folder.is_dir() and any(folder.iterdir())):
        ranks.remember("")
