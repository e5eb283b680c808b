"""Wrong types, as a user without the test suite's type checker meets them."""

import subprocess
import sys

SCRIPT = """
import numpy as np, torch, tailwise
from tailwise import adjust
x = torch.rand(4, 8)
causal = tailwise.CausalClassifier(8, 3)
causal(x)
calls = {
    "tde on linear": lambda: tailwise.tde(x, tailwise.LinearClassifier(8, 3), 1.0),
    "fold on linear": lambda: tailwise.fold_tde(tailwise.LinearClassifier(8, 3), 1.0),
    "wide features": lambda: tailwise.tde(torch.rand(4, 9), causal, 1.0),
    "flat features": lambda: tailwise.tde(torch.rand(8), causal, 1.0),
    "wide forward": lambda: causal(torch.rand(4, 9)),
    "token features": lambda: tailwise.LinearClassifier(8, 3)(torch.rand(2, 5, 8)),
    "huge alpha": lambda: tailwise.fold_tde(causal, 1e39),
    "float labels": lambda: tailwise.Store(x.numpy(), x.numpy(), np.zeros(4), np.array(list("abcd")), "", "test"),
    "nan features": lambda: tailwise.tde(x * float("nan"), causal, 1.0),
    "text alpha": lambda: tailwise.tde(x, causal, "auto"),
    "nan alpha": lambda: tailwise.fold_tde(causal, float("nan")),
    "float heads": lambda: tailwise.CausalClassifier(8, 3, num_heads=2.0),
    "heads": lambda: tailwise.CausalClassifier(9, 3),
    "no classes": lambda: tailwise.CosineClassifier(8, 0),
    "text tau": lambda: tailwise.CapsuleClassifier(8, 3, tau="16"),
    "momentum": lambda: tailwise.FeatureAverage(8, momentum=1.5),
    "float counts": lambda: tailwise.ClassCounts((1.5, 2)),
    "background": lambda: tailwise.background_exempted(x, x, background=8),
    "shapes": lambda: tailwise.background_exempted(x, x[:, :5], background=0),
}
for name, call in calls.items():
    try:
        call()
        print(f"{name}: nothing raised")
    except tailwise.InputError as error:
        print(f"{name}: {error}")
"""

EXPECTED = {
    "tde on linear": "classifier: expected a normalized classifier with a feature average "
    "(causal, cosine or capsule), got LinearClassifier",
    "fold on linear": "classifier: expected a normalized classifier with a feature average "
    "(causal, cosine or capsule), got LinearClassifier",
    "wide features": "features: expected shape [N, 8], got [4, 9]",
    "flat features": "features: expected shape [N, 8], got [8]",
    "wide forward": "features: expected shape [N, 8], got [4, 9]",
    "token features": "features: expected shape [N, 8], got [2, 5, 8]",
    "huge alpha": "alpha: expected a value that leaves the weights finite, got 1e+39",
    "float labels": "labels: expected whole numbers, got float64",
    "nan features": "features: expected finite numbers, got NaN or infinity in 4 of 4 rows (first: row 0)",
    "text alpha": "alpha: expected a finite number, got 'auto'",
    "nan alpha": "alpha: expected a finite number, got nan",
    "float heads": "num_heads: expected a whole number of at least 1, got 2.0",
    "heads": "num_heads: expected a divisor of in_features, got num_heads 2 and in_features 9",
    "no classes": "num_classes: expected a whole number of at least 1, got 0",
    "text tau": "tau: expected a finite number above 0, got '16'",
    "momentum": "momentum: expected a number in [0, 1], got 1.5",
    "float counts": "per_class[0]: expected a whole number of at least 0, got 1.5",
    "background": "background: expected classes in 0..7, got 8",
    "shapes": "tde_logits: expected the shape of logits, [4, 8], got [4, 5]",
}


def test_every_misuse_is_one_clear_line():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert dict(line.split(": ", 1) for line in done.stdout.splitlines()) == EXPECTED
