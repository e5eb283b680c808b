"""The scripts of `benchmarks/`: what all of them write, that they start, that what is made up is still what is read."""

import importlib
import json
import math
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

import records
import report

SCRIPTS = {path.stem for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py")}
NOT_RUN_BY_HAND = {"records", "scale_ranks"}


def test_a_record_says_what_it_comes_from(tmp_path, monkeypatch):
    """Of every script: its command as it was given, the machine, the versions."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/claims.py", "runs/a b", "--out", "claims.json"])
    records.write(tmp_path / "claims.json", {"claims": {}})
    found = json.loads((tmp_path / "claims.json").read_text())
    assert found["claims"] == {}
    assert found["made"]["command"] == "python benchmarks/claims.py 'runs/a b' --out claims.json"
    assert found["made"]["versions"]["torch"] == torch.__version__
    assert found["made"]["hardware"]["cores"] >= 1


def test_a_record_is_written_where_nothing_is_installed(monkeypatch):
    """As on a machine with a GPU, a PyTorch and the sources."""

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(records, "version", missing)
    assert records.made()["versions"]["tailwise"] == "not installed"


@pytest.mark.parametrize("name", sorted(SCRIPTS - NOT_RUN_BY_HAND))
def test_every_script_says_how_it_is_run(name, monkeypatch, capsys):
    """And does nothing else when it is asked."""
    script = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 0
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out


@pytest.mark.parametrize("kind", report.RECIPE)
def test_the_report_of_a_run_that_is_made_up(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "CLASSES", 12)
    monkeypatch.setattr(report, "IMAGES", 120)
    monkeypatch.setattr(report, "WIDTH", 16)
    monkeypatch.setattr(report.Width, "num_features", 16)
    cost = report.measured(kind, tmp_path)
    assert (tmp_path / "report.html").stat().st_size == cost["page_bytes"] > 100_000
    assert math.isfinite(cost["seconds"])
    record = {"classes": 12, "images": 120, "width": 16, "classifiers": {kind: cost}}
    assert f"\n{kind} " in report.table(record)
