"""From what each stage says of a region to detections: TDE with background exempted, averages over stages, NMS."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from tailwise import checks
from tailwise.adjust import background_exempted
from tailwise.detect.region_losses import RegionLoss
from tailwise.shapes import Float, Int


@dataclass(frozen=True)
class Inference:
    """How a trained detector answers; nothing here needs it to be trained anew.

    alpha: of total direct effect (Tang et al. 2020, Eq. 8); None is the classifiers' own logits.
    exempt_background: whether background keeps the probability it has without TDE (Eq. 9).
    score_threshold: detections of a lower probability are left out.
    nms_threshold: of two boxes of a class that overlap more, the one of the lower score is left out.
    per_image: the most detections of an image, over all classes; 300 for LVIS.

    Raises:
        InputError: a value outside its range.
    """

    alpha: float | None = None
    exempt_background: bool = True
    score_threshold: float = 1e-4
    nms_threshold: float = 0.5
    per_image: int = 300

    def __post_init__(self) -> None:
        if self.alpha is not None:
            checks.number("alpha", self.alpha)
        checks.number("score_threshold", self.score_threshold, at_least=0, below=1)
        checks.number("nms_threshold", self.nms_threshold, at_least=0)
        checks.whole("per_image", self.per_image)


@dataclass(frozen=True)
class StageLogits:
    """What one stage's classifier says of the regions: TDE's logits at any alpha are logits - alpha * effect.

    logits: [N, outputs]. effect: what the head direction alone would predict, or None for a classifier without one.
    """

    logits: Tensor
    effect: Tensor | None

    def tde(self, alpha: float) -> Tensor:
        """Eq. 8.

        Raises:
            InputError: a classifier without a head direction.
        """
        if self.effect is None:
            raise checks.InputError("alpha: expected classifiers with a feature average (causal, cosine or capsule)")
        return self.logits - alpha * self.effect


def class_scores(
    stages: Sequence[StageLogits], loss: RegionLoss, *, alpha: float | None = None, exempt_background: bool = True
) -> Float[Tensor, "N C"]:
    """The probability of each class in each region, class c being label c + 1.

    Without TDE the stages' logits are averaged, as Cascade R-CNN does. With TDE each stage gives probabilities of its
    own, Eq. 9 of Tang et al. 2020 or, without exemption, softmax of Eq. 8, and those are averaged. Either way they are
    probabilities, and nothing is put through a second softmax: a threshold means what it says.

    Args:
        stages: at least one.
        loss: that the classifiers were trained by; it says what a logit is.
        alpha: of Eq. 8, or None.
        exempt_background: whether background keeps its own probability.

    Raises:
        InputError: TDE of a classifier without a head direction, or where background is no class of a softmax.

    Limit case: one stage and alpha = 0 is no TDE.
    """
    if alpha is None:
        return loss.scores(torch.stack([stage.logits for stage in stages]).mean(dim=0))
    if loss.background is None:
        raise checks.InputError(
            "alpha: expected classifiers of one softmax over background and classes, got a loss that has none"
        )
    parts = []
    for stage in stages:
        adjusted = stage.tde(alpha)
        if exempt_background:
            kept = background_exempted(stage.logits, adjusted, background=loss.background)
            parts.append(torch.cat([kept[:, : loss.background], kept[:, loss.background + 1 :]], dim=1))
        else:
            parts.append(loss.scores(adjusted))
    return torch.stack(parts).mean(dim=0)


def best_places(boxes: Float[Tensor, "R B 4"], scores: Float[Tensor, "R C"], how: Inference) -> Int[Tensor, " n"]:
    """The detections of one image, best first: threshold, NMS within each class, the best over all classes.

    NMS goes down the scores, so what it keeps of the best M candidates does not depend on the rest: candidates are
    taken a few thousand at a time until enough are kept, which gives what all of them would.

    Args:
        boxes: of each region one, or one for each class; one without area is no detection.
        scores: of each region and class.
        how: thresholds and number.

    Returns:
        Places r * C + c of class c in region r.

    >>> box, scores = torch.tensor([[[0.0, 0.0, 9.0, 9.0]]] * 2), torch.tensor([[0.9, 0.2], [0.8, 0.0]])
    >>> best_places(box, scores, Inference())
    tensor([0, 1])
    """
    sides = (boxes[..., 2:] - boxes[..., :2]).amin(dim=-1)
    candidates = scores.where((scores > how.score_threshold) & (sides > 1e-2), 0).flatten()
    every = int((candidates > 0).sum())
    taken = min(every, 8 * how.per_image)
    while True:
        best, places = candidates.topk(taken)
        found = boxes_at(boxes, places, scores.shape[1])
        # in double precision: torchvision moves the classes apart, each by an image, and pixels must hold all the same
        keep = batched_nms(found.double(), best.double(), places % scores.shape[1], how.nms_threshold)[: how.per_image]
        if len(keep) == how.per_image or taken == every:
            return places[keep]
        taken = min(every, 4 * taken)


def boxes_at(boxes: Float[Tensor, "R B 4"], places: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, "n 4"]:
    """The boxes of detections, by their places r * C + c."""
    classes = places % num_classes if boxes.shape[1] > 1 else torch.zeros_like(places)
    return boxes[places // num_classes, classes]
