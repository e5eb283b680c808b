"""Second stages: from a copy of the trained model, one stage more."""

import copy
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tailwise import checks
from tailwise.adjust import class_means, fit_crt, fit_lws, fold_linear, fold_tde, mask_unseen, relearn
from tailwise.classifiers import (
    CosineClassifier,
    LinearClassifier,
    MlpClassifier,
    ScaledClassifier,
)
from tailwise.counts import ClassCounts
from tailwise.data import LongTailedData
from tailwise.evaluate import Store
from tailwise.experiments.adjusters import features_of, labels_of
from tailwise.experiments.keep import BestOnVal
from tailwise.experiments.resume import OnEpoch, Place, fit_kept
from tailwise.experiments.stores import Stores, first_image
from tailwise.experiments.watch import Val
from tailwise.methods.oltr import MetaEmbeddingClassifier, ModulatedBackbone
from tailwise.recipes.build import build_compute, build_second_classifier, cpu_threads
from tailwise.recipes.build_stages import build_load, build_stages, build_view
from tailwise.recipes.schema import MetaEmbeddingSettings, Recipe, SecondStageSettings
from tailwise.recognizer import Recognizer
from tailwise.seeds import mixed_seed
from tailwise.train import EpochEnd


def unwatched(end: EpochEnd, val: Val | None) -> None:
    """Nobody is told how training goes."""


@dataclass(frozen=True)
class SecondStage:
    """What a second stage made. own_features: its backbone is no longer the first stage's."""

    model: Recognizer
    epoch: int
    own_features: bool


def train_second_stage(
    recipe: Recipe,
    method: str,
    first: Recognizer,
    stores: Stores,
    data: Callable[[], LongTailedData],
    counts: ClassCounts,
    seed: int,
    *,
    on_epoch: OnEpoch,
    place: Place | None = None,
) -> SecondStage:
    """Train the second stage of a method; the first stage's model is left as it was.

    What is drawn and initialised depends on (seed, method) alone, so that it does not matter whether the stage follows
    at once or years later. Unseen classes are masked in the result.

    Args:
        data: gives the images, if they are needed.
        counts: images per class that the first stage was trained on.
        on_epoch: told of every epoch on images.
        place: where snapshots are kept, if anywhere, and gone on from.

    Raises:
        InputError: a first stage of other classes or width, settings that do not fit, training that diverges.
    """
    settings = recipe.second[method]
    own_seed = mixed_seed(seed, zlib.crc32(method.encode()))
    model = copy.deepcopy(first)
    with cpu_threads(recipe), torch.random.fork_rng(devices=[]):
        torch.manual_seed(own_seed)
        model.classifier = second_classifier(settings, first, counts)
        _check_unseen(model.classifier, counts, allow_unseen=recipe.allow_unseen)
        if isinstance(model.classifier, MetaEmbeddingClassifier):
            train = stores.train()
            means = class_means(features_of(train), labels_of(train), counts.num_classes)
            model.classifier.centroids.data.copy_(means)
        if settings.on == "features":
            epoch = settings.stage.epochs
            model.classifier = _on_features(recipe, settings, model.classifier, first, stores.train(), own_seed)
        else:
            epoch = _on_images(recipe, settings, model, data(), own_seed, on_epoch, place)
            model.classifier = folded(model.classifier, counts, allow_unseen=recipe.allow_unseen)
    model.eval()
    return SecondStage(model, epoch, has_own_features(settings))


def try_second_stage(recipe: Recipe, method: str, first: Recognizer, data: LongTailedData) -> None:
    """Build everything a second stage needs, to find what will not do before anything is trained.

    Raises:
        InputError: as `train_second_stage`.
    """
    settings = recipe.second[method]
    model = Recognizer(first.backbone, second_classifier(settings, first, data.counts))
    _check_unseen(model.classifier, data.counts, allow_unseen=recipe.allow_unseen)
    _attend(settings, model, data)
    build_stages([settings.stage], recipe, model, data, seed=0)
    build_view(settings.stage, model)
    if settings.on == "images":
        build_load([settings.stage], data, seed=0)


def second_classifier(settings: SecondStageSettings, first: Recognizer, counts: ClassCounts) -> nn.Module:
    """The classifier a second stage starts with."""
    width = first.backbone.num_features
    assert isinstance(width, int)
    return build_second_classifier(settings.classifier, first.classifier, width, counts.num_classes)


def epochs_on_images(recipe: Recipe, method: str) -> int:
    """Epochs on images that a method takes; 0 where stored features do."""
    settings = recipe.second.get(method)
    return settings.stage.epochs if settings and settings.on == "images" else 0


def has_own_features(settings: SecondStageSettings) -> bool:
    """Whether a second stage changes what the backbone gives."""
    return settings.on == "images" and (settings.stage.trainable != "classifier" or settings.stage.legacy_bn_drift)


def _on_features(
    recipe: Recipe,
    settings: SecondStageSettings,
    classifier: nn.Module,
    first: Recognizer,
    train: Store,
    seed: int,
) -> nn.Module:
    features, labels, stage = features_of(train), labels_of(train), settings.stage
    counts = ClassCounts.of_labels(train.labels, train.logits.shape[1])
    how: dict[str, Any] = {
        "epochs": stage.epochs,
        "batch_size": stage.batch_size,
        "learning_rate": stage.learning_rate,
        "weight_decay": stage.weight_decay,
        "seed": seed,
    }
    if isinstance(classifier, ScaledClassifier) and isinstance(first.classifier, LinearClassifier):
        return fit_lws(features, labels, first.classifier, allow_unseen=recipe.allow_unseen, **how)
    if isinstance(classifier, LinearClassifier) and classifier.bias is not None:
        return fit_crt(features, labels, counts.num_classes, allow_unseen=recipe.allow_unseen, **how)
    relearn(classifier, features, labels, counts.num_classes, **how)
    return folded(classifier, counts, allow_unseen=recipe.allow_unseen)


def _on_images(
    recipe: Recipe,
    settings: SecondStageSettings,
    model: Recognizer,
    data: LongTailedData,
    seed: int,
    on_epoch: OnEpoch,
    place: Place | None,
) -> int:
    _attend(settings, model, data)
    stages = build_stages([settings.stage], recipe, model, data, seed)
    load = build_load([settings.stage], data, seed)
    compute = build_compute(recipe, data.device)
    return fit_kept(
        build_view(settings.stage, model), stages, load, BestOnVal(model, data, recipe), place, on_epoch, compute
    )


def _attend(settings: SecondStageSettings, model: Recognizer, data: LongTailedData) -> None:
    """Put attention behind the backbone where the stage asks for it; on stored features there is none."""
    classifier = settings.classifier
    if settings.on == "images" and isinstance(classifier, MetaEmbeddingSettings) and classifier.attention:
        model.backbone = ModulatedBackbone(model.backbone, _map_size(model.backbone, data))


def _map_size(backbone: Any, data: LongTailedData) -> tuple[int, int]:
    image, network = first_image(data).cpu(), copy.deepcopy(backbone).eval()
    with torch.no_grad():
        maps, features = network.forward_map(image), network(image)
    means = maps.mean(dim=(2, 3))
    off = 1e-3 * float(features.abs().max())  # how far sums in another order may lie apart
    if means.shape != features.shape or not torch.allclose(means, features, rtol=0, atol=off):
        raise checks.InputError(  # attention would start from features that the first stage never had
            "backbone: expected features that are the mean of its map, or second.oltr.classifier.attention=false, "
            f"got {type(backbone).__name__} with others"
        )
    height, width = maps.shape[2:]
    return height, width


def folded(classifier: nn.Module, counts: ClassCounts, *, allow_unseen: bool) -> nn.Module:
    """A second stage's classifier with plain tensors only, unseen classes masked; MLP and memory keep their layers."""
    if isinstance(classifier, MetaEmbeddingClassifier):
        return classifier
    if isinstance(classifier, LinearClassifier | ScaledClassifier):
        return fold_linear(classifier, counts, allow_unseen=allow_unseen)
    if isinstance(classifier, CosineClassifier):
        return fold_tde(classifier, 0.0, counts=counts, allow_unseen=allow_unseen)
    assert isinstance(classifier, MlpClassifier)
    bias = classifier.last.bias
    assert bias is not None
    bias.data = mask_unseen(bias.data[None], counts, allow_unseen=allow_unseen)[0]
    return classifier


def _check_unseen(classifier: nn.Module, counts: ClassCounts, *, allow_unseen: bool) -> None:
    """Refuse classes without a training image beside a memory, which cannot mask them."""
    if isinstance(classifier, MetaEmbeddingClassifier) and 0 in counts.per_class and not allow_unseen:
        raise checks.InputError("allow_unseen: expected true for a memory with classes it has no image of, got false")
