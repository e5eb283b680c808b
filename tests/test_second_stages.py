"""Second stages: what they leave frozen, what they start from, and that it does not matter when they are trained."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from tailwise import ClassCounts, InputError
from tailwise.backbones import DigitsNet
from tailwise.classifiers import CausalClassifier, CosineClassifier, LinearClassifier
from tailwise.data import LongTailedData
from tailwise.experiments import experiment, files, measure, runs
from tailwise.experiments.build_data import build_data
from tailwise.experiments.second import train_second_stage, try_second_stage, unwatched
from tailwise.experiments.trained import Asked
from tailwise.experiments.watch import Silent
from tailwise.recipes.build import build_model, build_second_classifier
from tailwise.recipes.build_stages import build_sampler
from tailwise.recipes.catalog import RECIPES, SUITES, find, second_stage, with_second_stage
from tailwise.recipes.overrides import override, override_after_training
from tailwise.recipes.schema import CosineSettings, LinearSettings, MlpSettings, ScaledSettings
from tailwise.recognizer import Recognizer
from tailwise.report.summary import summarize
from tailwise.train import load_checkpoint, save_checkpoint

SECOND = ["crt", "lws", "crt-stored", "lws-stored", "crt-mlp", "crt-cosine"]
SECOND += ["fine-tune", "fine-tune-slow", "fine-tune-last-block"]
SHORT = ["stages.0.epochs=8", *(f"second.{name}.stage.epochs=2" for name in SECOND)]


class Counting(Silent):
    def begin(self, label, epochs, settings, folder):
        self.epochs = epochs

    def epoch(self, record):
        self.epochs -= 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """digits-lt/decoupling-all, two seeds, every second stage shortened."""
    watch = Counting()
    recipes = override(find("digits-lt/decoupling-all"), SHORT)
    folder = tmp_path_factory.mktemp("runs") / "all"
    trained = experiment.train(recipes, (0, 1), folder, data_dir=None, watch=watch)[0]
    assert watch.epochs == 0  # as many epochs were announced as came
    return trained


@pytest.fixture(scope="module")
def trained(run):
    return measure.open_trained(run.seeds[0], None)


def second(trained, method, *settings):
    """The second stage of a method, trained here, and the first stage's state before it."""
    recipe = override_after_training(with_second_stage(trained.recipe, method), method, settings)
    before = copy.deepcopy(trained.model.state_dict())
    made = train_second_stage(
        recipe, method, trained.model, trained.stores, lambda: trained.data, trained.counts, 0, on_epoch=unwatched
    )
    after = trained.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # the first stage is never touched
    return made, before


def changed(model, before, part):
    """Names of the tensors of a part of the model that are no longer what they were."""
    return {
        name
        for name, tensor in model.state_dict().items()
        if name.startswith(part)
        if not torch.equal(tensor, before[name])
    }


@pytest.mark.parametrize("method", ["crt", "lws", "crt-mlp", "crt-cosine", "crt-stored", "lws-stored"])
def test_frozen_means_frozen(trained, method):
    made, before = second(trained, method)
    assert changed(made.model, before, "backbone.") == set()  # parameters and batch-norm statistics, bit for bit
    assert not made.own_features


@pytest.mark.parametrize("method", ["crt", "lws"])
def test_legacy_bn_drift_moves_statistics_and_nothing_else(trained, method):
    made, before = second(trained, method, f"second.{method}.stage.legacy_bn_drift=true")
    moved = changed(made.model, before, "backbone.")
    assert moved == {name for name in before if "running_" in name or "num_batches" in name}
    assert made.own_features
    frozen, _ = second(trained, method)
    assert not torch.equal(made.model.classifier.weight, frozen.model.classifier.weight)


def test_fine_tuning_trains_what_its_name_says(trained):
    whole, before = second(trained, "fine-tune")
    parameters = {name for name, _ in trained.model.named_parameters() if name.startswith("backbone.")}
    assert changed(whole.model, before, "backbone.") >= parameters
    last, _ = second(trained, "fine-tune-last-block")
    assert changed(last.model, before, "backbone.") == {
        name for name in before if name.startswith(("backbone.layers.7.", "backbone.layers.8."))
    }
    stages = [second_stage("digits-lt", name).stage for name in ("fine-tune", "fine-tune-slow", "crt")]
    assert [stage.learning_rate for stage in stages] == [0.2, pytest.approx(0.02), 0.2]
    assert [stage.trainable for stage in stages] == ["all", "all", "classifier"]
    assert {stage.sampler for stage in stages} == {"class-aware"}


def test_crt_starts_afresh_and_lws_from_what_was_trained(trained):
    still = "stage.learning_rate=1e-9"
    crt, before = second(trained, "crt", f"second.crt.{still}")
    lws, _ = second(trained, "lws", f"second.lws.{still}")
    old = before["classifier.weight"]
    torch.testing.assert_close(lws.model.classifier.weight, old)  # s = 1
    torch.testing.assert_close(lws.model.classifier.bias, before["classifier.bias"])
    cosine = torch.nn.functional.cosine_similarity(crt.model.classifier.weight, old, dim=1)
    assert cosine.abs().max() < 0.6  # a fresh direction in 64 dimensions
    assert crt.model.classifier.weight.abs().max() <= 1 / 8  # as LinearClassifier begins


def test_lws_scales_each_class_and_nothing_more(trained):
    made, before = second(trained, "lws", "second.lws.stage.epochs=5")
    scale = made.model.classifier.weight / before["classifier.weight"]
    bias = made.model.classifier.bias / before["classifier.bias"]
    torch.testing.assert_close(scale, bias[:, None].expand_as(scale), rtol=1e-4, atol=1e-4)
    assert scale[:, 0].std() > 1e-3


def test_lws_on_a_bias_free_first_stage_is_bias_free(tmp_path):
    recipes = override(find("digits-lt/linear"), ["stages.0.epochs=1"])
    seed = experiment.train(recipes, (0,), tmp_path / "a", data_dir=None, watch=Silent())[0].seeds[0]
    for method in ("lws", "lws-stored"):
        made, before = second(measure.open_trained(seed, None), method)
        assert "classifier.bias" not in before
        assert made.model.classifier.bias is None


@pytest.mark.parametrize("settings", [LinearSettings(), ScaledSettings(), MlpSettings(), CosineSettings()])
def test_a_first_stage_of_other_classes_or_width_is_refused(settings):
    build_second_classifier(settings, LinearClassifier(64, 10), 64, 10)
    with pytest.raises(InputError, match="expected a classifier of 10 classes and 64 features, got one of 100 classes"):
        build_second_classifier(settings, LinearClassifier(64, 100), 64, 10)
    with pytest.raises(InputError, match="10 classes and 64 features, got one of 10 classes and 128 features"):
        build_second_classifier(settings, LinearClassifier(128, 10), 64, 10)


def test_lws_wants_a_linear_first_stage():
    with pytest.raises(InputError, match="expected a linear classifier, got CausalClassifier"):
        build_second_classifier(ScaledSettings(), CausalClassifier(64, 10), 64, 10)


def test_second_classifiers_are_what_the_settings_say(trained):
    made, _ = second(
        trained, "crt-mlp", "second.crt-mlp.classifier.num_layers=3", "second.crt-mlp.classifier.hidden_features=7"
    )
    assert [layer.weight.shape for layer in made.model.classifier.hidden[::2]] == [(7, 64), (7, 7)]
    made, _ = second(trained, "crt-cosine")
    assert made.model.classifier.norm == "unit"
    assert isinstance(build_second_classifier(CosineSettings(), LinearClassifier(64, 10), 64, 10), CosineClassifier)


# ---- the run folder


def test_rows_are_those_of_the_recipe_in_order(run):
    for seed in run.seeds:
        rows = seed.results()["rows"]
        assert tuple(rows) == run.recipe.methods
        assert {name for name, row in rows.items() if "second_stage" in row} == set(SECOND)
        assert {name for name in SECOND if rows[name]["second_stage"]["on"] == "features"} == {
            "crt-stored",
            "lws-stored",
        }
        kept = {path.stem for path in seed.path.glob("adjusted/*.safetensors")}
        assert kept == set(SECOND)


@pytest.mark.parametrize("method", SECOND)
def test_a_kept_model_predicts_from_images_as_its_row_says(run, method):
    for seed in run.seeds:
        model = measure.load_model(seed.path, method)
        data = build_data(seed.recipe, seed.seed, None)
        with torch.no_grad():
            predicted = model(data.normalize(data.test.images)).argmax(1)
        accuracy = 100 * (predicted == data.test.labels).double().mean().item()
        assert accuracy == pytest.approx(seed.results()["rows"][method]["all"])


def test_kept_models_are_measured_again(run):
    for seed in run.seeds:
        again = measure.measure(measure.open_trained(seed, None), run.recipe.methods)
        assert again["rows"] == seed.results()["rows"]


def test_a_fine_tuned_model_sees_val_with_its_own_features(run):
    trained = measure.open_trained(run.seeds[0], None)
    model, val = measure.load_model(run.seeds[0].path, "fine-tune"), trained.data.val
    with torch.no_grad():
        right = model(trained.data.normalize(val.images)).argmax(dim=1) == val.labels
    assert measure.val_row(trained, "fine-tune")["all"] == pytest.approx(100 * right.double().mean().item())


def test_a_strength_leaves_what_does_not_depend_on_it(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    seed = runs.open_run(tmp_path / "copy").seeds[0]
    centered = override([run.recipe], ["ncm.distance=centered"])[0]
    kept = measure.adjust(measure.open_trained(seed, None, centered), "ncm")[0]["rows"]["ncm"]
    found = measure.measure(measure.open_trained(seed, None), ["ncm", "tau-norm"], Asked(power=0.5))["rows"]
    assert found["ncm"] == kept
    assert found["tau-norm"]["norm_power"]["value"] == 0.5


def test_lost_stores_of_a_fine_tuned_model_are_made_again(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    seed = runs.open_run(tmp_path / "copy").seeds[0]
    shutil.rmtree(seed.path / "stores")
    again = measure.measure(measure.open_trained(seed, None), ["joint", "fine-tune"])["rows"]
    assert again["fine-tune"] == seed.results()["rows"]["fine-tune"]
    assert again["joint"] == seed.results()["rows"]["joint"]


@pytest.mark.parametrize("method", ["crt", "lws", "crt-stored", "fine-tune-last-block"])
def test_a_stage_that_follows_later_is_the_stage_that_follows_at_once(run, tmp_path, method):
    shutil.copytree(run.path, tmp_path / "copy")
    seed = runs.open_run(tmp_path / "copy").seeds[1]
    before = load_checkpoint(seed.path / f"adjusted/{method}.safetensors")
    torch.manual_seed(99)  # nor does the global random state matter
    result, path = measure.adjust(measure.open_trained(seed, None), method)
    assert load_checkpoint(path).digest == before.digest
    assert result["rows"][method] == seed.results()["rows"][method]


def test_a_second_stage_of_before_a_setting_was_there_has_its_default(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    seeds = runs.open_run(tmp_path / "copy").seeds
    kept = load_checkpoint(seeds[0].path / "adjusted/crt-stored.safetensors")
    content = files.read_json(seeds[0].path / runs.RESULTS)
    for written in (kept.meta["notes"]["second_stage"], content["rows"]["crt-stored"]["second_stage"]):
        del written["stage"]["clip_norm"], written["stage"]["reweight_beta"]
    save_checkpoint(seeds[0].path / "adjusted/crt-stored.safetensors", kept.state, kept.meta)
    files.write_json(seeds[0].path / runs.RESULTS, content)

    before, after = run.seeds[0].results(), measure.open_trained(seeds[0], None)
    assert summarize([seed.results() for seed in seeds]) == summarize([seed.results() for seed in run.seeds])
    assert measure.measure(after, ["crt-stored"])["rows"]["crt-stored"] == before["rows"]["crt-stored"]
    assert measure.adjust(after, "crt-stored")[0]["rows"]["crt-stored"] == before["rows"]["crt-stored"]


def test_second_stages_of_different_seeds_and_methods_differ(run):
    weights = [
        measure.load_model(seed.path, method).classifier.weight
        for seed in run.seeds
        for method in ("crt", "crt-stored")
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[i + 1 :])


def test_an_adjusted_model_of_another_checkpoint_is_refused(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    one, other = runs.open_run(tmp_path / "copy").seeds
    shutil.copy(other.path / "adjusted/crt.safetensors", one.path / "adjusted/crt.safetensors")
    with pytest.raises(InputError, match="made from checkpoint"):
        measure.measure(measure.open_trained(one, None), ["crt"])
    with pytest.raises(InputError, match="made from checkpoint"):
        measure.load_model(one.path, "crt")


def test_images_of_another_subset_are_refused(trained):
    other = build_data(trained.recipe, 7, None)
    wrong = dataclasses.replace(trained, find_data=lambda: other)
    with pytest.raises(InputError, match=r"expected the 10 classes and images .* got 10 classes of subset"):
        wrong.adjust("crt")


def test_other_labels_of_the_same_images_are_refused(trained):
    """Unless the checkpoint is of before it had a hash of them."""
    data = build_data(trained.recipe, trained.seed, None)
    relabelled = dataclasses.replace(data, val=dataclasses.replace(data.val, labels=data.val.labels.flip(0)))
    wrong = dataclasses.replace(trained, find_data=lambda: relabelled)
    with pytest.raises(InputError, match=r"expected the labels that .* got others of the same images"):
        wrong.data  # noqa: B018
    about = {key: value for key, value in trained.about.items() if key != "data_hash"}
    assert dataclasses.replace(wrong, about=about).data is relabelled


def test_clean_keeps_the_best_epoch_of_a_second_stage(run):
    for seed in run.seeds:
        log = [json.loads(line) for line in (seed.path / runs.LOG).read_text().splitlines()]
        for method in ("crt", "fine-tune"):
            scores = [entry["val"] for entry in log if entry["stage"] == method]
            assert len(scores) == 2
            best = max(number for number, score in enumerate(scores, 1) if score == max(scores))
            assert seed.results()["rows"][method]["second_stage"]["epoch"] == best


def test_paper_protocol_keeps_the_last_epoch_and_chooses_the_power_on_train(tmp_path):
    recipes = override(
        find("digits-lt/decoupling"), ["stages.0.epochs=2", "second.crt.stage.epochs=2", "protocol=paper"]
    )
    seed = experiment.train(recipes, (0,), tmp_path / "a", data_dir=None, watch=Silent())[0].seeds[0]
    rows = seed.results()["rows"]
    assert rows["crt"]["second_stage"]["epoch"] == 2
    assert rows["tau-norm"]["norm_power"]["from"] == "train"
    with pytest.raises(InputError, match="power: 'auto' needs a validation split"):
        measure.measure(measure.open_trained(seed, None), ["tau-norm"], Asked(power="auto"))


def test_a_second_stage_that_fails_does_not_cost_the_first(tmp_path):
    recipes = override(find("digits-lt/crt"), ["stages.0.epochs=1", "second.crt.stage.learning_rate=1e30"])
    with pytest.raises(InputError, match="stage 'crt': training diverged"):
        experiment.train(recipes, (0,), tmp_path / "a", data_dir=None, watch=Silent())
    assert load_checkpoint(tmp_path / "a/seed-0.partial/checkpoint.safetensors").meta["epoch"] == 1


def test_a_second_stage_that_will_not_do_is_refused_before_the_first(tmp_path):
    recipes = override(find("digits-lt/crt"), ["second.crt.stage.augment=random-resized-crop"])
    with pytest.raises(InputError, match="augment: expected one of images in memory"):
        experiment.train(recipes, (0,), tmp_path / "a", data_dir=None, watch=Silent())
    assert not (tmp_path / "a").exists()
    recipe = RECIPES["digits-lt/oltr"]
    data = build_data(recipe, 0, None)
    unseen = dataclasses.replace(data, counts=ClassCounts((*data.counts.per_class[:-1], 0)))
    with pytest.raises(InputError, match="allow_unseen: expected true for a memory"):
        try_second_stage(recipe, "oltr", build_model(recipe, 10), unseen)


class Twice(DigitsNet):
    """Features that are not the mean of the map."""

    def forward(self, images):
        return 2 * super().forward(images)


class Wider(DigitsNet):
    """Features of another width than the map."""

    def forward(self, images):
        return super().forward(images).repeat(1, 2)


@pytest.mark.parametrize("kind", [Twice, Wider])
def test_attention_is_refused_where_features_are_not_the_mean_of_the_map(kind):
    recipe = RECIPES["digits-lt/oltr"]
    data, backbone = build_data(recipe, 0, None), kind()
    backbone.num_features = width = backbone(torch.zeros(1, 1, 8, 8)).shape[1]
    first = Recognizer(backbone, LinearClassifier(width, 10, bias=True))
    with pytest.raises(InputError, match=f"backbone: expected features that are the mean .*, got {kind.__name__}"):
        try_second_stage(recipe, "oltr", first, data)
    without = override([recipe], ["second.oltr.classifier.attention=false"])[0]
    try_second_stage(without, "oltr", first, data)


# ---- classes without a training image


def without_class(trained, c):
    """The trained run, as if class c had had no training image: its record and its train store say so."""
    counts = [0 if i == c else n for i, n in enumerate(trained.about["counts"])]
    train = trained.stores.train()
    rows = np.flatnonzero(train.labels != c)
    arrays = {name: np.array(getattr(train, name))[rows] for name in ("features", "logits", "labels", "ids")}
    split = trained.data.train.take(np.flatnonzero(trained.data.train.labels.numpy() != c))
    data = dataclasses.replace(trained.data, train=split, counts=ClassCounts(tuple(counts)))
    about = {**trained.about, "counts": counts, "data_hash": data.data_hash}
    twin = dataclasses.replace(trained, about=about, find_data=lambda: data)
    twin.stores.read["train"] = dataclasses.replace(train, **arrays)
    return twin


@pytest.mark.parametrize("method", ["ncm", "ncm-centered", "tau-norm", *SECOND])
def test_an_unseen_class_is_never_predicted(trained, tmp_path, method):
    twin = dataclasses.replace(without_class(trained, 9), folder=tmp_path)
    twin.stores.read |= without_class(trained, 9).stores.read
    twin.stores.read["test"] = trained.stores.test()
    twin.stores.read["val"] = trained.stores.val()
    with pytest.warns(UserWarning, match=r"1 of 10 classes have no training image and are never predicted \(9\)"):
        row, path = twin.adjust(method)
    state = load_checkpoint(path).state
    bias = state.get("classifier.bias", state.get("classifier.last.bias"))
    assert bias[9] == -torch.inf
    assert bias[:9].isfinite().all()
    assert row["per_class"][9] == 0.0
    assert row["all"] > 0


# ---- the catalog


def test_figure_1_crosses_samplers_and_classifiers():
    members = [RECIPES[name] for name in SUITES["cifar100-lt/kang-figure-1"]]
    assert [m.stages[0].sampler for m in members] == ["instance", "square-root", "class-balanced", "progressive"]
    assert {m.methods for m in members} == {("joint", "ncm", "tau-norm", "crt", "lws")}
    assert all(m.classifier == LinearSettings(bias=True) for m in members)
    for member in members[1:]:
        assert member.stages[0].model_copy(update={"sampler": "instance"}) == members[0].stages[0]
        assert member.second == members[0].second


def test_second_stages_are_the_papers():
    for data, batch in (("digits-lt", 32), ("cifar100-lt", 256)):
        for method, epochs in (("crt", 10), ("lws", 5), ("crt-stored", 10), ("lws-stored", 5)):
            stage = second_stage(data, method).stage
            assert (stage.epochs, stage.learning_rate, stage.batch_size) == (epochs, 0.2, batch)
            assert (stage.schedule.kind, stage.sampler) == ("cosine", "class-aware")
    assert second_stage("digits-lt", "lws").classifier == ScaledSettings()
    assert second_stage("digits-lt", "crt").classifier == LinearSettings(bias=True)


def test_a_second_stage_draws_every_class_alike():
    data: LongTailedData = build_data(RECIPES["digits-lt/crt"], 0, None)
    sampler = build_sampler(second_stage("digits-lt", "crt").stage, data, 0)
    drawn = np.bincount(data.train.labels[torch.cat([sampler.indices(e) for e in range(1, 11)])], minlength=10)
    assert drawn.max() - drawn.min() <= 4
    model = build_model(RECIPES["digits-lt/crt"], 10)
    assert model.classifier.bias is not None
