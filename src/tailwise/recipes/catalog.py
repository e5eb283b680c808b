"""Every recipe by name, and the suites that a bare data name stands for."""

from collections.abc import Sequence
from typing import Any, Literal

from tailwise import checks
from tailwise.recipes.datasets import BenchmarkSettings, OwnSettings, SubsetSettings
from tailwise.recipes.methods import METHODS, adjusters_of
from tailwise.recipes.rivals import RIVALS, TWO_BRANCH, changed
from tailwise.recipes.schema import (
    STORED,
    BackboneSettings,
    CapsuleSettings,
    CausalSettings,
    ClassifierSettings,
    ComputeSettings,
    CosineSettings,
    LinearSettings,
    MetaEmbeddingSettings,
    MlpSettings,
    Recipe,
    ScaledSettings,
    SecondClassifierSettings,
    SecondStageSettings,
    TdeSettings,
    TrainedSettings,
)
from tailwise.recipes.stages import (
    ClassBalancedSettings,
    CosineScheduleSettings,
    MemorySettings,
    MultistepSettings,
    StageSettings,
)

CIFARS = ("cifar10-lt", "cifar100-lt")
CLASSIFIERS: dict[str, ClassifierSettings] = {
    "linear": LinearSettings(),  # without bias, as Tang et al.'s baseline
    "joint": LinearSettings(bias=True),  # as Kang et al.'s
    "cosine": CosineSettings(),
    "capsule": CapsuleSettings(),
    "de-confound": CausalSettings(),
}

# 8 x 8 digits: small batches and a long warm-up; about 2 s a run on one CPU core. Network, batch size (32, 64) and
# learning rate (0.05, 0.1, 0.2) did best on val over seeds 100 to 111, for linear and de-confound alike: no reported
# seed and no test image had a part in it.
DIGITS = {
    "data": SubsetSettings(name="digits-lt", imbalance_ratio=50),
    "backbone": BackboneSettings(name="digits-net"),
    "stages": (
        StageSettings(
            name="joint",
            epochs=60,
            batch_size=32,
            learning_rate=0.2,
            schedule=CosineScheduleSettings(warmup=0.3),
            augment="shift",
        ),
    ),
    "tde": TdeSettings(fixed_alpha=1.0),
    "seeds": 5,
    "compute": ComputeSettings(
        threads=1
    ),  # operations this small gain nothing from a second, and lose much where the machine is shared
}

# Tang et al. 2020 on CIFAR-LT, from the paper and the authors' configuration: two-branch ResNet-32, batch 256,
# learning rate 0.2 (x 0.01 at epochs 120 and 160), 200 epochs, the last partial batch unused.
CIFAR = {
    "backbone": BackboneSettings(name="resnet32-two-branch"),
    "stages": (
        StageSettings(
            name="joint",
            epochs=200,
            batch_size=256,
            learning_rate=0.2,
            schedule=MultistepSettings(milestones=(120, 160), factor=0.01, warmup_epochs=5),
            augment="crop-flip",
            drop_last=True,
        ),
    ),
}

# Photographs, from both papers and the authors' configurations: batch 512, learning rate 0.2, taken to 0 by a
# cosine. The colour jitter and the weight decay are in the code alone. The feature average follows the learning rate.
PHOTOS_STAGE = StageSettings(
    name="joint",
    epochs=90,
    batch_size=512,
    learning_rate=0.2,
    schedule=CosineScheduleSettings(),
    augment="random-resized-crop-jitter",
    drop_last=True,
)
PHOTOS: dict[str, dict[str, Any]] = {
    # Tang et al., Table 2, and Kang et al., Table 2
    "imagenet-lt": {"backbone": BackboneSettings(name="resnext50-32x4d"), "stages": (PHOTOS_STAGE,)},
    # Kang et al., Table 4: from an ImageNet network, of which the last block of layers is trained. How long, and in
    # which batches, is in no configuration of the first stage: 30 epochs is what its author names first, batch and
    # learning rate are those of the second.
    "places-lt": {
        "backbone": BackboneSettings(name="resnet152", pretrained=True),
        "stages": (
            PHOTOS_STAGE.model_copy(
                update={"epochs": 30, "batch_size": 256, "learning_rate": 0.1, "trainable": "last-block"}
            ),
        ),
    },
    # Kang et al., Table 3: 90 epochs (200 are stages.0.epochs=200)
    "inaturalist-2018": {
        "backbone": BackboneSettings(name="resnet50"),
        "stages": (PHOTOS_STAGE.model_copy(update={"weight_decay": 1e-4, "augment": "random-resized-crop"}),),
    },
}
# The user's own: a network that knows ImageNet, tuned as a whole; batches that one GPU holds, at a learning rate
# that is the papers' for this size, warmed up so that what the network knows is not lost in the first steps.
OWN = {
    "data": OwnSettings(),
    "backbone": BackboneSettings(name="resnet50", pretrained=True),
    "stages": (
        PHOTOS_STAGE.model_copy(
            update={
                "epochs": 30,
                "batch_size": 64,
                "learning_rate": 0.025,
                "schedule": CosineScheduleSettings(warmup=0.1),
                "augment": "random-resized-crop",
                "drop_last": False,
            }
        ),
    ),
    "tde": TdeSettings(fixed_alpha=3.0),
}

DATA: dict[str, dict[str, Any]] = {
    "digits-lt": DIGITS,
    "cifar10-lt": CIFAR
    | {"data": SubsetSettings(name="cifar10-lt", imbalance_ratio=100), "tde": TdeSettings(fixed_alpha=1.0)},
    "cifar100-lt": CIFAR
    | {"data": SubsetSettings(name="cifar100-lt", imbalance_ratio=100), "tde": TdeSettings(fixed_alpha=1.5)},
    **{
        name: settings
        | {"data": BenchmarkSettings.model_validate({"name": name}), "tde": TdeSettings(fixed_alpha=3.0), "seeds": 1}
        for name, settings in PHOTOS.items()
    },
    "own": OWN,
}

# Kang et al.: the learning rate restarted, taken to 0 by half a cosine over 10 epochs (LWS: 5), class-aware sampling.
# Rows of their Table 1: everything re-trained (B+C), at a tenth of the learning rate, the last block alone (LB+C), the
# classifier alone (C, which is crt); the classifier starts afresh in each, as in the authors' code.
SECOND_CLASSIFIERS: dict[str, SecondClassifierSettings] = {
    "linear": LinearSettings(bias=True),
    "scaled": ScaledSettings(),
    "mlp": MlpSettings(),
    "cosine": CosineSettings(),
    "trained": TrainedSettings(),
    "meta-embedding": MetaEmbeddingSettings(),
}
TRAINABLE: dict[str, Literal["all", "last-block"]] = {
    "fine-tune": "all",
    "fine-tune-slow": "all",
    "fine-tune-last-block": "last-block",
    "oltr": "all",
}
# What else a second stage changes: OLTR trains at a tenth of the learning rate, as its authors do the backbone; weight
# balancing goes on from the trained classifier, with the class-balanced loss on instance-balanced samples. Its decay
# and radius are tuned on val in the paper; these are ours.
SECOND_CHANGES: dict[str, dict[str, Any]] = {
    "oltr": {"step": MemorySettings()},
    "weight-balancing": {
        "loss": ClassBalancedSettings(),
        "sampler": "instance",
        "weight_decay": 5e-3,
        "max_norm": 1.0,
    },
}
SECOND_EPOCHS = {("inaturalist-2018", "crt"): 30}  # of the authors' configuration; the paper says 10
SLOW = ("fine-tune-slow", "oltr")
SECOND_STAGES = tuple(name for name, method in METHODS.items() if method.adjust == "second-stage")


def second_stage(data: str, method: str, first: StageSettings | None = None) -> SecondStageSettings:
    """The second stage of a method on a data set, with the first stage's batch, learning rate and weight decay.

    first: the data's own first stage if None.

    >>> second_stage("digits-lt", "lws").stage.epochs
    5
    """
    first = first or DATA[data]["stages"][0]
    stored = METHODS[method].on == "features"
    stage = StageSettings(
        name=method,
        epochs=SECOND_EPOCHS.get((data, method), 5 if method.startswith("lws") else 10),
        batch_size=first.batch_size,
        learning_rate=first.learning_rate * (0.1 if method in SLOW else 1.0),
        weight_decay=first.weight_decay,
        schedule=CosineScheduleSettings(),
        **STORED | ({} if stored else {"augment": first.augment, "trainable": TRAINABLE.get(method, "classifier")}),
        drop_last=first.drop_last and not stored,
    ).model_copy(update=SECOND_CHANGES.get(method, {}))
    classifier = SECOND_CLASSIFIERS[METHODS[method].trains or ""]
    return SecondStageSettings(classifier=classifier, stage=stage, on="features" if stored else "images")


def _rival(data: str, method: str, title: str, adjusters: Sequence[str] = (), *, published: bool = False) -> Recipe:
    """A rival with Kang et al.'s classifier, LDAM with the cosines it is made for, BBN with its two branches."""
    stage = DATA[data]["stages"][0].model_copy(update=changed(data, method, published=published))
    own: BackboneSettings = DATA[data]["backbone"]
    network = "resnet32" if published else own.name
    backbone = own.model_copy(update={"name": TWO_BRANCH.get(network, network) if method == "bbn" else network})
    classifier = CosineSettings(tau=1.0) if method.startswith("ldam") else CLASSIFIERS["joint"]
    second = {adjuster: second_stage(data, adjuster, stage if published else None) for adjuster in adjusters}
    settings = {"classifier": classifier, "stages": (stage,), "backbone": backbone, "second": second}
    return _recipe(data, title, method, adjusters, **settings)


def _rivals_of(data: str) -> list[Recipe]:
    """Each in the setting of the data's own recipes; on CIFAR-LT in its published one, too."""
    rivals = [
        *(_rival(data, name, name) for name in rivals_of(data)),
        _rival(data, "weight-decay", "weight-balancing", ("weight-balancing",)),
        _rival(data, "glmc", "glmc-max-norm", ("weight-balancing",)),  # Du et al.'s last row
    ]
    if data in CIFARS:
        rivals += [_rival(data, name, f"{name}-published", published=True) for name in ("joint", *RIVALS)]
        balanced = "weight-balancing-published"
        rivals += [_rival(data, "weight-decay", balanced, ("weight-balancing",), published=True)]
    return rivals


def _classifier(data: str, own: str) -> ClassifierSettings | None:
    """Of a method's own row; on photographs the feature average follows the learning rate, as in the authors' code."""
    settings = CLASSIFIERS.get(own)
    if data in PHOTOS and settings is not None and hasattr(settings, "momentum"):
        return settings.model_copy(update={"momentum": "follow-lr"})
    return settings


def rivals_of(data: str) -> list[str]:
    """Those that this data's backbone can be trained by: BBN needs one with two branches.

    >>> "bbn" in rivals_of("cifar10-lt"), "bbn" in rivals_of("imagenet-lt")
    (True, False)
    """
    return [name for name in RIVALS if name != "bbn" or data == "digits-lt" or data in CIFARS]


def _recipe(data: str, title: str, own: str, adjusters: Sequence[str], **settings: object) -> Recipe:
    name, methods = f"{data}/{title}", (own, *adjusters)
    second = {method: second_stage(data, method) for method in adjusters if method in SECOND_STAGES}
    named = {"name": name, "classifier": _classifier(data, own), "methods": methods, "second": second}
    return Recipe.model_validate(DATA[data] | named | settings)


DECOUPLING = ("ncm", "tau-norm", "crt", "lws")  # beside joint, the rows of Kang et al.'s Fig. 1
SAMPLERS = ("square-root", "class-balanced", "progressive")  # beside instance-balanced, its columns
MOMENTA = (0.0, 0.5, 0.8, 0.95, 0.98)  # beside the recipes' own 0.9: Tang et al. 2020, Fig. 1c
STARTS = {
    "cosine-tde": "cosine",
    "capsule-tde": "capsule",
    "tde": "de-confound",
    "fslwf": "cosine",
    "weight-balancing": "weight-decay",
}
# Found on digits-lt, on val alone (docs/pitfalls.md): a normalized classifier needs long steps and no decay.
ADAMW = {"optimizer": "adamw", "learning_rate": 0.1, "beta2": 0.99, "weight_decay": 0.0}
RIVAL_ADJUSTERS = ("logit-adjustment", "fslwf", "oltr", "decouple-oltr", "weight-balancing")


def _by_momentum(data: str, *, matched: bool) -> list[Recipe]:
    """The linear classifier under other momenta. matched: the learning rate goes with 1 - momentum, so that the steps
    are as long in the long run; else momentum changes their length, too.
    """
    joint: StageSettings = DATA[data]["stages"][0]
    recipes = []
    for momentum in MOMENTA:
        rate = joint.learning_rate * (1 - momentum) / (1 - joint.momentum) if matched else joint.learning_rate
        stage = joint.model_copy(update={"momentum": momentum, "learning_rate": round(rate, 10)})
        title = f"linear-momentum-{100 * momentum:.0f}{'-matched' * matched}"
        recipes.append(_recipe(data, title, "linear", (), stages=(stage,)))
    return recipes


def _recipes_of(data: str) -> list[Recipe]:
    joint: StageSettings = DATA[data]["stages"][0]
    small = data == "digits-lt"
    own = [_recipe(data, name, name, ()) for name in CLASSIFIERS]
    adjusting = [
        _recipe(data, name, STARTS.get(name, "joint"), (name,))
        for name, method in METHODS.items()
        if method.adjust and name != "weight-balancing"
    ]
    by_sampler = [
        _recipe(
            data, f"decoupling-{sampler}", "joint", DECOUPLING, stages=(joint.model_copy(update={"sampler": sampler}),)
        )
        for sampler in SAMPLERS
    ]
    return [
        *own,
        *adjusting,
        _recipe(data, "decoupling", "joint", DECOUPLING),
        *by_sampler,
        *_by_momentum(data, matched=False),
        *_by_momentum(data, matched=True),
        _recipe(data, "fine-tuning", "joint", ("fine-tune", "fine-tune-slow", "fine-tune-last-block", "crt")),
        _recipe(data, "decoupling-all", "joint", [row for row in adjusters_of("linear") if row not in RIVAL_ADJUSTERS]),
        *(
            [_recipe(data, "tde-adamw", "de-confound", ("tde",), stages=(joint.model_copy(update=ADAMW),))]
            if small
            else []
        ),
        _recipe(data, "memory", "joint", ("logit-adjustment", "decouple-oltr", "oltr")),
        *_rivals_of(data),
    ]


RECIPES: dict[str, Recipe] = {recipe.name: recipe for data in DATA for recipe in _recipes_of(data)}

# A bare data name is the comparison of both papers; the others are one figure, or everything there is.
SUITE_MEMBERS: dict[str, tuple[str, ...]] = {
    "": ("linear", "decoupling", "cosine-tde", "capsule-tde", "tde"),
    "/kang-figure-1": ("decoupling", *(f"decoupling-{sampler}" for sampler in SAMPLERS)),
    "/momentum": ("linear", *(f"linear-momentum-{100 * value:.0f}" for value in MOMENTA)),
    "/momentum-matched": ("linear", *(f"linear-momentum-{100 * value:.0f}-matched" for value in MOMENTA)),
    "/all": ("linear", "decoupling-all", "cosine-tde", "capsule-tde", "tde"),
    "/rivals": ("memory", *(name for name in RIVALS if name != "weight-decay"), "weight-balancing", "fslwf", "tde"),
}
SUITES: dict[str, tuple[str, ...]] = {
    f"{data}{suite}": tuple(f"{data}/{member}" for member in members if f"{data}/{member}" in RECIPES)
    for data in DATA
    for suite, members in SUITE_MEMBERS.items()
}
TABLE_3 = ("focal", "mixup", "class-balanced-focal", "ldam-drw", "bbn")  # those that Tang et al. quote of BBN
SUITES |= {
    f"{data}/tang-table-3": (*(f"{data}/{name}-published" for name in TABLE_3), f"{data}/tde") for data in CIFARS
}


def find(name: str) -> list[Recipe]:
    """The recipe of this name, or the recipes of the suite of this name.

    Raises:
        InputError: neither; the nearest valid name is offered.

    >>> [recipe.title for recipe in find("digits-lt")]
    ['linear', 'decoupling', 'cosine-tde', 'capsule-tde', 'tde']
    """
    checks.choice("recipe", name, [*SUITES, *RECIPES])
    return [RECIPES[member] for member in SUITES.get(name, (name,))]


def with_second_stage(recipe: Recipe, method: str) -> Recipe:
    """The recipe of a trained run, with the catalog's second stage of a method where it has none of its own.

    A run in a published setting goes on in it.
    """
    if METHODS[method].adjust != "second-stage" or method in recipe.second:
        return recipe
    first = RECIPES[recipe.name].stages[0] if recipe.title.endswith("-published") else None
    second = second_stage(recipe.data.name, method, first)
    return recipe.model_copy(update={"second": {**recipe.second, method: second}})
