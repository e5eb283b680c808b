"""From settings to a backbone, and to how its images are normalized."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from torch import nn

from tailwise import checks
from tailwise.backbones import (
    RESNETS,
    DigitsNet,
    FrozenNet,
    HuggingFaceNet,
    ResNet,
    ResNet32,
    TimmNet,
    load_backbone,
    statistics_of_hugging_face,
    statistics_of_timm,
)
from tailwise.data.augment import Normalize
from tailwise.recipes.schema import BackboneSettings

BACKBONES: dict[str, Callable[[], DigitsNet | ResNet32]] = {
    "digits-net": DigitsNet,
    "digits-net-two-branch": partial(DigitsNet, two_branch=True),
    "resnet32": ResNet32,
    "resnet32-two-branch": partial(ResNet32, two_branch=True),
}
TIMM, HUGGING_FACE = "timm:", "hf:"


def build_backbone(settings: BackboneSettings, *, size: int | None = None, fetch: bool = True) -> nn.Module:
    """The network of this name, freshly initialised or with the weights it asks for.

    Args:
        size: of the images, H = W, if it is known; some networks are built for one.
        fetch: whether to have the weights; not where a checkpoint takes their place at once.

    Raises:
        InputError: a name that nobody knows; weights that are not there.
    """
    name, theirs = settings.name, settings.pretrained is True and fetch
    backbone: nn.Module
    if name in BACKBONES:
        if theirs:
            raise checks.InputError(f"backbone.pretrained: expected a file of weights for {name}, got true")
        backbone = BACKBONES[name]()
    elif name in RESNETS:
        backbone = ResNet(name, pretrained=theirs)
    elif name.startswith(HUGGING_FACE):
        backbone = HuggingFaceNet(name.removeprefix(HUGGING_FACE), pretrained=theirs)
    else:
        _not_a_typo(name)
        backbone = TimmNet(name.removeprefix(TIMM), pretrained=theirs, size=size)
    if isinstance(settings.pretrained, str) and fetch:
        load_backbone(backbone, Path(settings.pretrained))
    return FrozenNet(backbone) if settings.frozen else backbone


@cache
def normalize_of(name: str, usual: Normalize) -> Normalize:
    """What images are normalized by for this backbone: what a library's model was made for, else the data's own.

    Raises:
        InputError: a model that its library does not know.
    """
    if name in BACKBONES or name in RESNETS:
        return usual
    if name.startswith(HUGGING_FACE):
        mean, std = statistics_of_hugging_face(name.removeprefix(HUGGING_FACE))
    else:
        _not_a_typo(name)
        mean, std = statistics_of_timm(name.removeprefix(TIMM))
    return Normalize(scale=255.0, mean=mean, std=std)


def _not_a_typo(name: str) -> None:
    # timm's names have no hyphen: what has one was meant to be ours, and to load timm for that takes seconds
    if "-" in name and not name.startswith(TIMM):
        checks.choice("backbone.name", name, [*BACKBONES, *RESNETS])
