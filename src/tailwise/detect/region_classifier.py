"""A classifier of regions: any classifier of this library, whose feature average listens to foreground alone."""

from torch import Tensor, nn

from tailwise.classifiers import FeatureAverage
from tailwise.shapes import Bool, Float, Int


class RegionClassifier(nn.Module):
    """A classifier over background and classes; its feature average, if it has one, sees foreground regions alone.

    x_t = momentum * x_{t-1} + mean of the features of the step's regions with a label above 0, over all processes
    (Tang et al. 2020, Assumption 1, as the authors' detector for LVIS v0.5 has it). Every training forward enters the
    reduction, with foreground or without; where no process has any, the average stays as it is.

    Args:
        classifier: features [N, D] to logits; what has an `average` is causal, cosine or capsule.
        legacy_average: take in what the authors' code for LVIS v1.0 does: background too, and no region of label 1. A
            slip of an index there, of which their published numbers for v1.0 come; see `counted`.

    Limit case: a batch without foreground leaves the average untouched.

    >>> regions = RegionClassifier(tailwise.CausalClassifier(2, 3, num_heads=1))
    >>> _ = regions(torch.tensor([[0.0, 5.0], [3.0, 4.0]]), torch.tensor([0, 2]))
    >>> regions.classifier.average.value
    tensor([3., 4.])
    """

    def __init__(self, classifier: nn.Module, *, legacy_average: bool = False) -> None:
        super().__init__()
        self.classifier = classifier
        self.legacy_average = legacy_average

    def forward(self, features: Float[Tensor, "N D"], target: Int[Tensor, " N"] | None = None) -> Float[Tensor, "N C"]:
        """Logits; target: labels of the regions, 0 for background, while training."""
        average = getattr(self.classifier, "average", None)
        if target is None or not isinstance(average, FeatureAverage):
            return self.classifier(features)  # type: ignore[no-any-return]  # nn.Module's call is Any
        with average.hold():
            logits: Tensor = self.classifier(features)
        average(features[counted(target, legacy=self.legacy_average)])
        return logits


def counted(target: Int[Tensor, " N"], *, legacy: bool = False) -> Bool[Tensor, " N"]:
    """Which regions the feature average takes in: foreground, or under `legacy` all but label 1.

    The authors' code for LVIS v1.0 asks for a label above 0 where background is the last label and the first class is
    0: background is averaged in, the first class is not.

    >>> counted(torch.tensor([0, 1, 2])).tolist(), counted(torch.tensor([0, 1, 2]), legacy=True).tolist()
    ([False, True, True], [True, False, True])
    """
    return target != 1 if legacy else target > 0
