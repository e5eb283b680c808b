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
        resume = resume or ranks.restarted()
        new = None if resume else stack.enter_context(runs.new_folder(name, out))
        folder = new or ranks.agree(runs.last_folder(name, out))
        if resume and not ranks.restarted():
            runs.check_begun(folder, suite=len(chosen) > 1)
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
