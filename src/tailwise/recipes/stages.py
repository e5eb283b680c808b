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


ScheduleSettings = Annotated[ConstantSettings | CosineScheduleSettings | MultistepSettings, Field(discriminator="kind")]


class CrossEntropySettings(Settings):
    """Plain."""

    kind: Literal["cross-entropy"] = "cross-entropy"


class FocalSettings(Settings):
    """Lin et al. 2017. detach: no gradient through the factor, as some published code has it."""

    kind: Literal["focal"] = "focal"
    gamma: NonNegative = 2.0
    detach: bool = False


class ClassBalancedSettings(Settings):
    """Cui et al. 2019. gamma: of the focal loss; 0 is cross-entropy."""

    kind: Literal["class-balanced"] = "class-balanced"
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


LossSettings = Annotated[
    Annotated[
        CrossEntropySettings
        | FocalSettings
        | ClassBalancedSettings
        | LdamSettings
        | BalancedSoftmaxSettings
        | LogitAdjustedSettings,
        Field(discriminator="kind"),
    ],
    BY_KIND,
]


class PlainStepSettings(Settings):
    """One view of each image, its class, the model's logits."""

    kind: Literal["plain"] = "plain"


StepSettings = Annotated[Annotated[PlainStepSettings, Field()], BY_KIND]


class StageSettings(Settings):
    """One training phase; the terms are those of `tailwise.train.Stage`.

    sampler: "cyclic" is the authors' variant of the one it ends. repeat_threshold: of repeat-factor sampling.
    step: what is made of a batch, and what the model gives the loss. reweight_after: the part of the stage after which
    samples are weighted by the effective number of their class (deferred re-weighting), with reweight_beta.
    learning_rate: the peak. momentum, weight_decay, nesterov: of SGD, on all parameters.
    legacy_bn_drift: let the batch-norm statistics of frozen parts follow the data, as both papers' code does.
    """

    name: str
    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    schedule: ScheduleSettings
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1e3)] = 5e-4
    nesterov: bool = False
    sampler: SamplerName = "instance"
    repeat_threshold: PositiveFloat = 0.001
    loss: LossSettings = CrossEntropySettings()
    reweight_after: Fraction | None = None
    reweight_beta: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    step: StepSettings = PlainStepSettings()
    augment: Literal["none", "shift", "crop-flip"]
    trainable: Literal["all", "last-block", "classifier"] = "all"
    legacy_bn_drift: bool = False
    accumulate: PositiveInt = 1
    drop_last: bool = False
    clip_norm: PositiveFloat | None = None
    weight_average: Annotated[float, Field(ge=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "StageSettings":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: expected false where momentum is 0, got true")
        return self
