"""Second stages: from a copy of the trained model, one stage more; and the adjusted models a run folder keeps."""

import copy
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tailwise import checks
from tailwise.adjust import class_means, fit_crt, fit_lws, fold_linear, fold_tde, mask_unseen, relearn
from tailwise.classifiers import (
    CosineClassifier,
    FoldedClassifier,
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
from tailwise.train import EpochEnd, load_checkpoint, load_state, save_checkpoint


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
    """Build everything a second stage needs, to find what will not do before anything is trained."""
    settings = recipe.second[method]
    model = Recognizer(first.backbone, second_classifier(settings, first, data.counts))
    _attend(settings, model, data)
    build_stages([settings.stage], recipe, model, data, seed=0)
    build_view(settings.stage, model)


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
    image = first_image(data).cpu()
    with torch.no_grad():
        height, width = copy.deepcopy(backbone).eval().forward_map(image).shape[2:]
    return height, width


def folded(classifier: nn.Module, counts: ClassCounts, *, allow_unseen: bool) -> nn.Module:
    """A second stage's classifier with plain tensors only, unseen classes masked; MLP and memory keep their layers.

    Raises:
        InputError: unseen classes beside a memory, which cannot mask them.
    """
    if isinstance(classifier, MetaEmbeddingClassifier):
        if 0 in counts.per_class and not allow_unseen:
            raise checks.InputError(
                "allow_unseen: expected true for a memory with classes it has no image of, got false"
            )
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


def adjusted_path(folder: Path, method: str) -> Path:
    """Where the adjusted model of a method is kept, below a seed's folder."""
    return folder / "adjusted" / f"{method}.safetensors"


def save_adjusted(path: Path, model: Recognizer, about: dict[str, Any], *, own_features: bool) -> str:
    """Write an adjusted classifier, with its backbone where that is its own; returns the digest.

    Raises:
        InputError: the file cannot be written.
    """
    classifier = model.classifier
    if isinstance(classifier, FoldedClassifier):
        kind: dict[str, Any] = {"classifier": "folded", "num_heads": classifier.num_heads, "norm": classifier.norm}
    elif isinstance(classifier, MetaEmbeddingClassifier):
        num_classes, width = classifier.weight.shape
        sizes = {"in_features": width, "num_classes": num_classes, "tau": classifier.tau}
        kind = {"classifier": "meta-embedding", "meta_embedding": sizes}
        if isinstance(model.backbone, ModulatedBackbone):
            kind["map_size"] = list(model.backbone.attention.map_size)
    else:
        assert isinstance(classifier, MlpClassifier)
        num_classes, width = classifier.last.weight.shape
        sizes = {"in_features": classifier.in_features, "num_classes": num_classes, "hidden_features": width}
        kind = {"classifier": "mlp", "mlp": {**sizes, "num_layers": len(classifier.hidden) // 2 + 1}}
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise checks.InputError(f"{path.parent}: cannot make the folder ({error.strerror})") from error
    whole = model.state_dict()
    state = {name: tensor for name, tensor in whole.items() if own_features or name.startswith("classifier.")}
    return save_checkpoint(path, state, {**about, **kind, "own_features": own_features})


@dataclass(frozen=True)
class Kept:
    """An adjusted model read back. about: what was written with it."""

    model: Recognizer
    digest: str
    own_features: bool
    about: dict[str, Any]


def load_adjusted(path: Path, first: Recognizer, digest: str) -> Kept:
    """The adjusted model in a file, on the backbone of the first stage's model where it has none of its own.

    Raises:
        InputError: no such file, a corrupt one, or one made from another checkpoint than `digest`.
    """
    checkpoint = load_checkpoint(path)
    meta, state = checkpoint.meta, checkpoint.state
    if meta.get("of") != digest:
        raise checks.InputError(f"{path}: made from checkpoint {str(meta.get('of'))[:12]}, expected {digest[:12]}")
    own_features = bool(meta["own_features"])
    backbone = copy.deepcopy(first.backbone) if own_features else first.backbone
    if "map_size" in meta:
        backbone = ModulatedBackbone(backbone, tuple(meta["map_size"]))
    if own_features:
        load_state(backbone, state, prefix="backbone.")
    classifier: nn.Module
    if meta["classifier"] == "folded":
        tensors = {name: state.get(f"classifier.{name}") for name in ("weight", "bias", "center")}
        classifier = FoldedClassifier(**tensors, num_heads=meta["num_heads"], norm=meta["norm"])  # type: ignore[arg-type]  # only weight is never None
    else:
        memory = meta["classifier"] == "meta-embedding"
        classifier = MetaEmbeddingClassifier(**meta["meta_embedding"]) if memory else MlpClassifier(**meta["mlp"])
        load_state(classifier, state, prefix="classifier.")
    return Kept(Recognizer(backbone, classifier).eval(), checkpoint.digest, own_features, meta)
