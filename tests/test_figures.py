"""Figures: their data against metrics computed again here, and the drawn axes against the data."""

import json
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tailwise import CausalClassifier, ClassCounts, InputError, LinearClassifier, adjust
from tailwise.classifiers import FoldedClassifier
from tailwise.cli import main
from tailwise.cli.plot import FIGURES as IN_HELP
from tailwise.counts import GROUPS
from tailwise.evaluate import Store, expected_calibration_error, group_confusion, shot_accuracy
from tailwise.recipes import figures, measure
from tailwise.recipes.catalog import RECIPES
from tailwise.recipes.figures import FIGURES, Source, figure_data
from tailwise.recipes.runs import Run, SeedFolder
from tailwise.recipes.second import save_adjusted
from tailwise.recipes.trained import Trained
from tailwise.recognizer import Recognizer
from tailwise.report.figures import Line, Panel, PerClass, draw, rendered, running_mean

D = 16
DIGITS = (110, 71, 46, 29, 19, 12, 8, 5, 3, 2)


class Width(torch.nn.Module):
    """A backbone that is never asked for features."""

    num_features = D


def made_run(folder, counts, *, linear=False, seeds=2, per_class=4, shuffle=False, sampler=None, title=None):
    """A run of random classifiers and stores, as training would leave it; classes may be in any order."""
    counts = np.array(counts)
    if shuffle:
        counts = np.random.default_rng(5).permutation(counts)
    num_classes = len(counts)
    recipe = RECIPES["digits-lt/decoupling" if linear else "digits-lt/tde"]
    change = {"methods": ("joint", "ncm", "tau-norm", "crt")} if linear else {}
    if sampler:
        change["stages"] = (recipe.stages[0].model_copy(update={"sampler": sampler}),)
    if title:
        change["name"] = f"digits-lt/{title}"
    recipe = recipe.model_copy(update=change)
    opened = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        path = folder / f"seed-{seed}"
        classifier = LinearClassifier(D, num_classes) if linear else CausalClassifier(D, num_classes)
        classifier.weight.data *= torch.from_numpy(counts).float().clamp_min(1)[:, None] ** 0.3
        if not linear:
            classifier(torch.rand(8, D))
        classifier.eval()
        centres = torch.randn(num_classes, D) + 0.5
        for split in ("train", "val", "test"):
            labels = torch.arange(num_classes).repeat_interleave(per_class)
            features = centres[labels] + 0.5 * torch.randn(len(labels), D)
            with torch.no_grad():
                logits = classifier(features)
            arrays = (x.numpy() for x in (features, logits, labels, torch.arange(len(labels))))
            Store(*arrays, checkpoint="digest", split=split).save(path / "stores" / split)
        about = {
            "seed": seed,
            "subset_hash": "h",
            "protocol": "clean",
            "published_counts": counts.tolist(),
            "counts": counts.tolist(),
            "class_names": [f"{c}" for c in range(num_classes)],
            "versions": {},
        }
        model = Recognizer(Width(), classifier)
        if linear:
            crt = FoldedClassifier(torch.randn(num_classes, D))
            notes = {"method": "crt", "of": "digest", "seed": seed, "notes": {}}
            save_adjusted(path / "adjusted/crt.safetensors", Recognizer(Width(), crt), notes, own_features=False)
        trained = Trained(path, recipe, seed, model, "digest", about, lambda: pytest.fail("no images are needed"))
        rows = {method: trained.row(method) for method in recipe.methods}
        (path / "results.json").write_text(
            json.dumps({**about, "recipe": recipe.model_dump(), "checkpoint": "digest", "rows": rows})
        )
        opened[seed] = trained
    run = Run(folder, recipe, tuple(SeedFolder(folder / f"seed-{s}", recipe, s) for s in range(seeds)))
    return Source(run, lambda seed: opened[seed.seed])


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("linear"), DIGITS, linear=True, shuffle=True)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("causal"), DIGITS, shuffle=True)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """1,000 classes, one seed, no class with few images, and one that the test set lacks."""
    counts = np.round(1280 * 60 ** (-np.arange(1000) / 999)).astype(int)
    return made_run(tmp_path_factory.mktemp("thousand"), counts, seeds=1, per_class=1)


def head_to_tail(source):
    counts = source.results[0]["published_counts"]
    return sorted(range(len(counts)), key=lambda c: -counts[c])


def expect_line(line, seeds, order=None):
    """Mean and sample standard deviation, class by class, with the standard library."""
    seeds = [values if order is None else [values[c] for c in order] for values in seeds]
    assert line.mean.tolist() == pytest.approx([statistics.fmean(cell) for cell in zip(*seeds, strict=True)])
    if len(seeds) == 1:
        assert line.std is None
    else:
        spread = [statistics.stdev(cell) for cell in zip(*seeds, strict=True)]
        assert line.std.tolist() == pytest.approx(spread, abs=1e-6)


def by_label(panel):
    return {line.label: line for line in panel.lines}


# ---- the data


def test_alpha_is_the_record_of_the_sweep(causal):
    data = figure_data("alpha", [causal])
    curves = [measure.sweep_strength(seed, "tde")[0] for seed in causal.seeds]
    assert [panel.title for panel in data.panels] == ["tde, val, dotted: chosen here", "tde, test"]
    assert data.x.tolist() == curves[0]["values"]
    for split, panel in zip(("val", "test"), data.panels, strict=True):
        for line in panel.lines:
            expect_line(line, [curve[split][line.label.split()[0]] for curve in curves])
    assert [line.label for line in data.panels[0].lines] == ["many (1)", "medium (3)", "few (6)", "all (10)"]
    assert data.panels[0].marks == tuple(sorted({curve["chosen"]["value"] for curve in curves}))
    assert data.panels[1].marks == ()
    store, seed = causal.seeds[0].stores.test(), causal.seeds[0]
    at_two = adjust.tde(torch.tensor(store.features), seed.model.classifier, 2.0).argmax(dim=1).numpy()
    assert curves[0]["test"]["few"][20] == shot_accuracy(at_two, store.labels, seed.published)["few"]


def test_norm_power_is_accuracy_at_each_power(linear):
    data = figure_data("norm-power", [linear])
    assert [panel.title.split(",")[1] for panel in data.panels] == [" val", " test"]
    for at in (0, 7, 20):
        rows = []
        for seed in linear.seeds:
            store = seed.stores.test()
            folded = adjust.fold_tau_norm(seed.model.classifier, float(data.x[at]))
            predicted = folded(torch.tensor(store.features)).argmax(dim=1).numpy()
            rows.append(shot_accuracy(predicted, store.labels, seed.published))
        for line in data.panels[1].lines:
            group = line.label.split()[0]
            assert line.mean[at] == pytest.approx(statistics.fmean(row[group] for row in rows))
            assert line.std[at] == pytest.approx(statistics.stdev(row[group] for row in rows), abs=1e-9)


def test_weight_norms_are_those_of_the_folded_classifiers(linear, causal):
    data = figure_data("weight-norms", [linear])
    order, lines = head_to_tail(linear), by_label(data.panels[0])
    assert list(lines) == ["joint", "ncm", "tau-norm", "crt"]

    def norms(weight):
        return [sum(float(v) ** 2 for v in row) ** 0.5 for row in weight.detach()]

    def tau_normed(seed):
        power = seed.row("tau-norm")["norm_power"]["value"]
        return adjust.fold_tau_norm(seed.model.classifier, power).weight

    expect_line(lines["joint"], [norms(seed.model.classifier.weight) for seed in linear.seeds], order)
    expect_line(lines["tau-norm"], [norms(tau_normed(seed)) for seed in linear.seeds], order)
    assert lines["ncm"].mean == pytest.approx(np.ones(10), abs=1e-6)
    assert lines["joint"].mean[0] > 2 * lines["joint"].mean[-1]
    assert data.counts.tolist() == list(DIGITS)
    assert data.names == tuple(map(str, order))
    assert dict(data.group_sizes) == {"many": 1, "medium": 3, "few": 6}

    lines = by_label(figure_data("weight-norms", [causal]).panels[0])
    alphas = [seed.row("tde")["alpha"]["value"] for seed in causal.seeds]
    folded = [adjust.fold_tde(s.model.classifier, a).weight for s, a in zip(causal.seeds, alphas, strict=True)]
    expect_line(lines["tde"], [norms(weight) for weight in folded], head_to_tail(causal))
    expect_line(lines["de-confound"], [norms(s.model.classifier.weight) for s in causal.seeds], head_to_tail(causal))


def test_a_classifier_of_several_layers_has_no_weight_norms(linear, monkeypatch):
    usual = Trained.on_test
    layers = torch.nn.Sequential(torch.nn.Linear(D, D), torch.nn.Linear(D, 10))
    monkeypatch.setattr(Trained, "on_test", lambda s, m: (layers, None, {}) if m == "crt" else usual(s, m))
    data = figure_data("weight-norms", [linear])
    assert list(by_label(data.panels[0])) == ["joint", "ncm", "tau-norm"]
    assert data.caption.endswith("; without crt, which are no single matrix")


def test_means_by_class(causal):
    order = head_to_tail(causal)
    found = {"feature-norms": [], "head-cosine": []}
    for seed in causal.seeds:
        store, classifier = seed.stores.test(), seed.model.classifier
        direction = classifier.average.direction().numpy()
        norms, cosines = [[] for _ in range(10)], [[] for _ in range(10)]
        for x, label in zip(store.features.astype(np.float64), store.labels, strict=True):
            norms[label].append(np.sqrt((x * x).sum()))
            parts = x.reshape(2, -1)
            cosines[label].append(np.mean([p @ d / np.sqrt(p @ p) for p, d in zip(parts, direction, strict=True)]))
        found["feature-norms"].append([np.mean(values) for values in norms])
        found["head-cosine"].append([np.mean(values) for values in cosines])
    for name, seeds in found.items():
        (line,) = figure_data(name, [causal]).panels[0].lines
        assert line.label == "de-confound"
        assert line.mean == pytest.approx(np.mean(seeds, axis=0)[order], abs=1e-6)
        assert line.std == pytest.approx(np.std(seeds, axis=0, ddof=1)[order], abs=1e-6)


def test_several_runs_share_the_axes(linear, causal, tmp_path):
    data = figure_data("feature-norms", [linear, causal])
    assert list(by_label(data.panels[0])) == ["joint", "de-confound"]
    again = made_run(tmp_path / "b", DIGITS, shuffle=True, title="other")
    labels = list(by_label(figure_data("weight-norms", [causal, again]).panels[0]))
    assert labels == ["tde: de-confound", "tde: tde", "other: de-confound", "other: tde"]
    other = made_run(tmp_path / "c", DIGITS[::-1], linear=True)
    with pytest.raises(InputError, match=r"/c: expected a run of the same data .*, got digits-lt with other published"):
        figure_data("feature-norms", [linear, other])


def test_confusion_counts_groups(linear):
    counts, rng = ClassCounts((200, 150, 50, 5, 4)), np.random.default_rng(0)
    labels, predicted = np.repeat(np.arange(4), (1, 5, 3, 4)), rng.integers(0, 5, 13)  # class 4 has no sample
    groups = [[0, 1], [2], [3, 4]]
    for true, row in zip(groups, group_confusion(predicted, labels, counts), strict=True):
        of_class = [[np.mean(np.isin(predicted[labels == c], g)) for g in groups] for c in true if (labels == c).any()]
        assert row == pytest.approx(100 * np.mean(of_class, axis=0))
        assert row.sum() == pytest.approx(100)

    data = figure_data("confusion", [linear])
    assert [panel.title for panel in data.panels] == ["joint", "ncm", "tau-norm", "crt"]
    assert data.groups == ("many (1)", "medium (3)", "few (6)")
    each = []
    for seed in linear.seeds:
        store = seed.stores.test()
        each.append(group_confusion(store.logits.argmax(axis=1), store.labels, seed.published))
    assert data.panels[0].mean == pytest.approx(np.mean(each, axis=0))
    assert data.panels[0].std == pytest.approx(np.std(each, axis=0, ddof=1), abs=1e-9)
    assert not np.allclose(data.panels[0].mean, data.panels[1].mean)


def test_reliability_is_accuracy_by_confidence(linear):
    data = figure_data("reliability", [linear])
    panel = data.panels[0]
    accuracy, share, errors = np.full((2, 15), np.nan), np.zeros((2, 15)), []
    for s, seed in enumerate(linear.seeds):
        store = seed.stores.test()
        p = np.exp(store.logits.astype(np.float64))
        p /= p.sum(axis=1, keepdims=True)
        bins = np.ceil(p.max(axis=1) * 15).astype(int) - 1
        for b in range(15):
            share[s, b] = 100 * np.mean(bins == b)
            if (bins == b).any():
                accuracy[s, b] = 100 * np.mean((p.argmax(axis=1) == store.labels)[bins == b])
        errors.append(expected_calibration_error(p, store.labels))
    known = ~np.isnan(accuracy).all(axis=0)
    assert known.sum() > 2
    assert panel.accuracy.mean[known] == pytest.approx(np.nanmean(accuracy[:, known], axis=0))
    assert np.isnan(panel.accuracy.mean[~known]).all()
    assert panel.share == pytest.approx(share.mean(axis=0))
    assert panel.title == f"joint\nECE {statistics.fmean(errors):.1f} ± {statistics.stdev(errors):.1f} %"
    assert data.edges == pytest.approx(np.arange(16) * 100 / 15)


def test_sampling_needs_counts_alone(causal):
    source = Source(causal.run, lambda seed: pytest.fail("no model is needed"))
    data = figure_data("sampling", [source])
    left, right = (by_label(panel) for panel in data.panels)
    n = np.array(DIGITS, dtype=float)
    assert [line.mean for line in left.values()] == [pytest.approx(n**q / sum(n**q)) for q in (1.0, 0.5, 0.0)]
    assert list(right) == [f"progressive, epoch {t} of 60" for t in (0, 15, 30, 45, 60)]
    mixed = 0.75 * n / n.sum() + 0.25 / 10
    assert right["progressive, epoch 15 of 60"].mean == pytest.approx(mixed)
    assert data.log
    assert not data.show_counts
    with pytest.raises(InputError, match="sampling is made from one run"):
        figure_data("sampling", [source, source])


def test_classifiers_by_sampler_are_the_rows_of_the_results(linear, tmp_path):
    other = made_run(tmp_path / "b", DIGITS, linear=True, shuffle=True, sampler="class-balanced", title="b")
    data = figure_data("classifiers-by-sampler", [linear, other])
    assert data.names == ("joint", "ncm", "tau-norm", "crt")
    assert [panel.title for panel in data.panels] == ["many (1)", "medium (3)", "few (6)", "all"]
    for panel, group in zip(data.panels, ("many", "medium", "few", "all"), strict=True):
        assert [line.label for line in panel.lines] == ["instance", "class-balanced"]
        for line, source in zip(panel.lines, (linear, other), strict=True):
            expect_line(line, [[r["rows"][m][group] for m in data.names] for r in source.results])
    with pytest.raises(InputError, match="expected one run with joint under the sampler instance, got"):
        figure_data("classifiers-by-sampler", [linear, linear.__class__(linear.run, linear.open_seed)])


def test_one_dimensional_rates_are_those_of_its_densities():
    data = figure_data("one-dimensional", [])
    step = data.x[1] - data.x[0]
    for panel in data.panels:
        right_of = data.x > panel.boundary
        head, tail = 100 * panel.head[right_of].sum() * step, 100 * panel.tail[~right_of].sum() * step
        assert panel.right == pytest.approx({"head": head, "tail": tail, "mean": (head + tail) / 2}, abs=2.0)
        assert panel.head.sum() * step == pytest.approx(1, abs=0.01)
    conventional, one_stage, two_stage, tde = data.panels
    assert two_stage.right == tde.right
    assert conventional.right["tail"] < one_stage.right["tail"] < tde.right["tail"]
    assert two_stage.boundary == pytest.approx(np.log(50))
    even = figures.one_dimensional(ratio=1.0, worse=1.0).panels
    assert all(panel.right == pytest.approx(even[0].right) for panel in even)  # nothing to remove


def test_one_seed_and_an_empty_group(thousand):
    data = figure_data("alpha", [thousand])
    assert [line.label for line in data.panels[0].lines] == ["many (621)", "medium (379)", "few (0)", "all (1000)"]
    assert np.isnan(data.panels[0].lines[2].mean).all()
    assert all(line.std is None for panel in data.panels for line in panel.lines)
    assert "single run, seed 0" in data.caption
    assert np.isnan(figure_data("confusion", [thousand]).panels[0].mean[2]).all()


def test_titles_say_data_method_seeds_and_protocol(causal, tmp_path):
    fewer = made_run(tmp_path, DIGITS, shuffle=True, seeds=1, title="other")
    assert figure_data("feature-norms", [causal, fewer]).caption == (
        "digits-lt, imbalance ratio 50; de-confound; tde: mean ± std over seeds 0, 1; other: single run, seed 0; "
        "protocol clean; test images"
    )
    assert figure_data("alpha", [causal]).caption == (
        "digits-lt, imbalance ratio 50; de-confound, tde; mean ± std over seeds 0, 1; protocol clean"
    )


def test_what_a_run_lacks_is_named(linear, causal):
    for name, source, needed in (
        ("alpha", linear, "a cosine, capsule or causal classifier, this run trained linear"),
        ("head-cosine", linear, r"a head direction \(classifier cosine, capsule or causal\), this run trained linear"),
        ("norm-power", causal, "a linear classifier, this run trained causal"),
    ):
        with pytest.raises(InputError, match=f"{source.run.path}: figure {name} needs {needed}"):
            figure_data(name, [source])
    with pytest.raises(InputError, match="figure: alpha expected at least one run folder, got none"):
        figure_data("alpha", [])
    with pytest.raises(InputError, match="one-dimensional is made from no run"):
        figure_data("one-dimensional", [causal])


# ---- what is drawn

NEEDS = {"norm-power": "linear", "classifiers-by-sampler": "linear", "weight-norms": "linear", "one-dimensional": None}


@pytest.fixture(scope="module")
def drawn(linear, causal, thousand):
    """Every figure of 10 classes, and some of 1,000: {name: (data, figure)}."""
    kinds = {"linear": [linear], "causal": [causal], None: []}
    data = {name: figure_data(name, kinds[NEEDS.get(name, "causal")]) for name in FIGURES}
    for name in ("alpha", "weight-norms", "sampling", "confusion"):
        data[f"{name}, 1000"] = figure_data(name, [thousand])
    return {name: (content, draw(content)) for name, content in data.items()}


def panels_of(figure):
    return [axis for axis in figure.axes if axis.get_visible() and axis.get_label() != "counts"]


@pytest.mark.parametrize("name", ["alpha", "alpha, 1000", "norm-power"])
def test_curves_hold_their_values(drawn, name):
    data, figure = drawn[name]
    for axis, panel in zip(panels_of(figure), data.panels, strict=True):
        lines, marks = axis.lines[: len(panel.lines)], axis.lines[len(panel.lines) :]
        for line, shown in zip(panel.lines, lines, strict=True):
            np.testing.assert_array_equal(shown.get_xdata(), data.x)
            np.testing.assert_array_equal(shown.get_ydata(), line.mean)
            assert shown.get_label() == line.label
        assert [mark.get_xdata()[0] for mark in marks] == list(panel.marks)
        bands = axis.collections
        assert len(bands) == (0 if panel.lines[0].std is None else len(panel.lines))
        for line, band in zip(panel.lines, bands, strict=False):
            (low, high), top = band.get_datalim(axis.transData).intervaly, line.mean + line.std
            assert (low, high) == pytest.approx((min(line.mean - line.std), max(top)))


@pytest.mark.parametrize(
    "name",
    ["weight-norms", "weight-norms, 1000", "feature-norms", "head-cosine", "sampling", "sampling, 1000"],
)
def test_per_class_figures_hold_their_values(drawn, name):
    data, figure = drawn[name]
    ranks = np.arange(1, len(data.counts) + 1)
    for axis, panel in zip(panels_of(figure), data.panels, strict=True):
        shown = [line for line in axis.lines if len(line.get_xdata()) == len(ranks)]
        values = [line for line in shown if line.get_marker() == "."] or shown
        assert len(shown) == len(panel.lines) * (2 if len(ranks) > 50 else 1)
        for line, drawn_line in zip(panel.lines, values, strict=True):
            np.testing.assert_array_equal(drawn_line.get_xdata(), ranks)
            np.testing.assert_array_equal(drawn_line.get_ydata(), line.mean)
        assert axis.get_legend_handles_labels()[1] == [line.label for line in panel.lines]
    counts = [axis for axis in figure.axes if axis.get_label() == "counts"]
    assert len(counts) == data.show_counts
    for axis in counts:
        np.testing.assert_array_equal(axis.patches[0].get_data().values, data.counts)
    groups = [f"{group} ({size})" for group, size in data.group_sizes.items() if size]
    assert [text.get_text() for text in panels_of(figure)[0].texts] == groups


def test_running_mean_is_of_the_neighbours():
    values = np.random.default_rng(0).normal(size=100)
    values[3:12] = np.nan
    slow = [
        np.nanmean(near) if (~np.isnan(near := values[max(0, i - 2) : i + 3])).any() else np.nan for i in range(100)
    ]
    np.testing.assert_allclose(running_mean(values), slow)


@pytest.mark.parametrize("name", ["confusion", "confusion, 1000"])
def test_confusions_hold_their_values(drawn, name):
    data, figure = drawn[name]
    for axis, panel in zip(panels_of(figure), data.panels, strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array().filled(np.nan), panel.mean)
        spread = np.full((3, 3), np.nan) if panel.std is None else panel.std
        cells = [
            "-" if np.isnan(m) else f"{m:.1f}" if np.isnan(s) else f"{m:.1f}\n± {s:.1f}"
            for m, s in zip(panel.mean.ravel(), spread.ravel(), strict=True)
        ]
        assert [text.get_text() for text in axis.texts] == cells


def test_reliability_bars_and_steps_hold_their_values(drawn):
    data, figure = drawn["reliability"]
    for axis, panel in zip(panels_of(figure), data.panels, strict=True):
        bars = [bar for bar in axis.patches if hasattr(bar, "get_height")]
        np.testing.assert_array_equal([bar.get_height() for bar in bars], panel.accuracy.mean)
        np.testing.assert_allclose([bar.get_x() for bar in bars], data.edges[:-1])
        (steps,) = [patch for patch in axis.patches if hasattr(patch, "get_data")]
        np.testing.assert_array_equal(steps.get_data().values, panel.share)
        assert axis.get_title(loc="left") == panel.title


def test_categories_hold_their_values(drawn):
    data, figure = drawn["classifiers-by-sampler"]
    for axis, panel in zip(panels_of(figure), data.panels, strict=True):
        for container, line in zip(axis.containers, panel.lines, strict=True):
            np.testing.assert_array_equal(container.lines[0].get_ydata(), line.mean)
            heights = [np.ptp(segment[:, 1]) for segment in container.lines[2][0].get_segments()]
            np.testing.assert_allclose(heights, 2 * line.std, atol=1e-9)
        assert [tick.get_text() for tick in axis.get_xticklabels()] == list(data.names)


def test_illustration_holds_its_values(drawn):
    data, figure = drawn["one-dimensional"]
    for axis, panel in zip(panels_of(figure), data.panels, strict=True):
        shown = {line.get_label(): line for line in axis.lines}
        np.testing.assert_array_equal(shown["head class"].get_ydata(), panel.head)
        np.testing.assert_array_equal(shown["tail class"].get_ydata(), panel.tail)
        assert shown["decision boundary"].get_xdata()[0] == panel.boundary
        assert axis.get_ylim()[1] > max(panel.head)  # nothing is cut off


def overlapping(boxes):
    return [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]


def shown_ticks(side):
    """Labels of the ticks within view; matplotlib keeps others, which it does not draw."""
    low, high = side.get_view_interval()
    near = [tick for tick in side.get_major_ticks() if low * (1 - 1e-9) <= tick.get_loc() <= high * (1 + 1e-9)]
    labels = [label for tick in near for label in (tick.label1, tick.label2)]
    return [label for label in labels if label.get_visible() and label.get_text()]


def test_nothing_overlaps_and_nothing_is_clipped(drawn):
    for name, (data, figure) in drawn.items():
        figure.draw_without_rendering()
        whole = figure.bbox
        heading = figure._suptitle
        assert heading.get_text().replace("\n", " ") == f"{data.title} {data.caption}", name
        texts = [heading, *figure.legends]
        for axis in figure.axes:
            if not axis.get_visible():
                continue
            ticks = [shown_ticks(side) for side in (axis.xaxis, axis.yaxis)]
            for some in (*ticks, axis.texts):
                boxes = [text.get_window_extent() for text in some if text.get_text()]
                turned = any(text.get_rotation() % 90 for text in some)
                assert turned or not overlapping(boxes), (name, [t.get_text() for t in some])
            texts += [*axis.texts, *ticks[0], *ticks[1], axis.xaxis.label, axis.yaxis.label, axis._left_title]
            assert not axis._left_title.get_window_extent().overlaps(heading.get_window_extent()), name
        for text in texts:
            box = text.get_window_extent()
            inside = box.x0 >= whole.x0 - 1 and box.x1 <= whole.x1 + 1 and box.y0 >= -1 and box.y1 <= whole.y1 + 1
            assert box.width == 0 or inside, (name, text)


@pytest.mark.parametrize("sizes", [(995, 2, 3), (2, 3, 995), (500, 2, 498), (0, 998, 2)])
def test_narrow_groups_keep_their_names_apart(sizes):
    counts, names = np.repeat((500, 50, 3), sizes), tuple(map(str, range(1000)))
    lines = (Panel("", (Line("a", np.ones(1000)),)),)
    figure = draw(PerClass("t", "c", "y", names, counts, dict(zip(GROUPS, sizes, strict=True)), lines))
    figure.draw_without_rendering()
    (axis,) = panels_of(figure)
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == sum(size > 0 for size in sizes)
    assert not overlapping(boxes)
    assert min(box.x0 for box in boxes) > axis.bbox.x0 - 5
    assert max(box.x1 for box in boxes) < axis.bbox.x1 + 5


def test_class_names_are_text_and_not_too_long():
    counts = np.repeat((500, 50, 3), (5, 2, 3))
    strange = (
        "<b>$x$</b>",
        "a" * 200,
        "\U0001f600 cat",
        "\u05e9\u05dc\u05d5\u05dd",
        "e",
        "f",
        "g",
        "h",
        "i",
        "$\\frac$",
    )
    data = PerClass("$a$", "100 % _x_", "y", strange, counts, {"many": 5, "medium": 2, "few": 3},
                    (Panel("", (Line("a", np.ones(10)),)),))  # fmt: skip
    shown = [text.get_text() for text in panels_of(draw(data))[0].get_xticklabels()]
    assert shown[:2] == ["<b>$x$</b>", "a" * 13 + "…"]
    assert set(rendered(data, ("png", "svg"))) == {"png", "svg"}


def test_a_figure_is_the_same_bytes_again(causal):
    data = figure_data("feature-norms", [causal])
    files = rendered(data, ("png", "svg"))
    time.sleep(1.1)  # a date in the file would show
    assert rendered(data, ("png", "svg")) == files
    assert files["png"].startswith(b"\x89PNG")
    assert files["svg"].startswith(b"<?xml")


def test_a_thousand_classes_are_a_file_of_bearable_size(drawn):
    assert len(rendered(drawn["weight-norms, 1000"][0], ("svg",))["svg"]) < 300_000


# ---- the command


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plot") / "run"
    with pytest.raises(SystemExit) as stopped:
        main(["train", "digits-lt/tde", "stages.0.epochs=1", "--seeds", "1", "--out", str(folder), "--json"])
    assert not stopped.value.code
    return folder


def plot(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["plot", *map(str, arguments)])
    out, err = capsys.readouterr()
    return stopped.value.code or 0, out, err


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


def test_plot_refuses_in_one_line_and_writes_nothing(digits, tmp_path, capsys):
    out = tmp_path / "a"
    for arguments, why in (
        ([digits, "--figure", "alpah"], "figure: unknown value 'alpah'; did you mean 'alpha'?"),
        ([digits, "--figure", "norm-power", "--out", out], f"{digits}: figure norm-power needs a linear classifier"),
        ([digits, "--figure", "alpha", "--out", f"{out}.pdf"], "out: expected a name that ends in .png or .svg"),
        ([digits, "--figure", "alpha", "--out", tmp_path / "no/a"], f"{tmp_path}/no/a.png: cannot write (No such file"),
        ([tmp_path, "--figure", "alpha"], f"{tmp_path}: expected a run folder with recipe.json"),
        (["--figure", "alpha"], "figure: alpha expected at least one run folder, got none"),
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
    assert err == "tailwise: plot: expected the package matplotlib; pip install 'tailwise[plots]'\n"
    assert list(tmp_path.iterdir()) == []


def test_importing_the_drawing_loads_neither_matplotlib_nor_torch():
    script = "import sys, tailwise.report.figures; print(sorted({'matplotlib', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
