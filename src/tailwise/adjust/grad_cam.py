"""Where a class is seen: Grad-CAM (Selvaraju et al. 2017) through any classifier, the adjusted ones too."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailwise import checks
from tailwise.shapes import Float, Int


def grad_cam(
    backbone: nn.Module, classifier: nn.Module, images: Float[Tensor, "N c H W"], classes: Int[Tensor, " N"]
) -> Float[Tensor, "N H W"]:
    """How much each place of an image speaks for a class, by the logits of this classifier.

    Selvaraju et al. 2017, Eq. 1-2: relu(sum_d g_d A_d), where A is the map that the backbone's features are the mean of
    (`forward_map`), and g_d the mean over places of the gradient of the class's logit with respect to A_d. captum
    computes it. An adjusted classifier (`fold_tde`, LWS, ...) gives the map of its own logits; one that only multiplies
    a class's logit, such as LWS without bias, gives the map it had, multiplied.

    Args:
        backbone: with `forward_map`, as in `tailwise.backbones`; its features are the map's mean over places.
        classifier: features [N, D] -> logits [N, C].
        images: as the backbone takes them, normalized, [N, c, H, W].
        classes: whose logit is looked at, one for each image, 0..C-1, [N].

    Returns:
        At least 0, in units of the logit, brought from the map's size to the images' (bilinear). Where nothing speaks
        for the class, 0. Backbone and classifier are left as they were, in the mode they were in.

    Raises:
        InputError: no captum, a backbone without a map, a class for each image expected.

    Limit case: TDE at alpha = 0 gives the map of the classifier as it was trained.

    >>> from tailwise.backbones import DigitsNet
    >>> where = grad_cam(DigitsNet(), tailwise.LinearClassifier(64, 10), torch.rand(2, 1, 8, 8), torch.tensor([3, 9]))
    >>> where.shape
    torch.Size([2, 8, 8])
    """
    need_captum()
    from captum.attr import LayerGradCam

    if not hasattr(backbone, "forward_map"):
        raise checks.InputError(f"backbone: expected one with forward_map, got {type(backbone).__name__}")
    if classes.shape != images.shape[:1]:
        raise checks.InputError(f"classes: expected one for each of {len(images)} images, got {list(classes.shape)}")
    network: Any = backbone  # a module, whose own methods its type does not tell
    modes = {part: part.training for whole in (backbone, classifier) for part in whole.modules()}
    try:
        backbone.eval(), classifier.eval()
        with torch.no_grad():
            maps = network.forward_map(images)
            checks.labels_in_range("classes", classes.cpu().numpy(), classifier(maps[:1].mean(dim=(2, 3))).shape[1])
        pooled = _Pooled(classifier)
        small = LayerGradCam(pooled, pooled.seen).attribute(maps.requires_grad_(), classes, relu_attributions=True)
    finally:
        for part, training in modes.items():
            part.training = training
    return F.interpolate(small.detach(), images.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def need_captum() -> None:
    """Raises InputError where there is no captum."""
    try:
        import captum  # noqa: F401  # to see whether it is there
    except ImportError as error:
        raise checks.InputError(f"grad-cam: expected the package captum; {checks.extra('explain')}") from error


class _Pooled(nn.Module):
    """A map to logits, with the map as the output of a module, which is where captum looks."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.seen, self.classifier = nn.Identity(), classifier

    def forward(self, maps: Tensor) -> Any:
        return self.classifier(self.seen(maps).mean(dim=(2, 3)))
