"""The model that leaves the library: images as bytes to logits, built again from plain JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tailwise import checks
from tailwise.classifiers import FoldedClassifier, MlpClassifier
from tailwise.experiments import files
from tailwise.recipes.build_backbone import build_backbone
from tailwise.recipes.schema import BackboneSettings
from tailwise.shapes import Float, UInt8
from tailwise.train import load_state

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class DeployedModel(nn.Module):
    """Normalization, backbone and adjusted classifier in one: images as bytes -> logits, no average of features left.

    What it is made by is plain JSON and stays within reach as `config`; weights come from elsewhere
    (`load_deployed`).

    Args:
        backbone: its name in recipes.
        class_names: [C].
        image_shape: channels, H, W.
        scale, mean, std: what the network sees is (images / scale - mean) / std, per channel.
        num_heads, norm: of the folded classifier.
        bias, center: whether it has these.
        mlp: sizes of an MLP classifier, in place of the folded one.

    Raises:
        InputError: an unknown backbone, sizes that do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        backbone: str,
        class_names: Sequence[str],
        image_shape: Sequence[int],
        scale: float,
        mean: Sequence[float],
        std: Sequence[float],
        num_heads: int = 1,
        norm: Literal["unit", "capsule", "none"] = "none",
        bias: bool = False,
        center: bool = False,
        mlp: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, str) or not backbone:
            raise checks.InputError(f"backbone: expected a name, got {backbone!r}")
        if len([checks.whole("image_shape", size) for size in image_shape]) != 3:
            raise checks.InputError(f"image_shape: expected channels, H and W, got {list(image_shape)}")
        self.config: dict[str, Any] = {
            "backbone": backbone,
            "class_names": list(class_names),
            "image_shape": list(image_shape),
            "scale": scale,
            "mean": list(mean),
            "std": list(std),
            "num_heads": num_heads,
            "norm": norm,
            "bias": bias,
            "center": center,
            "mlp": mlp,
        }
        self.scale = checks.number("scale", scale, above=0)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor([checks.number(name, v) for v in values]).view(-1, 1, 1))
        self.backbone = build_backbone(BackboneSettings(name=backbone), size=image_shape[1])
        width, num_classes = self.backbone.num_features, len(class_names)
        assert isinstance(width, int)
        self.classifier: nn.Module
        if mlp is None:
            self.classifier = FoldedClassifier(
                torch.zeros(num_classes, width),
                num_heads=num_heads,
                norm=norm,
                bias=torch.zeros(num_classes) if bias else None,
                center=torch.zeros(width) if center else None,
            )
        else:
            self.classifier = MlpClassifier(width, num_classes, **mlp)

    def forward(self, images: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N K"]:
        logits: Tensor = self.classifier(self.backbone((images.float() / self.scale - self.mean) / self.std))
        return logits


def load_deployed(folder: Path | str) -> DeployedModel:
    """The model in a folder that `tailwise export --format safetensors` wrote, in eval mode; nothing in it is run.

    Args:
        folder: with config.json and model.safetensors.

    Raises:
        InputError: a file that is absent or does not fit.
    """
    folder = Path(folder)
    config = files.read_json(folder / CONFIG)
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights are overwritten
            model = DeployedModel(**config)
        state = load_file(folder / WEIGHTS)
    except TypeError as error:
        raise checks.InputError(f"{folder / CONFIG}: not of this version of tailwise ({error})") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise checks.InputError(f"{folder / WEIGHTS}: not readable ({error})") from error
    load_state(model, state)
    return model.eval()
