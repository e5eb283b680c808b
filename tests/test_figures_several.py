"""Figures of runs that differ in one setting, and of classifiers trained for the figure itself."""

import statistics

import numpy as np
import pytest

from figures_made import DIGITS, expect_line, made_run
from tailwise import InputError, figures
from tailwise.figures import Source, figure_data


@pytest.fixture(scope="module")
def momenta(tmp_path_factory):
    """Under 0.98, 0 and 0.9, in no order; accuracies as they come."""
    folder, rng = tmp_path_factory.mktemp("momenta"), np.random.default_rng(0)
    sources = [
        made_run(folder / f"{m}", DIGITS, linear=True, shuffle=True, momentum=m, title=f"m-{100 * m:.0f}", salt=salt)
        for salt, m in enumerate((0.98, 0.0, 0.9))
    ]
    for source in sources:
        for result in source.results:
            result["rows"]["joint"] |= {group: rng.uniform(30, 90) for group in ("many", "medium", "few", "all")}
    return sources


def test_momentum_is_change_from_the_largest(momenta):
    data = figure_data("momentum", momenta)
    assert data.x.tolist() == [0.0, 0.9, 0.98]
    order = [momenta[1], momenta[2], momenta[0]]
    (panel,) = data.panels
    for line, group in zip(panel.lines, ("many", "medium", "few", "all"), strict=True):
        assert line.label.startswith(f"{group} (")
        seeds = []
        for number in range(2):
            at = [source.results[number]["rows"]["joint"][group] for source in order]
            seeds.append([100 * (value - at[-1]) / at[-1] for value in at])
        expect_line(line, seeds)
        assert line.mean[-1] == 0
    base = statistics.fmean(result["rows"]["joint"]["all"] for result in momenta[0].results)
    assert panel.lines[-1].label == f"all (10): {base:.1f} % at 0.98"
    assert len({tuple(line.mean) for line in panel.lines}) > 2
    assert data.caption.endswith("learning rate 0.2")


def test_momentum_needs_runs_that_differ_in_it_alone(momenta, tmp_path):
    first = momenta[0]
    with pytest.raises(InputError, match=r"momentum expected runs of one method under at least two momenta, got 0\.98"):
        figure_data("momentum", [first])
    with pytest.raises(InputError, match=r"expected one run with momentum 0\.98, got"):
        figure_data("momentum", [first, Source(first.run, first.open_seed)])
    other = made_run(tmp_path / "a", DIGITS, shuffle=True, momentum=0.5)
    with pytest.raises(InputError, match=r"got 0\.98, 0\.5 of joint, de-confound"):
        figure_data("momentum", [first, other])
    fewer = made_run(tmp_path / "b", DIGITS, linear=True, shuffle=True, seeds=1, momentum=0.5)
    with pytest.raises(InputError, match=r"/b: expected the seeds and subsets of .*, got others"):
        figure_data("momentum", [first, fewer])


def test_a_group_without_a_hit_has_no_relative_change(momenta, monkeypatch):
    base, other, _ = (source.results for source in momenta)
    monkeypatch.setitem(base[0]["rows"]["joint"], "few", 0.0)
    few = figure_data("momentum", momenta).panels[0].lines[2]
    second = other[1]["rows"]["joint"]["few"] / base[1]["rows"]["joint"]["few"]
    assert few.mean[0] == pytest.approx(100 * (second - 1))
    assert np.isnan(few.std[0])


def test_backbones_are_the_rows_of_the_results(momenta, tmp_path):
    first = momenta[0]
    two = made_run(tmp_path / "b", DIGITS, linear=True, shuffle=True, backbone="digits-net-two-branch", salt=3)
    data = figure_data("backbones", [first, two])
    assert data.names == ("digits-net", "digits-net-two-branch")
    assert data.x_label == "backbone"
    for panel, group in zip(data.panels, ("many", "medium", "few", "all"), strict=True):
        assert [line.label for line in panel.lines] == ["joint", "ncm", "tau-norm", "crt"]
        for line in panel.lines:
            rows = [[s.results[k]["rows"][line.label][group] for s in (first, two)] for k in range(2)]
            expect_line(line, rows)
    with pytest.raises(InputError, match="expected one run with joint under the backbone digits-net, got"):
        figure_data("backbones", momenta)


# ---- trained here and now


@pytest.fixture(scope="module")
def regions():
    return figures.decision_regions()


def test_regions_are_what_the_classifiers_decide(regions):
    """Nearest class means, computed again at every tenth point of the grid."""
    means = np.stack([regions.points[regions.labels == c].mean(axis=0) for c in range(5)])
    ncm = next(panel for panel in regions.panels if panel.title.startswith("NCM"))
    for i in range(0, len(regions.y), 10):
        for j in range(0, len(regions.x), 10):
            point = np.array([regions.x[j], regions.y[i]])
            cosines = [point @ mean / np.sqrt(mean @ mean) for mean in means]
            close = sorted(cosines)[-1] - sorted(cosines)[-2] < 1e-3
            assert close or ncm.predicted[i, j] == int(np.argmax(cosines))
    assert np.bincount(regions.labels).tolist() == [250, 100, 40, 15, 5]
    assert regions.names == ("n = 250", "n = 100", "n = 40", "n = 15", "n = 5")


def test_a_class_owns_a_cone(regions):
    """No classifier has a bias, so that doubling a point changes no decision."""
    inner = np.flatnonzero(abs(regions.x) < 2.2)
    outer = [int(np.argmin(abs(regions.x - 2 * regions.x[i]))) for i in inner]
    for panel in regions.panels:
        near, far = panel.predicted[np.ix_(inner, inner)], panel.predicted[np.ix_(outer, outer)]
        assert (near == far).mean() > 0.97  # the grid has no point at exactly twice a point
        assert set(np.unique(panel.predicted)) == {0, 1, 2, 3, 4}


def test_normalized_weights_give_the_rarest_class_more(regions):
    shares = {p.title.split("\n")[0]: (p.predicted == 4).mean() for p in regions.panels}
    assert shares["joint"] < shares["tau-norm, power 0.5"] < shares["tau-norm, power 1"]
    assert shares["joint"] < min(shares["cRT"], shares["LWS"], shares["NCM"])


def test_regions_are_the_same_again(regions):
    for panel, same in zip(regions.panels, figures.decision_regions().panels, strict=True):
        np.testing.assert_array_equal(panel.predicted, same.predicted)
        assert panel.title == same.title
