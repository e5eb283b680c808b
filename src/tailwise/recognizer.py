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
