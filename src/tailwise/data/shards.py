"""WebDataset shards: tar files whose members are found once and then read at random, so that every sampler works."""

import io
import json
import os
import re
import tarfile
import zipfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwise import checks
from tailwise.data.files import SUFFIXES
from tailwise.data.index import (
    NO_PART,
    ImageIndex,
    OnBad,
    Refused,
    classes_of,
    index_of,
    part_number,
    unfit_class_name,
    unfit_id,
)
from tailwise.data.on_disk import string_array
from tailwise.data.stamps import stamps

LABELS = frozenset({".cls", ".json"})
KEPT = "tailwise-shards.npz"


@dataclass(frozen=True, eq=False)
class ShardMembers:
    """Images that are members of tar files. names: "shard.tar/member", from the folder `root`, [M].

    shards: the tar files, from `root`. shard: which one holds each image, [M]. offset, size: of its bytes there, [M].
    """

    root: Path
    shards: tuple[str, ...]
    names: NDArray[Any]
    shard: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]

    def read(self, row: int) -> bytes:
        try:
            with (self.root / self.shards[self.shard[row]]).open("rb") as file:
                file.seek(self.offset[row])
                content: bytes = file.read(self.size[row])
        except OSError as error:
            raise checks.InputError(f"{self.where(row)}: not readable ({error.strerror})") from error
        if len(content) < self.size[row]:
            raise checks.InputError(f"{self.where(row)}: expected {self.size[row]} bytes, got {len(content)}")
        return content

    def where(self, row: int) -> str:
        return f"{self.root}/{self.names[row]}"

    def paths(self, rows: NDArray[np.int64]) -> list[str]:
        return [str(self.root / self.shards[number]) for number in np.unique(self.shard[rows]).tolist()]


def shard_index(path: Path, *, class_names: Sequence[str] | None = None, on_bad: OnBad = "error") -> ImageIndex:
    """The images in WebDataset shards on a disk.

    A sample is the members of a shard that share their name up to its first dot: an image, and its label in key.cls (a
    class number or name) or as "label" in key.json. Shards with train, val or test as a word of their names, or in
    folders of these names, divide the data. What is found is kept in tailwise-shards.npz beside the shards where that
    can be written, and they are read through again only when one of them has changed.

    Args:
        path: a .tar file, or a folder that holds some, perhaps in train/, val/ and test/; hidden ones are passed over.
        class_names: class 0 first; for numbers, or for names in an order other than the alphabet's.
        on_bad: "error", or "skip" to leave out what will not do; `skipped` of the index lists it.

    Raises:
        InputError: no shards, a compressed or broken one; or, naming it: a member whose path leaves the archive or that
            is a link, a sample without an image or a label or with two, a label that will not do.
    """
    root = path.parent if path.is_file() else path
    there = [path] if path.is_file() else shards_in(path)
    shards = [shard.relative_to(root).as_posix() for shard in there]
    if not shards:
        raise checks.InputError(f"{path}: expected shards that end in .tar, got none")
    parts = [_part(root, shard) for shard in shards]
    if NO_PART in parts and set(parts) != {NO_PART}:
        odd = shards[parts.index(NO_PART)]
        raise checks.InputError(f"{root / odd}: expected a name that says train, val or test, as others do")
    refused = Refused(on_bad)
    found = _kept(root, shards) or _search(root, shards, refused)
    if not found.names:
        raise checks.InputError(f"{path}: expected samples of an image and a label, got none that will do")
    class_of_text, names = classes_of(found.texts, class_names, str(path))
    labels = np.array([class_of_text.get(text, -1) for text in found.texts])[np.frombuffer(found.codes, np.int64)]
    for i in np.flatnonzero(labels < 0).tolist():
        text = found.texts[found.codes[i]]
        refused(f"{root}/{found.names[i]}: expected a label among the {len(names)} class names, got {text!r}")
    kept = np.flatnonzero(labels >= 0)
    columns = [np.frombuffer(column, np.int64)[kept] for column in (found.shard, found.offset, found.size)]
    source = ShardMembers(root, tuple(shards), string_array(found.names)[kept], *columns)
    expected = np.array([class_of_text[text] for text in found.texts if text in class_of_text])
    return index_of(source, labels[kept], np.array(parts, np.int8)[columns[0]], names, refused, expected=expected)


def shards_in(folder: Path) -> list[Path]:
    """The .tar files of a folder, and of train, val and test in it, but hidden ones; [] of what is no folder."""
    folders = [folder, *(below for below in folder.glob("*") if part_number(below.name) is not None)]
    return sorted(path for below in folders for path in below.glob("*.tar") if not path.name.startswith("."))


def _part(root: Path, shard: str) -> int:
    """By the folder of a shard, or else by a word of its name."""
    folder, _, file = shard.rpartition("/")
    if (number := part_number(folder)) is not None:
        return number
    found = {number for word in re.split(r"[-_.]", file) if (number := part_number(word)) is not None}
    if len(found) > 1:
        raise checks.InputError(f"{root / shard}: expected a name that says one of train, val and test, got several")
    return found.pop() if found else NO_PART


class _Found:
    """Samples found in shards, a column for each of their properties; codes: of the label, among `texts`.

    texts: labels of samples that were refused, too, so that no class is lost with them.
    """

    def __init__(self) -> None:
        self.names, self.texts = list[str](), list[str]()
        self.codes, self.shard, self.offset, self.size = (array("q") for _ in range(4))


def _search(root: Path, shards: Sequence[str], refused: Refused) -> _Found:
    """Read through all shards, and keep what is found if all of it will do."""
    found, codes = _Found(), dict[str, int]()
    for number, shard in enumerate(shards):
        for image, text in _samples(root / shard, refused):
            code = codes.setdefault(text, len(codes))
            if image is None:
                continue
            found.names.append(f"{shard}/{image.name.removeprefix('./')}")
            found.codes.append(code)
            for column, value in ((found.shard, number), (found.offset, image.offset_data), (found.size, image.size)):
                column.append(value)
    found.texts = list(codes)
    if found.names and not refused.lines:
        _keep(root, shards, found)
    return found


def _samples(shard: Path, refused: Refused) -> list[tuple[tarfile.TarInfo | None, str]]:
    """The image and the label's text for each sample of one shard; no image of one that is refused."""
    samples: dict[str, dict[str, list[tarfile.TarInfo]]] = {}
    try:
        with tarfile.open(shard, "r:") as archive, shard.open("rb") as file:
            for member in archive:
                name = member.name.removeprefix("./")
                folder, _, base = name.rpartition("/")
                if member.isdir() or base.startswith("."):  # macOS adds ._NAME to each NAME
                    continue
                unfit = unfit_id(name) or ("a path that leaves its folder" if name.startswith("/") else None)
                if unfit or not member.isreg() or member.issparse():
                    refused(f"{shard}: got {unfit or f'{name!r}, which is no plain file'}")
                    continue
                key, _, ending = base.partition(".")
                suffix = "." + ending.rpartition(".")[2].lower()
                kind = "image" if suffix in SUFFIXES else "label" if suffix in LABELS else "other"
                samples.setdefault(f"{folder}/{key}", {}).setdefault(kind, []).append(member)
            return list(_labelled(shard, samples, file, refused))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise checks.InputError(f"{shard}: not a readable tar file, or a compressed one ({error})") from error


def _labelled(
    shard: Path, samples: dict[str, dict[str, list[tarfile.TarInfo]]], file: io.BufferedReader, refused: Refused
) -> list[tuple[tarfile.TarInfo | None, str]]:
    end = os.fstat(file.fileno()).st_size
    done = list[tuple[tarfile.TarInfo | None, str]]()
    for key, members in samples.items():
        images, labels = members.get("image", []), members.get("label", [])
        where = f"{shard}/{key.removeprefix('/')}"
        text = _label(labels[0], file) if len(labels) == 1 else ""
        unfit, image = unfit_class_name(text), None
        if len(images) != 1 or len(labels) != 1:
            refused(f"{where}: expected an image and a label (.cls or .json), got {len(images)} and {len(labels)}")
        elif images[0].offset_data + images[0].size > end:
            refused(f"{where}: the shard ends within it")
        elif unfit:
            refused(f"{where}: got {unfit}")
        else:
            image = images[0]
        if not unfit:
            done.append((image, text))
    return done


def _label(member: tarfile.TarInfo, file: io.BufferedReader) -> str:
    """The text of a label; an empty one, which nobody takes, where there is none."""
    file.seek(member.offset_data)
    content = file.read(member.size)
    try:
        label = content.decode()
        if member.name.lower().endswith(".json"):
            label = json.loads(label)["label"]
    except (ValueError, KeyError, TypeError):
        return ""
    return str(label).strip() if type(label) in (str, int) else ""  # true is none


# ---- what was found, kept


def _stamps(root: Path, shards: Sequence[str]) -> list[str]:
    return [f"{shard} {stamp}" for shard, stamp in zip(shards, stamps(root / shard for shard in shards), strict=True)]


def _keep(root: Path, shards: Sequence[str], found: _Found) -> None:
    content = {name: np.frombuffer(getattr(found, name), np.int64) for name in ("codes", "shard", "offset", "size")}
    for name, lines in (("names", found.names), ("texts", found.texts), ("stamps", _stamps(root, shards))):
        content[name] = np.frombuffer("\n".join(lines).encode(), np.uint8)
    partial = root / f".{KEPT}.{os.getpid()}"
    try:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **content)
        partial.replace(root / KEPT)
    except OSError:
        pass  # a folder that cannot be written: the shards are read through each time
    finally:
        if partial.exists():
            partial.unlink()


def _kept(root: Path, shards: Sequence[str]) -> _Found | None:
    """What was found before, if no shard has changed since."""
    try:
        with np.load(root / KEPT, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
        lines = {name: content[name].tobytes().decode().split("\n") for name in ("names", "texts", "stamps")}
        columns = {name: array("q", content[name].tobytes()) for name in ("codes", "shard", "offset", "size")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    if lines["stamps"] != _stamps(root, shards):
        return None
    found = _Found()
    found.names, found.texts = lines["names"], lines["texts"]
    found.codes, found.shard, found.offset, found.size = columns.values()
    return found
