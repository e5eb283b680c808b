"""Put a classifier on the user's own model, in the place of its last linear layer, and take the adjusted one off."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from tailwise import checks
from tailwise.adjust import fold_tde
from tailwise.classifiers import FeatureAverage, NormalizedClassifier
from tailwise.counts import ClassCounts
from tailwise.shapes import Float

# Under these names torchvision and transformers keep what makes logits; its last layer is the linear one.
# timm's models say where it is (`get_classifier`).
PLACES = ("fc", "classifier", "head", "heads", "score", "classification_head", "logits_proj")


class AttachedClassifier(nn.Module):
    """A classifier on features of any leading shape, [..., D] -> [..., C]; tokens left out by a mask are not averaged.

    What `attach` puts into a model. `classifier` is the one that was given.

    Args:
        classifier: features [N, D] to logits [N, C].
        pooled: of each row of tokens the model's answer is the last one's that counts.
    """

    def __init__(self, classifier: nn.Module, *, pooled: bool = False) -> None:
        super().__init__()
        self.classifier = classifier
        self.pooled = pooled
        self._mask: tuple[str, int] | None = None
        self._hook: RemovableHandle | None = None
        self._counted: Tensor | None = None

    def forward(self, features: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows C"]:
        counted, self._counted = self._counted, None
        rows = features.reshape(-1, features.shape[-1])
        average = getattr(self.classifier, "average", None)
        if features.dim() <= 2 or not isinstance(average, FeatureAverage):
            logits = self.classifier(rows)
        else:
            with average.hold():
                logits = self.classifier(rows)
            if average.training:
                average(rows[self._tokens(features, counted).flatten()])
        return logits.reshape(*features.shape[:-1], logits.shape[-1])  # type: ignore[no-any-return]  # nn.Module's call is Any

    def watch(self, model: nn.Module, mask: str, position: int) -> None:
        """From now on, look at the argument `mask`, or the one at `position`, of every forward of `model`."""
        self._mask = mask, position
        self._hook = model.register_forward_pre_hook(self._look, with_kwargs=True)

    def unwatch(self) -> None:
        """No longer look at the model's arguments."""
        if self._hook is not None:
            self._hook.remove()
        self._mask = self._hook = None

    # a method, not a function: a copy of the model must have a hook on the copy of this module
    def _look(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._mask is not None
        mask, position = self._mask
        self._counted = kwargs.get(mask, args[position] if len(args) > position else None)

    def _tokens(self, features: Tensor, counted: Tensor | None) -> Tensor:
        """Which tokens count, True or False for each."""
        shape = features.shape[:-1]
        if counted is None:
            counted = torch.ones(shape, device=features.device)
        if counted.shape != shape:
            raise checks.InputError(f"mask: expected shape {list(shape)}, as the features, got {list(counted.shape)}")
        counted = counted != 0
        if not self.pooled:
            return counted
        places = torch.arange(shape[-1], device=features.device)
        return places == (places * counted).argmax(dim=-1, keepdim=True)


def attach(
    model: nn.Module,
    classifier: nn.Module | Callable[[int, int], nn.Module],
    *,
    layer: str | None = None,
    mask: str | None = None,
) -> nn.Module:
    """Put a classifier in the place of a model's last linear layer; the training loop around it stays as it is.

    The layer is found as the library has it: timm's `get_classifier`; `fc`, `classifier`, `head`, `heads` of
    torchvision; `classifier`, `score`, `classification_head`, ... of transformers; otherwise it is the one nn.Linear
    with as many outputs as there are classes, if no layer but norms is defined after it. The feature average moves with
    every forward in train mode.

    Where the layer sees tokens [N, L, D], those the mask leaves out stay out of the average; without a mask every token
    counts. A transformers model "ForSequenceClassification" that answers by its last token is averaged over that one.

    Args:
        model: any classifier of images, text or features; changed in place.
        classifier: a module, features [N, D] to logits [N, C], or what makes one from (in_features, num_classes), such
            as `tailwise.CausalClassifier`. C may differ from what the model had, but not for transformers, where the
            loss knows it.
        layer: the name of the layer, as in `model.named_modules()`, where it cannot be found; any, if it has several.
        mask: the argument of the model's forward that is not 0 for tokens that count, [N, L]. Default: "attention_mask"
            if there is one.

    Returns:
        The model.

    Raises:
        InputError: no linear last layer, several that may be it (they are listed), or others after it; a layer or mask
            that the model does not have; a classifier of another width; a model that holds an attached one already.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> classifier = tailwise.CausalClassifier(8, 3)
    >>> tailwise.attach(model, classifier)(torch.rand(5, 1, 8, 8)).shape
    torch.Size([5, 3])
    >>> bool(classifier.average.value.any())
    True
    """
    for name, module in model.named_modules():
        if isinstance(module, AttachedClassifier):
            raise checks.InputError(f"model: expected one without an attached classifier, got one at '{name}'")
    arguments = _arguments(model)
    if mask is not None and mask not in arguments:
        raise checks.InputError(f"mask: expected an argument of the model's forward, got '{mask}'")
    mask = mask or "attention_mask"
    given = classifier if isinstance(classifier, nn.Module) else None
    path = _find(model, given) if layer is None else layer
    old = _linear(model, path)
    made = classifier(old.in_features, old.out_features) if given is None else given
    made = made.to(device=old.weight.device, dtype=old.weight.dtype)
    num_classes = _num_classes(made, old)
    if num_classes != old.out_features and hasattr(getattr(model, "config", None), "num_labels"):
        raise checks.InputError(
            f"classifier: expected {old.out_features} classes, the model's num_labels, got {num_classes}"
        )
    if getattr(model, "num_classes", num_classes) != num_classes:
        model.num_classes = num_classes  # type: ignore[assignment]  # a plain number in timm and torchvision
    attached = AttachedClassifier(made, pooled=type(model).__name__.endswith("ForSequenceClassification"))
    attached.train(old.training)
    if mask in arguments:
        attached.watch(model, mask, arguments.index(mask))
    for name in [name for name, module in _named(model).items() if module is old]:  # a forward may use any of its names
        model.set_submodule(name, attached)
    return model


def detach_adjusted(
    model: nn.Module, alpha: float, *, counts: ClassCounts | None = None, allow_unseen: bool = False
) -> nn.Module:
    """A copy of the model whose last layer is Eq. 8 of Tang et al. 2020 at this alpha, in plain tensors, in eval mode.

    No average is left in it: features are normalized and multiplied (`fold_tde`). The model itself stays as it is.

    Args:
        model: one that `attach` gave a causal, cosine or capsule classifier.
        alpha: finite.
        counts, allow_unseen: as in `tailwise.tde`.

    Raises:
        InputError: nothing attached, or a classifier without a feature average; an alpha that will not do.

    Limit case: alpha = 0 gives the logits of the model as it is.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> _ = tailwise.attach(model, tailwise.CausalClassifier)(torch.rand(5, 1, 8, 8))
    >>> list(tailwise.detach_adjusted(model, alpha=1.0).state_dict())
    ['1.classifier.weight']
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, AttachedClassifier):
            if not isinstance(module.classifier, NormalizedClassifier):
                raise checks.InputError(
                    "model: expected an attached classifier with a feature average (causal, cosine or capsule), "
                    f"got {type(module.classifier).__name__}"
                )
            module.classifier = fold_tde(module.classifier, alpha, counts=counts, allow_unseen=allow_unseen).eval()
            module.unwatch()
            return model
    raise checks.InputError(f"model: expected one with an attached classifier, got {type(model).__name__} without")


def _find(model: nn.Module, given: nn.Module | None) -> str:
    """The name of the last linear layer."""
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    libraries = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    parts: Any = ()
    ask: Any = getattr(model, "get_classifier", None)
    if ask is not None:
        parts = ask()
        parts = parts if isinstance(parts, tuple | list) else (parts,)
    elif libraries & {"torchvision", "transformers"}:
        parts = [getattr(model, place, None) for place in PLACES]
    last = [list(part.modules())[-1] for part in parts if isinstance(part, nn.Module)]
    if not last:
        num_classes = _known_classes(model, given)
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        last = [module for module in linear if num_classes in (None, module.out_features)]
        if len(last) == 1:
            _check_nothing_follows(model, last[0], names)
    if len(last) != 1:
        listed = ", ".join(names[id(module)] for module in last)
        found = f"may be any of {listed}; name it: layer='{names[id(last[-1])]}'" if last else "was not found"
        raise checks.InputError(f"layer: the last linear layer of {type(model).__name__} {found}")
    return names[id(last[0])]


def _check_nothing_follows(model: nn.Module, layer: nn.Module, names: dict[int, str]) -> None:
    """Refuse a layer that fits by its outputs where another one with a matrix of weights stands behind it."""
    inside = {*layer.modules()}  # a parametrized layer has its matrix in a module of its own
    weighted = [module for module in _named(model).values() if module in inside or _has_matrix(module)]
    if weighted[-1] not in inside:
        raise checks.InputError(
            f"layer: the last linear layer of {type(model).__name__} may not be {names[id(layer)]}, for "
            f"{names[id(weighted[-1])]} comes after it; name it: layer='...'"
        )


def _has_matrix(module: nn.Module) -> bool:
    """Whether it has weights other than those of a norm, one per channel."""
    return any(is_lazy(parameter) or parameter.dim() > 1 for parameter in module.parameters(recurse=False))


def _known_classes(model: nn.Module, given: nn.Module | None) -> Any:
    """How many classes the model says it has, or else the classifier that was given; None if neither tells."""
    weight = getattr(given, "weight", None)
    own = len(weight) if isinstance(weight, Tensor) else None
    return getattr(model, "num_classes", getattr(getattr(model, "config", None), "num_labels", own))


def _named(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by every name that it has, in the order of the model's definition."""
    return dict(model.named_modules(remove_duplicate=False))


def _linear(model: nn.Module, path: str) -> nn.Linear:
    modules = _named(model)
    if path not in modules:
        raise checks.InputError(f"layer: unknown value '{path}'{checks.nearest(path, modules)}")
    layer = modules[path]
    if not isinstance(layer, nn.Linear) or layer is model:
        where = f" at '{path}'" if path else ", the whole model"
        raise checks.InputError(f"model: expected an nn.Linear as last layer, got {type(layer).__name__}{where}")
    return layer


def _num_classes(classifier: nn.Module, old: nn.Linear) -> int:
    """C of a classifier, by asking it, in eval mode, for the logits of one feature vector."""
    before = classifier.training
    try:
        with torch.no_grad():
            logits = classifier.eval()(old.weight.new_zeros(1, old.in_features))
    except (checks.InputError, RuntimeError) as error:
        raise checks.InputError(
            f"classifier: expected one for features of width {old.in_features}, got {classifier} ({error})"
        ) from error
    finally:
        classifier.train(before)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise checks.InputError(f"classifier: expected logits [N, C] from features [N, D], got {classifier}")
    return logits.shape[1]


def _arguments(model: nn.Module) -> list[str]:
    return list(inspect.signature(model.forward).parameters)
