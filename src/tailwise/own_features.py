"""A plain model that is trained already, as arrays on disk: its last layer, its features and their labels."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailwise import checks
from tailwise.adjust import (
    choose_method,
    cross_fitted_predictions,
    fit_crt,
    fit_lws,
    fit_ncm,
    fold_linear,
    fold_logit_adjustment,
    fold_mean_direction,
    fold_tau_norm,
    learn_norm_power,
    tau_norm_components,
)
from tailwise.classifiers import FoldedClassifier, LinearClassifier
from tailwise.counts import ClassCounts
from tailwise.data.arrays import read_arrays
from tailwise.train import save_checkpoint

FOLDS = 5
WORDS = {"weight": "bias", "kernel": "bias", "W": "b"}  # what a layer's arrays are called
METHODS = ("plain", "la", "tau-norm", "lws", "crt", "ncm", "tde")


@dataclass(frozen=True)
class PlainModel:
    """The last layer as trained, and features [N, D] with labels [N] to adjust it on.

    val: features and labels to choose on, of other images, best unseen by the layer; None is folds of the first.
    counts: images per class that the layer was trained on, whose prior "la" removes; None takes the labels for a fair
        sample of them. A class without any is never predicted by what goes by the layer's own row for it: "la",
        "tau-norm", "lws", "tde".
    """

    classifier: LinearClassifier
    features: Tensor
    labels: Tensor
    val: tuple[Tensor, Tensor] | None = None
    counts: ClassCounts | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classifier.weight)


@dataclass(frozen=True)
class Result:
    """method: the one used. classifier: adjusted. notes: its strength, and why if 0; of "auto", each method's score."""

    method: str
    classifier: FoldedClassifier
    notes: dict[str, Any] = field(default_factory=dict)


def read_plain(
    weights: Path,
    features: Path,
    labels: Path,
    val_features: Path | None = None,
    val_labels: Path | None = None,
    counts: Path | None = None,
) -> PlainModel:
    """Read .npy, .npz or .safetensors files; both of val or neither.

    weights: "weight" [C, D], or the only array whose name ends so, or the only one of two dimensions. Its bias [C], if
    it has one, is named as it is: "fc.weight" and "fc.bias", "kernel" and "bias", "W" and "b".
    A "kernel" is [D, C], as Keras and Flax store it.
    counts: [C], the images of each class that the layer was trained on.

    Raises:
        InputError: a file that cannot be read; arrays that are absent, ambiguous or do not fit one another; no bias of
            that name, but another array [C].
    """
    arrays = read_arrays(weights)
    name, weight = _named(weights, arrays, "weight", dims=2)
    weight = weight.T if name.endswith("kernel") else weight
    bias = _bias(weights, arrays, name, len(weight))
    train = _samples(features, labels, weight.shape)
    if (val_features is None) != (val_labels is None):
        raise checks.InputError("val: expected features and labels of it or neither, got one of them")
    val = _samples(val_features, val_labels, weight.shape) if val_features and val_labels else None
    classifier = LinearClassifier(weight.shape[1], len(weight), bias=bias is not None)
    for given, parameter in ((weight, classifier.weight), (bias, classifier.bias)):
        if given is not None and parameter is not None:
            checks.finite(str(weights), given)
            parameter.data.copy_(torch.from_numpy(given.astype(np.float32)))
    return PlainModel(classifier, *train, val, _counts(counts, len(weight)) if counts else None)


def _counts(path: Path, num_classes: int) -> ClassCounts:
    found = _named(path, read_arrays(path), "counts", dims=1)[1]
    whole = np.isfinite(found) & (found >= 0) & (found == np.floor(found))
    if len(found) != num_classes or not whole.all() or not found.any():
        raise checks.InputError(f"{path}: expected {num_classes} numbers of images, got {found.tolist()}")
    return ClassCounts(tuple(int(count) for count in found))


def _samples(features: Path, labels: Path, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    x = _named(features, read_arrays(features), "features", dims=2)[1]
    y = _named(labels, read_arrays(labels), "labels", dims=1)[1]
    if x.shape[1] != shape[1] or len(x) != len(y) or not len(x):
        raise checks.InputError(
            f"{features}: expected features [N, {shape[1]}] and N labels, got {list(x.shape)} and {list(y.shape)}"
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise checks.InputError(f"{labels}: expected whole numbers, got {y.dtype}")
    checks.finite(str(features), x)
    checks.labels_in_range(str(labels), y, shape[0])
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))


def adjust_plain(model: PlainModel, method: str, *, strength: float | None = None) -> Result:
    """Adjust a plain model's last layer.

    "la" subtracts strength (1) times the log prior of `counts`; "tau-norm" has strength for its power (None: learned);
    "lws", "crt" and "ncm" are trained on the features; "tde" is a heuristic here, see `fold_mean_direction`. "auto" is
    `choose_method` by mean per-class accuracy on val, or on five cross-fitted folds where there is none; the model
    itself, "plain", comes first.

    Raises:
        InputError: an unknown method, a strength that "auto" or the method has no use for.
    """
    checks.choice("method", method, (*METHODS, "auto"))
    if strength is not None and method not in ("la", "tau-norm", "tde"):
        raise checks.InputError(f"strength: expected method la, tau-norm or tde, got {method}")
    if method != "auto":
        return _adjusted(model, method, model.features, model.labels, strength)

    def fit(x: Tensor, y: Tensor) -> torch.nn.Module:
        return torch.nn.ModuleList(_adjusted(model, m, x, y, None).classifier for m in METHODS)

    def predict(classifiers: Any, x: Tensor) -> NDArray[np.int64]:
        return np.stack([classifier(x).argmax(dim=1).numpy() for classifier in classifiers])

    if model.val is None:
        chosen_on, truth = f"{FOLDS} folds of the features, cross-fitted", model.labels.numpy()
        predicted = cross_fitted_predictions(model.features, model.labels, model.num_classes, fit, predict, folds=FOLDS)
    else:
        chosen_on, truth = f"{len(model.val[1])} validation features", model.val[1].numpy()
        predicted = predict(fit(model.features, model.labels), model.val[0])
    best, scores = choose_method(METHODS, predicted, truth)
    result = _adjusted(model, best, model.features, model.labels, None)
    told = {
        name: {"score": chosen.score, "interval": list(chosen.score_interval or ())} for name, chosen in scores.items()
    }
    return Result(best, result.classifier, result.notes | {"chosen_on": chosen_on, "scores": told})


def write_plain(result: Result, path: Path) -> None:
    """Write weight, bias and center of an adjusted classifier as one safetensors file.

    Raises:
        InputError: the file cannot be written.
    """
    about = {"method": result.method, "norm": result.classifier.norm, "notes": result.notes}
    save_checkpoint(path, result.classifier.state_dict(), about)


def _adjusted(model: PlainModel, method: str, x: Tensor, y: Tensor, strength: float | None) -> Result:
    # of all labels, not of a fold's: the layer's rows know the classes that a fold lacks, as those of "plain" do
    linear, counts = model.classifier, model.counts or ClassCounts.of_labels(model.labels.numpy(), model.num_classes)
    if method == "la":
        strength = 1.0 if strength is None else strength
        prior = "of the labels" if model.counts is None else "of the counts"
        folded = fold_logit_adjustment(linear, counts, temperature=strength)
        return Result(method, folded, {"strength": strength, "prior": prior})
    if method == "tau-norm":
        power = strength
        if power is None:
            known = torch.tensor(counts.per_class)[y] > 0  # the others have no logit to learn by
            power = learn_norm_power(tau_norm_components(x[known], linear, counts=counts), y[known])
        return Result(method, fold_tau_norm(linear, power, counts=counts), {"norm_power": power})
    if method == "tde":
        folded, alpha = fold_mean_direction(linear, x, strength, counts=counts)
        why = {} if alpha or strength is not None else {"why": "features lie around 0: no direction to remove"}
        return Result(method, folded, {"alpha": alpha, "heuristic": True, **why})
    if method == "lws":
        return Result(method, fit_lws(x, y, linear, counts=counts))
    if method == "crt":
        return Result(method, fit_crt(x, y, model.num_classes))
    if method == "ncm":
        return Result(method, fit_ncm(x, y, model.num_classes))
    return Result(method, fold_linear(linear))


def _named(path: Path, arrays: dict[str, NDArray[Any]], name: str, *, dims: int) -> tuple[str, NDArray[Any]]:
    """The array of this name, or the only one that ends so, or the only one of this many dimensions."""
    fitting = {key: array for key, array in arrays.items() if array.ndim == dims}
    for found in ([key for key in fitting if key == name], [key for key in fitting if key.endswith(name)], [*fitting]):
        if len(found) == 1:
            return found[0], fitting[found[0]]
    shown = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items()) or "none"
    raise checks.InputError(f"{path}: expected one array '{name}' of {dims} dimensions, got {shown}")


def _bias(path: Path, arrays: dict[str, NDArray[Any]], name: str, num_classes: int) -> NDArray[Any] | None:
    """The array [C] named as the weight is, with the other word of `WORDS` at the end; None where there is none."""
    names = [name.removesuffix(word) + other for word, other in WORDS.items() if name.endswith(word)]
    bias = next((arrays[other] for other in names if other in arrays), None)
    if bias is not None and bias.shape != (num_classes,):
        raise checks.InputError(f"{path}: expected a bias [{num_classes}] or none, got {list(bias.shape)}")
    unknown = [other for other, array in arrays.items() if array.shape == (num_classes,)]
    if bias is None and unknown:
        pairs = ", ".join(f"{word} and {other}" for word, other in WORDS.items())
        raise checks.InputError(
            f"{path}: expected no array [{num_classes}] or a bias named as '{name}' is ({pairs}), "
            f"got {', '.join(unknown)}"
        )
    return bias
