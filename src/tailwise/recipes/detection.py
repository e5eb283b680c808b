"""Detection: settings of a recipe. No torch here, as in `schema`."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tailwise.recipes.schema import ClassifierSettings
from tailwise.recipes.stages import BY_KIND, FocalSettings, Fraction, NonNegative, Settings

Unit = Annotated[float, Field(ge=0, lt=1)]

# What a trained detector reports first, by its classifier; then with total direct effect.
OWN_ROW = {"linear": "baseline", "cosine": "cosine", "capsule": "capsule", "causal": "de-confound"}
TDE_ROW = {"cosine": "cosine-tde", "capsule": "capsule-tde", "causal": "tde"}
WITHOUT_EXEMPTION = "-without-exemption"


class DigitScenesSettings(Settings):
    """The terms are those of `tailwise.detect.digit_scenes_lt`. subset_seed: null is the training seed."""

    name: Literal["digit-scenes-lt"] = "digit-scenes-lt"
    max_train: PositiveInt = 600
    imbalance_ratio: Annotated[float, Field(ge=1)] = 300
    val_per_class: PositiveInt = 20
    test_per_class: PositiveInt = 50
    subset_seed: Annotated[int, Field(ge=0)] | None = None
    workers: Literal[0] = 0


class LvisSettings(Settings):
    """workers: processes that read images ahead; 0 reads them in the training process.

    on_bad: skip leaves out bad annotations and absent images, of what is measured on, too.
    """

    name: Literal["lvis-v0.5", "lvis-v1"]
    on_bad: Literal["error", "skip"] = "error"
    workers: Annotated[int, Field(ge=0, le=64)] = 4


class SizeSettings(Settings):
    """The terms are those of `tailwise.detect.Sizes`; the defaults are LVIS's."""

    min_size: PositiveInt = 800
    max_size: PositiveInt = 1333
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    anchors: tuple[PositiveInt, ...] = (32, 64, 128, 256, 512)
    proposals: tuple[PositiveInt, PositiveInt] = (2000, 1000)
    regions: PositiveInt = 512
    width: PositiveInt = 1024
    mask_width: PositiveInt = 256


class DetectorSettings(Settings):
    """framework, masks, legacy_average: see `tailwise.detect.Detector`. pretrained: start from ImageNet's weights."""

    framework: Literal["mask-rcnn", "cascade", "htc"] = "cascade"
    backbone: Literal["small-fpn", "resnet50", "resnet101", "resnext101-64x4d"] = "resnet101"
    pretrained: bool = True
    masks: bool = True
    legacy_average: bool = False
    sizes: SizeSettings = SizeSettings()


class RegionCrossEntropySettings(Settings):
    """Softmax over background and classes."""

    kind: Literal["cross-entropy"] = "cross-entropy"


class RegionEqualizationSettings(Settings):
    """Tan et al. 2020, sigmoids. threshold: the fraction of the images below which a class is rare.

    prior: the probability that a class starts with in any region.
    """

    kind: Literal["equalization"] = "equalization"
    threshold: NonNegative = 1.76e-3
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.001


class RegionSeesawSettings(Settings):
    """Wang et al. 2021, with objectness."""

    kind: Literal["seesaw"] = "seesaw"
    p: NonNegative = 0.8
    q: NonNegative = 2.0


class RegionBalancedSoftmaxSettings(Settings):
    """Ren et al. 2020, among the classes."""

    kind: Literal["balanced-softmax"] = "balanced-softmax"


class FederatedSettings(Settings):
    """Zhou et al. 2021, sigmoids. num_sampled: classes a step is about. prior: as of equalization."""

    kind: Literal["federated"] = "federated"
    num_sampled: PositiveInt = 50
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.01


RegionLossSettings = Annotated[
    RegionCrossEntropySettings
    | FocalSettings
    | RegionEqualizationSettings
    | RegionSeesawSettings
    | RegionBalancedSoftmaxSettings
    | FederatedSettings,
    Field(discriminator="kind"),
]
SOFTMAX = ("cross-entropy", "focal", "balanced-softmax")  # with background as one of the classes


class TrainingSettings(Settings):
    """How a detector is trained: SGD with momentum, a warm-up at every step, then steps down.

    milestones: epochs done. warmup_iterations, warmup_from: the linear warm-up, from that fraction of the learning
    rate. clip_norm: null clips nothing. flip: turn images left to right by chance. repeat_threshold: of repeat-factor
    sampling, 0.001 for LVIS; 0 samples every image once. drop_last: leave out a last, smaller batch, which several
    processes may not be able to share.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    momentum: Unit = 0.9
    weight_decay: NonNegative = 1e-4
    milestones: tuple[PositiveInt, ...] = ()
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_iterations: Annotated[int, Field(ge=0)] = 500
    warmup_from: Annotated[float, Field(gt=0, le=1)] = 0.001
    clip_norm: PositiveFloat | None = None
    flip: bool = True
    repeat_threshold: Fraction = 0.0
    accumulate: PositiveInt = 1
    drop_last: bool = False


class InferenceSettings(Settings):
    """alpha: of Eq. 8. score_threshold, nms_threshold, per_image: see `tailwise.detect.Inference`."""

    alpha: float = 1.5
    score_threshold: Unit = 1e-4
    nms_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    per_image: Annotated[int, Field(ge=1, le=300)] = 300


class DetectionComputeSettings(Settings):
    """precision: of the forward pass. threads: of the CPU; null is torch's own choice."""

    precision: Literal["float32", "bf16", "fp16"] = "float32"
    threads: Annotated[int, Field(ge=1, le=256)] | None = None


class DetectionRecipe(Settings):
    """A named, complete experiment on detection. rows: what it reports, the trained classifier's own first."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[a-z0-9-]+$")]
    data: Annotated[DigitScenesSettings | LvisSettings, Field(discriminator="name")]
    detector: DetectorSettings
    classifier: ClassifierSettings
    loss: Annotated[RegionLossSettings, BY_KIND] = RegionCrossEntropySettings()
    training: TrainingSettings
    inference: InferenceSettings = InferenceSettings()
    rows: tuple[str, ...]
    seeds: PositiveInt = 3
    compute: DetectionComputeSettings = DetectionComputeSettings()

    @model_validator(mode="after")
    def _rows_fit_the_classifier(self) -> "DetectionRecipe":
        kind = self.classifier.name
        if getattr(self.classifier, "momentum", None) == "follow-lr":
            raise ValueError("classifier.momentum: a detector's is a number, got follow-lr")
        tde = TDE_ROW.get(kind)
        possible = ("", tde, f"{tde}{WITHOUT_EXEMPTION}") if tde and self.loss.kind in SOFTMAX else ("",)
        if self.rows and self.rows[0] in OWN_ROW.values() and self.rows[0] != OWN_ROW[kind]:
            fitting = next(name for name, row in OWN_ROW.items() if row == self.rows[0])
            raise ValueError(f"classifier.name: expected {fitting}, whose row is {self.rows[0]}, got {kind}")
        wrong = [row for row in self.rows[1:] if row not in possible[1:]]
        if not self.rows or wrong:
            raise ValueError(
                f"rows: expected a row of the classifier's own and then some of {', '.join(possible[1:]) or 'none'} "
                f"(classifier {kind}, loss {self.loss.kind}), got {', '.join(wrong) or 'none'}"
            )
        return self

    @property
    def title(self) -> str:
        return self.name.split("/")[1]
