"""What each figure of `tailwise plot` shows, computed from runs; `report.figures` draws it.

Where there are classes, they go from head to tail: by published training images, most first. Values are means over
seeds, with their spread.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from tailwise import checks
from tailwise.experiments.trained import AS_IT_IS, Asked
from tailwise.figures.files import check_ending, default_place, write_figure
from tailwise.figures.grad_cam import grad_cam_panels, grad_cams
from tailwise.figures.one_dimensional import one_dimensional
from tailwise.figures.per_class import feature_norms, head_cosines, sampling, weight_norms
from tailwise.figures.predictions import confusion, reliabilities
from tailwise.figures.regions import decision_regions
from tailwise.figures.several import backbones, classifiers_by_sampler, momentum
from tailwise.figures.source import Source, check_same_data, with_rows
from tailwise.figures.strengths import alpha, norm_power
from tailwise.report.figures import FigureData

FIGURES: dict[str, Callable[[Sequence[Source]], FigureData]] = {
    "alpha": alpha,
    "norm-power": norm_power,
    "momentum": momentum,
    "weight-norms": weight_norms,
    "feature-norms": feature_norms,
    "head-cosine": head_cosines,
    "confusion": confusion,
    "reliability": reliabilities,
    "grad-cam": grad_cams,
    "sampling": sampling,
    "classifiers-by-sampler": classifiers_by_sampler,
    "backbones": backbones,
    "decision-regions": lambda _: decision_regions(),
    "one-dimensional": lambda _: one_dimensional(),
}
OF_ROWS = ("weight-norms", "confusion", "reliability", "grad-cam")  # of any method, at any strength
OF_NO_RUN = ("decision-regions", "one-dimensional")

__all__ = [
    "FIGURES",
    "OF_NO_RUN",
    "OF_ROWS",
    "Source",
    "check_ending",
    "decision_regions",
    "default_place",
    "figure_data",
    "grad_cam_panels",
    "one_dimensional",
    "write_figure",
]


def figure_data(
    name: str, sources: Sequence[Source], methods: Sequence[str] = (), asked: Asked = AS_IT_IS
) -> FigureData:
    """The data of a figure, one of `FIGURES`.

    Args:
        name: of the figure.
        sources: the runs, all of the same data.
        methods: the rows to show, in a figure of rows (`OF_ROWS`); what the runs report if none.
        asked: how strong the rows are, or what that is chosen by.

    Raises:
        InputError: an unknown name, no run where one is needed, runs of different data, a run (named) without what the
            figure needs, a method or strength that the runs or the figure do not have.
    """
    checks.choice("figure", name, FIGURES)
    _check_asked(name, methods, asked)
    if name in OF_NO_RUN:
        if sources:
            raise checks.InputError(f"figure: {name} is made from no run, got {sources[0].run.path}")
        return FIGURES[name](())
    if not sources:
        raise checks.InputError(f"figure: {name} expected at least one run folder, got none")
    check_same_data(sources)
    if name in OF_ROWS and (methods or asked != AS_IT_IS):
        sources = with_rows(sources, methods, asked)
    elif asked != AS_IT_IS:
        sources = [replace(source, asked=asked) for source in sources]
    return FIGURES[name](sources)


def _check_asked(name: str, methods: Sequence[str], asked: Asked) -> None:
    """Refuse an option that a figure would not look at."""
    given = {"method": methods or None, "alpha": asked.alpha, "power": asked.power, "metric": asked.metric}
    for option, value in given.items():
        fitting = [*OF_ROWS, "alpha", "norm-power"] if option == "metric" else OF_ROWS
        if value is not None and name not in fitting:
            raise checks.InputError(f"{option}: expected a figure of {', '.join(fitting)}, got {name}")
