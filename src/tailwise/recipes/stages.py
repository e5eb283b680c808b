"""The settings of one training phase: sampler, loss, step, schedule, optimiser. `build_stages` makes the phase of them.

No torch here, as in `schema`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
SamplerName = Literal[
    "instance",
    "square-root",
    "class-balanced",
    "progressive",
    "square-root-cyclic",
    "class-balanced-cyclic",
    "progressive-cyclic",
    "class-aware",
    "reverse",
    "repeat-factor",
    "p-by-k",
]


class Settings(BaseModel):
    """Immutable; an unknown key, a NaN or an infinity is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _by_kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


BY_KIND = BeforeValidator(_by_kind)  # "focal" is {"kind": "focal"}, with its defaults


class ConstantSettings(Settings):
    """One learning rate throughout."""

    kind: Literal["constant"] = "constant"


class CosineScheduleSettings(Settings):
    """warmup: the part of the stage that warms up. warmup_from: where that line starts, a fraction of the peak."""

    kind: Literal["cosine"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup_from: Fraction = 0.04


class MultistepSettings(Settings):
    """milestones: epochs counted from 1. factor: of each step. warmup_from: a fraction of the peak."""

    kind: Literal["multistep"] = "multistep"
    milestones: tuple[PositiveInt, ...]
    factor: Annotated[float, Field(gt=0, le=1)]
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    warmup_from: Fraction = 1 / 3


ScheduleSettings = Annotated[
    Annotated[ConstantSettings | CosineScheduleSettings | MultistepSettings, Field(discriminator="kind")], BY_KIND
]


class CrossEntropySettings(Settings):
    """Plain."""

    kind: Literal["cross-entropy"] = "cross-entropy"


class FocalSettings(Settings):
    """Lin et al. 2017. detach: no gradient through the factor, as some published code has it."""

    kind: Literal["focal"] = "focal"
    gamma: NonNegative = 2.0
    detach: bool = False


class ClassBalancedSettings(Settings):
    """Cui et al. 2019. gamma: of the focal loss; 0 is cross-entropy. form: softmax, or each class against the rest."""

    kind: Literal["class-balanced"] = "class-balanced"
    form: Literal["softmax", "sigmoid"] = "softmax"
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    gamma: NonNegative = 0.0


class LdamSettings(Settings):
    """Cao et al. 2019, on a cosine classifier with tau = 1."""

    kind: Literal["ldam"] = "ldam"
    max_margin: NonNegative = 0.5
    scale: PositiveFloat = 30.0


class BalancedSoftmaxSettings(Settings):
    """Ren et al. 2020."""

    kind: Literal["balanced-softmax"] = "balanced-softmax"


class LogitAdjustedSettings(Settings):
    """Menon et al. 2021."""

    kind: Literal["logit-adjusted"] = "logit-adjusted"
    temperature: NonNegative = 1.0


class VectorScalingSettings(Settings):
    """Kini et al. 2021."""

    kind: Literal["vector-scaling"] = "vector-scaling"
    gamma: NonNegative = 0.15
    temperature: NonNegative = 1.25


class EqualizationSettings(Settings):
    """Tan et al. 2020. threshold: the fraction of the images below which a class is rare."""

    kind: Literal["equalization"] = "equalization"
    threshold: Fraction = 5e-3
    gamma: Fraction = 0.9


class SeesawSettings(Settings):
    """Wang et al. 2021, counting while it trains."""

    kind: Literal["seesaw"] = "seesaw"
    p: NonNegative = 0.8
    q: NonNegative = 2.0


LossSettings = Annotated[
    Annotated[
        CrossEntropySettings
        | FocalSettings
        | ClassBalancedSettings
        | LdamSettings
        | BalancedSoftmaxSettings
        | LogitAdjustedSettings
        | VectorScalingSettings
        | EqualizationSettings
        | SeesawSettings,
        Field(discriminator="kind"),
    ],
    BY_KIND,
]


class PlainStepSettings(Settings):
    """One view of each image, its class, the model's logits."""

    kind: Literal["plain"] = "plain"


class MixupSettings(Settings):
    """Zhang et al. 2018. beta: lam is drawn from Beta(beta, beta), once a batch."""

    kind: Literal["mixup"] = "mixup"
    beta: PositiveFloat = 1.0


class CutMixSettings(Settings):
    """Yun et al. 2019. beta: as in `MixupSettings`."""

    kind: Literal["cutmix"] = "cutmix"
    beta: PositiveFloat = 1.0


class RemixSettings(Settings):
    """Chou et al. 2020. beta: as in `MixupSettings`."""

    kind: Literal["remix"] = "remix"
    beta: PositiveFloat = 1.0
    kappa: Annotated[float, Field(ge=1)] = 3.0
    tau: Fraction = 0.5


class BilateralSettings(Settings):
    """Zhou et al. 2020, BBN; the second branch's images are drawn in reverse. Needs a backbone with two branches."""

    kind: Literal["bilateral"] = "bilateral"


class GlmcSettings(Settings):
    """Du et al. 2023. q: the second stream draws class c in proportion to n_c^q. power: of its class weights.

    gamma: of the consistency between the two views. hidden_features: width of projections and predictions.
    """

    kind: Literal["glmc"] = "glmc"
    q: Fraction = 0.8
    power: NonNegative = 1.0
    gamma: NonNegative = 10.0
    hidden_features: PositiveInt = 128


class MetricSettings(Settings):
    """Plus weight times a loss of the features, on P x K batches."""

    kind: Literal["metric"] = "metric"
    loss: Literal["range", "lifted-structured"]
    weight: NonNegative = 0.1


class MemorySettings(Settings):
    """Liu et al. 2019, OLTR, of a second stage. weight: of the centroid loss, with its margin and repulsion."""

    kind: Literal["memory"] = "memory"
    weight: NonNegative = 0.01
    margin: NonNegative = 10.0
    repulsion: NonNegative = 0.01


StepSettings = Annotated[
    Annotated[
        PlainStepSettings
        | MixupSettings
        | CutMixSettings
        | RemixSettings
        | BilateralSettings
        | GlmcSettings
        | MetricSettings
        | MemorySettings,
        Field(discriminator="kind"),
    ],
    BY_KIND,
]
NEEDS_CLASSES = ("ldam", "equalization", "seesaw")  # losses of one class for each image, not of a mixture

NEEDS_VIEW = ("bilateral", "glmc", "metric", "memory")  # steps whose loss sees more of the model than its logits


class StageSettings(Settings):
    """One training phase; the terms are those of `tailwise.train.Stage`.

    sampler: "cyclic" draws a class's images in a shuffled cycle. repeat_threshold: of repeat-factor sampling.
    images_per_class: K of P x K batches; P is batch_size / K.
    augment: shift and crop-flip are of images in memory, random-resized-crop, alone or with the papers' colour
    jitter, and rand-augment of those on disk.
    step: what is made of a batch, and what the model gives the loss. reweight_after: the part of the stage after which
    samples are weighted by the effective number of their class (deferred re-weighting), with reweight_beta.
    learning_rate: the peak. momentum, weight_decay, nesterov: of SGD, on all parameters; AdamW's betas are momentum and
    beta2, and it decays the weights by themselves. max_norm: the longest a row of
    the classifier's weight may be after each step.
    trainable: everything; the last block of layers (a ResNet's layer4) or its last residual block alone, each with the
    classifier; the classifier alone.
    legacy_bn_drift: let the batch-norm statistics of frozen parts follow the data, as both papers' code does.
    """

    name: str
    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    schedule: ScheduleSettings
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    weight_decay: Annotated[float, Field(ge=0, le=1e3)] = 5e-4
    nesterov: bool = False
    sampler: SamplerName = "instance"
    repeat_threshold: PositiveFloat = 0.001
    images_per_class: PositiveInt = 4
    loss: LossSettings = CrossEntropySettings()
    reweight_after: Fraction | None = None
    reweight_beta: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    step: StepSettings = PlainStepSettings()
    augment: Literal["none", "shift", "crop-flip", "random-resized-crop", "random-resized-crop-jitter", "rand-augment"]
    trainable: Literal["all", "last-block", "last-bottleneck", "classifier"] = "all"
    legacy_bn_drift: bool = False
    accumulate: PositiveInt = 1
    drop_last: bool = False
    clip_norm: PositiveFloat | None = None
    sharpness: PositiveFloat | None = None
    max_norm: PositiveFloat | None = None
    weight_average: Annotated[float, Field(ge=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "StageSettings":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: expected false where momentum is 0, got true")
        if self.nesterov and self.optimizer != "sgd":
            raise ValueError(f"nesterov: expected optimizer sgd, got {self.optimizer}")
        return self

    @model_validator(mode="after")
    def _batches_are_whole(self) -> "StageSettings":
        if self.sampler == "p-by-k" and self.batch_size % self.images_per_class:
            raise ValueError(
                f"images_per_class: expected a divisor of batch_size {self.batch_size}, got {self.images_per_class}"
            )
        return self

    @model_validator(mode="after")
    def _loss_fits_the_step(self) -> "StageSettings":
        step, loss = self.step.kind, self.loss.kind
        if step in ("mixup", "cutmix", "remix") and loss in NEEDS_CLASSES:
            raise ValueError(f"loss: expected one of mixtures, as {step} makes them, got {loss}")
        if step == "bilateral" and loss == "seesaw":
            raise ValueError("loss: expected one that may be taken twice a step, as bilateral does, got seesaw")
        if step in ("glmc", "memory") and loss != "cross-entropy":
            raise ValueError(f"loss: {step} has its own; expected cross-entropy, got {loss}")
        if step in ("glmc", "memory") and self.reweight_after is not None:
            raise ValueError(
                f"reweight_after: {step} has weights of its own or none; expected null, got {self.reweight_after:g}"
            )
        return self
