"""OLTR: a memory of class centroids, and attention over the feature map (Liu et al. 2019).

Stage 1 trains backbone and a linear classifier as usual. Stage 2, class-balanced, puts attention behind the backbone
(`ModulatedBackbone`) and a memory in the place of the classifier (`MetaEmbeddingClassifier`, whose centroids start as
`tailwise.adjust.class_means` of stage-1 features), and trains both as an `OltrView` with `OltrLoss`.

Decouple-OLTR (Tang et al. 2020, Table 2 and appendix D) freezes the backbone in stage 2: `tailwise.adjust.relearn`
trains the memory classifier on stored features alone.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailwise import checks
from tailwise.classifiers.functional import unit
from tailwise.losses.plain import Reduction, reduced
from tailwise.shapes import Float, Int

REACHABILITY = 10.0  # the authors' code has it over the distance, where the paper has 1


def meta_embedding(
    features: Float[Tensor, "N D"],
    memory: Float[Tensor, "N D"],
    selector: Float[Tensor, "N D"],
    centroids: Float[Tensor, "C D"],
) -> Float[Tensor, "N D"]:
    """squash(r (v + e * m)), r = 10 / min_i |v - c_i|, squash(x) = x / (|x| + 1): the dynamic meta-embedding.

    Written as 10 u / (10 |u| + min_i |v - c_i|) with u = v + e * m, which has no division by 0 for a feature that is a
    centroid, as that of a class with one image is. squash is that of the authors' code.

    Args:
        features: v, [N, D].
        memory: m, a mixture of centroids, [N, D].
        selector: e, in [-1, 1], [N, D].
        centroids: c, one per class, [C, D].

    Returns:
        [N, D], inside the unit ball: near its surface for features near a centroid.

    Limit cases: a feature at a centroid gives u / |u|; selector 0 leaves the memory out.

    >>> v, c = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.0], [9.0, 9.0]])
    >>> meta_embedding(v, torch.zeros(1, 2), torch.zeros(1, 2), c)
    tensor([[0.6000, 0.8000]])
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    with torch.no_grad():  # which is nearest; how near is then computed for that one alone, and exactly
        nearest = torch.cdist(features.to(wide), centroids.to(wide)).argmin(dim=1)
    distance = torch.linalg.vector_norm(features - centroids[nearest], dim=1, keepdim=True, dtype=wide)
    embedding = REACHABILITY * (features + selector * memory)
    size = torch.linalg.vector_norm(embedding, dim=1, keepdim=True, dtype=wide) + distance
    squashed: Tensor = embedding / size.where(size > 0, 1)
    return squashed.to(features.dtype)


class MetaEmbeddingClassifier(nn.Module):
    """Cosine classifier on the dynamic meta-embedding (Liu et al. 2019): tau w_j / |w_j| . squash(r (v + e * m)).

    m = softmax(H v + h) C, the mean of the centroids C under the hallucinator's guess; e = tanh(S v + s), the concept
    selector; r = 10 / min_i |v - c_i|, the reachability.

    No gradient of the logits reaches the centroids, as the authors have it: `OltrLoss` alone moves them. They start the
    hallucinator from the linear classifier of stage 1: `hallucinator.load_state_dict(linear.state_dict())`.

    Args:
        in_features: D.
        num_classes: C.
        centroids: class means of stage-1 features, [C, D]; copied. 0 if None, to be loaded.
        tau: scale of the logits.

    Raises:
        InputError: a size that is not a positive whole number, centroids of another shape, tau not above 0.

    Limit case: centroids of 0 give a cosine classifier with scale tau 10 / 11.

    >>> MetaEmbeddingClassifier(8, 3, torch.rand(3, 8))(torch.rand(2, 8)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self, in_features: int, num_classes: int, centroids: Float[Tensor, "C D"] | None = None, *, tau: float = 16.0
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(checks.whole("in_features", in_features))
        shape = (checks.whole("num_classes", num_classes), in_features)
        if centroids is not None and centroids.shape != shape:
            raise checks.InputError(f"centroids: expected shape {list(shape)}, got {list(centroids.shape)}")
        self.centroids = nn.Parameter(torch.zeros(shape) if centroids is None else centroids.detach().clone())
        self.hallucinator = nn.Linear(in_features, num_classes)
        self.selector = nn.Linear(in_features, in_features)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.tau = checks.number("tau", tau, above=0)

    def forward(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        checks.feature_shape(features.shape, self.weight.shape[1])
        centroids = self.centroids.detach()
        memory = self.hallucinator(features).softmax(dim=1) @ centroids
        embedding = meta_embedding(features, memory, torch.tanh(self.selector(features)), centroids)
        return F.linear(self.tau * embedding, unit(self.weight))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, tau={self.tau:g}"


class ModulatedAttention(nn.Module):
    """f + MA(f) * SA(f): self-attention whose share is told by position (Liu et al. 2019, modulated attention).

    SA = Z softmax(theta(f)^T phi(f)) g(f), a non-local block with 1 x 1 convolutions to D / 2 channels and Z back to D;
    MA = softmax(A f + a) over positions, from the whole map.

    Args:
        num_features: D.
        map_size: height and width of the map.

    Raises:
        InputError: a size that is not a positive whole number; in forward, a map of another size.

    Limit case: Z = 0, where it starts, is the map as it came.

    >>> ModulatedAttention(8, (4, 4))(torch.rand(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(self, num_features: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        checks.whole("num_features", num_features)
        height, width = (checks.whole("map_size", size) for size in map_size)
        inner = max(1, num_features // 2)
        self.map_size = (height, width)
        self.theta, self.phi, self.g = (nn.Conv2d(num_features, inner, 1) for _ in range(3))
        self.back = nn.Conv2d(inner, num_features, 1, bias=False)
        self.spatial = nn.Linear(num_features * height * width, height * width)
        for convolution in (self.theta, self.phi, self.g):
            nn.init.kaiming_normal_(convolution.weight)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
        nn.init.zeros_(self.back.weight)

    def forward(self, maps: Float[Tensor, "N D H W"]) -> Float[Tensor, "N D H W"]:
        if maps.shape[2:] != self.map_size:
            raise checks.InputError(f"map_size: expected maps of {list(self.map_size)}, got {list(maps.shape[2:])}")
        theta, phi, g = (part(maps).flatten(2) for part in (self.theta, self.phi, self.g))
        between = (theta.transpose(1, 2) @ phi).softmax(dim=2)  # [N, HW, HW]: of each position, over all
        self_attention: Tensor = self.back((g @ between.transpose(1, 2)).unflatten(2, self.map_size))
        spatial = self.spatial(maps.flatten(1)).softmax(dim=1).unflatten(1, (1, *self.map_size))
        attended: Tensor = maps + spatial * self_attention
        return attended


class ModulatedBackbone(nn.Module):
    """A backbone with `ModulatedAttention` on its map; again a backbone (`tailwise.backbones`).

    Args:
        backbone: with `num_features` and `forward_map`.
        map_size: height and width of its map, which the image size decides: 4 x 4 of `DigitsNet`, 8 x 8 of `ResNet32`.

    Raises:
        InputError: a backbone without a map, or with one of another size.

    Limit case: before training, its features are the backbone's.

    >>> from tailwise.backbones import DigitsNet
    >>> ModulatedBackbone(DigitsNet(), (4, 4))(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 64])
    """

    def __init__(self, backbone: nn.Module, map_size: tuple[int, int]) -> None:
        super().__init__()
        if not hasattr(backbone, "forward_map"):
            raise checks.InputError(f"backbone: expected one with forward_map, got {type(backbone).__name__}")
        self.backbone: Any = backbone  # a module, whose own attributes its type does not tell
        self.num_features = cast(int, backbone.num_features)
        self.last_block = (*(f"backbone.{name}" for name in getattr(backbone, "last_block", ())), "attention")
        self.attention = ModulatedAttention(self.num_features, map_size)

    def forward_map(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N D H W"]:
        maps: Tensor = self.attention(self.backbone.forward_map(images))
        return maps

    def forward(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N D"]:
        return self.forward_map(images).mean(dim=(2, 3))


class OltrView(nn.Module):
    """images -> (logits, features, centroids): a recognizer as `OltrLoss` needs to see it.

    The halves have the names they have in `Recognizer`, so that both have one `state_dict`.
    """

    def __init__(self, backbone: nn.Module, classifier: MetaEmbeddingClassifier) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.backbone(images)
        return self.classifier(features), features, self.classifier.centroids


def centroid_loss(
    features: Float[Tensor, "N D"],
    target: Int[Tensor, " N"],
    centroids: Float[Tensor, "C D"],
    *,
    margin: float = 10.0,
    repulsion: float = 0.01,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """|v - c_y|^2 / 2 + repulsion * max(0, margin - 1/C sum_{i != y} |v - c_i|^2): the discriminative centroid loss.

    The form of the authors' code; the paper has one hinge around a difference of distances. Two departures: each sample
    has its own max, so that a batch is the mean of its samples, where theirs is of the mean of the batch; and centroids
    have the gradient of this loss, where theirs is divided by 1 + the images of the class in the batch.

    Args:
        features: v, [N, D].
        target: classes y, [N].
        centroids: c, one per class, [C, D].
        margin: mean squared distance to the others from which on they no longer repel, at least 0.
        repulsion: weight of the second term, at least 0.
        reduction: "mean" over samples, or "none".

    Raises:
        InputError: margin or repulsion below 0.

    Limit case: repulsion 0 is the center loss (Wen et al. 2016).

    >>> v, c = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    >>> centroid_loss(v, torch.tensor([0]), c, margin=5.0, repulsion=0.1)  # 1 / 2 + 0.1 (5 - 4 / 2)
    tensor(0.8000)
    """
    checks.number("margin", margin, at_least=0)
    checks.number("repulsion", repulsion, at_least=0)
    to_own = (features - centroids[target]).square().sum(dim=1)
    # mean_i |v - c_i|^2 is |v - c|^2 + mean_i |c_i - c|^2 with c the mean centroid: no N x C distances are needed
    center = centroids.mean(dim=0)
    to_all = (features - center).square().sum(dim=1) + (centroids - center).square().sum(dim=1).mean()
    to_others = to_all - to_own / len(centroids)
    return reduced(to_own / 2 + repulsion * (margin - to_others).clamp_min(0), reduction)


class OltrLoss(nn.Module):
    """Cross-entropy + weight * `centroid_loss`, of an `OltrView`'s (logits, features, centroids).

    Args:
        weight: of the centroid loss; 0.01 is the authors'.
        margin, repulsion: as in `centroid_loss`.

    Raises:
        InputError: a number below 0.

    >>> classifier = MetaEmbeddingClassifier(8, 3, torch.rand(3, 8))
    >>> x, y = torch.rand(4, 8), torch.tensor([0, 1, 2, 0])
    >>> loss, plain = OltrLoss(weight=0.0), torch.nn.functional.cross_entropy
    >>> loss((classifier(x), x, classifier.centroids), y).equal(plain(classifier(x), y))
    True
    """

    def __init__(self, *, weight: float = 0.01, margin: float = 10.0, repulsion: float = 0.01) -> None:
        super().__init__()
        self.weight = checks.number("weight", weight, at_least=0)
        self.margin = checks.number("margin", margin, at_least=0)
        self.repulsion = checks.number("repulsion", repulsion, at_least=0)

    def forward(
        self,
        output: tuple[Float[Tensor, "N C"], Float[Tensor, "N D"], Float[Tensor, "C D"]],
        target: Int[Tensor, " N"],
    ) -> Float[Tensor, ""]:
        logits, features, centroids = output
        pull = centroid_loss(features, target, centroids, margin=self.margin, repulsion=self.repulsion)
        return F.cross_entropy(logits, target) + self.weight * pull
