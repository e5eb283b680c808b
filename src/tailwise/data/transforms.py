"""What is made of an image from disk before a network sees it: the papers' transforms, and RandAugment.

Each takes a decoded `PIL.Image` and gives bytes [3, H, W]; `normalize` follows on the device. What is drawn comes from
torch's random state, which `reading` seeds for every image.
"""

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tailwise import checks
from tailwise.data.augment import Normalize
from tailwise.shapes import UInt8

# Of ImageNet; both papers normalize ImageNet-LT and Places-LT by it. iNaturalist has statistics of its own.
IMAGENET = Normalize(scale=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
INATURALIST = Normalize(scale=255.0, mean=(0.466, 0.471, 0.380), std=(0.195, 0.194, 0.192))


@dataclass(frozen=True)
class CentreView:
    """The shorter side resized, bilinearly, and the centre cut out: what both papers predict on (256, then 224).

    size: of the image, H = W. resize: of the shorter side before, at least `size`.

    Limit case: an image of `resize` x `resize` pixels is cut, nothing else.

    >>> from PIL import Image
    >>> CentreView(size=4, resize=6)(Image.new("RGB", (9, 12))).shape
    torch.Size([3, 4, 4])
    """

    size: int = 224
    resize: int = 256

    def __post_init__(self) -> None:
        checks.whole("size", self.size)
        checks.whole("resize", self.resize, at_least=self.size)

    def __call__(self, image: Any) -> UInt8[Tensor, "3 H W"]:
        return _made(_centre(self), image)


@dataclass(frozen=True)
class RandomView:
    """A random part of the image, resized, and flipped every second time; colours changed as asked.

    With jitter 0.4 both papers train on ImageNet-LT and Places-LT, with 0 on iNaturalist: a part of 8 % to 100 % of
    the area and a ratio of 3/4 to 4/3 (Szegedy et al. 2015); brightness, contrast and saturation scaled by
    1 +- jitter each, in a random order. The jitter is in the authors' code, not in the papers.

    size: of the image, H = W. jitter: in [0, 1]. rand_augment: operations of RandAugment (Cubuk et al. 2020), drawn for
    each image, in place of the papers' jitter; 0 is none. magnitude: of these, 0 to 30.

    >>> from PIL import Image
    >>> RandomView(size=4)(Image.new("RGB", (9, 12))).shape
    torch.Size([3, 4, 4])
    """

    size: int = 224
    jitter: float = 0.0
    rand_augment: int = 0
    magnitude: int = 9

    def __post_init__(self) -> None:
        checks.whole("size", self.size)
        checks.number("jitter", self.jitter, at_least=0)
        checks.whole("rand_augment", self.rand_augment, at_least=0)
        checks.whole("magnitude", self.magnitude, at_least=0)

    def __call__(self, image: Any) -> UInt8[Tensor, "3 H W"]:
        return _made(_random(self), image)


def _made(transform: Any, image: Any) -> Tensor:
    made: Tensor = transform(image)
    return made


def _transforms() -> Any:
    try:
        from torchvision.transforms import v2
    except ModuleNotFoundError as error:
        raise checks.InputError(f"augment: images on disk need torchvision; {checks.extra('vision')}") from error
    return v2


@functools.cache
def _centre(view: CentreView) -> Any:
    v2 = _transforms()
    return v2.Compose([v2.Resize(view.resize), v2.CenterCrop(view.size), v2.PILToTensor()])


@functools.cache
def _random(view: RandomView) -> Any:
    v2 = _transforms()
    steps = [v2.RandomResizedCrop(view.size), v2.RandomHorizontalFlip()]
    if view.jitter:
        steps.append(v2.ColorJitter(view.jitter, view.jitter, view.jitter, 0))
    if view.rand_augment:
        steps.append(v2.RandAugment(view.rand_augment, view.magnitude))
    return v2.Compose([*steps, v2.PILToTensor()])
