"""A backbone and a classifier, joined at the seam: images -> features [N, D] -> logits [N, C]."""

from torch import Tensor, nn


class Recognizer(nn.Module):
    """`classifier(backbone(images))`, with both halves within reach by name."""

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.backbone(images))
        return logits


class LogitsAndFeatures(nn.Module):
    """images -> (logits [N, C], features [N, D]), of the same halves under the same names: for losses of both."""

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.backbone(images)
        return self.classifier(features), features
