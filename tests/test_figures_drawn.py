"""Figures as drawn: the axes against the data, and nothing in the way of anything."""

import time

import numpy as np
import pytest

from figures_made import DIGITS, made_run
from tailwise.counts import GROUPS
from tailwise.figures import FIGURES, figure_data
from tailwise.report.figures import Line, Panel, PerClass, Region, Regions, Seen, Sights, draw, rendered, running_mean


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


LONG = ("remote controller of a television", "\U0001f600 <b>cat</b>", *(f"class {c} " * 25 for c in range(8)))


@pytest.fixture(scope="module")
def drawn(linear, causal, thousand, tmp_path_factory):
    """Every figure of 10 classes, and some of 1,000 and of long names: {name: (data, figure)}."""
    folder = tmp_path_factory.mktemp("others")
    slow = made_run(folder / "slow", DIGITS, linear=True, shuffle=True, momentum=0.0, salt=1, title="slow")
    wide = made_run(folder / "wide", DIGITS, linear=True, shuffle=True, backbone="digits-net-two-branch", salt=2)
    long = made_run(folder / "long", DIGITS, linear=True, names=LONG)
    sources = {
        "norm-power": [linear],
        "weight-norms": [linear],
        "classifiers-by-sampler": [linear],
        "momentum": [slow, linear],
        "backbones": [linear, wide],
        "one-dimensional": [],
    }
    here = {"grad-cam": sights(), "decision-regions": regions()}  # of what needs no images and no training
    data = {n: here[n] if n in here else figure_data(n, sources.get(n, [causal])) for n in FIGURES}
    for name in ("alpha", "weight-norms", "feature-norms", "sampling", "confusion"):
        data[f"{name}, 1000"] = figure_data(name, [thousand])
        if name != "alpha":
            data[f"{name}, long names"] = figure_data(name, [long])
    return {name: (content, draw(content)) for name, content in data.items()}


def sights():
    """Two rows of a coloured image, a method that sees something, and one that sees nothing; names of any length."""
    rng = np.random.default_rng(0)
    rows = [
        (
            Seen(f"{LONG[row]}\n{row + 2} training images", rng.random((8, 8, 3))),
            Seen(f"tde, alpha 0.8\nsays {LONG[1 - row]}, wrong", rng.random((8, 8, 3)), rng.random((8, 8))),
            Seen("lws\nsays 3, right", rng.random((8, 8)), np.zeros((8, 8))),
        )
        for row in range(2)
    ]
    return Sights("Where", "a caption", 3, tuple(panel for row in rows for panel in row))


def regions():
    rng = np.random.default_rng(1)
    x, y, points, labels = np.linspace(-1, 1, 20), np.linspace(0, 1, 10), rng.random((30, 2)), np.arange(30) % 3
    panels = tuple(Region(f"{name}\nright: 9 %", rng.integers(0, 3, (10, 20))) for name in ("a", "b", "c", "d", "e"))
    return Regions("Who decides what", "a caption", ("n = 5", "n = 4", "n = 3"), x, y, points, labels, panels)


def panels_of(figure):
    return [axis for axis in figure.axes if axis.get_visible() and axis.get_label() != "counts"]


@pytest.mark.parametrize("name", ["alpha", "alpha, 1000", "norm-power", "momentum"])
def test_curves_hold_their_values(drawn, name):
    data, figure = drawn[name]
    for axis, panel in zip(panels_of(figure), data.panels, strict=True):
        lines, marks = axis.lines[: len(panel.lines)], axis.lines[len(panel.lines) + data.is_change :]
        for line, shown in zip(panel.lines, lines, strict=True):
            np.testing.assert_array_equal(shown.get_xdata(), data.x)
            np.testing.assert_array_equal(shown.get_ydata(), line.mean)
            assert shown.get_label() == line.label
        assert [mark.get_xdata()[0] for mark in marks] == list(panel.marks)
        bands = axis.collections
        assert len(bands) == (0 if panel.lines[0].std is None else len(panel.lines))
        for line, band in zip(panel.lines, bands, strict=False):
            if np.isnan(line.mean + line.std).any():  # a group of which nothing is right has no relative change
                continue
            (low, high), top = band.get_datalim(axis.transData).intervaly, line.mean + line.std
            assert (low, high) == pytest.approx((min(line.mean - line.std), max(top)))


@pytest.mark.parametrize(
    "name",
    ["weight-norms", "weight-norms, 1000", "feature-norms", "head-cosine", "sampling", "sampling, long names"],
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


@pytest.mark.parametrize("name", ["classifiers-by-sampler", "backbones"])
def test_categories_hold_their_values(drawn, name):
    data, figure = drawn[name]
    for axis, panel in zip(panels_of(figure), data.panels, strict=True):
        for container, line in zip(axis.containers, panel.lines, strict=True):
            np.testing.assert_array_equal(container.lines[0].get_ydata(), line.mean)
            heights = [np.ptp(segment[:, 1]) for segment in container.lines[2][0].get_segments()]
            np.testing.assert_allclose(heights, 2 * line.std, atol=1e-9)
        assert [tick.get_text() for tick in axis.get_xticklabels()] == list(data.names)


def test_momenta_are_apart_as_far_as_their_steps(drawn):
    data, figure = drawn["momentum"]
    (axis,) = panels_of(figure)
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0", "0.9"]
    for momentum in (0.5, 0.75, 0.9):  # 1 / (1 - momentum) twice as large, the same way further
        places = axis.transData.transform([(m, 0) for m in (0.0, 0.5, momentum)])[:, 0]
        steps = np.log2(1 / (1 - momentum))
        assert places[2] - places[0] == pytest.approx(steps * (places[1] - places[0]))
    low, high = axis.get_ylim()
    assert low < 0 < high
    assert axis.lines[len(data.panels[0].lines)].get_ydata()[0] == 0


def test_sights_lie_over_their_images(drawn):
    data, figure = drawn["grad-cam"]
    shown = panels_of(figure)
    assert len({axis.get_position().y0.round(3) for axis in shown}) == 2  # a row for each image
    for axis, panel in zip(shown, data.panels, strict=True):
        if panel.where is None:
            np.testing.assert_array_equal(axis.images[0].get_array(), panel.image)
            continue
        grey = panel.image if panel.image.ndim == 2 else panel.image @ (0.299, 0.587, 0.114)
        below, above = axis.images
        np.testing.assert_allclose(below.get_array(), grey)
        np.testing.assert_array_equal(above.get_array(), panel.where)
        clear, full = above.cmap(0), above.cmap(255)
        assert clear[3] == 0  # nothing there: the image alone
        assert full[3] > 0.8
        assert above.get_clim() == (0, 1)
    assert shown[0].get_title(loc="left").split("\n")[0] == "remote controller of …"


def test_regions_hold_their_values(drawn):
    data, figure = drawn["decision-regions"]
    for axis, panel in zip(panels_of(figure), data.panels, strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), panel.predicted)
        left, right, bottom, top = axis.images[0].get_extent()
        assert (left + right, bottom + top) == pytest.approx((0, 1))
        assert (right - left) / 20 == pytest.approx(data.x[1] - data.x[0])  # a pixel about each point of the grid
        assert (top - bottom) / 10 == pytest.approx(data.y[1] - data.y[0])
        for c, points in enumerate(axis.collections):
            np.testing.assert_array_equal(points.get_offsets(), data.points[data.labels == c])
            owned = axis.images[0].cmap(axis.images[0].norm(c))
            strong = points.get_facecolor()[0]
            np.testing.assert_allclose(owned[:3], 0.7 + 0.3 * strong[:3], atol=1e-6)
            assert points.get_label() == data.names[c]


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
