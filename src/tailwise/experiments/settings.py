"""Settings as they are written down beside a run, and which of them a result depends on."""

import contextlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tailwise import checks
from tailwise.recipes.detection import DetectionRecipe
from tailwise.recipes.schema import Recipe, SecondStageSettings

IDLE = ("seeds", "data.kept", "data.workers")  # settings that no result depends on, to the bit


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Every plain value by its dotted name.

    >>> flat({"a": [{"b": 1}], "c": 2})
    {'a.0.b': 1, 'c': 2}
    """
    if not isinstance(settings, dict | list):
        return {prefix: settings}
    items = settings.items() if isinstance(settings, dict) else enumerate(settings)
    inside = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in items]
    return {name: value for part in inside for name, value in part.items()}


def recorded(recipe: Recipe | DetectionRecipe) -> dict[str, Any]:
    """What is written down of a recipe: all but how many read its images, so that files are the same whoever does."""
    return recipe.model_dump(mode="json", exclude={"compute": {"workers"}})


def what_counts(written: Any) -> dict[str, Any]:
    """Every setting of a recipe that a result may depend on, by its dotted name.

    written: as in a recipe.json, perhaps of before some setting was there: what it lacks has its default.
    """
    for kind in (Recipe, DetectionRecipe):
        try:
            written = kind.model_validate(written).model_dump(mode="json")
            break
        except ValidationError:
            continue
    return {key: value for key, value in flat(written).items() if key not in IDLE}


def whole_stage(written: dict[str, Any]) -> dict[str, Any]:
    """What is written down of a second stage, perhaps before some setting was there: what it lacks has its default."""
    settings = {key: value for key, value in written.items() if key in SecondStageSettings.model_fields}
    with contextlib.suppress(ValidationError):  # a setting that this version does not know
        settings = SecondStageSettings.model_validate(settings).model_dump(mode="json")
    return {**written, **settings}


def check_settings(path: Path, about: dict[str, Any], recipe: Recipe | DetectionRecipe) -> None:
    """Refuse a checkpoint at `path`, of which it says `about`, of other settings than its run's recipe.

    Raises:
        InputError: they differ.
    """
    if what_counts(about.get("recipe")) != what_counts(recorded(recipe)):
        raise checks.InputError(f"{path}: expected a checkpoint of the run's recipe.json, got one of other settings")
