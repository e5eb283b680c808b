"""Images that are in two splits, or under two classes: the same bytes, or the same picture stored anew."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tailwise import checks
from tailwise.data.contract import Split
from tailwise.data.files import grey_thumbnail, image_of_pixels, small_and_grey
from tailwise.data.on_disk import DiskSplit
from tailwise.data.readable import BLOCK, THREADS, Progress

Thumbnails = NDArray[np.uint8]
FAR = 3  # bits that two hashes of the same picture may differ in
ALIKE = 0.95  # correlation of two thumbnails from which on they show the same
SMALLEST = 16  # pixels: shapes as small as a digit's look alike whatever they show
BANDS = 4  # so that two hashes with at most 3 different bits agree in a band of 16 at least
PLAIN = 5  # bits: a picture with fewer brighter, or fewer darker, neighbours is a surface, and says nothing


@dataclass(frozen=True)
class Pair:
    """Two images, with the splits and classes they are in. kind: "same bytes", or "look alike"."""

    kind: str
    ids: tuple[str, str]
    parts: tuple[str, str]
    labels: tuple[int, int]


def difference_hash(thumbnail: NDArray[np.uint8]) -> int:
    """64 bits of a grey picture of 9 x 8 pixels: whether each is brighter than its right neighbour.

    The same for a picture in another size, quality or brightness, but for a bit or so.

    >>> picture = np.tile(np.array([9, 8, 7, 6, 5, 6, 7, 8, 9], dtype=np.uint8), (8, 1))
    >>> f"{difference_hash(picture):016x}"
    'f0f0f0f0f0f0f0f0'
    """
    bits = thumbnail[:, :-1] > thumbnail[:, 1:]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def duplicates(
    parts: Mapping[str, Split | DiskSplit], *, progress: Progress | None = None
) -> tuple[list[Pair], list[str]]:
    """Pairs of images that should not both be there, and a line for each image that cannot be read.

    A pair is in two splits, or, if its bytes are the same, under two classes of one split. Pictures look alike if their
    `difference_hash` differs in at most 3 of 64 bits and their grey thumbnails correlate by 0.95 or more; surfaces and
    pictures of less than 16 pixels are not compared. What looks alike may still be two pictures of one thing.

    Args:
        parts: train, val, test.
        progress: told (done, of how many) images.
    """
    ids = np.concatenate([split.ids.astype(object) for split in parts.values()])
    labels = np.concatenate([split.labels.numpy() for split in parts.values()])
    part = np.repeat(np.arange(len(parts)), [len(split) for split in parts.values()])
    digests, thumbnails, broken = _fingerprints(parts, progress)
    names = list(parts)

    def pair(kind: str, i: int, j: int) -> Pair:
        return Pair(kind, (ids[i], ids[j]), (names[part[i]], names[part[j]]), (int(labels[i]), int(labels[j])))

    found = [pair("same bytes", i, j) for i, j in _same_bytes(digests, part, labels)]
    known = {one.ids for one in found}
    alike = (pair("look alike", i, j) for i, j in _alike(thumbnails, part))
    return [*found, *(one for one in alike if one.ids not in known)], broken


def _fingerprints(
    parts: Mapping[str, Split | DiskSplit], progress: Progress | None
) -> tuple[list[bytes | None], Thumbnails, list[str]]:
    """Digest and thumbnail of each image, and what is wrong with those that cannot be read: None, and black."""
    total = sum(len(split) for split in parts.values())
    digests, thumbnails, broken = list[bytes | None](), np.zeros((total, 8, 9), dtype=np.uint8), list[str]()
    with ThreadPoolExecutor(THREADS) as threads:
        for split in parts.values():
            for start in range(0, len(split), BLOCK):
                block = range(start, min(start + BLOCK, len(split)))
                for digest, thumbnail, wrong in threads.map(partial(_fingerprint, split), block):
                    thumbnails[len(digests)] = thumbnail
                    digests.append(digest)
                    if wrong:
                        broken.append(wrong)
                if progress:
                    progress(len(digests), total)
    return digests, thumbnails, broken


def _fingerprint(split: Split | DiskSplit, i: int) -> tuple[bytes | None, NDArray[np.uint8], str | None]:
    black = np.zeros((8, 9), dtype=np.uint8)
    try:
        if isinstance(split, DiskSplit):
            row = int(split.rows[i])
            content = split.source.read(row)
            thumbnail = grey_thumbnail(content, split.source.where(row), 9, 8)
        else:
            pixels = split.images[i].permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy()
            content = pixels.tobytes()
            thumbnail = black if min(pixels.shape[:2]) < SMALLEST else small_and_grey(image_of_pixels(pixels), 9, 8)
    except checks.InputError as error:
        return None, black, str(error)
    return hashlib.blake2b(content, digest_size=16).digest(), thumbnail, None


def _same_bytes(
    digests: list[bytes | None], part: NDArray[np.int64], labels: NDArray[np.int64]
) -> Iterator[tuple[int, int]]:
    """The first image of each content with every other that is in another split or of another class."""
    members = defaultdict[bytes, list[int]](list)
    for i, digest in enumerate(digests):
        if digest is not None:
            members[digest].append(i)
    for first, *others in members.values():
        yield from ((first, i) for i in others if (part[i], labels[i]) != (part[first], labels[first]))


def _alike(thumbnails: Thumbnails, part: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Images of different splits that look alike, ascending."""
    hashes = np.array([difference_hash(thumbnail) for thumbnail in thumbnails], dtype=np.uint64)
    bits = np.bitwise_count(hashes)
    compared = np.flatnonzero((bits >= PLAIN) & (bits <= 64 - PLAIN))
    near = set[tuple[int, int]]()
    for band in range(BANDS):
        key = (hashes[compared] >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(key, kind="stable")
        groups = np.split(compared[order], np.flatnonzero(np.diff(key[order])) + 1)
        for group in groups:
            for i in group[:-1] if len(set(part[group].tolist())) > 1 else ():
                others = group[group > i]
                others = others[(np.bitwise_count(hashes[others] ^ hashes[i]) <= FAR) & (part[others] != part[i])]
                near.update((int(i), int(j)) for j in others)
    return sorted((i, j) for i, j in near if _correlation(thumbnails[i], thumbnails[j]) >= ALIKE)


def _correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
