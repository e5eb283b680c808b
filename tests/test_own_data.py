"""A user's own images: folders, tables, lists; what is refused and how."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jpeg_trees import COUNTS, every, folder_tree, named, write_image
from tailwise.checks import InputError
from tailwise.data import string_array
from tailwise.data.folders import files_there, folder_index
from tailwise.data.lists import list_hash, list_text, read_list
from tailwise.data.own import own_data
from tailwise.data.tables import table_index


@pytest.fixture
def tree(tmp_path):
    folder_tree(tmp_path / "photos", COUNTS)
    return tmp_path / "photos"


# ---- folders


def test_a_folder_per_class(tree):
    write_image(tree / "cat/deep/er/x.PNG", 0)
    write_image(tree / ".hidden/x.jpg", 0)
    write_image(tree / "cat/y.jfif", 0)
    (tree / "dog/notes.txt").write_text("no image")
    (tree / "dog/one.HEIC").write_text("no format that is read")
    (tree / "eel/two.heic").write_text("no format that is read")
    write_image(tree / "loose.jpg", 0)
    (tree / "README").write_text("no ending")
    index = folder_index(tree)
    assert named(index) == every() | {"cat/deep/er/x.PNG": "cat", "cat/y.jfif": "cat"}
    assert index.class_names == tuple(COUNTS)
    assert index.parts == {}
    assert index.ignored == {".heic": 2, ".txt": 1, ".jpg": 1, "": 1}
    assert index.source.read(0) == (tree / index.source.names[0]).read_bytes()


def test_folders_of_train_and_test(tmp_path):
    folder_tree(tmp_path / "train", COUNTS)
    folder_tree(tmp_path / "valid", {"cat": 1, "owl": 1}, first=50)
    index = folder_index(tmp_path)
    assert named(index, "train") == every(top="train/")
    assert named(index, "val") == every({"cat": 1, "owl": 1}, "valid/")
    assert index.counts("val").per_class == (1, 0, 0, 1)
    assert index.split("val").labels.tolist() == [0, 3]
    with pytest.raises(InputError, match=r"part: expected one of train, val, got 'test'"):
        index.split("test")
    folder_tree(tmp_path / "test", {"yak": 1})
    with pytest.raises(InputError, match=r"test/yak: expected classes that train has, too, got 'yak'"):
        folder_index(tmp_path)
    folder_tree(tmp_path / "other", {"cat": 1})
    with pytest.raises(InputError, match=r"train, val and test alone, got other beside test"):
        folder_index(tmp_path)


def test_a_part_that_is_a_link_to_nothing_is_refused(tmp_path):
    folder_tree(tmp_path / "train", COUNTS)
    os.symlink("/unmounted/test", tmp_path / "test")
    with pytest.raises(InputError, match=r"/test: expected a folder, got a link to nothing there"):
        own_data(tmp_path)


def test_val_and_test_are_no_classes(tmp_path):
    folder_tree(tmp_path / "val", {"cat": 1})
    with pytest.raises(InputError, match=r"expected train beside val, got none"):
        folder_index(tmp_path)
    folder_tree(tmp_path / "test", {"cat": 1})
    with pytest.raises(InputError, match=r"expected train beside test and val, got none"):
        folder_index(tmp_path)
    write_image(tmp_path / "cat/x.jpg", 0)  # where there are others, a class may be called so
    assert folder_index(tmp_path).class_names == ("cat", "test", "val")


def test_files_loose_in_train_are_counted(tmp_path):
    folder_tree(tmp_path / "train", COUNTS)
    write_image(tmp_path / "train/loose.jpg", 0)
    assert folder_index(tmp_path).ignored == {".jpg": 1}


@pytest.mark.parametrize(
    ("names", "order"),
    [(["10", "9", *"012345678"], [*"0123456789", "10"]), (["1999", "203"], ["1999", "203"])],
)
def test_folders_called_by_number_are_classes_of_that_number(tmp_path, names, order):
    for name in names:
        write_image(tmp_path / name / "x.jpg", 0)
    index = folder_index(tmp_path)
    assert list(index.class_names) == order
    assert named(index) == {f"{name}/x.jpg": name for name in names}


def test_class_names_give_the_order(tree):
    index = folder_index(tree, class_names=["owl", "eel", "dog", "cat"])
    assert index.counts().per_class == (2, 3, 5, 12)
    with pytest.raises(InputError, match="names of the 1 classes, got 'dog'"):
        folder_index(tree, class_names=["cat"])
    with pytest.raises(InputError, match="class_names: expected different names, got 'cat' twice"):
        folder_index(tree, class_names=["cat", "cat"])


BAD_FOLDERS = [
    (lambda tree: os.symlink(tree, tree / "cat/up"), r"cat/up: a link to a folder that it lies in"),
    (lambda tree: os.symlink("loop", tree / "cat/loop"), r"cat/loop: a link that leads to itself"),
    (lambda tree: os.symlink("gone.jpg", tree / "cat/x.jpg"), r"cat/x\.jpg: expected a file, got a link to nothing"),
    (lambda tree: os.symlink("/unmounted/bird", tree / "bird"), r"/bird: expected a folder, got a link to nothing"),
    (lambda tree: (tree / "empty").mkdir(), r"empty: expected images of class 'empty', got none"),
    (lambda tree: write_image(tree / "bad\x07name/x.jpg", 0), r"a class name with a control character, 'bad\\x07name'"),
    (lambda tree: write_image(tree / "cat/new\nline.jpg", 0), r"a path with a control character"),
    (lambda tree: write_image(tree / os.fsdecode(b"cat/\xff.jpg"), 0), r"a path with a control character"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_FOLDERS)
def test_what_is_wrong_in_a_folder_is_named_or_left_out(tree, spoil, message):
    spoil(tree)
    with pytest.raises(InputError, match=message):
        folder_index(tree)
    index = folder_index(tree, on_bad="skip")
    assert named(index) == every()
    assert len(index.skipped) == 1


def test_no_folder_no_classes(tmp_path):
    with pytest.raises(InputError, match="expected a folder, got nothing there"):
        folder_index(tmp_path / "gone")
    write_image(tmp_path / "x.jpg", 0)
    with pytest.raises(InputError, match="expected a folder of images for each class, got none"):
        folder_index(tmp_path)


def test_which_files_are_there(tree, tmp_path):
    os.symlink("cat/000.jpg", tree / "link.jpg")
    os.symlink("loop.jpg", tree / "loop.jpg")
    os.symlink("gone.jpg", tree / "broken.jpg")
    here = ["cat/000.jpg", "link.jpg", str(tree / "dog/001.jpg")]
    gone = ["cat", "loop.jpg", "broken.jpg", "no/000.jpg", str(tmp_path / "x.jpg")]
    assert files_there(tree, [*here, *gone]).tolist() == [True] * 3 + [False] * 5


# ---- tables


def write_table(path, columns):
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return path
    mark = {".csv": ",", ".tsv": "\t"}[path.suffix]
    lines = [list(columns), *zip(*columns.values(), strict=True)]
    path.write_text("".join(mark.join(map(str, line)) + "\n" for line in lines), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_a_table_and_its_folder_say_the_same(tree, tmp_path, ending):
    rows = every(top="photos/")
    table = write_table(tmp_path / f"table.{ending}", {"label": list(rows.values()), "path": list(rows)})
    index = table_index(table)
    assert named(index) == rows
    assert index.class_names == tuple(COUNTS)
    here = {
        "file": [str(tree / path) for path in every()],
        "kind": [f"{c}" for c, n in enumerate(COUNTS.values()) for _ in range(n)],
    }
    other = table_index(write_table(tmp_path / f"b.{ending}", here), path_column="file", label_column="kind")
    assert other.labels.tolist() == index.labels.tolist()
    assert other.class_names == ("0", "1", "2", "3")
    assert other.source.read(0) == index.source.read(0)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_may_divide(tree, tmp_path, ending):
    rows = every()
    split = ["train" if i % 3 else "Valid" for i in range(len(rows))]
    columns = {"path": list(rows), "label": [list(COUNTS).index(name) for name in rows.values()], "split": split}
    index = table_index(write_table(tmp_path / f"t.{ending}", columns), root=tree, class_names=list(COUNTS))
    assert named(index, "train") == {
        path: rows[path] for path, part in zip(rows, split, strict=True) if part == "train"
    }
    assert sorted(index.parts) == ["train", "val"]


def spoiled(path="cat/000.jpg", label="cat", split="train"):
    return {"path": path, "label": label, "split": split}


BAD_ROWS = [
    (spoiled("cat/999.jpg"), r"row 4: expected an image file .*cat/999\.jpg, got none"),
    (spoiled("../cat/000.jpg"), r"row 4: got a path that leaves its folder"),
    (spoiled("cat/\x00.jpg"), r"row 4: got a path with a control character"),
    (spoiled(""), r"row 4: got no path"),
    (spoiled("cat/001.jpg"), r"row 4: got cat/001\.jpg a second time"),
    (
        spoiled("cat/001.jpg", "dog", "test"),
        r"row 4: got cat/001\.jpg a second time; an image has one label and one split",
    ),
    (spoiled(label="../cat"), r"row 4: got a class name that leaves its folder"),
    (spoiled(label="c\x1bat"), r"row 4: got a class name with a control character"),
    (spoiled(label=" "), r"row 4: got an empty class name"),
    (spoiled(split="trian"), r"row 4: expected a split train, val or test, got 'trian'"),
]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_what_is_wrong_in_a_table_is_named_or_left_out(tree, tmp_path, ending, row, message):
    rows = [spoiled("cat/001.jpg"), spoiled("dog/000.jpg", "dog"), row, spoiled("dog/001.jpg", "dog", "test")]
    table = write_table(tmp_path / f"t.{ending}", {key: [row[key] for row in rows] for key in row})
    with pytest.raises(InputError, match=message if ending == "csv" else message.replace("row 4", "row 3")):
        table_index(table, root=tree)
    index = table_index(table, root=tree, on_bad="skip")
    assert index.source.names.tolist() == ["cat/001.jpg", "dog/000.jpg", "dog/001.jpg"]
    assert index.labels.tolist() == [0, 1, 1]
    assert {part: rows.tolist() for part, rows in index.parts.items()} == {"train": [0, 1], "test": [2]}
    assert len(index.skipped) == 1


@pytest.mark.parametrize("spelling", ["./cat/000.jpg", "cat//000.jpg", "{}/cat/000.jpg"])
def test_a_file_is_in_a_table_once_however_it_is_spelled(tree, tmp_path, spelling, monkeypatch):
    again = spelling.format(tree)
    (tmp_path / "t.csv").write_text(
        f"path,label,split\ncat/000.jpg,cat,train\n{again},cat,test\ndog/000.jpg,dog,train\n"
    )
    monkeypatch.chdir(tmp_path)
    for root in (tree, Path("photos")):
        with pytest.raises(InputError, match=rf"row 3: got {again} a second time"):
            table_index(tmp_path / "t.csv", root=root)
    assert table_index(tmp_path / "t.csv", root=tree, on_bad="skip").source.names.tolist() == [
        "cat/000.jpg",
        "dog/000.jpg",
    ]


def test_absolute_and_odd_spellings_stay_as_they_are(tree, tmp_path):
    (tmp_path / "t.csv").write_text(f"path,label\n./cat/000.jpg,cat\n{tree}/dog/000.jpg,dog\n")
    assert table_index(tmp_path / "t.csv", root=tree).source.names.tolist() == ["./cat/000.jpg", f"{tree}/dog/000.jpg"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("file,label\n", {}, r"expected a column 'path', got none; valid: file, label"),
        ("path,lable\n", {}, r"expected a column 'label', got none; did you mean 'lable'\?"),
        ("path,label\nx,y\n", {"split_column": "part"}, "expected a column 'part'"),
        ("", {}, "expected a column 'path'"),
        ("path,label\n", {}, "expected a row for each image, got none"),
        ("path,label\ncat/000.jpg\n", {}, r"row 2: expected 2 values, got 1"),
        ("path,label\na,b,c.jpg,cat\n", {}, r"row 2: expected 2 values, got 4"),
        ('path,label\n"cat/000.jpg,cat\n', {}, "not a readable table"),
        ("path,label\ncat/000.jpg,0\ncat/001.jpg,2\n", {}, "without a gap, got none of class 1 and one of class 2"),
        ("path,label\ncat/000.jpg,5\n", {"class_names": ["a", "b"]}, "row 2: expected a label among the 2 class names"),
        (
            "path,label\ncat/000.jpg,-1\n",
            {"class_names": ["a", "b"]},
            "row 2: expected a label among the 2 class names",
        ),
    ],
)
def test_tables_that_will_not_do(tree, tmp_path, content, options, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        table_index(tmp_path / "t.csv", root=tree, **options)


def test_files_that_are_no_tables(tree, tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff\xfe,cat\n")
    with pytest.raises(InputError, match=r"t\.csv: not a readable table"):
        table_index(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(b"path,label\n")
    with pytest.raises(InputError, match=r"t\.parquet: not a readable Parquet file"):
        table_index(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"gone\.csv: not a readable table"):
        table_index(tmp_path / "gone.csv")
    write_table(tmp_path / "t.parquet", {"path": ["cat/000.jpg"], "label": [0.5]})
    with pytest.raises(InputError, match="column 'label' to hold text or whole numbers, got double"):
        table_index(tmp_path / "t.parquet", root=tree)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"Parquet needs pyarrow; in the clone: .* --extra parquet"):
        table_index(tmp_path / "t.parquet")


def test_a_class_is_not_skipped_away(tree, tmp_path):
    (tmp_path / "t.csv").write_text("path,label\ncat/000.jpg,cat\ngone.jpg,yak\n")
    with pytest.raises(InputError, match=r"none that will do of 'yak' \(1 such classes; .*row 3"):
        table_index(tmp_path / "t.csv", root=tree, on_bad="skip")
    (tmp_path / "t.csv").write_text("path,label,split\ncat/000.jpg,cat,train\ncat/001.jpg,yak,\n")
    with pytest.raises(InputError, match=r"none that will do of 'yak' \(1 such classes; .*row 3: expected a split"):
        table_index(tmp_path / "t.csv", root=tree, on_bad="skip")
    write_image(tree / "yak/new\nline.jpg", 0)
    with pytest.raises(InputError, match=r"none that will do of 'yak' \(1 such classes; .*a control character"):
        folder_index(tree, on_bad="skip")


def labelled(tree, labels, **options):
    """The index of a table with a label for each image of the tree's first class; {label: class} of those kept."""
    rows = "".join(f"cat/{i:03d}.jpg,{label}\n" for i, label in enumerate(labels))
    (tree / "t.csv").write_text("path,label\n" + rows)
    index = table_index(tree / "t.csv", **options)
    kept = [labels[int(name[-7:-4])] for name in index.source.names.tolist()]
    return index, {label: index.class_names[c] for label, c in zip(kept, index.labels.tolist(), strict=True)}


def test_labels_of_which_one_is_a_name_are_names(tree):
    names = ["1", "2", "3", "4"]
    assert labelled(tree, ["1", "2", "3"], class_names=names)[1] == {"1": "1", "2": "2", "3": "3"}
    assert labelled(tree, ["0", "3"], class_names=["a", "b", "c", "d"])[1] == {"0": "a", "3": "d"}
    with pytest.raises(InputError, match="row 4: expected a label among the 4 class names, got '0'"):
        labelled(tree, ["1", "2", "0"], class_names=names)
    index, means = labelled(tree, ["1", "2", "0"], class_names=names, on_bad="skip")
    assert means == {"1": "1", "2": "2"}
    assert len(index.skipped) == 1


@pytest.mark.parametrize("none", ["-1", "nan", "NA", "<NA>", "2.0"])
@pytest.mark.parametrize("class_names", [None, [f"s{c}" for c in range(11)]])
def test_beside_class_numbers_what_is_none_is_refused(tree, none, class_names):
    numbers = [str(c) for c in range(11)]
    with pytest.raises(InputError, match=rf"row 13: expected a label among the 11 class names, got '{none}'"):
        labelled(tree, [*numbers, none], class_names=class_names)
    index, means = labelled(tree, [*numbers, none], class_names=class_names, on_bad="skip")
    assert means == dict(zip(numbers, class_names or numbers, strict=True))
    assert len(index.skipped) == 1


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_spaces_around_a_label_are_none_of_it(tree, tmp_path, ending):
    labels = ["cat", "cat ", "\tdog", "great auk"]
    columns = {"path": [f"cat/{i:03d}.jpg" for i in range(4)], "label": labels}
    index = table_index(write_table(tmp_path / f"t.{ending}", columns), root=tree)
    assert index.class_names == ("cat", "dog", "great auk")


def test_numbers_may_be_names(tree):
    assert labelled(tree, ["0", "0.5", "1"])[0].class_names == ("0", "0.5", "1")
    assert labelled(tree, ["1", "2", "none"])[0].class_names == ("1", "2", "none")


# ---- lists


def test_lists_are_read_as_they_are_written(tmp_path):
    ids, labels = string_array(["a b/1.jpg", "c/2.jpg", "c/ 3.jpg "]), np.array([1, 0, 2])
    (tmp_path / "list.txt").write_text(list_text(ids, labels) + "\n")
    again, numbers, skipped = read_list(tmp_path / "list.txt", 3)
    assert again.tolist() == ids.tolist()
    assert numbers.tolist() == [1, 0, 2]
    assert skipped == []
    lines = ["1.jpg 1", "2.jpg 0", " 3.jpg  2"]
    assert list_hash(ids, labels) == hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c/9.jpg 3", r"line 2: expected a label in 0\.\.2, got 3"),
        ("c/9.jpg -1", r"line 2: expected `path label`, got 'c/9\.jpg -1'"),
        ("c/9.jpg " + "9" * 5000, r"line 2: expected `path label`"),
        ("c/9.jpg", r"line 2: expected `path label`"),
        ("7", r"line 2: expected `path label`"),
        ("../9.jpg 1", r"line 2: got a path that leaves its folder"),
        ("a/1.jpg 1", r"line 2: got a/1\.jpg a second time"),
        (".//a/1.jpg 1", r"line 2: got \.//a/1\.jpg a second time"),
    ],
)
def test_a_list_names_its_bad_line(tmp_path, line, message):
    (tmp_path / "l.txt").write_text(f"a/1.jpg 1\n{line}\nb/2.jpg 2\n")
    with pytest.raises(InputError, match=message):
        read_list(tmp_path / "l.txt", 3)
    ids, labels, skipped = read_list(tmp_path / "l.txt", 3, on_bad="skip")
    assert (ids.tolist(), labels.tolist(), len(skipped)) == (["a/1.jpg", "b/2.jpg"], [1, 2], 1)


# ---- every form


def test_what_is_no_data(tmp_path):
    with pytest.raises(InputError, match="got nothing there"):
        own_data(tmp_path / "gone")
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(InputError, match="got another file"):
        own_data(tmp_path / "x.zip")
    with pytest.raises(InputError, match="root: expected none for"):
        own_data(tmp_path, root=tmp_path)


def test_the_page_about_data_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs/data.md").read_text()
    first, *_ = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    folder_tree(tmp_path / "photos", COUNTS)
    monkeypatch.chdir(tmp_path)
    exec(compile(first, "docs/data.md", "exec"), {})
    assert capsys.readouterr().out.startswith("('cat', 'dog', 'eel', 'owl') (8, 3, 1, 2) cat/00")
