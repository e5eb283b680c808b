"""CIFAR-10 and CIFAR-100: downloaded by torchvision where they are not there, verified by md5."""

import hashlib
from pathlib import Path

import numpy as np

from tailwise import checks
from tailwise.data.benchmarks import Cifar, needed
from tailwise.data.cifar import read_cifar
from tailwise.data.prepared import Check, Prepared


def prepare_cifar(facts: Cifar, data_dir: Path, *, download: bool = True) -> Prepared:
    """Verify a copy of CIFAR, having downloaded it if there is none.

    Every file of torchvision's folder is compared with its md5 before anything in it is read. Of an .npz nothing is
    published but how many images of each class it must hold.

    Args:
        facts: of `CIFAR`.
        data_dir: what holds, or will hold, the folder.
        download: whether to fetch what is not there.

    Raises:
        InputError: the download failed, or torchvision, which does it, is not installed.
    """
    folder, packed = data_dir / facts.folder, data_dir / f"{facts.name}.npz"
    if not folder.is_dir() and not packed.is_file():
        if not download:
            return Prepared(facts.name, needs=needed(facts.needs, data_dir))
        _download(facts, data_dir)
    compared = []
    if folder.is_dir():
        missing = tuple(str(folder / name) for name in facts.md5 if not (folder / name).is_file())
        there = [name for name in facts.md5 if (folder / name).is_file()]
        compared += [Check(f"{name}, md5", facts.md5[name], md5_of(folder / name)) for name in there]
        if missing or not all(check.ok for check in compared):
            return Prepared(facts.name, tuple(compared), (), missing)
    train, test, _ = read_cifar(facts.num_classes, data_dir)
    for part, split in (("train", train), ("test", test)):
        counts = np.bincount(split.labels.numpy(), minlength=facts.num_classes)
        expected = {"train": 50_000, "test": 10_000}[part] // facts.num_classes
        found = str(counts[0]) if (counts == counts[0]).all() else f"{counts.min()} to {counts.max()}"
        compared.append(Check(f"{part} images of each class", str(expected), found))
    where = folder if folder.is_dir() else packed
    return Prepared(facts.name, tuple(compared), root=where, images={"train": 50_000, "test": 10_000})


def md5_of(path: Path) -> str:
    """The md5 of a file, as 32 hexadecimal digits; it tells a broken download, not an attack."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download(facts: Cifar, data_dir: Path) -> None:
    try:
        from torchvision.datasets.utils import download_and_extract_archive
    except ModuleNotFoundError as error:
        raise checks.InputError(
            f"{facts.name}: to download it needs torchvision; {checks.extra('vision')}, or put {facts.url}, "
            f"unpacked, into {data_dir}"
        ) from error
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # the archive is unpacked only if its md5 is the published one
        download_and_extract_archive(facts.url, str(data_dir), filename=facts.archive, md5=facts.archive_md5)
    except (OSError, RuntimeError) as error:
        raise checks.InputError(f"{facts.name}: cannot download {facts.url} ({error})") from error
