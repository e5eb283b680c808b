"""What `tailwise export` writes is the adjusted model: in onnxruntime, in torch alone, in tailwise and on the hub."""

import builtins
import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

import tailwise
from reports import call, run
from tailwise import export
from tailwise.checks import InputError, extra
from tailwise.data import digits_lt
from tailwise.deployment.deployed import DeployedModel
from tailwise.experiments import measure, runs
from tailwise.experiments.build_data import IN_MEMORY, build_data, images_of
from tailwise.experiments.settings import flat
from tailwise.recipes.catalog import RECIPES

ALPHA = 1.5


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """A short run of two seeds with a causal classifier."""
    folder = tmp_path_factory.mktemp("export") / "causal"
    call("train", "digits-lt/tde", "stages.0.epochs=3", "--seeds", 2, "--out", folder, "--json")
    return folder


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """A short run with a linear classifier, an MLP and a fine-tuned model beside it."""
    folder = tmp_path_factory.mktemp("export") / "linear"
    call("train", "digits-lt/linear", "stages.0.epochs=3", "--seeds", 1, "--out", folder, "--json")
    for method in ("crt-mlp", "fine-tune"):
        call("adjust", folder, f"second.{method}.stage.epochs=1", "--method", method, "--json")
    return folder


@pytest.fixture(scope="module")
def images():
    """The bytes of seed 0's test images."""
    return digits_lt(seed=0).test.images


def normalized(images):
    return (images.float() / 16 - 0.3) / 0.4


def expected_logits(folder, images, alpha=ALPHA):
    """Eq. 8 on the trained model's own features."""
    model = tailwise.load_model(folder / "seed-0")
    with torch.no_grad():
        return tailwise.tde(model.backbone(normalized(images)), model.classifier, alpha)


def near(a, b, tolerance):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.fixture
def traced():
    """No shape checks inside: a batch size that is kept open is no whole number to them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def exported(causal, tmp_path_factory):
    """The run as ONNX and torch.export, by format: its folder, what the command said."""
    done = {}
    jaxtyping.config.update("jaxtyping_disable", True)  # as `traced`
    for form in ("onnx", "torch-export"):
        out, said = tmp_path_factory.mktemp("exported") / "out", io.StringIO()
        with contextlib.redirect_stdout(said):
            call("export", causal, "--alpha", ALPHA, "--format", form, "--out", out)
        done[form] = out, said.getvalue()
    jaxtyping.config.update("jaxtyping_disable", False)
    return done


def test_onnx_runs_in_onnxruntime_on_any_batch(causal, exported, images):
    import onnx
    from onnxruntime import InferenceSession

    out, said = exported["onnx"]
    assert f"wrote {out}: tde of seed 0" in said
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.onnx"]
    session = InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(value.name, value.type) for value in session.get_inputs()] == [("images", "tensor(uint8)")]
    for size in (1, 2, 7, 500):
        (logits,) = session.run(["logits"], {"images": images[:size].numpy()})
        assert near(logits, expected_logits(causal, images[:size]), 1e-4)
    names = [tensor.name for tensor in onnx.load(out / "model.onnx").graph.initializer]
    assert not [name for name in names if "average" in name]


@pytest.mark.usefixtures("traced")
def test_torch_export_runs_without_tailwise(causal, exported, images, tmp_path):
    (tmp_path / "out").symlink_to(exported["torch-export"][0])
    np.save(tmp_path / "images.npy", images[:5].numpy())
    script = """
import sys; sys.modules["tailwise"] = None
import numpy, torch
images = torch.from_numpy(numpy.load("images.npy"))
model = torch.export.load("out/model.pt2").module()
numpy.save("logits.npy", torch.cat([model(images[:1]), model(images[1:])]).detach().numpy())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert near(np.load(tmp_path / "logits.npy"), expected_logits(causal, images[:5]), 1e-5)


def test_safetensors_load_in_tailwise_and_on_the_hub(causal, images, capsys, tmp_path):
    from tailwise.deployment.hub import HubModel

    out = tmp_path / "out"
    code, printed, _ = run(capsys, "export", causal, "--alpha", ALPHA, "--out", out, "--json")
    assert code == 0
    assert json.loads(printed) == {"method": "tde", "seed": 0, "wrote": [str(out)]}
    expected = expected_logits(causal, images)
    model = tailwise.load_deployed(out)
    assert not model.training
    assert near(model(images).detach(), expected, 1e-5)
    assert not [name for name in model.state_dict() if "average" in name]
    assert not list(model.classifier.parameters())

    hub = HubModel.from_pretrained(out)
    assert near(hub(images).detach(), expected, 1e-5)
    hub.save_pretrained(tmp_path / "saved")
    assert near(tailwise.load_deployed(tmp_path / "saved")(images).detach(), expected, 1e-5)
    assert near(HubModel.from_pretrained(tmp_path / "saved")(images).detach(), expected, 1e-5)


@pytest.mark.usefixtures("traced")
def test_the_page_on_deploying_runs(causal, exported, capsys, tmp_path, monkeypatch):
    for file, form in (("model.onnx", "onnx"), ("model.pt2", "torch-export")):
        (tmp_path / file).symlink_to(exported[form][0] / file)
    run(capsys, "export", causal, "--alpha", 1, "--out", tmp_path / "exported/tde-safetensors")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs/deploy.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    assert len(blocks) == 2
    for code in blocks:
        names = {}
        exec(code, names)
    assert names["adjusted"](names["images"]).shape == (8, 10)


def test_loading_leaves_the_random_state_alone(causal, capsys, tmp_path):
    run(capsys, "export", causal, "--alpha", 1, "--out", tmp_path / "out")
    before = torch.get_rng_state()
    tailwise.load_deployed(tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", ["de-confound", "tde", "ncm-centered"])
def test_every_method_of_a_causal_run_is_exported_as_measured(causal, images, method, capsys, tmp_path):
    code, _, _ = run(capsys, "export", causal, "--method", method, "--out", tmp_path / "out")
    assert code == 0
    check_measured(causal, images, method, tmp_path / "out")


@pytest.mark.parametrize("method", ["linear", "tau-norm", "crt-mlp", "fine-tune"])
def test_every_method_of_a_linear_run_is_exported_as_measured(linear, images, method, capsys, tmp_path):
    code, _, _ = run(capsys, "export", linear, "--method", method, "--out", tmp_path / "out")
    assert code == 0
    check_measured(linear, images, method, tmp_path / "out")


def check_measured(folder, images, method, out):
    """The exported model's accuracy is what `evaluate` says; its logits are those of what is kept."""
    row = measure.open_trained(runs.open_run(folder).seeds[0], None).row(method)
    logits = tailwise.load_deployed(out)(images).detach()
    right = logits.argmax(dim=1) == digits_lt(seed=0).test.labels
    assert 100 * right.float().mean().item() == pytest.approx(row["all"], abs=1e-3)
    if (folder / f"seed-0/adjusted/{method}.safetensors").exists():
        assert near(logits, tailwise.load_model(folder / "seed-0", method)(normalized(images)).detach(), 1e-5)
    if method in ("linear", "de-confound"):
        assert near(logits, tailwise.load_model(folder / "seed-0")(normalized(images)).detach(), 1e-5)


def test_a_linear_run_is_exported_as_it_is_unless_told_otherwise(linear, capsys, tmp_path):
    code, said, _ = run(capsys, "export", linear, "--out", tmp_path / "out")
    assert (code, "linear of seed 0" in said) == (0, True)


def test_the_seed_can_be_chosen_and_the_folder_is_in_the_seeds(causal, capsys):
    code, printed, _ = run(capsys, "export", causal, "--alpha", 1, "--seed", 1, "--json")
    assert (code, json.loads(printed)["wrote"]) == (0, [str(causal / "seed-1/exported/tde-safetensors")])
    model = tailwise.load_deployed(causal / "seed-1/exported/tde-safetensors")
    weights = [tailwise.load_model(causal / f"seed-{s}").backbone.layers[0].weight for s in (0, 1)]
    assert [torch.equal(model.backbone.layers[0].weight, weight) for weight in weights] == [False, True]
    # what a run is measured from is not disturbed
    assert run(capsys, "evaluate", causal, "--json")[0] == 0


def test_the_card_says_what_was_measured_on_what(causal, capsys, tmp_path):
    run(capsys, "export", causal, "--alpha", ALPHA, "--out", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    results = json.loads((causal / "seed-0/results.json").read_text())
    row = measure.open_trained(runs.open_run(causal).seeds[0], None).row("tde", measure.Asked(alpha=ALPHA))
    assert card.startswith("---\nlibrary_name: tailwise\n")
    assert f"tde, alpha {ALPHA} (from given)" in card
    assert f"| {' | '.join(f'{row[group]:.1f}' for group in ('many', 'medium', 'few', 'all'))} |" in card
    for name, count, accuracy in zip(results["class_names"], results["counts"], row["per_class"], strict=True):
        assert f"| {name} | {count} | {accuracy:.1f} |" in card
    assert results["subset_hash"][:12] in card
    assert "digits-lt: 305 training images, at most 110 and at least 2 of a class." in card
    for name, value in flat(results["recipe"]).items():
        assert f"| {name} | {value} |" in card
    assert f"| made with torch | {torch.__version__} |" in card
    assert re.findall(r"^## (.*)", card, flags=re.M) == ["Data", "Metrics", "Use", "Limits", "Settings"]


def test_an_empty_group_is_a_dash_and_a_bar_in_a_name_breaks_no_table():
    about = {
        "recipe": {"name": "x/y", "data": {"name": "x"}},
        "class_names": ["a|b"],
        "counts": [3],
        "protocol": "clean",
        "seed": 0,
        "subset_hash": "0" * 64,
        "versions": {},
    }
    row = {"many": None, "medium": None, "few": 50.0, "all": 50.0, "per_class": [None]}
    card = export.model_card(about, row, "tde", {})
    assert "| - | - | 50.0 | 50.0 |" in card
    assert "| a\\|b | 3 | - |" in card
    adjusted = export.model_card(about, row | {"alpha": {"value": 1.0, "from": "val"}}, "tde", {})
    assert ["choose the strength anew" in text for text in (card, adjusted)] == [False, True]


# ------------------------------------------------------------------------------------------------- nothing half-done


def test_a_folder_that_holds_something_is_left_alone(causal, capsys, tmp_path):
    (tmp_path / "mine").write_text("kept")
    code, _, err = run(capsys, "export", causal, "--alpha", 1, "--out", tmp_path)
    assert (code, err) == (2, f"tailwise: out: expected a new or empty folder, got {tmp_path}, which holds something\n")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    code, _, _ = run(capsys, "export", causal, "--alpha", 1, "--out", tmp_path / "mine")
    assert (code, (tmp_path / "mine").read_text()) == (2, "kept")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_what_was_not_finished_is_not_there(error, tmp_path):
    def write(error):
        with export.new_folder(tmp_path / "out") as folder:
            (folder / "part").write_text("some")
            assert not (tmp_path / "out").exists()
            if error:
                raise error

    with pytest.raises((KeyboardInterrupt, InputError)):
        write(error)
    assert list(tmp_path.iterdir()) == []
    write(None)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "part"]


def test_without_onnx_there_is_a_hint_and_no_folder(causal, capsys, tmp_path, monkeypatch):
    usual = builtins.__import__

    def refuse(name, *more, **named):
        if name.split(".")[0] == "onnxscript":
            raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")
        return usual(name, *more, **named)

    for name in [name for name in sys.modules if name.split(".")[0] == "onnxscript"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    code, _, err = run(capsys, "export", causal, "--alpha", 1, "--format", "onnx", "--out", tmp_path / "out")
    assert code == 2
    assert f"format: onnx needs onnxscript, which is not installed; {extra('onnx')}" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "7"], "seed: expected one of 0, 1, got 7"),
        (["--method", "lws"], "needs a linear classifier"),
        (["--method", "crt"], "no 'crt' was trained in"),
        (["--power", "1"], "power: expected a method that has one, got tde"),
        (["--alpha", "much"], "alpha: expected a finite number or auto, got 'much'"),
        (["--format", "pickle"], "pickle"),
    ],
)
def test_what_cannot_be_exported_is_refused(causal, capsys, tmp_path, arguments, message):
    code, _, err = run(capsys, "export", causal, *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_fit_is_refused(causal, capsys, tmp_path):
    out = tmp_path / "out"
    run(capsys, "export", causal, "--alpha", 1, "--out", out)
    config = json.loads((out / "config.json").read_text())
    (out / "model.safetensors").rename(out / "away")
    with pytest.raises(InputError, match=r"model\.safetensors: not readable"):
        tailwise.load_deployed(out)
    (out / "away").rename(out / "model.safetensors")
    for change, message in (
        ({"backbone": "digits-nett"}, r"backbone\.name: unknown value 'digits-nett'; did you mean 'digits-net'"),
        ({"class_names": ["a", "b"]}, r"classifier\.weight is \[10, 64\], expected \[2, 64\]"),
        ({"newer": 1}, r"config\.json: not of this version of tailwise"),
        ({"backbone": 5}, "backbone"),
        ({"backbone": ""}, "backbone: expected a name, got ''"),
        ({"image_shape": []}, r"image_shape: expected channels, H and W, got \[\]"),
        ({"image_shape": [1, 0, 8]}, "image_shape: expected a whole number of at least 1, got 0"),
        ({"scale": 0.0}, r"scale: expected a finite number above 0, got 0\.0"),
        ({"mean": [float("nan")]}, "mean: expected a finite number, got nan"),
    ):
        (out / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=message):
            tailwise.load_deployed(out)


def test_what_is_known_of_images_is_what_the_data_says():
    for recipe in RECIPES.values():
        shape, normalize, view = images_of(recipe)
        assert (view is None) == (recipe.data.name in IN_MEMORY)
        if recipe.data.name == "digits-lt":
            data = build_data(recipe, 0, None)
            assert (data.test.images.shape[1:], data.normalize) == (shape, normalize)


def test_normalization_is_that_of_the_data():
    data = digits_lt(seed=0)
    shape, normalize = IN_MEMORY["digits-lt"]
    model = DeployedModel(
        backbone="digits-net",
        class_names=data.class_names,
        image_shape=shape,
        scale=normalize.scale,
        mean=normalize.mean,
        std=normalize.std,
    )
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(data.val.images)
    assert torch.equal(seen[0], data.normalize(data.val.images))
