"""The settings of data: subsets made by this library, benchmarks whose images lie on disk, the user's own. No torch."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from tailwise.recipes.stages import Settings

SubsetSeed = Annotated[int, Field(ge=0)] | None


class SubsetSettings(Settings):
    """imbalance_ratio: N_max / N_min. max_count: N_max; null is all that each class can give.

    subset_seed: which subset; null is the training seed.
    """

    name: Literal["digits-lt", "cifar10-lt", "cifar100-lt"]
    imbalance_ratio: Annotated[float, Field(ge=1)]
    profile: Literal["exp", "step"] = "exp"
    max_count: PositiveInt | None = None
    subset_seed: SubsetSeed = None


class OnDiskSettings(Settings):
    """Images that are read while training goes on.

    size: of what the network sees, H = W. resize: of the shorter side, before the centre is cut out for prediction.
    cache: side of the square that each image is decoded to once, and read from since; null decodes the file each time.
    kept: a folder for what is made of the data, such as decoded images; null is .tailwise beside the images. Splits are
    drawn into it, too, unless some are stored beside the images.
    on_bad: what an image that cannot be read means: an error, or to leave it out, counted and listed.
    subset_seed: of val where it is carved from train; null is the training seed.
    """

    name: str
    size: PositiveInt = 224
    resize: PositiveInt = 256
    cache: PositiveInt | None = None
    kept: str | None = None
    on_bad: Literal["error", "skip"] = "error"
    subset_seed: SubsetSeed = None

    @model_validator(mode="after")
    def _sizes_fit(self) -> "OnDiskSettings":
        for name, value in (("resize", self.resize), ("cache", self.cache)):
            if value is not None and value < self.size:
                raise ValueError(f"data.{name}: expected at least size {self.size}, got {value}")
        return self


class BenchmarkSettings(OnDiskSettings):
    """A benchmark with lists of its own; its images lie below the data folder."""

    name: Literal["imagenet-lt", "places-lt", "inaturalist-2018"]


class OwnSettings(OnDiskSettings):
    """The user's own images. path: a folder with one per class, a table, or whatever `tailwise data prepare` reads.

    path_column, label_column, split_column: of a table. root: the folder that paths of a table start from.
    """

    name: Literal["own"] = "own"
    path: str | None = None
    root: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None


DataSettings = Annotated[SubsetSettings | BenchmarkSettings | OwnSettings, Field(discriminator="name")]


def described(data: SubsetSettings | OnDiskSettings) -> str:
    """The data set in words.

    >>> described(SubsetSettings(name="digits-lt", imbalance_ratio=50))
    'digits-lt, imbalance ratio 50'
    """
    ratio = f", imbalance ratio {data.imbalance_ratio:g}" if isinstance(data, SubsetSettings) else ""
    return f"{data.name}{ratio}"
