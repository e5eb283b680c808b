"""The stores of one checkpoint: read from the run folder, or made from the images when first asked for."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tailwise import checks, ranks
from tailwise.data import DiskSplit, EpochBatches, LongTailedData, Split
from tailwise.evaluate import Store, predict
from tailwise.evaluate.store import ARRAYS
from tailwise.recipes.build import cpu_threads
from tailwise.recipes.schema import Recipe
from tailwise.recognizer import Recognizer
from tailwise.train import on_device

PREDICT_BATCH = {Split: 500, DiskSplit: 100}  # photographs are larger


class Stores:
    """What one model says of train, val and test.

    folder: where they are kept. digest: of the model's checkpoint. data: gives the images, asked only when a store is
    not there. must_keep: whether one that cannot be written is an error; a warning, if not.
    """

    def __init__(
        self,
        folder: Path,
        digest: str,
        recipe: Recipe,
        model: Recognizer,
        data: Callable[[], LongTailedData],
        *,
        must_keep: bool,
    ) -> None:
        self.folder, self.digest, self.recipe, self.model, self.data = folder, digest, recipe, model, data
        self.must_keep = must_keep
        self.read: dict[str, Store] = {}

    def train(self) -> Store:
        """The training images, unaugmented."""
        return self._get("train")

    def val(self) -> Store | None:
        """None under protocol paper; the test images under legacy."""
        return None if self.recipe.protocol == "paper" else self._get("val")

    def test(self) -> Store:
        """The test images."""
        return self._get("test")

    def _get(self, split: str) -> Store:
        if split not in self.read:
            self.read[split] = self._load_or_make(split)
        return self.read[split]

    def _load_or_make(self, split: str) -> Store:
        lost = ranks.agree(self._lost(split))  # by the main process: another may come before it has written
        if lost is None:
            return Store.load(self.folder / split, self.digest)
        try:
            data = self.data()
        except checks.InputError as error:
            raise checks.InputError(f"{lost}; and without its data it cannot be made again: {error}") from error
        with cpu_threads(self.recipe):
            store = predict_split(self.model, data, split, self.digest)
        if ranks.is_main():
            try:
                store.save(self.folder / split)
            except checks.InputError as error:
                if self.must_keep:
                    raise
                warnings.warn(f"{error}; it is not kept", stacklevel=1)  # in tailwise: a note of the command
        ranks.wait()
        return store

    def _lost(self, split: str) -> str | None:
        """Why there is no such store on disk; None if there is."""
        try:
            Store.load(self.folder / split, self.digest)
        except checks.InputError as error:
            return str(error)
        return None


def predict_split(model: Recognizer, data: LongTailedData, split: str, digest: str) -> Store:
    """Features and logits of a split, unaugmented; each process predicts a part, all have the whole."""
    part = getattr(data, split)
    # under protocol legacy val is test, and what is chosen on it must say so
    name = "test" if part is data.test else split
    parts = torch.tensor_split(torch.arange(len(part)), min(ranks.count(), len(part)))
    mine = parts[min(ranks.rank(), len(parts) - 1)]
    with on_device(model, data.device):
        store = predict(model, in_order(data, part, mine), ids=part.ids[mine.numpy()], checkpoint=digest, split=name)
    if ranks.count() == 1:
        return store
    stores = ranks.gathered(store)[: len(parts)]
    arrays: dict[str, Any] = {name: np.concatenate([getattr(store, name) for store in stores]) for name in ARRAYS}
    return replace(store, **arrays)


def in_order(data: LongTailedData, split: Split | DiskSplit, indices: Tensor) -> EpochBatches:
    """These images of a split, unaugmented, in this order."""
    view = data.view if isinstance(split, DiskSplit) else None
    return EpochBatches(split, indices, PREDICT_BATCH[type(split)], data.normalize, augment=view)


def first_image(data: LongTailedData) -> Tensor:
    """The first training image as a network sees it, [1, channels, H, W]."""
    images, _ = next(iter(in_order(data, data.train, torch.arange(1))))
    return images
