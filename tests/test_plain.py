"""Adjusting the last layer of a plain model: pure functions, files, the command."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

import tailwise
from reports import run
from tailwise import ClassCounts, InputError
from tailwise.adjust import (
    fit_crt,
    fit_lws,
    fit_ncm,
    fold_mean_direction,
    fold_tau_norm,
    learn_linear,
    learn_norm_power,
    tau_norm_components,
)
from tailwise.adjust.unseen import unseen_expected
from tailwise.own_features import METHODS, PlainModel, adjust_plain, read_plain
from tailwise.train import load_checkpoint

COUNTS = (120, 40, 12, 6)


def draw(seed, counts):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(4, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    return means[labels] + torch.randn(len(labels), 8, generator=generator) + 1, labels


@pytest.fixture
def files(tmp_path):
    """Weights, features and labels on disk, and the model they are of."""
    x, y = draw(0, COUNTS)
    linear = learn_linear(x, y, 4, balanced=False)
    np.savez(tmp_path / "w.npz", weight=linear.weight.detach().numpy(), bias=linear.bias.detach().numpy())
    np.save(tmp_path / "f.npy", x.numpy())
    np.save(tmp_path / "y.npy", y.numpy())
    return tmp_path, linear, x, y


def arguments(folder, *more):
    named = (("--weights", "w.npz"), ("--features", "f.npy"), ("--labels", "y.npy"), ("--out", "out.safetensors"))
    return ["adjust", *(str(word) for name, file in named for word in (name, folder / file)), *more]


def expected(method, linear, x, y):
    """(weight, bias) by the pure functions, or the formula in one line."""
    with torch.no_grad():
        if method == "la":
            return linear.weight, linear.bias - (torch.tensor(COUNTS) / 178).log()
        if method == "tde":
            d = x.mean(dim=0) / x.mean(dim=0).norm()
            alpha = 1 / torch.cosine_similarity(x, d[None]).mean()
            return linear.weight @ (torch.eye(8) - alpha * torch.outer(d, d)), linear.bias
        found = {
            "plain": lambda: linear,
            "tau-norm": lambda: fold_tau_norm(linear, 0.5),
            "lws": lambda: fit_lws(x, y, linear),
            "crt": lambda: fit_crt(x, y, 4),
            "ncm": lambda: fit_ncm(x, y, 4),
        }[method]()
        return found.weight, found.bias


@pytest.mark.parametrize("method", METHODS)
def test_the_command_writes_what_the_functions_give(files, capsys, method):
    folder, linear, x, y = files
    more = ("--power", "0.5") if method == "tau-norm" else ()
    code, out, err = run(capsys, *arguments(folder, "--method", method, *more, "--json"))
    assert (code, err) == (0, "")
    assert json.loads(out)["method"] == method
    written = load_checkpoint(folder / "out.safetensors")
    weight, bias = expected(method, linear, x, y)
    torch.testing.assert_close(written.state["weight"], weight.detach(), atol=1e-5, rtol=1e-5)
    if bias is None:
        assert "bias" not in written.state
    else:
        shift = written.state["bias"] - bias.detach()
        torch.testing.assert_close(shift, shift[:1].expand(4), atol=1e-5, rtol=0)  # a prior of counts adds a constant
    assert written.meta["norm"] == ("unit" if method == "ncm" else "none")
    assert written.meta["notes"].get("heuristic") == (True if method == "tde" else None)


def test_auto_takes_the_best_of_the_folds_and_helps(files, capsys):
    folder, linear, _, _ = files
    code, out, _ = run(capsys, *arguments(folder, "--json"))
    assert code == 0
    record = json.loads(out)
    scores = {name: told["score"] for name, told in record["scores"].items()}
    assert list(scores) == list(METHODS)
    assert max(scores.values()) - 5 < scores[record["method"]]
    assert scores[record["method"]] > scores["plain"]
    assert record["chosen_on"] == "5 folds of the features, cross-fitted"
    assert all(told["interval"][0] < told["score"] < told["interval"][1] for told in record["scores"].values())
    x, y = draw(2, (30, 30, 30, 30))
    np.save(folder / "vf.npy", x.numpy())
    np.save(folder / "vy.npy", y.numpy())
    code, out, _ = run(
        capsys, *arguments(folder, "--val-features", str(folder / "vf.npy"), "--val-labels", str(folder / "vy.npy"))
    )
    assert out.splitlines()[0] == "mean per-class accuracy in %, 95 % interval, on 120 validation features"
    score = 100 * (linear(x).argmax(dim=1) == y).float().mean()
    assert out.splitlines()[1].split()[:2] == ["plain", f"{score:.1f}"]
    assert out.splitlines()[-1] == f"wrote {folder / 'out.safetensors'}"
    test, truth = draw(1, (100, 100, 100, 100))
    model = read_plain(folder / "w.npz", folder / "f.npy", folder / "y.npy")
    adjusted = adjust_plain(model, "auto").classifier
    assert (adjusted(test).argmax(dim=1) == truth).float().mean() > (linear(test).argmax(dim=1) == truth).float().mean()


def test_a_class_of_one_feature_may_be_predicted_by_all_that_keep_the_layers_rows():
    """A fold that lacks it says nothing of what the layer knows of it."""
    generator = torch.Generator().manual_seed(0)
    linear, y = tailwise.LinearClassifier(8, 4), torch.tensor([0] * 12 + [1] * 6 + [2, 3])
    linear.weight.data.copy_(5 * torch.eye(4, 8))
    linear.bias.data.zero_()
    x = torch.eye(4, 8)[y] + 0.01 * torch.randn(20, 8, generator=generator)
    scores = adjust_plain(PlainModel(linear, x, y), "auto").notes["scores"]
    assert {name: told["score"] for name, told in scores.items() if name != "tde"} == {
        **dict.fromkeys(("plain", "la", "tau-norm", "lws"), 100),
        **dict.fromkeys(("crt", "ncm"), 50),  # they have no row for it
    }


def test_names_in_safetensors_and_limit_case(files):
    folder, linear, x, _ = files
    save_file({"fc.weight": linear.weight.detach().numpy(), "bn.running": np.zeros(3)}, folder / "w.safetensors")
    model = read_plain(folder / "w.safetensors", folder / "f.npy", folder / "y.npy")
    assert model.classifier.bias is None
    assert torch.equal(model.classifier.weight, linear.weight)
    untouched, alpha = fold_mean_direction(linear, x, 0.0)
    assert alpha == 0
    assert torch.equal(untouched(x), linear(x))
    with pytest.raises(InputError, match="features: expected those of the training images, got none"):
        fold_mean_direction(linear, x[:0])


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_class_without_a_feature_is_never_predicted(files, method):
    _, linear, x, y = files
    linear.weight.data[3] = 5 * x.mean(dim=0)  # the class that it would be
    with pytest.warns(UserWarning, match=r"1 of 4 classes .*\b3\b"):
        found = adjust_plain(PlainModel(linear, x[y < 3], y[y < 3]), method).classifier
    assert found(x)[:, 3].tolist() == [-math.inf] * len(x)


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_a_class_that_the_layer_never_saw_may_have_features(files, method):
    """Its row in the layer says nothing; what learns from the features alone does predict it."""
    _, linear, x, y = files
    linear.weight.data[3] = 5 * x.mean(dim=0)
    with unseen_expected():
        found = adjust_plain(PlainModel(linear, x, y, counts=ClassCounts((120, 40, 12, 0))), method)
    masked = (found.classifier(x)[:, 3] == -math.inf).all()
    assert masked == (found.method in ("la", "tau-norm", "lws", "tde"))
    if method == "tau-norm":
        known = y < 3
        with unseen_expected():
            components = tau_norm_components(x[known], linear, counts=ClassCounts((120, 40, 12, 0)))
        assert found.notes["norm_power"] == learn_norm_power(components, y[known])


@pytest.mark.parametrize("shift", [0.0, 0.02])
def test_features_around_0_have_no_direction(files, capsys, shift):
    """As in the estimator: the rule of thumb would be a division by next to nothing."""
    folder, linear, x, y = files
    x = x - x.mean(dim=0) + shift
    folded, alpha = fold_mean_direction(linear, x)
    assert alpha == 0
    assert torch.equal(folded(x), linear(x))
    assert fold_mean_direction(linear, x, 2.0)[1] == 2
    np.save(folder / "f.npy", x.numpy())
    model = read_plain(folder / "w.npz", folder / "f.npy", folder / "y.npy")
    for val in (None, (x, y)):
        assert adjust_plain(dataclasses.replace(model, val=val), "auto").method != "tde"
    code, out, _ = run(capsys, *arguments(folder, "--method", "tde"))
    assert code == 0
    assert out.startswith("tde, alpha 0.0, heuristic True, why features lie around 0: no direction to remove\n")


@pytest.mark.parametrize(("weight", "bias"), [("kernel", "bias"), ("W", "b"), ("fc/kernel", "fc/bias")])
def test_a_bias_is_named_as_its_weight_is(files, weight, bias):
    folder, linear, _, _ = files
    stored = linear.weight.detach().bfloat16()
    stored = stored.T.contiguous() if weight.endswith("kernel") else stored  # Keras and Flax have [D, C]
    arrays = {weight: stored, bias: linear.bias.detach().bfloat16()}
    save_tensors(arrays, folder / "w.safetensors")
    model = read_plain(folder / "w.safetensors", folder / "f.npy", folder / "y.npy")
    assert model.classifier.bias is not None
    assert torch.equal(model.classifier.bias, arrays[bias].float())
    assert torch.equal(model.classifier.weight, linear.weight.bfloat16().float())


def test_the_page_on_own_features_runs(capsys):
    page = (Path(__file__).parents[1] / "docs/own_features.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    assert len(blocks) == 2
    for code in blocks:
        exec(code, {})
    assert "Combination(" in capsys.readouterr().out


def test_counts_are_those_that_the_layer_was_trained_on(files, capsys):
    """Held-out features are often as many of each class: their labels know nothing of the layer's prior."""
    folder, linear, x, y = files
    few = torch.cat([torch.nonzero(y == label).flatten()[:5] for label in range(3)])  # and class 3 has none
    np.save(folder / "f.npy", x[few].numpy())
    np.save(folder / "y.npy", y[few].numpy())
    np.save(folder / "counts.npy", np.array(COUNTS))
    code, out, err = run(capsys, *arguments(folder, "--method", "la", "--counts", str(folder / "counts.npy")))
    assert (code, err) == (0, "")
    assert "prior of the counts" in out
    found = load_checkpoint(folder / "out.safetensors").state
    torch.testing.assert_close(found["bias"], (linear.bias - (torch.tensor(COUNTS) * 4 / 178).log()).detach())
    with pytest.warns(UserWarning, match=r"1 of 4 classes .*\b3\b"):
        assert run(capsys, *arguments(folder, "--method", "la"))[0] == 0
    even = load_checkpoint(folder / "out.safetensors").state["bias"][:3] - linear.bias[:3].detach()
    torch.testing.assert_close(even, even[:1].expand(3))
    for wrong in ([1, 2, 3], [1, 2, 3, -4], [1, 2, 3, 0.5], [0, 0, 0, 0]):
        np.save(folder / "wrong.npy", np.array(wrong))
        code, _, err = run(capsys, *arguments(folder, "--method", "la", "--counts", str(folder / "wrong.npy")))
        assert (code, "wrong.npy: expected 4 numbers of images, got" in err) == (2, True)


def test_misuse_is_one_line(files, capsys):
    folder, _, x, _ = files
    np.savez(folder / "two.npz", **{"a.weight": np.zeros((4, 8)), "b.weight": np.zeros((4, 8))})
    np.save(folder / "wide.npy", np.zeros((178, 9)))
    np.save(folder / "float.npy", np.zeros(178))
    np.save(folder / "high.npy", np.full(178, 4))
    np.save(folder / "nan.npy", np.full((178, 8), np.nan))
    np.savez(folder / "shift.npz", weight=np.zeros((4, 8)), shift=np.zeros(4))
    (folder / "broken.npz").write_text("no arrays")
    (folder / "half.npz").write_bytes((folder / "w.npz").read_bytes()[:300])
    good = dict(zip(("--weights", "--features", "--labels"), ("w.npz", "f.npy", "y.npy"), strict=True))
    for changed, more, message in (
        ({"--weights": "two.npz"}, (), "a.weight [4, 8], b.weight [4, 8]"),
        ({"--weights": "broken.npz"}, (), "not a readable file of arrays"),
        ({"--weights": "absent.npz"}, (), "not a readable file of arrays"),
        ({"--weights": "half.npz"}, (), "not a readable file of arrays"),
        ({"--weights": "shift.npz"}, (), "expected no array [4] or a bias named as 'weight' is"),
        ({"--features": "wide.npy"}, (), "expected features [N, 8]"),
        ({"--labels": "float.npy"}, (), "expected whole numbers, got float64"),
        ({}, ("--method", "tau-nrm"), "did you mean 'tau-norm'"),
        ({}, ("--method", "crt", "--alpha", "1"), "alpha: expected --method tde, got crt"),
        ({}, ("--method", "tde", "--alpha", "auto"), "alpha: expected a finite number, got 'auto'"),
        ({}, ("--power", "1"), "power: expected --method tau-norm, got auto"),
        ({}, ("--val-features", "f.npy"), "expected features and labels of it or neither"),
        ({}, ("--method", "la", "--val-features", "f.npy"), "val-features: expected --method auto"),
        ({}, ("--metric", "few"), "metric: expected a run folder, got --weights"),
        ({}, ("--track", "tensorboard"), "track: expected a run folder, got --weights"),
        ({}, ("--data-dir", "data"), "data-dir: expected a run folder, got --weights"),
        ({}, ("--device", "cpu"), "device: expected a run folder, got --weights"),
        ({"--labels": "high.npy"}, (), "expected labels in 0..3"),
        ({"--features": "nan.npy"}, (), "nan.npy: expected finite"),
    ):
        words = [str(word) for name, file in (good | changed).items() for word in (name, folder / file)]
        code, _, err = run(capsys, "adjust", *words, "--out", str(folder / "no.safetensors"), *more)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
    for words in (["adjust"], ["adjust", "--weights", "w.npz"], ["adjust", "runs/x", *arguments(folder)[1:]]):
        code, _, err = run(capsys, *words)
        assert (code, "expected a run folder, or --weights" in err) == (2, True)
    code, _, err = run(capsys, "adjust", "runs/x", "--method", "ncm", "--out", str(folder / "no.safetensors"))
    assert (code, err) == (2, "tailwise: out: expected --weights, got the run runs/x, which keeps what is made of it\n")
    assert not (folder / "no.safetensors").exists()
    with pytest.raises(InputError, match="strength"):
        adjust_plain(read_plain(folder / "w.npz", folder / "f.npy", folder / "y.npy"), "ncm", strength=1.0)
    with pytest.raises(InputError, match="alpha"):
        fold_mean_direction(tailwise.LinearClassifier(8, 4), x, float("nan"))
