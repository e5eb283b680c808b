"""The record behind `tailwise report` against what `tailwise evaluate` finds; the page around it; results as tables."""

import base64
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import tailwise
from reports import call, source_of
from tailwise import InputError
from tailwise.adjust.paths import doubtful
from tailwise.cli import main
from tailwise.evaluate import shot_accuracy
from tailwise.experiments.adjusters import adjusted, features_of
from tailwise.experiments.compare import compare
from tailwise.experiments.rows import blocks, predicted_by
from tailwise.experiments.strengths import SCORES, strength_paths
from tailwise.experiments.trained import Asked
from tailwise.figures.report import report_record
from tailwise.report.page import Results, embedded_json, packed, png, render_page
from tailwise.report.progress import Bars
from tailwise.report.summary import combined, compared, mean_and_std
from tailwise.report.table import table_of

GROUPS = ("many", "medium", "few", "all")


@pytest.fixture(scope="module")
def sources(short_runs):
    return [source_of(folder) for folder in short_runs]


@pytest.fixture(scope="module")
def record(sources):
    return report_record(sources, "tailwise report")


def array(text, kind):
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def predictions(seed, value):
    """Each sample's class, by walking along its path."""
    pieces, starts, classes = (array(seed[k], d) for k, d in (("pieces", "<u2"), ("starts", "<f8"), ("classes", "<u2")))
    ends = np.cumsum(pieces)
    parts = [slice(end - size, end) for end, size in zip(ends, pieces, strict=True)]
    return np.array([int(classes[part][starts[part] <= value][-1]) for part in parts])


@pytest.mark.parametrize("number", [0, 1])
def test_figures_are_those_of_evaluate_at_every_value(sources, record, number):
    """All digits of the numbers, at each value of the slider; and the paths give them."""
    source, run = sources[number], record["runs"][number]
    method = ("tde", "tau-norm")[number]
    assert len(run["values"]) == 101
    for place, value in enumerate(run["values"]):
        rows = [seed.row(method, Asked(alpha=value, power=value)) for seed in source.seeds]
        for group in GROUPS:
            assert run["figures"][group][place] == mean_and_std([row[group] for row in rows])
        if place % 20 == 7:
            for seed, trained_seed in zip(run["seeds"], source.seeds, strict=True):
                found = predictions(seed, value)
                expected = trained_seed.row(method, Asked(alpha=value, power=value))
                measured = shot_accuracy(found, array(seed["labels"], "<u2").astype(int), trained_seed.published)
                assert measured == {group: expected[group] for group in GROUPS}


@pytest.mark.parametrize(("number", "method", "name"), [(0, "tde", "alpha"), (1, "tau-norm", "norm_power")])
def test_where_classes_tie_the_classifier_decides(short_runs, number, method, name):
    """Each class with a twin, the same or all but: without asking it, the paths differ from the classifier."""
    seed = source_of(short_runs[number]).seeds[0]
    classifier, test = seed.model.classifier, seed.stores.test()
    with torch.no_grad():
        for c in range(0, 10, 2):
            classifier.weight[c + 1] = classifier.weight[c] * (1 + 1e-7 * (c % 4))
    values = [round(0.25 * i, 10) for i in range(9)]
    paths = strength_paths(seed, method, values)
    alone, doubt = doubtful(SCORES[name](features_of(test), classifier), values)
    assert doubt.sum() > 100
    corrected = 0
    for place, value in enumerate(values):
        choice = seed.choice(Asked(alpha=value, power=value))
        made = adjusted(method, classifier, seed.stores, choice).classifier
        features = features_of(test)
        expected = np.concatenate([predicted_by(made, features[part]) for part in blocks(len(features))])
        assert (paths.at(value) == expected).all()
        assert (alone.at(value) == expected)[~doubt[:, place]].all()
        corrected += (alone.at(value) != expected).sum()
    assert corrected


def test_changed_predictions_are_those_that_moved_most(sources, record):
    seed, changed = sources[0].seeds[0], record["runs"][0]["changed"]
    value, test = record["runs"][0]["start"], sources[0].seeds[0].stores.test()
    before, after = (
        adjusted("tde", seed.model.classifier, seed.stores, seed.choice(Asked(alpha=a))) for a in (0.0, value)
    )
    p, q = ((m.classifier(features_of(test))).double().softmax(dim=1).detach().numpy() for m in (before, after))
    moved = p.argmax(1) != q.argmax(1)
    assert changed["total"] == moved.sum() > 10
    assert sum(kind["total"] for kind in changed["kinds"]) == changed["total"]
    right, wrong, other = changed["kinds"]
    truth = np.asarray(test.labels)
    assert all(q[s["row"]].argmax() == truth[s["row"]] for s in right["samples"])
    assert all(p[s["row"]].argmax() == truth[s["row"]] for s in wrong["samples"])
    assert all(truth[s["row"]] not in (p[s["row"]].argmax(), q[s["row"]].argmax()) for s in other["samples"])
    distance = np.abs(p - q).sum(axis=1)
    became_right = moved & (q.argmax(1) == truth)
    assert [s["row"] for s in right["samples"]] == sorted(np.flatnonzero(became_right), key=lambda n: -distance[n])[:12]


def test_pictures_are_the_images(sources, record):
    import PIL.Image

    data = sources[0].seeds[0].data.test
    sample = record["runs"][0]["changed"]["kinds"][0]["samples"][0]
    content = base64.b64decode(sample["picture"].removeprefix("data:image/png;base64,"))
    there = data.images[data.ids.tolist().index(type(data.ids[0].item())(sample["id"]))][0].numpy()
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(content))), np.rint(there.astype(float) * 255 / 16))
    colour = np.random.default_rng(0).integers(256, size=(3, 4, 5), dtype=np.uint8)
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(png(colour)))), colour.transpose(1, 2, 0))


def test_without_images_the_report_says_so(short_runs):
    source = source_of(short_runs[0])
    for seed in source.seeds:
        object.__setattr__(seed, "find_data", lambda: (_ for _ in ()).throw(InputError("data_dir: not here")))
    changed = report_record([source], "c")["runs"][0]["changed"]
    assert "Without pictures: data_dir: not here." in changed["about"]
    assert {sample["picture"] for kind in changed["kinds"] for sample in kind["samples"]} == {None}


def test_command_writes_one_page_without_addresses(short_runs, tmp_path, capsys):
    call("report", *short_runs, "-o", tmp_path / "report.html", "--json")
    assert json.loads(capsys.readouterr().out) == {
        "runs": [str(folder) for folder in short_runs],
        "wrote": str(tmp_path / "report.html"),
    }
    page = (tmp_path / "report.html").read_text()
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<(?:link|script|img)[^>]+(?:src|href)=\"(?!data:)", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page).group(1)
    assert policy.startswith("default-src 'none'; ")
    for kind, tag in (("script", "script"), ("style", "style")):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    for digest in (seed.digest for folder in short_runs for seed in source_of(folder).seeds):
        assert digest in page


def test_the_same_runs_give_the_same_record(sources, record):
    assert report_record(sources, "tailwise report") == record


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "report: expected at least one run folder, got none"),
        (["TDE", "-o", "a.pdf"], "out: expected a name that ends in .html, got a.pdf"),
        (["TDE", "-o", "no/such/folder.html"], "no/such/folder.html: cannot write"),
        (["nothing"], "nothing: expected a run folder"),
    ],
)
def test_bad_input_is_one_line(short_runs, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["report", *(str(short_runs[0]) if word == "TDE" else word for word in arguments)])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_text_is_escaped_wherever_it_comes_from(record):
    bad = "</script><img src=x onerror=alert(1)>&\"'\u2028"
    summary = {**record["summary"], "name": bad, "runs": record["summary"]["runs"]}
    page = render_page(
        {
            **record,
            "title": bad,
            "caption": bad,
            "summary": summary,
            "command": bad,
            "provenance": [{**record["provenance"][0], "title": bad, "facts": [(bad, bad)], "settings": [(bad, bad)]}],
            "runs": [{**record["runs"][0], "names": [bad] * 10}],
        },
        [(bad, b"png")],
    )
    assert "<img src=x" not in page
    assert page.count("</script>") == 2
    assert "\u2028" in page  # as text of the page, where it is harmless
    assert "\u2028" not in re.search(r'id="data">(.*?)</script>', page, flags=re.S).group(1)
    assert json.loads(embedded_json({"a": bad})) == {"a": bad}
    assert 'src="data:image/png;base64,cG5n"' in page


def test_packed_numbers_are_little_endian():
    assert base64.b64decode(packed(np.array([1.5]), "f8")) == b"\x00\x00\x00\x00\x00\x00\xf8?"


def test_results_show_as_a_table_in_a_notebook(short_runs, capsys):
    results = tailwise.compare(*short_runs)
    assert isinstance(results, Results)
    call("compare", *short_runs)
    printed = capsys.readouterr().out
    assert str(results).split() == printed.split()
    html = results._repr_html_()
    cells = re.findall(r"<td[^>]*>(?:<b>)?(.*?)(?:</b>)?</td>", html)
    lines = [line.strip() for line in printed.splitlines() if re.match(r" +\d  ", line)]
    assert len(lines) == 3
    assert [re.split(r"  +", line) for line in lines] == np.reshape(cells, (3, 7)).tolist()
    assert html.count("<b>") >= 7
    bad = {**results.record, "rows": [{**results.record["rows"][0], "method": "<b>&"}]}
    assert "&lt;b&gt;&amp;" in Results(bad)._repr_html_()


def test_a_row_says_over_which_seeds_it_is(sources):
    tde, linear = (source.results for source in sources)
    record = compared({"a": tde, "b": linear[:1]})
    assert [row["seeds"] for row in record["rows"]] == [[0, 1], [0, 1], [0]]
    assert table_of(record).title == "compare: accuracy in %, mean ± std over the seeds below; protocol clean"
    assert table_of(record).notes[:2] == ("run 1 is a, seeds 0, 1", "run 2 is b, seed 0")
    record = combined("digits-lt", {"a": tde[1:], "b": linear})
    assert (record["seeds"], record["subset_hashes"]) == ([0, 1], [result["subset_hash"] for result in linear])
    notes = table_of(record).notes
    assert ("de-confound: seed 1" in notes, "tde: seed 1" in notes, "linear: seeds 0, 1" in notes) == (True,) * 3
    for row in record["rows"]:  # older records have them once
        del row["seeds"]
    assert "over seeds 0, 1" in table_of(record).title


def test_compare_needs_a_run():
    with pytest.raises(InputError, match="compare: expected at least one run folder, got none"):
        compare()


def test_a_bar_goes_when_its_run_stops():
    """Of a table of runs the others go on; and a run may stop before it began."""
    with Bars(Console(file=io.StringIO(), force_terminal=True)) as bars:
        bars.stopped(kept=False)
        for number in range(2):
            bars.begin(f"run {number}", 3, {}, Path())
            bars.epoch({"number": 1, "loss": 1.0, "val": None, "images_per_second": 1.0})
            assert [task.description for task in bars.progress.tasks] == [f"run {number}"]
            bars.stopped(kept=True)
        assert not bars.progress.tasks
