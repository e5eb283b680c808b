"""Each benchmark of images on disk and the user's own data: trained for an epoch and evaluated, from real JPEGs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from jpeg_trees import benchmark_tree, folder_tree, write_image
from reports import run
from tailwise import InputError, Store
from tailwise.backbones import ResNet32
from tailwise.data.benchmarks import LISTED
from tailwise.data.listed import prepare_listed
from tailwise.data.own import own_data
from tailwise.data.transforms import IMAGENET, INATURALIST, CentreView, RandomView
from tailwise.experiments import build_data as build_data_module
from tailwise.experiments import experiment
from tailwise.experiments.build_data import build_data, images_of
from tailwise.experiments.frozen import as_features
from tailwise.experiments.second import try_second_stage
from tailwise.experiments.watch import Silent
from tailwise.recipes.build import build_model
from tailwise.recipes.build_stages import build_augment, build_load, build_stages, build_view, trainable_modules
from tailwise.recipes.catalog import RECIPES, find
from tailwise.recipes.overrides import override
from tailwise.recipes.schema import BackboneSettings
from tailwise.train import load_checkpoint

# a network and images that a CPU trains in a second; everything else is the recipe's
SMALL = ["backbone=resnet32", "backbone.pretrained=false", "data.size=16", "data.resize=18", "compute.threads=1"]
SHORT = [*SMALL, "stages.0.epochs=1", "stages.0.batch_size=8"]
OWN = {"cat": 24, "dog": 10, "emu": 5, "fox": 3}


@pytest.fixture
def photos(tmp_path):
    folder_tree(tmp_path / "photos", OWN)
    return tmp_path / "photos"


@pytest.mark.parametrize("name", LISTED)
def test_an_epoch_on_each_benchmark(name, tmp_path, capsys):
    facts = benchmark_tree(tmp_path, name)
    code, _, err = run(capsys, "train", f"{name}/tde", *SHORT, "--data-dir", tmp_path)
    assert code == 2
    assert f"{name} is not prepared; tailwise data prepare {name} --data-dir {tmp_path}" in err
    prepare_listed(facts, tmp_path)
    out = tmp_path / "run"
    code, printed, err = run(
        capsys, "train", f"{name}/tde", *SHORT, "compute.workers=0", "--data-dir", tmp_path, "--out", out, "--json"
    )
    assert code == 0, err
    assert [row["method"] for row in json.loads(printed)["rows"]] == ["de-confound", "tde"]
    results = json.loads((out / "seed-0/results.json").read_text())
    assert results["published_counts"] == facts_counts(tmp_path, name)
    test = Store.load(out / "seed-0/stores/test", results["checkpoint"])
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    code, printed, err = run(capsys, "evaluate", out, "--data-dir", tmp_path, "--alpha", "1", "--json")
    assert code == 0, err
    shutil.rmtree(out / "seed-0/stores")  # made again from the images, to the same
    code, again, err = run(capsys, "evaluate", out, "--data-dir", tmp_path, "--alpha", "1", "--json")
    assert again == printed, err


def facts_counts(data_dir, name):
    """Images of each class that the list of training images has."""
    lines = (data_dir / "lists" / LISTED[name].lists["train"]).read_text().splitlines()
    return np.bincount([int(line.rsplit(" ", 1)[1]) for line in lines]).tolist()


def test_the_users_own_data(photos, tmp_path, capsys):
    """Splits are drawn and stored; second stages and every adjuster go on from there; the same table."""
    out = tmp_path / "run"
    short = ["second.crt.stage.epochs=1", "second.lws.stage.epochs=1", "compute.workers=2"]
    code, printed, err = run(
        capsys, "train", "own/decoupling", f"data.path={photos}", *SHORT, *short, "--seeds", "1", "--out", out
    )
    assert code == 0, err
    for method in ("joint", "ncm", "tau-norm", "crt", "lws"):
        assert f"\n {method}" in printed
    results = json.loads((out / "seed-0/results.json").read_text())
    assert results["class_names"] == list(OWN)
    assert results["published_counts"] == [16, 6, 3, 1]
    assert "left_out" not in results
    assert (photos / "tailwise-splits/test.txt").is_file()
    code, printed, err = run(capsys, "predict", out, photos / "cat", "--format", "jsonl")
    assert (code, len(printed.splitlines())) == (0, OWN["cat"]), err
    code, _, err = run(capsys, "train", "own/joint", *SHORT)
    assert (code, err) == (2, "tailwise: data.path: expected the user's own images, as in data.path=photos, got none\n")


def test_predictions_on_files_are_those_on_test(photos, tmp_path, capsys):
    """One view of an image, whichever way it comes."""
    out = tmp_path / "run"
    code, _, err = run(
        capsys, "train", "own/joint", f"data.path={photos}", *SHORT, "compute.workers=0", "--seeds", "1", "--out", out
    )
    assert code == 0, err
    test = Store.load(out / "seed-0/stores/test", json.loads((out / "seed-0/results.json").read_text())["checkpoint"])
    _, printed, _ = run(capsys, "predict", out, *(photos / name for name in test.ids), "--format", "jsonl")
    for line, logits in zip(printed.splitlines(), test.logits, strict=True):
        top = json.loads(line)["before"][0]
        assert top["class"] == list(OWN)[logits.argmax()]
        assert top["probability"] == pytest.approx(torch.tensor(logits).softmax(dim=0).max().item(), abs=1e-5)


class StopError(Exception):
    pass


class StopAfter(Silent):
    """Stops the run when an epoch ends."""

    def epoch(self, record):
        raise StopError


def test_a_run_goes_on_to_the_same_bits_with_other_workers(photos, tmp_path):
    """Mixup reads two streams; an epoch and a snapshot in its middle."""
    settings = [f"data.path={photos}", *SMALL, "stages.0.epochs=2", "stages.0.batch_size=8", "stages.0.step=mixup"]
    whole, again = (override(find("own/joint"), [*settings, f"compute.workers={n}"]) for n in (0, 2))
    how = {"data_dir": None, "save_every": 0.0}
    experiment.train(whole, [0], tmp_path / "whole", watch=Silent(), **how)
    with pytest.raises(StopError):
        experiment.train(whole, [0], tmp_path / "again", watch=StopAfter(), **how)
    experiment.train(again, [0], tmp_path / "again", watch=Silent(), resume=True, **how)
    one, other = (load_checkpoint(tmp_path / run / "seed-0/checkpoint.safetensors") for run in ("whole", "again"))
    assert one.digest == other.digest


def test_what_cannot_be_read_stops_or_is_left_out(photos, tmp_path, capsys):
    stored = run(capsys, "data", "prepare", "own", "--data-dir", photos)
    assert stored[0] == 0, stored[2]
    train = [line.rsplit(" ", 1)[0] for line in (photos / "tailwise-splits/train.txt").read_text().splitlines()]
    test = [line.rsplit(" ", 1)[0] for line in (photos / "tailwise-splits/test.txt").read_text().splitlines()]
    (photos / train[0]).write_bytes((photos / train[0]).read_bytes()[:300])
    (photos / test[0]).write_bytes(b"no image")
    command = ["train", "own/joint", f"data.path={photos}", *SHORT, "compute.workers=0", "--seeds", "1"]
    code, _, err = run(capsys, *command, "--out", tmp_path / "run")
    assert code == 2
    assert f"{photos}/{train[0]}: not a readable image" in err
    assert not (tmp_path / "run").exists()
    code, printed, err = run(capsys, *command, "data.on_bad=skip", "--out", tmp_path / "run")
    assert code == 0, err
    assert "left out: 2 that could not be read; the first: " in printed
    results = json.loads((tmp_path / "run/seed-0/results.json").read_text())
    bad = sorted(map(str, (photos / train[0], photos / test[0])))
    assert sorted(line.split(":")[0] for line in results["left_out"]) == bad
    assert sum(results["counts"]) == len(train) - 1
    assert len(Store.load(tmp_path / "run/seed-0/stores/test", results["checkpoint"])) == len(test) - 1
    record = next((photos / ".tailwise").glob("unreadable-*.json"))
    assert len(json.loads(record.read_text())["unreadable"]) == 2
    code, again, err = run(capsys, *command, "data.on_bad=skip", "--out", tmp_path / "again", "--json")
    assert len(json.loads(again)["left_out"]) == 2, err


def test_a_class_without_an_image_that_can_be_read_is_an_error(photos):
    for path in (photos / "emu").iterdir():
        path.write_bytes(b"no image")
    (recipe,) = override(find("own/joint"), [f"data.path={photos}", *SMALL, "data.on_bad=skip", "compute.workers=0"])
    with pytest.raises(InputError, match="train: expected some of every class, got none that will do of 'emu'"):
        build_data(recipe, 0, None)


def test_splits_beside_the_data_come_before_those_elsewhere(photos, tmp_path):
    settings = [f"data.path={photos}", *SMALL, f"data.kept={tmp_path / 'kept'}", "compute.workers=0"]
    (recipe,) = override(find("own/joint"), settings)
    build_data(recipe, 0, None)
    assert (tmp_path / f"kept/{photos.name}.tailwise-splits/test.txt").is_file()
    assert not (photos / "tailwise-splits").exists()
    beside = own_data(photos, seed=5)
    build_data_module._index.cache_clear()  # as in another process
    assert build_data(recipe, 0, None).subset_hash == beside.subset_hash


def test_data_sets_with_one_folder_for_splits_have_each_their_own(tmp_path):
    kept = str(tmp_path / "kept")
    places = [build_data_module._splits(str(tmp_path / name), kept) for name in ("a", "b", "b.csv")]
    assert [place.name for place in places] == [f"{name}.tailwise-splits" for name in ("a", "b", "b.csv")]
    assert build_data_module._splits("hf:owner/c", kept) == tmp_path / "kept/c.tailwise-splits"
    (tmp_path / "kept/tailwise-splits").mkdir(parents=True)  # where they were before, of whatever data
    assert build_data_module._splits(str(tmp_path / "a"), kept) == tmp_path / "kept/tailwise-splits"


def test_decoded_once_prediction_is_the_same(photos, tmp_path):
    """With the cache of the view's own size; training crops the square, and says so."""
    recipe = override(find("own/joint"), [f"data.path={photos}", *SMALL, "data.cache=18", "compute.workers=0"])[0]
    cached, plain = build_data(recipe, 0, None), build_data(override([recipe], ["data.cache=null"])[0], 0, None)
    assert (cached.subset_hash, cached.counts) == (plain.subset_hash, plain.counts)
    assert cached.test.ids.tolist() == plain.test.ids.tolist()
    assert len(list((photos / ".tailwise").glob("decoded-18-*/pixels.npy"))) == 1
    elsewhere = override([recipe], [f"data.kept={tmp_path / 'kept'}"])[0]
    build_data(elsewhere, 0, None)
    assert len(list((tmp_path / "kept").glob("decoded-18-*/pixels.npy"))) == 1


def test_a_frozen_backbone(photos, tmp_path, capsys):
    """Its features are computed once; training a classifier on them leaves it as it was."""
    torch.manual_seed(4)
    net = ResNet32()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    pretrained = [*SHORT, f"data.path={photos}", f"backbone.pretrained={tmp_path / 'net.pth'}", "compute.workers=0"]
    command = ["train", "own/decoupling", *pretrained, "backbone.frozen=true", "--seeds", "1"]
    second = [f"second.{name}.stage.epochs=1" for name in find("own/decoupling")[0].second]
    code, printed, err = run(capsys, *command, *second, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert {row["method"] for row in json.loads(printed)["rows"]} == set(find("own/decoupling")[0].methods)
    checkpoint = load_checkpoint(tmp_path / "run/seed-0/checkpoint.safetensors")
    for name, tensor in net.state_dict().items():
        assert torch.equal(checkpoint.state[f"backbone.net.{name}"], tensor), name
    kept = {path.name: path.stat().st_mtime_ns for path in (photos / ".tailwise").glob("features-*")}
    assert len(kept) == 3
    code, _, err = run(capsys, "features", "own", *pretrained, "--out", tmp_path / "features")
    assert code == 0, err
    digest = json.loads((tmp_path / "features/train/store.json").read_text())["checkpoint"]
    store = Store.load(tmp_path / "features/train", digest)
    assert (store.features.shape, store.logits.shape) == ((26, 64), (26, 0))
    data = build_data(override(find("own/joint"), [*pretrained, "backbone.frozen=true"])[0], 0, None)
    assert torch.equal(data.train.images, torch.tensor(store.features))
    assert {path.name: path.stat().st_mtime_ns for path in (photos / ".tailwise").glob("features-*")} == kept
    code, _, err = run(capsys, *command, "stages.0.step=cutmix", "--out", tmp_path / "cut")
    assert (code, err) == (2, "tailwise: backbone.frozen: expected false for cutmix, which needs images, got true\n")
    _, printed, _ = run(capsys, "predict", tmp_path / "run", photos / "cat/000.jpg", "--format", "jsonl")
    assert len(json.loads(printed)["after"]) >= 1


def test_a_frozen_backbone_computes_where_it_is_told(tmp_path, monkeypatch):
    """On the CPU, though there is a GPU."""

    def seen(*_, device, **__):
        raise StopError(device.type)

    monkeypatch.setattr("tailwise.experiments.build_data.as_features", seen)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    recipes = override(find("digits-lt/joint"), ["backbone.pretrained=net.pth", "backbone.frozen=true"])
    with pytest.raises(StopError, match="cpu"):
        experiment.train(recipes, [0], tmp_path / "run", data_dir=None, watch=Silent(), device="cpu")


def test_kept_features_are_of_these_images_and_carry_no_labels(photos, tmp_path):
    """A class that is renamed moves labels, not images; images decoded to another size are other images."""
    torch.save(ResNet32().state_dict(), tmp_path / "net.pth")
    backbone = BackboneSettings(name="resnet32", pretrained=str(tmp_path / "net.pth"), frozen=True)
    (recipe,) = override(find("own/joint"), [f"data.path={photos}", *SMALL, "compute.workers=0"])

    def kept(data):
        return as_features(data, backbone, tmp_path / "kept", size=16, device=torch.device("cpu")).train

    data = build_data(recipe, 0, None)
    first = kept(data)
    again = kept(replace(data, train=replace(data.train, labels=3 - data.train.labels)))
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels, 3 - first.labels)
    assert not torch.equal(kept(build_data(override([recipe], ["data.cache=16"])[0], 0, None)).images, first.images)
    write_image(photos / str(data.train.ids[0]), 99)
    changed = (kept(data).images != first.images).any(dim=1)
    assert changed.tolist() == [True] + [False] * (len(changed) - 1)


def test_what_cannot_be_read_is_looked_for_anew_where_files_change(photos):
    broken = photos / "cat/000.jpg"
    image = broken.read_bytes()
    (recipe,) = override(find("own/joint"), [f"data.path={photos}", *SMALL, "data.on_bad=skip", "compute.workers=0"])
    for content, left_out in ((image, 0), (image[:300], 1), (image, 0)):
        broken.write_bytes(content)
        assert len(build_data(recipe, 0, None).left_out) == left_out


# ---- settings


def test_recipes_are_the_papers_settings():
    stage = RECIPES["imagenet-lt/tde"].stages[0]
    assert (stage.epochs, stage.batch_size, stage.learning_rate, stage.weight_decay) == (90, 512, 0.2, 5e-4)
    assert (stage.schedule.kind, stage.schedule.warmup, stage.drop_last) == ("cosine", 0, True)
    names = {name: RECIPES[f"{name}/tde"].backbone.name for name in LISTED}
    assert names == {"imagenet-lt": "resnext50-32x4d", "places-lt": "resnet152", "inaturalist-2018": "resnet50"}
    assert RECIPES["imagenet-lt/tde"].classifier.momentum == "follow-lr"
    assert RECIPES["inaturalist-2018/joint"].stages[0].weight_decay == 1e-4
    epochs = {name: RECIPES[f"{name}/crt"].second["crt"].stage.epochs for name in LISTED}
    assert epochs == {"imagenet-lt": 10, "places-lt": 10, "inaturalist-2018": 30}
    places = RECIPES["places-lt/decoupling"]
    assert (places.backbone.pretrained, places.stages[0].trainable) == (True, "last-block")
    from_scratch = {recipe.data.name for recipe in RECIPES.values() if not recipe.backbone.pretrained}
    assert from_scratch.isdisjoint({"places-lt", "own"})  # the rivals' rows, too
    assert (places.second["crt"].stage.batch_size, places.second["crt"].stage.learning_rate) == (256, 0.1)


def test_every_recipe_is_built(photos):
    """On a small network; what depends on the data is in the recipe alone."""
    data = build_data(override(find("own/joint"), [f"data.path={photos}", *SMALL, "compute.workers=0"])[0], 0, None)
    titles = {name: [r.title for r in RECIPES.values() if r.data.name == name] for name in (*LISTED, "own")}
    assert len(set(map(tuple, titles.values()))) == 1
    assert "bbn" not in titles["own"]
    for title in titles["own"]:
        recipe = override([RECIPES[f"imagenet-lt/{title}"]], [*SMALL, "stages.0.batch_size=4"])[0]
        recipe = override([recipe], ["stages.0.images_per_class=2"])[0]
        model = build_model(recipe, 4)
        view = build_view(recipe.stages[0], model)
        (stage,) = build_stages(recipe.stages, recipe, model, data, 0)
        used = stage.optimizer(view.parameters()).defaults
        steps = (1 - used["momentum"]) / (1 - 0.9) if title.endswith("-matched") else 1
        assert used["lr"] == pytest.approx(0.2 * steps)
        assert len(build_load(recipe.stages, data, 0)(stage, 1)) == 26 // 4
        for method in recipe.second:
            try_second_stage(recipe, method, model, data)


def test_views_are_the_authors():
    """reproduction: colour jitter on ImageNet-LT and Places-LT alone, iNaturalist's own statistics."""
    jitters = {}
    for name in LISTED:
        shape, normalize, view = images_of(RECIPES[f"{name}/joint"])
        assert (shape, view) == ((3, 224, 224), CentreView(224, 256))
        assert normalize == (INATURALIST if name == "inaturalist-2018" else IMAGENET)
        jitters[name] = RECIPES[f"{name}/joint"].stages[0].augment
    assert jitters == {
        "imagenet-lt": "random-resized-crop-jitter",
        "places-lt": "random-resized-crop-jitter",
        "inaturalist-2018": "random-resized-crop",
    }


def test_augmentations_by_name(photos):
    recipe = override(find("own/joint"), [f"data.path={photos}", *SMALL])[0]
    data, stage = build_data(recipe, 0, None), recipe.stages[0]

    def named(name):
        return build_augment(stage.model_copy(update={"augment": name}), data)

    assert named("none") == CentreView(16, 18)
    assert named("random-resized-crop") == RandomView(16)
    assert named("random-resized-crop-jitter") == RandomView(16, jitter=0.4)
    assert named("rand-augment") == RandomView(16, rand_augment=2)
    with pytest.raises(InputError, match="augment: expected one of images on disk, none, random-resized-crop"):
        named("crop-flip")
    small = build_data(RECIPES["digits-lt/joint"], 0, None)
    with pytest.raises(InputError, match="augment: expected one of images in memory, none, shift, crop-flip, got rand"):
        build_augment(stage.model_copy(update={"augment": "rand-augment"}), small)


def test_what_a_stage_trains():
    recipe = override(find("places-lt/joint"), ["backbone=resnet18", "backbone.pretrained=false"])[0]
    model, stage = build_model(recipe, 3), recipe.stages[0]
    names = {
        part: trainable_modules(stage.model_copy(update={"trainable": part}), model)
        for part in ("all", "last-block", "last-bottleneck", "classifier")
    }
    assert names == {
        "all": ("",),
        "last-block": ("backbone.net.layer4", "classifier"),
        "last-bottleneck": ("backbone.net.layer4.1", "classifier"),
        "classifier": ("classifier",),
    }


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["backbone=resnext50-32x4"], "backbone.name: unknown value 'resnext50-32x4'; did you mean 'resnext50-32x4d'?"),
        (["backbone.frozen=true"], "backbone.frozen: expected a backbone that is pretrained, got one that is not"),
        (["data.resize=100"], "data.resize: expected at least size 224, got 100"),
        (["data.cache=100"], "data.cache: expected at least size 224, got 100"),
    ],
)
def test_settings_that_will_not_do(assignments, message, photos):
    with pytest.raises(InputError) as error:
        build_model(override(find("imagenet-lt/joint"), assignments)[0], 3)
    assert str(error.value) == message
