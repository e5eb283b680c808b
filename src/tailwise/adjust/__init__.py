"""What is done to a trained model, with no gradient to its backbone."""

from tailwise.adjust.background import background_exempted
from tailwise.adjust.search import ALPHAS, Sweep, sweep_alpha
from tailwise.adjust.total_direct_effect import fold_tde, head_cosine, tde, tde_components, tde_logits

__all__ = [
    "ALPHAS",
    "Sweep",
    "background_exempted",
    "fold_tde",
    "head_cosine",
    "sweep_alpha",
    "tde",
    "tde_components",
    "tde_logits",
]
