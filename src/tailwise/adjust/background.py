"""Background-exempted inference (Tang et al. 2020, Eq. 9 and appendix C)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tailwise import checks
from tailwise.shapes import Float


def background_exempted(
    logits: Float[Tensor, "N C"], tde_logits: Float[Tensor, "N C"], *, background: int | Sequence[int] = 0
) -> Float[Tensor, "N C"]:
    """Probabilities that keep the exempt classes' own and share the rest as TDE does (Tang et al. 2020, Eq. 9).

    With p = softmax(logits) and q = softmax(tde_logits): p_i for a class i of `background`, and
    (1 - p_bg) * q_i / (1 - q_bg) for the others. Computed in log space.

    Args:
        logits: Eq. 7, [N, C].
        tde_logits: Eq. 8, [N, C].
        background: the class, or the several classes, whose head bias is legitimate; each in 0..C-1.

    Returns:
        Probabilities [N, C]; each row sums to 1.

    Raises:
        InputError: logits of different shapes, a class outside 0..C-1, no class at all.

    Limit cases: tde_logits = logits (alpha = 0) returns p; every class exempt returns p.

    >>> y = torch.tensor([[2.0, 1.0, 0.0]])
    >>> background_exempted(y, y - torch.tensor([[9.0, 1.0, 0.0]]), background=0)
    tensor([[0.6652, 0.1674, 0.1674]])
    """
    exempt = [int(background)] if isinstance(background, int | np.integer) else list(background)
    num_classes = logits.shape[1]
    if logits.shape != tde_logits.shape:
        raise checks.InputError(
            f"tde_logits: expected the shape of logits, {list(logits.shape)}, got {list(tde_logits.shape)}"
        )
    if not exempt or not all(0 <= c < num_classes for c in exempt):
        raise checks.InputError(f"background: expected classes in 0..{num_classes - 1}, got {background!r}")

    log_p, log_q = logits.log_softmax(dim=1), tde_logits.log_softmax(dim=1)
    is_exempt = torch.zeros(num_classes, dtype=torch.bool, device=logits.device)
    is_exempt[exempt] = True
    if is_exempt.all():
        return log_p.exp()
    log_share = log_p[:, ~is_exempt].logsumexp(dim=1, keepdim=True)  # log (1 - p_bg), exact where p_bg is near 1
    log_q_rest = log_q[:, ~is_exempt].logsumexp(dim=1, keepdim=True)
    log_q_rest = log_q_rest.where(log_q_rest > -torch.inf, 0)  # all of the rest masked: each of it stays 0
    return torch.where(is_exempt, log_p, log_share + (log_q - log_q_rest)).exp()
