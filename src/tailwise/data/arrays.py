"""Arrays of numbers from a file."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from tailwise import checks

SUFFIXES = (".npy", ".npz", ".safetensors")


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of numbers in a .npy, .npz or .safetensors file by name, that of a .npy by the file's.

    From .safetensors all fractions come as float32, since NumPy does not know bfloat16.

    Raises:
        InputError: another kind of file, one that is not there or broken.
    """
    if path.suffix not in SUFFIXES:
        raise checks.InputError(f"{path}: expected a .npy, .npz or .safetensors file, got '{path.suffix}'")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            arrays = {name: (t.float() if t.is_floating_point() else t).numpy() for name, t in tensors.items()}
        else:
            # opened here: numpy leaves a broken archive open
            with path.open("rb") as file:
                content = np.load(file, allow_pickle=False)
                arrays = {path.stem: content} if isinstance(content, np.ndarray) else _without_objects(content)
    except Exception as error:  # a broken file meets each reader in its own way
        raise checks.InputError(f"{path}: not a readable file of arrays ({error})") from error
    return {name: array for name, array in arrays.items() if array.dtype.kind in "biuf"}


def _without_objects(archive: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays of objects, such as names, would have to be unpickled: they are not read."""
    found = {}
    for name in archive:
        with contextlib.suppress(ValueError):
            found[name] = archive[name]
    return found
