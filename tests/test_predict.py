"""`tailwise predict`: classes and probabilities of files, before and after adjustment; no file is lost."""

import csv
import io
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import tailwise
from reports import run
from tailwise.checks import InputError, extra
from tailwise.cli import main
from tailwise.data import digits_lt, folder_index
from tailwise.data.files import grey_thumbnail, read_image
from tailwise.deployment import predict as predicting
from tailwise.experiments.files import write_text

ALPHA = 1.5
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run with a causal classifier."""
    folder = tmp_path_factory.mktemp("predict") / "causal"
    with pytest.raises(SystemExit) as stopped:
        main(["train", "digits-lt/tde", "stages.0.epochs=3", "--seeds", "1", "--out", str(folder), "--json"])
    assert stopped.value.code == 0
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Test images of seed 0 as grey PNG files, white for the brightest value of the data; every 25th."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(digits_lt(seed=0).test.images[::25]):
        save(image[0], folder / f"{number:02d}.png")
    return folder


def save(image, path):
    Image.fromarray((image.float() * 255 / 16).round().to(torch.uint8).numpy()).save(path)


@pytest.fixture(scope="module")
def expected(trained):
    """Probabilities of the pictures before and after, from Eq. 7 and Eq. 8."""
    model = tailwise.load_model(trained / "seed-0")
    images = digits_lt(seed=0).test.images[::25].float()
    with torch.no_grad():
        features = model.backbone((images / 16 - 0.3) / 0.4)
        after = tailwise.tde(features, model.classifier, ALPHA)
        return features, model.classifier(features).softmax(dim=1), after.softmax(dim=1)


def check(record, before, after):
    """A record names the most probable classes of these probabilities, in order."""
    for side, probabilities in (("before", before), ("after", after)):
        order = probabilities.argsort(descending=True)[: len(record[side])]
        assert [entry["class"] for entry in record[side]] == [str(int(c)) for c in order]
        assert [entry["probability"] for entry in record[side]] == pytest.approx(
            probabilities[order].tolist(), rel=1e-4
        )


def jsonl(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_folder_of_images_before_and_after(trained, pictures, expected, capsys):
    code, out, err = run(capsys, "predict", trained, pictures, "--alpha", ALPHA, "--top-k", 3, "--format", "jsonl")
    assert (code, err) == (0, "")
    records = jsonl(out)
    assert [record["path"] for record in records] == [str(pictures / f"{i:02d}.png") for i in range(20)]
    for record, before, after in zip(records, *expected[1:], strict=True):
        assert (record.keys(), len(record["before"])) == ({"path", "before", "after"}, 3)
        check(record, before, after)
    assert not torch.allclose(*expected[1:], atol=1e-2)  # the two are not the same


def test_csv_has_a_line_for_each_rank(trained, pictures, expected, capsys):
    arguments = (trained, pictures / "03.png", pictures / "00.png", "--alpha", ALPHA, "--top-k", 2)
    code, out, _ = run(capsys, "predict", *arguments)
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(Path(row["path"]).name, row["rank"]) for row in rows] == [
        ("03.png", "1"), ("03.png", "2"), ("00.png", "1"), ("00.png", "2"),
    ]  # fmt: skip
    for number, lines in ((3, rows[:2]), (0, rows[2:])):
        sides = {
            side: [{"class": row[side], "probability": float(row[f"{side}_probability"])} for row in lines]
            for side in ("before", "after")
        }
        check(sides, expected[1][number], expected[2][number])
        assert {row["error"] for row in lines} == {""}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_features_are_predicted_row_by_row(trained, expected, capsys, tmp_path, suffix):
    path = tmp_path / f"f{suffix}"
    if suffix == ".npz":
        np.savez(path, features=expected[0].double().numpy())
    else:
        save_file({"features": expected[0]}, path)
    code, out, _ = run(capsys, "predict", trained, path, "--alpha", ALPHA, "--format", "jsonl")
    assert code == 0
    records = jsonl(out)
    assert [record["row"] for record in records] == list(range(20))
    for record, before, after in zip(records, *expected[1:], strict=True):
        check(record, before, after)


def test_more_files_than_a_batch_keep_their_order(trained, pictures, expected, capsys, monkeypatch):
    monkeypatch.setattr(predicting, "PREDICT_BATCH", 7)
    code, out, _ = run(capsys, "predict", trained, pictures, "--alpha", ALPHA, "--format", "jsonl")
    assert code == 0
    for record, before, after in zip(jsonl(out), *expected[1:], strict=True):
        check(record, before, after)


def test_what_cannot_be_read_is_named_and_the_rest_predicted(trained, pictures, expected, capsys, tmp_path):
    broken, cut, narrow, no_features = (tmp_path / name for name in ("a.png", "b.png", "c.npz", "d.npz"))
    broken.write_text("no image")
    cut.write_bytes((pictures / "00.png").read_bytes()[:60])
    np.savez(narrow, features=np.zeros((2, 5)))
    np.savez(no_features, x=np.zeros((2, 64)))
    nan, empty, half = tmp_path / "e.npz", tmp_path / "empty", tmp_path / "half.npz"
    half.write_bytes(no_features.read_bytes()[:100])
    np.savez(nan, features=np.full((2, 64), np.nan))
    empty.mkdir()
    wrong = [broken, cut, narrow, no_features, nan, empty, half, tmp_path / "absent.png"]
    paths = [broken, pictures / "00.png", *wrong[1:], pictures / "01.png"]
    code, out, err = run(capsys, "predict", trained, *paths, "--alpha", ALPHA, "--format", "jsonl")
    assert code == 2
    assert err == f"tailwise: paths: not predicted, {broken}: {jsonl(out)[0]['error']} (and 7 more)\n"
    records = {record["path"]: record for record in jsonl(out)}
    assert list(records) == [str(path) for path in paths]
    for number in (0, 1):
        check(records[str(pictures / f"{number:02d}.png")], expected[1][number], expected[2][number])
    reasons = [records[str(path)]["error"] for path in wrong]
    for reason, said in zip(
        reasons,
        [
            "not a readable image",
            "not a readable image",
            "features: expected shape [N, 64], got [2, 5]",
            "expected an array of numbers 'features', got x",
            "features: expected finite numbers",
            "expected images in this folder, got none",
            "not a readable file of arrays",
            "not a readable file (No such file or directory)",
        ],
        strict=True,
    ):
        assert reason.startswith(said)
    code, out, _ = run(capsys, "predict", trained, *paths, "--alpha", ALPHA)
    assert code == 2
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert [row["error"] for row in rows if row["error"]] == reasons


def test_a_folder_is_walked_as_training_walks_it(trained, pictures, capsys, tmp_path):
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for path in (folder / "cat/x.png", folder / ".hidden/x.png", folder / "cat/._x.png", elsewhere / "y.PNG"):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / "00.png", path)
    (folder / "dog").symlink_to(elsewhere)
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "cat/up").symlink_to(folder)
    code, out, _ = run(capsys, "predict", trained, folder, "--alpha", ALPHA, "--format", "jsonl")
    assert code == 2
    records = {record["path"]: record.get("error") for record in jsonl(out)}
    assert records == {
        str(folder / "cat/up"): "a link to a folder that it lies in",
        str(folder / "gone.png"): "expected a file, got a link to nothing there",
        str(folder / "cat/x.png"): None,
        str(folder / "dog/y.PNG"): None,
    }
    index = folder_index(folder, on_bad="skip")
    assert {str(folder / name) for name in index.source.names} == {path for path, wrong in records.items() if not wrong}


def test_the_output_can_be_a_file(trained, pictures, capsys, tmp_path):
    code, out, _ = run(capsys, "predict", trained, pictures, "--alpha", ALPHA)
    assert code == 0
    assert run(capsys, "predict", trained, pictures, "--alpha", ALPHA, "--out", tmp_path / "p.csv") == (0, "", "")
    assert (tmp_path / "p.csv").read_text() == out
    code, _, err = run(capsys, "predict", trained, pictures, tmp_path / "no.png", "--out", tmp_path / "p.csv")
    assert (code, "no.png" in err) == (2, True)
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 22  # what could be predicted is there


def test_what_is_predicted_before_an_interruption_stays(trained, pictures, capsys, monkeypatch, tmp_path):
    out, arguments = tmp_path / "p.csv", ("predict", trained, pictures, "--out", tmp_path / "p.csv")
    out.write_text("old")
    read = predicting._read

    def until_the_tenth(path, *more):
        if path.name == "09.png":
            raise KeyboardInterrupt
        return read(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(predicting, "PREDICT_BATCH", 7)
        patch.setattr(predicting, "_read", until_the_tenth)
        assert run(capsys, *arguments)[0] == 130
    begun = (tmp_path / "p.csv.partial").read_text()
    assert (out.read_text(), len(begun.splitlines())) == ("old", 8)
    assert run(capsys, *arguments) == (0, "", "")
    assert out.read_text().startswith(begun)
    assert list(tmp_path.iterdir()) == [out]


def test_the_name_of_a_file_need_not_be_text(trained, pictures, capsys, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    shutil.copy(pictures / "00.png", path)
    assert run(capsys, "predict", trained, os.fsdecode(path), "--out", tmp_path / "p.csv") == (0, "", "")
    assert (tmp_path / "p.csv").read_bytes().splitlines()[1].startswith(path + b",,1,")
    write_text(tmp_path / "page.html", f"<p>{os.fsdecode(path)}")
    assert (tmp_path / "page.html").read_text() == f"<p>{tmp_path}/??.png"


def test_without_a_strength_it_is_the_runs_own(trained, pictures, capsys):
    _, out, _ = run(capsys, "evaluate", trained, "--method", "tde", "--json")
    (alpha,) = json.loads(out)["rows"][0]["alpha"]["values"]
    _, given, _ = run(capsys, "predict", trained, pictures, "--alpha", alpha)
    assert run(capsys, "predict", trained, pictures) == (0, given, "")


def test_a_run_that_cannot_be_written_can_be_read(trained, pictures, capsys, monkeypatch, tmp_path):
    def refused(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    lost = trained / "seed-0/stores/train"
    shutil.rmtree(lost, ignore_errors=True)
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", refused)
        for question in (("predict", trained, pictures / "00.png"), ("evaluate", trained)):
            code, out, err = run(capsys, *question, "--method", "ncm")
            assert (code, bool(out)) == (0, True), err
            assert re.fullmatch(rf"note: {lost}: cannot write the store \(.*Read-only.*\); it is not kept\n", err)
        code, _, err = run(capsys, "train", "digits-lt/tde", "stages.0.epochs=1", "--seeds", 1, "--out", tmp_path / "a")
        assert (code, "cannot write the store" in err) == (2, True)  # what is trained is kept whole
    assert not lost.exists()


def test_a_second_stage_with_features_of_its_own_takes_images_alone(trained, pictures, expected, capsys, tmp_path):
    adjusted = ("adjust", trained, "second.fine-tune.stage.epochs=1", "--method", "fine-tune", "--json")
    assert run(capsys, *adjusted)[0] == 0
    np.savez(tmp_path / "f.npz", features=expected[0].numpy())
    paths = (pictures / "00.png", tmp_path / "f.npz")
    code, out, _ = run(capsys, "predict", trained, *paths, "--method", "fine-tune", "--format", "jsonl")
    assert code == 2
    image, features = jsonl(out)
    assert "features of its own" in features["error"]
    model = tailwise.load_model(trained / "seed-0", "fine-tune")
    with torch.no_grad():
        after = model((digits_lt(seed=0).test.images[:1].float() / 16 - 0.3) / 0.4).softmax(dim=1)[0]
    check(image, expected[1][0], after)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "paths: expected at least one image, folder or file of features, got none"),
        (["x.png", "--top-k", "11"], "top_k: expected at most 10, the number of classes, got 11"),
        (["x.png", "--top-k", "0"], "top_k: expected a whole number of at least 1, got 0"),
        (["x.png", "--method", "tau-norm"], "needs a linear classifier"),
        (["x.png", "--out", "nowhere/p.csv"], "nowhere/p.csv: cannot write (no folder nowhere)"),
        (["x.png", "--out", str(ROOT)], f"{ROOT}: cannot write (a folder is there)"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_written(trained, capsys, arguments, message):
    code, out, err = run(capsys, "predict", trained, *arguments)
    assert (code, out) == (2, "")
    assert message in err


# ------------------------------------------------------------------------------------------------------------ images


def test_bytes_become_the_values_of_the_data(tmp_path):
    image = torch.arange(64, dtype=torch.uint8).view(8, 8) % 17
    save(image, tmp_path / "x.png")
    assert torch.equal(read_image(tmp_path / "x.png", (1, 8, 8), 16.0), image[None])


def test_colours_and_sizes_are_brought_to_what_the_network_takes(tmp_path):
    colours = np.zeros((4, 6, 3), dtype=np.uint8)
    colours[..., 0], colours[..., 1] = 255, 51
    Image.fromarray(colours).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", (3, 4, 6), 255.0).permute(1, 2, 0).tolist() == colours.tolist()
    small = read_image(tmp_path / "x.png", (3, 2, 5), 255.0)
    assert small.shape == (3, 2, 5)
    assert small[:, 0, 0].tolist() == [255, 51, 0]
    grey = read_image(tmp_path / "x.png", (1, 4, 6), 255.0)
    assert grey.unique().tolist() == [106]  # 0.299 red + 0.587 green
    Image.fromarray(colours).convert("L").save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png", (3, 4, 6), 255.0).unique().tolist() == [106]


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_of_sixteen_bits_the_upper_eight_are_taken(tmp_path, ending):
    values = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    path = tmp_path / f"x.{ending}"
    Image.fromarray(values).save(path)
    for channels in (1, 3):
        assert read_image(path, (channels, 4, 4), 255.0)[0].tolist() == (values >> 8).tolist()
    assert grey_thumbnail(path.read_bytes(), "x", 4, 4).tolist() == (values >> 8).tolist()


@pytest.mark.parametrize(("kind", "got"), [(np.int32, "integers of 32"), (np.float32, "floats of 32")])
def test_images_of_more_bits_are_refused(tmp_path, kind, got):
    Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "x.tif")
    message = rf"x\.tif: not a readable image \(expected 8 or 16 bits a channel, got {got}\)$"
    with pytest.raises(InputError, match=message):
        read_image(tmp_path / "x.tif", (1, 4, 4), 255.0)
    with pytest.raises(InputError, match=message):
        grey_thumbnail((tmp_path / "x.tif").read_bytes(), "x.tif", 4, 4)


def test_without_pillow_there_is_a_hint(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(InputError, match=re.escape(f"images need Pillow; {extra('images')}")):
        read_image(tmp_path / "x.png", (1, 8, 8), 16.0)


def test_the_commands_of_the_page_run_as_written(trained, pictures, capsys, tmp_path, monkeypatch):
    page = (ROOT / "docs/deploy.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", page, flags=re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("tailwise ")]
    assert len(lines) == 6
    monkeypatch.chdir(tmp_path)
    Path("runs/digits-lt").mkdir(parents=True)
    Path("runs/digits-lt/tde").symlink_to(trained)
    Path("photos").symlink_to(pictures)
    np.savez("features.npz", features=np.ones((2, 64)))
    for line in lines:
        if "onnx" in line or "torch-export" in line:
            continue  # tests/test_export.py runs these two
        assert run(capsys, *shlex.split(line, comments=True)[1:])[0] == 0, line
