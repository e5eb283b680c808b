"""Dotted `key=value` overrides of a recipe's settings."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from tailwise import checks
from tailwise.recipes.detection import DetectionRecipe
from tailwise.recipes.methods import METHODS
from tailwise.recipes.schema import Recipe

SHORT = {"backbone": "backbone.name"}  # backbone=resnet50
AnyRecipe = TypeVar("AnyRecipe", Recipe, DetectionRecipe)
FIXED = ("name",)  # what a recipe is, not how it is set
WHOLE = ("schedule", "loss", "step")  # may also be given whole: by kind, with its defaults, or as a JSON object


def override(recipes: Sequence[AnyRecipe], assignments: Sequence[str]) -> list[AnyRecipe]:
    """The recipes with each "key=value" applied where the recipe has that key.

    Args:
        recipes: at least one; of a suite, say.
        assignments: such as "stages.0.epochs=5" or "classifier.num_heads=4". Values are JSON; what is no JSON is
            text.

    Raises:
        InputError: no "=", a key that no recipe has (the nearest valid one is offered), a value of the wrong type or
            out of range.

    >>> from tailwise.recipes.catalog import find
    >>> override(find("digits-lt/tde"), ["stages.0.epochs=5"])[0].stages[0].epochs
    5
    """
    pairs = []
    keys = {recipe.name: list(_keys(_settings(recipe))) for recipe in recipes}
    every_key = {key for known in keys.values() for key in known}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        key = SHORT.get(key, key)
        if not equals:
            raise checks.InputError(f"override: expected key=value, got '{assignment}'")
        if key not in every_key:
            raise checks.InputError(f"override: unknown key '{key}'{_nearest_key(key, every_key)}")
        pairs.append((key, _parse(value)))
    return [_apply(recipe, [(key, value) for key, value in pairs if key in keys[recipe.name]]) for recipe in recipes]


def override_after_training(recipe: Recipe, method: str, assignments: Sequence[str]) -> Recipe:
    """As `override`, of a run that is trained already: only what a method depends on may change.

    Raises:
        InputError: as `override`; a key that the method does not depend on.
    """
    kind = METHODS[method].adjust or ""
    own = {"tde": "tde", "tau-norm": "tau_norm", "ncm": "ncm", "second-stage": f"second.{method}"}.get(kind)
    chosen = kind in ("tde", "tau-norm") or METHODS[method].on == "images"
    keys = ["metric", "allow_unseen"] if chosen else ["allow_unseen"]
    for assignment in assignments:
        key = assignment.partition("=")[0]
        if key not in keys and not (own and key.startswith(f"{own}.")):
            expected = ", ".join([*([f"a key below {own}"] if own else []), *keys])
            raise checks.InputError(f"override: '{method}' of a trained run depends on {expected}; got '{assignment}'")
    return override([recipe], assignments)[0]


def _apply(recipe: AnyRecipe, pairs: list[tuple[str, Any]]) -> AnyRecipe:
    settings = recipe.model_dump(mode="json")
    for key, value in pairs:
        *parents, last = key.split(".")
        place: Any = settings
        for part in parents:
            if part in WHOLE and isinstance(place[part], str):
                place[part] = {"kind": place[part]}
            place = place[int(part)] if isinstance(place, list) else place[part]
        if not isinstance(place, dict):  # what an earlier assignment put there
            raise checks.InputError(f"{'.'.join(parents)}: expected settings with a key '{last}', got {place!r}")
        if (last == "kind" or key.endswith("classifier.name")) and place.get(last) != value:
            place.clear()  # another kind has other settings: start from its defaults
        place[last] = value
    try:
        return type(recipe).model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":  # our own, and complete
            raise checks.InputError(str(first["ctx"]["error"])) from error
        # pydantic puts union tags into the path (schedule.cosine.warmup): where the key as typed is in it, name that
        place = [str(part) for part in first["loc"]]
        typed = [key for key, _ in pairs if all(part in place for part in key.split("."))]
        path = typed[0] if typed else ".".join(place)
        raise checks.InputError(f"{path}: {_lower(first['msg'])}, got {first['input']!r}") from error


def settings_of(recipe: Recipe | DetectionRecipe) -> dict[str, str]:
    """Every key of `override` that a recipe has, with its value as it would be typed.

    >>> from tailwise.recipes.catalog import RECIPES
    >>> settings_of(RECIPES["digits-lt/tde"])["classifier.num_heads"]
    '2'
    """
    settings, found = _settings(recipe), {}
    for key in _keys(settings):
        value: Any = settings
        for part in key.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        if not isinstance(value, dict):  # whose own keys follow
            found[key] = value if isinstance(value, str) else json.dumps(value)
    return found


def _settings(recipe: Recipe | DetectionRecipe) -> dict[str, Any]:
    return {key: value for key, value in recipe.model_dump(mode="json").items() if key not in FIXED}


def _keys(settings: Any, prefix: str = "") -> Iterator[str]:
    """The dotted name of every value, and of every list of plain values."""
    items = enumerate(settings) if isinstance(settings, list) else settings.items()
    for key, value in items:
        nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value))
        if nested:
            yield from _keys(value, f"{prefix}{key}.")
        if not nested or key in WHOLE:
            yield f"{prefix}{key}"


def _nearest_key(key: str, valid: set[str]) -> str:
    same_end = [name for name in valid if name.split(".")[-1] == key.split(".")[-1]]
    same_end.sort(key=lambda name: (name.startswith("second."), name))  # the first stage is meant, if any
    return f"; did you mean '{same_end[0]}'?" if same_end else checks.nearest(key, valid)


def _parse(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
