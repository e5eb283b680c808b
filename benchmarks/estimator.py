"""The scikit-learn estimator: what fit costs and how far from convergence it ends, streams, alpha, auto.

    python benchmarks/estimator.py cost             # fit at 100,000 x 512, 1,000 classes: about a minute
    python benchmarks/estimator.py cost --converge  # and L-BFGS from there to convergence: much longer
    python benchmarks/estimator.py small            # the same with --converge at 25,000 x 256, 500 classes
    python benchmarks/estimator.py choices          # streams, alpha and auto on digits and made data, some minutes
    python benchmarks/estimator.py logistic         # logit adjustment against logistic regression on digits, seconds
    python docs/tables.py                           # then: the tables of docs/own_features.md

Each part writes its own place in results/estimator.json. One thread: CPU seconds, beside the bare matrix products of
the same steps, timed in the same process.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from torch.nn import functional as F

import adjust
import records
from tailwise.data.long_tail import frozen_order, long_tailed_counts
from tailwise.estimator import METHODS, LongTailClassifier

RECORD = records.RESULTS / "estimator.json"
SIZES = {"cost": (100_000, 512, 1_000), "small": (25_000, 256, 500)}
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


# ------------------------------------------------------------------------------------------------------------- cost


def long_tailed_features(size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Features after a ReLU with a long tail of classes, as benchmarks/adjust.py makes them."""
    samples, adjust.D, adjust.C = size
    generator = torch.Generator().manual_seed(0)
    means = 0.16 * torch.randn(adjust.C, adjust.D, generator=generator)
    noise = 0.05 * torch.randn(50, adjust.D, generator=generator)
    labels = adjust.long_tailed(samples, generator)
    return adjust.features_of(labels, means, noise, generator), labels


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of this process, whoever else is at work on the machine."""
    start = time.process_time()
    work()
    return time.process_time() - start


def loss_of(classifier: nn.Module, x: Tensor, y: Tensor, *, backward: bool = False) -> float:
    """Mean cross-entropy over all samples; leaves its gradient, if asked."""
    total = 0.0
    for part, target in zip(x.split(4096), y.split(4096), strict=True):
        with torch.set_grad_enabled(backward):
            loss = F.cross_entropy(classifier(part), target, reduction="sum") / len(y)
        if backward:
            loss.backward()
        total += float(loss.detach())
    return total


def converged(classifier: nn.Module, x: Tensor, y: Tensor, steps: int) -> float:
    """The loss where full-batch L-BFGS from these weights no longer moves."""
    optimizer = torch.optim.LBFGS(
        classifier.parameters(), max_iter=steps, history_size=20, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        return loss_of(classifier, x, y, backward=True)

    optimizer.step(closure)
    return loss_of(classifier, x, y)


def cost(size: tuple[int, int, int], steps: int) -> dict[str, Any]:
    """Time fit with default settings; `steps` of L-BFGS after it, if any."""
    x, y = long_tailed_features(size)
    model = LongTailClassifier(random_state=0)
    record: dict[str, Any] = {"size": [*x.shape, size[2]], "epochs": model.epochs}
    record["cpu_seconds"] = cpu_seconds(lambda: model.fit(x.numpy(), y.numpy()))
    classifier = model.stream_.classifier
    batch, weight = x[:1000], classifier.weight.detach()
    logits = batch @ weight.T
    products = cpu_seconds(lambda: [(batch @ weight.T, logits.T @ batch) for _ in range(20)]) / 20
    record["products_cpu_seconds"] = products * model.epochs * len(x) / 1000
    record["loss"] = loss_of(classifier, x, y)
    if steps:
        record["steps"], record["converged_loss"] = steps, converged(classifier, x, y, steps)
    return record


# ---------------------------------------------------------------------------------------------------------- choices


def digits(seed: int) -> Split:
    """scikit-learn's digits as 64 features: 110 to 2 training images a class, 50 of each to test."""
    x, y = load_digits(return_X_y=True)
    orders = frozen_order(y.astype(np.int64), "digits-features", seed)
    counts = long_tailed_counts(10, 110, 50)
    train = np.concatenate([order[64 : 64 + n] for order, n in zip(orders, counts, strict=True)])
    test = np.concatenate([order[:50] for order in orders])
    return x[train] / 16, y[train], x[test] / 16, y[test]


def made(num_classes: int, width: int, top: int, ratio: float) -> Callable[[int], Split]:
    """Gaussian classes after a ReLU, `top` training samples of the largest, 20 of each to test."""

    def split(seed: int) -> Split:
        random = np.random.default_rng(seed)
        means = random.normal(size=(num_classes, width))
        sizes = np.maximum(2, top * ratio ** (-np.arange(num_classes) / (num_classes - 1))).astype(int)
        labels = np.repeat(np.arange(num_classes), sizes), np.repeat(np.arange(num_classes), 20)
        x, test = (np.maximum(0.9 * means[y] + random.normal(size=(len(y), width)) + 0.7, 0) for y in labels)
        return x, labels[0], test, labels[1]

    return split


DATA = {
    "digits": digits,
    "4 classes": made(4, 12, 90, 9),
    "10 classes": made(10, 24, 150, 50),
}


def streamed(x: np.ndarray, y: np.ndarray, passes: int) -> LongTailClassifier:
    """Ten chunks, `passes` times."""
    model = LongTailClassifier(random_state=0)
    for _ in range(passes):
        for chunk in np.array_split(np.random.default_rng(0).permutation(len(y)), 10):
            model.partial_fit(x[chunk], y[chunk], classes=np.unique(y))
    return model


def choices(data: Callable[[int], Split], seeds: range) -> dict[str, list[float]]:
    """Balanced accuracy on test of every method, of auto, of alphas and of a stream, by seed."""
    found: dict[str, list[float]] = {}
    for seed in seeds:
        x, y, test, truth = data(seed)

        def score(name: str, model: LongTailClassifier, test: Any = test, truth: Any = truth) -> None:
            found.setdefault(name, []).append(100 * balanced_accuracy_score(truth, model.predict(test)))

        for method in (*METHODS, "auto"):
            score(method, LongTailClassifier(method, random_state=0).fit(x, y))
        for alpha in ("heuristic", "folds"):
            score(f"alpha {alpha}", LongTailClassifier(alpha=alpha, random_state=0).fit(x, y))
        score("stream", streamed(x, y, LongTailClassifier().epochs))
    return found


def against_logistic(seeds: range) -> dict[str, list[float]]:
    """Balanced accuracy on digits: logit adjustment and logistic regression, plain and class-weighted, by seed."""
    models = {
        "logit-adjustment": LongTailClassifier("logit-adjustment", random_state=0),
        "LogisticRegression()": LogisticRegression(max_iter=1000),
        'LogisticRegression(class_weight="balanced")': LogisticRegression(max_iter=1000, class_weight="balanced"),
    }
    found: dict[str, list[float]] = {name: [] for name in models}
    for seed in seeds:
        x, y, test, truth = digits(seed)
        for name, model in models.items():
            found[name].append(100 * balanced_accuracy_score(truth, model.fit(x, y).predict(test)))
    return found


# ----------------------------------------------------------------------------------------------------------- tables


def table(record: dict[str, Any]) -> str:
    """Balanced accuracy in %, as it stands in docs/own_features.md."""
    of = record["choices"]
    rows = dict.fromkeys(row for found in of.values() for row in found)
    lines = [f"{'':<18}" + "".join(f"{name:>14}" for name in of)]
    for row in rows:
        cells = (f"{np.mean(found[row]):.1f} ± {np.std(found[row], ddof=1):.1f}" for found in of.values())
        lines.append(f"{row:<18}" + "".join(f"{cell:>14}" for cell in cells))
    for name, one, other in (("auto - best row", "auto", None), ("stream - tde", "stream", "tde")):
        cells = []
        for found in of.values():
            best = other or max(METHODS, key=lambda method, found=found: np.mean(found[method]))
            gap = np.array(found[one]) - found[best]
            cells.append(f"{gap.mean():+.1f} ± {gap.std(ddof=1):.1f}")
        lines.append(f"{name:<18}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines) + "\n"


def logistic_table(record: dict[str, Any]) -> str:
    """How far ahead logit adjustment is, paired over seeds, as it stands in docs/own_features.md."""
    ours, *others = record["logistic"].items()
    lines = [f"{'logit-adjustment is ahead of':<46}points          seeds ahead"]
    for name, scores in others:
        gap = np.array(ours[1]) - scores
        mean = f"{gap.mean():+.1f} ± {gap.std(ddof=1):.1f}"
        lines.append(f"{name:<46}{mean:<16}{(gap > 0).sum()} of {len(gap)}")
    return "\n".join(lines) + "\n"


def cost_table(record: dict[str, Any]) -> str:
    """What fit takes, as it stands in docs/own_features.md."""
    lines = ["features         classes  epochs  CPU s  of it products    loss  converged   above it"]
    for part in SIZES:
        if part in record:
            row = record[part]
            samples, width, classes = row["size"]
            end = row.get("converged_loss")
            gap = f"{end:>10.4f} {100 * (row['loss'] / end - 1):>8.2f} %" if end else f"{'-':>10} {'-':>10}"
            share = row["products_cpu_seconds"]
            lines.append(
                f"{f'{samples:,} x {width}':<16} {classes:>7,} {row['epochs']:>7} {row['cpu_seconds']:>6.0f} "
                f"{share:>15.0f} {row['loss']:>7.4f} {gap}"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure a part, write it, print the tables there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*SIZES, "choices", "logistic"))
    parser.add_argument("--converge", action="store_true")
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record.setdefault("made", {})[arguments.part] = records.made()
    if arguments.part == "choices":
        record["choices"] = {}
        for name, data in DATA.items():
            record["choices"][name] = choices(data, range(100, 100 + arguments.seeds))  # seeds no choice was made on
            RECORD.write_text(json.dumps(record, indent=1) + "\n")  # the next may take long
            print(table(record), flush=True)
    elif arguments.part == "logistic":
        record["logistic"] = against_logistic(range(arguments.seeds))
        print(logistic_table(record))
    else:
        steps = 400 if arguments.converge or arguments.part == "small" else 0
        record[arguments.part] = cost(SIZES[arguments.part], steps)
        print(cost_table(record))
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
