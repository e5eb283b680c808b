"""tailwise: recognition when classes are long-tailed.

Importing this package has no side effects and loads nothing; a public name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailwise.adjust import (
        adjust_logits,
        background_exempted,
        counterfactual_tde,
        fit_crt,
        fit_fslwf,
        fit_lws,
        fit_ncm,
        fold_logit_adjustment,
        fold_tau_norm,
        fold_tde,
        tde,
        tde_components,
        tde_logits,
    )
    from tailwise.attachment import attach, detach_adjusted
    from tailwise.checks import InputError
    from tailwise.classifiers import (
        CapsuleClassifier,
        CausalClassifier,
        CosineClassifier,
        FeatureAverage,
        LinearClassifier,
    )
    from tailwise.counts import ClassCounts
    from tailwise.deployment.deployed import load_deployed
    from tailwise.evaluate import Store
    from tailwise.experiments.compare import compare
    from tailwise.experiments.measure import load_model
    from tailwise.train import Stage, fit

_HOME = {
    "CapsuleClassifier": "tailwise.classifiers",
    "CausalClassifier": "tailwise.classifiers",
    "ClassCounts": "tailwise.counts",
    "CosineClassifier": "tailwise.classifiers",
    "FeatureAverage": "tailwise.classifiers",
    "InputError": "tailwise.checks",
    "LinearClassifier": "tailwise.classifiers",
    "Stage": "tailwise.train",
    "Store": "tailwise.evaluate",
    "adjust_logits": "tailwise.adjust",
    "attach": "tailwise.attachment",
    "background_exempted": "tailwise.adjust",
    "compare": "tailwise.experiments.compare",
    "counterfactual_tde": "tailwise.adjust",
    "detach_adjusted": "tailwise.attachment",
    "fit": "tailwise.train",
    "fit_crt": "tailwise.adjust",
    "fit_fslwf": "tailwise.adjust",
    "fit_lws": "tailwise.adjust",
    "fit_ncm": "tailwise.adjust",
    "fold_logit_adjustment": "tailwise.adjust",
    "fold_tau_norm": "tailwise.adjust",
    "fold_tde": "tailwise.adjust",
    "load_deployed": "tailwise.deployment.deployed",
    "load_model": "tailwise.experiments.measure",
    "tde": "tailwise.adjust",
    "tde_components": "tailwise.adjust",
    "tde_logits": "tailwise.adjust",
}

__all__ = [
    "CapsuleClassifier",
    "CausalClassifier",
    "ClassCounts",
    "CosineClassifier",
    "FeatureAverage",
    "InputError",
    "LinearClassifier",
    "Stage",
    "Store",
    "adjust_logits",
    "attach",
    "background_exempted",
    "compare",
    "counterfactual_tde",
    "detach_adjusted",
    "fit",
    "fit_crt",
    "fit_fslwf",
    "fit_lws",
    "fit_ncm",
    "fold_logit_adjustment",
    "fold_tau_norm",
    "fold_tde",
    "load_deployed",
    "load_model",
    "tde",
    "tde_components",
    "tde_logits",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tailwise' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
