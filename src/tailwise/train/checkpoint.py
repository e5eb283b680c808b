"""Checkpoints: safetensors with a JSON header. Loading one never runs code."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tailwise import checks

FORMAT = "tailwise-checkpoint/1"


@dataclass(frozen=True)
class Checkpoint:
    """state: tensors by name. meta: JSON values (counts, recipe, seeds, versions). digest: SHA-256 of both."""

    state: dict[str, Tensor]
    meta: dict[str, Any]
    digest: str


def save_checkpoint(path: str | Path, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Write a checkpoint atomically and return its digest, the key of everything computed from it.

    The file is one safetensors file whose header holds `meta` as JSON and the digest of meta and tensors. It is
    written beside its place, flushed to disk and renamed: `path` is the old file or the new one, never a part.

    Args:
        path: the file.
        state: a `state_dict`.
        meta: JSON values.

    Raises:
        InputError: the file cannot be written; what stood there before still stands.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    header = json.dumps(dict(meta), sort_keys=True)
    digest = _digest(tensors, header)
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        save_file(tensors, temporary, metadata={"format": FORMAT, "digest": digest, "meta": header})
        with temporary.open("rb+") as file:  # open for reading alone, Windows would not flush it
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _flush_folder(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        raise checks.InputError(f"{path}: cannot write the checkpoint ({error})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return digest


def _flush_folder(folder: Path) -> None:
    # the new name itself must outlive a loss of power; not every system lets a folder be opened
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint and verify its digest.

    Raises:
        InputError: no such file, not a checkpoint, or one whose content does not match its digest.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        state = load_file(path)
    except FileNotFoundError as error:
        raise checks.InputError(f"{path}: no such checkpoint") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise checks.InputError(f"{path}: not a readable checkpoint ({error})") from error
    if header.get("format") != FORMAT:
        raise checks.InputError(f"{path}: expected format {FORMAT}, got {header.get('format', 'none')}")
    written, meta = header.get("digest", "none"), header.get("meta", "")
    digest = _digest(state, meta)
    if digest != written:
        raise checks.InputError(f"{path}: corrupt, its digest is {digest[:12]} where {written[:12]} was written")
    return Checkpoint(state, json.loads(meta), digest)


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, prefix: str = "") -> None:
    """Load the entries of `state` below `prefix` into `module`, all or none.

    Raises:
        InputError: names or shapes that do not fit, each named.
    """
    wanted = module.state_dict()
    given = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} is unknown" for name in given if name not in wanted]
    problems += [
        f"{name} is {list(given[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if problems:
        raise checks.InputError(f"checkpoint does not fit the model: {'; '.join(problems)}")
    module.load_state_dict(given)


def _digest(tensors: Mapping[str, Tensor], header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
