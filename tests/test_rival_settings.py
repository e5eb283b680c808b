"""What the settings of rivals' recipes become: losses, rules, views, streams; which do not fit."""

from collections import Counter
from contextlib import nullcontext

import pytest
import torch

from tailwise import CosineClassifier, InputError, losses
from tailwise.backbones import DigitsNet
from tailwise.data import EpochBatches, mix
from tailwise.experiments import experiment
from tailwise.experiments.second import second_classifier
from tailwise.experiments.watch import Silent
from tailwise.methods import BilateralLoss, BilateralView, GlmcLoss, GlmcView
from tailwise.methods.oltr import OltrLoss, OltrView
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
from tailwise.recipes.catalog import RECIPES, find
from tailwise.recipes.overrides import override
from tailwise.recipes.schema import Recipe
from tailwise.recognizer import LogitsAndFeatures, Recognizer


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


def test_a_recipe_has_a_stage():
    settings = RECIPES["digits-lt/joint"].model_dump()
    with pytest.raises(ValueError, match="stages: expected at least one, got none"):
        Recipe.model_validate(settings | {"stages": ()})


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            ["stages.0.step=mixup", "stages.0.loss=ldam"],
            "loss: expected one of mixtures, as mixup makes them, got ldam",
        ),
        (["stages.0.step=glmc", "stages.0.loss=focal"], "loss: glmc has its own; expected cross-entropy"),
        (["stages.0.step=glmc", "stages.0.reweight_after=0.5"], "reweight_after: .* expected null, got 0.5"),
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
