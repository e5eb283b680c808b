"""Two classes on one axis, computed."""

import math

import numpy as np

from tailwise import checks
from tailwise.report.figures import Illustration, Situation, Values


def one_dimensional(separation: float = 1.2, ratio: float = 50.0, worse: float = 0.7) -> Illustration:
    """Two classes on one axis: what re-balancing (NDE) and TDE do to a classifier (Tang et al. 2020, Fig. 7).

    A head and a tail class are N(+m, 1) and N(-m, 1). The classifier that is best on training data has the logit
    z = 2 m x + log(ratio), cut at 0: log(ratio) is what training prefers the head by. Two-stage re-balancing cuts the
    same z at log(ratio); TDE takes log(ratio) from z and cuts at 0: the same decisions. One-stage re-balancing has
    z = 2 m' x, with m' = worse * m: that its features are worse is the paper's claim, an assumption here.

    Args:
        separation: m.
        ratio: training images of the head class for each of the tail class.
        worse: m' / m, at most 1.

    >>> conventional, _, two_stage, tde = one_dimensional().panels
    >>> two_stage.right == tde.right, conventional.right["tail"] < tde.right["tail"]
    (True, True)
    """
    m, offset = checks.number("separation", separation, above=0), math.log(checks.number("ratio", ratio, above=0))
    least = checks.number("worse", worse, above=0) * m
    reach = 2 * m * m + 3.2 * 2 * m
    z = np.linspace(-reach, reach + offset, 401)

    def densities(m: float, shift: float) -> tuple[Values, Values]:
        head, tail = (_normal((z - shift - mean) / (2 * m)) / (2 * m) for mean in (2 * m * m, -2 * m * m))
        return head, tail

    def right(m: float, beyond: float) -> dict[str, float]:
        """Percent right of a cut that lies `beyond` the middle of both classes, to the head's side."""
        head, tail = _below(m - beyond / (2 * m)), _below(m + beyond / (2 * m))
        return {"head": 100 * head, "tail": 100 * tail, "mean": 50 * (head + tail)}

    trained = densities(m, offset)
    panels = (
        Situation("conventional", *trained, 0.0, right(m, -offset)),
        Situation("one-stage re-balancing", *densities(least, 0.0), 0.0, right(least, 0.0)),
        Situation("two-stage re-balancing (NDE)", *trained, offset, right(m, 0.0), boundary_before=0.0),
        Situation("total direct effect (TDE)", *densities(m, 0.0), 0.0, right(m, 0.0), before=trained),
    )
    caption = (
        f"computed, no run: N(+{m:g}, 1) and N(-{m:g}, 1), imbalance ratio {ratio:g}; one-stage features "
        f"{worse:g} as far apart, by assumption; dotted: before; right: of balanced test data"
    )
    return Illustration("A head and a tail class in one dimension", caption, "logit", z, panels)


def _normal(x: Values) -> Values:
    return np.asarray(np.exp(-x * x / 2) / math.sqrt(2 * math.pi))


def _below(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))
