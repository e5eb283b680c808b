"""Predictions of a trained run on new images or features, before and after adjustment."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tailwise import checks
from tailwise.data.arrays import read_arrays
from tailwise.data.files import SUFFIXES, decoded, read_file, read_image
from tailwise.data.folders import files_below
from tailwise.data.transforms import CentreView
from tailwise.deployment.deploy import plain_model
from tailwise.experiments.build_data import images_of
from tailwise.experiments.trained import Asked, Trained
from tailwise.recipes.build import find_device
from tailwise.recognizer import Recognizer

PREDICT_BATCH = 100
FEATURES = (".npz", ".safetensors")
Record = dict[str, Any]


@dataclass
class Failures:
    """What could not be read, in order."""

    reasons: list[str] = field(default_factory=list)

    def record(self, path: Path, error: checks.InputError) -> Record:
        """The line that stands in the place of a prediction."""
        reason = str(error).removeprefix(f"{path}: ")
        self.reasons.append(f"{path}: {reason}")
        return {"path": str(path), "error": reason}

    def raise_any(self) -> None:
        """Raises InputError if there was any."""
        if self.reasons:
            more = f" (and {len(self.reasons) - 1} more)" if len(self.reasons) > 1 else ""
            raise checks.InputError(f"paths: not predicted, {self.reasons[0]}{more}")


def predictions(
    trained: Trained,
    method: str,
    asked: Asked,
    paths: Sequence[Path],
    top_k: int,
    device: str,
    failures: Failures,
) -> Iterator[Record]:
    """A record for every image, every row of features, and every file that could not be read, in order.

    {"path", "before", "after"}, the last two a list of {"class", "probability"}, the most probable first; "row" where
    the path is a file of features; {"path", "error"} for what could not be read.

    Args:
        trained: one seed's model, which gives "before".
        method: its id, which gives "after".
        asked: a strength, or what to choose one by.
        paths: images, folders of images, files with `features` [N, D].
        top_k: how many classes to name.
        device: "cpu", "cuda" or "auto".
        failures: told of what could not be read.

    Raises:
        InputError: at once, for a top_k below 1 or above C, or what the method needs and is not there.
    """
    names = trained.about["class_names"]
    if checks.whole("top_k", top_k) > len(names):
        raise checks.InputError(f"top_k: expected at most {len(names)}, the number of classes, got {top_k}")
    pair = Pair(trained.model, plain_model(trained.made(method, asked)), find_device(device), tuple(names), top_k)
    return _records(trained, pair, paths, failures)


@dataclass(frozen=True)
class Pair:
    """The classifier before and after adjustment, on one backbone or two."""

    before: Recognizer
    after: Recognizer
    device: torch.device
    class_names: tuple[str, ...]
    top_k: int

    @torch.no_grad()
    def of_images(self, images: Tensor) -> Iterator[Record]:
        """A record for each image, normalized."""
        before, after, images = self.before.to(self.device), self.after.to(self.device), images.to(self.device)
        features = before.backbone(images)
        same = after.backbone is before.backbone
        return self._named(before.classifier(features), after.classifier(features if same else after.backbone(images)))

    @torch.no_grad()
    def of_features(self, features: Tensor) -> Iterator[Record]:
        """A record for each row."""
        if self.after.backbone is not self.before.backbone:
            raise checks.InputError("features: expected images, as this method's second stage has features of its own")
        checks.feature_shape(features.shape, int(self.before.backbone.num_features))  # type: ignore[arg-type]  # a plain number
        checks.finite("features", features.numpy())
        before, after = self.before.to(self.device), self.after.to(self.device)
        return self._named(before.classifier(features.to(self.device)), after.classifier(features.to(self.device)))

    def _named(self, *logits: Tensor) -> Iterator[Record]:
        tops = [scores.float().softmax(dim=1).topk(self.top_k, dim=1) for scores in logits]
        columns = [zip(top.values.tolist(), top.indices.tolist(), strict=True) for top in tops]
        for sides in zip(*columns, strict=True):
            named = [
                [{"class": self.class_names[c], "probability": p} for p, c in zip(*side, strict=True)] for side in sides
            ]
            yield dict(zip(("before", "after"), named, strict=True))


def _records(trained: Trained, pair: Pair, paths: Sequence[Path], failures: Failures) -> Iterator[Record]:
    shape, normalize, view = images_of(trained.recipe)
    refused = list[str]()
    files = list(_files(paths, refused.append))
    for line in refused:
        where, _, reason = line.partition(": ")
        yield failures.record(Path(where), checks.InputError(reason))
    for start in range(0, len(files), PREDICT_BATCH):
        some = files[start : start + PREDICT_BATCH]
        read = [_read(path, shape, normalize.scale, view) for path in some]
        images = [content for content in read if isinstance(content, Tensor) and content.dtype == torch.uint8]
        predicted = pair.of_images(normalize(torch.stack(images))) if images else iter(())
        for path, content in zip(some, read, strict=True):
            try:
                if isinstance(content, checks.InputError):
                    raise content
                if content.dtype == torch.uint8:
                    yield {"path": str(path), **next(predicted)}
                    continue
                for row, record in enumerate(pair.of_features(content)):
                    yield {"path": str(path), "row": row, **record}
            except checks.InputError as error:
                yield failures.record(path, error)


def _read(path: Path, shape: tuple[int, int, int], scale: float, view: CentreView | None) -> Tensor | checks.InputError:
    """An image as bytes, as the network was tested on, features as float32, or why there is neither."""
    try:
        if path.is_dir():
            raise checks.InputError(f"{path}: expected images in this folder, got none")
        if path.suffix in FEATURES:
            return _features(path)
        return view(decoded(read_file(path), str(path))) if view else read_image(path, shape, scale)
    except checks.InputError as error:
        return error


def _files(paths: Iterable[Path], refused: Callable[[str], None]) -> Iterator[Path]:
    """The paths themselves, and for a folder the images anywhere in it, by name, as training sees them."""
    for path in paths:
        below = files_below(path, "", refused) if path.is_dir() else ()
        inside = [path / name for name in below if Path(name).suffix.lower() in SUFFIXES]
        yield from inside or [path]


def _features(path: Path) -> Tensor:
    arrays = read_arrays(path)
    if "features" not in arrays:
        raise checks.InputError(f"{path}: expected an array of numbers 'features', got {', '.join(arrays) or 'none'}")
    return torch.from_numpy(arrays["features"].astype(np.float32))
