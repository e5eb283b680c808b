"""Ratios that a design decision promises, measured in pairs in one run."""

import statistics
import time

import torch

from tailwise import CausalClassifier, CosineClassifier, fold_tde


def test_folded_tde_is_no_slower_than_the_cosine_classifier():
    """The folded classifier normalizes features only; a cosine classifier normalizes its weights as well."""
    torch.manual_seed(0)
    features = torch.rand(8, 1024)
    causal, cosine = CausalClassifier(1024, 4000), CosineClassifier(1024, 4000).eval()
    causal(features)
    folded = fold_tde(causal, 1.5)

    def seconds(classifier):
        start = time.perf_counter()
        classifier(features)
        return time.perf_counter() - start

    with torch.inference_mode():
        ratios = [seconds(folded) / seconds(cosine) for _ in range(40)]
    assert statistics.median(ratios) < 1
