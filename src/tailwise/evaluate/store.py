"""What a model said about one split, kept on disk: every metric and adjustment reads this, never the images."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwise import checks

FORMAT = "tailwise-store/1"
ARRAYS = ("features", "logits", "labels", "ids")


@dataclass(frozen=True)
class Store:
    """Features, logits, labels and sample ids of one split under one checkpoint.

    features: float32 [N, D]. logits: float32 [N, C], the classifier's own; -inf for a class it never predicts;
    [N, 0] of a backbone alone. labels: int64 [N]. ids: [N]. checkpoint: digest of the checkpoint that made them.
    split: "val", "test", ...

    Raises:
        InputError: arrays of different length, a label outside 0..C-1, features or logits that are no numbers.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: NDArray[Any]
    checkpoint: str
    split: str

    def __post_init__(self) -> None:
        shapes = {name: np.shape(getattr(self, name)) for name in ARRAYS}
        if [len(shape) for shape in shapes.values()] != [2, 2, 1, 1]:
            raise checks.InputError(
                f"store: expected features [N, D], logits [N, C], labels [N], ids [N], got {shapes}"
            )
        if not np.issubdtype(self.labels.dtype, np.integer):
            raise checks.InputError(f"labels: expected whole numbers, got {self.labels.dtype}")
        lengths = {name: len(getattr(self, name)) for name in ARRAYS}
        if len(set(lengths.values())) != 1:
            raise checks.InputError(f"store: expected arrays of one length, got {lengths}")
        checks.finite("features", self.features)
        if self.logits.shape[1]:
            checks.labels_in_range("labels", self.labels, self.logits.shape[1])
            checks.predictable("logits", self.logits)

    def __len__(self) -> int:
        return len(self.labels)

    def save(self, folder: Path | str) -> None:
        """Write to `folder`, whole or not at all; an older store there is replaced.

        Raises:
            InputError: the folder cannot be written.
        """
        folder, temporary = Path(folder).resolve(), None  # of a link, the folder that it stands for
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
            # ids of images on disk are strings of any length: as fixed-width text, which a .npy can hold
            arrays = {name: getattr(self, name) for name in ARRAYS} | {"ids": np.array(self.ids.tolist())}
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
            about = {"format": FORMAT, "checkpoint": self.checkpoint, "split": self.split, "samples": len(self)}
            (temporary / "store.json").write_text(json.dumps(about, indent=1) + "\n")
            temporary.chmod(0o755)
            if folder.exists():  # a folder cannot be renamed over another: the old one steps aside and goes last
                os.replace(folder, aside := temporary.with_name(temporary.name + ".old"))
                os.replace(temporary, folder)
                shutil.rmtree(aside, ignore_errors=True)
            else:
                os.replace(temporary, folder)
        except OSError as error:
            raise checks.InputError(f"{folder}: cannot write the store ({error})") from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path | str, checkpoint: str) -> "Store":
        """The store in `folder`, memory-mapped, if it was made by the checkpoint of this digest.

        Raises:
            InputError: no store there, a corrupt one, or one of another checkpoint.
        """
        folder = Path(folder)
        try:
            about: Any = json.loads((folder / "store.json").read_text())
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
        except (OSError, ValueError, EOFError) as error:
            raise checks.InputError(f"{folder}: not a readable store ({error})") from error
        found = about.get("format", "none") if isinstance(about, dict) else "no object"
        if found != FORMAT:
            raise checks.InputError(f"{folder}: expected format {FORMAT}, got {found}")
        if not about.keys() >= {"checkpoint", "split"}:
            raise checks.InputError(f"{folder}: expected a store with checkpoint and split, got {', '.join(about)}")
        if about["checkpoint"] != checkpoint:
            raise checks.InputError(
                f"{folder}: made by checkpoint {str(about['checkpoint'])[:12]}, expected {checkpoint[:12]}"
            )
        return cls(**arrays, checkpoint=checkpoint, split=about["split"])
