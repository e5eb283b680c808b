"""The data of figures, against metrics computed again here."""

import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from figures_made import DIGITS, D, by_label, expect_line, head_to_tail, made_run
from tailwise import ClassCounts, InputError, adjust, figures
from tailwise.evaluate import expected_calibration_error, group_confusion, shot_accuracy
from tailwise.experiments import measure
from tailwise.experiments.runs import Run
from tailwise.experiments.trained import Asked, Trained
from tailwise.figures import Source, figure_data
from tailwise.recognizer import Recognizer


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
    powers = [seed.row("tau-norm")["norm_power"]["value"] for seed in linear.seeds]
    tau_norm = f"tau-norm, power {min(powers):g} to {max(powers):g}"
    assert list(lines) == ["joint", "ncm", tau_norm, "crt"]

    def norms(weight):
        return [sum(float(v) ** 2 for v in row) ** 0.5 for row in weight.detach()]

    def tau_normed(seed):
        power = seed.row("tau-norm")["norm_power"]["value"]
        return adjust.fold_tau_norm(seed.model.classifier, power).weight

    expect_line(lines["joint"], [norms(seed.model.classifier.weight) for seed in linear.seeds], order)
    expect_line(lines[tau_norm], [norms(tau_normed(seed)) for seed in linear.seeds], order)
    assert lines["ncm"].mean == pytest.approx(np.ones(10), abs=1e-6)
    assert lines["joint"].mean[0] > 2 * lines["joint"].mean[-1]
    assert data.counts.tolist() == list(DIGITS)
    assert data.names == tuple(map(str, order))
    assert dict(data.group_sizes) == {"many": 1, "medium": 3, "few": 6}

    lines = by_label(figure_data("weight-norms", [causal]).panels[0])
    alphas = [seed.row("tde")["alpha"]["value"] for seed in causal.seeds]
    folded = [adjust.fold_tde(s.model.classifier, a).weight for s, a in zip(causal.seeds, alphas, strict=True)]
    expect_line(
        lines[f"tde, alpha {min(alphas):g} to {max(alphas):g}"],
        [norms(weight) for weight in folded],
        head_to_tail(causal),
    )
    expect_line(lines["de-confound"], [norms(s.model.classifier.weight) for s in causal.seeds], head_to_tail(causal))


def test_a_classifier_of_several_layers_has_no_weight_norms(linear, monkeypatch):
    usual = Trained.made
    layers = torch.nn.Sequential(torch.nn.Linear(D, D), torch.nn.Linear(D, 10))

    def made(seed, method, asked):
        one = usual(seed, method)
        return replace(one, model=Recognizer(one.model.backbone, layers)) if method == "crt" else one

    monkeypatch.setattr(Trained, "made", made)
    data = figure_data("weight-norms", [linear])
    assert [name.split(",")[0] for name in by_label(data.panels[0])] == ["joint", "ncm", "tau-norm"]
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
    labels = [name.split(",")[0] for name in by_label(figure_data("weight-norms", [causal, again]).panels[0])]
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
    assert [panel.title.split(",")[0] for panel in data.panels] == ["joint", "ncm", "tau-norm", "crt"]
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


def test_runs_of_one_recipe_go_by_their_folders(tmp_path):
    several, one, deep = (
        made_run(tmp_path / folder, DIGITS, seeds=seeds)
        for folder, seeds in (("a/wide", 2), ("a/deep", 1), ("b/deep", 1))
    )
    data = figure_data("feature-norms", [several, one])
    assert "; wide: mean ± std over seeds 0, 1; deep: single run, seed 0; " in data.caption
    assert {line.label.split(":")[0] for line in data.panels[0].lines} == {"wide", "deep"}
    labels = {line.label for line in figure_data("feature-norms", [one, deep]).panels[0].lines}
    assert labels == {f"{tmp_path}/a/deep: de-confound", f"{tmp_path}/b/deep: de-confound"}


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


# ---- of asked rows, as strong as is asked


def test_a_row_at_a_strength_is_that_of_evaluate(linear, causal):
    """Confusion, reliability and norms of any method, at any strength, as `tailwise evaluate` measures it."""
    asked = Asked(alpha=2.5, power=0.25)
    data = figure_data("confusion", [linear, causal], ["tde", "tau-norm"], asked)
    assert [panel.title for panel in data.panels] == ["tau-norm, power 0.25", "tde, alpha 2.5"]
    for panel, source, method in zip(data.panels, (linear, causal), ("tau-norm", "tde"), strict=True):
        rows = [measure.measure(seed, [method], asked)["rows"][method] for seed in source.seeds]
        # of the one class of group many, all that stay in the group are right
        assert panel.mean[0, 0] == pytest.approx(statistics.fmean(row["many"] for row in rows))
    fold = [adjust.fold_tde(seed.model.classifier, 2.5) for seed in causal.seeds]
    each = []
    for seed, classifier in zip(causal.seeds, fold, strict=True):
        store = seed.stores.test()
        predicted = classifier(torch.tensor(store.features)).argmax(dim=1).numpy()
        each.append(group_confusion(predicted, store.labels, seed.published))
    assert data.panels[1].mean == pytest.approx(np.mean(each, axis=0))
    norms = figure_data("weight-norms", [causal], asked=Asked(alpha=2.5)).panels[0]
    assert [line.label for line in norms.lines] == ["de-confound", "tde, alpha 2.5"]
    assert norms.lines[1].mean[0] == pytest.approx(
        np.mean([f.weight.norm(dim=1)[head_to_tail(causal)[0]].item() for f in fold])
    )
    assert "de-confound" not in data.caption


def test_a_strength_adds_the_method_it_belongs_to(linear):
    other = Source(
        Run(linear.run.path, linear.run.recipe.model_copy(update={"methods": ("joint",)}), linear.run.seeds),
        linear.open_seed,
    )
    titles = [
        panel.title.split("\n")[0] for panel in figure_data("reliability", [other], asked=Asked(power=1.0)).panels
    ]
    assert titles == ["joint", "crt", "tau-norm, power 1"]  # crt, for it is kept
    assert [p.title.split("\n")[0] for p in figure_data("reliability", [other], ["ncm"]).panels] == ["ncm"]


@pytest.mark.parametrize(
    ("figure", "options", "message"),
    [
        ("confusion", (["tdee"],), "method: unknown value 'tdee'; did you mean 'tde'"),
        ("confusion", (["tde"],), "method: expected one of these runs, as joint, ncm, tau-norm, crt, got 'tde'"),
        ("confusion", (["lws"],), "method: expected one of these runs, .*, got 'lws'"),  # nothing was trained
        ("confusion", ((), Asked(alpha=1.0)), "alpha: expected a method that has one, got joint, ncm, tau-norm, crt"),
        ("confusion", (["joint"], Asked(power=1.0)), "power: expected a method that has one, got joint"),
        (
            "confusion",
            (["joint"], Asked(metric="few")),
            "metric: expected a method whose strength is chosen, got joint",
        ),
        ("feature-norms", (["joint"],), "method: expected a figure of weight-norms, .*, got feature-norms"),
        ("sampling", ((), Asked(alpha=1.0)), "alpha: expected a figure of weight-norms, .*, got sampling"),
        ("one-dimensional", ((), Asked(metric="few")), "metric: expected a figure of .* norm-power, got one-dim"),
    ],
)
def test_options_that_a_figure_has_no_use_for_are_refused(linear, figure, options, message):
    with pytest.raises(InputError, match=message):
        figure_data(figure, [linear], *options)


def test_a_curve_marks_what_the_metric_chooses(linear):
    """`--metric` of the figures of strengths: another criterion, another value pointed out."""
    for metric in ("mean-per-class", "many"):
        data = figure_data("norm-power", [linear], asked=Asked(metric=metric))
        curves = [measure.strength_curve(seed, "tau-norm", Asked(metric=metric)) for seed in linear.seeds]
        assert data.panels[0].marks == tuple(sorted({curve["chosen"]["value"] for curve in curves}))
