"""GLMC (Du et al. 2023): two mixtures of the same images, one global, one local, that are to look alike.

Where the equations leave something open, this is what the authors' code does: two classifiers, one layer each for
projector and predictor, losses summed over the two views, the first epoch at alpha = 1. The second stream draws a class
in proportion to n_c^0.8 there on CIFAR-100-LT: Kang et al. 2020, Eq. 1 with q = 0.8.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.losses import cross_entropy
from tailwise.methods.bbn import bilateral_alpha
from tailwise.shapes import Float

# Logits of the classifier that is kept and of the one that is not, [N, 2, C]; projections and predictions, h and u of
# the paper, [N, 2, H].
GlmcOutput = tuple[Tensor, Tensor, Tensor, Tensor]


class GlmcView(nn.Module):
    """Two views of each image -> logits of two classifiers [N, 2, C], projections and predictions [N, 2, H].

    Each view goes through the backbone by itself, with its own batch-norm statistics.

    Args:
        backbone: images -> features [N, D].
        classifier: features -> logits [N, C]; the rebalanced loss trains it, and it is used afterwards.
        conventional: another one, for the conventional loss; in training only.
        num_features: D.
        hidden_features: H of projections and predictions; 128 in the authors' ResNet-32.

    Raises:
        InputError: a width below 1.

    Limit case: `classifier` given twice is one classifier for both losses.

    >>> view = GlmcView(nn.Flatten(), nn.Linear(4, 3), nn.Linear(4, 3), num_features=4)
    >>> [tuple(part.shape) for part in view(torch.zeros(5, 2, 1, 2, 2))]
    [(5, 2, 3), (5, 2, 3), (5, 2, 128), (5, 2, 128)]
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module,
        conventional: nn.Module,
        *,
        num_features: int,
        hidden_features: int = 128,
    ) -> None:
        super().__init__()
        checks.whole("num_features", num_features)
        checks.whole("hidden_features", hidden_features)
        self.backbone = backbone
        self.classifier = classifier
        self.conventional = conventional
        self.projector = nn.Linear(num_features, hidden_features)
        self.predictor = nn.Linear(hidden_features, hidden_features)

    def forward(self, views: Float[Tensor, "N 2 channels H W"]) -> GlmcOutput:
        features = torch.cat([self.backbone(view) for view in views.unbind(dim=1)])
        projections = self.projector(features)
        parts = self.classifier(features), self.conventional(features), projections, self.predictor(projections)
        logits, conventional, projections, predictions = (part.unflatten(0, (2, -1)).transpose(0, 1) for part in parts)
        return logits, conventional, projections, predictions


def inverse_frequency_weights(counts: Float[Tensor, " C"], *, power: float = 1.0) -> Float[Tensor, " C"]:
    """n_c^-power, scaled to 1 on average (Du et al. 2023, the weights w of their rebalanced loss).

    Args:
        counts: training images n_c per class, [C].
        power: k of the paper, at least 0.

    Returns:
        [C]: 0 for a class without an image, and 1 on average over the others.

    Raises:
        InputError: a power below 0.

    Limit case: power = 0 weighs all classes alike.

    >>> inverse_frequency_weights(torch.tensor([30.0, 10.0, 0.0]))
    tensor([0.5000, 1.5000, 0.0000])
    """
    checks.number("power", power, at_least=0)
    present = counts > 0
    weights = (counts.where(present, 1) ** -power).where(present, 0)
    return weights * (present.sum() / weights.sum())


def consistency(projections: Float[Tensor, "N 2 H"], predictions: Float[Tensor, "N 2 H"]) -> Float[Tensor, ""]:
    """-cos(u_1, sg(h_2)) - cos(u_2, sg(h_1)), mean over samples (Du et al. 2023; Chen & He 2021, Eq. 1-4, doubled).

    sg stops the gradient: only predictions learn to look like the other view's projections.

    Args:
        projections, predictions: h and u of both views, [N, 2, H].

    Returns:
        In [-2, 2].

    >>> h = torch.eye(2)[None]  # the two views' projections are orthogonal
    >>> consistency(h, h), consistency(h, h.flip(1))
    (tensor(-0.), tensor(-2.))
    """
    return -F.cosine_similarity(predictions, projections.flip(1).detach(), dim=2).sum(dim=1).mean()


class GlmcLoss(nn.Module):
    """alpha L_c + (1 - alpha) L_rb + gamma L_sim (Du et al. 2023), L_c and L_rb summed over the two views.

    L_c = -sum_c q_c log softmax(conventional)_c and L_rb = -sum_c w_c q_c log softmax(logits)_c, means over samples, q
    the mixed target; L_sim is `consistency`, w is `inverse_frequency_weights`. alpha = 1 - ((t - 1) / T)^2 in epoch t
    of T, as in `bilateral_alpha`.

    Args:
        counts: training images per class.
        power: of the weights w, at least 0; 1 on CIFAR-100-LT, 1.2 on CIFAR-10-LT.
        gamma: of the consistency, at least 0; 10 on CIFAR-100-LT.

    Raises:
        InputError: a value outside its range.

    Limit cases: gamma = 0 in the first epoch is the conventional classifier's cross-entropy, summed over the views;
    power = 0 and one classifier is that in every epoch.

    >>> loss = GlmcLoss(ClassCounts((9, 1)), gamma=0.0)
    >>> zeros = torch.zeros(4, 2, 2)
    >>> loss((zeros, zeros, zeros, zeros), torch.full((4, 2, 2), 0.5))  # 2 log 2
    tensor(1.3863)
    """

    weights: Tensor
    alpha: Tensor

    def __init__(self, counts: ClassCounts, *, power: float = 1.0, gamma: float = 10.0) -> None:
        super().__init__()
        weights = inverse_frequency_weights(torch.tensor(counts.per_class).to(torch.get_default_dtype()), power=power)
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("alpha", torch.ones(()), persistent=False)
        self.gamma = checks.number("gamma", gamma, at_least=0)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Weigh the two losses as `bilateral_alpha` has it."""
        self.alpha.fill_(bilateral_alpha(epoch, epochs))

    def forward(self, output: GlmcOutput, target: Float[Tensor, "N 2 C"]) -> Float[Tensor, ""]:
        logits, conventional, projections, predictions = output
        usual = _over_both_views(conventional, target)
        rebalanced = _over_both_views(logits, self.weights * target)
        alike = consistency(projections, predictions)
        return self.alpha * usual + (1 - self.alpha) * rebalanced + self.gamma * alike


def _over_both_views(logits: Float[Tensor, "N 2 C"], target: Float[Tensor, "N 2 C"]) -> Float[Tensor, ""]:
    return 2 * cross_entropy(logits.flatten(0, 1), target.flatten(0, 1))
