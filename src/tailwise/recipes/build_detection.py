"""From a detection recipe's settings to data, detector and training. As in `build`, names become objects here alone."""

import functools
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from tailwise import ranks
from tailwise.counts import ClassCounts
from tailwise.detect import DetectionData, digit_scenes_lt
from tailwise.detect.backbones import SmallFPN, resnet_fpn
from tailwise.detect.detector import Detector, Sizes
from tailwise.detect.inference import Inference
from tailwise.detect.loading import ExampleBatches, image_repeat_draw, total_loss
from tailwise.detect.lvis import lvis
from tailwise.detect.region_losses import (
    EachAgainstTheRest,
    Federated,
    RegionLoss,
    SeesawWithObjectness,
    WithBackground,
    balanced_with_background,
    equalization_with_background,
)
from tailwise.losses import CrossEntropy, Focal
from tailwise.recipes.build import build_classifier
from tailwise.recipes.detection import (
    TDE_ROW,
    WITHOUT_EXEMPTION,
    DetectionRecipe,
    FederatedSettings,
    LvisSettings,
    RegionBalancedSoftmaxSettings,
    RegionEqualizationSettings,
    RegionSeesawSettings,
)
from tailwise.recipes.stages import FocalSettings
from tailwise.sampling import EpochSampler, instance_draw
from tailwise.seeds import mixed_seed
from tailwise.train import Batches, Stage, warm_multistep


def build_detection_data(recipe: DetectionRecipe, seed: int, data_dir: Path | None) -> DetectionData:
    """The recipe's data; seed: of training, which is the subset's too where the recipe names none.

    Raises:
        InputError: no local copy of LVIS, or one that will not do.
    """
    settings = recipe.data
    if isinstance(settings, LvisSettings):
        return _lvis(settings.name, data_dir, on_bad=settings.on_bad)
    return _scenes(
        seed if settings.subset_seed is None else settings.subset_seed,
        settings.max_train,
        settings.imbalance_ratio,
        settings.val_per_class,
        settings.test_per_class,
    )


# the recipes of a suite share their data
_lvis = functools.lru_cache(maxsize=1)(lvis)


@functools.lru_cache(maxsize=1)
def _scenes(seed: int, max_train: int, ratio: float, val: int, test: int) -> DetectionData:
    return digit_scenes_lt(seed, max_train=max_train, imbalance_ratio=ratio, val_per_class=val, test_per_class=test)


def build_detector(recipe: DetectionRecipe, counts: ClassCounts, images: int) -> Detector:
    """The recipe's detector, freshly initialised from torch's global random state.

    counts: training images of each class. images: all of them, of which one may show several classes.

    Raises:
        InputError: ImageNet weights that cannot be had.
    """
    settings = recipe.detector
    if settings.backbone == "small-fpn":
        backbone: nn.Module = SmallFPN()
    else:
        backbone = resnet_fpn(settings.backbone, pretrained=settings.pretrained)
    return Detector(
        backbone,
        counts.num_classes,
        partial(build_classifier, recipe.classifier),
        partial(build_region_loss, recipe, counts, images),
        framework=settings.framework,
        masks=settings.masks,
        legacy_average=settings.legacy_average,
        sizes=Sizes(**settings.sizes.model_dump()),
    )


def build_region_loss(recipe: DetectionRecipe, counts: ClassCounts, images: int) -> RegionLoss:
    """The loss of one stage's classifier; counts, images: as in `build_detector`."""
    settings, num_classes = recipe.loss, counts.num_classes
    if isinstance(settings, FocalSettings):
        return WithBackground(num_classes, Focal(gamma=settings.gamma, detach=settings.detach, reduction="none"))
    if isinstance(settings, RegionBalancedSoftmaxSettings):
        return balanced_with_background(counts)
    if isinstance(settings, RegionEqualizationSettings):
        return equalization_with_background(counts, images, threshold=settings.threshold, prior=settings.prior)
    if isinstance(settings, RegionSeesawSettings):
        return SeesawWithObjectness(num_classes, p=settings.p, q=settings.q)
    if isinstance(settings, FederatedSettings):
        return EachAgainstTheRest(
            num_classes, Federated(counts, num_sampled=settings.num_sampled), prior=settings.prior
        )
    return WithBackground(num_classes, CrossEntropy(reduction="none"))


def build_detection_stage(recipe: DetectionRecipe, data: DetectionData, seed: int) -> Stage:
    """The one phase a detector is trained in."""
    training, images = recipe.training, data.train.truth
    if training.repeat_threshold > 0:
        draw = partial(image_repeat_draw, images, data.train.truth.counts_by_images(), training.repeat_threshold, seed)
    else:
        draw = partial(instance_draw, len(data.train), seed)
    sampler = EpochSampler(draw, batch_size=training.batch_size)
    drawn = len(sampler.indices(1))  # where images are repeated, epochs differ a little
    steps = max(1, (drawn if training.drop_last else drawn + training.batch_size - 1) // training.batch_size)
    return Stage(
        name="detector",
        epochs=training.epochs,
        batch_size=training.batch_size,
        sampler=sampler,
        loss=total_loss,
        optimizer=partial(_sgd, training.momentum, training.weight_decay),
        learning_rate=warm_multistep(
            training.learning_rate,
            training.milestones,
            factor=training.factor,
            warmup_epochs=training.warmup_iterations / steps,
            warmup_from=training.warmup_from,
        ),
        clip_norm=training.clip_norm,
        accumulate=training.accumulate,
        drop_last=training.drop_last,
    )


def _sgd(momentum: float, weight_decay: float, parameters: Iterable[nn.Parameter]) -> Optimizer:
    # the schedule sets the learning rate before each step
    return SGD(parameters, lr=1.0, momentum=momentum, weight_decay=weight_decay)


def build_detection_load(
    recipe: DetectionRecipe, data: DetectionData, seed: int, device: torch.device
) -> Callable[[Stage, int], Batches]:
    """(stage, epoch) -> that epoch's batches, this process's part of them."""

    def load(stage: Stage, epoch: int) -> Batches:
        return ExampleBatches(
            data.train,
            stage.sampler.indices(epoch),
            stage.batch_size,
            flip=recipe.training.flip,
            seed=mixed_seed(seed, epoch),
            drop_last=stage.drop_last,
            rank=ranks.rank(),
            num_ranks=ranks.count(),
            device=device,
            workers=recipe.data.workers,
        )

    return load


def inference_of(recipe: DetectionRecipe, row: str, alpha: float | None = None) -> Inference:
    """How a row of the recipe is predicted; alpha: in place of the recipe's, where the row has one."""
    settings = recipe.inference
    tde = TDE_ROW.get(recipe.classifier.name)
    adjusted = tde is not None and row in (tde, tde + WITHOUT_EXEMPTION)
    return Inference(
        alpha=(settings.alpha if alpha is None else alpha) if adjusted else None,
        exempt_background=not row.endswith(WITHOUT_EXEMPTION),
        score_threshold=settings.score_threshold,
        nms_threshold=settings.nms_threshold,
        per_image=settings.per_image,
    )
