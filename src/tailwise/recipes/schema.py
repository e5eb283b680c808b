"""The settings of a recipe: typed, frozen, with a range and a unit each. `build` turns them into objects.

No torch here: the command lists and checks recipes without loading it.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tailwise.recipes.datasets import DataSettings
from tailwise.recipes.methods import METHODS
from tailwise.recipes.stages import NEEDS_VIEW, CosineScheduleSettings, Fraction, Settings, StageSettings

Protocol = Literal["clean", "paper", "legacy"]
MetricName = Literal["mean-per-class", "all", "many", "medium", "few", "harmonic-mean", "worst-class"]


class BackboneSettings(Settings):
    """name: a network of `tailwise.backbones`; any other is timm's, "timm:NAME" says so, "hf:NAME" is Hugging Face's.

    pretrained: with the weights that its library has for it, or with those in a file. frozen: never trained; its
    features are computed once, and what is trained is a classifier on these.
    """

    name: Annotated[str, Field(min_length=1)]
    pretrained: bool | str = False
    frozen: bool = False

    @model_validator(mode="after")
    def _frozen_is_pretrained(self) -> "BackboneSettings":
        if self.frozen and not self.pretrained:
            raise ValueError("backbone.frozen: expected a backbone that is pretrained, got one that is not")
        return self


class LinearSettings(Settings):
    """bias: Kang et al. 2020 have one ("joint"), Tang et al. 2020 none ("linear")."""

    name: Literal["linear"] = "linear"
    bias: bool = False


class CosineSettings(Settings):
    """momentum: decay rate of the feature average; "follow-lr" is 1 - 0.1 min(50 lr, 1), as the authors' code."""

    name: Literal["cosine"] = "cosine"
    num_heads: PositiveInt = 1
    tau: Annotated[float, Field(gt=0, le=1e6)] = 16.0
    momentum: Fraction | Literal["follow-lr"] = 0.9


class CapsuleSettings(Settings):
    """As `CosineSettings`."""

    name: Literal["capsule"] = "capsule"
    num_heads: PositiveInt = 1
    tau: Annotated[float, Field(gt=0, le=1e6)] = 16.0
    momentum: Fraction | Literal["follow-lr"] = 0.9


class CausalSettings(Settings):
    """num_heads, tau, gamma: K, tau, gamma of Tang et al. 2020, Eq. 7. momentum: as `CosineSettings`."""

    name: Literal["causal"] = "causal"
    num_heads: PositiveInt = 2
    tau: Annotated[float, Field(gt=0, le=1e6)] = 16.0
    gamma: Annotated[float, Field(ge=0, le=1e6)] = 1 / 32
    momentum: Fraction | Literal["follow-lr"] = 0.9


ClassifierSettings = Annotated[
    LinearSettings | CosineSettings | CapsuleSettings | CausalSettings, Field(discriminator="name")
]


class MlpSettings(Settings):
    """A second stage's classifier with hidden layers; hidden_features: null is the width of the features."""

    name: Literal["mlp"] = "mlp"
    num_layers: PositiveInt = 2
    hidden_features: PositiveInt | None = None


class ScaledSettings(Settings):
    """Learnable weight scaling: the trained classifier, frozen, times one factor per class."""

    name: Literal["scaled"] = "scaled"


class TrainedSettings(Settings):
    """The trained linear classifier itself, trained on."""

    name: Literal["trained"] = "trained"


class MetaEmbeddingSettings(Settings):
    """OLTR's memory; tau: scale of its cosines. attention: whether one looks at the feature map before it."""

    name: Literal["meta-embedding"] = "meta-embedding"
    tau: PositiveFloat = 16.0
    attention: bool = True


SecondClassifierSettings = Annotated[
    LinearSettings | CosineSettings | MlpSettings | ScaledSettings | TrainedSettings | MetaEmbeddingSettings,
    Field(discriminator="name"),
]


STORED: dict[str, Any] = {"sampler": "class-aware", "augment": "none", "trainable": "classifier"}


class SecondStageSettings(Settings):
    """One stage more, on a copy of the trained model with another classifier in place of the trained one.

    on: augmented images, as Kang et al. 2020 have it, or the stored features of the training images, where epochs,
    batch_size, learning_rate and weight_decay are all there is to set.
    """

    classifier: SecondClassifierSettings
    stage: StageSettings
    on: Literal["images", "features"] = "images"

    @model_validator(mode="after")
    def _stored_features_have_few_settings(self) -> "SecondStageSettings":
        if self.on == "features":
            free = {"name", "epochs", "batch_size", "learning_rate", "weight_decay"}
            fixed = StageSettings(
                name="", epochs=1, batch_size=1, learning_rate=1, schedule=CosineScheduleSettings(), **STORED
            )
            for key, expected in fixed.model_dump().items():
                found = self.stage.model_dump()[key]
                if key not in free and found != expected:
                    raise ValueError(f"stage.{key}: on stored features expected {expected}, got {found}")
        return self


class TdeSettings(Settings):
    """alpha: of Eq. 8; null is what the protocol says: chosen on val under clean, `fixed_alpha` otherwise."""

    alpha: float | Literal["auto"] | None = None
    fixed_alpha: float


class TauNormSettings(Settings):
    """power: a number; "auto", chosen on val; "train", on re-balanced train; "learned", by least class-balanced loss.

    null is "auto", and "train" under protocol paper, which has no val.
    """

    power: Annotated[float, Field(ge=-10, le=10)] | Literal["auto", "train", "learned"] | None = None


class NcmSettings(Settings):
    """distance: of `ncm`; see `tailwise.adjust.fit_ncm`. "l2" ranks classes as "cosine" does."""

    distance: Literal["cosine", "l2", "centered"] = "cosine"


class ComputeSettings(Settings):
    """How training does its arithmetic; the terms are those of `tailwise.train.Compute`.

    threads: of the CPU; null is torch's own choice. workers: processes that read images from disk; null is one less
    than the CPUs, at most 16, shared among the processes of this machine. No result depends on their number, and none
    says it.
    """

    precision: Literal["float32", "bf16", "fp16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    sync_batchnorm: bool = True
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    workers: Annotated[int, Field(ge=0, le=256)] | None = None


class Recipe(Settings):
    """A named, complete experiment. `data/title` is its name.

    stages: what trains the model. methods: the rows it reports, the trained classifier's own first. second: the
    stages that follow for those of them that train once more. metric: what strengths and epochs are chosen by.
    seeds: how many runs it takes by default.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")]
    data: DataSettings
    backbone: BackboneSettings
    classifier: ClassifierSettings
    stages: tuple[StageSettings, ...]
    methods: tuple[str, ...]
    second: dict[str, SecondStageSettings] = Field(default_factory=dict)
    tde: TdeSettings
    tau_norm: TauNormSettings = TauNormSettings()
    ncm: NcmSettings = NcmSettings()
    metric: MetricName = "mean-per-class"
    allow_unseen: bool = False
    protocol: Protocol = "clean"
    seeds: PositiveInt = 3
    compute: ComputeSettings = ComputeSettings()

    @model_validator(mode="before")
    @classmethod
    def _without_numbers(cls, value: Any) -> Any:
        """Run folders have held the numbers in print, too."""
        return {key: one for key, one in value.items() if key != "published"} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _methods_fit_the_classifier(self) -> "Recipe":
        unknown = [method for method in (*self.methods, *self.second) if method not in METHODS]
        if unknown or not self.methods:
            raise ValueError(f"methods: expected ids of {', '.join(METHODS)}, got {', '.join(unknown) or 'none'}")
        own = METHODS[self.methods[0]]
        if own.adjust or self.classifier.name not in own.classifiers:
            raise ValueError(
                f"classifier.name: recipe {self.name} trains a {own.classifiers[0]} classifier, "
                f"got {self.classifier.name}; train another recipe"
            )
        for method in self.methods[1:]:
            if not METHODS[method].adjust or self.classifier.name not in METHODS[method].classifiers:
                raise ValueError(f"methods: '{method}' does not start from a {self.classifier.name} classifier")
            if METHODS[method].adjust == "second-stage" and method not in self.second:
                raise ValueError(f"second: expected the stage of method '{method}', got none")
        for method, second in self.second.items():
            wanted = METHODS[method]
            for key, expected, found in (
                ("classifier.name", wanted.trains, second.classifier.name),
                ("on", wanted.on, second.on),
            ):
                if found != expected:
                    raise ValueError(f"second.{method}.{key}: method '{method}' is {expected}, got {found}")
        return self

    @model_validator(mode="after")
    def _stages_fit_one_another(self) -> "Recipe":
        if not self.stages:
            raise ValueError("stages: expected at least one, got none")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):  # a stage finds its batches by its name
            raise ValueError(f"stages: expected a name of its own for each, got {', '.join(names)}")
        views = {stage.step.kind if stage.step.kind in NEEDS_VIEW else "plain" for stage in self.stages}
        if len(views) > 1:
            raise ValueError(f"stages: expected steps of one model, got {' and '.join(sorted(views))}")
        return self

    @model_validator(mode="after")
    def _ldam_is_of_cosines(self) -> "Recipe":
        first = [(f"stages.{number}", stage, self.classifier) for number, stage in enumerate(self.stages)]
        second = [(f"second.{name}.stage", one.stage, one.classifier) for name, one in self.second.items()]
        for key, stage, classifier in (*first, *second):
            if stage.loss.kind == "ldam" and getattr(classifier, "tau", None) != 1:
                raise ValueError(
                    f"{key}.loss: ldam has a scale of its own; expected a cosine classifier with tau 1, "
                    f"got {classifier.name} with tau {getattr(classifier, 'tau', None)}"
                )
        return self

    @property
    def title(self) -> str:
        return self.name.split("/")[1]
