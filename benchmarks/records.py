"""What every script here writes beside its numbers: the command, the machine and the versions they come from."""

import json
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tailwise.machine import hardware

if TYPE_CHECKING:
    from tailwise.experiments.runs import Run  # needs more than torch, which is all there may be where a GPU is

RESULTS = Path(__file__).parents[1] / "results"


def made() -> dict[str, Any]:
    """Of this process. A path stands as it was given: from the folder that holds the runs it is the same anywhere."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    try:
        ours = version("tailwise")
    except PackageNotFoundError:  # the sources are on the path and nothing is installed
        ours = "not installed"
    versions = {"tailwise": ours, "torch": torch.__version__, "numpy": np.__version__}
    return {
        "command": command,
        "hardware": hardware(),
        "versions": {**versions, "python": platform.python_version(), "machine": platform.machine()},
    }


def seeds_of(run: "Run") -> list[dict[str, Any]]:
    """What a run's numbers rest on: each seed, the hash of its subset, the digest of its weights, its versions."""
    return [
        {key: seed.results()[key] for key in ("seed", "subset_hash", "checkpoint", "versions")} for seed in run.seeds
    ]


def write(path: Path, record: dict[str, Any]) -> None:
    """The record, after what it comes from."""
    path.write_text(json.dumps({"made": made(), **record}, indent=1) + "\n")
