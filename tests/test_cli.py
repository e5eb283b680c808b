import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from reports import run
from tailwise.recipes.catalog import RECIPES, SUITES
from tailwise.recipes.detection_catalog import DETECTION_RECIPES, DETECTION_SUITES
from tailwise.recipes.overrides import override

SHORT = ["stages.0.epochs=3", "second.crt.stage.epochs=1", "second.lws.stage.epochs=1"]
ROWS = [
    "linear", "joint", "ncm", "tau-norm", "crt", "lws",
    "cosine", "cosine-tde", "capsule", "capsule-tde", "de-confound", "tde",
]  # fmt: skip


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
    assert [row["method"] for row in printed["rows"]] == ROWS
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
    assert shown == ROWS
    assert f"wrote {tmp_path / 'x'}" in out
    assert out.count("chosen on val") == 4
    assert len(err.splitlines()) == 10  # one plain line per run: no terminal here
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


def test_adjust_trains_a_second_stage_and_evaluate_shows_it(suite, capsys, tmp_path):
    folder = tmp_path / "linear"
    shutil.copytree(suite[0] / "linear", folder)
    short = "second.lws.stage.epochs=1"
    code, out, err = run(capsys, "adjust", str(folder), short, "--method", "lws", "--json")
    assert code == 0
    assert err == ""
    rows = json.loads(out)["rows"]
    assert [row["method"] for row in rows] == ["linear", "lws"]
    code, out, _ = run(capsys, "evaluate", str(folder), "--json")
    assert json.loads(out)["rows"] == rows
    code, out, _ = run(capsys, "evaluate", str(folder), "--power", "0.5", "--json")
    assert [row["method"] for row in json.loads(out)["rows"]] == ["linear", "lws", "tau-norm"]
    assert json.loads(out)["rows"][2]["norm_power"] == {"values": [0.5, 0.5], "from": "given"}


def test_adjusting_by_a_metric_chooses_the_second_stages_epoch_by_it(suite, capsys, tmp_path):
    folder = tmp_path / "linear"
    shutil.copytree(suite[0] / "linear", folder)
    code, _, _ = run(capsys, "adjust", str(folder), "--method", "crt", "--metric", "many", "--json")
    assert code == 0
    first = (folder / "seed-0/adjusted/crt.safetensors").read_bytes()
    code, _, err = run(capsys, "adjust", str(folder), "--method", "crt", "metric=few", "--json")
    assert (code, "kept with by many, got few" in err) == (2, True)  # nothing that is kept is lost
    for seed in (0, 1):
        (folder / f"seed-{seed}/adjusted/crt.safetensors").unlink()
    code, _, _ = run(capsys, "adjust", str(folder), "--method", "crt", "metric=few", "--json")
    assert code == 0
    assert (folder / "seed-0/adjusted/crt.safetensors").read_bytes() != first


@pytest.mark.parametrize("words", ["auto", "train", "learned"])
def test_norm_power_is_chosen_as_asked(suite, capsys, words):
    code, out, _ = run(
        capsys, "evaluate", str(suite[0] / "decoupling"), "--method", "tau-norm", "--power", words, "--json"
    )
    assert code == 0
    power = json.loads(out)["rows"][0]["norm_power"]
    assert power["from"] == {"auto": "val", "train": "train", "learned": "learned"}[words]
    assert all(0 <= value <= 2 for value in power["values"])


def test_sweep_prints_and_stores_the_whole_curve(suite, capsys):
    folder, printed = suite
    code, out, _ = run(capsys, "sweep", str(folder / "tde"))
    assert code == 0
    rows = re.findall(r"^ +(\d\.?\d?) +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ +", out, flags=re.M)
    assert [float(value) for value in rows] == [round(0.1 * step, 1) for step in range(51)]
    assert all(len(line) <= 80 for line in out.splitlines()[1:] if re.match(r" +[a-z0-9]", line))
    (row,) = [row for row in printed["rows"] if row["method"] == "tde"]
    for seed in (0, 1):
        path = folder / f"tde/seed-{seed}/sweeps/tde.json"
        assert f"wrote {path}" in out
        curve = json.loads(path.read_text())
        assert curve["chosen"]["value"] == row["alpha"]["values"][seed]
        at = curve["values"].index(curve["chosen"]["value"])
        result = json.loads((folder / f"tde/seed-{seed}/results.json").read_text())["rows"]
        for group in ("many", "medium", "few", "all"):
            assert curve["test"][group][at] == result["tde"][group]
            assert curve["test"][group][0] == result["de-confound"][group]
        assert max(curve["val"]["metric"]) == curve["val"]["metric"][at]


def test_sweep_of_a_linear_run_is_over_norm_powers(suite, capsys):
    code, out, _ = run(capsys, "sweep", str(suite[0] / "decoupling"), "--highest", "1", "--step", "0.25", "--json")
    assert code == 0
    record = json.loads(out)
    assert (record["method"], record["strength"], record["values"]) == (
        "tau-norm",
        "norm_power",
        [0, 0.25, 0.5, 0.75, 1],
    )
    assert len(record["test"]["few"]) == 5
    assert set(record["test"]["few"][0]) == {"mean", "std"}
    assert record["command"] == f"tailwise sweep {suite[0]}/decoupling --highest 1.0 --step 0.25"
    assert len(record["subset_hashes"]) == len(record["seeds"])


def test_metric_decides_what_is_chosen(suite, capsys):
    _, out, _ = run(capsys, "sweep", str(suite[0] / "tde"), "--metric", "few", "--json")
    few = json.loads(out)
    for seed, alpha in enumerate(few["chosen"]["values"]):
        curve = json.loads((suite[0] / f"tde/seed-{seed}/sweeps/tde.json").read_text())
        assert curve["val"]["few"][curve["values"].index(alpha)] == max(curve["val"]["few"])
        assert curve["metric"] == "few"
    _, out, _ = run(capsys, "evaluate", str(suite[0] / "tde"), "--method", "tde", "--metric", "few", "--json")
    assert json.loads(out)["rows"][0]["alpha"] == {**few["chosen"], "values": few["chosen"]["values"]}


FULL = "tailwise: cannot write (No space left on device)\n"


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        ("recipes --json | head -1", (0, "{\n", "")),
        *((f"{words} | true", (0, "", "")) for words in ("recipes", "recipes digits-lt/tde --json", "train --help")),
        *((f"{words} > /dev/full", (2, "", FULL)) for words in ("recipes", "recipes digits-lt/tde --json")),
    ],
)
def test_a_closed_pipe_is_no_error_and_a_full_disk_is_one_line(words, ends):
    command = ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m tailwise {words}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == ends


def test_what_adjust_wrote_is_what_evaluate_and_compare_show(suite, capsys, tmp_path):
    folder = tmp_path / "linear"
    shutil.copytree(suite[0] / "linear", folder)
    for arguments in (["tau-norm", "--power", "0.3"], ["ncm", "ncm.distance=centered"], ["crt-stored"]):
        code, out, _ = run(capsys, "adjust", str(folder), "--method", *arguments, "--json")
        assert code == 0
        adjusted = json.loads(out)["rows"][1]
        for verb in ("evaluate", "compare"):
            _, out, _ = run(capsys, verb, str(folder), "--json")
            (row,) = [row for row in json.loads(out)["rows"] if row["method"] == arguments[0]]
            assert {key: row[key] for key in adjusted} == adjusted
    _, out, _ = run(capsys, "evaluate", str(folder))
    assert "tau-norm: norm power 0.3 (given)" in out
    assert "ncm: distance centered" in out
    assert "crt-stored: second stage on stored features" in out


def test_seeds_in_different_settings_are_not_averaged(suite, capsys, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, power in ((one, "0.3"), (other, "auto")):
        shutil.copytree(suite[0] / "linear", folder)
        run(capsys, "adjust", str(folder), "--method", "tau-norm", "--power", power)
    shutil.copy(other / "seed-1/adjusted/tau-norm.safetensors", one / "seed-1/adjusted/tau-norm.safetensors")
    code, _, err = run(capsys, "evaluate", str(one))
    assert (code, "seeds of this run have 'tau-norm' in different settings" in err) == (2, True)


def test_no_figure_is_cut_however_narrow_the_terminal(suite):
    command = f"{sys.executable} -m tailwise compare {suite[0]}"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "40"}
    )
    assert "…" not in done.stdout
    assert len(re.findall(r"\d+\.\d ± \d+\.\d", done.stdout)) >= 12 * 4


def test_rows_of_the_same_name_say_their_recipe(capsys, tmp_path):
    short = ["stages.0.epochs=1", "second.crt.stage.epochs=1", "second.lws.stage.epochs=1", "--seeds", "1"]
    code, out, _ = run(capsys, "train", "digits-lt/kang-figure-1", *short, "--out", str(tmp_path / "x"))
    assert code == 0
    shown = re.findall(r"^ (decoupling\S*) +([\w-]+) +\d", out, flags=re.M)
    samplers = ["", "-square-root", "-class-balanced", "-progressive"]
    rows = ["joint", "ncm", "tau-norm", "crt", "lws"]
    assert shown == [(f"decoupling{sampler}", row) for sampler in samplers for row in rows]


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
    assert [line.split()[1] for line in whole.splitlines() if "±" in line and "%" not in line] == ROWS


def test_a_single_seed_has_no_spread(capsys, tmp_path):
    code, out, _ = run(
        capsys, "train", "digits-lt/linear", SHORT[0], "--seeds", "1", "--out", str(tmp_path / "x"), "--json"
    )
    assert code == 0
    assert json.loads(out)["rows"][0]["all"]["std"] is None


def test_an_empty_group_is_null_and_a_dash(capsys, tmp_path):
    settings = [SHORT[0], "data.imbalance_ratio=2", "--seeds", "1"]
    code, out, _ = run(capsys, "train", "digits-lt/linear", *settings, "--out", str(tmp_path / "x"), "--json")
    assert code == 0
    assert json.loads(out)["rows"][0]["few"] is None
    _, out, _ = run(capsys, "evaluate", str(tmp_path / "x"))
    assert re.search(r"linear +\S+ +\S+ +- +\S+", out)


def test_recipes_lists_them_all(capsys):
    _, out, _ = run(capsys, "recipes", "--json")
    listed = json.loads(out)
    assert [recipe["name"] for recipe in listed["recipes"]] == list(RECIPES)
    assert listed["suites"] == {name: list(members) for name, members in SUITES.items()}
    assert [recipe["name"] for recipe in listed["detection_recipes"]] == list(DETECTION_RECIPES)
    assert listed["detection_suites"] == {name: list(members) for name, members in DETECTION_SUITES.items()}
    _, out, _ = run(capsys, "recipes")
    data = dict.fromkeys(name.split("/")[0] for name in [*RECIPES, *DETECTION_RECIPES])
    assert re.findall(r"^ ([a-z][\w.-]+) +[a-z]", out, flags=re.M)[1:] == [*data]


@pytest.mark.parametrize("data", ["cifar100-lt", "digit-scenes-lt"])
def test_recipes_of_one_data_set(capsys, data):
    _, out, _ = run(capsys, "recipes", data)
    every = [name.split("/") for name in [*RECIPES, *DETECTION_RECIPES]]
    assert re.findall(r"^ ([a-z][\w-]+) +[a-z]", out, flags=re.M) == [title for place, title in every if place == data]
    suites = [name for name in [*SUITES, *DETECTION_SUITES] if name.split("/")[0] == data]
    assert re.findall(r"^suite (\S+): ", out, flags=re.M) == suites
    assert ("44.1" in out) is (data == "cifar100-lt")


def test_recipes_of_one_suite_and_the_settings_of_one_recipe(capsys):
    _, out, _ = run(capsys, "recipes", "cifar10-lt/tang-table-3", "--json")
    listed = json.loads(out)
    assert [recipe["name"] for recipe in listed["recipes"]] == list(SUITES["cifar10-lt/tang-table-3"])
    assert listed["detection_recipes"] == []
    for name, recipe in (("digits-lt/crt-mlp", RECIPES), ("lvis-v1/tde", DETECTION_RECIPES)):
        _, out, _ = run(capsys, "recipes", name)
        typed = [line.strip() for line in out.splitlines()[1:]]
        assert override([recipe[name]], typed) == [recipe[name]]
        assert len(typed) > 30
    assert run(capsys, "recipes", "digits-ltt")[::2] == (
        2,
        "tailwise: name: unknown value 'digits-ltt'; did you mean 'digits-lt'?\n",
    )


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
    "evaluate linear --method de-confound": "needs a causal classifier",
    "evaluate decoupling --method crt-mlp": "no 'crt-mlp' was trained",
    "evaluate linear --alpha 1": "expected a method that has one, got a run of a linear classifier",
    "evaluate tde --method ncm --alpha 1": "expected a method that has one, got ncm",
    "evaluate tde --alpha x": "finite number or auto",
    "evaluate tde --alpha nan": "alpha",
    "evaluate tde --power 1": "expected a method that has one, got a run of a causal classifier",
    "evaluate decoupling --power lerned": "finite number or auto or train or learned",
    "evaluate tde --metric fwe": 'Did you mean "few"',
    "evaluate .": "it holds the runs",
    "adjust linear": "expected one of ncm",
    "adjust tde --method de-confound": "'de-confound' adjusts nothing",
    "adjust tde --method lws": "'lws' needs a linear classifier, this run trained causal",
    "adjust tde --alpha 1e39": "finite",
    "adjust decoupling --method tau-norm --power 1e9": "in [-10, 10]",
    "adjust decoupling --method crt second.crt.stage.epoch=1": "did you mean 'second.crt.stage.epochs'",
    "adjust decoupling --method crt stages.0.epochs=1": "of a trained run depends on a key below second.crt, metric",
    "adjust linear --method crt second.crt.stage.learning_rate=1e30": "diverged",
    "adjust decoupling --method crt second.crt.stage.epochs=9": "kept with stage.epochs 1, got 9",
    "adjust decoupling --method crt second.crt.classifier.name=capsule": "second.crt.classifier",
    "adjust decoupling --method crt second.crt.classifier.name=scaled": "method 'crt' is linear, got scaled",
    "adjust decoupling --method crt second.crt.on=features": "stage.augment: on stored features expected none",
    "adjust linear --method crt-stored second.crt-stored.stage.momentum=0": "on stored features expected 0.9, got 0",
    "adjust linear --method ncm tde.alpha=3": "'ncm' of a trained run depends on",
    "adjust linear --method ncm --metric few": "depends on a key below ncm",
    "evaluate decoupling --method crt --metric few": "expected a method whose strength is chosen, got crt",
    "sweep linear --method crt": "with a strength to sweep",
    "sweep tde --method tau-norm": "needs a linear classifier",
    "sweep tde --step 0": "step: expected a finite number above 0",
    "sweep tde --step 1e-9": "at most 10,000 values",
    "sweep tde --highest -1": "highest",
    "sweep nowhere": "nothing there",
}


@pytest.mark.parametrize("arguments", BAD_RUNS)
def test_bad_questions_to_a_run(capsys, suite, monkeypatch, arguments):
    monkeypatch.chdir(suite[0])
    before = sorted(path for path in suite[0].rglob("*"))
    code, out, err = run(capsys, *arguments.split())
    assert (code, out) == (2, "")
    assert len([line for line in err.splitlines() if not line.startswith("digits-lt/decoupling seed")]) == 1
    assert BAD_RUNS[arguments] in err
    assert sorted(path for path in suite[0].rglob("*")) == before


def test_help_is_quick_and_needs_no_torch():
    """Under a second of the processor, which other work on the machine hardly changes; the best of three."""
    seconds = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "tailwise", "--help"], capture_output=True, text=True
        )
        after = os.times()
        seconds.append(sum(getattr(after, of) - getattr(before, of) for of in ("children_user", "children_system")))
        assert done.returncode == 0
        assert "train" in done.stdout
        assert not re.search(r"\| *torch$", done.stderr, flags=re.M)
        if seconds[-1] < 1:
            break
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
        SHORT[0],
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
