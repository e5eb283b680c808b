"""Panels side by side: curves, categories, matrices, reliability, densities."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tailwise.report.figures.data import Categories, Confusions, Curves, Illustration, Reliabilities
from tailwise.report.figures.style import GREY, band, look


def draw_curves(axes: Sequence[Any], data: Curves) -> None:
    """Lines over x, their spread as bands; dotted lines at the marks."""
    for axis, panel in zip(axes, data.panels, strict=True):
        for number, line in enumerate(panel.lines):
            shown = look(number)
            axis.plot(data.x, line.mean, label=line.label, markevery=max(1, len(data.x) // 10), **shown)
            band(axis, data.x, line, shown["color"])
        for mark in panel.marks:
            axis.axvline(mark, color=GREY, linestyle=":", linewidth=1.2)
        if data.is_change:
            axis.axhline(0, color=GREY, linewidth=0.8)
        if data.x_is_momentum:  # as far apart as the steps are that it averages over, 1 / (1 - momentum)
            axis.set_xscale(
                "function", functions=(lambda m: -np.log1p(-np.minimum(m, 0.9999)), lambda t: -np.expm1(-t))
            )
            axis.set_xticks(data.x, [f"{x:g}" for x in data.x])
        axis.set_title(panel.title)
        axis.set_xlabel(data.x_label)
        axis.margins(x=0.01)
    axes[0].set_ylabel(data.y_label)
    if not data.is_change:
        axes[0].set_ylim(-3, 103)  # percent; a spread may say more


def draw_categories(axes: Sequence[Any], data: Categories) -> None:
    """Points with error bars, those of one name beside one another."""
    places = np.arange(len(data.names))
    for axis, panel in zip(axes, data.panels, strict=True):
        offsets = np.linspace(-0.25, 0.25, len(panel.lines)) if len(panel.lines) > 1 else [0.0]
        for number, (line, offset) in enumerate(zip(panel.lines, offsets, strict=True)):
            shown = look(number) | {"linestyle": ""}
            axis.errorbar(places + offset, line.mean, yerr=line.std, label=line.label, capsize=2, elinewidth=1, **shown)
        axis.set_xticks(places, data.names, rotation=30, ha="right", rotation_mode="anchor")
        axis.set_xlim(-0.5, len(data.names) - 0.5)
        axis.set_title(panel.title)
        axis.set_xlabel(data.x_label)
    axes[0].set_ylabel(data.y_label)


def draw_confusions(axes: Sequence[Any], data: Confusions) -> None:
    """Matrices with their percents written in."""
    places = range(len(data.groups))
    for axis, panel in zip(axes, data.panels, strict=True):
        axis.imshow(np.ma.masked_invalid(panel.mean), vmin=0, vmax=100, cmap="Blues")
        axis.set_facecolor("#f0f0f0")
        for true in places:
            for predicted in places:
                value = panel.mean[true, predicted]
                spread = np.nan if panel.std is None else panel.std[true, predicted]
                text = "-" if np.isnan(value) else f"{value:.1f}"
                text += "" if np.isnan(spread) else f"\n± {spread:.1f}"
                axis.text(predicted, true, text, ha="center", va="center", color="white" if value > 55 else "black")
        axis.set_xticks(places, [name.replace(" ", "\n") for name in data.groups])
        axis.set_yticks(places, [name.replace(" ", "\n") for name in data.groups])
        axis.grid(False)
        axis.set_title(panel.title)
        axis.set_xlabel("predicted class is of")
        axis.set_ylabel("true class is of")


def draw_reliabilities(axes: Sequence[Any], data: Reliabilities) -> None:
    """Bars of accuracy by confidence, steps of the share of samples, the diagonal."""
    left, width = data.edges[:-1], np.diff(data.edges)
    for axis, panel in zip(axes, data.panels, strict=True):
        axis.bar(left, panel.accuracy.mean, width, align="edge", color="#56B4E9", edgecolor="#0072B2", label="accuracy")
        if panel.accuracy.std is not None:
            axis.errorbar(
                left + width / 2, panel.accuracy.mean, panel.accuracy.std, fmt="none", color="#0072B2", elinewidth=1
            )
        axis.plot((0, 100), (0, 100), color="#000000", linestyle="--", linewidth=1, label="as confident as right")
        axis.stairs(panel.share, data.edges, color="#D55E00", linewidth=1.3, label="share of samples")
        axis.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence in %", ylabel="%")
        axis.set_title(panel.title)


def draw_illustration(axes: Sequence[Any], data: Illustration) -> None:
    """Two densities and where they are cut; dotted, as they were."""
    for axis, panel in zip(axes, data.panels, strict=True):
        if panel.before is not None:
            for density, colour in zip(panel.before, ("#0072B2", "#D55E00"), strict=True):
                axis.plot(data.x, density, color=colour, linestyle=":", linewidth=1.2)
        for name, density, colour, dash in (
            ("head", panel.head, "#0072B2", "-"),
            ("tail", panel.tail, "#D55E00", "--"),
        ):
            axis.plot(data.x, density, color=colour, linestyle=dash, label=f"{name} class")
            axis.fill_between(data.x, density, color=colour, alpha=0.15, linewidth=0)
        if panel.boundary_before is not None:
            axis.axvline(panel.boundary_before, color="#000000", linestyle=":", linewidth=1.2)
        axis.axvline(panel.boundary, color="#000000", label="decision boundary")
        right = ", ".join(f"{name} {value:.0f} %" for name, value in panel.right.items())
        axis.set_title(f"{panel.title}\nright: {right}")
        axis.set_xlabel(data.x_label)
        axis.set_yticks([])
        axis.margins(x=0)
    axes[0].set_ylim(bottom=0)  # of all: y is shared
