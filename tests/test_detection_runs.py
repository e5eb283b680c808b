"""Detectors from the command: trained, stopped and resumed, measured again, drawn; what is refused."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from causal_oracles import unchecked
from reports import run
from tailwise.checks import InputError
from tailwise.counts import ClassCounts
from tailwise.detect import Detections, DetectionSplit, average_precision, digit_scenes_lt, write_split
from tailwise.detect.backbones import resnet_fpn
from tailwise.detect.detector import Detector
from tailwise.detect.inference import Inference
from tailwise.experiments import detection_experiment, files, runs
from tailwise.experiments.detection_experiment import (
    add_rows,
    measured,
    measured_again,
    open_detector,
    predicted,
    train_detectors,
)
from tailwise.experiments.detection_runs import open_detection_run
from tailwise.experiments.owned import TakenError, owned
from tailwise.experiments.settings import what_counts
from tailwise.experiments.watch import Silent
from tailwise.recipes.build_detection import (
    build_detector,
    build_region_loss,
    inference_of,
)
from tailwise.recipes.detection_catalog import DETECTION_RECIPES, find_detection
from tailwise.recipes.overrides import override
from tailwise.report.detection import PRECISIONS, combined_precision, print_precision
from tailwise.train import load_checkpoint

TINY = [
    "data.max_train=6",
    "data.imbalance_ratio=3",
    "data.val_per_class=1",
    "data.test_per_class=1",
    "training.epochs=2",
    "training.batch_size=8",
    "training.milestones=[1]",
    "training.warmup_iterations=3",
    "detector.sizes.regions=8",
    "detector.sizes.proposals=[20,12]",
    "detector.sizes.width=16",
    "detector.sizes.mask_width=4",
    "inference.per_image=20",
]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """baseline and tde on tiny scenes, one seed; the folder."""
    folder = tmp_path_factory.mktemp("detection") / "suite"
    train_detectors(override(find_detection("digit-scenes-lt"), TINY), [0], folder, data_dir=None, watch=Silent())
    return folder


@pytest.fixture(scope="module")
def data():
    return digit_scenes_lt(0, max_train=6, imbalance_ratio=3, val_per_class=1, test_per_class=1)


def test_a_run_holds_what_was_trained_and_measured(suite):
    assert open_detection_run(suite / "baseline").recipe.rows == ("baseline",)
    seed = open_detection_run(suite / "tde").seed(None)
    result = seed.results()
    assert list(result["rows"]) == ["de-confound", "tde-without-exemption", "tde"]
    assert result["rows"]["tde"].keys() >= {"AP", "AP50", "AP75", "APr", "APc", "APf", "APbox", "box-APr", "alpha"}
    assert result["frequencies"] == ["r"] * 40
    assert result["rows"]["tde"]["APf"] is None  # no class is frequent in so few scenes
    log = [json.loads(line) for line in (seed.path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2]
    assert log[1]["loss"] < log[0]["loss"]
    state = load_checkpoint(seed.path / "checkpoint.safetensors").state
    averages = [state[f"stages.{n}.classifier.classifier.average.value"] for n in range(3)]
    assert all(average.any() for average in averages)


def test_stopped_and_resumed_it_ends_in_the_same_bits(suite, tmp_path):
    recipe = override(find_detection("digit-scenes-lt/tde"), TINY)

    class Stops(Silent):
        def epoch(self, record):
            raise RuntimeError(f"after epoch {record['epoch']}")

    folder = tmp_path / "tde"
    settings = {"data_dir": None, "save_every": 0.0}
    with pytest.raises(RuntimeError, match="after epoch 1"):
        train_detectors(recipe, [0], folder, watch=Stops(), **settings)
    assert (folder / "seed-0.partial" / "last-first.safetensors").exists()
    torch.rand(3)  # where the process stands does not matter
    (resumed,) = train_detectors(recipe, [0], folder, watch=Silent(), resume=True, **settings)
    whole, again = open_detection_run(suite / "tde").seed(0), resumed.seed(0)
    assert again.results()["checkpoint"] == whole.results()["checkpoint"]
    assert again.results()["rows"] == whole.results()["rows"]
    assert not list(again.path.glob("last-*"))
    with pytest.raises(InputError, match=r"resume: expected the settings that .* training.epochs 2, got 3"):
        train_detectors(override(recipe, ["training.epochs=3"]), [0], folder, watch=Silent(), resume=True, **settings)


def test_a_recipe_from_before_a_setting_was_there_is_the_same():
    recipe = DETECTION_RECIPES["lvis-v1/tde"]
    written = recipe.model_dump(mode="json")
    whole = what_counts(written)
    del written["training"]["drop_last"]
    assert what_counts(written) == whole
    assert whole["training.drop_last"] is recipe.training.drop_last


def test_a_seed_is_measured_for_more_rows_once_at_a_time_and_belongs_to_its_checkpoint(suite, tmp_path):
    shutil.copytree(suite / "tde", tmp_path / "tde")
    seed = open_detection_run(tmp_path / "tde").seed(0)
    before = seed.results()
    written = files.read_json(tmp_path / "tde" / runs.RECIPE)
    written["recipe"]["classifier"]["tau"] = 1.0  # which no weight shows
    files.write_json(tmp_path / "tde" / runs.RECIPE, written)
    with pytest.raises(InputError, match=r"checkpoint\.safetensors: expected a checkpoint of the run's recipe\.json"):
        open_detector(open_detection_run(tmp_path / "tde").seed(0), torch.device("cpu"))
    with owned(seed.path), pytest.raises(TakenError, match="seed-0: expected no other process"):
        add_rows(seed, ["tde"], alpha=0.5)
    assert seed.results() == before
    files.write_json(seed.path / runs.RESULTS, {**before, "checkpoint": "0" * 64})
    with pytest.raises(InputError, match=r"expected results of checkpoint\.safetensors, .* two trainings are mixed"):
        open_detector(seed, torch.device("cpu"))


def test_other_annotations_are_noticed(suite, data, tmp_path, monkeypatch):
    """Each part of what is annotated is in the hash; neither a run's rows nor its training go on with others."""
    image = data.test.truth.images[0]
    assert data.data_hash == replace(data, name="other").data_hash
    changes = {
        "height": image.height + 1,
        "width": image.width + 1,
        "file": "other.png",
        "boxes": image.boxes / 2,
        "labels": image.labels % 40 + 1,
        "is_crowd": ~image.is_crowd,
        "masks": image.masks[::-1],
        "negative": image.negative ^ {1},
        "not_exhaustive": image.not_exhaustive ^ {1},
    }
    others = []
    for name, value in changes.items():
        truth = replace(data.test.truth, images=(replace(image, **{name: value}), *data.test.truth.images[1:]))
        others.append(replace(data, test=replace(data.test, truth=truth)))
    assert len({data.data_hash, *(other.data_hash for other in others)}) == len(changes) + 1

    monkeypatch.setattr(detection_experiment, "build_detection_data", lambda *_: others[1])
    with pytest.raises(InputError, match=f"seed-0: of images and annotations {data.data_hash[:12]}, got others"):
        measured_again(open_detection_run(suite / "tde").seed(0), ["tde"])
    categories = tuple(replace(category, frequency="f") for category in data.train.truth.categories)
    other = replace(data, train=replace(data.train, truth=replace(data.train.truth, categories=categories)))
    with monkeypatch.context() as patch:
        patch.setattr(detection_experiment, "build_detection_data", lambda *_: other)
        with pytest.raises(InputError, match="seed-0: trained on other data: class names, counts or frequencies diff"):
            measured_again(open_detection_run(suite / "tde").seed(0), ["tde"])
    folder = shutil.copytree(suite / "tde", tmp_path / "tde")
    (folder / "seed-0").rename(folder / "seed-0.partial")
    (folder / "seed-0.partial" / runs.RESULTS).unlink()
    recipe = override(find_detection("digit-scenes-lt/tde"), TINY)
    with pytest.raises(InputError, match=r"checkpoint\.safetensors: taken with data_hash"):
        train_detectors(recipe, [0], folder, data_dir=None, watch=Silent(), resume=True)


def test_evaluate_takes_another_alpha_and_writes_what_servers_take(suite, data, capsys, tmp_path):
    arguments = ("evaluate", suite / "tde", "--method", "tde", "--alpha", "0.5", "--json")
    code, out, err = run(capsys, *arguments, "--detections", tmp_path / "found")
    assert (code, err) == (0, "")
    (row,) = json.loads(out)["rows"]
    assert (row["method"], row["alpha"], row["framework"]) == ("tde", 0.5, "cascade")
    assert row["APr"].keys() == {"mean", "std"}
    written = json.loads((tmp_path / "found" / "seed-0" / "tde.json").read_text())
    assert written[0].keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}

    # images without annotations, as a server has them
    listing = tmp_path / "test.json"
    write_split(data.test, listing, tmp_path)
    listed = json.loads(listing.read_text())
    del listed["annotations"]
    listing.write_text(json.dumps(listed))
    arguments = ("detect", listing, "--run", suite / "tde", "--alpha", "0.5", "--out", tmp_path / "server", "--json")
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert json.loads(out)["wrote"] == [str(tmp_path / f"server/{row}.json") for row in ("de-confound", "tde")]
    assert (tmp_path / "server/tde.json").read_bytes() == (tmp_path / "found/seed-0/tde.json").read_bytes()
    listed["categories"][3]["name"] = "puce 4"
    listing.write_text(json.dumps(listed))
    assert re.search(r"test.json: expected the 40 categories .* \(first: puce 4 for ", run(capsys, *arguments)[2])
    code, out, _ = run(capsys, "evaluate", suite / "baseline")
    assert code == 0
    assert "digit-scenes-lt/baseline: average precision in %, single run, seed 0" in out
    assert "APr (40)" in out


def test_the_size_of_a_group_is_said_of_all_seeds():
    """Which classes are rare depends on the training images, which each seed draws anew."""
    seeds = [["r", "r", "c"], ["r", "c", "c"]]
    detector, about = {"detector": {"masks": True}}, {"rows": {}, "versions": {}}
    results = [{"seed": n, "frequencies": of, "recipe": detector, **about} for n, of in enumerate(seeds)]
    assert combined_precision("scenes", {"run": results})["group_sizes"] == {"r": "1-2", "c": "1-2", "f": 0}
    assert combined_precision("scenes", {"run": results[:1]})["group_sizes"] == {"r": 2, "c": 1, "f": 0}


def test_every_row_has_the_seeds_that_it_is_of(capsys):
    def result(name, seed):
        detector = {"framework": "cascade", "masks": True}
        row = dict.fromkeys(PRECISIONS, 1.0)
        about = {"frequencies": ["r"], "versions": {}, "recipe": {"name": f"scenes/{name}", "detector": detector}}
        return about | {"seed": seed, "rows": {"baseline": row}}

    seeds = [result("a", 0), result("a", 1)]
    seeds[0]["rows"]["tde"] = seeds[0]["rows"]["baseline"]  # made of one seed alone: no row of this run
    record = combined_precision("scenes", {"a": seeds, "b": [result("b", 0)]})
    assert (record["seeds"], [row["seeds"] for row in record["rows"]]) == ([0, 1], [[0, 1], [0]])
    print_precision(Console(width=100), record)
    out = capsys.readouterr().out
    assert "scenes: average precision in %, mean ± std over the seeds below\n" in out
    assert "\na, baseline: seeds 0, 1\nb, baseline: seed 0\n" in out


def test_the_same_rows_come_of_it_again(suite, data):
    seed = open_detection_run(suite / "tde").seed(0)
    detector, names = open_detector(seed, torch.device("cpu"))
    assert names == data.class_names
    hows = {row: inference_of(seed.recipe, row) for row in seed.recipe.rows}
    rows, found = measured(detector, data.test, hows, torch.device("cpu"))
    assert rows == seed.results()["rows"]
    assert rows["tde"]["APbox"] == average_precision(data.test.truth, found["tde"], "box")["AP"]
    assert rows["tde"]["AP"] == average_precision(data.test.truth, found["tde"], "mask")["AP"]


class Looks(Detector):
    """Only looks: it knows of which sizes images were that it was shown together, and finds nothing."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.together = []

    def look(self, images, image_ids):
        self.together.append({tuple(image.shape) for image in images})
        return image_ids

    def detections(self, image_ids, *hows):
        nothing = np.zeros(0, np.float32)
        found = [Detections(i, np.zeros((0, 4), np.float32), nothing, nothing.astype(np.int64)) for i in image_ids]
        return [found for _ in hows]


def test_images_are_looked_at_with_those_of_their_size_alone(data):
    """Beside a larger one an image is padded, which changes what is found in it."""
    sides = [80, 64, 80, 64, 80, 80, 80]
    images = [replace(one, width=w) for one, w in zip(data.test.truth.images, sides, strict=False)]
    truth = replace(data.test.truth, images=tuple(images))
    split = DetectionSplit(truth, lambda index: torch.zeros(3, 80, sides[index], dtype=torch.uint8))
    looks = Looks()
    found = predicted(looks, split, {"baseline": Inference()}, torch.device("cpu"))["baseline"]
    assert looks.together == [{(3, 80, 80)}, {(3, 80, 80)}, {(3, 80, 64)}]
    assert [one.image_id for one in found] == [image.image_id for image in images]


def test_a_process_may_have_no_image_to_look_at(data, monkeypatch):
    for name, value in {"count": 3, "rank": 2}.items():
        monkeypatch.setattr(detection_experiment.ranks, name, lambda value=value: value)
    monkeypatch.setattr(detection_experiment.ranks, "gathered", lambda mine: [mine])
    looks = Looks()
    assert predicted(looks, data.test.take([0, 1]), {"baseline": Inference()}, torch.device("cpu")) == {"baseline": []}
    assert not looks.together


def test_detect_draws_before_and_after(suite, data, capsys, tmp_path):
    from PIL import Image

    Image.fromarray(data.test[0].image.permute(1, 2, 0).numpy()).save(tmp_path / "scene.png")
    out_file = tmp_path / "found.png"
    arguments = ("detect", tmp_path / "scene.png", "--run", suite / "tde", "--out", out_file, "--min-score", "0.01")
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    first, second, last = out.splitlines()
    assert first.startswith("de-confound: ")
    assert second.startswith("tde, alpha 1.5: ")
    assert last == f"wrote {out_file}"
    with Image.open(out_file) as picture:
        width, height = picture.size
    assert width > 1.8 * height  # two panels
    code, out, _ = run(capsys, *arguments, "--alpha", "2", "--json")
    panels = json.loads(out)["panels"]
    assert list(panels) == ["de-confound", "tde, alpha 2"]
    assert all(one["name"] in data.class_names for panel in panels.values() for one in panel)
    assert all(len(panel) > 1 for panel in panels.values())
    best = {title: sorted(panel, key=lambda one: -one["score"])[:1] for title, panel in panels.items()}
    _, out, _ = run(capsys, *arguments, "--alpha", "2", "--json", "--limit", "1")
    assert json.loads(out)["panels"] == best
    _, out, _ = run(capsys, *arguments, "--alpha", "2", "--limit", "1")
    assert out.splitlines()[0].count(",") == 0
    code, _, err = run(capsys, "detect", tmp_path / "scene.png", "--run", suite / "baseline", "--alpha", "2")
    assert (code, err) == (2, "tailwise: alpha: expected a run with TDE, got one of digit-scenes-lt/baseline\n")


def test_what_will_not_do_is_named(suite, tmp_path, capsys):
    for arguments, said in (
        (("train", "lvis-v1/tdee"), "recipe: unknown value 'lvis-v1/tdee'; did you mean 'lvis-v1/tde'?"),
        (("train", "lvis-v1/tde", "--data-dir", tmp_path), f"data-dir: expected lvis_v1_train.json in {tmp_path} or"),
        (("train", "lvis-v1/tde"), "data-dir: lvis-v1 needs a local copy"),
        (("train", "digit-scenes-lt/tde", "--protocol", "paper"), "protocol: expected none for a detector"),
        (("train", "digit-scenes-lt/tde", "loss=seesaw"), "rows: expected a row of the classifier's own"),
        (("train", "digit-scenes-lt/tde", "detector.framework=yolo"), "detector.framework: input should be"),
        (("train", "digit-scenes-lt/tde", "inference.alfa=1"), "override: unknown key 'inference.alfa'; did you mean"),
        (("evaluate", suite / "tde", "--power", "1"), "power, metric, metrics: expected none for a detector"),
        (("evaluate", suite / "tde", "--metrics"), "power, metric, metrics: expected none for a detector"),
        (("evaluate", suite / "baseline", "--alpha", "1"), "alpha: expected a row with TDE, got baseline of digit-sc"),
        (
            ("train", "digit-scenes-lt/baseline", "classifier.name=causal"),
            "classifier.name: expected linear, whose row is baseline, got causal",
        ),
        (("evaluate", suite / "tde", "--alpha", "auto"), "alpha: expected a finite number"),
        (("evaluate", suite / "tde", "--method", "crt"), "method: unknown value 'crt'"),
        (("evaluate", suite), "expected a run folder with recipe.json"),
        (("adjust", suite / "tde", "crt"), "expected format tailwise-run/1, got tailwise-detection-run/1"),
        (
            ("detect", tmp_path / "l.json", "--run", suite / "tde", "--min-score", "0.3"),
            f"min-score, limit: expected a picture, got {tmp_path / 'l.json'}",
        ),
        (
            ("detect", tmp_path / "l.json", "--run", suite / "tde", "--limit", "9"),
            "min-score, limit: expected a picture",
        ),
        (("detect", tmp_path / "no.png", "--run", suite / "tde"), f"{tmp_path / 'no.png'}: "),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, ""), arguments
        assert said in err, err
    with unchecked(), pytest.raises(InputError, match="backbone: unknown value 'resnet100'; did you mean 'resnet101'"):
        resnet_fpn("resnet100")


def test_another_number_of_classes_than_was_trained_for(suite, tmp_path, capsys):
    folder = shutil.copytree(suite / "tde", tmp_path / "tde")
    path = folder / "seed-0" / runs.CHECKPOINT
    checkpoint = load_checkpoint(path)
    from tailwise.train import save_checkpoint

    few = {"class_names": checkpoint.meta["class_names"][:30], "counts": checkpoint.meta["counts"][:30]}
    save_checkpoint(path, checkpoint.state, checkpoint.meta | few)
    code, _, err = run(capsys, "evaluate", folder)
    assert code == 2
    assert "stages.0.classifier.classifier.weight is [41, 16], expected [31, 16]" in err
    narrower = {name: tensor for name, tensor in checkpoint.state.items() if not name.startswith("mask_heads")}
    save_checkpoint(path, narrower, checkpoint.meta)
    code, _, err = run(capsys, "evaluate", folder)
    assert (code, "mask_heads.0.convolutions.0.weight is missing" in err) == (2, True)


def test_every_recipe_makes_a_detector(data):
    for name, recipe in DETECTION_RECIPES.items():
        if recipe.data.name != "digit-scenes-lt":  # the others have the same classifiers and losses
            continue
        (small,) = override([recipe], ["detector.masks=false", *TINY[-5:]])
        detector = build_detector(small, data.counts, len(data.train))
        losses = detector([data.train[0]])
        assert all(loss.isfinite() for loss in losses.values()), name
        for row in recipe.rows:
            assert detector.eval().detections(detector.look([data.test[0].image]), inference_of(recipe, row)), row


def test_equalization_spares_what_at_most_a_hundred_images_show():
    """Of LVIS v0.5's 57,000, as the paper has it, and of digit-scenes-lt's."""
    for name, images in (("lvis-v0.5", 57_000), ("digit-scenes-lt", 1097)):
        recipe = DETECTION_RECIPES[f"{name}/equalization"]
        loss = build_region_loss(recipe, ClassCounts((100, 101, 20_000)), images)
        got = loss(torch.zeros(1, 3), torch.tensor([3])).item()
        assert got == pytest.approx(-math.log(0.001) - math.log(0.999)), name  # the class of 100 is left out


def test_official_settings():
    for name, warmup, clip, threshold in (("lvis-v1", 0.001, None, 1e-5), ("lvis-v0.5", 1 / 3, 35.0, 0.0)):
        recipe = DETECTION_RECIPES[f"{name}/tde"]
        training, classifier = recipe.training, recipe.classifier
        assert (training.epochs, training.batch_size, training.learning_rate) == (20, 16, 0.02)
        assert (training.milestones, training.weight_decay, training.momentum) == ((16, 19), 1e-4, 0.9)
        assert (training.warmup_iterations, training.warmup_from, training.clip_norm) == (500, warmup, clip)
        assert training.repeat_threshold == 0
        assert (classifier.num_heads, classifier.tau, classifier.gamma, classifier.momentum) == (2, 16, 1 / 32, 0.9998)
        assert (recipe.inference.alpha, recipe.inference.per_image, recipe.inference.score_threshold) == (
            1.5,
            300,
            threshold,
        )
        assert recipe.detector.backbone == "resnet101"
        assert DETECTION_RECIPES[f"{name}/baseline"].classifier.bias is (name == "lvis-v1")


def test_the_page_shows_how_a_detector_is_made():
    page = Path(__file__).parents[1] / "docs/detection.md"
    (code,) = re.findall(r"^```python\n([^`]*?Detector\(.*?)^```", page.read_text(), flags=re.M | re.S)
    names = {}
    exec(code, names)
    assert len(names["losses"]) == 2 + 3 * 3
    assert len(names["after"]) == 1
