"""Adjusting at ImageNet-LT's size: sweeps against two evaluations of the classifier, and cRT on stored features.

    python benchmarks/adjust.py             # sweeps, about a minute
    python benchmarks/adjust.py --crt       # cRT for 10 epochs on 115,846 x 2,048 features, some minutes
    python benchmarks/adjust.py --crt --converged   # and for 40, to see what it converges to

Each ratio compares two timings taken in turn in this process; absolute times depend on the machine and its neighbours.
"""

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tailwise.adjust import (
    ALPHAS,
    NORM_POWERS,
    fit_crt,
    predictions_by_alpha,
    predictions_by_norm_power,
    tau_norm_components,
    tde_components,
)
from tailwise.classifiers import CausalClassifier, LinearClassifier

N, D, C = 20_000, 2_048, 1_000
REPEATS = 3


def seconds(work: Callable[[], object]) -> float:
    """The least of some timings: what the work takes when nobody disturbs it."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def sweeps() -> None:
    """Time both sweeps and print their ratio to evaluating the classifier twice and an argmax for every value."""
    features = torch.rand(N, D, generator=torch.Generator().manual_seed(0))
    causal, linear = CausalClassifier(D, C), LinearClassifier(D, C)
    causal(features[:512])
    causal.eval()
    logits = linear(features)

    def alphas() -> object:
        return predictions_by_alpha(tde_components(features, causal))

    def powers() -> object:
        return predictions_by_norm_power(tau_norm_components(features, linear))

    for name, count, work, evaluate in (
        ("51 alphas", len(ALPHAS), alphas, causal),
        ("21 powers", len(NORM_POWERS), powers, linear),
    ):
        swept, evaluated = seconds(work), seconds(lambda e=evaluate: e(features))
        argmax = seconds(lambda: logits.argmax(dim=1))
        ratio = swept / (2 * evaluated + count * argmax)
        print(
            f"{name} on {N:,} x {D:,}, {C:,} classes: {swept:.2f} s, {ratio:.2f} x (two evaluations of the "
            f"{type(evaluate).__name__}, {evaluated:.2f} s each, and {count} argmaxes, {argmax:.3f} s each)"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process: {peak:.2f} GB")


def long_tailed(num_samples: int, generator: torch.Generator) -> Tensor:
    """Labels with ImageNet-LT's profile: 1,280 images of the largest class, 5 of the smallest."""
    sizes = np.maximum(5, 1280 * np.exp(-np.linspace(0, 5.55, C)) * num_samples / 115_846)
    labels = torch.from_numpy(np.repeat(np.arange(C), np.round(sizes * num_samples / sizes.sum()).astype(int)))
    return labels[torch.randperm(len(labels), generator=generator)]


def features_of(labels: Tensor, means: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    """Features after a ReLU, with a common mean, class means, and noise along 200 shared and all single directions."""
    features = torch.empty(len(labels), D)
    for part, target in zip(torch.split(features, 4096), torch.split(labels, 4096), strict=True):
        shared = torch.randn(len(target), len(noise), generator=generator) @ noise
        part.copy_(0.3 + means[target] + shared + 0.4 * torch.randn(len(target), D, generator=generator)).relu_()
    return features


def crt(converged: bool) -> None:
    """Time cRT and print its accuracy on a balanced test set."""
    generator = torch.Generator().manual_seed(0)
    means = 0.08 * torch.randn(C, D, generator=generator)
    noise = 0.05 * torch.randn(200, D, generator=generator)
    labels = long_tailed(115_846, generator)
    features = features_of(labels, means, noise, generator)
    test_labels = torch.arange(C).repeat_interleave(20)
    test = features_of(test_labels, means, noise, generator)
    for epochs in (10, 40) if converged else (10,):
        start = time.perf_counter()
        classifier = fit_crt(features, labels, C, epochs=epochs)
        taken = time.perf_counter() - start
        accuracy = 100 * (classifier(test).argmax(dim=1) == test_labels).double().mean()
        print(
            f"cRT, {epochs} epochs on {len(labels):,} x {D:,}: {taken:.0f} s on {torch.get_num_threads()} threads, "
            f"balanced test accuracy {accuracy:.2f} %",
            flush=True,
        )


def main() -> None:
    """Time what is asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crt", action="store_true")
    parser.add_argument("--converged", action="store_true")
    arguments = parser.parse_args()
    if arguments.crt:
        crt(arguments.converged)
    else:
        sweeps()


if __name__ == "__main__":
    main()
