"""The scikit-learn estimator: its contract, every method, streams, misuse, and real digits."""

import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, get_scorer
from sklearn.utils.estimator_checks import parametrize_with_checks

from causal_oracles import unchecked
from tailwise import InputError, tde
from tailwise.adjust import choose_with_interval, head_cosine
from tailwise.data.long_tail import frozen_order, long_tailed_counts
from tailwise.estimator import METHODS, STREAMS, LongTailClassifier

ESTIMATORS = [LongTailClassifier(epochs=8, random_state=0), LongTailClassifier("lws", epochs=4, random_state=0)]


@parametrize_with_checks(ESTIMATORS)
def test_the_contract_of_scikit_learn(estimator, check):
    with warnings.catch_warnings(), unchecked():  # scikit-learn passes what no type allows
        warnings.simplefilter("ignore")
        check(estimator)


def tailed(seed=0, width=12, counts=(90, 40, 20, 10), test=50):
    random = np.random.default_rng(seed)
    means = random.normal(size=(len(counts), width))
    names = np.array(["ant", "bee", "cat", "dog", *(f"x{c:02}" for c in range(4, len(counts)))])[: len(counts)]

    def draw(labels):
        return np.maximum(0.9 * means[labels] + random.normal(size=(len(labels), width)) + 0.7, 0)

    train, held_out = np.repeat(np.arange(len(counts)), counts), np.repeat(np.arange(len(counts)), test)
    return draw(train), names[train], draw(held_out), names[held_out]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_is_one_matrix(method):
    x, y, test, truth = tailed()
    model = LongTailClassifier(method, random_state=0).fit(x, y)
    assert model.method_ == method
    assert balanced_accuracy_score(truth, model.predict(test)) > 0.65
    assert model.folded_.weight.shape == (4, 12)
    logits = model.folded_(torch.from_numpy(test.astype(np.float32)).double()).numpy()
    assert model.decision_function(test) == pytest.approx(logits)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert model.predict_proba(test) == pytest.approx(p)
    assert (model.predict(test) == model.classes_[logits.argmax(axis=1)]).all()


@pytest.mark.parametrize("method", sorted({*METHODS} - {*STREAMS}))
def test_linear_methods_learn_where_double_is_torchs_default(method):
    x, y, test, truth = tailed()
    torch.set_default_dtype(torch.float64)
    try:
        model = LongTailClassifier(method, epochs=4, random_state=0).fit(x, y)
    finally:
        torch.set_default_dtype(torch.float32)
    assert balanced_accuracy_score(truth, model.predict(test)) > 0.65


@pytest.mark.parametrize("method", ["logit-adjustment", "lws", "crt"])
def test_adjusting_helps_the_tail(method):
    gains = []
    for seed in range(2):
        x, y, test, truth = tailed(seed, counts=(150, 40, 12, 6))
        scores = [
            balanced_accuracy_score(truth, LongTailClassifier(name, epochs=10, random_state=0).fit(x, y).predict(test))
            for name in ("linear", method)
        ]
        gains.append(scores[1] - scores[0])
    assert np.mean(gains) > 0.02


def test_logit_adjustment_subtracts_the_log_prior():
    x, y, test, _ = tailed()
    plain, adjusted = (
        LongTailClassifier(method, strength=0.7, random_state=0).fit(x, y).decision_function(test)
        for method in ("linear", "logit-adjustment")
    )
    shift = (plain - adjusted)[0]
    assert shift - shift[0] == pytest.approx(0.7 * np.log(np.array([90, 40, 20, 10]) / 90), abs=1e-5)


def test_tde_is_equation_8_at_its_alpha():
    x, y, test, _ = tailed()
    features = torch.from_numpy(test.astype(np.float32))
    for alpha in ("half", "heuristic", 0.7, "folds"):
        model = LongTailClassifier(alpha=alpha, epochs=2, random_state=0).fit(x, y)
        expected = tde(features, model.stream_.classifier, model.alpha_.value)
        assert model.decision_function(test) == pytest.approx(expected.detach().numpy(), abs=1e-3)
        assert model.alpha_.interval[0] <= model.alpha_.value <= model.alpha_.interval[1]
        if alpha in ("half", "heuristic"):
            lean = model.alpha_.value * cosine_to_mean(x)
            assert lean == pytest.approx(0.5 if alpha == "half" else 1.0, rel=1e-3)
        elif alpha != "folds":
            assert model.alpha_.value == alpha


def cosine_to_mean(x):
    total = 0.0
    for part in np.split(x, 2, axis=1):
        mean = part.mean(axis=0) / np.linalg.norm(part.mean(axis=0))
        total += (part @ mean / np.maximum(np.linalg.norm(part, axis=1), 1e-12)).mean() / 2
    return total


def test_features_around_0_have_no_head_direction():
    x, y, _, _ = tailed()
    assert LongTailClassifier(epochs=1, random_state=0).fit(x - x.mean(axis=0), y).alpha_.value == 0


@pytest.mark.parametrize(
    ("width", "asked", "heads"), [(12, 2, 2), (12, 5, 4), (7, 3, 1), (2, 2, 1), (1, 4, 1), (9, 4, 3)]
)
def test_num_heads_falls_to_a_divisor_of_the_width(width, asked, heads):
    x, y, _, _ = tailed(width=width)
    model = LongTailClassifier("de-confound", num_heads=asked, epochs=1, random_state=0).fit(x, y)
    assert model.stream_.classifier.num_heads == heads


def test_auto_takes_the_first_near_the_best_in_cross_validation():
    x, y, test, _ = tailed(counts=(40, 16, 8))
    model = LongTailClassifier("auto", folds=3, epochs=2, random_state=0).fit(x, y)
    assert list(model.scores_) == list(METHODS)
    assert max(model.scores_.values()) - model.scores_[model.method_] < 0.1
    assert model.scores_["linear"] < model.scores_[model.method_]
    same = LongTailClassifier(model.method_, folds=3, epochs=2, random_state=0).fit(x, y)
    assert (same.decision_function(test) == model.decision_function(test)).all()
    by_accuracy = LongTailClassifier("auto", scoring="accuracy", folds=3, epochs=2, random_state=0).fit(x, y)
    assert by_accuracy.scores_["linear"] > model.scores_["linear"]  # of head classes, mostly


@pytest.mark.parametrize("method", ["linear", "lws", "crt", "tde"])
def test_inference_mode_changes_nothing(method):
    x, y, _, _ = tailed(counts=(20, 10, 5))
    model = LongTailClassifier(method, epochs=1, random_state=0)
    expected = model.fit(x, y).decision_function(x)
    with torch.inference_mode():
        found = model.fit(x, y).decision_function(x)
    assert np.array_equal(found, expected)


def test_random_state_decides_everything():
    x, y, test, _ = tailed()
    one, again, other = (
        LongTailClassifier(epochs=2, random_state=seed).fit(x, y).decision_function(test) for seed in (0, 0, 1)
    )
    assert (one == again).all()
    assert (one != other).any()
    before = torch.get_rng_state()
    LongTailClassifier(epochs=1, random_state=0).fit(x, y)
    assert torch.equal(before, torch.get_rng_state())


# ---- streams


def streamed(x, y, passes, chunks=10, method="tde"):
    model = LongTailClassifier(method, random_state=0)
    order = np.array_split(np.random.default_rng(0).permutation(len(y)), chunks)
    for _ in range(passes):
        for chunk in order:
            model.partial_fit(x[chunk], y[chunk], classes=np.unique(y))
    return model


@pytest.mark.parametrize("seed", [0, 1])
def test_a_stream_of_ten_chunks_comes_within_a_point_of_fit(seed):
    """At equal passes, in points of balanced accuracy, on data sets of 20 classes."""
    sizes = (100 * 12.0 ** (-np.arange(20) / 19)).astype(int)
    x, y, test, truth = tailed(seed, width=32, counts=sizes)
    fitted = LongTailClassifier(epochs=4, random_state=0).fit(x, y)
    scores = [100 * balanced_accuracy_score(truth, model.predict(test)) for model in (fitted, streamed(x, y, 4))]
    assert scores[1] > scores[0] - 1
    assert scores[0] > 85


@pytest.mark.parametrize("method", STREAMS)
def test_a_stream_goes_on_after_fit_and_after_pickle(method):
    x, y, test, truth = tailed()
    model = LongTailClassifier(method, epochs=2, random_state=0).fit(x, y)
    before = model.decision_function(test)
    copy = pickle.loads(pickle.dumps(model))
    after = model.partial_fit(x[:50], y[:50]).decision_function(test)
    assert (before != after).any()
    assert (copy.partial_fit(x[:50], y[:50]).decision_function(test) == after).all()
    chunked = streamed(x, y, 3, method=method)
    again = pickle.loads(pickle.dumps(chunked)).partial_fit(x[:9], y[:9])
    assert (again.decision_function(test) == chunked.partial_fit(x[:9], y[:9]).decision_function(test)).all()
    assert balanced_accuracy_score(truth, chunked.predict(test)) > 0.5


@pytest.mark.parametrize("method", STREAMS)
def test_a_stream_predicts_no_class_that_it_has_not_met(method):
    x, y, test, _ = tailed()
    model = LongTailClassifier(method, random_state=0)
    for met in (["ant"], ["ant", "bee"], ["ant", "bee", "cat"], ["dog"]):  # each time with those before
        mine = np.isin(y, met)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what comes later is nothing to warn of
            model.partial_fit(x[mine], y[mine], classes=np.unique(y))
        unmet = model.class_count_ == 0
        assert (np.isneginf(model.decision_function(test)) == unmet).all()
    assert not unmet.any()
    model = LongTailClassifier(method, epochs=1, random_state=0).fit(x, y).partial_fit(x[:9], y[:9])
    assert model.class_count_.tolist() == [99, 40, 20, 10]
    assert np.isfinite(model.decision_function(test)).all()


@pytest.mark.parametrize("alpha", ["half", "heuristic"])
def test_alpha_of_a_stream_is_of_all_that_it_has_met(alpha):
    x, y, _, _ = tailed()
    order = np.random.default_rng(0).permutation(len(y))
    for start in (lambda model: model, lambda model: model.fit(x[order[:60]], y[order[:60]])):
        model = start(LongTailClassifier(alpha=alpha, epochs=1, random_state=0))
        for part in np.split(order, [60, 120, 159])[hasattr(model, "stream_") :]:
            model.partial_fit(x[part], y[part], classes=np.unique(y))
        lean = head_cosine(torch.from_numpy(x), model.stream_.classifier).mean()
        assert model.alpha_.value * float(lean) == pytest.approx(0.5 if alpha == "half" else 1.0, rel=1e-4)
    centered = LongTailClassifier(alpha=alpha, random_state=0).partial_fit(x - x.mean(axis=0), y, classes=np.unique(y))
    assert centered.alpha_.value == 0


def test_what_one_fit_found_is_not_the_next_ones():
    x, y, _, _ = tailed(counts=(40, 16, 8))
    model = LongTailClassifier(epochs=1, folds=2, random_state=0).fit(x, y)
    assert model.alpha_.value > 0
    model.set_params(method="de-confound").partial_fit(x, y)  # whose classifier TDE's is, too
    assert not hasattr(model, "alpha_")
    model.set_params(method="tde").partial_fit(x, y)
    assert model.alpha_.value > 0
    with pytest.raises(
        InputError, match="method: expected 'de-confound' or 'tde', whose training goes on, got 'cosine'"
    ):
        model.set_params(method="cosine").partial_fit(x, y)
    model.fit(x, y)
    with pytest.raises(InputError, match="method: expected 'cosine', whose training goes on, got 'tde'"):
        model.set_params(method="tde").partial_fit(x, y)
    model.set_params(method="auto").fit(x, y)
    assert set(STREAMS) & {model.method_} or not hasattr(model, "stream_")
    assert hasattr(model, "alpha_") == (model.method_ == "tde")
    assert hasattr(model, "scores_")
    model.set_params(method="linear").fit(x[:, :5], y)
    assert not {"stream_", "alpha_", "scores_"} & {*vars(model)}
    with pytest.raises(InputError, match="classes: expected all classes"):  # a stream of its own begins
        model.set_params(method="tde").partial_fit(x, y)
    assert model.partial_fit(x, y, classes=np.unique(y)).predict(x).shape == y.shape


def single(seed):
    random = np.random.default_rng(seed)
    counts = np.array([90, 50, 25, 12, 6, 1, 1, 1, 1, 1])
    y = np.repeat(np.arange(10), counts)
    means = random.normal(size=(10, 16))
    return np.maximum(means[y] + random.normal(size=(len(y), 16)), 0), y


@pytest.mark.parametrize("method", ["tde", "auto"])
def test_folds_say_nothing_of_a_class_with_one_sample(method, monkeypatch):
    """Held out, it is unknown to the fold's classifier, and right at no alpha; all classes of the data are known."""
    x, y = single(0)
    scored = []

    def chosen(alphas, predicted, labels, **settings):
        scored.append((predicted, labels))
        return choose_with_interval(alphas, predicted, labels, **settings)

    monkeypatch.setattr("tailwise.estimator.choose_with_interval", chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LongTailClassifier(method, alpha="folds", folds=3, epochs=1, random_state=0).fit(x, y)
    assert scored
    for predicted, labels in scored:
        alone = np.bincount(labels, minlength=10)[labels] == 1
        assert alone.any()
        assert (predicted != labels)[:, alone].all()


@pytest.mark.parametrize("method", sorted({*METHODS, "auto"} - {*STREAMS}))
def test_what_needs_class_statistics_takes_no_stream(method):
    model = LongTailClassifier(method)
    assert not hasattr(model, "partial_fit")
    assert hasattr(LongTailClassifier(), "partial_fit")


# ---- misuse


def test_misuse_is_one_clear_error():
    x, y, _, _ = tailed()
    stream = LongTailClassifier(epochs=1).partial_fit(x, y, classes=np.unique(y))
    gap = x.copy()
    gap[3, 2] = np.nan
    for wrong, error, message in (
        (lambda: LongTailClassifier().fit(scipy.sparse.csr_array(x), y), TypeError, "[Ss]parse data was passed"),
        (lambda: LongTailClassifier().fit(x.astype(object) * [{}], y), TypeError, "dict"),
        (lambda: LongTailClassifier().fit(np.full((4, 2), "a", dtype=object), y[:4]), ValueError, "could not convert"),
        (lambda: LongTailClassifier().fit(gap, y), ValueError, "Input X contains NaN"),
        (lambda: LongTailClassifier().fit(x, y[:-1]), ValueError, "inconsistent numbers of samples"),
        (lambda: LongTailClassifier().fit(x[:5], y[:5]), ValueError, "at least two classes, got one class, .'ant'."),
        (lambda: LongTailClassifier().fit(x, np.linspace(0, 1, len(x))), ValueError, "Unknown label type"),
        (lambda: LongTailClassifier("tde2").fit(x, y), ValueError, "did you mean 'tde'"),
        (lambda: LongTailClassifier(num_heads=0).fit(x, y), ValueError, "num_heads"),
        (lambda: LongTailClassifier(epochs=0).fit(x, y), ValueError, "epochs"),
        (lambda: LongTailClassifier(tau=-1.0).fit(x, y), ValueError, "tau"),
        (lambda: LongTailClassifier(alpha="best").fit(x, y), ValueError, "alpha"),
        (lambda: LongTailClassifier("tau-norm", norm_power="best").fit(x, y), ValueError, "norm_power"),
        (lambda: LongTailClassifier("auto", folds=1).fit(x, y), ValueError, "folds"),
        (lambda: LongTailClassifier().partial_fit(x, y), ValueError, "classes: expected all classes"),
        (lambda: LongTailClassifier().partial_fit(x, y, classes=["ant"]), ValueError, "at least two classes"),
        (lambda: stream.partial_fit(x[:1], ["fox"]), ValueError, "y: expected classes of the first .*'fox'"),
        (lambda: stream.partial_fit(x, y, classes=["ant", "bee"]), ValueError, "classes: expected those of the first"),
        (lambda: stream.partial_fit(x[:, :5], y), ValueError, "5 features, but .* is expecting 12"),
        (lambda: stream.predict(x[:, :5]), ValueError, "5 features, but .* is expecting 12"),
        (lambda: LongTailClassifier(alpha="folds").partial_fit(x, y, classes=np.unique(y)), ValueError, "alpha"),
    ):
        with pytest.raises(error, match=message), unchecked():
            wrong()
    assert stream.predict(x).shape == y.shape  # a refused chunk leaves the model as it was


def test_a_refused_first_chunk_binds_nothing():
    """Not its classes, not its width; and a strength that is none is found before a step is taken."""
    x, y, _, _ = tailed()
    stream = LongTailClassifier(epochs=1, random_state=0)
    with pytest.raises(InputError, match="y: expected classes of the first partial_fit"):
        stream.partial_fit(x[:, :4], y, classes=["ant", "fox"])
    again = stream.partial_fit(x, y, classes=np.unique(y)).decision_function(x)
    before = stream.class_count_.copy()
    for wrong in ({"alpha": "x"}, {"strength": -1}, {"norm_power": None}):
        with pytest.raises(InputError, match=f"^{next(iter(wrong))}: "), unchecked():
            clone(stream).set_params(**wrong).fit(x, y)
        with pytest.raises(InputError, match=f"^{next(iter(wrong))}: "), unchecked():
            stream.set_params(**wrong).partial_fit(x, y)
        stream.set_params(alpha="half", strength=1.0, norm_power="learned")
    assert np.array_equal(stream.class_count_, before)
    assert np.array_equal(stream.decision_function(x), again)
    whole = LongTailClassifier(epochs=1, random_state=0).partial_fit(x, y, classes=np.unique(y))
    assert np.array_equal(whole.decision_function(x), again)


def test_a_scorer_is_tried_before_anything_is_trained(monkeypatch):
    x, y, _, _ = tailed()
    monkeypatch.setattr("tailwise.estimator.cross_fitted_predictions", None)
    for scoring, told in (("roc_auc_ovr", "'roc_auc_ovr'"), (get_scorer("neg_log_loss"), "make_scorer")):
        with pytest.raises(InputError, match=f"^scoring: expected a scorer of predicted classes, got {told}"):
            LongTailClassifier("auto", scoring=scoring).fit(x, y)


# ---- real data


def digits(seed):
    """scikit-learn's digits as 64 features: at most 110 of a class and at ratio 50 the rarest 2, 50 of each to test."""
    x, y = load_digits(return_X_y=True)
    orders = frozen_order(y.astype(np.int64), "digits-features", seed)
    counts = long_tailed_counts(10, 110, 50)
    train = np.concatenate([order[64 : 64 + n] for order, n in zip(orders, counts, strict=True)])
    test = np.concatenate([order[:50] for order in orders])
    return x[train] / 16, y[train], x[test] / 16, y[test]


def test_digits_against_logistic_regression_paired_over_ten_seeds():
    """Logit adjustment is far ahead of the plain one and level with the weighted one; docs/own_features.md says so."""
    models = {
        "plain": LogisticRegression(max_iter=1000),
        "balanced": LogisticRegression(max_iter=1000, class_weight="balanced"),
        "logit-adjustment": LongTailClassifier("logit-adjustment", random_state=0),
    }
    scores = {name: [] for name in models}
    for seed in range(10):
        x, y, test, truth = digits(seed)
        for name, model in models.items():
            scores[name].append(100 * balanced_accuracy_score(truth, model.fit(x, y).predict(test)))
    for name, least in (("plain", 8), ("balanced", -1)):
        difference = np.array(scores["logit-adjustment"]) - scores[name]
        assert difference.mean() > least
        assert difference.std(ddof=1) < 4
