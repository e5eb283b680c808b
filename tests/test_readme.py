"""What README.md says is what happens: its commands and code are run, its table is compared."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def after(marker):
    return re.search(rf"<!-- {marker} -->\n```\w*\n(.*?)^```", README, flags=re.M | re.S).group(1)


def tailwise(line, folder):
    """Run a README line, `[python3 -m uv run] tailwise ...`, with this environment's package."""
    words = shlex.split(line, comments=True)
    command = [sys.executable, "-m", *words[words.index("tailwise") :]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(text, of=r"([\d.]+) ±"):
    """{method: means} of a printed result table, or what `of` finds in each cell."""
    rows = re.findall(r"^ *([a-z][\w-]*) +((?:[\d.]+ ± [\d.]+ *)+)$", text, flags=re.M)
    return {method: [float(mean) for mean in re.findall(of, cells)] for method, cells in rows}


@pytest.fixture(scope="module")
def main_job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    (line,) = [line for line in after("command: main").splitlines() if "tailwise" in line]
    return folder, tailwise(line, folder)


def test_main_command_prints_the_table_of_the_readme(main_job):
    """The same seeds, perhaps another machine, which rounds otherwise: means within one and a half spreads."""
    printed, shown = table(main_job[1]), table(after("table: digits-lt"))
    assert list(printed) == list(shown) == [
        "linear", "joint", "ncm", "tau-norm", "crt", "lws",
        "cosine", "cosine-tde", "capsule", "capsule-tde", "de-confound", "tde",
    ]  # fmt: skip
    spreads = table(after("table: digits-lt"), of=r"± ([\d.]+)")
    for method, means in shown.items():
        for there, here, spread in zip(printed[method], means, spreads[method], strict=True):
            assert abs(there - here) <= max(1.5, 1.5 * spread), method


def test_main_job_debiases(main_job):
    """De-confound and TDE reach 84.4 / 85.2 over all and 74.4 / 75.9 over few-shot classes; TDE lifts the few."""
    rows = table(main_job[1])
    assert rows["de-confound"][3] >= 84.4
    assert rows["tde"][3] >= 85.2
    assert rows["de-confound"][2] >= 74.4
    assert rows["tde"][2] >= 75.9
    pairs = [("de-confound", "tde"), ("cosine", "cosine-tde"), ("capsule", "capsule-tde")]
    for plain, adjusted in [*pairs, *(("joint", row) for row in ("ncm", "tau-norm", "crt", "lws"))]:
        assert rows[adjusted][2] > rows[plain][2]


def test_every_other_command_runs_as_written(main_job):
    """But for the number of seeds, which is the time it takes."""
    folder, _ = main_job
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("tailwise ")]
    assert len(lines) == 7
    for line in lines:
        line = line.partition("#")[0]
        assert tailwise(f"{line} --seeds 1" if " train " in line else line, folder)


def test_python_example_runs(tmp_path):
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    accuracies = [float(value) for value in re.findall(r"tensor\((0\.\d+)\)", done.stdout)]
    assert len(accuracies) == 3
    assert max(accuracies) > 0.6


def test_tables_are_written_from_the_records():
    done = subprocess.run(
        [sys.executable, "docs/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout
    for page, name in (("README.md", "digits-lt"), ("docs/results.md", "digits-lt-all")):
        record = json.loads((ROOT / f"results/{name}.json").read_text())
        means = [[row[g]["mean"] for g in ("many", "medium", "few", "all")] for row in record["rows"]]
        shown = table((ROOT / page).read_text())
        assert list(shown) == [row["method"] for row in record["rows"]]
        assert list(shown.values()) == [pytest.approx(row, abs=0.0501) for row in means]


def test_methods_page_runs():
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/methods.md").read_text(), flags=re.M | re.S)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_test_command_is_what_ci_runs():
    assert "pytest" in after("command: test")
    assert "command: $1" in (ROOT / ".ci/run").read_text()


def test_make_help_lists_every_target():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert re.findall(r"make (\w+)", done.stdout) == targets


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md"]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_extra_that_is_named_can_be_installed_as_said():
    """In the code, whose hint is one function's, and on the pages; the package is on no index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("docs/*.md")]
    texts = [path.read_text() for path in files]
    named = {name for text in texts for name in re.findall(r"extra(?:\('| `)(\w+)['`]", text)}
    assert len(named) > 10
    assert named <= project["optional-dependencies"].keys()
    assert not any("install 'tailwise[" in text for text in (README, *texts))
