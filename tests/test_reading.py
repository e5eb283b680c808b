"""Images on disk: the same batches for any number of workers, ranks and batches; what cannot be read is named."""

import functools
import gc
import multiprocessing
import os
import shutil
import sys
import tracemalloc
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jpeg_trees import folder_tree
from tailwise import InputError
from tailwise.data import (
    DiskSplit,
    EpochBatches,
    LooseFiles,
    MixedBatches,
    Mixup,
    Split,
    decoded,
    permuted,
    string_array,
)
from tailwise.data.decoded import CHECKSUMS, PIXELS, decode, decoded_splits
from tailwise.data.mix import pair
from tailwise.data.reading import image_of
from tailwise.data.stamps import kept_place
from tailwise.data.transforms import IMAGENET, CentreView, RandomView
from tailwise.seeds import mixed_seed

VIEW, RANDOM = CentreView(16, 20), RandomView(16, jitter=0.4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    return LooseFiles(root, string_array(folder_tree(root, {"cat": 14, "dog": 9})))


@dataclass(frozen=True, eq=False)
class Counting:
    """A source that remembers what was read of it, in this process."""

    files: LooseFiles
    seen: list[int] = field(default_factory=list)

    @property
    def names(self):
        return self.files.names

    def read(self, row):
        self.seen.append(row)
        return self.files.read(row)

    def where(self, row):
        return self.files.where(row)

    def paths(self, rows):
        return self.files.paths(rows)


def split_of(source, workers=0):
    return DiskSplit(source, np.arange(23), torch.arange(23) % 2, workers)


def batches_of(split, augment=RANDOM, **settings):
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    return EpochBatches(
        split, order, **{"batch_size": 7, "normalize": IMAGENET, "augment": augment, "seed": 5, **settings}
    )


@pytest.fixture(scope="module")
def expected(files):
    """The epoch, read in this process: images, labels."""
    return list(batches_of(split_of(files)))


def same(batches, expected):
    batches = list(batches)
    assert len(batches) == len(expected)
    for (images, labels), (other_images, other_labels) in zip(batches, expected, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_a_sample_is_what_its_seed_makes_of_its_file(files, expected):
    """By place in the epoch, written out: no stream of numbers runs through the epoch."""
    from torchvision.transforms import v2

    order = batches_of(split_of(files)).indices
    steps = [v2.RandomResizedCrop(16), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4, 0), v2.PILToTensor()]
    images, labels = (torch.cat(parts) for parts in zip(*expected, strict=True))
    for place in (0, 8, 22):
        torch.manual_seed(mixed_seed(5, place))
        with Image.open(files.where(int(order[place]))) as file:
            image = v2.Compose(steps)(file.convert("RGB"))
        assert torch.equal(images[place], IMAGENET(image[None])[0])
        assert labels[place] == order[place] % 2


def test_prediction_sees_the_centre(files):
    with Image.open(files.where(0)) as file:
        wide = file.resize((40, 24))
    size = round(40 * 20 / 24)
    shown = np.asarray(wide.resize((size, 20), Image.Resampling.BILINEAR))
    left, top = round((size - 16) / 2), 2
    assert np.array_equal(VIEW(wide).permute(1, 2, 0), shown[top : top + 16, left : left + 16])


def test_workers_change_nothing(files, expected):
    """Nor does the epoch before, which they outlive, nor torch's random state, which is left alone."""
    torch.manual_seed(3)
    state = torch.get_rng_state()
    batches = batches_of(split_of(files, workers=2))
    same(batches, expected)
    same(batches, expected)
    next(iter(batches))  # and leave it at that
    same(batches.since(2), expected[2:])
    same(batches_of(split_of(files)), expected)  # in this process
    assert torch.equal(torch.get_rng_state(), state)
    other = list(batches_of(batches.split, seed=6))
    assert not torch.equal(other[0][0], expected[0][0])


@dataclass(frozen=True)
class Collecting:
    """A view that looks for garbage first."""

    view: CentreView = VIEW

    def __call__(self, image):
        sys.unraisablehook = lambda unraisable: os.write(2, repr(unraisable).encode())  # not pytest's, which waits
        gc.collect()
        return self.view(image)


def test_workers_leave_alone_what_the_main_process_is_done_with(files, expected, capfd):
    """A worker has a copy of everything, workers of a split that is gone among it: these are not its to end."""
    gone = split_of(files, workers=1)
    list(batches_of(gone))
    circle = [gone]
    circle.append(circle)
    gc.disable()
    try:
        del gone, circle  # garbage, but nobody has looked
        list(batches_of(split_of(files, workers=1), Collecting()))
    finally:
        gc.enable()
    gc.collect()
    assert capfd.readouterr().err == ""


def test_batches_and_ranks_change_nothing(files, expected):
    images = torch.cat([images for images, _ in expected])
    for settings in ({"batch_size": 5}, {"batch_size": 23}):
        again = torch.cat([part for part, _ in batches_of(split_of(files), **settings)])
        assert torch.equal(again, images)
    parts = [list(batches_of(split_of(files), rank=rank, num_ranks=2)) for rank in (0, 1)]
    joined = [tuple(torch.cat(both) for both in zip(*step, strict=True)) for step in zip(*parts, strict=True)]
    same(joined, expected)
    dropped = batches_of(split_of(files), drop_last=True)
    same(dropped, expected[:3])


def test_what_was_done_already_is_not_read_again(files, expected):
    source = Counting(files)
    batches = batches_of(split_of(source))
    same(batches.since(2), expected[2:])
    assert sorted(source.seen) == sorted(batches.indices[14:].tolist())


def test_two_streams_are_those_of_images_in_memory(files):
    split = split_of(files)
    shown = torch.cat([images for images, _ in EpochBatches(split, torch.arange(23), 23, lambda x: x, augment=VIEW)])
    memory = Split(shown, split.labels, split.ids)
    for rule, other in ((Mixup(2), permuted), (pair, lambda b: replace(b, indices=b.indices.flip(0), seed=9))):
        one, two = batches_of(split, augment=VIEW), batches_of(memory, augment=None)
        mixed, same_in_memory = MixedBatches(one, other(one), rule, seed=2), MixedBatches(two, other(two), rule, seed=2)
        same(mixed, list(same_in_memory))
        same(mixed.since(1), list(same_in_memory)[1:])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "not a readable file (No such file or directory)"),
        (b"<html>", "not a readable image (no image format that Pillow knows)"),
        ("cut", "not a readable image ("),
    ],
)
def test_what_cannot_be_read_is_named(workers, content, reason, tmp_path):
    names = folder_tree(tmp_path, {"cat": 3})
    path = tmp_path / names[1]
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[:400] if content == "cut" else content)
    split = DiskSplit(
        LooseFiles(tmp_path, string_array(names)), np.arange(3), torch.zeros(3, dtype=torch.int64), workers
    )
    others = set(multiprocessing.active_children())
    with pytest.raises(InputError) as error:
        list(EpochBatches(split, torch.arange(3), 2, IMAGENET, augment=VIEW))
    assert str(error.value).startswith(f"{path}: {reason}")
    assert "\n" not in str(error.value)
    assert set(multiprocessing.active_children()) <= others  # workers end at once, though the error is kept


def test_what_is_kept_goes_by_size_and_time_of_every_file(tmp_path):
    names = folder_tree(tmp_path, {"cat": 3})
    source, kept = LooseFiles(tmp_path, string_array(names)), tmp_path / "kept"

    def place():
        return kept_place(kept, "decoded", source, np.arange(3))

    first, state = place(), (tmp_path / names[1]).stat()
    os.utime(tmp_path / names[1], ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert place() != first
    os.utime(tmp_path / names[1], ns=(state.st_atime_ns, state.st_mtime_ns))
    assert place() == first
    with (tmp_path / names[2]).open("ab") as file:
        file.write(b"x")
    changed = place()
    assert changed != first
    changed.mkdir(parents=True)
    for name in names:
        (tmp_path / name).unlink()
    assert place() == changed  # of files that are gone, what there is


def test_splits(files):
    split = split_of(files).take(np.array([4, 0]))
    assert split.ids.tolist() == ["cat/004.jpg", "cat/000.jpg"]
    assert split.labels.tolist() == [0, 0]
    assert len(split.take(np.array([1]))) == 1
    with pytest.raises(InputError, match="expected a label for each of 2 images, got 3"):
        DiskSplit(files, np.arange(2), torch.arange(3))
    with pytest.raises(InputError, match="augment: expected a transform for images on disk, got none"):
        EpochBatches(split, torch.arange(2), 2, IMAGENET)


def test_a_million_rows_are_small():
    """Names of 40 characters, rows, labels: 500 MB would be 500 bytes a row."""
    number = 20_000
    tracemalloc.start()
    names = string_array(f"train/n{i % 1000:08d}/n{i % 1000:08d}_{i:08d}.JPEG" for i in range(number))
    split = DiskSplit(LooseFiles(Path("root"), names), np.arange(number), torch.zeros(number, dtype=torch.int64))
    used = (tracemalloc.get_traced_memory()[0] + split.labels.nbytes) / number
    tracemalloc.stop()
    assert used < 200


# ---- decoded once


def test_decoded_images_are_those_of_the_files(files, tmp_path):
    splits = {
        "train": DiskSplit(files, np.arange(0, 23, 2), torch.arange(12), 2),
        "test": split_of(files).take(np.array([3])),
    }
    made = decoded_splits(splits, 20, tmp_path)
    for part, split in splits.items():
        assert made[part].ids.tolist() == split.ids.tolist()
        assert torch.equal(made[part].labels, split.labels)
        n = torch.arange(len(split))
        same(
            EpochBatches(made[part], n, 5, IMAGENET, augment=VIEW),
            list(EpochBatches(split, n, 5, IMAGENET, augment=VIEW)),
        )
    assert made["train"].workers == 2
    crop = functools.partial(image_of, made["train"].source, 0, RANDOM)
    assert torch.equal(crop(7), crop(7))
    assert not torch.equal(crop(7), crop(8))


def test_they_are_decoded_once(files, tmp_path):
    source = Counting(files)
    for _ in range(2):
        made = decode(source, np.arange(4), 20, tmp_path)
        image_of(made, 2, VIEW, 0)
    assert source.seen == [0, 1, 2, 3]
    decode(source, np.arange(4), 22, tmp_path)  # of another size
    decode(source, np.arange(3), 20, tmp_path)  # and other images
    assert len(source.seen) == 11
    assert len(list(tmp_path.iterdir())) == 3


def test_they_are_decoded_anew_where_files_look_otherwise(tmp_path):
    """Replaced in place, or of the same names below another folder; with all of them gone, what is there will do."""
    names = folder_tree(tmp_path / "a", {"cat": 3})
    folder_tree(tmp_path / "b", {"cat": 3}, first=50)
    kept = tmp_path / "kept"

    def pixels(root):
        return image_of(decode(LooseFiles(tmp_path / root, string_array(names)), np.arange(3), 20, kept), 0, VIEW, 0)

    first = pixels("a")
    of_a = list(kept.iterdir())
    other = pixels("b")
    [of_b] = set(kept.iterdir()) - set(of_a)
    assert not torch.equal(first, other)
    (tmp_path / "a/cat/000.jpg").write_bytes((tmp_path / "b/cat/000.jpg").read_bytes())
    assert torch.equal(pixels("a"), other)
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(InputError, match=r"b/cat/000\.jpg: not a readable file"):
        pixels("b")  # which of three is not known
    for made in set(kept.iterdir()) - {of_b}:
        shutil.rmtree(made)
    assert torch.equal(pixels("b"), other)


def test_a_changed_byte_is_found_and_named(files, tmp_path):
    made = decode(files, np.arange(4), 20, tmp_path)
    path = made.folder / PIXELS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    image_of(made, 2, VIEW, 0)
    with pytest.raises(InputError, match=r"image 3 \(.*cat/003.jpg\): not the bytes that were written"):
        image_of(made, 3, VIEW, 0)


def test_runs_that_decode_the_same_at_once_share_it(files, tmp_path, monkeypatch):
    """As two containers do, in which processes have the same numbers."""
    write, kept = decoded._write, tmp_path / "kept"

    def meanwhile(*given):
        monkeypatch.setattr(decoded, "_write", write)
        decode(files, np.arange(2), 20, kept)
        write(*given)

    monkeypatch.setattr(decoded, "_write", meanwhile)
    made = decode(files, np.arange(2), 20, kept)
    assert made.pixels(1).shape == (20, 20, 3)
    assert list(kept.iterdir()) == [made.folder]
    assert made.folder.stat().st_mode == kept.stat().st_mode


def test_what_a_killed_run_of_the_same_number_left_is_in_nobodys_way(files, tmp_path):
    left = tmp_path / f".{decode(files, np.arange(2), 20, tmp_path / 'kept').folder.name}.partial-{os.getpid()}"
    left.mkdir()
    decode(files, np.arange(2), 20, tmp_path)
    assert left.exists()


def test_nothing_half_decoded_is_left(files, tmp_path):
    broken = replace(files, names=string_array(["cat/000.jpg", "cat/gone.jpg"]))
    with pytest.raises(InputError, match=r"cat/gone.jpg: not a readable file"):
        decode(broken, np.arange(2), 20, tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write decoded images \(Not a directory\); data.kept=FOLDER"):
        decode(files, np.arange(2), 20, tmp_path / "file")
    made = decode(files, np.arange(2), 20, tmp_path / "kept")
    np.save(made.folder / CHECKSUMS, np.zeros(1, dtype=np.uint32))
    decoded._opened.cache_clear()  # as in another process
    with pytest.raises(InputError, match=r"expected 2 decoded images, got"):
        decode(files, np.arange(2), 20, tmp_path / "kept")
