"""From settings to a training phase: its sampler, loss, optimiser, schedule, and the batches it is fed."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from tailwise import checks, ranks
from tailwise.backbones import DigitsNet, FrozenNet, ResNet32
from tailwise.classifiers import FeatureAverage
from tailwise.counts import ClassCounts
from tailwise.data import DiskSplit, EpochBatches, LongTailedData, random_crop
from tailwise.data.augment import Augment
from tailwise.data.mix import CutMix, MixedBatches, Mixup, MixupAndCutMix, Remix, Rule, pair, permuted
from tailwise.data.reading import Transform
from tailwise.data.transforms import CentreView, RandomView
from tailwise.losses import (
    LDAM,
    BalancedSoftmax,
    ClassBalanced,
    ClassBalancedSigmoid,
    CrossEntropy,
    CrossEntropyAndMetric,
    DeferredReweighting,
    Equalization,
    Focal,
    LiftedStructured,
    LogitAdjustedCrossEntropy,
    RangeLoss,
    Seesaw,
    VSLoss,
)
from tailwise.losses.plain import Reduction
from tailwise.methods import BilateralLoss, BilateralView, GlmcLoss, GlmcView
from tailwise.methods.oltr import MetaEmbeddingClassifier, OltrLoss, OltrView
from tailwise.recipes.schema import Recipe
from tailwise.recipes.stages import (
    BilateralSettings,
    ClassBalancedSettings,
    ConstantSettings,
    CosineScheduleSettings,
    CrossEntropySettings,
    CutMixSettings,
    FocalSettings,
    GlmcSettings,
    LossSettings,
    MemorySettings,
    MetricSettings,
    MixupSettings,
    RemixSettings,
    SeesawSettings,
    StageSettings,
)
from tailwise.recognizer import LogitsAndFeatures, Recognizer
from tailwise.sampling import (
    EpochSampler,
    Members,
    class_aware_draw,
    class_draw,
    class_probabilities,
    cyclic_draw,
    instance_draw,
    p_by_k_draw,
    progressive_probabilities,
    repeat_draw,
    repeat_factors,
    reverse_probabilities,
)
from tailwise.seeds import mixed_seed
from tailwise.train import Batches, Schedule, Stage, constant, cosine, keep_max_norm, multistep

AUGMENTS: dict[str, Augment | None] = {
    "none": None,
    "shift": partial(random_crop, padding=1, flip=False),
    "crop-flip": partial(random_crop, padding=4, flip=True),
}
# Of images on disk, by what their network's input measures; None is the data's own view.
TRANSFORMS: dict[str, Callable[[int], Transform] | None] = {
    "none": None,
    "random-resized-crop": RandomView,
    "random-resized-crop-jitter": partial(RandomView, jitter=0.4),
    "rand-augment": partial(RandomView, rand_augment=2),
}
Draw = Callable[[int], NDArray[np.int64]]


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
            loss=build_loss(stage, data.counts),
            optimizer=partial(build_optimizer, stage, model.classifier),
            learning_rate=build_schedule(stage),
            trainable=trainable_modules(stage, model),
            legacy_bn_drift=stage.legacy_bn_drift,
            accumulate=stage.accumulate,
            drop_last=stage.drop_last,
            clip_norm=stage.clip_norm,
            sharpness=stage.sharpness,
            weight_average=stage.weight_average,
            **({"on_learning_rate": follow} if follows else {}),
        )
        for number, stage in enumerate(stages)
    ]


def build_view(stage: StageSettings, model: Recognizer) -> nn.Module:
    """What the stage trains: the model as its loss needs to see it, made of the same backbone and classifier.

    Raises:
        InputError: a backbone or a classifier that the method cannot train.
    """
    step, backbone, classifier = stage.step, model.backbone, model.classifier
    if isinstance(backbone, FrozenNet) and isinstance(step, CutMixSettings | BilateralSettings | GlmcSettings):
        raise checks.InputError(f"backbone.frozen: expected false for {step.kind}, which needs images, got true")
    if isinstance(step, BilateralSettings):
        if not isinstance(backbone, DigitsNet | ResNet32):
            raise checks.InputError(f"step: bilateral trains a backbone with branches, got {type(backbone).__name__}")
        return BilateralView(backbone, classifier)
    if isinstance(step, GlmcSettings):
        width = backbone.num_features
        assert isinstance(width, int)
        conventional = copy.deepcopy(classifier)
        return GlmcView(backbone, classifier, conventional, num_features=width, hidden_features=step.hidden_features)
    if isinstance(step, MetricSettings):
        return LogitsAndFeatures(backbone, classifier)
    if isinstance(step, MemorySettings):
        if not isinstance(classifier, MetaEmbeddingClassifier):
            raise checks.InputError(f"step: memory is of a second stage with one, got a {type(classifier).__name__}")
        return OltrView(backbone, classifier)
    return model


def build_loss(stage: StageSettings, counts: ClassCounts) -> nn.Module:
    """The stage's loss of what its view gives, for the images per class that it trains on."""
    loss, step = _loss_of_logits(stage, counts), stage.step
    if isinstance(step, BilateralSettings):
        return BilateralLoss(loss)
    if isinstance(step, GlmcSettings):
        return GlmcLoss(counts, power=step.power, gamma=step.gamma)
    if isinstance(step, MetricSettings):
        metric = {"range": RangeLoss, "lifted-structured": LiftedStructured}[step.loss]
        return CrossEntropyAndMetric(metric(), step.weight, loss)
    if isinstance(step, MemorySettings):
        return OltrLoss(weight=step.weight, margin=step.margin, repulsion=step.repulsion)
    return loss


def _loss_of_logits(stage: StageSettings, counts: ClassCounts) -> nn.Module:
    if stage.reweight_after is None:
        return _loss_of(stage.loss, counts, "mean")
    per_sample = _loss_of(stage.loss, counts, "none")
    return DeferredReweighting(per_sample, counts, beta=stage.reweight_beta, after=stage.reweight_after)


def _loss_of(settings: LossSettings, counts: ClassCounts, reduction: Reduction) -> nn.Module:
    own = {key: value for key, value in settings.model_dump().items() if key not in ("kind", "form")}
    if isinstance(settings, CrossEntropySettings):
        return CrossEntropy(reduction=reduction)
    if isinstance(settings, FocalSettings):
        return Focal(**own, reduction=reduction)
    if isinstance(settings, SeesawSettings):
        return Seesaw(counts.num_classes, **own, reduction=reduction)
    if isinstance(settings, ClassBalancedSettings) and settings.form == "sigmoid":
        return ClassBalancedSigmoid(counts, **own, reduction=reduction)
    kinds: dict[str, Callable[..., nn.Module]] = {
        "class-balanced": ClassBalanced,
        "vector-scaling": VSLoss,
        "equalization": Equalization,
        "ldam": LDAM,
        "balanced-softmax": BalancedSoftmax,
        "logit-adjusted": LogitAdjustedCrossEntropy,
    }
    return kinds[settings.kind](counts, **own, reduction=reduction)


def trainable_modules(stage: StageSettings, model: Recognizer) -> tuple[str, ...]:
    """The names of the modules that a stage trains; of a model on a frozen backbone always the classifier.

    Raises:
        InputError: a part that the backbone does not name.
    """
    if isinstance(model.backbone, FrozenNet):
        return ("classifier",)
    if stage.trainable == "all":
        return ("",)
    if stage.trainable == "classifier":
        return ("classifier",)
    parts = {"last-block": "last_block", "last-bottleneck": "last_bottleneck"}
    blocks: Sequence[str] | None = getattr(model.backbone, parts[stage.trainable], None)
    if blocks is None:
        known = ["all", *(name for name, part in parts.items() if hasattr(model.backbone, part)), "classifier"]
        raise checks.InputError(
            f"trainable: expected one of {', '.join(known)} for a {type(model.backbone).__name__}, "
            f"got {stage.trainable}"
        )
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
        "p-by-k": lambda epoch: p_by_k_draw(
            members,
            seed,
            epoch,
            classes_per_batch=stage.batch_size // stage.images_per_class,
            images_per_class=stage.images_per_class,
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


def build_load(stages: Sequence[StageSettings], data: LongTailedData, seed: int) -> Callable[[Stage, int], Batches]:
    """(stage, epoch) -> the batches of that epoch of training.

    Raises:
        InputError: an augmentation that is not of such images.
    """
    names = [stage.name for stage in stages]
    augments = [build_augment(stage, data) for stage in stages]

    def load(stage: Stage, epoch: int) -> Batches:
        number = names.index(stage.name)
        settings, own_seed = stages[number], mixed_seed(seed, number, epoch)
        batches = EpochBatches(
            data.train,
            stage.sampler.indices(epoch),
            stage.batch_size,
            data.normalize,
            augment=augments[number],
            seed=own_seed,
            drop_last=stage.drop_last,
            rank=ranks.rank(),
            num_ranks=ranks.count(),
        )
        rule = build_rule(settings, data.counts)
        if rule is None:
            return batches
        second = build_second_sampler(settings, data, mixed_seed(seed, number, 2))
        if second is None:
            return MixedBatches(batches, permuted(batches), rule, seed=own_seed)
        others = replace(batches, indices=second.indices(epoch), seed=mixed_seed(own_seed, 2))
        return MixedBatches(batches, others, rule, seed=own_seed)

    return load


def has_features(data: LongTailedData) -> bool:
    """Whether it is features of a frozen backbone that are trained on."""
    return not isinstance(data.train, DiskSplit) and data.train.images.dim() == 2


def build_augment(stage: StageSettings, data: LongTailedData) -> Augment | Transform | None:
    """What is done to training images; features of a frozen backbone are left as they are.

    Raises:
        InputError: an augmentation of images in memory for images on disk, or the other way round.
    """
    on_disk = isinstance(data.train, DiskSplit)
    if has_features(data):
        return None
    known = TRANSFORMS if on_disk else AUGMENTS
    if stage.augment not in known:
        where = "on disk" if on_disk else "in memory"
        raise checks.InputError(f"augment: expected one of images {where}, {', '.join(known)}, got {stage.augment}")
    if not on_disk:
        return AUGMENTS[stage.augment]
    transform = TRANSFORMS[stage.augment]
    assert isinstance(data.view, CentreView)
    return data.view if transform is None else transform(data.view.size)


def build_rule(stage: StageSettings, counts: ClassCounts) -> Rule | None:
    """How a batch is joined with a second one; None where it stands alone."""
    step = stage.step
    if isinstance(step, MixupSettings):
        return Mixup(counts.num_classes, step.beta)
    if isinstance(step, CutMixSettings):
        return CutMix(counts.num_classes, step.beta)
    if isinstance(step, RemixSettings):
        return Remix(counts, step.beta, step.kappa, step.tau)
    if isinstance(step, BilateralSettings):
        return pair
    return MixupAndCutMix(counts.num_classes) if isinstance(step, GlmcSettings) else None


def build_second_sampler(stage: StageSettings, data: LongTailedData, seed: int) -> EpochSampler | None:
    """What draws the second batch; None where that is the first one in another order."""
    if isinstance(stage.step, BilateralSettings):
        probabilities = reverse_probabilities(data.counts)
    elif isinstance(stage.step, GlmcSettings):
        probabilities = class_probabilities(data.counts, stage.step.q)
    else:
        return None
    members = Members.of(data.train.labels.cpu().numpy(), data.counts)
    return EpochSampler(lambda epoch: class_draw(members, probabilities, seed, epoch), batch_size=stage.batch_size)


def build_optimizer(stage: StageSettings, classifier: nn.Module, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The stage's optimiser of these parameters; `classifier` is whose rows a max_norm holds.

    Raises:
        InputError: a max_norm of a weight that is not trained, as in LWS.
    """
    tensors = list(parameters)
    shared: dict[str, Any] = {
        "lr": stage.learning_rate,
        "weight_decay": stage.weight_decay,
        "fused": all(tensor.is_cuda for tensor in tensors),  # with a loss scaler, the other kinds wait for the device
    }
    optimizer: Optimizer
    if stage.optimizer == "adamw":
        optimizer = AdamW(tensors, betas=(stage.momentum, stage.beta2), **shared)
    else:
        optimizer = SGD(tensors, momentum=stage.momentum, nesterov=stage.nesterov, **shared)
    if stage.max_norm is not None:
        if not isinstance(classifier.weight, nn.Parameter):
            kind = type(classifier).__name__
            raise checks.InputError(f"max_norm: expected a classifier whose weight is trained, got {kind}")
        keep_max_norm(optimizer, [classifier.weight], stage.max_norm)
    return optimizer
