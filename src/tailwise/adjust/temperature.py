"""Temperature scaling: make an adjusted classifier's probabilities mean what they say (Guo et al. 2017)."""

import math

import torch
from torch import Tensor

from tailwise import checks
from tailwise.adjust.nearest_mean import class_labels
from tailwise.adjust.unseen import refuse_masked
from tailwise.classifiers import FoldedClassifier
from tailwise.evaluate.prior_shift import Prior, prior_weights
from tailwise.shapes import Float, Int

ROWS = 1024  # a block of logits that stays in the cache
LOWEST, HIGHEST = 0.01, 100.0


@torch.no_grad()
def fit_temperature(
    logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"], *, target_prior: Prior | None = None
) -> float:
    """The T of least cross-entropy of softmax(logits / T): one number, so that no prediction changes.

    Cross-entropy is convex in 1 / T, and its minimum is found by Newton's method, kept between the bounds that its
    slope gives. Temperature comes after an adjustment, which changes what the logits say.

    Args:
        logits: of validation samples, adjusted, [N, C]; -inf for a class that is never predicted.
        labels: the truth, [N].
        target_prior: class frequencies the probabilities are meant for, [C]: each sample weighs q_y / n_y. None: as
            the samples are.

    Returns:
        T in [0.01, 100]. The lowest where every sample is right, since there surer is always better; the highest
        where the logits say nothing.

    Raises:
        InputError: NaN or +inf, a label whose logit is -inf, a prior that does not sum to 1 or has no sample.

    Limit case: logits times s give T times s.

    >>> fit_temperature(torch.tensor([[8.0, 0.0], [8.0, 0.0], [8.0, 0.0], [8.0, 0.0]]), torch.tensor([0, 0, 0, 1]))
    7.28...
    """
    checks.predictable("logits", logits.float().cpu().numpy())
    if len(labels) != len(logits) or not len(labels):
        raise checks.InputError(
            f"labels: expected one for each of {len(logits)} logits, at least one, got {len(labels)}"
        )
    labels = class_labels(labels, logits.shape[1], logits.device)
    weight = torch.full((len(labels),), 1 / len(labels), dtype=torch.float64, device=logits.device)
    if target_prior is not None:
        q = checks.prior("target_prior", target_prior, logits.shape[1])
        weight = torch.from_numpy(prior_weights(labels.cpu().numpy(), q)).to(logits.device)
    used = weight > 0
    z, labels, weight = logits[used], labels[used], weight[used]
    refuse_masked(z, labels)

    low, high = 1 / HIGHEST, 1 / LOWEST
    if _derivatives(z, labels, weight, high)[0] <= 0:  # all right: no minimum; or flat, as next to beta = 0, too
        return LOWEST if _derivatives(z, labels, weight, 1e-300)[0] < 0 else HIGHEST
    if _derivatives(z, labels, weight, low)[0] >= 0:
        return HIGHEST
    beta = 1.0
    for _ in range(100):
        slope, curvature = _derivatives(z, labels, weight, beta)
        low, high = (low, beta) if slope > 0 else (beta, high)
        step = beta - slope / curvature if curvature > 0 else math.inf
        new = step if low < step < high else math.sqrt(low * high)
        if abs(new - beta) <= 1e-7 * beta:
            break
        beta = new
    return 1 / beta


@torch.no_grad()
def fold_temperature(classifier: FoldedClassifier, temperature: float) -> FoldedClassifier:
    """The classifier whose logits are those of `classifier` divided by `temperature`.

    Raises:
        InputError: a temperature that is not above 0.

    Limit case: temperature 1 is a copy.

    >>> classifier = tailwise.classifiers.FoldedClassifier(torch.eye(2))
    >>> fold_temperature(classifier, 2.0)(torch.tensor([[3.0, 4.0]]))
    tensor([[1.5000, 2.0000]])
    """
    checks.number("temperature", temperature, above=0)
    return FoldedClassifier(
        classifier.weight / temperature,
        num_heads=classifier.num_heads,
        norm=classifier.norm,
        bias=None if classifier.bias is None else classifier.bias / temperature,
        center=classifier.center,
    )


def _derivatives(z: Tensor, labels: Tensor, weight: Tensor, beta: float) -> tuple[float, float]:
    """Of the weighted cross-entropy of beta * z by beta: E_p[z] - z_y and the variance of z under p, averaged."""
    slope = curvature = 0.0
    for part, target, w in zip(*(torch.split(t, ROWS) for t in (z, labels, weight)), strict=True):
        part = (part - part.max(dim=1, keepdim=True).values).double()
        p = (beta * part).softmax(dim=1)
        part = part.nan_to_num(neginf=0.0)  # its p is 0, and 0 times -inf would be NaN
        mean = (p * part).sum(dim=1)
        slope += float(w @ (mean - part.gather(1, target[:, None])[:, 0]))
        curvature += float(w @ ((p * part**2).sum(dim=1) - mean**2))
    return slope, curvature
