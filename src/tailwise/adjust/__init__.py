"""What is done to a trained model, with no gradient to its backbone."""

from tailwise.adjust.background import background_exempted
from tailwise.adjust.choose import (
    Chosen,
    choose_method,
    choose_with_interval,
    cross_fitted_predictions,
    heuristic_alpha,
)
from tailwise.adjust.combine import STRENGTHS, Alone, Combination, combine, fold_combination
from tailwise.adjust.counterfactual import counterfactual_tde
from tailwise.adjust.fslwf import fit_fslwf
from tailwise.adjust.grad_cam import grad_cam
from tailwise.adjust.mean_direction import fold_mean_direction
from tailwise.adjust.nearest_mean import class_means, fit_ncm
from tailwise.adjust.priors import adjust_logits, fold_logit_adjustment, log_prior_components
from tailwise.adjust.relearn import fit_crt, fit_lws, fold_linear, learn_linear, relearn
from tailwise.adjust.search import (
    ALPHAS,
    NORM_POWERS,
    TEMPERATURES,
    Sweep,
    choose,
    predictions_by_alpha,
    predictions_by_norm_power,
    predictions_by_temperature,
    sweep_alpha,
    sweep_norm_power,
    sweep_temperature,
)
from tailwise.adjust.streaming import Streamed
from tailwise.adjust.tau_norm import fold_tau_norm, learn_norm_power, tau_norm_components, tau_norm_weight
from tailwise.adjust.temperature import fit_temperature, fold_temperature
from tailwise.adjust.total_direct_effect import fold_tde, head_cosine, tde, tde_components, tde_logits
from tailwise.adjust.unseen import mask_unseen

__all__ = [
    "ALPHAS",
    "NORM_POWERS",
    "STRENGTHS",
    "TEMPERATURES",
    "Alone",
    "Chosen",
    "Combination",
    "Streamed",
    "Sweep",
    "adjust_logits",
    "background_exempted",
    "choose",
    "choose_method",
    "choose_with_interval",
    "class_means",
    "combine",
    "counterfactual_tde",
    "cross_fitted_predictions",
    "fit_crt",
    "fit_fslwf",
    "fit_lws",
    "fit_ncm",
    "fit_temperature",
    "fold_combination",
    "fold_linear",
    "fold_logit_adjustment",
    "fold_mean_direction",
    "fold_tau_norm",
    "fold_tde",
    "fold_temperature",
    "grad_cam",
    "head_cosine",
    "heuristic_alpha",
    "learn_linear",
    "learn_norm_power",
    "log_prior_components",
    "mask_unseen",
    "predictions_by_alpha",
    "predictions_by_norm_power",
    "predictions_by_temperature",
    "relearn",
    "sweep_alpha",
    "sweep_norm_power",
    "sweep_temperature",
    "tau_norm_components",
    "tau_norm_weight",
    "tde",
    "tde_components",
    "tde_logits",
]
