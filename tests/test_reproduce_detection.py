"""`tailwise reproduce` of detectors: what stands for a number of LVIS, and its tables end to end on a miniature."""

import json

import pytest

from tailwise import InputError
from tailwise.cli import main
from tailwise.detect import digit_scenes_lt, write_split
from tailwise.recipes.detection_catalog import DETECTION_RECIPES
from tailwise.recipes.overrides import override
from tailwise.report.reproduction import markdown
from tailwise.reproduction import estimate
from tailwise.reproduction.evidence import first_stage, of_another_benchmark
from tailwise.reproduction.plan import Request, changes, plan
from tailwise.reproduction.targets import targets_of

SMALL = [
    "detector.backbone=small-fpn",
    "detector.pretrained=false",
    "detector.sizes.min_size=96",
    "detector.sizes.max_size=96",
    "detector.sizes.anchors=[16,24,32,48]",
    "detector.sizes.regions=8",
    "detector.sizes.proposals=[20,12]",
    "detector.sizes.width=16",
    "detector.sizes.mask_width=4",
    "inference.per_image=20",
    "training.epochs=2",
    "training.batch_size=8",
    "training.milestones=[]",
    "training.warmup_iterations=3",
    "compute.threads=1",
    "data.workers=0",
]


def test_every_number_of_lvis_has_the_row_of_a_detector():
    rows = {}
    for table in ("tang-4", "tang-5", "tang-9"):
        for target in targets_of(table):
            recipe, data = target.recipe, target.section.partition(",")[0]
            assert target.method in recipe.rows
            assert (recipe.data.name, recipe.training.epochs, recipe.inference.alpha) == (data, 20, 1.5)
            assert target.setting == recipe.detector.framework == "cascade"
            large = "ResNeXt-101-64x4d" in target.section
            changed = {
                "detector.backbone": "resnext101-64x4d",
                "training.batch_size": 8,
                "training.learning_rate": 0.01,
            }
            batches = {"training.batch_size": 32} if target.method == "equalization" else {}  # as it was printed of
            assert changes(recipe) == (changed if large else batches)
            assert target.tolerance == (2.0 if target.metric == "APr" else 0.5)
            if target.metric == "APbox":
                rows[table, data, large, target.method] = (recipe.title, target.printed)
    assert rows["tang-4", "lvis-v0.5", False, "equalization"] == ("equalization", 27.9)
    assert rows["tang-4", "lvis-v1", False, "baseline"] == ("baseline", 23.9)
    assert rows["tang-4", "lvis-v1", False, "de-confound"] == ("tde", 25.8)
    assert rows["tang-5", "lvis-v0.5", False, "tde-without-exemption"] == ("tde", 24.8)
    assert rows["tang-5", "lvis-v0.5", False, "tde"] == ("tde", 31.0)
    assert rows["tang-9", "lvis-v0.5", True, "tde"] == ("tde", 33.1)
    assert len(rows) == 12 + 3 + 6
    (lacks,) = {target.lacks for target in targets_of("tang-10")}
    assert lacks == "printed of a server, whose annotations are not public"
    assert {target.setting for target in targets_of("tang-5", ["detector.framework=htc"])} == {"htc"}


def test_detectors_have_one_protocol(tmp_path):
    with pytest.raises(InputError, match="protocol: expected paper, which detectors have, got clean"):
        plan(Request("tang-5", tmp_path, protocols=("clean",)))


def test_what_is_the_same_detector():
    tde, de_confound = (DETECTION_RECIPES[f"lvis-v1/{title}"] for title in ("tde", "de-confound"))
    keys = {first_stage(recipe, 0) for recipe in (tde, de_confound, *override([tde], ["inference.alpha=2"]))}
    assert len(keys) == 1
    for other in ("detector.framework=htc", "inference.nms_threshold=0.6", "training.epochs=24", "loss=focal"):
        assert first_stage(override([tde], [other])[0], 0) not in keys


@pytest.mark.parametrize(
    ("data", "images", "another"),
    [("lvis-v1", 100_170, False), ("lvis-v1", 100_000, True), ("lvis-v0.5", 57_263, False), ("lvis-v0.5", 5_000, True)],
)
def test_a_part_of_lvis_is_no_benchmark(data, images, another):
    reason = of_another_benchmark(DETECTION_RECIPES[f"{data}/tde"], [{"train_images": images}])
    assert (reason is not None) is another
    assert reason is None or reason.startswith(f"other data: {images:,} training images, published ")


def reproduce(capsys, *arguments):
    """The record that `tailwise reproduce tang-5` prints, or its plan."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in ("reproduce", "tang-5", *arguments, "--seeds", "1", "--json")])
    assert not stopped.value.code
    return json.loads(capsys.readouterr().out)


def test_table_5_on_a_miniature_of_lvis(tmp_path, monkeypatch, capsys):
    """Reading, planning, training, comparing in LVIS's layout; another alpha needs no training; it is no result."""
    scenes = digit_scenes_lt(0, max_train=6, imbalance_ratio=3, val_per_class=1, test_per_class=1)
    for split, part in (("train", scenes.train), ("val", scenes.test)):
        write_split(part.take(range(12)), tmp_path / "annotations" / f"lvis_v0.5_{split}.json", tmp_path)
    monkeypatch.setattr(estimate, "STEPS", 1)
    where = ("--data-dir", tmp_path, "--out", tmp_path / "runs")

    before = reproduce(capsys, *SMALL, *where, "--dry-run")
    assert [(run["recipe"], run["epochs"], run["left"]) for run in before["runs"]] == [("lvis-v0.5/tde", 2, [0])]
    assert before["seconds"] > 0
    assert before["subset_seed"] is None

    record = reproduce(capsys, *SMALL, *where)
    lines = {(line["method"], line["metric"]): line for line in record["lines"]}
    assert len(lines) == 3 * 7
    (trained,) = record["runs"][0]["seeds"]
    assert trained["train_images"] == 12
    for (method, metric), line in lines.items():
        assert line["verdict"] == "not run"
        assert line["reason"].startswith("other settings: detector.backbone=small-fpn")
        expected = trained["rows"][method][metric]
        assert line["ours"] == ({} if expected is None else {"paper": {**line["ours"]["paper"], "values": [expected]}})
    assert lines["tde", "AP"]["ours"]["paper"]["values"][0] >= 0
    assert "| lvis-v0.5, ResNet-101-FPN, cascade | De-confound | AP | 25.7 |" in markdown(record)

    after = reproduce(capsys, *SMALL, *where, "--dry-run")
    assert [run["left"] for run in after["runs"]] == [[]]
    weaker = reproduce(capsys, *SMALL, "inference.alpha=0.5", *where)
    (again,) = weaker["runs"][0]["seeds"]
    assert again["checkpoint"] == trained["checkpoint"]
    assert (again["rows"]["tde"]["alpha"], trained["rows"]["tde"]["alpha"]) == (0.5, 1.5)
    assert again["rows"]["de-confound"] == trained["rows"]["de-confound"]
