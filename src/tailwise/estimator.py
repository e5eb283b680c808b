"""A scikit-learn classifier over features of any origin: the methods of this library where data is long-tailed."""

import copy
import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import get_scorer
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from tailwise import checks
from tailwise.adjust import (
    ALPHAS,
    Chosen,
    Streamed,
    choose_method,
    choose_with_interval,
    cross_fitted_predictions,
    fit_crt,
    fit_lws,
    fit_ncm,
    fold_linear,
    fold_logit_adjustment,
    fold_tau_norm,
    fold_tde,
    head_cosine,
    heuristic_alpha,
    learn_linear,
    learn_norm_power,
    predictions_by_alpha,
    tau_norm_components,
    tde_components,
)
from tailwise.adjust.choose import alpha_of
from tailwise.adjust.unseen import unseen_expected
from tailwise.classifiers import (
    CausalClassifier,
    CosineClassifier,
    FoldedClassifier,
    LinearClassifier,
    NormalizedClassifier,
)
from tailwise.classifiers.functional import scale_features
from tailwise.counts import ClassCounts
from tailwise.seeds import mixed_seed

METHODS = ("linear", "logit-adjustment", "tau-norm", "lws", "crt", "ncm", "cosine", "de-confound", "tde")
STREAMS = ("cosine", "de-confound", "tde")  # what needs no class statistics, and so no second look at the data


def _streams(estimator: "LongTailClassifier") -> bool:
    if estimator.method in STREAMS:
        return True
    raise AttributeError(f"partial_fit: expected method {', '.join(STREAMS)}, got '{estimator.method}'")


class LongTailClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Classify features whose classes are long-tailed.

    A classifier is trained on the features as they come (instance-balanced), and then adjusted.

    Args:
        method: "tde", "de-confound" (Tang et al. 2020, Eq. 8 and 7), "cosine"; "linear" and what starts from it:
            "logit-adjustment" (Menon et al. 2021), "tau-norm", "lws" (Kang et al. 2020); "crt", "ncm" (Kang et al.
            2020); "auto", the first of them, in the order of
            `METHODS`, within one standard error of the best by `scoring` in cross-validation.
        alpha: strength of "tde": a number; "heuristic", the authors' alpha * mean cos = 1; "half" of it, which does
            well for few classes and for many; "folds", cross-fitted on the training features by mean per-class
            accuracy, at the cost of training `folds` times more.
        norm_power: of "tau-norm": a number, or "learned" by class-balanced cross-entropy on the training features.
        strength: of "logit-adjustment", which subtracts strength * log prior.
        num_heads: K of the causal classifier, at most; the largest divisor of the width below it that leaves each
            head at least two features is taken.
        tau, gamma: of the causal classifier (Eq. 7).
        epochs: passes over the features.
        learning_rate: of AdamW for the normalized classifiers, whose logits do not depend on the scale of features.
        scoring: a scorer's name, or a scorer, of predicted classes; what "auto" chooses by.
        folds: of "auto" and of alpha "folds".
        random_state: of first weights, batches and folds.

    Attributes:
        classes_: the labels, sorted. method_: the method used. folded_: the adjusted classifier, one matrix.
        alpha_: of "tde", a `Chosen`; its interval is the value alone in a stream, which keeps no samples. scores_: of
        "auto", by method. class_count_: training samples of each class so far.

    Raises:
        InputError (a ValueError): a setting that is none; fewer than two classes, a label unseen in the first
            `partial_fit`. What scikit-learn refuses (sparse or object arrays, NaN) it refuses in its own words.

    >>> x = np.random.default_rng(0).normal(size=(40, 6)) + 2 * np.eye(6)[np.arange(40) % 4]
    >>> LongTailClassifier("ncm").fit(x, np.arange(40) % 4).predict(2 * np.eye(6)[:4])
    array([0, 1, 2, 3])
    """

    stream_: Streamed[NormalizedClassifier]

    def __init__(
        self,
        method: str = "tde",
        *,
        alpha: float | Literal["half", "heuristic", "folds"] = "half",
        norm_power: float | Literal["learned"] = "learned",
        strength: float = 1.0,
        num_heads: int = 2,
        tau: float = 16.0,
        gamma: float = 1 / 32,
        epochs: int = 10,
        learning_rate: float = 0.1,
        scoring: Any = "balanced_accuracy",
        folds: int = 5,
        random_state: Any = None,
    ) -> None:
        self.method = method
        self.alpha = alpha
        self.norm_power = norm_power
        self.strength = strength
        self.num_heads = num_heads
        self.tau = tau
        self.gamma = gamma
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.scoring = scoring
        self.folds = folds
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "LongTailClassifier":  # noqa: N803  # scikit-learn's names
        """Train on features X [N, D] and labels y [N]; returns itself."""
        checks.choice("method", self.method, (*METHODS, "auto"))
        self._check_strengths()
        X, y = validate_data(self, X, y, dtype=np.float32)  # noqa: N806  # scikit-learn's names
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        _check_classes(self.classes_)
        features, target = torch.from_numpy(np.ascontiguousarray(X)), torch.from_numpy(labels.astype(np.int64))
        self.seed_ = int(check_random_state(self.random_state).randint(2**31))
        seed = self.seed_
        self._forget("stream_", "alpha_", "scores_")
        self.class_count_ = np.bincount(labels)
        self.method_ = self._best(features, target, seed) if self.method == "auto" else self.method
        (self.folded_,) = self._adjusted([self.method_], features, target, seed)
        if hasattr(self, "stream_"):
            self._unit_sum = self._units(features)
        return self

    @available_if(_streams)  # type: ignore[untyped-decorator]  # scikit-learn has no types
    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> "LongTailClassifier":  # noqa: N803  # scikit-learn's names
        """One pass over a chunk of a stream, for "tde", "de-confound" and "cosine"; returns itself.

        The first call names all `classes`, unless `fit` of such a method came before, whose training goes on. A class
        not met so far is not predicted. Alpha is that of all features so far.
        """
        if self.method == "tde" and self.alpha == "folds":
            raise checks.InputError(
                "alpha: expected a number, 'half' or 'heuristic' for a stream, which has no folds, got 'folds'"
            )
        self._check_strengths()
        first = not hasattr(self, "stream_")
        if not first and isinstance(self.stream_.classifier, CosineClassifier) != (self.method == "cosine"):
            goes_on = "'de-confound' or 'tde'" if self.method == "cosine" else "'cosine'"
            raise checks.InputError(f"method: expected {goes_on}, whose training goes on, got '{self.method}'")
        X, y = validate_data(self, X, y, dtype=np.float32, reset=first)  # noqa: N806  # scikit-learn's names
        check_classification_targets(y)
        if first:
            if classes is None:
                raise checks.InputError("classes: expected all classes at the first partial_fit, got none")
            known = np.unique(classes)
            _check_classes(known)
            _check_known(y, known)
            self.classes_ = known
            self.seed_ = int(check_random_state(self.random_state).randint(2**31))
            self.stream_ = self._stream(self.method, X.shape[1], self.seed_)
            self.class_count_, self._unit_sum = np.zeros(len(self.classes_), dtype=np.int64), torch.zeros(())
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise checks.InputError(f"classes: expected those of the first partial_fit, got {np.unique(classes)}")
        _check_known(y, self.classes_)
        labels = torch.from_numpy(np.searchsorted(self.classes_, y))
        features = torch.from_numpy(np.ascontiguousarray(X))
        self.stream_.learn(features, labels, seed=mixed_seed(self.seed_, self.stream_.steps))
        self.class_count_ = self.class_count_ + np.bincount(labels, minlength=len(self.classes_))
        self._unit_sum = self._unit_sum + self._units(features)
        self._forget("alpha_", "scores_")
        self.method_, alpha = self.method, 0.0
        if self.method == "tde":
            alpha = self._alpha_so_far()
            self.alpha_ = Chosen(alpha, (alpha, alpha))
        with unseen_expected():
            counts = ClassCounts(tuple(self.class_count_.tolist()))
            self.folded_ = fold_tde(self.stream_.classifier, alpha, counts=counts).double()
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:  # noqa: N803  # scikit-learn's names
        """Logits [N, C]; with two classes the difference of the second to the first, [N]."""
        check_is_fitted(self, "folded_")
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803  # scikit-learn's names
        """The softmax of the logits, [N, C]: not calibrated; `CalibratedClassifierCV` does that."""
        check_is_fitted(self, "folded_")
        return np.asarray(torch.from_numpy(self._logits(X)).softmax(dim=1).numpy())

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803  # scikit-learn's names
        """The class of the highest logit, [N]."""
        check_is_fitted(self, "folded_")
        return np.asarray(self.classes_[self._logits(X).argmax(axis=1)])

    @torch.no_grad()
    def _logits(self, X: Any) -> NDArray[np.float64]:  # noqa: N803  # scikit-learn's names
        X = validate_data(self, X, dtype=np.float32, reset=False)  # noqa: N806  # scikit-learn's names
        # in double: a row's logits must not depend on the rows beside it
        return np.asarray(self.folded_(torch.from_numpy(np.ascontiguousarray(X)).double()).numpy())

    def _best(self, features: Tensor, labels: Tensor, seed: int) -> str:
        scorer = get_scorer(self.scoring)

        def score(row: NDArray[np.int64], truth: NDArray[np.int64]) -> float:  # of predictions alone: features are none
            return float(scorer(_Predicted(self.classes_, row), row[:, None], self.classes_[truth]))

        try:
            score(labels.numpy(), labels.numpy())  # before minutes of training
        except AttributeError as error:  # probabilities or logits, which predicted classes do not have
            raise checks.InputError(f"scoring: expected a scorer of predicted classes, got {self.scoring!r}") from error

        def predict(classifiers: Any, x: Tensor) -> NDArray[np.int64]:
            return np.stack([classifier(x.double()).argmax(dim=1).numpy() for classifier in classifiers])

        predicted = cross_fitted_predictions(
            features,
            labels,
            len(self.classes_),
            # of a copy, for a fold's streams and alphas are none of this model's
            lambda x, y: nn.ModuleList(copy.copy(self)._adjusted(METHODS, x, y, seed)),
            predict,
            folds=self.folds,
            seed=seed,
        )
        best, told = choose_method(METHODS, predicted, labels.numpy(), score=score, resamples=50, seed=seed)
        self.scores_ = {method: chosen.score for method, chosen in told.items()}
        return best

    def _adjusted(self, methods: Sequence[str], x: Tensor, y: Tensor, seed: int) -> list[FoldedClassifier]:
        """A classifier for each method, in double; what several start from is trained once."""
        num_classes, center = len(self.classes_), x.double().mean(dim=0).float()
        counts = ClassCounts.of_labels(y.numpy(), num_classes)

        @functools.cache
        def linear() -> LinearClassifier:
            return learn_linear(x - center, y, num_classes, balanced=False, epochs=self.epochs, seed=seed)

        @functools.cache
        def normalized(kind: str) -> NormalizedClassifier:
            self.stream_ = self._stream(kind, x.shape[1], seed)
            self.stream_.learn(x, y, epochs=self.epochs, seed=seed)
            return self.stream_.classifier

        def adjusted(method: str) -> FoldedClassifier:
            if method == "ncm":
                return fit_ncm(x, y, num_classes, distance="centered")
            if method == "crt":
                return fit_crt(x, y, num_classes, epochs=self.epochs, seed=seed)
            if method == "tde":
                causal = normalized("de-confound")
                self.alpha_ = self._alpha(causal, x, y, seed)
                return fold_tde(causal, self.alpha_.value, counts=counts)
            if method in STREAMS:
                return fold_tde(normalized(method), 0.0, counts=counts)
            if method == "tau-norm":
                power = self.norm_power
                if power == "learned":
                    power = learn_norm_power(tau_norm_components(x - center, linear()), y)
                return _centered(fold_tau_norm(linear(), power, counts=counts), center)
            if method == "lws":
                return _centered(fit_lws(x - center, y, linear(), epochs=self.epochs, seed=seed), center)
            plain = _centered(fold_linear(linear(), counts), center)
            if method == "logit-adjustment":
                return fold_logit_adjustment(plain, counts, temperature=self.strength)
            return plain

        return [adjusted(method).double() for method in methods]

    @torch.inference_mode(mode=False)  # what is made in that mode cannot be trained
    def _stream(self, kind: str, width: int, seed: int) -> Streamed[NormalizedClassifier]:
        """Untrained; its average is a plain sum, the mean of all features, since features that do not move have no
        need of a moving average."""
        num_classes = len(self.classes_)
        checks.whole("num_heads", self.num_heads)
        heads = max(k for k in range(1, self.num_heads + 1) if width % k == 0 and (k == 1 or width // k > 1))
        with torch.random.fork_rng(devices=[]):  # the first weights depend on the seed alone
            torch.default_generator.manual_seed(mixed_seed(seed))
            made: NormalizedClassifier
            if kind == "cosine":
                made = CosineClassifier(width, num_classes, num_heads=heads, tau=self.tau, momentum=1.0)
            else:
                made = CausalClassifier(
                    width, num_classes, num_heads=heads, tau=self.tau, gamma=self.gamma, momentum=1.0
                )
        return Streamed(made, self.learning_rate)

    def _check_strengths(self) -> None:
        """Before anything is trained."""
        for name, words in (("alpha", ("half", "heuristic", "folds")), ("norm_power", ("learned",)), ("strength", ())):
            value = getattr(self, name)
            if words and isinstance(value, str):
                checks.choice(name, value, words)
            else:
                checks.number(name, value, **({"at_least": 0} if name == "strength" else {}))

    def _forget(self, *names: str) -> None:
        for name in names:
            self.__dict__.pop(name, None)

    def _units(self, x: Tensor) -> Tensor:
        """The sum of unit features, [K, D/K]: what the mean cosine to any head direction follows from."""
        return scale_features(x, self.stream_.classifier.num_heads, "unit").sum(dim=0, dtype=torch.float64)

    def _alpha_so_far(self) -> float:
        if self.alpha != "half" and self.alpha != "heuristic":
            return self.alpha  # type: ignore[return-value]  # a number: streams refuse "folds"
        direction = self.stream_.classifier.average.direction()
        cosine = float((self._unit_sum * direction).sum(dim=1).mean()) / self.class_count_.sum()
        return (0.5 if self.alpha == "half" else 1.0) * alpha_of(float(cosine))

    def _alpha(self, classifier: NormalizedClassifier, x: Tensor, y: Tensor, seed: int) -> Chosen:
        if self.alpha == "half" or self.alpha == "heuristic":
            if not alpha_of(float(head_cosine(x, classifier).mean())):
                return Chosen(0.0, (0.0, 0.0))
            share, found = 0.5 if self.alpha == "half" else 1.0, heuristic_alpha(x, classifier)
            return Chosen(share * found.value, (share * found.interval[0], share * found.interval[1]))
        if self.alpha != "folds":
            return Chosen(self.alpha, (self.alpha, self.alpha))

        def fit(x: Tensor, y: Tensor) -> tuple[NormalizedClassifier, ClassCounts]:
            stream = self._stream("de-confound", x.shape[1], seed)
            stream.learn(x, y, epochs=self.epochs, seed=seed)
            return stream.classifier, ClassCounts.of_labels(y.numpy(), len(self.classes_))

        predicted = cross_fitted_predictions(
            x,
            y,
            len(self.classes_),
            fit,
            lambda fitted, x: predictions_by_alpha(tde_components(x, fitted[0], counts=fitted[1])),
            folds=self.folds,
            seed=seed,
        )
        return choose_with_interval(ALPHAS, predicted, y.numpy(), seed=seed)


@torch.no_grad()
def _centered(classifier: FoldedClassifier, center: Tensor) -> FoldedClassifier:
    """The classifier on x - center, where it was trained."""
    return FoldedClassifier(classifier.weight, bias=classifier.bias, center=center)


class _Predicted(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What a scorer takes for a trained classifier: classes that were predicted before."""

    def __init__(self, classes: NDArray[Any], predicted: NDArray[np.int64]) -> None:
        self.classes_, self.predicted = classes, predicted

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: ARG002, N803  # scikit-learn's form
        return np.asarray(self.classes_[self.predicted])


def _check_known(y: NDArray[Any], classes: NDArray[Any]) -> None:
    unknown = np.setdiff1d(y, classes)
    if len(unknown):
        raise checks.InputError(f"y: expected classes of the first partial_fit, got {unknown.tolist()}")


def _check_classes(classes: NDArray[Any]) -> None:
    if len(classes) < 2:
        raise checks.InputError(f"y: expected at least two classes, got one class, {classes.tolist()}")
