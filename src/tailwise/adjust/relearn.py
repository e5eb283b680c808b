"""Stages on stored features: train the classifier, or re-train or re-scale it, class-balanced (Kang et al. 2020).

The paper trains second stages on augmented images, which `tailwise.experiments` does. Here the features of the training
images, computed once, take their place: the same loop, sampler and settings, in minutes on a CPU.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from tailwise import checks
from tailwise.adjust.nearest_mean import check_samples
from tailwise.adjust.unseen import bias_of_unseen
from tailwise.classifiers import FoldedClassifier, LinearClassifier, ScaledClassifier
from tailwise.counts import ClassCounts
from tailwise.sampling import EpochSampler, Members, class_aware_draw, instance_draw
from tailwise.sampling.draws import Indices
from tailwise.seeds import mixed_seed
from tailwise.shapes import Float, Int
from tailwise.train import Stage, cosine, fit

LENGTH = 5.0  # mean squared length per class of the features that cRT's steps are taken on
Classifier = TypeVar("Classifier", bound=nn.Module)


def relearn(
    classifier: Classifier,
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    *,
    balanced: bool = True,
    epochs: int = 10,
    batch_size: int | None = None,
    learning_rate: float = 0.2,
    weight_decay: float = 5e-4,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    seed: int = 0,
) -> Classifier:
    """Train a classifier on stored features, every class drawn equally often; returns it.

    Kang et al.'s second stage: class-aware sampling (4 images a visit), SGD with momentum 0.9, the learning rate
    restarted and taken to 0 by half a cosine. Classes without a training image are not masked here; `fit_crt` and
    `fit_lws` mask them.

    Args:
        classifier: features -> logits; trained in place.
        features: of the training images, [N, D].
        labels: their classes, [N].
        num_classes: C.
        balanced: every class equally often; False draws every feature once an epoch, which is a first stage.
        epochs, learning_rate, weight_decay: of the stage; an epoch draws N features.
        batch_size: of each step; None is N / 100, but 32 at least and the paper's 512 at most, since a handful of steps
            an epoch would not do.
        optimizer: parameters -> optimiser; None is SGD with momentum 0.9 and `weight_decay`.
        seed: of the draws.

    Raises:
        InputError: features and labels that do not fit, a setting outside its range, training that diverges.

    >>> x, y = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    >>> relearn(tailwise.LinearClassifier(3, 3), x, y, 3, epochs=20, batch_size=4)(x).argmax(dim=1).equal(y)
    True
    """
    labels = check_samples(features, labels, num_classes)
    settings = Settings(balanced, epochs, batch_size, learning_rate, weight_decay, seed)
    dtype = next(classifier.parameters()).dtype
    return _train(classifier, features, labels, num_classes, settings, lambda batch: batch.to(dtype), optimizer)


@torch.inference_mode(mode=False)  # what is made in that mode cannot be trained
def learn_linear(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    *,
    balanced: bool,
    epochs: int = 10,
    batch_size: int | None = None,
    learning_rate: float = 0.2,
    weight_decay: float = 5e-4,
    seed: int = 0,
) -> LinearClassifier:
    """A fresh linear classifier on stored features: cRT's if balanced, else a first stage. Arguments as in `relearn`.

    The steps are taken on (x - mean) * s and folded back into W and b, where s brings the mean squared length to 5 C: a
    class is the target of one sample in C, so that a step moves its logits by about learning_rate * |x|^2 / C. One
    learning rate then suits features of any origin, width and number of classes, and the mean, which all samples
    share, slows nothing down.

    Returns:
        Weight and bias in float32, whatever the precision of the features.

    Limit case: the scale and the origin of the features change nothing.

    >>> x, y = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    >>> learn_linear(x, y, 3, balanced=False)(x).argmax(dim=1).equal(y)
    True
    """
    labels, features = check_samples(features, labels, num_classes), features.detach()
    center = features.double().mean(dim=0).float()
    squares = sum(float(((part - center).double() ** 2).sum()) for part in torch.split(features, 4096))
    scale = math.sqrt(LENGTH * num_classes * len(features) / squares) if squares else 1.0
    with torch.random.fork_rng(devices=[]):  # the first weights depend on `seed` alone
        torch.default_generator.manual_seed(mixed_seed(checks.whole("seed", seed, at_least=0)))
        linear = LinearClassifier(features.shape[1], num_classes).to(features.device, torch.float32)
    settings = Settings(balanced, epochs, batch_size, learning_rate, weight_decay, seed)
    _train(linear, features, labels, num_classes, settings, lambda batch: (batch.float() - center) * scale)
    with torch.no_grad():
        assert linear.bias is not None
        linear.weight.mul_(scale)
        linear.bias.sub_(linear.weight @ center)
    return linear


def fit_crt(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    *,
    epochs: int = 10,
    batch_size: int | None = None,
    learning_rate: float = 0.2,
    weight_decay: float = 5e-4,
    seed: int = 0,
    allow_unseen: bool = False,
) -> FoldedClassifier:
    """Classifier re-training on stored features: a fresh linear classifier, every class drawn equally often.

    Kang et al. 2020, cRT, with stored features in place of augmented images: `learn_linear`, balanced. Arguments and
    errors as in `relearn`.

    Args:
        allow_unseen: let a class without a training image be predicted.

    Returns:
        Weight and bias in float32, whatever the precision of the features.

    Limit case: the scale and the origin of the features change nothing.

    >>> x, y = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    >>> fit_crt(x, y, 3)(x).argmax(dim=1).equal(y)
    True
    """
    linear = learn_linear(
        features,
        labels,
        num_classes,
        balanced=True,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
    )
    return fold_linear(linear, ClassCounts.of_labels(labels.cpu().numpy(), num_classes), allow_unseen=allow_unseen)


@torch.inference_mode(mode=False)  # what is made in that mode cannot be trained
def fit_lws(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    classifier: LinearClassifier,
    *,
    epochs: int = 5,
    batch_size: int | None = None,
    learning_rate: float = 0.2,
    weight_decay: float = 5e-4,
    seed: int = 0,
    counts: ClassCounts | None = None,
    allow_unseen: bool = False,
) -> FoldedClassifier:
    """Learnable weight scaling on stored features: s * (W x + b), s learnt, W and b as they were trained.

    Kang et al. 2020, LWS, with stored features in place of augmented images. Arguments and errors as in `relearn`.

    Args:
        classifier: linear, as trained; without bias the result has none.
        counts: training images per class, where `labels` are of a part of them; None is of `labels`.
        allow_unseen: let a class without a training image be predicted.

    Raises:
        InputError: another kind of classifier.

    >>> linear = tailwise.LinearClassifier(3, 3, bias=False)
    >>> fit_lws(torch.eye(3), torch.arange(3), linear, epochs=1).bias is None
    True
    """
    if not isinstance(classifier, LinearClassifier):
        raise checks.InputError(f"classifier: expected a linear classifier, got {type(classifier).__name__}")
    num_classes = len(classifier.weight)
    scaled = relearn(
        ScaledClassifier(classifier.weight, classifier.bias),
        features,
        labels,
        num_classes,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
    )
    counts = ClassCounts.of_labels(labels.cpu().numpy(), num_classes) if counts is None else counts
    return fold_linear(scaled, counts, allow_unseen=allow_unseen)


@torch.no_grad()
def fold_linear(
    classifier: LinearClassifier | ScaledClassifier, counts: ClassCounts | None = None, *, allow_unseen: bool = False
) -> FoldedClassifier:
    """W x + b, or s * (W x + b), as one plain matrix and bias; unseen classes masked.

    Raises:
        InputError: another kind of classifier.

    >>> linear = tailwise.LinearClassifier(8, 3)
    >>> x = torch.rand(5, 8)
    >>> torch.equal(fold_linear(linear)(x), linear(x))
    True
    """
    if not isinstance(classifier, LinearClassifier | ScaledClassifier):
        raise checks.InputError(f"classifier: expected a linear or scaled one, got {type(classifier).__name__}")
    scale = classifier.scale if isinstance(classifier, ScaledClassifier) else torch.ones_like(classifier.weight[:, 0])
    weight = scale[:, None] * classifier.weight
    bias = None if classifier.bias is None else scale * classifier.bias
    return FoldedClassifier(weight, bias=bias_of_unseen(bias, weight, counts, allow_unseen=allow_unseen))


@dataclass(frozen=True)
class Settings:
    """Of a stage on features; the terms are those of `relearn`."""

    balanced: bool
    epochs: int
    batch_size: int | None
    learning_rate: float
    weight_decay: float
    seed: int


def _train(
    classifier: Classifier,
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    settings: Settings,
    prepare: Callable[[Tensor], Tensor],
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
) -> Classifier:
    checks.whole("epochs", settings.epochs)
    checks.whole("seed", settings.seed, at_least=0)
    checks.number("weight_decay", settings.weight_decay, at_least=0)
    batch_size = min(512, max(32, len(labels) // 100)) if settings.batch_size is None else settings.batch_size
    checks.whole("batch_size", batch_size)
    with torch.no_grad():
        found = classifier.eval()(prepare(features[:1])).shape[1]
    if found != num_classes:
        raise checks.InputError(f"classifier: expected logits of {num_classes} classes, got {found}")
    draw: Callable[[int], Indices] = partial(instance_draw, len(labels), settings.seed)
    if settings.balanced:
        members = Members.of(labels.cpu().numpy(), ClassCounts.of_labels(labels.cpu().numpy(), num_classes))
        draw = partial(class_aware_draw, members, settings.seed)
    stage = Stage(
        name="relearn",
        epochs=settings.epochs,
        batch_size=batch_size,
        sampler=EpochSampler(draw, batch_size=batch_size),
        loss=F.cross_entropy,
        optimizer=optimizer or partial(_sgd, weight_decay=settings.weight_decay),
        learning_rate=cosine(settings.learning_rate, settings.epochs),
    )
    with torch.inference_mode(False), torch.enable_grad():
        fit(classifier, [stage], lambda stage, epoch: _Batches(features.detach(), labels, stage, epoch, prepare))
    return classifier.eval()


class _Batches:
    """The (features, labels) batches of one epoch."""

    def __init__(
        self, features: Tensor, labels: Tensor, stage: Stage, epoch: int, prepare: Callable[[Tensor], Tensor]
    ) -> None:
        self.features, self.labels, self.prepare = features, labels, prepare
        self.batches = torch.split(stage.sampler.indices(epoch).to(labels.device), stage.batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            yield self.prepare(self.features[batch]), self.labels[batch]


def _sgd(parameters: Iterable[nn.Parameter], weight_decay: float) -> Optimizer:
    return SGD(parameters, lr=1.0, momentum=0.9, weight_decay=weight_decay)  # the schedule sets the learning rate
