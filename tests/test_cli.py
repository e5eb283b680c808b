import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from tailwise.cli import main
from tailwise.recipes.methods import METHODS

SHORT = ["stages.0.epochs=3"]


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of the command, in this process."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    return stopped.value.code or 0, out, err


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A short digits-lt suite of two seeds, trained by the command; (folder, printed JSON)."""
    folder = tmp_path_factory.mktemp("cli") / "suite"
    command = [
        sys.executable,
        "-m",
        "tailwise",
        "train",
        "digits-lt",
        *SHORT,
        "--seeds",
        "2",
        "--out",
        folder,
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder, json.loads(done.stdout)


def test_json_is_one_object_of_the_documented_form(suite):
    _, printed = suite
    assert [row["method"] for row in printed["rows"]] == list(METHODS)
    for row in printed["rows"]:
        for group in ("many", "medium", "few", "all"):
            assert set(row[group]) == {"mean", "std"}
            assert 0 <= row[group]["mean"] <= 100
            assert row[group]["std"] >= 0
    assert printed["seeds"] == [0, 1]
    assert printed["protocol"] == "clean"
    assert len(set(printed["subset_hashes"])) == 2


def test_json_means_are_those_of_the_seeds(suite):
    folder, printed = suite
    values = [json.loads((folder / f"tde/seed-{s}/results.json").read_text())["rows"]["tde"]["few"] for s in (0, 1)]
    (row,) = [row for row in printed["rows"] if row["method"] == "tde"]
    assert row["few"]["mean"] == pytest.approx(sum(values) / 2)
    assert row["few"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_table_shows_every_method_and_what_was_written(capsys, tmp_path):
    code, out, err = run(capsys, "train", "digits-lt", *SHORT, "--seeds", "2", "--out", str(tmp_path / "x"))
    assert code == 0
    assert "many (1)" in out
    assert "few (6)" in out
    shown = re.findall(r"^ *([\w-]+) +\d+\.\d ± \d+\.\d", out, flags=re.M)
    assert shown == list(METHODS)
    assert f"wrote {tmp_path / 'x'}" in out
    assert out.count("chosen on val") == 3
    assert len(err.splitlines()) == 8  # one plain line per run: no terminal here
    assert all(len(line) <= 80 for line in out.splitlines() if "±" in line)


def test_evaluate_gives_the_trained_rows(suite, capsys):
    folder, printed = suite
    code, out, _ = run(capsys, "evaluate", str(folder / "tde"), "--json")
    assert code == 0
    assert json.loads(out)["rows"] == [row for row in printed["rows"] if row["method"] in ("de-confound", "tde")]
    code, out, _ = run(capsys, "evaluate", str(folder / "tde"), "--method", "tde", "--alpha", "0", "--json")
    (zero,) = json.loads(out)["rows"]
    (plain,) = [row for row in printed["rows"] if row["method"] == "de-confound"]
    assert [zero[group] for group in ("many", "few", "all")] == [plain[group] for group in ("many", "few", "all")]
    assert zero["alpha"] == {"values": [0.0, 0.0], "from": "given"}


def test_adjust_writes_a_classifier_per_seed(suite, capsys):
    folder, _ = suite
    code, out, _ = run(capsys, "adjust", str(folder / "cosine-tde"), "--alpha", "1.5")
    assert code == 0
    for seed in (0, 1):
        path = folder / f"cosine-tde/seed-{seed}/adjusted/cosine-tde.safetensors"
        assert path.is_file()
        assert f"wrote {path}" in out


def test_compare_pairs_seeds(suite, capsys):
    folder, _ = suite
    code, out, _ = run(capsys, "compare", str(folder / "linear"), str(folder / "tde"), "--json")
    rows = json.loads(out)["rows"]
    assert code == 0
    assert [row["method"] for row in rows] == ["linear", "de-confound", "tde"]
    assert rows[0]["difference"] is None
    each = [
        json.loads((folder / f"tde/seed-{s}/results.json").read_text())["rows"]["tde"]["all"]
        - json.loads((folder / f"linear/seed-{s}/results.json").read_text())["rows"]["linear"]["all"]
        for s in (0, 1)
    ]
    assert rows[2]["difference"]["mean"] == pytest.approx(sum(each) / 2)
    code, whole, _ = run(capsys, "compare", str(folder))
    assert code == 0
    assert [line.split()[1] for line in whole.splitlines() if "±" in line and "%" not in line] == list(METHODS)


def test_a_single_seed_has_no_spread(capsys, tmp_path):
    code, out, _ = run(
        capsys, "train", "digits-lt/linear", *SHORT, "--seeds", "1", "--out", str(tmp_path / "x"), "--json"
    )
    assert code == 0
    assert json.loads(out)["rows"][0]["all"]["std"] is None


def test_an_empty_group_is_null_and_a_dash(capsys, tmp_path):
    settings = [*SHORT, "data.imbalance_ratio=2", "--seeds", "1"]
    code, out, _ = run(capsys, "train", "digits-lt/linear", *settings, "--out", str(tmp_path / "x"), "--json")
    assert code == 0
    assert json.loads(out)["rows"][0]["few"] is None
    _, out, _ = run(capsys, "evaluate", str(tmp_path / "x"))
    assert re.search(r"linear +\S+ +\S+ +- +\S+", out)


def test_recipes_lists_them_all(capsys):
    _, out, _ = run(capsys, "recipes", "--json")
    listed = json.loads(out)
    assert {recipe["name"] for recipe in listed["recipes"]} == {f"{s}/{m}" for s in listed["suites"] for m in METHODS}
    _, out, _ = run(capsys, "recipes")
    assert "cifar100-lt/tde" in out
    assert "44.1" in out


BAD = {
    "train digits": "did you mean 'digits-lt'",
    "train digits-lt/tdee": "did you mean 'digits-lt/tde'",
    "train digits-lt epochs=3": "did you mean 'stages.0.epochs'",
    "train digits-lt stages.0.epochs=x": "valid integer",
    "train digits-lt/tde classifier.num_heads=3": "num_heads 3 and in_features 64",
    "train digits-lt/tde classifier.tau=-1": "greater than 0, got -1",
    "train digits-lt --seeds 0": "at least 1, got 0",
    "train digits-lt --seeds x": "--seeds",
    "train digits-lt --sedes 3": "--seeds",
    "train digits-lt --protocol papr": "paper",
    "train digits-lt/tde stages.0.learning_rate=1e30": "diverged",
    "train digits-lt/tde stages.0.batch_size=999 stages.0.drop_last=true": "batch_size",
    "train digits-lt/tde data.imbalance_ratio=1000": "leaves every class an image",
    "train digits-lt/tde stages.0.schedule.warmup=1": "less than 1",
    "train digits-lt/tde --protocol paper tde.alpha=auto": "needs a validation split",
    "train cifar100-lt/tde": "needs a local copy",
    "train cifar100-lt/tde --data-dir nowhere": "got neither",
    "train cifar10-lt/tde --data-dir .": "not a readable .npz",
    "train cifar100-lt/tde --data-dir cifar100.npz": "labels in 0..99, got 100 at position 99",
    "evaluate .": "expected a run folder",
    "evaluate nowhere": "nothing there",
    "adjust nowhere": "nothing there",
    "compare": "at least one run folder",
    "compare nowhere": "nothing there",
    "trian": "train",
    "train": "NAME",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_line_and_2(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10.npz").write_bytes(b"broken")
    images, labels = np.zeros((100, 32, 32, 3), dtype=np.uint8), np.arange(1, 101)
    np.savez(tmp_path / "cifar100.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    code, out, err = run(capsys, *arguments.split())
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if "seed" not in line.split(":")[0]]
    assert len(lines) == 1
    assert lines[0].startswith("tailwise: ")
    assert BAD[arguments] in lines[0]
    assert {path.name for path in tmp_path.iterdir()} == {"cifar10.npz", "cifar100.npz"}


BAD_RUNS = {
    "evaluate linear --method tde": "needs a causal classifier",
    "evaluate linear --method tdee": "did you mean 'tde'",
    "evaluate linear --alpha 1": "expected a method that takes one, got linear",
    "evaluate tde --alpha x": "finite number or auto",
    "evaluate tde --alpha nan": "alpha",
    "evaluate tde --power 1": "power",
    "evaluate .": "it holds the runs",
    "adjust linear": "none does for a linear classifier",
    "adjust tde --method de-confound": "'de-confound' does not",
    "adjust tde --alpha 1e39": "finite",
}


@pytest.mark.parametrize("arguments", BAD_RUNS)
def test_bad_questions_to_a_run(capsys, suite, monkeypatch, arguments):
    monkeypatch.chdir(suite[0])
    before = sorted(path for path in suite[0].rglob("*"))
    code, out, err = run(capsys, *arguments.split())
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert BAD_RUNS[arguments] in err
    assert sorted(path for path in suite[0].rglob("*")) == before


def test_help_is_quick_and_needs_no_torch():
    """Under a second: the best of three, in fresh processes on a busy machine."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "tailwise", "--help"], capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0
        assert "train" in done.stdout
        assert not re.search(r"\| *torch$", done.stderr, flags=re.M)
    assert min(seconds) < 1, seconds


def test_recipes_need_no_torch():
    script = """
import sys
from tailwise.cli import main
try:
    main(["recipes"])
except SystemExit:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_terminal_without_unicode_still_gets_the_table(suite):
    command = [sys.executable, "-m", "tailwise", "compare", suite[0]]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert b"tde" in done.stdout


def test_progress_bars_on_a_terminal(tmp_path):
    """In a pseudo-terminal: bars while it trains, one line per run when it is done."""
    import pty

    master, slave = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "tailwise",
        "train",
        "digits-lt/linear",
        *SHORT,
        "--seeds",
        "2",
        "--out",
        tmp_path / "x",
    ]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    assert process.wait() == 0
    text = shown.decode()
    assert "epochs" in text
    assert "\x1b[" in text
    assert "digits-lt/linear seed 1: epoch" in text
