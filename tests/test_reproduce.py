"""`tailwise reproduce`, end to end: what is planned, trained, resumed, compared and recorded."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

import claims
from jpeg_trees import TRAIN, benchmark_tree
from reports import run
from tailwise import InputError
from tailwise.adjust import tde
from tailwise.data.listed import prepare_listed
from tailwise.evaluate import Store
from tailwise.experiments import files, measure, runs
from tailwise.experiments.owned import owned
from tailwise.experiments.resume import OutOfTime
from tailwise.experiments.watch import Silent
from tailwise.recipes import catalog
from tailwise.recipes.catalog import RECIPES
from tailwise.recipes.overrides import override
from tailwise.recipes.published import _table
from tailwise.report.reproduction import markdown, print_reproduction
from tailwise.reproduction import estimate, plan, reproduce, targets
from tailwise.reproduction.evidence import begun_below, first_stage, run_of
from tailwise.reproduction.plan import Request

SHORT = ["stages.0.epochs=1", "second.crt.stage.epochs=1", "second.lws.stage.epochs=1", "compute.threads=1"]


# ---- end to end, on a table of digits


@pytest.fixture(scope="module")
def table():
    """ "kang-1" is a table of digits-lt for the length of this module, and its recipes take an epoch."""
    printed = {
        "paper": targets.KANG,
        "number": 1,
        "about": "digits",
        "data": "digits-lt",
        "backbone": "digits-net",
        "split": "test",
        "epochs": 1,
        "imbalance_ratio": 50,
        "columns": ["few", "all"],
        "rows": [
            {"row": "Joint", "method": "joint", "recipe": "decoupling", "values": [0.0, 0.0]},
            {"row": "C", "method": "crt", "recipe": "decoupling", "values": [100.0, 100.0]},
            {
                "row": "B+C",
                "method": "fine-tune-last-block",
                "recipe": "fine-tuning",
                "values": [1.0, 1.0],
                "quoted": "others",
            },
            {"row": "TDE, 0.5", "method": "tde", "recipe": "tde", "alpha": 0.5, "values": [50.0, 50.0]},
        ],
    }
    patch = pytest.MonkeyPatch()
    real = targets.published_table

    def published_table(paper, number):
        ours = (paper, number) == (targets.KANG, 1)
        return _table(json.loads(json.dumps(printed))) if ours else real(paper, number)  # which takes it apart

    patch.setattr(targets, "published_table", published_table)
    for title in ("decoupling", "fine-tuning", "tde"):
        name = f"digits-lt/{title}"
        short = [setting for setting in SHORT if "lws" not in setting or title == "decoupling"]
        short = [setting for setting in short if "second" not in setting or title != "tde"]
        short += ["second.fine-tune-last-block.stage.epochs=2"] if title == "fine-tuning" else []
        patch.setitem(RECIPES, name, override([RECIPES[name]], short)[0])
    yield
    patch.undo()


@pytest.fixture(scope="module")
def out(table, tmp_path_factory):
    """A folder in which the table was reproduced, joint and crt over three seeds."""
    folder = tmp_path_factory.mktemp("reproduce")
    asked = Request("kang-1", folder, rows=("joint", "crt"))
    made = plan.plan(asked)
    assert reproduce.work(made, Silent()) == []
    recorded = reproduce.Recorded(made, folder / "kept.json")
    recorded.write()
    return folder


def test_it_trains_what_rows_share_once(out):
    (run,) = begun_below(out)
    assert run.path == out / "digits-lt/decoupling-subset-seed-0-paper"
    assert run.seeds == [0, 1, 2]
    results = [run.seed(seed).results() for seed in run.seeds]
    assert len({result["subset_hash"] for result in results}) == 1  # one subset, three trainings
    assert len({result["checkpoint"] for result in results}) == 3
    record = json.loads((out / "kept.json").read_text())
    lines = {(line["method"], line["metric"]): line for line in record["lines"]}
    for method, of_few, of_all in (("joint", "pass", "pass, above"), ("crt", "off", "off")):
        for metric, expected in (("few", of_few), ("all", of_all)):
            line, values = lines[method, metric], [result["rows"][method][metric] for result in results]
            assert line["ours"]["paper"]["values"] == values
            assert line["ours"]["paper"]["mean"] == pytest.approx(np.mean(values))
            assert line["difference"] == pytest.approx(np.mean(values) - line["printed"])
            assert line["verdict"] == expected
    assert lines["tde", "all"]["reason"] == "no run yet"
    (kept,) = record["runs"]
    assert kept["changed"] == ["data.subset_seed=0", "protocol=paper"]
    assert [seed["checkpoint"] for seed in kept["seeds"]] == [result["checkpoint"] for result in results]
    # every way of adjusting stored features, beside what is printed
    assert set(kept["seeds"][0]["rows"]) >= {
        "joint",
        "ncm",
        "ncm-centered",
        "tau-norm",
        "lws-stored",
        "logit-adjustment",
    }
    assert str(out) not in json.dumps(record)
    assert record["command"].startswith("tailwise reproduce kang-1 --rows joint --rows crt --seeds 3 --subset-seed 0")
    assert "| digits-lt-50 | C | all | 100.0 |" in markdown(record)


def test_what_is_there_is_not_trained_again(out, capsys):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    code, text, err = run(capsys, "reproduce", "kang-1", "--rows", "joint", "--rows", "C", "--out", out)
    assert (code, err) == (0, "")
    assert "nothing left to do" in text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    assert all(len(line) <= 80 for line in text.splitlines() if "─" in line or " off" in line)
    assert "3 of 3 seeds" in text


def test_a_dry_run_writes_nothing(table, tmp_path, capsys):
    code, text, _ = run(capsys, "reproduce", "kang-1", "--dry-run", "--out", tmp_path / "new", "--seeds", "2", "--json")
    printed = json.loads(text)
    assert code == 0
    assert not (tmp_path / "new").exists()
    by_recipe = {run["recipe"]: run for run in printed["runs"]}
    assert set(by_recipe) == {"digits-lt/decoupling", "digits-lt/tde"}
    shared = by_recipe["digits-lt/decoupling"]
    assert {"joint", "crt", "fine-tune-last-block"} <= set(shared["rows"])
    assert (shared["seeds"], shared["left"], shared["finished"], shared["begun"]) == ([0, 1], [0, 1], [], {})
    assert shared["epochs"] == 1 + 1 + 2  # joint, crt, fine-tuning; not lws, which no row is
    assert shared["seconds"] > 0
    assert shared["estimated_from"] == "steps"
    code, text, _ = run(capsys, "reproduce", "kang-1", "--dry-run", "--out", tmp_path / "new", "--rows", "tde")
    assert "1 run on subset seed 0; left: 3 seeds, about" in text
    assert "timed steps" in text


@pytest.fixture
def printed_rows_alone(monkeypatch):
    """Nothing beside the rows that are asked for, which takes less time."""
    monkeypatch.setattr(plan, "PLAIN", ())


@pytest.mark.usefixtures("printed_rows_alone")
def test_rows_of_later_tables_are_made_from_the_run(out, tmp_path, capsys):
    """Another second stage is trained from the same first stage; TDE at another alpha comes from the store."""
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)
    shutil.rmtree(folder / "digits-lt/decoupling-subset-seed-0-paper/seed-1")
    rows = ["--rows", "fine-tune-last-block", "--rows", "tde"]
    code, text, _ = run(capsys, "reproduce", "kang-1", *rows, "--out", folder, "--seeds", "1", "--json")
    record = json.loads(text)
    assert code == 0
    lines = {(line["method"], line["metric"]): line for line in record["lines"]}
    assert lines["fine-tune-last-block", "all"]["verdict"] == "single run"
    seed = runs.open_run(folder / "digits-lt/tde-subset-seed-0-paper").seed(0)
    asked = measure.Asked(alpha=0.5)
    expected = measure.measure(measure.open_trained(seed, None), ["tde"], asked)["rows"]["tde"]
    assert lines["tde", "all"]["ours"]["paper"]["values"] == [expected["all"]]
    assert lines["tde", "all"]["alpha"] == 0.5
    assert lines["joint", "all"]["verdict"] == "2 runs"
    table = run(capsys, "reproduce", "kang-1", *rows, "--out", folder, "--seeds", "1")[1]
    assert "single run" in table
    assert "Joint" not in table  # which was not asked for
    assert record["notes"] == []
    beside = table.partition("no number in print")[2]
    assert " ncm " in beside
    assert " joint " not in beside  # it has one


@pytest.mark.usefixtures("printed_rows_alone")
def test_rows_chosen_by_another_metric_are_made(out, tmp_path, monkeypatch):
    shutil.copytree(out / "digits-lt", tmp_path / "digits-lt")
    tau = targets.Target("digits-lt-50", "tau", "all", "tau-norm", recipe=RECIPES["digits-lt/decoupling"])
    by = override([tau.recipe], ["metric=few"])[0]
    monkeypatch.setattr(plan, "targets_of", lambda *_: [replace(tau, recipe=by)])

    def gone(*_):
        raise InputError("data: gone")

    monkeypatch.setattr(plan, "_data", gone)  # the stores are enough
    made = plan.plan(Request("kang-1", tmp_path, seeds=1))
    assert made.jobs[0].missing == ["tau-norm"]
    assert reproduce.work(made, Silent()) == []
    assert made.left == []
    assert made.jobs[0].finished.results()["rows"]["tau-norm"]["norm_power"]["by"] == "few"


@pytest.mark.usefixtures("printed_rows_alone")
def test_a_budget_stops_at_a_snapshot_and_the_rest_is_the_same(out, tmp_path):
    asked = Request("kang-1", tmp_path, rows=("joint",), seeds=1)
    made = plan.plan(asked)
    assert reproduce.work(made, Silent(), budget=1e-3) == []
    partial = tmp_path / "digits-lt/decoupling-subset-seed-0-paper/seed-0.partial"
    assert (partial / "last-first.safetensors").is_file()
    assert {line["reason"] for line in reproduce.record(made)["lines"] if line["method"] == "joint"} == {"budget"}
    again = plan.plan(asked)
    assert again.jobs[0].begun
    assert reproduce.work(again, Silent()) == []
    whole = files.read_json(out / "digits-lt/decoupling-subset-seed-0-paper/seed-0" / runs.RESULTS)
    assert files.read_json(partial.with_name("seed-0") / runs.RESULTS)["checkpoint"] == whole["checkpoint"]


def test_a_second_stage_of_a_run_stops_and_goes_on(out, tmp_path):
    """`measure.adjust` out of time leaves a snapshot, and what it makes in two parts is what it makes in one.

    It goes on whatever other rows are asked for by then, but not with another second stage.
    """
    rows = []
    for name, parts in (("one", 1), ("two", 2)):
        shutil.copytree(out / "digits-lt", tmp_path / name)
        seed = runs.open_run(tmp_path / name / "decoupling-subset-seed-0-paper").seed(0)
        recipe = catalog.with_second_stage(seed.recipe, "fine-tune")
        recipe = override([recipe], ["second.fine-tune.stage.epochs=2"])[0]
        trained = measure.open_trained(seed, None, recipe)
        if parts == 2:
            with pytest.raises(OutOfTime):
                measure.adjust(trained, "fine-tune", save_every=60.0, until=0.0)
            assert (seed.path / "last-fine-tune.safetensors").is_file()
            assert "fine-tune" not in seed.results()["rows"]
            other = override([recipe], ["second.fine-tune.stage.epochs=3"])[0]
            with pytest.raises(InputError, match=r"taken with recipe.second.fine-tune.stage.epochs 2, got 3"):
                measure.adjust(measure.open_trained(seed, None, other), "fine-tune", save_every=60.0)
            more = catalog.with_second_stage(recipe, "fine-tune-slow")
            more = override([more], ["metric=few", "ncm.distance=l2"])[0]
            trained = measure.open_trained(seed, None, more.model_copy(update={"methods": ("joint",)}))
        result, _ = measure.adjust(trained, "fine-tune", save_every=60.0)
        assert not list(seed.path.glob("last-*"))
        rows.append(result["rows"]["fine-tune"])
    assert rows[0] == rows[1]


@pytest.mark.usefixtures("printed_rows_alone")
def test_a_row_that_fails_leaves_the_others(table, tmp_path, monkeypatch):
    """A second stage that diverges costs its own row alone, and what it starts from is there for other tables."""
    real = measure.adjust

    def adjust(trained, method, *arguments, **options):
        if method == "fine-tune-last-block":
            raise InputError("it diverged")
        return real(trained, method, *arguments, **options)

    monkeypatch.setattr(measure, "adjust", adjust)
    made = plan.plan(Request("kang-1", tmp_path, rows=("fine-tune-last-block", "C", "joint"), seeds=1))
    notes = reproduce.work(made, Silent())
    assert notes == ["digits-lt/decoupling seed 0, fine-tune-last-block: it diverged"]
    record = reproduce.record(made)
    reasons = {(line["method"], line["metric"]): (line["verdict"], line["reason"]) for line in record["lines"]}
    assert reasons["fine-tune-last-block", "all"] == ("not run", "failed: it diverged")
    assert reasons["crt", "all"] == reasons["joint", "all"] == ("single run", None)


@pytest.mark.usefixtures("printed_rows_alone")
def test_a_seed_that_another_process_trains_is_left_to_it(table, tmp_path):
    made = plan.plan(Request("kang-1", tmp_path, rows=("joint",), seeds=2))
    folder = tmp_path / "digits-lt/decoupling-subset-seed-0-paper"
    folder.mkdir(parents=True)
    with owned(folder / "seed-0"):
        (note,) = reproduce.work(made, Silent())
    assert note.startswith(f"digits-lt/decoupling seed 0: {folder / 'seed-0'}: expected no other process at work")
    assert [(job.seed, job.lacks, job.finished is not None) for job in made.jobs] == [
        (0, "in work", False),
        (1, None, True),
    ]


@pytest.mark.usefixtures("printed_rows_alone")
def test_two_calls_train_what_they_share_once(table, tmp_path):
    """Planned before either began, by other rows and so for folders of other names; one at a time trains a seed."""
    first, second = (plan.plan(Request("kang-1", tmp_path, rows=rows, seeds=1)) for rows in (("B+C",), ("joint",)))
    (other,), (job,) = first.jobs, second.jobs
    assert other.folder != job.folder
    with owned(tmp_path / f"seed-0-{job.key}"):  # as the other one does while it trains
        (note,) = reproduce.work(second, Silent())
    assert (job.lacks, job.finished, "expected no other process" in note) == ("in work", None, True)
    other.methods, job.lacks = ["joint"], None
    assert reproduce.work(first, Silent()) == reproduce.work(second, Silent()) == []
    (run,) = begun_below(tmp_path)
    assert (run.path, job.folder) == (other.folder, other.folder)


@pytest.mark.usefixtures("printed_rows_alone")
def test_other_protocols_stand_beside(out, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)
    arguments = ["kang-1", "--rows", "joint", "--out", folder, "--seeds", "1", "--protocol", "clean"]
    code, text, _ = run(capsys, "reproduce", *arguments)
    assert code == 0
    rows = [line.split() for line in text.splitlines()]
    clean = next(row for row in rows if row[:2] == ["under", "clean"])
    assert len(clean) == 5  # metric, mean, one seed; no verdict
    joint = [row for row in rows if row[:1] == ["Joint"]]
    assert [row[-1] for row in joint] == ["pass", "above"]


@pytest.mark.usefixtures("printed_rows_alone")
def test_what_is_printed_of_val_is_compared_with_val(table, tmp_path, monkeypatch, capsys):
    (printed,) = (
        cell for cell in targets.published_table(targets.KANG, 1).cells if (cell.method, cell.metric) == ("tde", "all")
    )
    cells = [
        printed.model_copy(update={"split": "val", **more}) for more in ({"method": "de-confound", "alpha": None}, {})
    ]
    found = [targets._target(cell, epochs=False) for cell in cells]
    monkeypatch.setattr(plan, "targets_of", lambda *_: found)
    made = plan.plan(Request("kang-1", tmp_path, seeds=1, data_dir=tmp_path))
    assert [job.recipe.protocol for job in made.jobs] == ["clean"]
    assert reproduce.work(made, Silent()) == []
    opened, real = [], measure.open_trained
    monkeypatch.setattr(measure, "open_trained", lambda *given, **more: opened.append(given) or real(*given, **more))
    record = reproduce.record(made)
    lines = record["lines"]
    assert [data_dir for _, data_dir in opened] == [tmp_path]  # once for both
    (seed,) = tmp_path.glob("*/*/seed-0")
    val = Store.load(seed / "stores/val", files.read_json(seed / "results.json")["checkpoint"])
    logits = tde(torch.tensor(val.features), measure.load_model(seed).classifier, 0.5)
    said = (val.logits.argmax(axis=1), logits.detach().numpy().argmax(axis=1))
    accuracy = [float(100 * np.mean(predicted == val.labels)) for predicted in said]
    assert [line["ours"]["clean"]["values"] for line in lines] == [[pytest.approx(one)] for one in accuracy]
    assert [line["verdict"] for line in lines] == ["single run", "single run"]
    assert lines[1]["difference"] == pytest.approx(accuracy[1] - 50.0)
    record["runs"][0]["seeds"][0]["rows"]["ncm"] = {"all": 50.0}
    lines[1]["difference"] = -0.02
    print_reproduction(Console(), record)
    shown = capsys.readouterr().out
    assert "from the same first stages, of test, protocol clean, no number in print:" in shown
    assert " +0.0  single run" in shown  # no minus before nothing
    (seed / "checkpoint.safetensors").unlink()
    lines = reproduce.record(made)["lines"]
    assert {line["verdict"] for line in lines} == {"not run"}
    assert all(line["reason"].startswith("failed: ") and "checkpoint.safetensors" in line["reason"] for line in lines)


def test_a_record_outlives_its_runs(out, tmp_path):
    kept = tmp_path / "kept.json"
    shutil.copy(out / "kept.json", kept)
    empty = tmp_path / "empty"
    recorded = reproduce.Recorded(plan.plan(Request("kang-1", empty, rows=("joint",))), kept)
    content = recorded.write()
    before = json.loads((out / "kept.json").read_text())
    assert content["runs"] == before["runs"]
    verdicts = {(line["method"], line["metric"]): line["verdict"] for line in content["lines"]}
    assert verdicts["crt", "all"] == "off"
    with pytest.raises(InputError, match="record: expected one of kang-2, got one of kang-1"):
        reproduce.Recorded(plan.plan(Request("kang-2", empty)), kept)
    with pytest.raises(InputError, match="record: expected one of subset seed 1, got 0"):
        reproduce.Recorded(plan.plan(Request("kang-1", empty, rows=("joint",), subset_seed=1)), kept)
    with pytest.raises(InputError, match=r"record: expected one of settings stages.0.epochs=2, got none"):
        reproduce.Recorded(plan.plan(Request("kang-1", empty, rows=("joint",), settings=("stages.0.epochs=2",))), kept)
    assert json.loads(kept.read_text()) == content
    with pytest.raises(InputError, match="record: expected a folder"):
        reproduce.Recorded(recorded.made, tmp_path / "nowhere/kept.json")
    elsewhere = replace(recorded.made, request=replace(recorded.made.request, out=kept))
    with pytest.raises(InputError, match=r"out: cannot make .*kept\.json \(File exists\)"):
        reproduce.Recorded(elsewhere, None)


def test_a_run_on_other_data_has_no_verdict(out, monkeypatch):
    monkeypatch.setattr(reproduce, "of_another_benchmark", lambda recipe, seeds: f"other data: {len(seeds)} runs")
    lines = reproduce.record(plan.plan(Request("kang-1", out, rows=("joint", "crt"))))["lines"]
    said = {(line["verdict"], line["difference"], line["reason"]) for line in lines if line["ours"]}
    assert said == {("not run", None, "other data: 3 runs")}


@pytest.mark.parametrize("same", [True, False])
def test_rows_on_record_stay_with_their_weights(out, same):
    """A row that the folder no longer has is kept, but not beside a seed that was trained again."""
    before = json.loads((out / "kept.json").read_text())
    (seed, *_) = before["runs"][0]["seeds"]
    seed["rows"]["earlier"] = seed["rows"]["joint"]
    seed["checkpoint"] = seed["checkpoint"] if same else "another"
    made = plan.plan(Request("kang-1", out, rows=("joint",)))
    (run,) = reproduce.record(made, before)["runs"]
    assert ("earlier" in run["seeds"][0]["rows"]) == same


def test_a_row_of_other_settings_does_not_count(out):
    """An alpha or a second stage that is not the recipe's; of several runs the one with the seed is taken."""
    (run,) = begun_below(out)
    ours = override([RECIPES["digits-lt/decoupling"]], ["protocol=paper", "data.subset_seed=0"])[0]
    recipe = override([ours], ["second.crt.stage.epochs=7"])[0]
    results = run.seed(0).results()
    assert "crt" in reproduce.usable_rows(results, ours)
    assert "crt" not in reproduce.usable_rows(results, recipe)
    tde = override([RECIPES["digits-lt/tde"]], ["protocol=paper"])[0]
    row = {"alpha": {"value": tde.tde.fixed_alpha, "from": "recipe"}}
    assert list(reproduce.usable_rows({"rows": {"tde": row}}, tde)) == ["tde"]
    assert not reproduce.usable_rows({"rows": {"tde": {"alpha": {"value": 0.2}}}}, tde)
    rows = {"tau-norm": {"norm_power": {"value": 0.7, "from": "given"}}, "ncm": {"distance": "l2"}}
    assert not reproduce.usable_rows({"rows": rows}, run.recipe)  # chosen by looking, another distance
    given = override([run.recipe], ["tau_norm.power=0.7", "ncm.distance=l2"])[0]
    assert list(reproduce.usable_rows({"rows": rows}, given)) == ["tau-norm", "ncm"]
    assert {"tau-norm", "ncm", "ncm-centered"} <= set(reproduce.usable_rows(results, run.recipe))
    key = first_stage(run.recipe, 0)
    assert run_of([run], key, 0) is run
    assert run_of([run], key, 7) is run  # a new seed goes there, too
    assert run_of([run], "other", 0) is None


def test_a_second_stage_of_other_settings_is_not_taken_for_ours(out, monkeypatch):
    """Of rows that share a first stage, the recipe that reports one says what it is."""
    ours = RECIPES["digits-lt/decoupling"]
    longer = override([ours], ["second.crt.stage.epochs=7"])[0]
    of = (("joint", ours), ("crt", longer))
    found = [targets.Target("digits-lt-50", method, "all", method, recipe=recipe) for method, recipe in of]
    monkeypatch.setattr(plan, "targets_of", lambda *_: found)
    monkeypatch.setattr(plan, "_estimate", lambda *_: None)
    lines = reproduce.record(plan.plan(Request("kang-1", out, rows=("crt",), seeds=1)))["lines"]
    assert [line["ours"] for line in lines if line["method"] == "crt"] == [{}]


def test_claims_of_trained_runs(out, monkeypatch):
    """Norms and samplers from what is on disk, computed again here; a gain only over the rows that are there."""
    target = targets.Target("digits", "row", "all", "joint", recipe=RECIPES["digits-lt/decoupling"])
    monkeypatch.setattr(claims, "targets_of", lambda _: [target])
    (run,) = runs.open_runs(out / "digits-lt/decoupling-subset-seed-0-paper")
    record = claims.record_of([run])
    held = {name: claim and claim["holds"] for name, claim in record["claims"].items()}
    assert held["alpha"] is held["head-cosine"] is held["samplers"] is held["gain"] is None
    expected = []
    for seed in run.seeds:
        weight = measure.load_model(seed.path).classifier.weight.detach().double().numpy()
        norms = [sum(value**2 for value in row) ** 0.5 for row in weight.tolist()]
        logs = np.log([seed.results()["counts"], norms])
        centred = logs - logs.mean(axis=1, keepdims=True)
        expected.append(centred[0] @ centred[1] / np.sqrt((centred[0] @ centred[0]) * (centred[1] @ centred[1])))
    found = record["claims"]["weight-norms"]["rows"]["correlation, joint"][0]
    assert found["mean"] == pytest.approx(np.mean(expected))
    text = claims.table(record)
    assert "digits-lt/decoupling, ratio 50, epochs 1, protocol paper, seeds 0, 1, 2" in text
    assert "gains over re-balancing (Tang et al. 2020, Table 2): no verdict, runs are missing" in text
    assert record["claims"]["weight-norms"]["fewest_seeds"] == 3
    assert "fewer than three seeds" not in text
    record["claims"]["weight-norms"]["fewest_seeds"] = 2  # of the runs that it rests on, whatever others have
    assert "(Kang et al. 2020, Fig. 2): not as claimed (fewer than three seeds)" in claims.table(
        {**record, "claims": {"weight-norms": {**record["claims"]["weight-norms"], "holds": False}}}
    )
    opened = [measure.open_trained(seed, None) for seed in run.seeds]
    mine = claims.claim_samplers({"instance": opened, **dict.fromkeys(catalog.SAMPLERS, opened[:2])})
    accuracy = [seed.results()["rows"]["crt"]["all"] for seed in run.seeds]
    assert mine["rows"]["crt, instance"][0]["mean"] == pytest.approx(np.mean(accuracy))
    assert mine["holds"] == (np.mean(accuracy) >= np.mean(accuracy[:2]))


@pytest.mark.usefixtures("printed_rows_alone")
@pytest.mark.parametrize(
    ("table", "row", "name", "methods"),
    [
        ("tang-2", "tde", "imagenet-lt", {"tde"}),
        ("kang-4", "τ-normalized", "places-lt", {"tau-norm"}),
        ("kang-3", "*50, 90 epochs/crt", "inaturalist-2018", {"crt"}),
    ],
)
def test_tables_of_photographs_on_a_miniature(table, row, name, methods, tmp_path, monkeypatch, capsys):
    """Lists, images, training and rows in the layout of the real data; what comes of it is no result."""
    prepare_listed(benchmark_tree(tmp_path, name), tmp_path)
    monkeypatch.setattr(estimate, "STEPS", 1)
    small = ["backbone.name=resnet32", "backbone.pretrained=false", "data.size=16", "data.resize=18"]
    short = ["stages.0.epochs=1", "stages.0.batch_size=8", "compute.threads=1", "compute.workers=0"]
    short += [f"second.crt.stage.{setting}" for setting in ("epochs=1", "batch_size=8")] if table == "kang-3" else []
    arguments = [table, *small, *short, "--rows", row, "--seeds", "1", "--json"]
    code, text, err = run(capsys, "reproduce", *arguments, "--data-dir", tmp_path, "--out", tmp_path / "runs")
    assert code == 0, err
    record = json.loads(text)
    lines = [line for line in record["lines"] if line["asked"] and line["metric"] == "all"]
    assert {line["method"] for line in lines} == methods
    for line in lines:
        assert 0 <= line["ours"]["paper"]["mean"] <= 100
        assert line["verdict"] == "not run"
        assert line["reason"].startswith("other settings: backbone.name=resnet32")
    assert record["runs"][0]["seeds"][0]["train_images"] == sum(TRAIN)
