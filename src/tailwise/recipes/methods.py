"""Method ids, one per row of a table: what each starts from, and what is done to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tailwise import checks

Classifier = Literal["linear", "cosine", "capsule", "causal"]
ANY: tuple[Classifier, ...] = ("linear", "cosine", "capsule", "causal")


@dataclass(frozen=True)
class Method:
    """classifiers: which trained classifiers it starts from. adjust: what is done to them, None for their own logits.

    "second-stage" trains once more, from a copy of the trained model; the others are functions of stored features.
    trains: the classifier of a second stage. on: what it is trained on.
    """

    classifiers: tuple[Classifier, ...]
    adjust: Literal["tde", "ncm", "tau-norm", "logit-adjustment", "fslwf", "second-stage"] | None = None
    trains: Literal["linear", "cosine", "mlp", "scaled", "trained", "meta-embedding"] | None = None
    on: Literal["images", "features"] | None = None


# Trained with another loss, step or optimiser, and a linear classifier
RIVALS_OF_LINEAR = (
    "focal",
    "class-balanced",
    "class-balanced-focal",
    "class-balanced-sigmoid",
    "balanced-softmax",
    "logit-adjusted",
    "vector-scaling",
    "equalization",
    "seesaw",
    "range",
    "lifted-structured",
    "mixup",
    "cutmix",
    "remix",
    "bbn",
    "glmc",
    "weight-decay",
    "sharpness-aware",
)
METHODS: dict[str, Method] = {
    "linear": Method(("linear",)),
    "joint": Method(("linear",)),
    "ncm": Method(ANY, "ncm"),
    "ncm-centered": Method(ANY, "ncm"),
    "tau-norm": Method(("linear",), "tau-norm"),
    "crt": Method(ANY, "second-stage", "linear", "images"),
    "lws": Method(("linear",), "second-stage", "scaled", "images"),
    "crt-stored": Method(ANY, "second-stage", "linear", "features"),
    "lws-stored": Method(("linear",), "second-stage", "scaled", "features"),
    "crt-mlp": Method(ANY, "second-stage", "mlp", "images"),
    "crt-cosine": Method(ANY, "second-stage", "cosine", "images"),
    "fine-tune": Method(ANY, "second-stage", "linear", "images"),
    "fine-tune-slow": Method(ANY, "second-stage", "linear", "images"),
    "fine-tune-last-block": Method(ANY, "second-stage", "linear", "images"),
    "cosine": Method(("cosine",)),
    "cosine-tde": Method(("cosine",), "tde"),
    "capsule": Method(("capsule",)),
    "capsule-tde": Method(("capsule",), "tde"),
    "de-confound": Method(("causal",)),
    "tde": Method(("causal",), "tde"),
    # the rivals
    **{name: Method(("linear",)) for name in RIVALS_OF_LINEAR},
    "ldam": Method(("cosine",)),
    "ldam-drw": Method(("cosine",)),
    "logit-adjustment": Method(ANY, "logit-adjustment"),
    "fslwf": Method(("cosine",), "fslwf"),
    "oltr": Method(("linear",), "second-stage", "meta-embedding", "images"),
    "decouple-oltr": Method(("linear",), "second-stage", "meta-embedding", "features"),
    "weight-balancing": Method(("linear",), "second-stage", "trained", "images"),
}


def adjusters_of(classifier: str) -> list[str]:
    """The ids that adjust a trained classifier of this kind.

    >>> adjusters_of("causal")[:3], adjusters_of("causal")[-2:]
    (['ncm', 'ncm-centered', 'crt'], ['tde', 'logit-adjustment'])
    """
    return [name for name, method in METHODS.items() if method.adjust and classifier in method.classifiers]


def tde_of(classifier: str) -> str | None:
    """The id of total direct effect for a normalized classifier; None for a linear one.

    >>> tde_of("cosine"), tde_of("linear")
    ('cosine-tde', None)
    """
    return next((name for name in adjusters_of(classifier) if METHODS[name].adjust == "tde"), None)


def deployed_method(reported: Sequence[str], classifier: str, method: str | None, *, alpha: bool, power: bool) -> str:
    """The id whose model is used: the one asked for, else total direct effect if it is made for that, else its own.

    Arguments and errors as in `asked_rows`.

    >>> deployed_method(["de-confound"], "causal", None, alpha=False, power=False)
    'tde'
    >>> deployed_method(["ldam"], "cosine", None, alpha=False, power=False)
    'ldam'
    """
    made_for_tde = reported[0] in ("cosine", "capsule", "de-confound")  # LDAM's cosines are not
    chosen = method or (tde_of(classifier) if made_for_tde else None) or reported[0]
    asked_rows(reported, classifier, chosen, alpha=alpha, power=power)
    return chosen


def sweepable(classifier: str) -> str:
    """The id whose strength can be swept for a trained classifier of this kind.

    >>> sweepable("capsule"), sweepable("linear")
    ('capsule-tde', 'tau-norm')
    """
    return next(name for name in adjusters_of(classifier) if METHODS[name].adjust in ("tde", "tau-norm"))


def checked_adjuster(classifier: str, method: str | None) -> str:
    """The method, if it adjusts a trained classifier of this kind; None asks for total direct effect.

    Raises:
        InputError: an unknown id, one that does not adjust, one of another classifier.

    >>> checked_adjuster("causal", None)
    'tde'
    """
    valid = adjusters_of(classifier)
    if method is None:
        method = tde_of(classifier)
        if method is None:
            raise checks.InputError(f"method: expected one of {', '.join(valid)}, got none")
    checks.choice("method", method, METHODS)
    if method not in valid:
        needs = " or ".join(METHODS[method].classifiers)
        fits = classifier in METHODS[method].classifiers
        why = "adjusts nothing" if fits else f"needs a {needs} classifier, this run trained {classifier}"
        raise checks.InputError(f"method: '{method}' {why}; what adjusts it: {', '.join(valid)}")
    return method


def asked_rows(reported: Sequence[str], classifier: str, method: str | None, *, alpha: bool, power: bool) -> list[str]:
    """The ids to measure: the one asked for, or those reported and those that a given strength belongs to.

    Args:
        reported: what the run reports, its own id first.
        classifier: the kind it trained.
        method: asked for, or None.
        alpha, power: whether a strength was given.

    Raises:
        InputError: an id of another classifier, a strength that no method here has.

    >>> asked_rows(["de-confound"], "causal", None, alpha=True, power=False)
    ['de-confound', 'tde']
    """
    rows = list(reported) if method is None else [method]
    if method is not None and method != reported[0]:
        checked_adjuster(classifier, method)
    for name, given, kind in (("alpha", alpha, "tde"), ("power", power, "tau-norm")):
        if not given or any(METHODS[row].adjust == kind for row in rows):
            continue
        fitting = [row for row in adjusters_of(classifier) if METHODS[row].adjust == kind]
        if method is not None or not fitting:
            got = method or f"a run of a {classifier} classifier"
            raise checks.InputError(f"{name}: expected a method that has one, got {got}")
        rows += fitting
    return rows
