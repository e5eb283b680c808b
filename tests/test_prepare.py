"""Benchmarks on disk, verified against what is published; what is missing is named."""

import hashlib
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jpeg_trees import TRAIN, benchmark_tree, folder_tree, jpeg, write_image
from reports import run
from tailwise.checks import InputError
from tailwise.counts import ClassCounts
from tailwise.data import LooseFiles, benchmarks, string_array
from tailwise.data.benchmarks import CIFAR, LISTED, LVIS
from tailwise.data.listed import prepare_listed, read_annotations, read_listed
from tailwise.data.own import own_data
from tailwise.data.prepare_cifar import prepare_cifar
from tailwise.data.preparing import NAMES, prepare
from tailwise.data.readable import unreadable


@pytest.mark.parametrize(
    ("name", "totals", "groups"),
    [
        ("imagenet-lt", {"train": 115_846, "val": 20_000, "test": 50_000}, (385, 479, 136)),  # Liu et al. 2019, 4.1
        ("places-lt", {"train": 62_500, "val": 7_300, "test": 36_500}, (131, 163, 71)),
        ("inaturalist-2018", {"train": 437_513, "test": 24_426}, (842, 4076, 3224)),  # its data page
    ],
)
def test_published_totals(name, totals, groups):
    facts = LISTED[name]
    assert facts.totals == totals
    assert tuple(facts.group_sizes.values()) == groups
    assert sum(groups) == facts.num_classes
    assert all(need.page.startswith("http") and need.terms for need in facts.needs)


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("style", ["as listed", "the other"])
def test_a_benchmark_is_verified_and_read_again(tmp_path, name, style):
    facts = benchmark_tree(tmp_path, name, flat=style == "the other", annotations=style == "the other")
    state = prepare_listed(facts, tmp_path, decode=True)
    assert state.ready
    assert [check.what for check in state.checks if not check.ok] == []
    index, published = read_listed(name, tmp_path)
    assert published.per_class == TRAIN == index.counts("train").per_class
    assert list(index.parts) == list(facts.lists)
    for part, rows in index.parts.items():
        split = index.split(part)
        assert index.counts(part).total == facts.totals[part]
        for row, label in zip(rows.tolist(), split.labels.tolist(), strict=True):
            assert split.source.read(row) in [jpeg(1000 * len(part) + i, label) for i in range(max(TRAIN))]
    first = index.source.names[0].split("/")[-2]
    assert index.class_names[0] == first


def test_folder_style_in_the_list_may_be_flat_and_on_disk_not(tmp_path):
    facts = benchmark_tree(tmp_path, "imagenet-lt")
    path = tmp_path / "lists" / facts.lists["test"]
    rows = [line.split("/") for line in path.read_text().splitlines()]
    path.write_text("".join(f"{row[0]}/{row[-1]}\n" for row in rows))
    assert prepare_listed(facts, tmp_path).ready
    assert read_listed("imagenet-lt", tmp_path)[0].split("test").ids[0] == "val/n01440764/ILSVRC2012_val_00000000.JPEG"


def test_every_missing_and_broken_file_is_named(tmp_path):
    facts = benchmark_tree(tmp_path, "places-lt")
    root = tmp_path / "places365"
    (root / "train/airfield/00000003.jpg").unlink()
    (root / "val/airplane_cabin/Places365_val_00000100.jpg").write_bytes(b"")
    (root / "train/airfield/00000004.jpg").write_bytes(b"<html>")
    (root / "train/airfield/00000005.jpg").write_bytes(jpeg(0)[:300])
    state = prepare_listed(facts, tmp_path)
    assert not state.ready
    assert state.wrote is None
    assert not list(tmp_path.glob("*tailwise*"))
    assert state.missing == (str(root / "train/airfield/00000003.jpg"),)
    assert [line.removeprefix(f"{root}/") for line in state.unreadable] == [
        "train/airfield/00000004.jpg: no image by its first bytes",
        "val/airplane_cabin/Places365_val_00000100.jpg: an empty file",
    ]
    state = prepare_listed(facts, tmp_path, decode=True, on_bad="skip")
    assert "00000005.jpg: not a readable image" in state.unreadable[1]
    assert state.ready
    assert len(state.skipped) == 4
    index, published = read_listed("places-lt", tmp_path)
    assert index.counts("train").per_class == (TRAIN[0] - 3, *TRAIN[1:])
    assert published.per_class == TRAIN  # groups stay those of the benchmark
    assert index.skipped == state.skipped
    for path in (root / "train/airport_terminal").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="training images of every class, got none of 1"):
        prepare_listed(facts, tmp_path, on_bad="skip")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda rows: rows[:-1], "train images"),
        (lambda rows: [*rows[:-1], rows[-1].replace(" 2", " 1")], "training images per class, SHA-256"),
        (lambda rows: [*rows[:-1], "train/airfield/00000100.jpg 2\n"], "images in two splits"),
        (lambda rows: [*rows[:-1], "./train//airfield/00000100.jpg 2\n"], "images in two splits"),
    ],
)
def test_lists_that_are_not_the_published_ones(tmp_path, change, what):
    facts = benchmark_tree(tmp_path, "places-lt")
    path = tmp_path / "lists" / facts.lists["train"]
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    state = prepare_listed(facts, tmp_path)
    assert not state.ready
    assert what in [check.what for check in state.checks if not check.ok]
    other = replace(facts, list_hashes={"val": "0" * 64})
    assert "val list, SHA-256" in [check.what for check in prepare_listed(other, tmp_path).checks if not check.ok]
    assert state.wrote is None


def test_what_to_download_is_said(tmp_path):
    facts = benchmark_tree(tmp_path, "imagenet-lt")
    assert [need.what[:9] for need in prepare_listed(LISTED["imagenet-lt"], tmp_path / "no").needs] == [
        "the lists",
        "the image",
    ]
    (tmp_path / "imagenet").rename(tmp_path.parent / f"{tmp_path.name}-away")
    [need] = prepare_listed(facts, tmp_path).needs
    assert need.page == "https://image-net.org/download.php"
    assert str(tmp_path) in need.place


def test_not_prepared_yet(tmp_path):
    with pytest.raises(InputError, match="tailwise data prepare places-lt --data-dir"):
        read_listed("places-lt", tmp_path)
    with pytest.raises(InputError, match="did you mean 'places-lt'"):
        read_listed("place-lt", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable annotation file"),
        ('{"images": []}', "not a readable annotation file"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}', "image 1: expected a category.*got none"),
        (
            '{"images": [{"id": 1, "file_name": "../a.jpg"}], "annotations": [{"image_id": 1, "category_id": 0}]}',
            "image 1: got a path that leaves its folder",
        ),
    ],
)
def test_annotations_that_will_not_do(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_annotations(tmp_path / "a.json", 3)


# ---- the command


def command(capsys, *arguments):
    return run(capsys, "data", *arguments)


def test_the_command_says_what_it_found(tmp_path, monkeypatch, capsys):
    facts = benchmark_tree(tmp_path, "inaturalist-2018")
    monkeypatch.setitem(benchmarks.LISTED, facts.name, facts)
    code, out, _ = command(capsys, "prepare", facts.name, "--data-dir", tmp_path)
    assert code == 0
    assert f"{facts.name} in {tmp_path}: ready" in out
    assert "images: train 23, test 6" in out
    for path in list((tmp_path / "train_val2018").rglob("*.jpg"))[:12]:
        path.unlink()
    code, out, err = command(capsys, "prepare", facts.name, "--data-dir", tmp_path)
    assert code == 2
    assert "12 missing:" in out
    assert "and 2 more; --json lists all" in out
    assert err == f"tailwise: {facts.name}: not ready to be trained on\n"
    code, out, _ = command(capsys, "prepare", facts.name, "--data-dir", tmp_path, "--json")
    record = json.loads(out)
    assert code == 2
    assert record["ready"] is False
    assert len(record["missing"]) == 12
    code, out, _ = command(capsys, "prepare", "places-lt", "--data-dir", tmp_path)
    assert code == 2
    assert "http://places2.csail.mit.edu/download.html" in out
    assert "no redistribution" in out
    assert command(capsys, "prepare", "places", "--data-dir", tmp_path)[2].startswith("tailwise: data: unknown value")


def test_own_data_is_prepared(tmp_path, capsys):
    folder_tree(tmp_path, {"cat": 9, "dog": 4})
    (tmp_path / "cat/002.jpg").write_bytes(jpeg(2)[:200])
    (tmp_path / "cat/x.heic").write_bytes(b"a format that is not read")
    code, out, _ = command(capsys, "prepare", "own", "--data-dir", tmp_path)
    assert code == 0
    assert "passed over, no images by their ending or in no class's folder: .heic 1; 1 in all\n" in out
    record = json.loads(command(capsys, "prepare", "own", "--data-dir", tmp_path, "--json")[1])
    assert record["passed_over"] == {".heic": 1}
    code, out, _ = command(capsys, "prepare", "own", "--data-dir", tmp_path, "--decode")
    assert code == 2
    assert ".heic 1" in out
    assert "cat/002.jpg: not a readable image" in out
    code, out, _ = command(capsys, "prepare", "own", "--data-dir", tmp_path, "--decode", "--on-bad", "skip", "--redraw")
    assert code == 0
    assert "1 unreadable" in out
    index = own_data(tmp_path)  # knows what was left out
    assert sum(len(rows) for rows in index.parts.values()) == 12
    assert "cat/002.jpg" not in np.concatenate([index.split(part).ids for part in index.parts])
    assert index.skipped == ("cat/002.jpg: left out when the data was prepared",)
    for path in (tmp_path / "dog").iterdir():
        path.write_bytes(b"no image")
    code, _, err = command(capsys, "prepare", "own", "--data-dir", tmp_path, "--on-bad", "skip", "--redraw")
    assert code == 2
    assert "images: expected some of every class, got none that will do of 'dog' (1 such classes; " in err


def test_an_option_that_is_not_of_the_data_is_refused(tmp_path, capsys):
    for name, more, message in (
        ("places-lt", ("--splits", tmp_path), "splits: expected none for places-lt, which is no data of your own"),
        ("cifar10", ("--redraw",), "redraw: expected none for cifar10, which is no data of your own"),
        ("lvis-v1", ("--root", tmp_path), "root: expected none for lvis-v1, which is no data of your own"),
        ("places-lt", ("--label-column", "l"), "label_column: expected none for places-lt"),
        ("cifar100", ("--on-bad", "skip"), "on_bad: expected error for cifar100, of which no part is left out"),
        ("lvis-v0.5", ("--on-bad", "skip"), "on_bad: expected error for lvis-v0.5"),
    ):
        code, _, err = command(capsys, "prepare", name, "--data-dir", tmp_path, "--no-download", *more)
        assert (code, err.startswith(f"tailwise: {message}")) == (2, True), err
    assert all(name in command(capsys, "prepare", "--help")[1] for name in NAMES)


def test_a_table_of_other_columns_is_prepared(tmp_path, capsys):
    paths = folder_tree(tmp_path / "photos", {"cat": 9, "dog": 4})
    rows = "".join(f"{path},{path[:3]}\n" for path in paths)
    (tmp_path / "t.csv").write_text(f"file,species\n{rows}")
    named = ("--root", tmp_path / "photos", "--path-column", "file", "--label-column", "species")
    code, out, _ = command(capsys, "prepare", "own", "--data-dir", tmp_path / "t.csv", *named)
    assert code == 0
    assert "images: train 9, val 2, test 2" in out
    assert (tmp_path / "t.tailwise-splits/splits.json").is_file()


# ---- CIFAR, LVIS


def test_cifar_is_compared_with_its_md5(tmp_path):
    facts = CIFAR["cifar100"]
    assert [need.page for need in prepare_cifar(facts, tmp_path, download=False).needs] == [
        "https://www.cs.toronto.edu/~kriz/cifar.html"
    ]
    folder = tmp_path / facts.folder
    folder.mkdir()
    (folder / "train").write_bytes(b"broken")
    state = prepare_cifar(facts, tmp_path)
    assert state.missing == (str(folder / "test"), str(folder / "meta"))
    [check] = state.checks
    assert check.found == hashlib.md5(b"broken").hexdigest()
    assert not check.ok
    assert not state.ready
    for name in facts.md5:
        (folder / name).write_bytes(b"broken")
    state = prepare_cifar(facts, tmp_path)  # and nothing in them is read
    assert [check.ok for check in state.checks] == [False] * 3
    assert not state.ready


def test_md5_are_torchvisions():
    from torchvision.datasets import CIFAR10, CIFAR100

    for facts, theirs in ((CIFAR["cifar10"], CIFAR10), (CIFAR["cifar100"], CIFAR100)):
        assert (facts.url, facts.archive_md5, facts.folder) == (theirs.url, theirs.tgz_md5, theirs.base_folder)
        files = dict([*theirs.train_list, *theirs.test_list])
        assert facts.md5 == files | {theirs.meta["filename"]: theirs.meta["md5"]}


def test_cifar_is_downloaded_by_torchvision_and_a_failure_is_said(tmp_path, monkeypatch):
    asked = []

    def fails(url, root, **named):
        asked.append((url, root, named))
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fails)
    with pytest.raises(InputError, match=r"cannot download https://www.cs.toronto.edu.*corrupted"):
        prepare("cifar10", tmp_path / "new")
    assert asked[0][2] == {"filename": "cifar-10-python.tar.gz", "md5": "c58f30108f718f92721af3b95e74349a"}


def test_what_downloads_cifar_is_in_the_extra_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets.utils", None)
    with pytest.raises(InputError, match=r"needs torchvision; .*--extra vision, or pip install -e '.\[vision\]'"):
        prepare("cifar10", tmp_path / "new")


def test_cifar_npz_is_counted(tmp_path):
    labels = np.repeat(np.arange(10), 3)
    np.savez(
        tmp_path / "cifar10.npz",
        x_train=np.zeros((30, 32, 32, 3), np.uint8),
        y_train=labels,
        x_test=np.zeros((30, 32, 32, 3), np.uint8),
        y_test=labels,
    )
    state = prepare_cifar(CIFAR["cifar10"], tmp_path)
    assert [(check.what, check.expected, check.found) for check in state.checks] == [
        ("train images of each class", "5000", "3"),
        ("test images of each class", "1000", "3"),
    ]


def lvis_tree(data_dir, facts):
    (data_dir / "lvis").mkdir()
    for part, file in facts.annotations.items():
        images = [{"id": i, "coco_url": f"http://images.cocodataset.org/train2017/{i:012d}.jpg"} for i in (1, 2)]
        images += [{"id": 9, "file_name": f"COCO_{part}2014_{9:012d}.jpg"}]
        content = {"images": images, "annotations": [{}] * 5, "categories": [{}] * 7}
        (data_dir / "lvis" / file).write_text(json.dumps(content))
        for name in ("train2017/000000000001.jpg", "train2017/000000000002.jpg", f"{part}2017/000000000009.jpg"):
            write_image(data_dir / "coco" / name, 0)
    return replace(facts, categories=7, totals={"train": (3, 5), "val": (3, 5)})


@pytest.mark.parametrize("name", LVIS)
def test_lvis_is_verified(tmp_path, monkeypatch, name):
    assert len(prepare(name, tmp_path).needs) == 2
    monkeypatch.setitem(benchmarks.LVIS, name, lvis_tree(tmp_path, LVIS[name]))
    state = prepare(name, tmp_path, decode=True)
    assert state.ready
    assert state.root == tmp_path / "coco"
    (tmp_path / "coco/train2017/000000000002.jpg").unlink()
    state = prepare(name, tmp_path)
    assert state.missing == (str(tmp_path / "coco/train2017/000000000002.jpg"),)
    assert not state.ready
    monkeypatch.setitem(benchmarks.LVIS, name, replace(benchmarks.LVIS[name], categories=8))
    assert not prepare(name, tmp_path).ready
    (tmp_path / "lvis" / LVIS[name].annotations["val"]).write_text("[]")
    with pytest.raises(InputError, match="expected annotations in LVIS's form"):
        prepare(name, tmp_path)


def test_progress_is_told(tmp_path):
    folder_tree(tmp_path, {"cat": 4, "dog": 4})
    index, told = own_data(tmp_path), []
    assert unreadable(index.source, np.arange(8), progress=lambda done, total: told.append((done, total))) == []
    assert told == [(8, 8)]
    assert ClassCounts((4, 4)) == index.counts()


@pytest.mark.parametrize("kind", ["TIFF", "JPEG2000", "AVIF", "TGA"])
def test_what_decodes_is_readable(tmp_path, kind):
    image, path = Image.new("RGB", (8, 8)), tmp_path / "x"
    try:
        image.save(path, format=kind, **({"big_tiff": True} if kind == "TIFF" else {}))
    except (KeyError, OSError):
        pytest.skip(f"Pillow was built without {kind}")
    files = LooseFiles(tmp_path, string_array(["x"]))
    assert unreadable(files, np.array([0]), decode=True) == []
    if kind != "TGA":  # which begins with no word of its own
        assert unreadable(files, np.array([0])) == []
