"""`tailwise plot`, as a user runs it."""

import json
import subprocess
import sys

import pytest

from reports import run
from tailwise.checks import extra
from tailwise.cli import main
from tailwise.cli.plot import FIGURES as IN_HELP
from tailwise.figures import FIGURES


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plot") / "run"
    with pytest.raises(SystemExit) as stopped:
        main(["train", "digits-lt/tde", "stages.0.epochs=1", "--seeds", "1", "--out", str(folder), "--json"])
    assert not stopped.value.code
    return folder


def plot(capsys, *arguments):
    return run(capsys, "plot", *arguments)


def test_help_lists_every_figure():
    assert tuple(FIGURES) == IN_HELP


def test_plot_writes_png_and_svg(digits, tmp_path, capsys):
    code, out, err = plot(capsys, digits, "--figure", "alpha")
    assert (code, err) == (0, "")
    written = [digits / "figures/alpha.png", digits / "figures/alpha.svg"]
    assert out.splitlines()[1:] == [f"wrote {path}" for path in written]
    assert out.startswith("Accuracy by group against alpha of total direct effect: digits-lt, imbalance ratio 50; ")
    assert all(path.stat().st_size > 5000 for path in written)
    code, out, err = plot(capsys, digits, "--figure", "confusion", "--out", tmp_path / "c.svg", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["wrote"] == [str(tmp_path / "c.svg")]
    assert [path.name for path in tmp_path.iterdir()] == ["c.svg"]


def test_plot_takes_the_options_of_evaluate(digits, tmp_path, capsys):
    """A row at a strength, one seed: what is drawn is what `evaluate` measures."""
    with pytest.raises(SystemExit):
        main(["evaluate", str(digits), "--method", "tde", "--alpha", "2", "--json"])
    many = json.loads(capsys.readouterr().out)["rows"][0]["many"]["mean"]
    options = ["--method", "tde", "--alpha", "2", "--seed", "0", "--out", str(tmp_path / "c.svg")]
    code, out, _ = plot(capsys, digits, "--figure", "confusion", *options)
    assert code == 0
    assert "; tde; single run, seed 0; " in out
    drawn = (tmp_path / "c.svg").read_text()
    assert "<!-- tde, alpha 2 -->" in drawn  # the panel's title, as text
    assert f"<!-- {many:.1f} -->" in drawn


def test_plot_refuses_in_one_line_and_writes_nothing(digits, tmp_path, capsys):
    out = tmp_path / "a"
    for arguments, why in (
        ([digits, "--figure", "alpah"], "figure: unknown value 'alpah'; did you mean 'alpha'?"),
        ([digits, "--figure", "norm-power", "--out", out], f"{digits}: figure norm-power needs a linear classifier"),
        ([digits, "--figure", "alpha", "--out", f"{out}.pdf"], "out: expected a name that ends in .png or .svg"),
        ([digits, "--figure", "alpha", "--out", "."], "out: expected a file's name, got ."),
        ([digits, "--figure", "alpha", "--out", tmp_path / "no/a"], f"{tmp_path}/no/a.png: cannot write (No such file"),
        ([tmp_path, "--figure", "alpha"], f"{tmp_path}: expected a run folder with recipe.json"),
        (["--figure", "alpha"], "figure: alpha expected at least one run folder, got none"),
        (
            [digits, "--figure", "confusion", "--method", "lws"],
            "method: expected one of these runs, as de-confound, tde",
        ),
        ([digits, "--figure", "confusion", "--alpha", "x"], "alpha: expected a finite number or auto, got 'x'"),
        ([digits, "--figure", "feature-norms", "--alpha", "1"], "alpha: expected a figure of weight-norms, confusion,"),
        ([digits, "--figure", "alpha", "--seed", "7"], "seed: expected one of 0, got 7"),
    ):
        code, shown, err = plot(capsys, *arguments)
        assert (code, shown, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"tailwise: {why}"), err
    assert list(tmp_path.iterdir()) == []
    assert not (digits / "figures/norm-power.png").exists()


def test_nothing_is_drawn_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, shown, err = plot(capsys, "--figure", "one-dimensional", "--out", tmp_path / "a")
    assert (code, shown) == (2, "")
    assert err == f"tailwise: plot: expected the package matplotlib; {extra('plots')}\n"
    assert list(tmp_path.iterdir()) == []


def test_importing_the_drawing_loads_neither_matplotlib_nor_torch():
    script = "import sys, tailwise.report.figures; print(sorted({'matplotlib', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
