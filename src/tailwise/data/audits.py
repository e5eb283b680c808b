"""An audit of data by its name: of a benchmark, or of a user's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailwise import checks
from tailwise.data.auditing import audit
from tailwise.data.benchmarks import LISTED
from tailwise.data.cifar import cifar_lt
from tailwise.data.contract import LongTailedData
from tailwise.data.digits import digits_lt
from tailwise.data.index import ImageIndex, OnBad
from tailwise.data.listed import read_listed
from tailwise.data.own import as_divided, no_more, read_own
from tailwise.data.readable import Progress

IN_MEMORY = ("digits-lt", "cifar10-lt", "cifar100-lt")


def audited(
    name: str,
    data_dir: Path | None,
    table: Mapping[str, Any],
    *,
    on_bad: OnBad = "error",
    compare: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The record of `tailwise.data.audit`, of a benchmark by name, or of a user's own data at a path.

    With passed_over: how many files of each ending a folder holds that are no images of a class; left_out: a line for
    each row or image that is.

    Splits that are stored are used; where none are, those that would be drawn are, and nothing is written.

    Raises:
        InputError: neither a benchmark nor data; an option that is not of it; data that its reader refuses.
    """
    data: LongTailedData | ImageIndex
    if name in (*IN_MEMORY, *LISTED):
        no_more({**table, "on_bad": None if on_bad == "error" else on_bad}, name, "no data of your own")
    if name in IN_MEMORY:
        data = digits_lt(0) if name == "digits-lt" else cifar_lt(int(name[5:-3]), 0, data_dir=data_dir)
    elif name in LISTED:
        data, _ = read_listed(name, data_dir)
    elif Path(name).exists() or name.startswith("hf:"):
        no_more({"data_dir": data_dir}, name, "data of your own")
        data = as_divided(read_own(name, table, on_bad=on_bad), name)
    else:
        raise checks.InputError(
            f"data: expected a path to your own data or one of {', '.join((*LISTED, *IN_MEMORY))}, got '{name}'"
        )
    passed_over, left_out = (data.ignored, data.skipped) if isinstance(data, ImageIndex) else ({}, data.left_out)
    beside = {"passed_over": dict(passed_over), "left_out": list(left_out)}
    return audit(name, _parts(data), data.class_names, compare=compare, progress=progress) | beside


def _parts(data: LongTailedData | ImageIndex) -> dict[str, Any]:
    if isinstance(data, ImageIndex):
        return {part: data.split(part) for part in data.parts}
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return {part: split for part, split in parts.items() if split is not None}
