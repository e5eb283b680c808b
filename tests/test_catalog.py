"""Every recipe: found by walking, built, each kind of training stepped; what rivals' settings become."""

import copy
import json
import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tailwise import CosineClassifier, InputError, losses
from tailwise.adjust import adjust_logits, class_means
from tailwise.backbones import DigitsNet, ResNet32
from tailwise.data import EpochBatches, mix
from tailwise.experiments import experiment, measure, runs
from tailwise.experiments.build_data import build_data
from tailwise.experiments.second import second_classifier, try_second_stage
from tailwise.experiments.watch import Silent
from tailwise.methods import BilateralLoss, BilateralView, GlmcLoss, GlmcView
from tailwise.methods.oltr import MetaEmbeddingClassifier, OltrLoss, OltrView
from tailwise.recipes.build import build_model
from tailwise.recipes.build_stages import (
    build_load,
    build_loss,
    build_optimizer,
    build_rule,
    build_schedule,
    build_second_sampler,
    build_stages,
    build_view,
    trainable_modules,
)
from tailwise.recipes.catalog import RECIPES, SUITES, find, with_second_stage
from tailwise.recipes.methods import METHODS, adjusters_of
from tailwise.recipes.overrides import override
from tailwise.recipes.published import published
from tailwise.recipes.rivals import PUBLISHED_SETTING, RIVALS
from tailwise.recipes.schema import Recipe
from tailwise.recognizer import LogitsAndFeatures, Recognizer
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


@pytest.fixture(scope="module")
def data_of(tmp_path_factory):
    """A recipe's data, CIFAR's with two images a class, each made once."""
    folder, made = tmp_path_factory.mktemp("cifar"), {}
    for classes in (10, 100):
        labels = np.repeat(np.arange(classes), 2)
        images = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"cifar{classes}.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)

    def find_data(recipe):
        name = recipe.data.name
        if name not in made:
            small = [] if name == "digits-lt" else ["data.imbalance_ratio=1", "protocol=paper"]
            made[name] = build_data(override([recipe], small)[0], 0, folder)
        return made[name]

    return find_data


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


# ---- what settings become


def stage_of(name):
    return RECIPES[f"digits-lt/{name}"].stages[0]


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("joint", losses.CrossEntropy, {}),
        ("focal", losses.Focal, {"gamma": 2.0, "detach": False}),
        ("class-balanced", losses.ClassBalanced, {"beta": 0.9999, "gamma": 0.0}),
        ("class-balanced-focal", losses.ClassBalanced, {"beta": 0.9999, "gamma": 0.5}),
        ("class-balanced-sigmoid", losses.ClassBalancedSigmoid, {"beta": 0.9999, "gamma": 0.5}),
        ("ldam", losses.LDAM, {"max_margin": 0.5, "scale": 30.0}),
        ("balanced-softmax", losses.BalancedSoftmax, {}),
        ("logit-adjusted", losses.LogitAdjustedCrossEntropy, {"temperature": 1.0}),
        ("vector-scaling", losses.VSLoss, {"gamma": 0.15, "temperature": 1.25}),
        ("equalization", losses.Equalization, {"gamma": 0.9, "threshold": 0.05}),
        ("seesaw", losses.Seesaw, {"p": 0.8, "q": 2.0, "counting": True}),
        ("bbn", BilateralLoss, {}),
        ("glmc", GlmcLoss, {"gamma": 10.0}),
    ],
)
def test_losses_of_settings(name, kind, settings, data_of):
    counts = data_of(RECIPES["digits-lt/joint"]).counts
    loss = build_loss(stage_of(name), counts)
    assert type(loss) is kind
    assert {key: getattr(loss, key) for key in settings} == settings
    if hasattr(loss, "counts") and not settings.get("counting"):
        assert loss.counts.tolist() == list(counts.per_class)


def test_the_settings_arrive_in_the_loss(data_of):
    """Not the defaults: what was set."""
    counts = data_of(RECIPES["digits-lt/joint"]).counts
    assignments = ['stages.0.loss={"kind": "focal", "gamma": 0.25, "detach": true}', "stages.0.reweight_beta=0.9"]
    stage = override(find("digits-lt/joint"), [*assignments, "stages.0.reweight_after=0.5"])[0].stages[0]
    loss = build_loss(stage, counts)
    assert isinstance(loss, losses.DeferredReweighting)
    assert (loss.after, loss.loss.gamma, loss.loss.detach, loss.loss.reduction) == (0.5, 0.25, True, "none")
    expected = losses.DeferredReweighting(losses.CrossEntropy(reduction="none"), counts, beta=0.9).weights
    torch.testing.assert_close(loss.weights, expected)
    focal = override(find("digits-lt/joint"), ["stages.0.loss=focal"])[0].stages[0]
    assert focal.loss == stage_of("focal").loss  # by its kind alone, with the defaults


def test_ldam_is_on_cosines_and_deferred_at_four_fifths(data_of):
    drw = RECIPES["cifar100-lt/ldam-drw-published"]
    model = build_model(drw, 100)
    assert isinstance(model.classifier, CosineClassifier)
    assert model.classifier.tau == 1.0
    loss = build_loss(drw.stages[0], data_of(drw).counts)
    loss.start_epoch(160, 200)
    assert not loss.on
    loss.start_epoch(161, 200)
    assert loss.on
    assert isinstance(loss.loss, losses.LDAM)


@pytest.mark.parametrize(("data", "kind"), [("digits-lt", "DigitsNet"), ("cifar100-lt", "ResNet32")])
def test_a_part_that_a_network_does_not_name_is_refused(data, kind):
    """Else the classifier alone would be trained."""
    recipe = RECIPES[f"{data}/joint"]
    model = build_model(recipe, 10)
    for part in ("all", "last-block", "classifier"):
        assert trainable_modules(recipe.stages[0].model_copy(update={"trainable": part}), model)
    stage = recipe.stages[0].model_copy(update={"trainable": "last-bottleneck"})
    expected = f"trainable: expected one of all, last-block, classifier for a {kind}, got last-bottleneck"
    with pytest.raises(InputError, match=expected):
        trainable_modules(stage, model)


@pytest.mark.parametrize(("data", "num_classes"), [("digits-lt", 10), ("cifar100-lt", 100)])
def test_a_sigmoid_of_each_class_starts_at_one_in_so_many(data, num_classes):
    """Cui et al. 2019; without a bias there is nothing to start, and no softmax is moved by one."""
    recipe = RECIPES[f"{data}/class-balanced-sigmoid"]
    bias = build_model(recipe, num_classes).classifier.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full((num_classes,), 1 / num_classes))
    for name in ("linear", "cosine"):
        without = recipe.model_copy(update={"classifier": RECIPES[f"{data}/{name}"].classifier})
        assert getattr(build_model(without, num_classes).classifier, "bias", None) is None
    softmax = build_model(RECIPES[f"{data}/class-balanced"], num_classes).classifier.bias
    assert len(softmax.unique()) > 1


@pytest.mark.parametrize("data", ["cifar10-lt", "cifar100-lt"])
def test_a_published_ldam_has_the_learning_rates_of_its_authors(data):
    """Cao et al.: a warm-up of five epochs from 0, a hundredth after 160 epochs and again after 180."""
    for name in ("ldam-published", "ldam-drw-published"):
        stage = RECIPES[f"{data}/{name}"].stages[0]
        rate = build_schedule(stage)
        rates = {1: 0.02, 4: 0.08, 5: 0.1, 160: 0.1, 161: 1e-3, 180: 1e-3, 181: 1e-5, 200: 1e-5}
        assert {epoch: round(rate(epoch - 1), 9) for epoch in rates} == rates
        assert not stage.drop_last


@pytest.mark.parametrize("name", ["ldam-drw", "ldam-drw-published"])
@pytest.mark.parametrize("data", ["cifar10-lt", "cifar100-lt"])
def test_weights_begin_with_the_first_step_of_the_learning_rate(data, name, data_of):
    """After the last one nothing moves far enough for weights to tell."""
    recipe = RECIPES[f"{data}/{name}"]
    stage = recipe.stages[0]
    loss, first = build_loss(stage, data_of(recipe).counts), stage.schedule.milestones[0]
    loss.start_epoch(first - 1, stage.epochs)
    assert not loss.on
    loss.start_epoch(first, stage.epochs)
    assert loss.on


@pytest.mark.parametrize(
    ("name", "view"),
    [("joint", Recognizer), ("bbn", BilateralView), ("glmc", GlmcView), ("range", LogitsAndFeatures)],
)
def test_views_of_settings(name, view):
    recipe = RECIPES[f"digits-lt/{name}"]
    model = build_model(recipe, 10)
    made = build_view(recipe.stages[0], model)
    assert type(made) is view
    assert made.backbone is model.backbone
    assert isinstance(model.backbone, DigitsNet)


def test_adamw_has_its_own_settings():
    """On the data it was found on alone: a deep backbone wants another rate."""
    assert [name for name in RECIPES if "adamw" in name] == ["digits-lt/tde-adamw"]
    stage = RECIPES["digits-lt/tde-adamw"].stages[0]
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(stage, torch.nn.Linear(2, 2), [parameter])
    assert type(optimizer) is torch.optim.AdamW
    assert {key: optimizer.defaults[key] for key in ("lr", "betas", "weight_decay")} == {
        "lr": 0.1,
        "betas": (0.9, 0.99),
        "weight_decay": 0.0,
    }
    plain = build_optimizer(stage_of("joint"), torch.nn.Linear(2, 2), [parameter])
    assert (type(plain), plain.defaults["momentum"]) == (torch.optim.SGD, 0.9)


def test_metric_losses_and_their_batches(data_of):
    for name, metric in (("range", losses.RangeLoss), ("lifted-structured", losses.LiftedStructured)):
        recipe = RECIPES[f"digits-lt/{name}"]
        loss = build_loss(recipe.stages[0], data_of(recipe).counts)
        assert (type(loss.metric), loss.weight, type(loss.cross_entropy)) == (metric, 0.1, losses.CrossEntropy)
        model = build_model(recipe, 10)
        (stage,) = build_stages(recipe.stages, recipe, model, data_of(recipe), 0)
        _, labels = next(iter(build_load(recipe.stages, data_of(recipe), 0)(stage, 1)))
        assert sorted(Counter(labels.tolist()).values()) == [4] * 8  # 8 classes with 4 images each


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("mixup", mix.Mixup(10, 1.0)),
        ("cutmix", mix.CutMix(10, 1.0)),
        ("bbn", mix.pair),
        ("glmc", mix.MixupAndCutMix(10)),
        ("joint", None),
    ],
)
def test_rules_of_settings(name, rule, data_of):
    assert build_rule(stage_of(name), data_of(RECIPES["digits-lt/joint"]).counts) == rule


def test_remix_knows_the_counts(data_of):
    counts = data_of(RECIPES["digits-lt/remix"]).counts
    assert build_rule(stage_of("remix"), counts) == mix.Remix(counts, 1.0, 3.0, 0.5)


def test_second_streams(data_of):
    """BBN's leans to the rare classes, GLMC's is flatter than the first; mixup mixes within the batch."""
    data = data_of(RECIPES["digits-lt/bbn"])
    shares = {}
    for name in ("bbn", "glmc"):
        sampler = build_second_sampler(stage_of(name), data, 0)
        drawn = torch.cat([data.train.labels[sampler.indices(epoch)] for epoch in range(1, 21)])
        shares[name] = torch.bincount(drawn, minlength=10) / len(drawn)
    counts = torch.tensor(data.counts.per_class, dtype=torch.float)
    torch.testing.assert_close(shares["bbn"], (1 / counts) / (1 / counts).sum(), atol=0.02, rtol=0)
    torch.testing.assert_close(shares["glmc"], counts**0.8 / (counts**0.8).sum(), atol=0.02, rtol=0)
    assert build_second_sampler(stage_of("mixup"), data, 0) is None


def test_batches_of_two_streams(data_of):
    recipe = RECIPES["digits-lt/bbn"]
    data = data_of(recipe)
    (stage,) = build_stages(recipe.stages, recipe, build_model(recipe, 10), data, 0)
    batches = build_load(recipe.stages, data, 0)(stage, 1)
    assert isinstance(batches.second, EpochBatches)
    assert batches.first.seed != batches.second.seed
    images, labels = next(iter(batches))
    assert images.shape[1:] == (2, 1, 8, 8)
    assert not torch.equal(labels[:, 0], labels[:, 1])
    again = next(iter(build_load(recipe.stages, data, 0)(stage, 1)))
    assert torch.equal(again[0], images)
    other = next(iter(build_load(recipe.stages, data, 0)(stage, 2)))
    assert not torch.equal(other[0], images)


def test_oltr_settings(data_of):
    recipe = RECIPES["digits-lt/oltr"]
    stage = recipe.second["oltr"].stage
    loss = build_loss(stage, data_of(recipe).counts)
    assert (type(loss), loss.weight, loss.margin, loss.repulsion) == (OltrLoss, 0.01, 10.0, 0.01)
    assert stage.learning_rate == pytest.approx(0.1 * recipe.stages[0].learning_rate)
    first = build_model(recipe, 10)
    classifier = second_classifier(recipe.second["oltr"], first, data_of(recipe).counts)
    assert torch.equal(classifier.hallucinator.weight, first.classifier.weight)
    assert type(build_view(stage, Recognizer(first.backbone, classifier))) is OltrView


@pytest.mark.parametrize(
    ("first", "changes", "message"),
    [
        ("joint", {"name": "late", "step": {"kind": "mixup"}}, None),  # sees what the stage before it sees
        ("joint", {}, "stages: expected a name of its own for each, got joint, joint"),
        (
            "joint",
            {"name": "late", "step": {"kind": "glmc"}},
            "stages: expected steps of one model, got glmc and plain",
        ),
        ("range", {"name": "late", "step": {"kind": "plain"}}, "expected steps of one model, got metric and plain"),
    ],
)
def test_two_stages_have_names_of_their_own_and_see_one_model(first, changes, message):
    settings = RECIPES[f"digits-lt/{first}"].model_dump()
    stage = settings["stages"][0]
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        Recipe.model_validate(settings | {"stages": (stage, stage | changes)})


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            ["stages.0.step=mixup", "stages.0.loss=ldam"],
            "loss: expected one of mixtures, as mixup makes them, got ldam",
        ),
        (["stages.0.step=glmc", "stages.0.loss=focal"], "loss: glmc has its own; expected cross-entropy"),
        (["stages.0.nesterov=true", "stages.0.optimizer=adamw"], "nesterov: expected optimizer sgd, got adamw"),
        (["stages.0.loss=focall"], "stages.0.loss"),
        (["stages.0.step=bilateral", "stages.0.loss=seesaw"], "loss: expected one that may be taken twice a step"),
        (["stages.0.loss=ldam"], "stages.0.loss: ldam has a scale of its own; expected .* tau 1, got linear"),
        (
            ["stages.0.sampler=p-by-k", "stages.0.batch_size=30"],
            "images_per_class: expected a divisor of batch_size 30, got 4",
        ),
        (['stages.0.loss={"kind": "focal", "gamma": -1}'], "stages.0.loss"),
    ],
)
def test_settings_that_do_not_fit_are_named(assignments, message):
    with pytest.raises(InputError, match=message):
        override(find("digits-lt/joint"), assignments)


@pytest.mark.parametrize(
    ("name", "assignment", "message"),
    [
        ("bbn", "backbone.name=digits-net", "backbone: expected two branches, got 1"),
        ("joint", "stages.0.step=memory", "step: memory is of a second stage with one, got a LinearClassifier"),
        ("crt", "second.crt.stage.step=memory", "step: memory is of a second stage with one, got a LinearClassifier"),
        ("crt", "second.crt.stage.step=bilateral", "backbone: expected two branches, got 1"),
        ("oltr", "second.oltr.stage.step=bilateral", "step: bilateral trains a backbone with branches"),
    ],
)
def test_what_a_step_needs_is_named(name, assignment, message, tmp_path):
    recipes = override(find(f"digits-lt/{name}"), [assignment])
    with pytest.raises(InputError, match=message):
        experiment.train(recipes, (0,), tmp_path / "run", data_dir=None, watch=Silent())
    assert not (tmp_path / "run").exists()


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
    row = runs.read_json(folder / runs.RESULTS)["rows"][method]
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
