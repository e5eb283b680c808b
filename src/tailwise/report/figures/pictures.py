"""What a model looks at in an image, and what classifiers of two features decide where."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tailwise.report.figures.data import Regions, Sights
from tailwise.report.figures.style import COLOURS, MARKERS, shortened

OVERLAY = "#D55E00"
LONGEST_LINE = 22  # characters above an image


def draw_sights(axes: Sequence[Any], data: Sights) -> None:
    """The image in grey, and over it a colour, the less transparent the more a place speaks for the class."""
    from matplotlib.colors import ListedColormap, to_rgb

    overlay = ListedColormap([(*to_rgb(OVERLAY), 0.85 * share) for share in np.linspace(0, 1, 256)])
    for axis, panel in zip(axes, data.panels, strict=True):
        grey = panel.image if panel.image.ndim == 2 else panel.image @ (0.299, 0.587, 0.114)  # its luma
        shown = panel.image if panel.where is None else grey
        axis.imshow(shown, cmap="gray", vmin=0, vmax=1)
        if panel.where is not None:
            axis.imshow(panel.where, cmap=overlay, vmin=0, vmax=1)
        axis.set_axis_off()
        axis.set_title("\n".join(shortened(line, LONGEST_LINE) for line in panel.title.split("\n")), fontsize=7.5)


def draw_regions(axes: Sequence[Any], data: Regions) -> None:
    """A pale colour for what each class owns, and the training samples."""
    from matplotlib.colors import ListedColormap, to_rgb

    classes = range(len(data.names))
    pale = ListedColormap([tuple(0.7 + 0.3 * v for v in to_rgb(COLOURS[c % len(COLOURS)])) for c in classes])
    half_x, half_y = (data.x[1] - data.x[0]) / 2, (data.y[1] - data.y[0]) / 2  # of a pixel about each point
    extent = (data.x[0] - half_x, data.x[-1] + half_x, data.y[0] - half_y, data.y[-1] + half_y)
    for axis, panel in zip(axes, data.panels, strict=True):
        axis.imshow(panel.predicted, origin="lower", extent=extent, cmap=pale, vmin=-0.5, vmax=len(data.names) - 0.5)
        for c in classes:
            points = data.points[data.labels == c]
            axis.scatter(
                points[:, 0],
                points[:, 1],
                s=12,
                marker=MARKERS[c % len(MARKERS)],
                color=COLOURS[c % len(COLOURS)],
                edgecolor="white",
                linewidth=0.4,
                label=data.names[c],
            )
        axis.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
        axis.spines[:].set_visible(False)
        axis.set_title(panel.title)
