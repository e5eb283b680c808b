"""WebDataset shards that do not fit a disk: read from where they are, one after the other."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import IterableDataset

from tailwise import checks
from tailwise.data.files import SUFFIXES
from tailwise.data.index import checked_class_names
from tailwise.seeds import mixed_seed


@dataclass(frozen=True, eq=False)
class StreamedShards(IterableDataset[tuple[str, bytes, int]]):
    """(id, encoded image, class) of every sample in shards that are streamed; an iterable for torch's DataLoader.

    Shards come in an order by SHA-256 of (seed, epoch, address), divided among the processes that train together and
    the workers of each, and samples are shuffled within a buffer: all of it depends on seed, epoch and the numbers of
    processes and workers alone. What needs random access does not work: samplers that look at classes, a position
    within an epoch to resume from, epochs of equal length on every process. Where a disk holds them, `shard_index`
    has all of these.

    addresses: anything that webdataset opens: paths, https://..., pipe:COMMAND. class_names: class 0 first; a label
    (key.cls, or "label" in key.json) is one of these names, or its number. buffer: samples to shuffle among; 1 keeps
    the order of the shards.

    Raises:
        InputError: no address, class names or a buffer that will not do; while iterating, a sample without an image or
            without a label that is known, named by shard and key.
    """

    addresses: Sequence[str]
    class_names: Sequence[str]
    seed: int = 0
    epoch: int = 0
    buffer: int = 1000

    def __post_init__(self) -> None:
        if not self.addresses:
            raise checks.InputError("addresses: expected at least one shard, got none")
        checked_class_names(self.class_names)
        checks.whole("buffer", self.buffer)

    def at_epoch(self, epoch: int) -> "StreamedShards":
        """The same shards in the order of another epoch."""
        return replace(self, epoch=epoch)

    def ordered(self) -> list[str]:
        """The shards in the order of the epoch, before they are divided."""
        return sorted(self.addresses, key=self._place)

    def _place(self, address: str) -> bytes:
        return hashlib.sha256(f"{self.seed}/{self.epoch}/{address}".encode()).digest()

    def __iter__(self) -> Iterator[tuple[str, bytes, int]]:
        try:
            import webdataset
        except ModuleNotFoundError as error:
            raise checks.InputError(f"streaming needs webdataset; {checks.extra('shards')}") from error
        number = {str(c): c for c in range(len(self.class_names))} | {c: i for i, c in enumerate(self.class_names)}
        mine = webdataset.split_by_worker(webdataset.split_by_node(self.ordered()))
        members = webdataset.tariterators.tar_file_expander(_streams(mine), rename_files=_plain)
        samples = webdataset.tariterators.group_by_keys(members)
        rng = random.Random(mixed_seed(self.seed, self.epoch))
        for sample in webdataset.shuffle(self.buffer, initial=self.buffer, rng=rng)(samples):
            yield self._read(sample, number)

    def _read(self, sample: dict[str, Any], number: dict[str, int]) -> tuple[str, bytes, int]:
        name = f"{sample['__url__'].rsplit('/', 1)[-1]}/{sample['__key__']}"
        images = [content for ending, content in sample.items() if f".{ending.rsplit('.', 1)[-1]}" in SUFFIXES]
        if len(images) != 1:
            raise checks.InputError(f"{name}: expected one image, got {len(images)}")
        try:
            text = str(json.loads(sample["json"])["label"]) if "json" in sample else sample["cls"].decode().strip()
        except (KeyError, ValueError, TypeError) as error:
            raise checks.InputError(f"{name}: expected a label, .cls or .json, got none that can be read") from error
        if text not in number:
            raise checks.InputError(f"{name}: expected a label among the {len(self.class_names)} classes, got {text!r}")
        return name, images[0], number[text]


def _streams(addresses: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Each shard, opened, and closed when it has been read or is given up."""
    import webdataset

    for address in addresses:
        with webdataset.gopen(address) as stream:
            yield {"url": address, "stream": stream}


def _plain(name: str) -> str:
    return name.removeprefix("./")
