"""A classifier with hidden layers: what a second stage may use in place of a linear one."""

from torch import Tensor, nn

from tailwise import checks
from tailwise.classifiers.linear import LinearClassifier
from tailwise.shapes import Float


class MlpClassifier(nn.Module):
    """`num_layers` linear layers with ReLU between them: W_L relu(... relu(W_1 x + b_1)) + b_L.

    Args:
        in_features: D.
        num_classes: C.
        num_layers: L, at least 1.
        hidden_features: width of the layers between; D if None.

    Raises:
        InputError: a size that is not a positive whole number.

    Limit case: L = 1 is the linear classifier.

    >>> MlpClassifier(8, 3)(torch.zeros(2, 8)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self, in_features: int, num_classes: int, *, num_layers: int = 2, hidden_features: int | None = None
    ) -> None:
        super().__init__()
        width = checks.whole("in_features", in_features)
        hidden = width if hidden_features is None else checks.whole("hidden_features", hidden_features)
        layers: list[nn.Module] = []
        for _ in range(checks.whole("num_layers", num_layers) - 1):
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        self.in_features = in_features
        self.hidden = nn.Sequential(*layers)
        self.last = LinearClassifier(width, num_classes)

    @property
    def weight(self) -> Tensor:
        """Of the last layer, one row per class."""
        return self.last.weight

    def forward(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        checks.feature_shape(features.shape, self.in_features)
        logits: Tensor = self.last(self.hidden(features))
        return logits

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.weight.shape[0]}"
