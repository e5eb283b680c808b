"""From settings to data, models and classifiers. Here and in `build_stages` alone a name becomes an object."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tailwise import checks, ranks
from tailwise.backbones import DigitsNet, ResNet32
from tailwise.classifiers import (
    CapsuleClassifier,
    CausalClassifier,
    CosineClassifier,
    LinearClassifier,
    MlpClassifier,
    NormalizedClassifier,
    ScaledClassifier,
)
from tailwise.data import (
    EpochBatches,
    LongTailedData,
    Normalize,
    Split,
    cifar,
    cifar_lt,
    digits,
    digits_lt,
    under_protocol,
)
from tailwise.methods.oltr import MetaEmbeddingClassifier
from tailwise.recipes.schema import (
    CausalSettings,
    DataSettings,
    LinearSettings,
    MetaEmbeddingSettings,
    MlpSettings,
    Recipe,
    ScaledSettings,
    SecondClassifierSettings,
    TrainedSettings,
)
from tailwise.recipes.stages import LdamSettings
from tailwise.recognizer import Recognizer
from tailwise.train import Compute

BACKBONES: dict[str, Callable[[], DigitsNet | ResNet32]] = {
    "digits-net": DigitsNet,
    "digits-net-two-branch": partial(DigitsNet, two_branch=True),
    "resnet32": ResNet32,
    "resnet32-two-branch": partial(ResNet32, two_branch=True),
}
# Shape of an image and what a network sees of it, known without the data.
IMAGES: dict[str, tuple[tuple[int, int, int], Normalize]] = {
    "digits-lt": ((1, 8, 8), digits.NORMALIZE),
    "cifar10-lt": ((3, 32, 32), cifar.NORMALIZE),
    "cifar100-lt": ((3, 32, 32), cifar.NORMALIZE),
}
STARTING_MOMENTUM = 0.9  # of an average that follows the learning rate, until the first step sets it

PREDICT_BATCH = 500


@contextmanager
def cpu_threads(recipe: Recipe) -> Iterator[None]:
    """Run the block on as many CPU threads as the recipe asks for; their number is part of what a result depends on."""
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.compute.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build_data(recipe: Recipe, seed: int, data_dir: Path | None) -> LongTailedData:
    """The recipe's data as its protocol uses it."""
    settings: DataSettings = recipe.data
    subset_seed = subset_seed_of(recipe, seed)
    if settings.name == "digits-lt":
        data = digits_lt(subset_seed, imbalance_ratio=settings.imbalance_ratio, profile=settings.profile)
    else:
        data = cifar_lt(
            {"cifar10-lt": 10, "cifar100-lt": 100}[settings.name],
            subset_seed,
            data_dir=data_dir,
            imbalance_ratio=settings.imbalance_ratio,
            profile=settings.profile,
        )
    return under_protocol(data, recipe.protocol, subset_seed)


def find_device(name: str) -> torch.device:
    """The device of this name, "cpu" or "cuda"; "auto" is a GPU where there is one.

    Under torchrun each process has one of its own.

    Raises:
        InputError: another name, or no GPU here.
    """
    checks.choice("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise checks.InputError("device: expected a GPU that torch can use, got none")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", ranks.local_rank())


def build_compute(recipe: Recipe, device: torch.device) -> Compute:
    """How the recipe has its arithmetic done, on this device."""
    how = recipe.compute
    return Compute(device, how.precision, how.channels_last, how.compile, how.sync_batchnorm)


def subset_seed_of(recipe: Recipe, seed: int) -> int:
    """Which subset a training seed sees: the recipe's, or its own."""
    return seed if recipe.data.subset_seed is None else recipe.data.subset_seed


def build_model(recipe: Recipe, num_classes: int) -> Recognizer:
    """Backbone and classifier, freshly initialised from torch's global random state."""
    backbone = BACKBONES[recipe.backbone.name]()
    return Recognizer(backbone, build_classifier(recipe, backbone.num_features, num_classes))


def take_over_scale(recipe: Recipe, model: Recognizer) -> None:
    """Give a trained classifier the scale that its loss had, so that its logits are those of the trained posterior.

    LDAM alone has one: its model gives plain cosines, and softmax(scale cosines) is what was trained.
    """
    loss = recipe.stages[-1].loss
    if isinstance(loss, LdamSettings) and isinstance(model.classifier, NormalizedClassifier):
        model.classifier.tau *= loss.scale


def build_classifier(recipe: Recipe, in_features: int, num_classes: int) -> nn.Module:
    """The recipe's classifier, freshly initialised."""
    settings = recipe.classifier
    if isinstance(settings, LinearSettings):
        return LinearClassifier(in_features, num_classes, bias=settings.bias)
    momentum = STARTING_MOMENTUM if settings.momentum == "follow-lr" else settings.momentum
    if isinstance(settings, CausalSettings):
        return CausalClassifier(
            in_features,
            num_classes,
            num_heads=settings.num_heads,
            tau=settings.tau,
            gamma=settings.gamma,
            momentum=momentum,
        )
    kind = {"cosine": CosineClassifier, "capsule": CapsuleClassifier}[settings.name]
    return kind(in_features, num_classes, num_heads=settings.num_heads, tau=settings.tau, momentum=momentum)


def build_second_classifier(
    settings: SecondClassifierSettings, first: nn.Module, in_features: int, num_classes: int
) -> nn.Module:
    """The classifier of a second stage, freshly initialised, or around the first stage's where it keeps that.

    Raises:
        InputError: a first stage of other classes or width, or of another kind where its weights are kept.
    """
    found = tuple(first.weight.shape) if isinstance(first.weight, Tensor) else ()
    if found != (num_classes, in_features):
        raise checks.InputError(
            f"first stage: expected a classifier of {num_classes} classes and {in_features} features, "
            f"got one of {' classes and '.join(map(str, found))} features"
        )
    if isinstance(settings, ScaledSettings | TrainedSettings):
        if not isinstance(first, LinearClassifier):
            raise checks.InputError(f"first stage: expected a linear classifier, got {type(first).__name__}")
        scaled = isinstance(settings, ScaledSettings)
        return ScaledClassifier(first.weight, first.bias) if scaled else copy.deepcopy(first)
    if isinstance(settings, MetaEmbeddingSettings):
        memory = MetaEmbeddingClassifier(in_features, num_classes, tau=settings.tau)
        if isinstance(first, LinearClassifier) and first.bias is not None:
            memory.hallucinator.load_state_dict(first.state_dict())  # as the authors start it
        return memory
    if isinstance(settings, LinearSettings):
        return LinearClassifier(in_features, num_classes, bias=settings.bias)
    if isinstance(settings, MlpSettings):
        return MlpClassifier(
            in_features, num_classes, num_layers=settings.num_layers, hidden_features=settings.hidden_features
        )
    momentum = STARTING_MOMENTUM if settings.momentum == "follow-lr" else settings.momentum
    return CosineClassifier(in_features, num_classes, num_heads=settings.num_heads, tau=settings.tau, momentum=momentum)


def in_order(data: LongTailedData, split: Split, indices: Tensor) -> EpochBatches:
    """These images of a split, unaugmented, in this order."""
    return EpochBatches(split, indices, PREDICT_BATCH, data.normalize)
