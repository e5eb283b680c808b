"""The page of `tailwise report` in a real browser, from disk. Without chromium and its driver these are skipped."""

import json
import re
import shutil
from urllib.parse import quote

import numpy as np
import pytest

from reports import call, source_of
from tailwise.evaluate import group_confusion, per_class_accuracy
from tailwise.experiments.adjusters import features_of
from tailwise.experiments.strengths import strength_paths
from tailwise.experiments.trained import Asked
from tailwise.figures.report import report_record
from tailwise.report.page import render_page

GROUPS = ("many", "medium", "few", "all")
NAMES = [
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "\"quoted\" & 'single' `ticks` ${1+1}",
    "🦊🏳️‍🌈 emoji",
    "שלום, עולם (ימין לשמאל)",
    "‮reversed",
    "long " * 40,
    "\u2028line\u2029",
    "javascript:alert(1)",
    "",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no browser")  # conftest.py tells how to get one
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "no-first-run",
        "disable-background-networking",
        "disable-sync",
    ):
        options.add_argument(f"--{flag}")
    options.add_argument("--window-size=1200,900")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # a named driver: selenium then looks for none, and asks no network
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def sources(browser, short_runs):
    return [source_of(folder) for folder in short_runs]


@pytest.fixture(scope="module")
def pages(short_runs, sources, tmp_path_factory):
    """The report of both runs as the command writes it, and one whose classes have names that attack it."""
    folder = tmp_path_factory.mktemp("pages # of 100%")
    call("report", *short_runs, "-o", folder / "report.html")
    record = report_record(sources[:1], "tailwise report")
    record["runs"][0]["names"] = NAMES
    (folder / "names.html").write_text(render_page(record))
    return folder


@pytest.fixture
def page(browser, pages):
    """Opens a page; afterwards: nothing was asked of a network, nothing went wrong in it."""

    def opened(name="report.html"):
        browser.get_log("browser"), browser.get_log("performance")
        browser.get("file://" + quote(str(pages / name)))
        return Page(browser)

    yield opened
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith(("file:///", "data:")) for url in asked)
    assert len([url for url in asked if url.startswith("file:")]) == 1


class Page:
    def __init__(self, browser):
        self.browser = browser

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def texts(self, selector):
        return self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def press(self, selector, *keys):
        self.find(selector).send_keys(*keys)

    def figures(self):
        return [self.find(f"#figure-{group} .value").text for group in GROUPS]

    def columns(self):
        """Of the class table: {class: cells}."""
        rows = [re.split(r"\t", line) for line in self.texts("#class-rows tr:nth-child(n)")]
        assert rows
        script = (
            "return [...document.querySelectorAll('#class-rows tr')].map((r) => [...r.cells].map((c) => c.textContent))"
        )
        return {cells[1]: cells for cells in self.browser.execute_script(script)}


def evaluated(folder, capsys, *options):
    """The cells that `tailwise evaluate` prints in the last row."""
    call("evaluate", folder, *options)
    row = [line for line in capsys.readouterr().out.splitlines() if line.startswith((" tde", " tau-norm"))][-1]
    return re.split(r"  +", row.strip())[1:]


def expect_situation(page, source, method, asked):
    """The per-class table and the confusion of groups, against what is measured here."""
    shown, rows, matrices, taken = page.columns(), [], [], [[] for _ in range(10)]
    for seed in source.seeds:
        test, made = seed.stores.test(), seed.made(method, asked)
        predicted = made.model.classifier(features_of(test)).argmax(dim=1).numpy()
        rows.append(per_class_accuracy(predicted, np.asarray(test.labels), 10))
        matrices.append(group_confusion(predicted, np.asarray(test.labels), seed.published))
        for c, wrong in enumerate(taken):
            wrong.append(predicted[(np.asarray(test.labels) == c) & (predicted != c)])
    for c, mean in enumerate(np.mean(rows, axis=0)):
        assert shown[str(c)][6].split(" ± ")[0] == f"{mean:.1f}"
        times = np.bincount(np.concatenate(taken[c]), minlength=10) / len(source.seeds)  # a seed's, as its test images
        most = f"{times.argmax()} ({times.max():g})" if times.any() else "-"
        assert shown[str(c)][8] == most
    trs = "[...document.querySelectorAll('#confusion-rows tr')]"
    texts = page.run(f"return {trs}.map((row) => [...row.cells].slice(1).map((c) => c.firstChild.data))")
    for group, (right, *wrong) in enumerate(np.array(texts, dtype=float)):
        wrong[group] += right  # a group's own: right, and wrong but within the group
        assert wrong == pytest.approx(np.mean(matrices, axis=0)[group], abs=0.11)


def test_slider_shows_what_evaluate_prints(page, short_runs, sources, capsys):
    """Three alphas by the keyboard, a fourth typed between two values of the slider."""
    from selenium.webdriver import Keys

    shown = page()
    shown.press("#slider", Keys.HOME)
    for steps, alpha in ((1, "0.05"), (9, "0.5"), (11, "1.05")):
        shown.press("#slider", *[Keys.ARROW_RIGHT] * steps)
        assert shown.find("#exact").get_attribute("value") == alpha
        assert shown.figures() == evaluated(short_runs[0], capsys, "--alpha", alpha)
        assert f"alpha {alpha}:" in shown.find("#slider").get_attribute("aria-valuetext")
        expect_situation(shown, sources[0], "tde", Asked(alpha=float(alpha)))
    shown.press("#exact", Keys.CONTROL + "a", Keys.NULL, "2.3456", Keys.ENTER)
    assert shown.figures() == evaluated(short_runs[0], capsys, "--alpha", "2.3456")
    expect_situation(shown, sources[0], "tde", Asked(alpha=2.3456))


def test_a_path_breaks_where_it_starts(page, sources):
    """At a breakpoint itself, to the last bit, the new class is predicted."""
    from selenium.webdriver import Keys

    paths = [strength_paths(seed, "tde", (0.0, 5.0)) for seed in sources[0].seeds]
    label, value = sources[0].seeds[0].stores.test().labels, None
    for start in paths[0].starts[(paths[0].starts > 1) & (paths[0].starts < 2)].tolist():
        before, at = ((paths[0].at(v) == label).sum() for v in (np.nextafter(start, 0), start))
        value = start if before != at else value
    shown = page()
    shown.press("#exact", Keys.CONTROL + "a", Keys.NULL, repr(value), Keys.ENTER)
    assert float(shown.find("#exact").get_attribute("value")) == value
    labels = [np.asarray(seed.stores.test().labels) for seed in sources[0].seeds]
    right = [path.at(value) == truth for path, truth in zip(paths, labels, strict=True)]
    for c, cells in shown.columns().items():
        mean = np.mean([100 * hit[truth == int(c)].mean() for hit, truth in zip(right, labels, strict=True)])
        assert cells[6].split(" ± ")[0] == f"{mean:.1f}"


def test_another_run_has_its_norm_power(page, short_runs, sources, capsys):
    from selenium.webdriver import Keys

    shown = page()
    shown.press("#run", "l")  # linear
    assert shown.find("#symbol").text == "norm power"
    shown.press("#slider", Keys.HOME, Keys.PAGE_UP, Keys.ARROW_RIGHT)
    power = shown.find("#exact").get_attribute("value")
    assert float(power) > 0.1
    assert shown.figures() == evaluated(short_runs[1], capsys, "--power", power)
    expect_situation(shown, sources[1], "tau-norm", Asked(power=float(power)))


def test_table_is_sorted_and_searched(page):
    from selenium.webdriver import Keys

    shown = page()
    assert shown.find("th[aria-sort]").text.startswith("Rank")
    shown.press("th[data-key=now] button", Keys.ENTER)
    values = [float(cells[6].split()[0]) for cells in shown.columns().values()]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 3
    assert shown.find("th[data-key=now]").get_attribute("aria-sort") == "descending"
    shown.press("th[data-key=now] button", Keys.SPACE)
    assert [float(cells[6].split()[0]) for cells in shown.columns().values()] == sorted(values)
    assert len(shown.texts("th[aria-sort]")) == 1
    shown.press("#filter", "7")
    assert list(shown.columns()) == ["7"]


def test_names_are_text(page):
    shown = page("names.html")
    assert shown.browser.title == "digits-lt/tde"
    assert shown.texts("#class-rows th") == [*NAMES[:-1], "class 9"]  # in class order: the counts descend
    spans = "[...document.querySelectorAll('#class-rows .class-name')]"
    seen = shown.run(f"return {spans}.map((e) => [e.title, getComputedStyle(e).direction, e.offsetWidth])")
    assert {name: direction for name, direction, _ in seen}[NAMES[4]] == "rtl"
    assert {direction for name, direction, _ in seen if name != NAMES[4]} == {"ltr"}
    assert max(width for *_, width in seen) <= 200
    assert shown.run("return document.querySelectorAll('img:not([src^=\"data:\"])').length") == 0
    assert shown.run("return document.scripts.length") == 2
    assert shown.run("return document.documentElement.scrollWidth <= innerWidth")


def test_a_script_that_got_in_could_not_run(page, browser):
    shown = page()
    handler = '<img src="data:,x" onerror="document.title = \'taken\'">'
    shown.run("document.body.insertAdjacentHTML('beforeend', arguments[0])", handler)
    assert shown.browser.title.startswith("digits-lt")
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert len(refused) == 1
    assert "Content Security Policy" in refused[0]
