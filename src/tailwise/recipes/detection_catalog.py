"""Every detection recipe by name."""

from typing import Any

from tailwise import checks
from tailwise.recipes.detection import (
    WITHOUT_EXEMPTION,
    DetectionComputeSettings,
    DetectionRecipe,
    DetectorSettings,
    DigitScenesSettings,
    FederatedSettings,
    InferenceSettings,
    LvisSettings,
    RegionBalancedSoftmaxSettings,
    RegionEqualizationSettings,
    RegionLossSettings,
    RegionSeesawSettings,
    SizeSettings,
    TrainingSettings,
)
from tailwise.recipes.schema import CapsuleSettings, CausalSettings, ClassifierSettings, CosineSettings, LinearSettings
from tailwise.recipes.stages import FocalSettings

# Tang et al. 2020 on LVIS, from the paper and the authors' configurations: 20 epochs of 16 images, learning rate 0.02
# (a tenth of it after 16 and 19), no repeat-factor sampling. A ResNeXt-101-64x4d is `detector.backbone`.
LVIS: dict[str, Any] = {
    "detector": DetectorSettings(),
    "training": TrainingSettings(epochs=20, batch_size=16, learning_rate=0.02, milestones=(16, 19)),
    "seeds": 1,
}
# v0.5 was trained with an older version of their framework: another warm-up, gradients clipped, every score kept.
LVIS_OLD = {"warmup_from": 1 / 3, "clip_norm": 35.0}

# Small scenes: a detector that trains in minutes on a CPU.
DIGIT_SCENES: dict[str, Any] = {
    "detector": DetectorSettings(
        backbone="small-fpn",
        pretrained=False,
        sizes=SizeSettings(
            min_size=96,
            max_size=96,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            anchors=(16, 24, 32, 48),
            proposals=(100, 100),
            regions=16,
            width=128,
            mask_width=32,
        ),
    ),
    "training": TrainingSettings(
        epochs=12,
        batch_size=4,
        learning_rate=0.02,
        milestones=(9, 11),
        warmup_iterations=100,
        warmup_from=0.1,
        clip_norm=10.0,
        flip=False,
    ),
    "inference": InferenceSettings(score_threshold=1e-3, per_image=100),
    "compute": DetectionComputeSettings(threads=1),
}
DATA: dict[str, dict[str, Any]] = {
    "digit-scenes-lt": DIGIT_SCENES | {"data": DigitScenesSettings()},
    "lvis-v0.5": LVIS
    | {
        "data": LvisSettings(name="lvis-v0.5"),
        "training": LVIS["training"].model_copy(update=LVIS_OLD),
        "inference": InferenceSettings(score_threshold=0.0),
    },
    "lvis-v1": LVIS | {"data": LvisSettings(name="lvis-v1"), "inference": InferenceSettings(score_threshold=1e-5)},
}

# mu of the feature averages: 1 - 0.1 * 0.002 in the authors' code
MOMENTUM = 0.9998
CLASSIFIERS: dict[str, ClassifierSettings] = {
    "baseline": LinearSettings(),
    "cosine": CosineSettings(num_heads=2, momentum=MOMENTUM),
    "capsule": CapsuleSettings(num_heads=2, momentum=MOMENTUM),
    "de-confound": CausalSettings(momentum=MOMENTUM),
}
# the baseline of v1.0 has a bias, that of v0.5 none
LINEAR_OF: dict[str, dict[str, ClassifierSettings]] = {"lvis-v1": {"baseline": LinearSettings(bias=True)}}
LOSSES: dict[str, RegionLossSettings] = {
    "focal": FocalSettings(),
    "equalization": RegionEqualizationSettings(),
    "seesaw": RegionSeesawSettings(),
    "balanced-softmax": RegionBalancedSoftmaxSettings(),
    "federated": FederatedSettings(),
}
# Of 40 classes and 1,097 images. Rare is what at most a hundred images show, as the threshold is on LVIS v0.5.
SMALL_LOSSES: dict[str, RegionLossSettings] = {
    "equalization": RegionEqualizationSettings(threshold=0.092),
    "federated": FederatedSettings(num_sampled=10),
}


def _recipes_of(data: str) -> list[DetectionRecipe]:
    def recipe(title: str, classifier: str, rows: tuple[str, ...], **changes: Any) -> DetectionRecipe:
        of_data = CLASSIFIERS | LINEAR_OF.get(data, {})
        settings = {"name": f"{data}/{title}", "classifier": of_data[classifier], "rows": rows}
        return DetectionRecipe.model_validate(DATA[data] | settings | changes)

    training, small = DATA[data]["training"], data == "digit-scenes-lt"
    losses = LOSSES | (SMALL_LOSSES if small else {})
    return [
        *(recipe(name, name, (name,)) for name in CLASSIFIERS),
        recipe("cosine-tde", "cosine", ("cosine", "cosine-tde")),
        recipe("capsule-tde", "capsule", ("capsule", "capsule-tde")),
        recipe("tde", "de-confound", ("de-confound", f"tde{WITHOUT_EXEMPTION}", "tde")),
        *(recipe(name, "baseline", (name,), loss=loss) for name, loss in losses.items()),
        recipe(
            "repeat-factor",
            "baseline",
            ("repeat-factor",),
            training=training.model_copy(update={"repeat_threshold": 0.1 if small else 1e-3}),
        ),
    ]


DETECTION_RECIPES = {recipe.name: recipe for data in DATA for recipe in _recipes_of(data)}
# Table 5 of Tang et al. 2020 with its baseline; and everything that trains the region classifier otherwise.
DETECTION_SUITES = {data: (f"{data}/baseline", f"{data}/tde") for data in DATA} | {
    f"{data}/rivals": tuple(f"{data}/{name}" for name in ("baseline", *LOSSES, "repeat-factor", "tde")) for data in DATA
}


def find_detection(name: str) -> list[DetectionRecipe]:
    """The recipe of this name, or the recipes of the suite of this name.

    Raises:
        InputError: neither; the nearest valid name is offered.

    >>> [recipe.title for recipe in find_detection("digit-scenes-lt")]
    ['baseline', 'tde']
    """
    checks.choice("recipe", name, [*DETECTION_SUITES, *DETECTION_RECIPES])
    return [DETECTION_RECIPES[member] for member in DETECTION_SUITES.get(name, (name,))]
