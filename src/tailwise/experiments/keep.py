"""Which epoch's weights a protocol keeps."""

import copy
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from tailwise.data import LongTailedData
from tailwise.evaluate import Store, metric, shot_accuracy
from tailwise.experiments.adjusters import head_cosines
from tailwise.experiments.stores import predict_split
from tailwise.experiments.watch import Val
from tailwise.recipes.schema import Recipe
from tailwise.recognizer import Recognizer


@runtime_checkable
class Keep(Protocol):
    """Which epoch's weights stay. The four values, and the weights so far, are part of every snapshot."""

    epoch: int
    best_epoch: int
    best: float
    state: dict[str, Tensor]

    def consider(self) -> Val | None:
        """What there is to say of one more epoch."""

    def restore(self) -> int:
        """Put the weights that stay in place; returns their epoch."""


class LastEpoch:
    """The last weights, as published settings have it."""

    def __init__(self) -> None:
        self.epoch, self.best_epoch, self.best = 0, 0, -1.0
        self.state: dict[str, Tensor] = {}

    def consider(self) -> None:
        self.epoch += 1

    def restore(self) -> int:
        return self.epoch


class BestOnVal:
    """The weights that the protocol keeps: best on val (the later of equals), or the last ones without val.

    score: (classifier, store of val) -> number, higher is better; by default the recipe's metric of the model's own
    logits, under protocol legacy top-1.
    """

    def __init__(
        self,
        model: Recognizer,
        data: LongTailedData,
        recipe: Recipe,
        score: Callable[[nn.Module, Store], float] | None = None,
    ) -> None:
        self.model, self.data = model, data
        self.score = score or own_score(recipe, data)
        self.epoch, self.best_epoch, self.best = 0, 0, -1.0
        self.state: dict[str, Tensor] = {}

    def consider(self) -> Val | None:
        """What val says after one more epoch, None without val."""
        self.epoch += 1
        if self.data.val is None:
            return None
        val = predict_split(self.model, self.data, "val", "")
        classifier = copy.deepcopy(self.model.classifier).cpu()  # as the store is
        score, counts = self.score(classifier, val), self.data.published_counts
        if score >= self.best:
            self.best, self.best_epoch = score, self.epoch
            self.state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        accuracy = shot_accuracy(val.logits.argmax(axis=1), val.labels, counts)
        return Val(score, accuracy, head_cosines(classifier, val, counts))

    def restore(self) -> int:
        """Put the kept weights back; returns their epoch."""
        if self.data.val is None:
            return self.epoch
        self.model.load_state_dict(self.state)
        return self.best_epoch


def own_score(recipe: Recipe, data: LongTailedData) -> Callable[[nn.Module, Store], float]:
    """What the model's own logits are judged by: the recipe's metric, or top-1 under protocol legacy."""
    name = "all" if recipe.protocol == "legacy" else recipe.metric

    def score(_: nn.Module, store: Store) -> float:
        return metric(name, store.labels, data.published_counts)(store.logits.argmax(axis=1))

    return score
