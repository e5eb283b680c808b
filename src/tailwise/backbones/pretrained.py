"""Weights of a backbone from a file: of this library, of torchvision, of timm, of anyone's training loop."""

import _codecs
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tailwise import checks

# what training loops put before the names of a network
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.")
INSIDE = ("state_dict", "model", "model_state_dict", "state_dict_best", "feat_model")  # the last two: both papers' code
# what stands for an array or a number of numpy in a file, under the old name of its module and the new: Tang et al.'s
# code keeps an array beside the weights
ARRAYS: list[Any] = [
    np.ndarray,
    np.dtype,
    _codecs.encode,
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"),
] + [
    (function, f"numpy.{core}.multiarray.{name}")
    for name, function in (("_reconstruct", np.empty(0).__reduce__()[0]), ("scalar", np.float64(0).__reduce__()[0]))
    for core in ("core", "_core")
]
CLASSIFIERS = ("fc.", "classifier.", "head.", "heads.", "last_linear.")


def load_backbone(backbone: nn.Module, path: str | Path) -> None:
    """Take over the weights in a file, in place; those of a classifier are left aside.

    Args:
        backbone: any of this package.
        path: .safetensors, such as the checkpoint.safetensors of a run, or what torch.save wrote of a state dict (or of
            a dict that holds one); nothing in it is run.

    Raises:
        InputError: no such file, a corrupt one, weights of another network; then the backbone is as it was.
    """
    found = {_bare(name): tensor for name, tensor in _read(Path(path)).items()}
    own = {_bare(name): name for name in backbone.state_dict()}
    shapes = {bare: tuple(backbone.state_dict()[name].shape) for bare, name in own.items()}
    missing = [bare for bare in own if bare not in found and not bare.endswith("num_batches_tracked")]
    wrong = [bare for bare in own if bare in found and tuple(found[bare].shape) != shapes[bare]]
    left = [name for name in found if name not in own and not name.startswith(CLASSIFIERS)]
    for what, names in (("is without", missing), ("has another shape of", wrong), ("has, beside the network,", left)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise checks.InputError(f"backbone.pretrained: {path} {what} {names[0]}{more}")
    backbone.load_state_dict({own[bare]: tensor for bare, tensor in found.items() if bare in own}, strict=False)


def _bare(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(ARRAYS):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise checks.InputError(f"backbone.pretrained: {path} is not readable ({error})") from error
    except Exception as error:  # a broken pickle raises almost anything, and so does one that would run code
        said = str(error)
        # torch's own advice is to trust the file
        line = said.partition("WeightsUnpickler error: ")[2] or said
        line = line.strip().partition("\n")[0].partition(" Please use")[0]
        raise checks.InputError(f"backbone.pretrained: {path} is no file of weights ({line})") from error
    for key in INSIDE:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise checks.InputError(f"backbone.pretrained: expected names and tensors in {path}, got something else")
    return content
