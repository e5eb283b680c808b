"""From a method id to an adjusted classifier, made from a trained one and its stores."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tailwise import checks
from tailwise.adjust import (
    fit_fslwf,
    fit_ncm,
    fold_logit_adjustment,
    fold_tau_norm,
    fold_tde,
    head_cosine,
    learn_norm_power,
    predictions_by_alpha,
    predictions_by_norm_power,
    sweep_alpha,
    sweep_norm_power,
    tau_norm_components,
    tde_components,
)
from tailwise.adjust.search import ALPHAS, NORM_POWERS, Sweep
from tailwise.classifiers import CosineClassifier, FoldedClassifier, NormalizedClassifier
from tailwise.counts import GROUPS, ClassCounts
from tailwise.evaluate import Store, metric
from tailwise.experiments.stores import Stores
from tailwise.recipes.methods import METHODS
from tailwise.recipes.schema import Recipe

Alpha = float | Literal["auto"]
Power = float | Literal["auto", "train", "learned"]


@dataclass(frozen=True)
class Choice:
    """How strong an adjustment is, or what that is chosen by. counts: trained on; published: what groups go by."""

    alpha: Alpha
    alpha_from: str
    power: Power
    power_from: str
    metric: str
    distance: Literal["cosine", "l2", "centered"]
    counts: ClassCounts
    published: ClassCounts
    allow_unseen: bool


@dataclass(frozen=True)
class Adjusted:
    """An adjusted classifier, and what its row says beside the accuracies."""

    classifier: FoldedClassifier
    notes: dict[str, Any] = field(default_factory=dict)


def strengths_of(recipe: Recipe) -> tuple[Alpha, Power]:
    """(alpha, norm power) as a recipe and its protocol say: a number, or how one is chosen."""
    alpha, power = recipe.tde.alpha, recipe.tau_norm.power
    if alpha is None:
        alpha = "auto" if recipe.protocol == "clean" else recipe.tde.fixed_alpha
    if power is None:
        power = "train" if recipe.protocol == "paper" else "auto"
    return alpha, power


def choice_of(
    recipe: Recipe,
    counts: ClassCounts,
    published: ClassCounts,
    *,
    alpha: Alpha | None = None,
    power: Power | None = None,
    metric: str | None = None,
) -> Choice:
    """What a recipe and its protocol say, where nothing else is asked for.

    Raises:
        InputError: "auto" under a protocol without val.
    """
    alpha_from, power_from = ("recipe" if value is None else "given" for value in (alpha, power))
    of_recipe = strengths_of(recipe)
    alpha = of_recipe[0] if alpha is None else alpha
    power = of_recipe[1] if power is None else power
    for name, value, others in (("alpha", alpha, "a number"), ("power", power, "a number, train or learned")):
        if value == "auto" and recipe.protocol == "paper":
            raise checks.InputError(
                f"{name}: 'auto' needs a validation split and this run has none (protocol paper); give {others}"
            )
    return Choice(
        alpha,
        alpha_from,
        power,
        power_from,
        metric or recipe.metric,
        recipe.ncm.distance,
        counts,
        published,
        recipe.allow_unseen,
    )


@torch.no_grad()
def adjusted(method: str, classifier: nn.Module, stores: Stores, choice: Choice) -> Adjusted:
    """The trained classifier, adjusted by a method that is a function of stores."""
    kind = METHODS[method].adjust
    if kind == "tde":
        return _tde(classifier, stores, choice)
    if kind == "tau-norm":
        return _tau_norm(classifier, stores, choice)
    if kind == "logit-adjustment":
        folded = fold_logit_adjustment(classifier, choice.counts, allow_unseen=choice.allow_unseen)  # type: ignore[arg-type]  # checked there
        return Adjusted(folded)
    train = stores.train()
    if kind == "fslwf":
        assert isinstance(classifier, CosineClassifier)
        weight = classifier.weight.detach()
        return Adjusted(fit_fslwf(features_of(train), labels_of(train), weight, allow_unseen=choice.allow_unseen))
    distance = "centered" if method == "ncm-centered" else choice.distance
    return Adjusted(
        fit_ncm(
            features_of(train),
            labels_of(train),
            choice.counts.num_classes,
            distance=distance,
            allow_unseen=choice.allow_unseen,
        ),
        {"distance": distance},
    )


def sweep(
    method: str, classifier: nn.Module, store: Store, choice: Choice, values: tuple[float, ...] | None
) -> tuple[tuple[float, ...], Any]:
    """(values, predictions of each [values, N]) of a method with a strength, on one store.

    Raises:
        InputError: a method without a strength.
    """
    kind = METHODS[method].adjust
    if kind == "tde":
        values = values or ALPHAS
        return values, predictions_by_alpha(_tde_components(classifier, store, choice), values)
    if kind == "tau-norm":
        values = values or NORM_POWERS
        return values, predictions_by_norm_power(_tau_norm_components(classifier, store, choice), values)
    raise checks.InputError(f"method: expected one with a strength to sweep (tde, tau-norm), got {method}")


def strength_name(method: str) -> str | None:
    """What the strength of a method is called in rows; None for a method without one.

    >>> strength_name("cosine-tde"), strength_name("tau-norm"), strength_name("ncm")
    ('alpha', 'norm_power', None)
    """
    return {"tde": "alpha", "tau-norm": "norm_power"}.get(METHODS[method].adjust or "")


def head_cosines(classifier: nn.Module, store: Store, counts: ClassCounts) -> dict[str, float | None] | None:
    """Mean cos of features to the head direction by group (None: no sample); None without a head direction."""
    if not isinstance(classifier, NormalizedClassifier):
        return None
    cosines = head_cosine(features_of(store), classifier).detach().numpy()
    group_of = np.array([counts.group_of(c) for c in range(counts.num_classes)])[store.labels]
    return {group: float(cosines[group_of == group].mean()) if (group_of == group).any() else None for group in GROUPS}


def features_of(store: Store) -> Tensor:
    """Its features as a tensor of their own: a store is read-only."""
    return torch.from_numpy(np.array(store.features))


def labels_of(store: Store) -> Tensor:
    """Its labels as a tensor of their own."""
    return torch.from_numpy(np.array(store.labels))


def _tde(classifier: Any, stores: Stores, choice: Choice) -> Adjusted:
    alpha: dict[str, Any] = {"value": choice.alpha, "from": choice.alpha_from}
    if choice.alpha == "auto":
        val = stores.val()
        assert val is not None  # `choice_of` refuses "auto" where there is none
        alpha = _chosen(sweep_alpha(_tde_components(classifier, val, choice), _score(val, choice)), val.split, choice)
    test = stores.test()
    lean = head_cosines(classifier, test, choice.published)
    folded = fold_tde(classifier, alpha["value"], counts=choice.counts, allow_unseen=choice.allow_unseen)
    return Adjusted(folded, {"alpha": alpha, "head_cosine": lean})


def _tau_norm(classifier: Any, stores: Stores, choice: Choice) -> Adjusted:
    power: dict[str, Any] = {"value": choice.power, "from": choice.power_from}
    if choice.power == "learned":
        train = stores.train()
        learned = learn_norm_power(_tau_norm_components(classifier, train, choice), labels_of(train))
        power = {"value": learned, "from": "learned"}
    elif isinstance(choice.power, str):
        store = stores.train() if choice.power == "train" else stores.val()
        assert store is not None  # as above
        found = sweep_norm_power(_tau_norm_components(classifier, store, choice), _score(store, choice))
        power = _chosen(found, store.split, choice)
    folded = fold_tau_norm(classifier, power["value"], counts=choice.counts, allow_unseen=choice.allow_unseen)
    return Adjusted(folded, {"norm_power": power})


def _chosen(sweep: Sweep, split: str, choice: Choice) -> dict[str, Any]:
    return {"value": sweep.chosen, "from": split, "by": choice.metric}


def _tde_components(classifier: Any, store: Store, choice: Choice) -> tuple[Tensor, Tensor]:
    return tde_components(features_of(store), classifier, counts=choice.counts, allow_unseen=choice.allow_unseen)


def _tau_norm_components(classifier: Any, store: Store, choice: Choice) -> tuple[Tensor, Tensor]:
    return tau_norm_components(features_of(store), classifier, counts=choice.counts, allow_unseen=choice.allow_unseen)


def _score(store: Store, choice: Choice) -> Any:
    return metric(choice.metric, np.asarray(store.labels), choice.published)
