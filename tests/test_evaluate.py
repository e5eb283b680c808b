import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from causal_oracles import unchecked
from tailwise import CausalClassifier, ClassCounts, InputError, Store
from tailwise.adjust import sweep_alpha
from tailwise.data import string_array
from tailwise.evaluate import (
    METRICS,
    extract,
    geometric_mean_accuracy,
    group_confusion,
    harmonic_mean_accuracy,
    macro_f1,
    mean_per_class_accuracy,
    metric,
    per_class_accuracy,
    predict,
    shot_accuracy,
    top_k_accuracy,
    worst_class_accuracy,
)
from tailwise.recognizer import Recognizer

# ---- metrics


def accuracy_oracle(predicted, labels, counts):
    """Liu et al. 2019: accuracy per class, averaged within each group; top-1 over samples."""
    groups = {"many": [], "medium": [], "few": []}
    for c, n in enumerate(counts):
        mine = [p == t for p, t in zip(predicted, labels, strict=True) if t == c]
        if mine:
            groups["many" if n > 100 else "few" if n < 20 else "medium"].append(100 * sum(mine) / len(mine))
    result = {group: sum(values) / len(values) if values else None for group, values in groups.items()}
    return result | {"all": 100 * sum(p == t for p, t in zip(predicted, labels, strict=True)) / len(labels)}


classes = st.integers(0, 4)


@given(st.lists(st.tuples(classes, classes), min_size=1, max_size=40), st.lists(st.integers(1, 300), min_size=5))
def test_shot_accuracy_is_the_oracle(pairs, counts):
    predicted, labels = (np.array(column) for column in zip(*pairs, strict=True))
    got = shot_accuracy(predicted, labels, ClassCounts(tuple(counts[:5])))
    expected = accuracy_oracle(predicted.tolist(), labels.tolist(), counts[:5])
    assert got == {group: value if value is None else pytest.approx(value) for group, value in expected.items()}


@given(st.lists(st.tuples(classes, classes), min_size=1, max_size=40), st.permutations(range(5)))
def test_renaming_classes_changes_nothing(pairs, order):
    predicted, labels = (np.array(column) for column in zip(*pairs, strict=True))
    rename = np.array(order)
    counts = (500, 50, 30, 10, 5)
    renamed = [0] * 5
    for old, new in enumerate(order):
        renamed[new] = counts[old]
    before = shot_accuracy(predicted, labels, ClassCounts(counts))
    after = shot_accuracy(rename[predicted], rename[labels], ClassCounts(tuple(renamed)))
    assert after == {group: value if value is None else pytest.approx(value) for group, value in before.items()}


def test_empty_groups_and_unseen_classes_are_none_not_zero():
    counts = ClassCounts((500, 400, 5))
    accuracy = shot_accuracy(np.array([0, 0]), np.array([0, 1]), counts)
    assert accuracy == {"many": 50.0, "medium": None, "few": None, "all": 50.0}
    per_class = per_class_accuracy(np.array([0, 0]), np.array([0, 1]), 3)
    assert per_class[:2].tolist() == [100.0, 0.0]
    assert np.isnan(per_class[2])
    assert mean_per_class_accuracy(np.array([0, 0]), np.array([0, 1]), 3) == 50.0


def metric_oracle(name, predicted, labels, counts):
    """Straight from each metric's name, class by class."""
    accuracy = {}
    for c in set(labels):
        mine = [p == y for p, y in zip(predicted, labels, strict=True) if y == c]
        accuracy[c] = 100 * sum(mine) / len(mine)
    group = [a for c, a in accuracy.items() if counts.group_of(int(c)) == name]
    return {
        "mean-per-class": lambda: sum(accuracy.values()) / len(accuracy),
        "all": lambda: 100 * sum(p == y for p, y in zip(predicted, labels, strict=True)) / len(labels),
        "harmonic-mean": lambda: len(accuracy) / sum(1 / max(a, 0.1) for a in accuracy.values()),
        "worst-class": lambda: min(accuracy.values()),
    }.get(name, lambda: sum(group) / len(group))()


@pytest.mark.parametrize("name", METRICS)
def test_every_named_metric_is_its_oracle(name):
    counts = ClassCounts((300, 150, 60, 25, 9, 3))
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = np.r_[np.arange(5), rng.integers(0, 5, 40)]  # class 5 has no sample
        predicted = np.where(rng.random(45) < 0.5, labels, rng.integers(0, 6, 45))
        assert metric(name, labels, counts)(predicted) == pytest.approx(metric_oracle(name, predicted, labels, counts))


def test_metrics_name_what_is_wrong():
    labels = np.array([0, 1])
    with pytest.raises(InputError, match="metric: unknown value 'few-shot'"):
        metric("few-shot", labels, ClassCounts((5, 5)))
    with pytest.raises(InputError, match="'many', which has none"):
        metric("many", labels, ClassCounts((5, 5)))
    with pytest.raises(InputError, match="'few', which has none"):  # a few-shot class, but none of its samples
        metric("few", labels, ClassCounts((500, 500, 5)))


def test_a_class_never_right_is_the_worst_and_not_the_whole_harmonic_mean():
    predicted, labels = np.array([0, 0]), np.array([0, 1])
    assert worst_class_accuracy(predicted, labels, 2) == 0.0
    assert harmonic_mean_accuracy(predicted, labels, 2) == pytest.approx(2 / (1 / 100 + 1 / 0.1))


def test_metrics_refuse():
    with pytest.raises(InputError, match=r"labels in 0\.\.1, got 2"):
        per_class_accuracy(np.array([0]), np.array([2]), 2)
    with pytest.raises(InputError, match="predicted"):
        per_class_accuracy(np.array([0, 1]), np.array([1]), 2)
    for predicted, labels in (([[0], [1]], [0, 1]), (np.eye(2), [0, 1]), ([0, 1], [[0], [1]]), (1, [0])):
        with pytest.raises(InputError, match=r"predicted: expected classes \[N\] and labels \[N\]"), unchecked():
            per_class_accuracy(np.array(predicted), np.array(labels), 2)
    with pytest.raises(InputError, match="predicted: expected one class for each of 3 labels, at least one, got 1"):
        metric("all", np.array([0, 1, 1]), ClassCounts((200, 5)))(np.array([1]))
    with pytest.raises(InputError, match=r"logits: expected finite numbers, got NaN .*first: row 1"):
        top_k_accuracy(np.array([[0.0, 1.0, 2.0], [math.nan, math.nan, 0.0]]), np.array([2, 2]), k=1)
    counts = ClassCounts((200, 5))
    for call in (lambda p, y: group_confusion(p, y, counts), lambda p, y: macro_f1(p, y, 2)):
        for value in (-1, 2):
            with pytest.raises(InputError, match=rf"predicted: .* in 0\.\.1, got {value} at position 1"):
                call(np.array([0, value]), np.array([0, 1]))
        with pytest.raises(InputError, match="predicted: expected one class for each of 1 labels"):
            call(np.array([0, 1]), np.array([1]))


# ---- choosing alpha


def test_sweep_scores_every_alpha_and_takes_the_middle_of_the_best():
    torch.manual_seed(0)
    a, b = torch.randn(200, 5), torch.randn(200, 5)
    labels = torch.randint(0, 5, (200,)).numpy()
    alphas = (0.0, 0.5, 1.0, 2.0)
    score = lambda predicted: mean_per_class_accuracy(predicted, labels, 5)  # noqa: E731  # one line, used twice
    sweep = sweep_alpha((a, b), score, alphas)
    expected = [
        score(np.array([max(range(5), key=lambda c: x[c] - alpha * y[c]) for x, y in zip(a, b, strict=True)]))
        for alpha in alphas
    ]
    assert list(sweep.scores) == pytest.approx(expected)
    assert sweep.chosen == alphas[int(np.argmax(expected))]


def test_sweep_ties_and_errors():
    one = (torch.zeros(1, 2), torch.zeros(1, 2))
    assert sweep_alpha(one, lambda _: 1.0, (0.0, 1.0, 2.0)).chosen == 1.0
    with pytest.raises(InputError, match="alphas"):
        sweep_alpha(one, lambda _: 1.0, ())
    with pytest.raises(InputError, match="score at 0"):
        sweep_alpha(one, lambda _: float("nan"), (0.0,))


def test_masked_classes_may_be_minus_infinity_in_a_store():
    logits = np.zeros((6, 3), dtype=np.float32)
    logits[:, 2] = -np.inf
    assert a_store(logits=logits).logits[0, 2] == -np.inf
    for wrong in (np.nan, np.inf):
        logits[1, 0] = wrong
        with pytest.raises(InputError, match=r"logits: expected finite numbers.*first: row 1"):
            a_store(logits=logits)
    with pytest.raises(InputError, match="logits"):
        a_store(logits=np.full((6, 3), -np.inf, dtype=np.float32))


# ---- store


def a_store(**changes):
    rng = np.random.default_rng(0)
    arrays = {
        "features": rng.random((6, 4), dtype=np.float32),
        "logits": rng.random((6, 3), dtype=np.float32),
        "labels": np.array([0, 1, 2, 0, 1, 2]),
        "ids": np.array(["a/1", "é 2", "<b>", "d", "e", "f"]),
    }
    return Store(**(arrays | {"checkpoint": "abc", "split": "test"} | changes))


def test_store_round_trip_is_memory_mapped(tmp_path):
    store = a_store()
    store.save(tmp_path / "stores" / "test")
    loaded = Store.load(tmp_path / "stores" / "test", "abc")
    for name in ("features", "logits", "labels", "ids"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(store, name))
    assert isinstance(loaded.features, np.memmap)
    assert (loaded.split, loaded.checkpoint, len(loaded)) == ("test", "abc", 6)
    assert [path.name for path in (tmp_path / "stores").iterdir()] == ["test"]


def test_a_store_of_images_on_disk_has_their_ids(tmp_path):
    """These are strings of any length in NumPy's own type, which no .npy holds."""
    names = ["cat/1.jpg", "c/2.jpg", "dög/a long name.jpg", "d", "e", "f"]
    a_store(ids=string_array(names)).save(tmp_path / "test")
    assert Store.load(tmp_path / "test", "abc").ids.tolist() == names


def test_a_link_to_a_store_stays_one(tmp_path):
    a_store().save(tmp_path / "there")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    a_store(checkpoint="new").save(tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]
    assert (tmp_path / "link").is_symlink()
    assert Store.load(tmp_path / "there", "new").checkpoint == "new"


def test_store_of_another_checkpoint_is_refused(tmp_path):
    a_store().save(tmp_path / "test")
    with pytest.raises(InputError, match="made by checkpoint abc, expected xyz"):
        Store.load(tmp_path / "test", "xyz")


def test_saving_replaces_an_older_store(tmp_path):
    a_store().save(tmp_path / "test")
    a_store(checkpoint="new").save(str(tmp_path / "test"))
    assert Store.load(str(tmp_path / "test"), "new").checkpoint == "new"


@pytest.mark.parametrize("broken", ["store.json", "features.npy"])
def test_corrupt_store_is_refused(tmp_path, broken):
    a_store().save(tmp_path / "test")
    (tmp_path / "test" / broken).write_bytes(b"{")
    with pytest.raises(InputError, match="not a readable store"):
        Store.load(tmp_path / "test", "abc")
    (tmp_path / "test" / broken).unlink()
    with pytest.raises(InputError, match="not a readable store"):
        Store.load(tmp_path / "test", "abc")


def test_foreign_store_is_refused(tmp_path):
    a_store().save(tmp_path / "test")
    (tmp_path / "test" / "store.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(InputError, match="expected format"):
        Store.load(tmp_path / "test", "abc")
    for content, message in (([], "no object"), ({"format": "tailwise-store/1"}, "checkpoint and split")):
        (tmp_path / "test" / "store.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            Store.load(tmp_path / "test", "abc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 1, 2, 0, 1, 3])}, r"labels in 0\.\.2, got 3 at position 5"),
        ({"labels": np.array([0, 1])}, "one length"),
        ({"logits": np.zeros(6, dtype=np.float32)}, r"logits \[N, C\]"),
        ({"features": np.full((6, 4), np.nan, dtype=np.float32)}, "features: expected finite numbers, got NaN"),
        ({"logits": np.full((6, 3), np.inf, dtype=np.float32)}, "logits: expected finite"),
    ],
)
def test_store_refuses(change, message):
    with pytest.raises(InputError, match=message):
        a_store(**change)


def test_failed_save_leaves_nothing_and_keeps_the_old(tmp_path, monkeypatch):
    a_store().save(tmp_path / "test")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match="No space left"):
        a_store(checkpoint="new").save(tmp_path / "test")
    assert Store.load(tmp_path / "test", "abc").checkpoint == "abc"
    assert [path.name for path in tmp_path.iterdir()] == ["test"]


# ---- predict


def test_predict_runs_in_eval_mode_and_keeps_order():
    torch.manual_seed(0)
    model = Recognizer(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6)), CausalClassifier(6, 3))
    model(torch.randn(8, 1, 2, 2))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    images, labels = torch.randn(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    ids = np.array(list("abcde"))
    store = predict(model, zip(images.split(2), labels.split(2), strict=True), ids=ids, checkpoint="abc", split="val")
    assert not model.training
    np.testing.assert_allclose(store.features, model.backbone(images).detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(store.logits, model(images).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert store.labels.tolist() == labels.tolist()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name  # no batch-norm statistic, no average moved


def test_predict_refuses_nothing_and_nan():
    model = Recognizer(nn.Flatten(), CausalClassifier(4, 3))
    with pytest.raises(InputError, match="expected images in split 'val'"):
        predict(model, [], ids=np.array([]), checkpoint="", split="val")
    images = torch.full((2, 1, 2, 2), float("nan"))
    with pytest.raises(InputError, match="features: expected finite"):
        predict(model, [(images, torch.tensor([0, 1]))], ids=np.array(["a", "b"]), checkpoint="", split="val")


def test_f1_and_geometric_mean_are_their_definitions():
    rng = np.random.default_rng(5)
    labels, predicted = rng.integers(0, 6, 300), rng.integers(0, 7, 300)
    f1, accuracies = [], []
    for c in range(6):
        right = sum(1 for p, y in zip(predicted, labels, strict=True) if p == y == c)
        claimed, there = sum(1 for p in predicted if p == c), sum(1 for y in labels if y == c)
        precision, recall = right / claimed, right / there
        f1.append(2 * precision * recall / (precision + recall))
        accuracies.append(recall)
    # class 7 has no sample and is no part of the mean; class 6, never right, is none either
    assert macro_f1(predicted, labels, 8) == pytest.approx(100 * sum(f1) / 6)
    product = np.prod(accuracies) ** (1 / 6)
    assert geometric_mean_accuracy(predicted, labels, 8) == pytest.approx(100 * product)
    assert geometric_mean_accuracy(np.array([0, 0]), np.array([0, 1]), 2) == pytest.approx((100 * 0.1) ** 0.5)


def test_top_k_is_the_definition():
    rng = np.random.default_rng(6)
    logits = rng.integers(0, 4, (200, 9)).astype(np.float32)  # many are equal
    logits[:, 8] = -np.inf  # a class never to be predicted
    labels = rng.integers(0, 9, 200)
    for k in (1, 3, 8):
        right = 0
        for row, y in zip(logits, labels, strict=True):
            best = sorted(range(9), key=lambda c: (-row[c], c))[:k]
            right += y in best and row[y] > -np.inf
        assert top_k_accuracy(logits, labels, k) == pytest.approx(100 * right / 200)
    assert top_k_accuracy(logits, labels, 1) == pytest.approx(100 * np.mean(logits.argmax(axis=1) == labels))
    assert top_k_accuracy(logits, labels, 9) is None
    with pytest.raises(InputError, match="expected one for each of 200 rows, at least one, got 3"):
        top_k_accuracy(logits, labels[:3])


def test_a_store_of_features_alone():
    batches = [(torch.ones(2, 1, 2, 2), torch.tensor([0, 7]))]
    store = extract(nn.Flatten(), batches, ids=np.array(["a", "b"]), split="x")
    assert (store.features.shape, store.logits.shape, store.labels.tolist()) == ((2, 4), (2, 0), [0, 7])
    with pytest.raises(InputError, match="features: expected finite"):
        extract(nn.Flatten(), [(torch.full((1, 1), torch.nan), torch.tensor([0]))], ids=np.array(["a"]), split="x")
