"""Second stages on stored features: re-train or re-scale the classifier, class-balanced (Kang et al. 2020).

The paper trains second stages on augmented images, which `tailwise.recipes` does. Here the features of the training
images, computed once, take their place: the same loop, sampler and settings, in minutes on a CPU.
"""

from collections.abc import Iterable, Iterator
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
from tailwise.sampling import EpochSampler, Members, class_aware_draw
from tailwise.seeds import mixed_seed
from tailwise.shapes import Float, Int
from tailwise.train import Stage, cosine, fit

Classifier = TypeVar("Classifier", bound=nn.Module)


def relearn(
    classifier: Classifier,
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    *,
    epochs: int = 10,
    batch_size: int = 512,
    learning_rate: float = 0.2,
    weight_decay: float = 5e-4,
    seed: int = 0,
) -> Classifier:
    """Train a classifier on stored features, every class drawn equally often; returns it.

    Kang et al.'s second stage: class-aware sampling (4 images a visit), SGD with momentum 0.9, the learning rate
    restarted and taken to 0 by half a cosine.

    Args:
        classifier: features -> logits; trained in place.
        features: of the training images, [N, D].
        labels: their classes, [N].
        num_classes: C.
        epochs, batch_size, learning_rate, weight_decay: of the stage; an epoch draws N features.
        seed: of the draws.

    Raises:
        InputError: features and labels that do not fit, a setting outside its range, training that diverges.

    >>> x, y = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    >>> relearn(tailwise.LinearClassifier(3, 3), x, y, 3, epochs=20, batch_size=4)(x).argmax(dim=1).equal(y)
    True
    """
    check_samples(features, labels, num_classes)
    checks.number("weight_decay", weight_decay, at_least=0)
    counts = ClassCounts.of_labels(labels.cpu().numpy(), num_classes)
    members = Members.of(labels.cpu().numpy(), counts)
    stage = Stage(
        name="relearn",
        epochs=epochs,
        batch_size=batch_size,
        sampler=EpochSampler(partial(class_aware_draw, members, seed), batch_size=batch_size),
        loss=F.cross_entropy,
        optimizer=partial(_sgd, weight_decay=weight_decay),
        learning_rate=cosine(learning_rate, epochs),
    )
    fit(classifier, [stage], lambda stage, epoch: _Batches(features, labels, stage.sampler.indices(epoch), batch_size))
    return classifier.eval()


def fit_crt(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    *,
    epochs: int = 10,
    batch_size: int = 512,
    learning_rate: float = 0.2,
    weight_decay: float = 5e-4,
    seed: int = 0,
    allow_unseen: bool = False,
) -> FoldedClassifier:
    """Classifier re-training on stored features: a fresh linear classifier, every class drawn equally often.

    Kang et al. 2020, cRT, with stored features in place of augmented images. Arguments and errors as in `relearn`.

    Args:
        allow_unseen: let a class without a training image be predicted.

    >>> x, y = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    >>> fit_crt(x, y, 3, epochs=20, batch_size=4)(x).argmax(dim=1).equal(y)
    True
    """
    with torch.random.fork_rng(devices=[]):  # the first weights depend on `seed` alone
        torch.manual_seed(mixed_seed(seed))
        linear = LinearClassifier(features.shape[1], num_classes).to(features.device)
    relearn(
        linear,
        features,
        labels,
        num_classes,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
    )
    return fold_linear(linear, ClassCounts.of_labels(labels.cpu().numpy(), num_classes), allow_unseen=allow_unseen)


def fit_lws(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    classifier: LinearClassifier,
    *,
    epochs: int = 5,
    batch_size: int = 512,
    learning_rate: float = 0.2,
    weight_decay: float = 5e-4,
    seed: int = 0,
    allow_unseen: bool = False,
) -> FoldedClassifier:
    """Learnable weight scaling on stored features: s * (W x + b), s learnt, W and b as they were trained.

    Kang et al. 2020, LWS, with stored features in place of augmented images. Arguments and errors as in `relearn`.

    Args:
        classifier: linear, as trained; without bias the result has none.
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
    return fold_linear(scaled, ClassCounts.of_labels(labels.cpu().numpy(), num_classes), allow_unseen=allow_unseen)


@torch.no_grad()
def fold_linear(
    classifier: LinearClassifier | ScaledClassifier, counts: ClassCounts | None = None, *, allow_unseen: bool = False
) -> FoldedClassifier:
    """W x + b, or s * (W x + b), as one plain matrix and bias; unseen classes masked.

    >>> linear = tailwise.LinearClassifier(8, 3)
    >>> x = torch.rand(5, 8)
    >>> torch.equal(fold_linear(linear)(x), linear(x))
    True
    """
    scale = classifier.scale if isinstance(classifier, ScaledClassifier) else torch.ones_like(classifier.weight[:, 0])
    weight = scale[:, None] * classifier.weight
    bias = None if classifier.bias is None else scale * classifier.bias
    return FoldedClassifier(weight, bias=bias_of_unseen(bias, weight, counts, allow_unseen=allow_unseen))


@dataclass(frozen=True)
class _Batches:
    """The (features, labels) batches of one epoch."""

    features: Tensor
    labels: Tensor
    indices: Tensor
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in torch.split(self.indices.to(self.labels.device), self.batch_size):
            yield self.features[batch], self.labels[batch]


def _sgd(parameters: Iterable[nn.Parameter], weight_decay: float) -> Optimizer:
    return SGD(parameters, lr=1.0, momentum=0.9, weight_decay=weight_decay)  # the schedule sets the learning rate
