import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tailwise
from tailwise import InputError
from tailwise.data import random_crop
from tailwise.evaluate import Store, mean_per_class_accuracy
from tailwise.experiments import experiment, measure, runs
from tailwise.experiments.build_data import build_data
from tailwise.experiments.kept import adjusted_path
from tailwise.experiments.trained import Asked
from tailwise.experiments.watch import Silent
from tailwise.recipes.build import build_model
from tailwise.recipes.build_stages import average_momentum, build_load, build_stages
from tailwise.recipes.catalog import RECIPES, find
from tailwise.recipes.overrides import override, override_after_training
from tailwise.train import fit, load_checkpoint


class OneBatch:
    """The first batch of an epoch."""

    def __init__(self, batches):
        self.first = next(iter(batches))

    def __len__(self):
        return 1

    def __iter__(self):
        yield self.first


SHORT = ("stages.0.epochs=3",)


def measured(seed, methods, data_dir=None, **asked):
    return measure.measure(measure.open_trained(seed, data_dir), methods, Asked(**asked))


def train(name, folder, *settings, seeds=(0,)):
    recipes = override(find(name), [*SHORT, *settings])
    return experiment.train(recipes, seeds, folder, data_dir=None, watch=Silent())


@pytest.fixture(scope="module")
def tde_run(tmp_path_factory):
    """digits-lt/tde, two seeds, trained long enough that alpha matters."""
    folder = tmp_path_factory.mktemp("runs") / "tde"
    settings = ("stages.0.epochs=12",)
    recipes = override(find("digits-lt/tde"), settings)
    return experiment.train(recipes, (0, 1), folder, data_dir=None, watch=Silent())[0]


@pytest.fixture
def cifar(tmp_path_factory, request):
    """A tiny data set in CIFAR's layout, for 10 or 100 classes."""
    num_classes = request.param if hasattr(request, "param") else 10
    folder = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), 12)
    images = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    np.savez(folder / f"cifar{num_classes}.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    return folder


# ---- catalog and settings


def test_overrides_reach_where_the_key_exists():
    recipes = override(find("digits-lt"), ["classifier.gamma=0.5", "data.subset_seed=3", 'stages.0.augment="none"'])
    assert [getattr(recipe.classifier, "gamma", None) for recipe in recipes] == [None, None, None, None, 0.5]
    assert all(recipe.data.subset_seed == 3 and recipe.stages[0].augment == "none" for recipe in recipes)
    assert RECIPES["digits-lt/tde"].classifier.gamma == 1 / 32


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epochs=3", "unknown key 'epochs'; did you mean 'stages.0.epochs'"),
        ("classifier.num_head=3", "did you mean 'classifier.num_heads'"),
        ("classifier.num_heads", "expected key=value"),
        ("classifier.num_heads=two", "classifier.num_heads: input should be a valid integer"),
        ("classifier.tau=0", "classifier.tau: input should be greater than 0, got 0"),
        ("classifier.momentum=1.5", "classifier.momentum: .*less than or equal to 1"),
        ("stages.0.schedule.warmup=-1", r"stages\.0\.schedule\.warmup: .*greater than or equal to 0"),
        ("stages.0.sampler=square", r"stages\.0\.sampler: input should be 'instance', 'square-root'"),
        ("data.imbalance_ratio=NaN", "data.imbalance_ratio: .*finite"),
        ("name=x", "unknown key 'name'"),
        ("classifier.name=cosine", "recipe digits-lt/tde trains a causal classifier"),
        ("stages.0.nesterov=maybe", r"stages\.0\.nesterov: .*boolean"),
        ("compute.threads=100000", "compute.threads: .*256"),
        ("compute.precision=bf15", "compute.precision: input should be 'float32', 'bf16' or 'fp16'"),
        ("stages.0.weight_average=1", r"stages\.0\.weight_average: .*less than 1"),
    ],
)
def test_wrong_overrides_are_named(assignment, message):
    with pytest.raises(InputError, match=message):
        override(find("digits-lt/tde"), [assignment])


def test_a_schedule_may_be_given_whole():
    multistep = 'stages.0.schedule={"kind": "multistep", "milestones": [2], "factor": 0.1}'
    schedule = override(find("digits-lt/tde"), [multistep])[0].stages[0].schedule
    assert (schedule.kind, schedule.milestones, schedule.factor) == ("multistep", (2,), 0.1)
    assert override(find("digits-lt/tde"), ["stages.0.schedule.kind=constant"])[0].stages[0].schedule.kind == "constant"
    with pytest.raises(InputError, match="nesterov: expected false where momentum is 0"):
        override(find("digits-lt/tde"), ["stages.0.nesterov=true", "stages.0.momentum=0"])


def test_a_key_below_what_was_given_by_kind():
    by_kind = ["stages.0.loss=class-balanced", "stages.0.loss.gamma=0.5"]
    loss = override(find("digits-lt/focal"), by_kind)[0].stages[0].loss
    assert (loss.kind, loss.gamma) == ("class-balanced", 0.5)
    for value in ("5", "null", "[1]"):
        with pytest.raises(InputError, match=r"stages\.0\.schedule: expected settings with a key 'warmup', got "):
            override(find("digits-lt/tde"), [f"stages.0.schedule={value}", "stages.0.schedule.warmup=0.1"])
    for constant in (["stages.0.schedule=constant"], ["stages.0.schedule={}", "stages.0.schedule.kind=constant"]):
        assert override(find("digits-lt/tde"), constant)[0].stages[0].schedule.kind == "constant"


@pytest.mark.parametrize("method", ["logit-adjustment", "fslwf"])
def test_what_has_no_settings_offers_none(method):
    with pytest.raises(InputError, match="of a trained run depends on allow_unseen; got 'x=1'"):
        override_after_training(find("digits-lt/cosine")[0], method, ["x=1"])


def test_unknown_recipe_offers_the_nearest():
    with pytest.raises(InputError, match="did you mean 'digits-lt/tde'"):
        find("digits-lt/tdee")


def test_average_momentum_is_the_authors_schedule():
    by_epoch = {72: 0.9045, 80: 0.970, 85: 0.9925, 88: 0.9988, 89: 0.9997, 90: 1.0}
    for epoch, expected in by_epoch.items():
        rate = 0.1 * (1 + np.cos(np.pi * epoch / 90))
        assert average_momentum(rate) == pytest.approx(expected, abs=6e-4)


def test_average_follows_the_learning_rate_when_asked():
    recipe = override(find("digits-lt/tde"), ["classifier.momentum=follow-lr", *SHORT])[0]
    data = build_data(recipe, 0, None)
    model = build_model(recipe, 10)
    seen = []
    load = build_load(recipe.stages, data, 0)
    fit(
        model,
        build_stages(recipe.stages, recipe, model, data, 0),
        load,
        on_epoch=lambda end: seen.append((model.classifier.average.momentum, average_momentum(end.learning_rate))),
    )
    assert len(seen) == 3
    assert all(momentum == expected for momentum, expected in seen)
    assert len({momentum for momentum, _ in seen}) > 1


# ---- training


def test_same_seeds_are_bit_identical(tmp_path):
    first = train("digits-lt/tde", tmp_path / "a", seeds=(0, 1))[0]
    second = train("digits-lt/tde", tmp_path / "b", seeds=(1, 0))[0]  # nor does the order of the seeds matter
    for one, other in zip(first.seeds, second.seeds, strict=True):
        a, b = ({k: v for k, v in seed.results().items() if k != "seconds"} for seed in (one, other))
        assert a == b
    hashes = {seed.results()["subset_hash"] for seed in first.seeds}
    digests = {seed.results()["checkpoint"] for seed in first.seeds}
    assert len(hashes) == len(digests) == 2


def test_training_leaves_the_global_random_state_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train("digits-lt/linear", tmp_path / "a")
    assert torch.equal(torch.rand(3), expected)


def test_subset_seed_and_training_seed_are_separate(tmp_path):
    run = train("digits-lt/linear", tmp_path / "a", "data.subset_seed=7", seeds=(0, 1))[0]
    one, other = (seed.results() for seed in run.seeds)
    assert one["subset_hash"] == other["subset_hash"]
    assert one["subset_seed"] == other["subset_seed"] == 7
    assert one["checkpoint"] != other["checkpoint"]


def test_suite_trains_all_on_the_same_subsets(tmp_path):
    trained = train("digits-lt", tmp_path / "suite")
    assert [run.path.name for run in trained] == ["linear", "decoupling", "cosine-tde", "capsule-tde", "tde"]
    assert len({run.seeds[0].results()["subset_hash"] for run in trained}) == 1
    for run in trained:
        assert tuple(run.seeds[0].results()["rows"]) == run.recipe.methods


def test_clean_keeps_the_best_epoch_on_val_the_later_of_equals(tde_run):
    for seed in tde_run.seeds:
        log = [json.loads(line) for line in (seed.path / runs.LOG).read_text().splitlines()]
        scores = [entry["val"] for entry in log]
        best = max(number for number, score in enumerate(scores, 1) if score == max(scores))
        assert seed.results()["epoch"] == best
        val = Store.load(seed.store("val"), seed.results()["checkpoint"])
        assert mean_per_class_accuracy(val.logits.argmax(1), val.labels, 10) == scores[best - 1]


def test_clean_chooses_alpha_on_val_alone(tde_run):
    seed = tde_run.seeds[0]
    model = measure.load_model(seed.path)
    digest = seed.results()["checkpoint"]
    val = Store.load(seed.store("val"), digest)
    a, b = tailwise.tde_components(torch.from_numpy(np.array(val.features)), model.classifier)
    scores = {}
    for step in range(51):
        predicted = (a - round(0.1 * step, 1) * b).argmax(1).numpy()
        scores[round(0.1 * step, 1)] = np.mean(
            [100 * (predicted == val.labels)[val.labels == c].mean() for c in range(10)]
        )
    best = [alpha for alpha, score in scores.items() if np.isclose(score, max(scores.values()))]
    row = seed.results()["rows"]["tde"]
    assert row["alpha"] == {"value": best[len(best) // 2], "from": "val", "by": "mean-per-class"}
    test = Store.load(seed.store("test"), digest)
    predicted = tailwise.tde(torch.from_numpy(np.array(test.features)), model.classifier, row["alpha"]["value"]).argmax(
        1
    )
    assert row["all"] == pytest.approx(100 * (predicted.numpy() == test.labels).mean())


def test_paper_protocol_uses_published_settings_and_last_epoch(tmp_path):
    run = train("digits-lt/tde", tmp_path / "a", "protocol=paper")[0]
    result = run.seeds[0].results()
    assert result["epoch"] == 3
    assert result["rows"]["tde"]["alpha"] == {"value": 1.0, "from": "recipe"}
    assert not run.seeds[0].store("val").exists()
    log = [json.loads(line) for line in (run.seeds[0].path / runs.LOG).read_text().splitlines()]
    assert [entry["val"] for entry in log] == [None] * 3
    with pytest.raises(InputError, match="needs a validation split"):
        measured(run.seeds[0], ["tde"], alpha="auto")
    with pytest.raises(InputError, match="needs a validation split"):
        train("digits-lt/tde", tmp_path / "b", "protocol=paper", "tde.alpha=auto")
    assert not (tmp_path / "b").exists()


def test_legacy_protocol_chooses_on_test_with_tde_active(tmp_path):
    run = train("digits-lt/tde", tmp_path / "a", "protocol=legacy")[0]
    result = run.seeds[0].results()
    log = [json.loads(line)["val"] for line in (run.seeds[0].path / runs.LOG).read_text().splitlines()]
    assert result["rows"]["tde"]["all"] == max(log)
    assert result["rows"]["tde"]["alpha"]["value"] == 1.0
    chosen = measured(run.seeds[0], ["tde"], alpha="auto")["rows"]["tde"]["alpha"]
    assert chosen["from"] == "test"  # and never "val"


def test_carved_val_and_groups(tmp_path, cifar):
    recipes = override(
        find("cifar10-lt/linear"), ["stages.0.epochs=1", "data.imbalance_ratio=4", "stages.0.batch_size=16"]
    )
    run = experiment.train(recipes, (0,), tmp_path / "a", data_dir=cifar, watch=Silent())[0]
    result = run.seeds[0].results()
    assert result["published_counts"] == [int(12 * 0.25 ** (c / 9)) for c in range(10)]
    assert sum(result["counts"]) < sum(result["published_counts"])
    assert result["rows"]["linear"]["many"] is None  # no class above 100: "-" in tables, never 0


@pytest.mark.parametrize("settings", [("stages.0.learning_rate=1e30",), ("classifier.num_heads=3",)])
def test_failure_leaves_nothing(tmp_path, settings):
    with pytest.raises(InputError):
        train("digits-lt/tde", tmp_path / "a", *settings)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_run_keeps_finished_seeds_only(tmp_path):
    class Interrupt(Silent):
        def begin(self, label, epochs, settings, folder):
            if label.endswith("seed 1"):
                raise KeyboardInterrupt

    recipes = override(find("digits-lt/linear"), SHORT)
    with pytest.raises(KeyboardInterrupt):
        experiment.train(recipes, (0, 1), tmp_path / "a", data_dir=None, watch=Interrupt())
    run = runs.open_run(tmp_path / "a")
    assert [seed.seed for seed in run.seeds] == [0]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["recipe.json", "seed-0"]


# ---- run folders


def test_measuring_again_gives_the_recorded_rows(tde_run):
    for seed in tde_run.seeds:
        again = measured(seed, ["de-confound", "tde"])
        assert again["rows"] == seed.results()["rows"]


def test_alpha_zero_is_de_confound(tde_run):
    rows = measured(tde_run.seeds[0], ["de-confound", "tde"], alpha=0.0)["rows"]
    assert rows["tde"]["per_class"] == rows["de-confound"]["per_class"]


def test_lost_stores_are_made_again(tde_run, tmp_path):
    copy = tmp_path / "tde"
    shutil.copytree(tde_run.path, copy)
    seed = runs.open_run(copy).seeds[0]
    shutil.rmtree(seed.path / "stores")
    assert measured(seed, ["de-confound", "tde"])["rows"] == seed.results()["rows"]
    assert seed.store("test").is_dir()


def test_lost_stores_without_data_are_named(tmp_path, cifar):
    settings = ["stages.0.epochs=1", "data.imbalance_ratio=4", "stages.0.batch_size=16"]
    recipes = override(find("cifar10-lt/linear"), settings)
    seed = experiment.train(recipes, (0,), tmp_path / "a", data_dir=cifar, watch=Silent())[0].seeds[0]
    (seed.store("test") / "features.npy").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"stores/test: not a readable store.*cannot be made again.*local copy"):
        measured(seed, ["linear"])
    assert measured(seed, ["linear"], cifar)["rows"] == seed.results()["rows"]


def test_adjusted_classifier_on_disk_predicts_as_reported(tde_run, tmp_path):
    copy = tmp_path / "tde"
    shutil.copytree(tde_run.path, copy)
    seed = runs.open_run(copy).seeds[0]
    result, path = measure.adjust(measure.open_trained(seed, None), "tde", Asked(alpha=1.5))
    assert path == adjusted_path(seed.path, "tde")
    assert load_checkpoint(path).meta["notes"]["alpha"] == {"value": 1.5, "from": "given"}
    model = measure.load_model(seed.path, method="tde")
    data = build_data(seed.recipe, seed.seed, None)
    with torch.no_grad():
        predicted = model(data.normalize(data.test.images)).argmax(1)
    accuracy = 100 * (predicted == data.test.labels).double().mean().item()
    assert accuracy == pytest.approx(result["rows"]["tde"]["all"])
    with pytest.raises(InputError, match="run `tailwise adjust` first"):
        measure.load_model(runs.open_run(copy).seeds[1].path, method="tde")


@pytest.mark.parametrize(("inside", "name"), [("", "."), ("stores", "..")])
def test_a_model_is_loaded_from_within_its_folder(tde_run, monkeypatch, inside, name):
    folder = tde_run.seeds[0].path.absolute()
    monkeypatch.chdir(folder / inside)
    assert torch.equal(measure.load_model(name).classifier.weight, measure.load_model(folder).classifier.weight)


def test_not_a_run_folder(tmp_path, tde_run):
    for path, message in [
        (tmp_path / "none", "got nothing there"),
        (tmp_path, "got a folder without one"),
        (tde_run.path.parent, "it holds the runs .*tde"),
        (tde_run.path / "recipe.json", "got a file"),
    ]:
        with pytest.raises(InputError, match=message):
            runs.open_run(path)
    broken = tmp_path / "broken"
    broken.mkdir()
    for content, message in [
        ("{", "not a readable JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "expected format"),
        (json.dumps({"format": runs.FORMAT, "recipe": {"name": "x"}}), "not a recipe of this version"),
    ]:
        (broken / "recipe.json").write_text(content)
        with pytest.raises(InputError, match=message):
            runs.open_run(broken)
    shutil.copy(tde_run.path / "recipe.json", broken)
    with pytest.raises(InputError, match="at least one finished seed"):
        runs.open_run(broken)


def test_a_checkpoint_of_another_recipe_is_refused(tde_run, tmp_path):
    copy = tmp_path / "tde"
    shutil.copytree(tde_run.path, copy)
    about = json.loads((copy / "recipe.json").read_text())
    about["recipe"]["classifier"]["gamma"] = 0.5
    (copy / "recipe.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="got one of other settings"):
        measured(runs.open_run(copy).seeds[0], ["tde"])


def test_a_backbone_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(InputError, match=r"backbone\.name: .*\[1, 8, 8\], got resnet32"):
        train("digits-lt/tde", tmp_path / "a", "backbone.name=resnet32")
    assert not (tmp_path / "a").exists()


def test_corrupt_results_are_named(tde_run, tmp_path):
    copy = tmp_path / "tde"
    shutil.copytree(tde_run.path, copy)
    seed = runs.open_run(copy).seeds[0]
    (seed.path / runs.RESULTS).write_text('{"seed": 0}')
    with pytest.raises(InputError, match=r"results\.json: expected a result with .*rows"):
        seed.results()


def test_corrupt_checkpoint_is_named(tde_run, tmp_path):
    copy = tmp_path / "tde"
    shutil.copytree(tde_run.path, copy)
    seed = runs.open_run(copy).seeds[0]
    content = bytearray(seed.checkpoint.read_bytes())
    content[-1] ^= 1
    seed.checkpoint.write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint\.safetensors: corrupt"):
        measured(seed, ["tde"])


def test_free_folder_never_overwrites(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs.free_folder("a/b", None) == Path("runs/a/b")
    assert runs.free_folder("a/b", None) == runs.last_folder("a/b", None) == Path("runs/a/b-2")
    assert runs.free_folder("a/b", None) == Path("runs/a/b-3")
    Path("runs/a/b-2").rmdir()
    Path("runs/a/b-x").mkdir()  # another run
    assert runs.last_folder("a/b", None) == Path("runs/a/b-3")
    assert runs.free_folder("a/b", None) == runs.last_folder("a/b", None) == Path("runs/a/b-4")
    assert runs.last_folder("a/c", None) == Path("runs/a/c")
    (tmp_path / "empty").mkdir()
    assert runs.free_folder("a", tmp_path / "empty") == tmp_path / "empty"
    with pytest.raises(InputError, match="expected a new or empty folder"):
        runs.free_folder("a", tmp_path)


def test_augmentation_is_new_in_every_epoch_and_for_every_seed():
    recipe = RECIPES["digits-lt/linear"]
    data = build_data(recipe, 0, None)
    (stage,) = build_stages(recipe.stages, recipe, build_model(recipe, 10), data, 0)
    same_order = replace(stage, sampler=type("Fixed", (), {"indices": lambda self, epoch: torch.arange(305)})())

    def images(seed, epoch):
        return torch.cat([batch for batch, _ in build_load(recipe.stages, data, seed)(same_order, epoch)])

    assert torch.equal(images(0, 1), images(0, 1))
    assert not torch.equal(images(0, 1), images(0, 2))
    assert not torch.equal(images(0, 1), images(1, 1))


def test_shift_is_at_most_one_pixel():
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[0, 0, 4, 4] = 1
    shifted = random_crop(image.expand(500, 1, 8, 8).contiguous(), torch.rand(500, 3), padding=1, flip=False)
    places = shifted.nonzero()[:, 2:]
    assert (places - 4).abs().max() == 1
