"""Data as the features that a frozen backbone gives: computed once, kept beside the images."""

import hashlib
import importlib.metadata
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tailwise import checks, ranks
from tailwise.data import DiskSplit, LongTailedData, Split, ids_hash
from tailwise.data.decoded import DecodedSource
from tailwise.data.stamps import kept_place
from tailwise.evaluate import NoClassifier, Store
from tailwise.experiments.stores import predict_split
from tailwise.recipes.build_backbone import build_backbone
from tailwise.recipes.schema import BackboneSettings
from tailwise.recognizer import Recognizer

PARTS = ("train", "val", "test")


def as_features(
    data: LongTailedData, backbone: BackboneSettings, kept: Path | None, *, size: int | None, device: torch.device
) -> LongTailedData:
    """The data with features in the place of images; what has been computed before is read.

    Args:
        data: with images.
        backbone: a pretrained one.
        kept: the folder that stores of features are kept in; None keeps none.
        size: of the images, H = W, if the backbone is to know it.
        device: where to compute.

    Raises:
        InputError: a backbone that cannot be had, an image that cannot be read, a folder that cannot be written.
    """
    stores = features(data, backbone, kept, size=size, device=device)
    splits = {
        # labels are the data's own: those in a store may be older
        part: Split(torch.from_numpy(np.array(store.features)), getattr(data, part).labels, np.array(store.ids))
        for part, store in stores.items()
    }
    return replace(
        data, train=splits["train"], val=splits.get("val"), test=splits["test"], normalize=_as_it_is, view=None
    )


def features(
    data: LongTailedData, backbone: BackboneSettings, kept: Path | None, *, size: int | None, device: torch.device
) -> dict[str, Store]:
    """A store of each split, without logits; arguments and errors as in `as_features`."""
    splits = {part: getattr(data, part) for part in PARTS if getattr(data, part) is not None}
    weights = _weights(backbone)
    make = partial(build_backbone, backbone.model_copy(update={"frozen": False}), size=size)
    model: Recognizer | None = None
    stores: dict[str, Store] = {}
    for part, split in splits.items():
        seen = (repr(data.view), repr(data.normalize), repr(_decoded_at(split)), ids_hash(split.ids))
        key = "|".join((weights, *seen))
        digest = hashlib.sha256(key.encode()).hexdigest()
        folder = None if kept is None else _place(kept, f"features-{digest[:16]}", split)
        there = ranks.agree(folder is not None and folder.is_dir())
        if not there:
            model = model or Recognizer(make(), NoClassifier())
            made = predict_split(model, data.to(device), part, digest)
            if folder is None:
                stores[part] = made
                continue
            if ranks.is_main():
                made.save(folder)
            ranks.wait()
        assert folder is not None
        stores[part] = Store.load(folder, digest)
    return stores


def _weights(backbone: BackboneSettings) -> str:
    """What tells these weights from others: the library's by its name for them, a file's by what is in it."""
    if isinstance(backbone.pretrained, str):
        try:
            with open(backbone.pretrained, "rb") as file:
                return f"{backbone.name}|{hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError as error:
            raise checks.InputError(
                f"backbone.pretrained: {backbone.pretrained} is not readable ({error.strerror})"
            ) from error
    libraries = []
    for library in ("torchvision", "timm", "transformers"):
        try:
            libraries.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{backbone.name}|{', '.join(libraries)}"


def _place(kept: Path, name: str, split: Split | DiskSplit) -> Path:
    return kept_place(kept, name, split.source, split.rows) if isinstance(split, DiskSplit) else kept / name


def _decoded_at(split: Split | DiskSplit) -> int | None:
    """The size that images were decoded to, which is what a view is of; None where they are read as they are."""
    source = split.source if isinstance(split, DiskSplit) else None
    return source.size if isinstance(source, DecodedSource) else None


def _as_it_is(features: Tensor) -> Tensor:
    return features
