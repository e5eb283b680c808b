"""From settings to objects: the only place where a name becomes data, a module, a sampler or a loss."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from tailwise import checks, ranks
from tailwise.backbones import DigitsNet, ResNet32
from tailwise.classifiers import (
    CapsuleClassifier,
    CausalClassifier,
    CosineClassifier,
    FeatureAverage,
    LinearClassifier,
    MlpClassifier,
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
    random_crop,
    under_protocol,
)
from tailwise.data.augment import Augment
from tailwise.losses import cross_entropy
from tailwise.recipes.schema import (
    CausalSettings,
    ConstantSettings,
    CosineScheduleSettings,
    DataSettings,
    LinearSettings,
    MlpSettings,
    Recipe,
    ScaledSettings,
    SecondClassifierSettings,
    StageSettings,
)
from tailwise.recognizer import Recognizer
from tailwise.sampling import (
    EpochSampler,
    Members,
    class_aware_draw,
    class_draw,
    class_probabilities,
    cyclic_draw,
    instance_draw,
    progressive_probabilities,
    repeat_draw,
    repeat_factors,
    reverse_probabilities,
)
from tailwise.seeds import mixed_seed
from tailwise.train import Compute, Schedule, Stage, constant, cosine, multistep

BACKBONES: dict[str, Callable[[], DigitsNet | ResNet32]] = {
    "digits-net": DigitsNet,
    "resnet32": ResNet32,
    "resnet32-two-branch": partial(ResNet32, two_branch=True),
}
AUGMENTS: dict[str, Augment | None] = {
    "none": None,
    "shift": partial(random_crop, padding=1, flip=False),
    "crop-flip": partial(random_crop, padding=4, flip=True),
}
# Shape of an image and what a network sees of it, known without the data.
IMAGES: dict[str, tuple[tuple[int, int, int], Normalize]] = {
    "digits-lt": ((1, 8, 8), digits.NORMALIZE),
    "cifar10-lt": ((3, 32, 32), cifar.NORMALIZE),
    "cifar100-lt": ((3, 32, 32), cifar.NORMALIZE),
}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross-entropy": cross_entropy}
STARTING_MOMENTUM = 0.9  # of an average that follows the learning rate, until the first step sets it

PREDICT_BATCH = 500
Draw = Callable[[int], NDArray[np.int64]]


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
    if isinstance(settings, ScaledSettings):
        if not isinstance(first, LinearClassifier):
            raise checks.InputError(f"first stage: expected a linear classifier, got {type(first).__name__}")
        return ScaledClassifier(first.weight, first.bias)
    if isinstance(settings, LinearSettings):
        return LinearClassifier(in_features, num_classes, bias=settings.bias)
    if isinstance(settings, MlpSettings):
        return MlpClassifier(
            in_features, num_classes, num_layers=settings.num_layers, hidden_features=settings.hidden_features
        )
    momentum = STARTING_MOMENTUM if settings.momentum == "follow-lr" else settings.momentum
    return CosineClassifier(in_features, num_classes, num_heads=settings.num_heads, tau=settings.tau, momentum=momentum)


def build_stages(
    stages: Sequence[StageSettings], recipe: Recipe, model: Recognizer, data: LongTailedData, seed: int
) -> list[Stage]:
    """These stages on this data; `model` is what an average that follows the learning rate belongs to."""

    def follow(learning_rate: float) -> None:
        average = model.classifier.get_submodule("average")
        assert isinstance(average, FeatureAverage)
        average.momentum = average_momentum(learning_rate)

    follows = getattr(recipe.classifier, "momentum", None) == "follow-lr" and hasattr(model.classifier, "average")
    return [
        Stage(
            name=stage.name,
            epochs=stage.epochs,
            batch_size=stage.batch_size,
            sampler=build_sampler(stage, data, mixed_seed(seed, number)),
            loss=LOSSES[stage.loss],
            optimizer=partial(_sgd, stage),
            learning_rate=build_schedule(stage),
            trainable=trainable_modules(stage, model),
            legacy_bn_drift=stage.legacy_bn_drift,
            accumulate=stage.accumulate,
            drop_last=stage.drop_last,
            clip_norm=stage.clip_norm,
            weight_average=stage.weight_average,
            **({"on_learning_rate": follow} if follows else {}),
        )
        for number, stage in enumerate(stages)
    ]


def trainable_modules(stage: StageSettings, model: Recognizer) -> tuple[str, ...]:
    """The names of the modules that a stage trains."""
    if stage.trainable == "all":
        return ("",)
    blocks = getattr(model.backbone, "last_block", ()) if stage.trainable == "last-block" else ()
    return (*(f"backbone.{block}" for block in blocks), "classifier")


def build_sampler(stage: StageSettings, data: LongTailedData, seed: int) -> EpochSampler:
    """The stage's sampler over the training images, with the counts trained on."""
    counts = data.counts
    members = Members.of(data.train.labels.cpu().numpy(), counts)

    def by_class(probabilities: Callable[[int], NDArray[np.float64]], *, cyclic: bool = False) -> Draw:
        rule = cyclic_draw if cyclic else class_draw
        return lambda epoch: rule(members, probabilities(epoch), seed, epoch)

    def progressive(epoch: int) -> NDArray[np.float64]:
        return progressive_probabilities(counts, epoch, stage.epochs)

    def progressive_authors(epoch: int) -> NDArray[np.float64]:
        return progressive_probabilities(counts, epoch, stage.epochs, reading="authors")

    draws: dict[str, Draw] = {
        "instance": lambda epoch: instance_draw(len(data.train), seed, epoch),
        "square-root": by_class(lambda _: class_probabilities(counts, 0.5)),
        "class-balanced": by_class(lambda _: class_probabilities(counts, 0)),
        "progressive": by_class(progressive),
        "square-root-cyclic": by_class(lambda _: class_probabilities(counts, 0.5), cyclic=True),
        "class-balanced-cyclic": by_class(lambda _: class_probabilities(counts, 0), cyclic=True),
        "progressive-cyclic": by_class(progressive_authors, cyclic=True),
        "class-aware": lambda epoch: class_aware_draw(members, seed, epoch),
        "reverse": by_class(lambda _: reverse_probabilities(counts)),
        "repeat-factor": lambda epoch: repeat_draw(
            members, repeat_factors(counts, stage.repeat_threshold), seed, epoch
        ),
    }
    return EpochSampler(draws[stage.sampler], batch_size=stage.batch_size)


def average_momentum(learning_rate: float) -> float:
    """1 - 0.1 min(50 lr, 1): the authors' schedule, a nearly flat average at the end of training.

    >>> average_momentum(0.2), round(average_momentum(0.0004), 6)
    (0.9, 0.998)
    """
    return 1 - 0.1 * min(50 * learning_rate, 1)


def build_schedule(stage: StageSettings) -> Schedule:
    """The learning rate of a stage."""
    schedule = stage.schedule
    if isinstance(schedule, ConstantSettings):
        return constant(stage.learning_rate)
    if isinstance(schedule, CosineScheduleSettings):
        return cosine(
            stage.learning_rate,
            stage.epochs,
            warmup_epochs=schedule.warmup * stage.epochs,
            warmup_from=schedule.warmup_from,
        )
    return multistep(
        stage.learning_rate,
        schedule.milestones,
        factor=schedule.factor,
        warmup_epochs=schedule.warmup_epochs,
        warmup_from=schedule.warmup_from,
    )


def build_load(
    stages: Sequence[StageSettings], data: LongTailedData, seed: int
) -> Callable[[Stage, int], EpochBatches]:
    """(stage, epoch) -> the batches of that epoch of training."""
    names = [stage.name for stage in stages]

    def load(stage: Stage, epoch: int) -> EpochBatches:
        number = names.index(stage.name)
        return EpochBatches(
            data.train,
            stage.sampler.indices(epoch),
            stage.batch_size,
            data.normalize,
            augment=AUGMENTS[stages[number].augment],
            seed=mixed_seed(seed, number, epoch),
            drop_last=stage.drop_last,
            rank=ranks.rank(),
            num_ranks=ranks.count(),
        )

    return load


def in_order(data: LongTailedData, split: Split, indices: Tensor) -> EpochBatches:
    """These images of a split, unaugmented, in this order."""
    return EpochBatches(split, indices, PREDICT_BATCH, data.normalize)


def _sgd(stage: StageSettings, parameters: Iterable[nn.Parameter]) -> Optimizer:
    tensors = list(parameters)
    return SGD(
        tensors,
        lr=stage.learning_rate,
        momentum=stage.momentum,
        weight_decay=stage.weight_decay,
        nesterov=stage.nesterov,
        fused=all(tensor.is_cuda for tensor in tensors),  # with a loss scaler, the other kinds wait for the device
    )
