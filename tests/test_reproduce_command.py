"""`tailwise reproduce` as a command: on a miniature of CIFAR, without data, and what it says."""

import json

import numpy as np

from reports import run
from tailwise.reproduction import estimate
from tailwise.reproduction.targets import TABLES


def test_table_3_on_a_miniature_of_cifar(tmp_path, monkeypatch, capsys):
    """Reading, planning, training, TDE, comparing in CIFAR's layout; its rows are no results."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 10)
    images = rng.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10.npz", x_train=images, y_train=labels, x_test=images[::5], y_test=labels[::5])
    monkeypatch.setattr(estimate, "STEPS", 1)
    settings = ["stages.0.epochs=1", "stages.0.batch_size=16", "compute.threads=1"]
    rows = ["--rows", "cifar10-lt-10/tde", "--rows", "cifar100-lt-10/tde", "--seeds", "1"]
    where = ["--data-dir", tmp_path, "--out", tmp_path / "runs"]
    code, text, _ = run(capsys, "reproduce", "tang-3", *settings, *rows, *where, "--json")
    record = json.loads(text)
    assert code == 0
    lines = {f"{line['section']}/{line['method']}": line for line in record["lines"]}
    trained, absent = lines["cifar10-lt-10/tde"], lines["cifar100-lt-10/tde"]
    assert 0 <= trained["ours"]["paper"]["mean"] <= 100
    assert (trained["verdict"], trained["reason"]) == ("not run", f"other settings: {', '.join(settings[:2])}")
    assert (absent["verdict"], absent["reason"], absent["ours"]) == ("not run", "no data: cifar100-lt", {})
    assert record["runs"][0]["seeds"][0]["train_images"] == 36


def test_the_command_lists_and_corrects(capsys):
    code, text, _ = run(capsys, "reproduce")
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == list(TABLES)
    assert run(capsys, "reproduce", "tang3")[::2] == (
        2,
        "tailwise: table: unknown value 'tang3'; did you mean 'tang-3'?\n",
    )
    assert run(capsys, "reproduce", "tang-3", "--budget", "45")[0] == 2
    assert "got 0" in run(capsys, "reproduce", "tang-3", "--seeds", "0")[2]
    assert "--rows ROW " in run(capsys, "reproduce", "--help")[1]  # one each time


def test_a_table_of_which_nothing_can_be_run(tmp_path, capsys):
    code, text, _ = run(capsys, "reproduce", "kang-4", "--out", tmp_path)
    assert code == 0
    assert "5 runs on subset seed 0; nothing left that can be run on" in text
    assert "  focal              0 of 3 seeds      30     -  -" in text
    assert "cannot be run, 5 runs: no data: places-lt (data-dir: places-lt needs a local copy" in text
    assert text.count("not run: no data") == 9  # a line for each row
