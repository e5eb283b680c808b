"""From settings to models and classifiers. A name becomes an object in the `build_*` files alone."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tailwise import checks, ranks
from tailwise.classifiers import (
    CapsuleClassifier,
    CausalClassifier,
    CosineClassifier,
    LinearClassifier,
    MlpClassifier,
    NormalizedClassifier,
    ScaledClassifier,
)
from tailwise.methods.oltr import MetaEmbeddingClassifier
from tailwise.recipes.build_backbone import build_backbone
from tailwise.recipes.datasets import OnDiskSettings
from tailwise.recipes.detection import DetectionRecipe
from tailwise.recipes.schema import (
    CausalSettings,
    ClassifierSettings,
    LinearSettings,
    MetaEmbeddingSettings,
    MlpSettings,
    Recipe,
    ScaledSettings,
    SecondClassifierSettings,
    TrainedSettings,
)
from tailwise.recipes.stages import ClassBalancedSettings, LdamSettings
from tailwise.recognizer import Recognizer
from tailwise.train import Compute

STARTING_MOMENTUM = 0.9  # of an average that follows the learning rate, until the first step sets it


@contextmanager
def cpu_threads(recipe: Recipe | DetectionRecipe) -> Iterator[None]:
    """Run the block on as many CPU threads as the recipe asks for; their number is part of what a result depends on."""
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.compute.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def build_model(recipe: Recipe, num_classes: int, *, fetch: bool = True) -> Recognizer:
    """Backbone and classifier, freshly initialised from torch's global random state; fetch as in `build_backbone`."""
    size = recipe.data.size if isinstance(recipe.data, OnDiskSettings) else None
    backbone = build_backbone(recipe.backbone, size=size, fetch=fetch)
    width = backbone.num_features
    assert isinstance(width, int)
    classifier = build_classifier(recipe.classifier, width, num_classes)
    loss, bias = recipe.stages[0].loss, getattr(classifier, "bias", None)
    if isinstance(loss, ClassBalancedSettings) and loss.form == "sigmoid" and bias is not None:
        nn.init.constant_(bias, -math.log(max(num_classes - 1, 1)))  # p = 1 / C, as Cui et al. start it
    return Recognizer(backbone, classifier)


def take_over_scale(recipe: Recipe, model: Recognizer) -> None:
    """Give a trained classifier the scale that its loss had, so that its logits are those of the trained posterior.

    LDAM alone has one: its model gives plain cosines, and softmax(scale cosines) is what was trained.
    """
    loss = recipe.stages[-1].loss
    if isinstance(loss, LdamSettings) and isinstance(model.classifier, NormalizedClassifier):
        model.classifier.tau *= loss.scale


def build_classifier(settings: ClassifierSettings, in_features: int, num_classes: int) -> nn.Module:
    """A recipe's classifier, freshly initialised."""
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
