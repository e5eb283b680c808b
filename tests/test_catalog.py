"""Every recipe: found by walking, built, each kind of training stepped, trained."""

import copy
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tailwise import InputError
from tailwise.adjust import adjust_logits, class_means
from tailwise.backbones import ResNet32
from tailwise.classifiers import ScaledClassifier
from tailwise.experiments import experiment, files, measure, runs
from tailwise.experiments.build_data import build_data
from tailwise.experiments.second import second_classifier, try_second_stage
from tailwise.experiments.watch import Silent
from tailwise.methods.oltr import MetaEmbeddingClassifier
from tailwise.recipes.build import build_model
from tailwise.recipes.build_stages import (
    build_load,
    build_optimizer,
    build_stages,
    build_view,
)
from tailwise.recipes.catalog import RECIPES, SUITES, find, with_second_stage
from tailwise.recipes.methods import METHODS, adjusters_of
from tailwise.recipes.overrides import override
from tailwise.recipes.published import published
from tailwise.recipes.rivals import PUBLISHED_SETTING, RIVALS
from tailwise.recognizer import Recognizer
from tailwise.train import fit

ROOT = Path(__file__).parents[1]
DATA = ("digits-lt", "cifar10-lt", "cifar100-lt")
TINY = ["stages.0.batch_size=2", "stages.0.images_per_class=2"]


class OneBatch:
    """The first batch of an epoch."""

    def __init__(self, batches):
        self.first = next(iter(batches))

    def __len__(self):
        return 1

    def __iter__(self):
        yield self.first


# ---- the catalog


def test_every_data_has_every_method():
    for data in DATA:
        assert {f"{data}/{method}" for method in METHODS} <= set(RECIPES)
        everything = [
            row for suite in ("all", "rivals") for m in SUITES[f"{data}/{suite}"] for row in RECIPES[m].methods
        ]
        twice = {row for row, times in Counter(everything).items() if times > 1}
        assert set(everything) == set(METHODS)
        assert twice == {"joint", "cosine", "de-confound", "tde"}  # what both suites are compared with
    assert {member for members in SUITES.values() for member in members} <= set(RECIPES)


def test_a_recipe_is_named_after_its_last_row():
    for recipe in RECIPES.values():
        several = recipe.title.startswith(
            ("decoupling", "fine-tuning", "memory", "glmc-max-norm", "tde-adamw", "linear-momentum")
        )
        assert several or recipe.methods[-1] == recipe.title.removesuffix("-published")


def test_methods():
    assert [adjusters_of(c)[-1] for c in ("linear", "capsule", "causal")] == ["weight-balancing"] + [
        "logit-adjustment"
    ] * 2
    kept_by_all = {"ncm", "ncm-centered", "crt", "crt-stored", "crt-mlp", "crt-cosine", "logit-adjustment"}
    fine_tuning = {"fine-tune", "fine-tune-slow", "fine-tune-last-block"}
    memory = {"oltr", "decouple-oltr"}
    assert set(adjusters_of("causal")) == kept_by_all | fine_tuning | {"tde"}
    assert set(adjusters_of("cosine")) == kept_by_all | fine_tuning | {"cosine-tde", "fslwf"}
    own = {"tau-norm", "lws", "lws-stored", "weight-balancing"}
    assert set(adjusters_of("linear")) == kept_by_all | fine_tuning | memory | own


def test_cifar_recipes_are_the_authors_setting():
    stage = RECIPES["cifar100-lt/tde"].stages[0]
    assert (stage.epochs, stage.batch_size, stage.learning_rate, stage.weight_decay) == (200, 256, 0.2, 5e-4)
    assert (stage.schedule.milestones, stage.schedule.factor, stage.drop_last) == ((120, 160), 0.01, True)
    assert [p.all for p in published(RECIPES["cifar100-lt/tde"])] == [40.5, 44.1]


@pytest.mark.parametrize("data", ["cifar10-lt", "cifar100-lt"])
def test_rivals_have_both_settings(data):
    """Only what the rival is differs from the data's own stage; the published one is BBN's or the authors' own."""
    plain = RECIPES[f"{data}/joint"].stages[0]
    for name in RIVALS:
        ours, theirs = RECIPES[f"{data}/{name}"], RECIPES[f"{data}/{name}-published"]
        differs = {key for key, value in plain if getattr(ours.stages[0], key) != value}
        assert differs <= {"loss", "step", "sampler", "images_per_class", "reweight_after", "weight_decay", "sharpness"}
        assert differs
        assert ours.backbone == RECIPES[f"{data}/tde"].backbone
        assert theirs.backbone.name == ("resnet32-two-branch" if name == "bbn" else "resnet32")
        for key, value in PUBLISHED_SETTING[name].items():
            assert getattr(theirs.stages[0], key) == value
        assert not published(ours)
    baseline = RECIPES[f"{data}/joint-published"]
    assert (baseline.backbone.name, baseline.classifier.bias, published(baseline)) == ("resnet32", True, ())
    assert {key for key, value in plain if getattr(baseline.stages[0], key) != value} == set(PUBLISHED_SETTING["joint"])
    (printed,) = published(RECIPES[f"{data}/bbn-published"])
    assert printed.source == "Tang et al. 2020, Table 3, ratio 100, of Zhou et al. 2020"
    assert published(RECIPES["cifar100-lt/bbn-published"])[0].all == 42.6
    assert published(RECIPES["cifar10-lt/ldam-drw-published"])[0].all == 77.0


def test_a_p_by_k_batch_has_classes_enough():
    """Those of a batch differ: no more than there are, and two at least, to be told apart."""
    recipes = [r for r in RECIPES.values() if r.stages[0].sampler == "p-by-k" and r.data.name in DATA]
    assert len(recipes) == 2 * 5  # two losses, on three data sets, two of them in two settings
    for recipe in recipes:
        classes, stage = 100 if recipe.data.name == "cifar100-lt" else 10, recipe.stages[0]
        assert 2 <= stage.batch_size // stage.images_per_class <= classes, recipe.name


def test_a_published_setting_is_that_of_both_stages():
    """Alshammari et al. train the second stage on in the first one's setting; the data's own is for the data's own."""
    whole = RECIPES["cifar100-lt/weight-balancing-published"].second["weight-balancing"]
    assert (whole.stage.batch_size, whole.stage.learning_rate) == (64, 0.01)
    plain = RECIPES["cifar100-lt/weight-balancing"].second["weight-balancing"]
    assert (plain.stage.batch_size, plain.stage.learning_rate) == (256, 0.2)
    for name, expected in (("weight-decay-published", whole), ("weight-decay", plain), ("joint", plain)):
        recipe = with_second_stage(RECIPES[f"cifar100-lt/{name}"], "weight-balancing")
        assert recipe.second["weight-balancing"] == expected


def test_rivals_whose_values_depend_on_the_data():
    """Kini et al. 2021 and Du et al. 2023 have others for CIFAR-10-LT than for CIFAR-100-LT."""
    for data, gamma, temperature in (("cifar10-lt", 0.15, 1.25), ("cifar100-lt", 0.05, 0.75)):
        for name in ("vector-scaling", "vector-scaling-published"):
            loss = RECIPES[f"{data}/{name}"].stages[0].loss
            assert (loss.gamma, loss.temperature) == (gamma, temperature)
    for data, values in (("cifar10-lt", (1.0, 1.2, 4.0)), ("cifar100-lt", (0.8, 1.0, 10.0))):
        for name in ("glmc", "glmc-published"):
            step = RECIPES[f"{data}/{name}"].stages[0].step
            assert (step.q, step.power, step.gamma) == values


# ---- built, stepped


def kind_of(recipe):
    """What makes a training step of one kind: two of a kind run the same code."""
    stage = recipe.stages[0]
    return (
        recipe.backbone.name,
        recipe.classifier.name,
        stage.loss.kind,
        getattr(stage.loss, "form", ""),
        stage.step.kind,
        getattr(stage.step, "loss", ""),
        stage.reweight_after is None,
        stage.sharpness is None,
        stage.optimizer,
    )


KINDS = {kind_of(recipe): name for name, recipe in RECIPES.items() if recipe.data.name in DATA}


@pytest.mark.parametrize("data", DATA)
def test_every_recipe_is_built(data, data_of):
    """Model, view, loss, sampler and optimiser of every stage."""
    seen = 0
    for recipe in RECIPES.values():
        if recipe.data.name != data:
            continue
        images = data_of(recipe)
        model = build_model(recipe, images.counts.num_classes)
        assert len(model.classifier.weight) == images.counts.num_classes
        assert sum(p.numel() for p in model.parameters()) < 30e6  # larger ones belong on the meta device
        view = build_view(recipe.stages[0], model)
        assert view.classifier is model.classifier
        (stage,) = build_stages(recipe.stages, recipe, model, images, 0)
        assert stage.optimizer(model.parameters()).defaults["lr"] == recipe.stages[0].learning_rate
        for method in recipe.second:
            try_second_stage(recipe, method, model, images)
        seen += 1
    assert seen >= 50


@pytest.mark.parametrize("name", KINDS.values())
def test_every_kind_takes_a_step(name, data_of):
    recipe = override([RECIPES[name]], TINY)[0]
    data = data_of(recipe)
    torch.manual_seed(0)
    model = build_model(recipe, data.counts.num_classes)
    before = copy.deepcopy(model)
    (stage,) = build_stages(recipe.stages, recipe, model, data, 0)
    load = build_load(recipe.stages, data, 0)
    fit(build_view(recipe.stages[0], model), [replace(stage, epochs=1)], lambda s, e: OneBatch(load(s, e)))
    for part in ("backbone", "classifier"):
        new, old = (dict(m.get_submodule(part).named_parameters()) for m in (model, before))
        assert all(torch.isfinite(tensor).all() for tensor in new.values())
        assert any(not torch.equal(new[key], old[key]) for key in new), part


@pytest.mark.parametrize("method", ["oltr", "weight-balancing"])
@pytest.mark.parametrize("data", ["digits-lt", "cifar10-lt"])
def test_second_stages_of_rivals_take_a_step(method, data, data_of):
    recipe = RECIPES[f"{data}/{method}"]
    images = data_of(recipe)
    first = build_model(recipe, images.counts.num_classes)
    settings = recipe.second[method]
    stage = settings.stage.model_copy(update={"batch_size": 2})
    model = Recognizer(first.backbone, second_classifier(settings, first, images.counts))
    before = model.classifier.weight.clone()
    (built,) = build_stages([stage], recipe, model, images, 0)
    load = build_load([stage], images, 0)
    fit(build_view(stage, model), [replace(built, epochs=1)], lambda s, e: OneBatch(load(s, e)))
    assert not torch.equal(model.classifier.weight, before)
    if method == "weight-balancing":
        assert not torch.equal(before, torch.zeros_like(before))
        assert model.classifier.weight.norm(dim=1).max() <= 1 + 1e-6
    else:
        assert isinstance(model.classifier, MetaEmbeddingClassifier)
        assert model.classifier.centroids.norm() > 0  # moved by the loss of their own


# ---- trained


@pytest.fixture(scope="module")
def rivals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rivals")
    recipes = override(find("digits-lt/rivals"), ["stages.0.epochs=1"])
    return experiment.train(recipes, (0,), folder / "run", data_dir=None, watch=Silent())


def test_every_rival_trains_to_a_row(rivals):
    rows = {row: run.seeds[0].results()["rows"][row] for run in rivals for row in run.recipe.methods}
    assert set(rows) >= set(RIVALS) | {"logit-adjustment", "fslwf", "oltr", "decouple-oltr", "weight-balancing"}
    for row in rows.values():
        assert 0 <= row["all"] <= 100
        assert len(row["per_class"]) == 10


def test_a_trained_ldam_gives_the_logits_of_its_posterior(rivals):
    """softmax(30 cosines) is what was trained: of the cosines alone, logit adjustment would leave nothing."""
    (run,) = [run for run in rivals if run.recipe.title == "ldam"]
    data = build_data(run.recipe, 0, None)
    model = measure.load_model(run.seeds[0].path)
    trained = measure.open_trained(run.seeds[0], None)
    with torch.no_grad():
        features = model.backbone(data.normalize(data.test.images))
        cosines = torch.nn.functional.normalize(features) @ torch.nn.functional.normalize(model.classifier.weight).T
        torch.testing.assert_close(model.classifier(features), 30 * cosines, rtol=0, atol=1e-3)
    stored = torch.from_numpy(trained.stores.test().logits.copy())  # written as the run ended
    torch.testing.assert_close(stored, 30 * cosines, rtol=0, atol=1e-3)
    right = adjust_logits(30 * cosines, data.counts.prior).argmax(dim=1) == data.test.labels
    assert trained.row("logit-adjustment")["all"] == pytest.approx(100 * right.float().mean().item(), abs=1e-3)


@pytest.mark.parametrize("method", ["oltr", "decouple-oltr"])
def test_a_memory_is_read_back_as_it_was(rivals, method):
    """Its own backbone, its attention and its centroids: the model on disk makes the row's predictions."""
    (run,) = [run for run in rivals if run.recipe.title == "memory"]
    folder = run.seeds[0].path
    model = measure.load_model(folder, method)
    data = build_data(run.recipe, 0, None)
    with torch.no_grad():
        predicted = model(data.normalize(data.test.images)).argmax(dim=1)
    row = files.read_json(folder / runs.RESULTS)["rows"][method]
    assert 100 * (predicted == data.test.labels).float().mean() == pytest.approx(row["all"], abs=1e-3)
    assert hasattr(model.backbone, "attention") == (method == "oltr")
    assert not isinstance(model.backbone, ResNet32)


def test_costs_on_the_methods_page_are_the_measured_ones():
    ratios = json.loads((ROOT / "results/rivals-cost.json").read_text())["ratios"]
    page = (ROOT / "docs/methods.md").read_text().partition("## Rivals")[2].partition("\n## ")[0]
    named, shown = set(), {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = re.findall(r"`([\w-]+)`", cells[0])
        named |= set(names)
        if names and (cost := re.match(r"\d\.\d", cells[3] if len(cells) > 3 else "")):
            shown[names[0]] = float(cost[0])  # that of the first; the others of a row cost as much
    assert named >= set(RIVALS)
    assert set(shown) <= set(ratios)
    assert len(shown) == 18
    assert shown == pytest.approx({name: ratios[name] for name in shown}, abs=0.0501)


def test_a_memory_starts_from_the_class_means(rivals):
    """On stored features no loss moves its centroids: they are still where they began."""
    (run,) = [run for run in rivals if run.recipe.title == "memory"]
    (seed,) = run.seeds
    train = measure.open_trained(seed, None).stores.train()
    means = class_means(torch.tensor(train.features), torch.tensor(train.labels), 10)
    torch.testing.assert_close(measure.load_model(seed.path, "decouple-oltr").classifier.centroids.detach(), means)


def test_sharpness_arrives_in_the_stage(data_of):
    recipe = RECIPES["digits-lt/sharpness-aware"]
    (stage,) = build_stages(recipe.stages, recipe, build_model(recipe, 10), data_of(recipe), 0)
    assert stage.sharpness == 0.05


def test_settings_of_a_step_arrive_in_the_stage(data_of):
    settings = ["accumulate=4", "clip_norm=0.5", "weight_average=0.9", "nesterov=true", "drop_last=true"]
    (recipe,) = override([RECIPES["digits-lt/joint"]], [f"stages.0.{setting}" for setting in settings])
    (stage,) = build_stages(recipe.stages, recipe, build_model(recipe, 10), data_of(recipe), 0)
    assert (stage.accumulate, stage.clip_norm, stage.weight_average, stage.drop_last) == (4, 0.5, 0.9, True)
    assert stage.optimizer([torch.nn.Parameter(torch.ones(1))]).defaults["nesterov"] is True


def test_a_radius_holds_a_weight_that_is_trained(data_of):
    recipe = RECIPES["digits-lt/decoupling"]
    classifier = ScaledClassifier(torch.ones(10, 4))
    stage = recipe.stages[0].model_copy(update={"max_norm": 0.01})
    with pytest.raises(InputError, match=r"max_norm: expected a classifier whose weight is trained, got Scaled"):
        build_optimizer(stage, classifier, classifier.parameters())
