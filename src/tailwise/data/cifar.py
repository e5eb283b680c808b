"""CIFAR-10-LT and CIFAR-100-LT from a local copy of CIFAR."""

import functools
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tailwise import checks
from tailwise.counts import ClassCounts
from tailwise.data.augment import Normalize
from tailwise.data.contract import LongTailedData, Split
from tailwise.data.local import local_folder
from tailwise.data.long_tail import Profile, ids_hash, largest_count, long_tailed_counts, long_tailed_indices

# the authors use CIFAR-10's statistics for both
NORMALIZE = Normalize(scale=255.0, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))

FOLDERS = {
    10: ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], "batches.meta"),
    100: ("cifar-100-python", ["train"], ["test"], "meta"),
}


def cifar_lt(
    num_classes: int,
    seed: int,
    *,
    data_dir: Path | None = None,
    imbalance_ratio: float = 100,
    profile: Profile = "exp",
    max_count: int | None = None,
) -> LongTailedData:
    """CIFAR with a long tail (Cui et al. 2019): class c keeps its first images in `frozen_order`.

    Args:
        num_classes: 10 or 100.
        seed: the subset seed, at least 0.
        data_dir: what holds torchvision's folder (`cifar-10-batches-py`, `cifar-100-python`), or `cifar10.npz` /
            `cifar100.npz` with x_train, y_train, x_test, y_test; or that folder or file itself. Without it the
            environment variable TAILWISE_DATA is asked.
        imbalance_ratio: N_max / N_min; the papers use 100, 50 and 10.
        profile: "exp" or "step".
        max_count: N_max; None is the images of a class, 500 or 5000. With imbalance_ratio 1 the set is balanced:
            108 a class are as many images as CIFAR-100-LT at ratio 100 has.

    Raises:
        InputError: no data there, a corrupt file, a value outside its range.
    """
    train, test, class_names = read_cifar(num_classes, data_dir)
    largest = largest_count(int(np.bincount(train.labels.numpy(), minlength=num_classes).min()), max_count)
    counts = long_tailed_counts(num_classes, largest, imbalance_ratio, profile)
    subset = train.take(long_tailed_indices(train.labels.numpy(), counts, dataset=f"cifar{num_classes}", seed=seed))
    return LongTailedData(
        name=f"cifar{num_classes}-lt",
        train=subset,
        val=None,
        test=test,
        counts=ClassCounts(counts),
        published_counts=ClassCounts(counts),
        class_names=class_names,
        subset_hash=ids_hash(subset.ids, test.ids),
        normalize=NORMALIZE,
    )


def read_cifar(num_classes: int, data_dir: Path | None) -> tuple[Split, Split, tuple[str, ...]]:
    """(train, test, class names) of CIFAR-10 or CIFAR-100; arguments and errors as in `cifar_lt`."""
    name = f"cifar{num_classes}"
    where = local_folder(data_dir, f"{name}-lt")
    folder, *_ = FOLDERS[num_classes]
    for candidate in (where, where / folder, where / f"{name}.npz"):
        if candidate.is_file() and candidate.suffix == ".npz":
            return _read(candidate, num_classes)
        if candidate.is_dir() and candidate.name == folder:
            return _read(candidate, num_classes)
    raise checks.InputError(f"data-dir: expected {folder}/ or {name}.npz in {where}, got neither")


@functools.cache
def _read(path: Path, num_classes: int) -> tuple[Split, Split, tuple[str, ...]]:
    arrays, class_names = (_read_npz if path.is_file() else _read_folder)(path, num_classes)
    train, test = (_split(path, part, *arrays[part], num_classes) for part in ("train", "test"))
    return train, test, class_names


Arrays = dict[str, tuple[NDArray[Any], NDArray[Any]]]


def _read_npz(path: Path, num_classes: int) -> tuple[Arrays, tuple[str, ...]]:
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {part: (file[f"x_{part}"], file[f"y_{part}"]) for part in ("train", "test")}
    except KeyError as error:
        raise checks.InputError(f"{path}: expected arrays x_train, y_train, x_test, y_test; {error.args[0]}") from error
    except Exception as error:  # zipfile, zlib, struct and numpy each have their own for a broken file
        raise checks.InputError(f"{path}: not a readable .npz file ({error})") from error
    return arrays, tuple(str(c) for c in range(num_classes))


def _read_folder(path: Path, num_classes: int) -> tuple[Arrays, tuple[str, ...]]:
    _, train_files, test_files, meta_file = FOLDERS[num_classes]
    kind = "fine_labels" if num_classes == 100 else "labels"
    names_kind = "fine_label_names" if num_classes == 100 else "label_names"

    def read(files: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        batches = [_unpickle(path / file, ("data", kind)) for file in files]
        images = np.concatenate([batch["data"] for batch in batches])
        labels = np.concatenate([np.asarray(batch[kind]) for batch in batches])
        if images.ndim != 2 or images.shape[1] != 3072:
            raise checks.InputError(f"{path}: expected rows of 3072 bytes, got shape {list(images.shape)}")
        return images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels

    names = tuple(str(name) for name in _unpickle(path / meta_file, (names_kind,))[names_kind])
    return {"train": read(train_files), "test": read(test_files)}, names


def _split(path: Path, part: str, images: NDArray[Any], labels: NDArray[Any], num_classes: int) -> Split:
    labels = labels.reshape(-1)
    if images.shape[1:] != (32, 32, 3) or images.dtype != np.uint8:
        raise checks.InputError(
            f"{path}: expected {part} images uint8 [N, 32, 32, 3], got {images.dtype} {list(images.shape)}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or len(labels) != len(images):
        raise checks.InputError(
            f"{path}: expected {len(images)} whole-number {part} labels, got {len(labels)} of {labels.dtype}"
        )
    checks.labels_in_range(f"{path}: {part} labels", labels, num_classes)
    absent = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if len(absent):
        raise checks.InputError(f"{path}: expected {part} images of every class, got none of class {absent[0]}")
    return Split(
        images=torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        labels=torch.from_numpy(labels.astype(np.int64)),
        ids=np.array([f"{part}/{i:05d}" for i in range(len(labels))]),
    )


class _ArraysOnly(pickle.Unpickler):
    """CIFAR's files are pickles: read the NumPy arrays in them, and run nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}:
            # what an array of today is pickled with, wherever this NumPy keeps it
            return np.empty(0).__reduce__()[0]
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            import _codecs

            return _codecs.encode
        raise pickle.UnpicklingError(f"holds {module}.{name}, which is no array")


def _unpickle(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _load(file)
    except FileNotFoundError as error:
        raise checks.InputError(f"{path}: no such file") from error
    except Exception as error:  # a broken pickle raises almost anything
        raise checks.InputError(f"{path}: not a readable CIFAR file ({error})") from error
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        raise checks.InputError(f"{path}: expected a CIFAR file with {' and '.join(map(repr, keys))}, got none")
    return content


def _load(file: IO[bytes]) -> Any:
    return _ArraysOnly(file, encoding="latin1").load()
