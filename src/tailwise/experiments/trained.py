"""One seed's trained model: its stores, its rows, and what is made from it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tailwise import checks, ranks
from tailwise.counts import ClassCounts
from tailwise.data import LongTailedData
from tailwise.experiments.adjusters import Alpha, Choice, Power, adjusted, choice_of
from tailwise.experiments.build_data import build_data
from tailwise.experiments.kept import adjusted_path, load_adjusted, save_adjusted
from tailwise.experiments.resume import OnEpoch, Place
from tailwise.experiments.rows import Row, adjusted_row, own_row
from tailwise.experiments.second import train_second_stage, unwatched
from tailwise.experiments.settings import flat
from tailwise.experiments.stores import Stores
from tailwise.recipes.methods import METHODS
from tailwise.recipes.schema import Recipe
from tailwise.recognizer import Recognizer


@dataclass(frozen=True)
class Asked:
    """What the user asks for in place of the recipe's own; None asks for nothing."""

    alpha: Alpha | None = None
    power: Power | None = None
    metric: str | None = None

    def of(self, method: str) -> "Asked":
        """The part that a method depends on: another's strength must not set a kept model aside."""
        adjust = METHODS[method].adjust
        if adjust not in ("tde", "tau-norm"):
            return AS_IT_IS
        return replace(self, **{"power" if adjust == "tde" else "alpha": None})


AS_IT_IS = Asked()


@dataclass(frozen=True)
class Made:
    """The model of a method, in eval mode; the stores whose features its classifier takes; the notes of its row."""

    method: str
    model: Recognizer
    stores: Stores
    notes: dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """A seed's model in eval mode, and its folder.

    recipe: may differ from the one trained by in what comes after. about: the checkpoint's own record. find_data: gives
    the images, where they are needed. place: where a second stage keeps its snapshots, if anywhere. must_keep: as in
    `Stores`.
    """

    folder: Path
    recipe: Recipe
    seed: int
    model: Recognizer
    digest: str
    about: dict[str, Any]
    find_data: Callable[[], LongTailedData]
    place: Callable[[str], Place | None] = lambda _: None
    must_keep: bool = True

    @cached_property
    def data(self) -> LongTailedData:
        """The images.

        Raises:
            InputError: none there, or not those that the model was trained on.
        """
        data = self.find_data()
        if data.subset_hash != self.about["subset_hash"]:
            raise checks.InputError(
                f"data: expected the {len(self.about['counts'])} classes and images that {self.folder} was trained on "
                f"(subset {self.about['subset_hash'][:12]}), got {data.counts.num_classes} classes of subset "
                f"{data.subset_hash[:12]}"
            )
        found = data.data_hash
        if (before := self.about.get("data_hash", found)) != found:  # checkpoints have not always held one
            raise checks.InputError(
                f"data: expected the labels that {self.folder} was trained and validated with (data {before[:12]}), "
                f"got others of the same images (data {found[:12]})"
            )
        return data

    @cached_property
    def stores(self) -> Stores:
        """Features and logits of this model."""
        return self._stores(self.folder / "stores", self.digest, self.model)

    def _stores(self, folder: Path, digest: str, model: Recognizer) -> Stores:
        return Stores(folder, digest, self.recipe, model, lambda: self.data, must_keep=self.must_keep)

    @cached_property
    def counts(self) -> ClassCounts:
        """Images per class that the model was trained on."""
        return ClassCounts(tuple(self.about["counts"]))

    @cached_property
    def published(self) -> ClassCounts:
        """Images per class of the published training set, which groups go by."""
        return ClassCounts(tuple(self.about["published_counts"]))

    def choice(self, asked: Asked) -> Choice:
        """How strong, chosen by what: as asked, else as the recipe and its protocol say."""
        return choice_of(
            self.recipe, self.counts, self.published, alpha=asked.alpha, power=asked.power, metric=asked.metric
        )

    def made(self, method: str, asked: Asked = AS_IT_IS) -> Made:
        """A method's model: the trained one, the adjusted one that is kept, else one made from stored features.

        Args:
            method: its id.
            asked: a strength, or what to choose one by; a kept model with a strength of its own is then left aside.

        Raises:
            InputError: a second stage that was not trained; what the method needs is not there.
        """
        adjust, asked = METHODS[method].adjust, asked.of(method)
        if adjust is None:
            return Made(method, self.model, self.stores, {})
        if adjust == "second-stage" or (asked == AS_IT_IS and self.has(method)):
            return self._kept(method)
        done = adjusted(method, self.model.classifier, self.stores, self.choice(asked))
        return Made(method, Recognizer(self.model.backbone, done.classifier).eval(), self.stores, done.notes)

    def row(self, method: str, asked: Asked = AS_IT_IS) -> Row:
        """The row of a method on test; arguments and errors as in `made`."""
        return self.row_of(self.made(method, asked))

    def row_of(self, made: Made, *, on_val: bool = False) -> Row:
        """The row of a model, of its own logits or of stored features; on val for numbers that are printed of val.

        Raises:
            InputError: on val where there is none.
        """
        store = made.stores.val() if on_val else made.stores.test()
        if store is None:
            raise checks.InputError(f"protocol: expected one with val, got {self.recipe.protocol}")
        if METHODS[made.method].adjust is None:
            return own_row(store, self.published)
        return {**adjusted_row(made.model.classifier, store, self.published), **made.notes}

    def has(self, method: str) -> bool:
        """Whether an adjusted model of this method is kept."""
        return ranks.agree(adjusted_path(self.folder, method).is_file())

    def adjust(self, method: str, asked: Asked = AS_IT_IS, on_epoch: OnEpoch = unwatched) -> tuple[Row, Path]:
        """Make the adjusted model of a method, keep it beside the checkpoint; its row, and the file.

        One that is kept is replaced: `check_same_stage` says whether it may be.

        Raises:
            InputError: no images or stores to make it from, settings that do not fit, a file that cannot be written.
        """
        path = adjusted_path(self.folder, method)
        about: dict[str, Any] = {"method": method, "of": self.digest, "seed": self.seed}
        if METHODS[method].adjust == "second-stage":
            settings = self._second_settings(method)
            made = train_second_stage(
                self.recipe,
                method,
                self.model,
                self.stores,
                lambda: self.data,
                self.counts,
                self.seed,
                on_epoch=on_epoch,
                place=self.place(method),
            )
            about |= {"notes": {"second_stage": {"epoch": made.epoch, **settings}}}
            if ranks.is_main():
                save_adjusted(path, made.model, about, own_features=made.own_features)
            ranks.wait()
            return self.row(method), path
        done = adjusted(method, self.model.classifier, self.stores, self.choice(asked))
        row = {**adjusted_row(done.classifier, self.stores.test(), self.published), **done.notes}
        model = Recognizer(self.model.backbone, done.classifier)
        save_adjusted(path, model, {**about, "notes": done.notes}, own_features=False)
        return row, path

    def _kept(self, method: str) -> Made:
        path = adjusted_path(self.folder, method)
        if not path.is_file():
            raise checks.InputError(f"method: no '{method}' was trained in {self.folder}; run `tailwise adjust` first")
        kept = load_adjusted(path, self.model, self.digest)
        stores = self.stores
        if kept.own_features:
            stores = self._stores(self.folder / "stores" / method, kept.digest, kept.model)
        return Made(method, kept.model, stores, kept.about["notes"])

    def _second_settings(self, method: str) -> dict[str, Any]:
        """Everything a second stage depends on beside seed and first stage; "by" is what its epoch is chosen by."""
        settings = self.recipe.second[method].model_dump(mode="json")
        by = self.recipe.metric if self.stores.val() is not None and settings["on"] == "images" else None
        return {**settings, "by": by, "allow_unseen": self.recipe.allow_unseen}

    def check_same_stage(self, method: str) -> None:
        """Refuse to put a second stage of other settings in the place of one that is kept.

        Raises:
            InputError: they differ; the one that is kept is corrupt, or of another checkpoint.
        """
        if METHODS[method].adjust != "second-stage" or not self.has(method):
            return
        path, settings = adjusted_path(self.folder, method), self._second_settings(method)
        kept = load_adjusted(path, self.model, self.digest).about["notes"]["second_stage"]
        there, here = flat({k: v for k, v in kept.items() if k != "epoch"}), flat(settings)
        for key in sorted(there.keys() | here.keys()):
            if there.get(key) != here.get(key):
                raise checks.InputError(
                    f"{path}: kept with {key} {there.get(key)}, got {here.get(key)}; move it away to train it otherwise"
                )


def trained_data(
    recipe: Recipe, seed: int, data_dir: Path | None, device: torch.device
) -> Callable[[], LongTailedData]:
    """What finds a trained model's images when they are needed."""
    return lambda: build_data(recipe, seed, data_dir, device).to(device)
