"""Data in WebDataset shards and in Hugging Face data sets: found once, read at random, refused by name."""

import io
import itertools
import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from torch.utils.data import DataLoader

from jpeg_trees import jpeg
from tailwise.checks import InputError
from tailwise.data import shards
from tailwise.data.hugging_face import dataset_index
from tailwise.data.own import own_data, read_own
from tailwise.data.shards import shard_index
from tailwise.data.streaming import StreamedShards

COUNTS = (9, 4, 3)


def add(archive, name, content, **more):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in more.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def write_shards(folder, names=("a-0.tar", "a-1.tar"), label=lambda c: ("cls", str(c).encode())):
    """Samples of three classes, divided among shards; {id: class}."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = [(c, i) for c, n in enumerate(COUNTS) for i in range(n)]
    there = {}
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        with tarfile.open(folder / name, "w") as archive:
            for c, i in samples[k :: len(names)]:
                ending, content = label(c)
                add(archive, f"./pics/{c}{i:03d}.{ending}", content)
                add(archive, f"./pics/{c}{i:03d}.jpg", jpeg(i, c))
                add(archive, f"./pics/{c}{i:03d}.txt", b"a caption")
                there[f"{name}/pics/{c}{i:03d}.jpg"] = c
    return there


def read_back(index):
    """{id: class}, having seen that each image is the one its name says."""
    for row, name in enumerate(index.source.names.tolist()):
        c, i = int(name[-8]), int(name[-7:-4])
        assert index.source.read(row) == jpeg(i, c)
    return dict(zip(index.source.names.tolist(), index.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    "label",
    [
        lambda c: ("cls", f"{c}\n".encode()),
        lambda c: ("cls", ["cat", "dog", "owl"][c].encode()),
        lambda c: ("json", json.dumps({"label": c, "source": "web"}).encode()),
    ],
)
def test_shards_are_read_at_random(tmp_path, label):
    there = write_shards(tmp_path, label=label)
    index = shard_index(tmp_path)
    assert read_back(index) == there
    assert index.parts == {}
    assert list(index.source.paths(np.array([1, 0]))) == [str(tmp_path / "a-0.tar")]
    assert index.counts().per_class == COUNTS
    divided = own_data(tmp_path)
    assert divided.counts("test").per_class == (1, 1, 1)
    assert (tmp_path / "tailwise-splits/test.txt").is_file()
    assert shard_index(tmp_path / "a-0.tar").counts().per_class == (5, 2, 1)


@pytest.mark.parametrize(
    "names",
    [
        ("train-0.tar", "val_0.tar", "test.tar"),
        ("train/0.tar", "valid/0.tar", "test/1.tar"),
        ("birds-train-0.tar", "birds.Val.0.tar", "0_birds_test.tar"),
        ("train/trainval-0.tar", "valid/test-0.tar", "test/train-test-0.tar"),
    ],
)
def test_names_of_shards_divide(tmp_path, names):
    there = write_shards(tmp_path, names)
    index = own_data(tmp_path)
    assert {part: len(rows) for part, rows in index.parts.items()} == {"train": 6, "val": 5, "test": 5}
    for part, name in zip(("train", "val", "test"), names, strict=True):
        assert all(one.startswith(name) for one in index.split(part).ids.tolist())
    assert read_back(index) == there
    write_shards(tmp_path, ("other-trains.tar",))
    with pytest.raises(InputError, match=r"other-trains\.tar: expected a name that says train, val or test"):
        own_data(tmp_path)
    write_shards(tmp_path, ("other-train-val.tar",))
    with pytest.raises(InputError, match=r"other-train-val\.tar: expected a name that says one of train, val and test"):
        own_data(tmp_path)


def test_hidden_members_and_shards_are_passed_over(tmp_path):
    there = write_shards(tmp_path)
    with tarfile.open(tmp_path / "a-0.tar", "a") as archive:  # as tar on macOS adds them
        for name in ("pics/._0000.jpg", "pics/._0000.cls", "./._pics"):
            add(archive, name, b"AppleDouble")
    (tmp_path / "._a-0.tar").write_bytes(b"AppleDouble")
    assert read_back(shard_index(tmp_path)) == there


def test_a_stray_tar_among_classes_makes_no_shards_of_them(tmp_path):
    for name in ("cat/backup.tar", ".cache/x.tar", "dog/y.tar"):
        write_shards((tmp_path / name).parent, (Path(name).name,))
    for name in ("cat", "dog"):
        (tmp_path / name / "0.jpg").write_bytes(jpeg(0))
    assert read_own(tmp_path, {}).class_names == ("cat", "dog")


def test_members_are_found_once(tmp_path, monkeypatch):
    there = write_shards(tmp_path)
    shard_index(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", lambda *a: pytest.fail("read through again"))
        assert read_back(shard_index(tmp_path)) == there
    (tmp_path / shards.KEPT).write_bytes(b"broken")
    assert read_back(shard_index(tmp_path)) == there
    more = write_shards(tmp_path, ("a-0.tar", "a-1.tar", "a-2.tar"))
    assert read_back(shard_index(tmp_path)) == more
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-0.tar", "a-1.tar", "a-2.tar", shards.KEPT]


SPOILT = [
    (lambda archive: add(archive, "../x.jpg", jpeg(0)), r"a-0\.tar: got a path that leaves its folder, '\.\./x\.jpg'"),
    (lambda archive: add(archive, "/etc/x.jpg", jpeg(0)), r"a-0\.tar: got a path that leaves its folder"),
    (lambda archive: add(archive, "x\x07.jpg", jpeg(0)), r"a-0\.tar: got a path with a control character"),
    (
        lambda archive: add(archive, "x.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "which is no plain file",
    ),
    (lambda archive: add(archive, "x.jpg", jpeg(0)), r"a-0\.tar/x: expected an image and a label .* got 1 and 0"),
    (lambda archive: add(archive, "x.cls", b"0"), r"a-0\.tar/x: expected an image and a label .* got 0 and 1"),
    (
        lambda archive: [add(archive, name, b"0") for name in ("x.jpg", "x.png", "x.cls")],
        r"a-0\.tar/x: expected an image and a label .* got 2 and 1",
    ),
    (
        lambda archive: [add(archive, "x.jpg", b"0"), add(archive, "x.json", b"{}")],
        r"a-0\.tar/x: got an empty class name",
    ),
    *[
        (
            lambda archive, label=label: [add(archive, "x.jpg", b"0"), add(archive, "x.json", label)],
            r"a-0\.tar/x: got an empty class name",
        )
        for label in (b'{"label": %s}' % value for value in (b"null", b"true", b"1.0", b"[1]", b'{"a": 1}', b'" "'))
    ],
    (
        lambda archive: [add(archive, "x.jpg", b"0"), add(archive, "x.cls", b"\xff")],
        r"a-0\.tar/x: got an empty class name",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_what_is_wrong_in_a_shard_is_named_or_left_out(tmp_path, spoil, message):
    there = write_shards(tmp_path)
    with tarfile.open(tmp_path / "a-0.tar", "a") as archive:
        spoil(archive)
    with pytest.raises(InputError, match=message):
        shard_index(tmp_path)
    index = shard_index(tmp_path, on_bad="skip")
    assert read_back(index) == there
    assert len(index.skipped) == 1
    assert not (tmp_path / shards.KEPT).exists()


def test_a_class_is_not_skipped_away_in_a_shard(tmp_path):
    write_shards(tmp_path)
    with tarfile.open(tmp_path / "a-1.tar", "a") as archive:
        [add(archive, f"x.{ending}", b"3") for ending in ("jpg", "png", "cls")]
    with pytest.raises(InputError, match=r"none that will do of '3' \(1 such classes; .*a-1\.tar/x: .* got 2 and 1\)"):
        shard_index(tmp_path, on_bad="skip")


def test_shards_that_will_not_do(tmp_path):
    with pytest.raises(InputError, match=r"expected shards that end in \.tar, got none"):
        shard_index(tmp_path)
    write_shards(tmp_path, ("a.tar",))
    with pytest.raises(InputError, match="a label among the 2 class names, got '2'"):
        shard_index(tmp_path, class_names=["cat", "dog"])
    index = shard_index(tmp_path)
    content = (tmp_path / "a.tar").read_bytes()
    place = index.source.offset[5]
    (tmp_path / "a.tar").write_bytes(content[: place + 20])
    with pytest.raises(InputError, match=r"a\.tar/pics/0005\.jpg: expected \d+ bytes, got 20"):
        index.source.read(5)
    with pytest.raises(InputError, match=r"a\.tar.*(ends within it|not a readable tar file)"):
        shard_index(tmp_path)
    tarfile.open(tmp_path / "a.tar", "w").close()
    for _ in range(2):  # an empty one is not remembered
        with pytest.raises(InputError, match="expected samples of an image and a label, got none"):
            shard_index(tmp_path)
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        add(archive, "x.jpg", jpeg(0))
    with pytest.raises(InputError, match="not a readable tar file, or a compressed one"):
        shard_index(tmp_path)


# ---- streaming


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than a small machine has
def test_streamed_shards_have_an_order_of_each_epoch(tmp_path):
    names = [f"a-{i}.tar" for i in range(4)]
    there = write_shards(tmp_path, names)
    stream = StreamedShards([str(tmp_path / name) for name in names], ["cat", "dog", "owl"], seed=1, buffer=6)
    first, again, other = list(stream), list(stream), list(stream.at_epoch(1))
    assert first == again
    assert len({tuple(stream.at_epoch(epoch).ordered()) for epoch in range(4)}) > 1
    assert len({tuple(replace(stream, seed=seed).ordered()) for seed in range(4)}) > 1
    assert [name for name, *_ in first] != [name for name, *_ in other]
    assert {f"{name}.jpg": c for name, _, c in first} == there == {f"{name}.jpg": c for name, _, c in other}
    assert all(content == jpeg(int(name[-3:]), c) for name, content, c in first)
    unshuffled = [name for name, *_ in StreamedShards(stream.addresses, stream.class_names, buffer=1)]
    expected = [path.rsplit("/", 1)[1] for path in StreamedShards(stream.addresses, stream.class_names).ordered()]
    assert [shard for shard, _ in itertools.groupby(name.split("/")[0] for name in unshuffled)] == expected
    loaded = list(DataLoader(stream, batch_size=None, num_workers=2))
    assert sorted(name for name, *_ in loaded) == sorted(name for name, *_ in first)


def test_the_page_about_data_streams(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs/data.md").read_text()
    [code] = [code for code in re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S) if "Streamed" in code]
    write_shards(tmp_path / "shards", label=lambda c: ("cls", str(c % 2).encode()))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/data.md", "exec"), names := {})
    assert names["epoch"] == 1
    assert isinstance(names["image"], bytes)


def test_a_stream_names_what_will_not_do(tmp_path):
    write_shards(tmp_path, ("a.tar",))
    with pytest.raises(InputError, match=r"a\.tar/pics/\d+: expected a label among the 2 classes, got '2'"):
        list(StreamedShards([str(tmp_path / "a.tar")], ["cat", "dog"]))
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        add(archive, "x.jpg", jpeg(0))
    with pytest.raises(InputError, match=r"b\.tar/x: expected a label, \.cls or \.json, got none"):
        list(StreamedShards([str(tmp_path / "b.tar")], ["cat"]))
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        add(archive, "x.cls", b"0")
    with pytest.raises(InputError, match=r"c\.tar/x: expected one image, got 0"):
        list(StreamedShards([str(tmp_path / "c.tar")], ["cat"]))
    with pytest.raises(InputError, match="at least one shard"):
        StreamedShards([], ["cat"])


# ---- Hugging Face


def rows_of(counts=COUNTS, label=lambda c: c, first=0):
    pairs = [(c, i) for c, n in enumerate(counts) for i in range(first, first + n)]
    return {"image": [{"bytes": jpeg(i, c), "path": None} for c, i in pairs], "label": [label(c) for c, _ in pairs]}


def dataset(kind, **more):
    rows = rows_of(**more)
    return datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image(), "label": kind}))


CLASSES = datasets.ClassLabel(names=["cat", "dog", "owl"])


@pytest.mark.parametrize(
    ("kind", "label", "names"),
    [
        (CLASSES, int, ("cat", "dog", "owl")),
        (datasets.Value("int64"), int, ("0", "1", "2")),
        (datasets.Value("string"), lambda c: ["cat", "dog", "owl"][c], ("cat", "dog", "owl")),
    ],
)
def test_a_data_set_in_memory(tmp_path, kind, label, names):
    index = own_data(dataset(kind, label=label), splits=tmp_path / "splits")
    assert index.class_names == names
    assert index.counts().per_class == COUNTS
    assert index.counts("test").per_class == (1, 1, 1)
    assert index.source.names[:2].tolist() == ["all/0", "all/1"]
    assert [index.source.read(row) for row in (0, 9, 15)] == [jpeg(0, 0), jpeg(0, 1), jpeg(2, 2)]
    with pytest.raises(InputError, match="splits: expected a folder to store them in"):
        own_data(dataset(kind, label=label))


def test_a_data_set_on_disk_with_splits(tmp_path):
    parts = {"train": dataset(CLASSES), "validation": dataset(CLASSES, counts=(1, 0, 2), first=50)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    index = own_data(tmp_path / "saved")
    assert index.counts("val").per_class == (1, 0, 2)
    assert index.counts("test").per_class == (1, 1, 1)
    assert index.source.read(int(index.parts["val"][0])) == jpeg(50, 0)
    assert own_data(tmp_path / "saved").subset_hash == index.subset_hash
    [path] = index.source.paths(index.parts["val"])
    assert Path(path).parent == tmp_path / "saved/validation"
    loaded = DataLoader(
        index.split("val").rows.tolist(), num_workers=1, collate_fn=lambda rows: index.source.read(rows[0])
    )
    assert list(loaded) == [jpeg(50, 0), jpeg(50, 2), jpeg(51, 2)]


def test_images_of_a_data_set_may_be_files(tmp_path):
    (tmp_path / "x.jpg").write_bytes(jpeg(7))
    rows = {"image": [str(tmp_path / "x.jpg"), str(tmp_path / "gone.jpg")], "label": [0, 1]}
    index = dataset_index(datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()))
    assert index.source.read(0) == jpeg(7)
    with pytest.raises(InputError, match="row all/1: no image that can be read"):
        index.source.read(1)


@pytest.mark.parametrize("kind", [CLASSES, datasets.Value("string")])
def test_class_names_in_another_order_rename_no_class(kind):
    rows = dataset(kind, label=lambda c: CLASSES.names[c])
    index = dataset_index(rows, class_names=["owl", "yak", "dog", "cat"])
    assert index.counts().per_class == (3, 0, 4, 9)
    with pytest.raises(InputError, match="row all/9: expected a label among the 2 classes"):
        dataset_index(rows, class_names=["owl", "cat"])


def test_class_names_of_which_none_is_the_columns_are_its_numbers_in_order():
    assert dataset_index(dataset(CLASSES), class_names=["a", "b", "c", "d"]).counts().per_class == (*COUNTS, 0)
    with pytest.raises(InputError, match="row all/13: expected a label among the 2 classes"):
        dataset_index(dataset(CLASSES), class_names=["a", "b"])


def test_labels_of_a_data_set_that_will_not_do():
    kind = datasets.Value("int64")
    unlabelled = dataset(kind, label=lambda c: c - 1)
    with pytest.raises(InputError, match="row all/0: expected a label among the 2 classes"):
        dataset_index(unlabelled)
    index = dataset_index(unlabelled, on_bad="skip")
    assert index.counts().per_class == COUNTS[1:]
    assert len(index.skipped) == COUNTS[0]
    assert index.source.read(0) == jpeg(0, 1)
    with pytest.raises(InputError, match="got none of class 1 and one of class 4"):
        dataset_index(dataset(kind, label=lambda c: 2 * c))
    with pytest.raises(InputError, match="row all/13: expected a label among the 2 classes"):
        dataset_index(dataset(kind), class_names=["a", "b"])
    with pytest.raises(InputError, match="a class name that leaves its folder"):
        dataset_index(dataset(datasets.Value("string"), label=lambda c: f"../{c}"))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda rows: rows, {"label_column": "kind"}, r"expected one of image \(Image\), label \(Value\), got 'kind'"),
        (lambda rows: rows, {"image_column": "label"}, "expected a column of type Image, got 'label'"),
        (lambda rows: rows.rename_column("label", "x"), {}, "label_column: expected label, labels, class"),
        (lambda rows: rows.remove_columns("image"), {}, "image_column: expected a column of type Image"),
        (lambda rows: rows.cast_column("label", datasets.Value("float32")), {}, "class labels, whole numbers or text"),
        (lambda rows: datasets.DatasetDict(train=rows, extra=rows), {}, "splits train, val and test, got 'extra'"),
        (
            lambda rows: datasets.DatasetDict(train=rows.cast_column("label", CLASSES), test=rows),
            {},
            "the same classes in every split",
        ),
    ],
)
def test_data_sets_that_will_not_do(change, options, message):
    with pytest.raises(InputError, match=message):
        dataset_index(change(dataset(datasets.Value("int64"))), **options)


def test_the_hub_without_a_network(monkeypatch):
    def offline(name):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub (LocalEntryNotFoundError)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        InputError, match=r"hf:owner/birds: not a data set that can be opened \(Couldn't reach 'owner/birds'"
    ):
        own_data("hf:owner/birds")


def test_a_folder_that_is_no_data_set(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(InputError, match="not a data set that can be opened"):
        own_data(tmp_path)
