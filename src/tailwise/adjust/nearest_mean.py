"""The nearest class mean classifier (Kang et al. 2020, section 4)."""

from typing import Literal, get_args

import torch
from torch import Tensor

from tailwise import checks
from tailwise.adjust.unseen import bias_of_unseen
from tailwise.classifiers import FoldedClassifier
from tailwise.classifiers.functional import unit
from tailwise.counts import ClassCounts
from tailwise.shapes import Float, Int

Distance = Literal["cosine", "l2", "centered"]


def class_means(features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], num_classes: int) -> Float[Tensor, "C D"]:
    """The mean feature of each class, [C, D], in float32 at least; 0 for a class without a sample.

    Raises:
        InputError: no samples, different lengths, a label outside 0..C-1, features that are not finite.

    >>> class_means(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 0, 2]), 3)
    tensor([[2., 0.],
            [0., 0.],
            [0., 5.]])
    """
    labels = check_samples(features, labels, num_classes)
    # summed in double: the mean of a class must not depend on how many images it has
    sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
    for part, target in zip(torch.split(features, 4096), torch.split(labels, 4096), strict=True):
        sums.index_add_(0, target, part.double())
    sizes = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    return (sums / sizes[:, None]).to(_wide(features))


@torch.no_grad()
def fit_ncm(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    num_classes: int,
    *,
    distance: Distance = "cosine",
    allow_unseen: bool = False,
) -> FoldedClassifier:
    """The classifier whose class is that of the nearest mean of training features.

    With m_c the mean feature of class c and u(v) = v / |v|, the logits are

    - "cosine": u(x) . u(m_c);
    - "l2": -|u(x) - u(m_c)|^2, which is 2 u(x) . u(m_c) - 2 and so ranks the classes as the cosine does;
    - "centered": -|u(x - g) - m'_c|^2, the authors' code: g is the mean of all training features, m'_c the mean of
      u(x - g) over the class, not normalized again.

    Args:
        features: of the training images, unaugmented, [N, D].
        labels: their classes, [N].
        num_classes: C.
        distance: which of the above.
        allow_unseen: let a class without a training image be predicted; its mean is 0.

    Returns:
        Weight, bias and center in float32 at least, whatever the precision of the features.

    Raises:
        InputError: as `class_means`; an unknown distance.

    Limit case: one image per class is the nearest neighbour.

    >>> x, y = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    >>> fit_ncm(x, y, 2)(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    checks.choice("distance", distance, get_args(Distance))
    labels = check_samples(features, labels, num_classes)
    counts = ClassCounts.of_labels(labels.cpu().numpy(), num_classes)
    means = class_means(features, labels, num_classes)
    center, bias = None, None
    if distance == "centered":
        center = features.double().mean(dim=0).to(_wide(features))
        means = class_means(unit(features - center), labels, num_classes)
        weight, bias = 2 * means, -(means**2).sum(dim=1) - 1
    elif distance == "l2":
        weight = 2 * unit(means)
        bias = -(unit(means) ** 2).sum(dim=1) - 1
    else:
        weight = unit(means)
    bias = bias_of_unseen(bias, weight, counts, allow_unseen=allow_unseen)
    return FoldedClassifier(weight, norm="unit", bias=bias, center=center)


def _wide(features: Tensor) -> torch.dtype:
    """Of means: what tells those of classes apart is small beside what all share, and half precision rounds it away."""
    return torch.promote_types(features.dtype, torch.float32)


def check_samples(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Refuse training features and labels that do not fit one another; returns the labels as int64, beside them."""
    checks.whole("num_classes", num_classes)
    for name, given, dims in (("features", features, 2), ("labels", labels, 1)):
        if not isinstance(given, Tensor) or given.ndim != dims:
            shape = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise checks.InputError(f"{name}: expected a tensor {'[N, D]' if dims == 2 else '[N]'}, got {shape}")
    if not features.is_floating_point():
        raise checks.InputError(f"features: expected floating-point numbers, got {features.dtype}")
    if not len(labels) or len(features) != len(labels):
        raise checks.InputError(
            f"labels: expected one for each of {len(features)} features, at least one, got {len(labels)}"
        )
    checks.finite("features", features.detach().float().cpu().numpy())
    return class_labels(labels, num_classes, features.device)


def class_labels(labels: Tensor, num_classes: int, device: torch.device) -> Tensor:
    """Labels as int64 on the device of what they are used with, refused where they are no classes."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise checks.InputError(f"labels: expected whole numbers, got {labels.dtype}")
    checks.labels_in_range("labels", labels.cpu().numpy(), num_classes)
    return labels.to(device, torch.int64)
