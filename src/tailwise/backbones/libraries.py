"""Any vision model of timm or of Hugging Face transformers, as a backbone."""

import math
from typing import Any

from torch import Tensor, nn

from tailwise import checks
from tailwise.shapes import Float


class TimmNet(nn.Module):
    """A model of timm, without its classifier; features are what it pools by itself.

    Args:
        name: timm's, such as "vit_small_patch14_dinov2.lvd142m".
        pretrained: with the weights that timm has under this name.
        size: of the images, H = W; for networks that are built for one size.

    Raises:
        InputError: timm is not installed, knows no such model, or cannot fetch its weights.
    """

    def __init__(self, name: str, *, pretrained: bool = False, size: int | None = None) -> None:
        super().__init__()
        timm = _timm()
        if not timm.is_model(name):
            close = checks.nearest(name, timm.list_models()) if len(name) > 2 else ""
            raise checks.InputError(f"backbone.name: timm has no model '{name}'{close if 'did you' in close else ''}")
        sized = {} if size is None else {"img_size": size}
        try:
            try:
                self.net: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **sized)
            except TypeError:  # convolutional networks take images of any size, and no such argument
                self.net = timm.create_model(name, pretrained=pretrained, num_classes=0)
        except Exception as error:  # no network, no such file, no weights, a size that will not do: each has its own
            what = "make or fetch" if pretrained else "make"
            raise checks.InputError(f"backbone.name: timm cannot {what} {name} ({_line(error)})") from error
        self.num_features: int = getattr(self.net, "head_hidden_size", None) or self.net.num_features
        self.last_block = _from_last_stage(self.net)
        self.last_bottleneck = self.last_block

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        features: Tensor = self.net(images)
        return features

    def forward_map(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C h w"]:
        """Before pooling, tokens in their places; C is D but where the model widens pooled features."""
        found: Tensor = self.net.forward_features(images)
        if found.dim() == 3:
            return _grid(found, getattr(self.net, "num_prefix_tokens", 0))
        return found if found.shape[1] == self.net.num_features else found.permute(0, 3, 1, 2)


class HuggingFaceNet(nn.Module):
    """A vision model of transformers; features are its pooled output, or its first token where pooling is untrained.

    Of a model that pools nothing, the mean over tokens or over the map.

    Of models of images and texts (CLIP, SigLIP) the vision part.

    Args:
        name: a repository of the hub or a folder, such as "facebook/dinov2-small".
        pretrained: with its weights.

    Raises:
        InputError: transformers is not installed, or cannot find or fetch the model; its width stands nowhere.
    """

    def __init__(self, name: str, *, pretrained: bool = False) -> None:
        super().__init__()
        try:
            import transformers
        except ModuleNotFoundError as error:
            raise checks.InputError(
                f"backbone.name: hf:{name} needs transformers; {checks.extra('transformers')}"
            ) from error
        library: Any = transformers
        try:
            if pretrained:
                model: Any = library.AutoModel.from_pretrained(name)
            else:
                model = library.AutoModel.from_config(library.AutoConfig.from_pretrained(name))
        except Exception as error:  # no network, no such repository, no model: each has its own
            raise checks.InputError(
                f"backbone.name: transformers cannot find or fetch '{name}' ({_line(error)})"
            ) from error
        self.net: Any = getattr(model, "vision_model", model)
        config = self.net.config
        width = (getattr(config, "hidden_sizes", None) or [getattr(config, "hidden_size", None)])[-1]
        if width is None:
            raise checks.InputError(f"backbone.name: expected a model with a width (hidden_size), got hf:{name}")
        self.num_features: int = width
        self.last_block = _last_layer(self.net)
        self.last_bottleneck = self.last_block
        # a layer that models of this kind have for their training on other data; its weights are no part of these
        self.first_token = hasattr(getattr(self.net, "pooler", None), "dense")
        # what no image passes through takes no gradient, of which several processes would wait in vain
        if self.first_token:
            self.net.pooler.requires_grad_(False)
        for name, parameter in self.net.named_parameters():
            if name.endswith("mask_token"):
                parameter.requires_grad = False

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        found = self.net(pixel_values=images)
        if self.first_token:
            features: Tensor = found.last_hidden_state[:, 0]
        elif getattr(found, "pooler_output", None) is not None:
            features = found.pooler_output
        else:
            last: Tensor = found.last_hidden_state
            features = last.mean(dim=(2, 3)) if last.dim() == 4 else last.mean(dim=1)
        return features.flatten(1)

    def forward_map(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D h w"]:
        """Before pooling, tokens in their places."""
        found: Tensor = self.net(pixel_values=images).last_hidden_state
        if found.dim() == 4:
            return found
        tokens, patch = found.shape[1], getattr(self.net.config, "patch_size", None)
        height, width = (side // patch for side in images.shape[2:]) if isinstance(patch, int) else (0, 0)
        if 0 < height * width <= tokens:
            return _grid(found, tokens - height * width, (height, width))
        return _grid(found, 0)  # patches merged on the way, which have no other token before them


Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def statistics_of_timm(name: str) -> Statistics:
    """Mean and deviation of each channel, in [0, 1], that a model of timm was trained with.

    Raises:
        InputError: timm is not installed; it knows no such model.
    """
    found = _timm().models.get_pretrained_cfg(name)
    if found is None:
        raise checks.InputError(f"backbone.name: timm has no model '{name}'")
    return tuple(found.mean), tuple(found.std)


def statistics_of_hugging_face(name: str) -> Statistics:
    """As `statistics_of_timm`, from the model's image processor.

    Raises:
        InputError: transformers is not installed; no such model, or none with an image processor.
    """
    try:
        import transformers

        library: Any = transformers
        found = library.AutoImageProcessor.from_pretrained(name)
    except Exception as error:  # not installed, no network, no such repository: each has its own
        raise checks.InputError(f"backbone.name: no image processor of '{name}' ({_line(error)})") from error
    return tuple(found.image_mean), tuple(found.image_std)


def _timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise checks.InputError(f"backbone.name: models of timm need it; {checks.extra('timm')}") from error
    return timm


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _grid(tokens: Tensor, prefix: int, size: tuple[int, int] | None = None) -> Tensor:
    """Tokens [N, T, D] of a grid of patches, after some that belong to no place, as a map; a square unless told."""
    side = math.isqrt(tokens.shape[1] - prefix)
    height, width = size or (side, side)
    if height * width != tokens.shape[1] - prefix:
        raise checks.InputError(f"backbone: expected tokens of a square of patches, got {tokens.shape[1]}")
    return tokens[:, prefix:].transpose(1, 2).reshape(len(tokens), -1, height, width)


def _from_last_stage(net: Any) -> tuple[str, ...]:
    """The last stage of a model of timm, and what follows it and has weights."""
    if not getattr(net, "feature_info", None):
        return ("net",)
    infos = net.feature_info
    last = str((infos[-1] if isinstance(infos, list) else infos.info[-1])["module"])
    try:
        net.get_submodule(last)
    except AttributeError:
        return ("net",)
    tops = [name for name, _ in net.named_children()]
    after = tops[tops.index(last.split(".")[0]) + 1 :]
    heavy = [name for name in after if any(True for _ in getattr(net, name).parameters())]
    return (f"net.{last}", *(f"net.{name}" for name in heavy))


def _last_layer(net: nn.Module) -> tuple[str, ...]:
    """The last entry of the longest list of like layers, and what follows at the top and has weights."""
    lists = [(name, part) for name, part in net.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    if not lists:
        return ("net",)
    name, layers = max(lists, key=lambda one: len(one[1]))
    tops = [top for top, _ in net.named_children()]
    after = tops[tops.index(name.split(".")[0]) + 1 :]
    heavy = [top for top in after if any(True for _ in net.get_submodule(top).parameters())]
    return (f"net.{name}.{len(layers) - 1}", *(f"net.{top}" for top in heavy))
