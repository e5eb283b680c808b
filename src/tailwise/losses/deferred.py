"""Re-weighting that waits until the features are there."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.losses.plain import Target
from tailwise.losses.reweighting import class_balanced_weights
from tailwise.shapes import Float


class DeferredReweighting(nn.Module):
    """Deferred re-weighting (DRW; Cao et al. 2019, Algorithm 1): the plain loss first, each sample weighted later.

    The weights are those of the effective number of images (Cui et al. 2019). They are 1 on average over the training
    images, so that the loss keeps its size: Cao et al.'s code divides by the weights of each batch, of which this is
    the expectation under instance-balanced sampling, and which no process knows alone.

    Args:
        loss: a loss of this package, with reduction="none".
        counts: training images per class.
        beta: of the weights, in [0, 1); see `class_balanced_weights`.
        after: the part of the stage without weights, at least 0; Cao et al. take 160 of 200 epochs.

    Raises:
        InputError: beta or after outside its range; a loss that does not give one value per sample.

    Limit cases: after = 1 or beta = 0 is the mean of the loss itself.

    >>> from tailwise.losses import CrossEntropy
    >>> loss = DeferredReweighting(CrossEntropy(reduction="none"), ClassCounts((3, 1)), after=0.8)
    >>> logits, target = torch.zeros(2, 2), torch.tensor([0, 1])
    >>> loss.start_epoch(160, 200)
    >>> loss(logits, target)
    tensor(0.6931)
    >>> loss.start_epoch(161, 200)
    >>> loss(logits, target)  # the same, 2/3 and 2 times
    tensor(0.9242)
    """

    weights: Tensor

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        counts: ClassCounts,
        *,
        beta: float = 0.9999,
        after: float = 0.8,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.after = checks.number("after", after, at_least=0)
        images = torch.tensor(counts.per_class, dtype=torch.float64)
        weights = class_balanced_weights(images, beta=beta)
        per_image = (images * weights).sum() / images.sum()
        self.register_buffer("weights", (weights / per_image).float(), persistent=False)
        self.on = self.after == 0

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Epoch 1, 2, ... of `epochs`: weights are on once the part without them is over."""
        self.on = epoch > round(self.after * epochs, 6)  # 0.29 * 100 is 28.999999999999996

    def forward(self, logits: Float[Tensor, "N C"], target: Target) -> Float[Tensor, ""]:
        losses = self.loss(logits, target)
        if losses.shape != logits.shape[:1]:
            raise checks.InputError(
                f"loss: expected one value for each of {len(logits)} samples (reduction='none'), "
                f"got shape {list(losses.shape)}"
            )
        if self.on:
            weights = target @ self.weights.to(target) if target.is_floating_point() else self.weights[target]
            losses = weights * losses
        return losses.mean()
