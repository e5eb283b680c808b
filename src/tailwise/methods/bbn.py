"""BBN (Zhou et al. 2020): two branches on one trunk, each with a sampler of its own, weighed by how far training is."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tailwise import checks
from tailwise.backbones import DigitsNet, ResNet32
from tailwise.losses import cross_entropy
from tailwise.shapes import Float, Int


def bilateral_alpha(epoch: int, epochs: int) -> float:
    """1 - ((t - 1) / T)^2, the weight of the conventional branch in epoch t of T, counted from 1.

    The paper (section 4.3) has 1 - (T / T_max)^2 and does not say from where it counts. The authors' code counts from 1
    and takes 1 off, which is the reading here: the first epoch is the conventional branch's alone, and the last one
    leaves it something. Departure: their code divides by 100 in experiments of 90 epochs and by 200 in those of 180,
    here it is always by the number of epochs.

    Raises:
        InputError: an epoch outside 1..epochs.

    >>> [bilateral_alpha(epoch, 4) for epoch in (1, 2, 3, 4)]
    [1.0, 0.9375, 0.75, 0.4375]
    """
    checks.whole("epochs", epochs)
    if checks.whole("epoch", epoch) > epochs:
        raise checks.InputError(f"epoch: expected at most epochs {epochs}, got {epoch}")
    return 1 - ((epoch - 1) / epochs) ** 2


def bilateral_features(
    conventional: Float[Tensor, "N D"], rebalancing: Float[Tensor, "N D"], alpha: float | Float[Tensor, ""]
) -> Float[Tensor, "N 2*D"]:
    """[2 alpha f_c, 2 (1 - alpha) f_r]: one linear classifier on it gives the mixed logits (Zhou et al. 2020, Eq. 1).

    The paper's z = alpha W_c^T f_c + (1 - alpha) W_r^T f_r has a matrix for each branch: they are the two halves of the
    classifier's. The factor 2 is the authors' code's, not the paper's. With it alpha = 1/2 gives [f_c, f_r], which is
    what the network gives of itself and what it is used with afterwards.

    Args:
        conventional, rebalancing: features f_c and f_r, each of its own image, [N, D].
        alpha: in [0, 1].

    Limit cases: alpha = 1/2 changes no feature; alpha = 1 leaves the conventional ones alone, doubled.

    >>> bilateral_features(torch.ones(1, 2), torch.ones(1, 2), 0.75)
    tensor([[1.5000, 1.5000, 0.5000, 0.5000]])
    """
    return torch.cat([2 * alpha * conventional, 2 * (1 - alpha) * rebalancing], dim=1)


class BilateralView(nn.Module):
    """Pairs of images -> logits of `bilateral_features`: the first image in the first branch, the second in the other.

    Both go through the trunk, one after the other, each with the batch-norm statistics of its own stream.

    Args:
        backbone: with two branches.
        classifier: features [N, 2 D] -> logits [N, C]; linear in the paper.

    Raises:
        InputError: a backbone with one branch.

    Limit case: alpha = 1/2 and the same image twice are the recognizer's own logits, in eval mode.

    >>> view = BilateralView(DigitsNet(two_branch=True), nn.Linear(128, 10))
    >>> view.start_epoch(2, epochs=4)
    >>> view(torch.zeros(3, 2, 1, 8, 8)).shape, view.alpha
    (torch.Size([3, 10]), tensor(0.9375))
    """

    alpha: Tensor

    def __init__(self, backbone: DigitsNet | ResNet32, classifier: nn.Module) -> None:
        super().__init__()
        if len(backbone.branches) != 2:
            raise checks.InputError(f"backbone: expected two branches, got {len(backbone.branches)}")
        self.backbone = backbone
        self.classifier = classifier
        # no plain number: compiled code would be made anew for every epoch's
        self.register_buffer("alpha", torch.ones(()), persistent=False)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Weigh the branches as `bilateral_alpha` has it."""
        self.alpha.fill_(bilateral_alpha(epoch, epochs))

    def forward(self, pairs: Float[Tensor, "N 2 channels H W"]) -> Float[Tensor, "N C"]:
        conventional, rebalancing = (
            branch(self.backbone.trunk(images)).mean(dim=(2, 3))
            for branch, images in zip(self.backbone.branches, pairs.unbind(dim=1), strict=True)
        )
        logits: Tensor = self.classifier(bilateral_features(conventional, rebalancing, self.alpha))
        return logits


class BilateralLoss(nn.Module):
    """alpha L(z, y_c) + (1 - alpha) L(z, y_r), the two labels of a pair (Zhou et al. 2020, Eq. 3).

    Args:
        base: L, (logits [N, C], target [N]) -> mean over samples.

    Limit case: in the first epoch alpha is 1, and this is L of the conventional stream's labels.

    >>> loss = BilateralLoss()
    >>> loss(torch.zeros(1, 4), torch.tensor([[0, 3]]))
    tensor(1.3863)
    """

    alpha: Tensor

    def __init__(self, base: Callable[[Tensor, Tensor], Tensor] = cross_entropy) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("alpha", torch.ones(()), persistent=False)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Weigh the labels as `bilateral_alpha` has it."""
        self.alpha.fill_(bilateral_alpha(epoch, epochs))

    def forward(self, logits: Float[Tensor, "N C"], target: Int[Tensor, "N 2"]) -> Float[Tensor, ""]:
        conventional, rebalancing = target.unbind(dim=1)
        return self.alpha * self.base(logits, conventional) + (1 - self.alpha) * self.base(logits, rebalancing)
