"""Total direct effect of a classifier that is not linear: the memory of OLTR (Tang et al. 2020, appendix D).

    python benchmarks/oltr_tde.py --seeds 5 --out results/oltr-tde.json

Re-balancing moves the decision boundary of a classifier, total direct effect subtracts what the head direction does to
it. The paper says that for OLTR, whose memory is not linear, only the second can remove the bias. Here: digits-lt,
features of the plain first stage, and the memory classifier trained on them without and with re-balancing. The head
direction is that of the mean training feature; alpha and temperature are chosen on val.
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import torch

from records import seeds_of, write
from tailwise.adjust import ALPHAS, choose, class_means, counterfactual_tde, relearn
from tailwise.evaluate import metric, shot_accuracy
from tailwise.experiments import experiment, measure
from tailwise.experiments.adjusters import features_of, labels_of
from tailwise.experiments.watch import Silent
from tailwise.methods.oltr import MetaEmbeddingClassifier
from tailwise.recipes.catalog import find

TEMPERATURES = tuple(round(0.1 * step, 1) for step in range(31))


def rows_of(trained):
    """Test accuracy by group of one seed's memory classifiers, in percent."""
    train, val, test = trained.stores.train(), trained.stores.val(), trained.stores.test()
    x, y, num_classes = features_of(train), labels_of(train), trained.counts.num_classes
    score = metric("mean-per-class", val.labels, trained.published)
    log_prior = np.log(np.array(trained.counts.per_class) / sum(trained.counts.per_class))

    def memory(balanced):
        torch.manual_seed(trained.seed)
        classifier = MetaEmbeddingClassifier(x.shape[1], num_classes, class_means(x, y, num_classes))
        return relearn(classifier, x, y, num_classes, epochs=20, seed=trained.seed, balanced=balanced).eval()

    direction = torch.nn.functional.normalize(x.mean(dim=0, keepdim=True), dim=1)
    plain, rebalanced = memory(False), memory(True)

    def effect(classifier, store, alpha):
        with torch.no_grad():
            return counterfactual_tde(classifier, features_of(store), direction, alpha).numpy()

    def chosen(values, logits_of):
        picked = choose(values, [logits_of(val, value).argmax(axis=1) for value in values], score).chosen
        return picked, shot_accuracy(logits_of(test, picked).argmax(axis=1), test.labels, trained.published)

    def report(classifier, values, logits_of):
        picked, accuracy = chosen(values, lambda store, value: logits_of(classifier, store, value))
        return {**accuracy, "chosen": picked}

    return {
        "memory": report(plain, (0.0,), effect),
        "memory, logit adjustment": report(plain, TEMPERATURES, lambda c, s, t: effect(c, s, 0.0) - t * log_prior),
        "memory, total direct effect": report(plain, ALPHAS, effect),
        "memory, re-balanced training": report(rebalanced, (0.0,), effect),
        "memory, re-balanced training, total direct effect": report(rebalanced, ALPHAS, effect),
    }


def table(record):
    """Mean and standard deviation over seeds, as the docs print it."""
    lines = [f"{'classifier on stored features':50} {'many':>12} {'medium':>12} {'few':>12} {'all':>12}  chosen"]
    for name in record["seeds"][0]["rows"]:
        rows = [seed["rows"][name] for seed in record["seeds"]]
        figures = []
        for group in ("many", "medium", "few", "all"):
            values = np.array([row[group] for row in rows])
            figures.append(f"{values.mean():6.1f} ± {values.std(ddof=1):3.1f}")
        picked = ", ".join(f"{row['chosen']:g}" for row in rows)
        lines.append(f"{name:50} {' '.join(f'{figure:>12}' for figure in figures)}  {picked}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def main():
    """Train, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # operations this small gain nothing from a second
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        (run,) = experiment.train(
            find("digits-lt/joint"), range(asked.seeds), Path(folder) / "run", data_dir=None, watch=Silent()
        )
        rows = [rows_of(measure.open_trained(seed, None)) for seed in run.seeds]
        record = {"seeds": [{**about, "rows": found} for about, found in zip(seeds_of(run), rows, strict=True)]}
    print(table(record), end="")
    if asked.out:
        write(asked.out, record)


if __name__ == "__main__":
    main()
