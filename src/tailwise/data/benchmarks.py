"""What is published about the benchmarks: where to get them, under which terms, and the numbers a copy must have.

Totals and group sizes are those of Liu et al., CVPR 2019 (ImageNet-LT, Places-LT), of iNaturalist 2018's data page and
of the tables by group of both papers. Hashes are of the lists published with the papers' code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

OLTR = "https://liuziwei7.github.io/projects/LongTail.html"
DECOUPLING = "https://github.com/facebookresearch/classifier-balancing (folder data/)"


@dataclass(frozen=True)
class Needed:
    """Something to download: what it is, from which official page, under which terms, and where it is looked for."""

    what: str
    page: str
    terms: str
    place: str


def needed(needs: Sequence[Needed], data_dir: Path) -> tuple[Needed, ...]:
    """The same, with the data folder by its name."""
    return tuple(replace(need, place=need.place.replace("DATA_DIR", str(data_dir))) for need in needs)


@dataclass(frozen=True)
class Listed:
    """A benchmark of images on disk, defined by lists `path label`.

    lists: file name by part. totals: images by part. largest, smallest: training images of a class. group_sizes:
    classes with many, medium and few. counts_hash: SHA-256 of the training images per class, "n_0,n_1,...".
    list_hashes: `list_hash` of each part, where the list was at hand. folders: what the folder of images is called.
    annotations: files that define a part where its list is not there.
    """

    name: str
    title: str
    num_classes: int
    lists: Mapping[str, str]
    totals: Mapping[str, int]
    largest: int
    smallest: int
    group_sizes: Mapping[str, int]
    counts_hash: str
    list_hashes: Mapping[str, str]
    folders: tuple[str, ...]
    needs: tuple[Needed, ...]
    annotations: Mapping[str, str] | None = None


IMAGENET_LT = Listed(
    name="imagenet-lt",
    title="ImageNet-LT",
    num_classes=1000,
    lists={part: f"ImageNet_LT_{part}.txt" for part in ("train", "val", "test")},
    totals={"train": 115_846, "val": 20_000, "test": 50_000},
    largest=1280,
    smallest=5,
    group_sizes={"many": 385, "medium": 479, "few": 136},
    counts_hash="93782c2e7eda453ae409fed503a27bc8d430ecb583c7d4b3c3adc93c2887236e",
    list_hashes={
        "val": "b3c5c4b470bac7141cfde18190f7cae9183c6812e0d49818defef92c5a63c1f5",
        "test": "3cf1ca2da51a4b8f0800e422dd1201ac86b3ef8794ce1284322c675ee0b7d6db",
    },
    folders=("ImageNet", "imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC"),
    needs=(
        Needed(
            "the lists ImageNet_LT_train.txt, ImageNet_LT_val.txt, ImageNet_LT_test.txt",
            f"{OLTR}; also {DECOUPLING}",
            "as those projects say",
            "DATA_DIR or a folder in it",
        ),
        Needed(
            "the images of ILSVRC 2012, train (138 GB) and val (6.3 GB)",
            "https://image-net.org/download.php",
            "registration; non-commercial research and education only",
            "train/n01440764/*.JPEG and val/*.JPEG (or val/n01440764/*.JPEG), in DATA_DIR/imagenet",
        ),
    ),
)

PLACES_LT = Listed(
    name="places-lt",
    title="Places-LT",
    num_classes=365,
    lists={part: f"Places_LT_{part}.txt" for part in ("train", "val", "test")},
    totals={"train": 62_500, "val": 7_300, "test": 36_500},
    largest=4980,
    smallest=5,
    group_sizes={"many": 131, "medium": 163, "few": 71},
    counts_hash="50c3529becbfdca5cdc4048a8354c1312370d86de7f11ac75d99e7987aba9cea",
    list_hashes={
        "train": "4ff647c8f5b3c9b63d97644bb5cf2c926239626ca04ade463d2131e58344c4d8",
        "val": "44e6deb27e97410fe84da45726c89983cade7e95e2441feddfe1e44f63300e15",
        "test": "da170209638696a891407155ff18c5fbbf780c5da2cb4a694015256c19dbdbe4",
    },
    folders=("Places365", "places365", "places365_standard", "places"),
    needs=(
        Needed(
            "the lists Places_LT_train.txt, Places_LT_val.txt, Places_LT_test.txt",
            f"{OLTR}; also {DECOUPLING}",
            "as those projects say",
            "DATA_DIR or a folder in it",
        ),
        Needed(
            "Places365-Standard, small images (256 x 256) with easy directory structure (24 GB)",
            "http://places2.csail.mit.edu/download.html",
            "non-commercial research and education only; no redistribution of the images",
            "train/airfield/*.jpg and val/airfield/*.jpg (or val/*.jpg), in DATA_DIR/places365_standard",
        ),
    ),
)

INATURALIST2018 = Listed(
    name="inaturalist-2018",
    title="iNaturalist 2018",
    num_classes=8142,
    lists={"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"},
    totals={"train": 437_513, "test": 24_426},
    largest=1000,
    smallest=2,
    group_sizes={"many": 842, "medium": 4076, "few": 3224},
    counts_hash="15490ddfe172c58cd927af79e69246707fc5eaf2e4e8da7e9f3325e6d00988a0",
    list_hashes={"test": "d8bad93abba15b9dc8d74d254e8fec3d50f786d0b8f0847d2dae6f187a2cffb7"},
    folders=("inaturalist2018", "iNaturalist18", "inat2018"),
    annotations={"train": "train2018.json", "test": "val2018.json"},
    needs=(
        Needed(
            "the annotations train2018.json and val2018.json (md5 of their .tar.gz "
            "bfa29d89d629cbf04d826a720c0a68b0 and f2ed8bfe3e9901cdefceb4e53cd3775d), or the lists "
            f"iNaturalist18_train.txt and iNaturalist18_val.txt of {DECOUPLING}",
            "https://github.com/visipedia/inat_comp/tree/master/2018",
            "iNaturalist's terms of service; non-commercial research and education only; no redistribution",
            "DATA_DIR or a folder in it",
        ),
        Needed(
            "the training and validation images (train_val2018.tar.gz, 120 GB, md5 b1c6952ce38f31868cc50ea72d066cc3)",
            "https://github.com/visipedia/inat_comp/tree/master/2018",
            "as the annotations",
            "train_val2018/Plantae/7291/*.jpg, in DATA_DIR",
        ),
    ),
)

LISTED: dict[str, Listed] = {benchmark.name: benchmark for benchmark in (IMAGENET_LT, PLACES_LT, INATURALIST2018)}


@dataclass(frozen=True)
class Cifar:
    """folder: as it is unpacked. md5: of each file in it, and of the archive; those that torchvision checks, too."""

    name: str
    num_classes: int
    url: str
    archive: str
    archive_md5: str
    folder: str
    md5: Mapping[str, str]
    needs: tuple[Needed, ...]


def _cifar_needed(what: str) -> tuple[Needed, ...]:
    return (
        Needed(
            what,
            "https://www.cs.toronto.edu/~kriz/cifar.html",
            "no licence is stated; cite Krizhevsky 2009",
            "DATA_DIR; downloaded there unless --no-download forbids it",
        ),
    )


CIFAR: dict[str, Cifar] = {
    "cifar10": Cifar(
        name="cifar10",
        num_classes=10,
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        archive="cifar-10-python.tar.gz",
        archive_md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
        needs=_cifar_needed("CIFAR-10, python version (cifar-10-python.tar.gz, 163 MB)"),
    ),
    "cifar100": Cifar(
        name="cifar100",
        num_classes=100,
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        archive="cifar-100-python.tar.gz",
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        md5={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
        needs=_cifar_needed("CIFAR-100, python version (cifar-100-python.tar.gz, 161 MB)"),
    ),
}


@dataclass(frozen=True)
class Lvis:
    """annotations: file name by part. categories: how many. totals: (images, instances) by part, where published."""

    name: str
    annotations: Mapping[str, str]
    categories: int
    totals: Mapping[str, tuple[int | None, int]]
    needs: tuple[Needed, ...]


def _lvis_needed(version: str) -> tuple[Needed, ...]:
    return (
        Needed(
            f"the annotations lvis_{version}_train.json and lvis_{version}_val.json",
            "https://www.lvisdataset.org/dataset",
            "CC BY 4.0",
            "DATA_DIR or a folder in it",
        ),
        Needed(
            "the images of COCO 2017, train2017.zip (18 GB) and val2017.zip (1 GB)",
            "https://cocodataset.org/#download",
            "Flickr's terms of use; COCO does not own the images",
            "train2017/*.jpg and val2017/*.jpg, in DATA_DIR/coco",
        ),
    )


LVIS: dict[str, Lvis] = {
    "lvis-v0.5": Lvis(
        name="lvis-v0.5",
        annotations={"train": "lvis_v0.5_train.json", "val": "lvis_v0.5_val.json"},
        categories=1230,  # Tang et al. 2020, 5.1
        totals={"train": (None, 693_958)},  # "57k" and "5k" images is all that its own page says
        needs=_lvis_needed("v0.5"),
    ),
    "lvis-v1": Lvis(
        name="lvis-v1",
        annotations={"train": "lvis_v1_train.json", "val": "lvis_v1_val.json"},
        categories=1203,
        totals={"train": (100_170, 1_270_141), "val": (19_809, 244_707)},  # its download page
        needs=_lvis_needed("v1"),
    ),
}
