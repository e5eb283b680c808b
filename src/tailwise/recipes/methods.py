"""Method ids: which classifier each trains, and how its predictions are adjusted."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Method:
    """classifier: what is trained. adjust: what is done to it afterwards, None for its own logits."""

    classifier: Literal["linear", "cosine", "capsule", "causal"]
    adjust: Literal["tde"] | None = None


METHODS: dict[str, Method] = {
    "linear": Method("linear"),
    "cosine": Method("cosine"),
    "cosine-tde": Method("cosine", adjust="tde"),
    "capsule": Method("capsule"),
    "capsule-tde": Method("capsule", adjust="tde"),
    "de-confound": Method("causal"),
    "tde": Method("causal", adjust="tde"),
}


def methods_for(classifier: str) -> list[str]:
    """The ids that a trained classifier can answer for, its own first.

    >>> methods_for("causal")
    ['de-confound', 'tde']
    """
    return [name for name, method in METHODS.items() if method.classifier == classifier]


def reported(method: str) -> list[str]:
    """The rows a recipe of this method reports: the classifier's own, then the method's.

    >>> reported("tde"), reported("linear")
    (['de-confound', 'tde'], ['linear'])
    """
    own = methods_for(METHODS[method].classifier)[0]
    return [own] if method == own else [own, method]
