"""What `benchmarks/claims.py` finds of the papers' claims, on made-up numbers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import claims
from tailwise import InputError
from tailwise.experiments import files, runs
from tailwise.experiments.settings import recorded
from tailwise.recipes.catalog import RECIPES
from tailwise.recipes.overrides import override
from tailwise.reproduction.targets import BALANCED


def test_many_falls_and_few_rises_up_to_its_peak(monkeypatch):
    """The largest step the wrong way counts only before few's peak."""
    curve = {
        "many": [90.0, 89.0, 89.4, 60.0, 70.0],
        "medium": [50.0, 52.0, 51.0, 50.0, 40.0],
        "few": [10.0, 12.0, 11.7, 20.0, 5.0],
        "all": [50.0, 51.0, 52.0, 51.0, 40.0],
    }
    monkeypatch.setattr(claims.measure, "strength_curve", lambda *_, **__: {"test": curve})
    seed = claims.alpha_of_seed(None, values=(0.0, 0.5, 1.0, 1.5, 2.0))
    assert seed["peaks"] == {"many": 0.0, "medium": 0.5, "few": 1.5, "all": 1.0}
    assert (seed["many rises by"], seed["few falls by"]) == (pytest.approx(0.4), pytest.approx(0.3))
    assert seed["at few's peak"] == {"many": 60.0, "medium": 50.0, "few": 20.0, "all": 51.0}
    assert claims.claim_alpha([None])["holds"]
    curve["few"][2] = 11.4
    assert not claims.claim_alpha([None])["holds"]
    curve["few"][2], curve["many"][2] = 12.0, 89.6
    assert not claims.claim_alpha([None])["holds"]


def test_cosines_on_a_long_tail_and_on_a_balanced_set(monkeypatch):
    """The balanced set's classes go by the groups of the long-tailed one."""
    tailed, flat = (
        [
            SimpleNamespace(
                published=name, model=SimpleNamespace(classifier=name), stores=SimpleNamespace(test=lambda: None)
            )
        ]
        for name in ("tailed", "flat")
    )
    asked = []

    def cosines(classifier, _, counts):
        asked.append((classifier, counts))
        few = {"tailed": 0.5, "flat": 0.7}[classifier]
        return {"many": 0.8, "medium": None, "few": few}

    monkeypatch.setattr(claims, "head_cosines", cosines)
    claim = claims.claim_cosine(tailed, flat, "tailed")
    assert asked == [("tailed", "tailed"), ("flat", "tailed")]
    assert claim["holds"]
    last = claim["rows"]["many less few, long-tailed, balanced"]
    assert [round(cell["mean"], 6) for cell in last] == [0.3, 0.1]
    assert not claims.claim_cosine(flat, tailed, "flat")["holds"]
    alone = claims.claim_cosine(tailed, None, "tailed")
    assert alone["holds"] is None
    assert claims.claim_cosine(None, flat, "tailed", before=alone) == claim  # each when it was there
    assert claims.claim_cosine(tailed, None, "tailed", before=claim) == claim
    assert not claims.claim_cosine(None, tailed, "tailed", before=claim)["holds"]  # what is there now counts


def test_a_gain_is_paired_over_seeds(monkeypatch):
    def of(seed, **rows):
        return {"seed": seed, "subset_hash": "s", "rows": {name: {"all": value} for name, value in rows.items()}}

    monkeypatch.setattr(claims, "results", lambda record: record)
    others = {"tau-norm": 42.0, "lws": 42.0}
    joint = [of(0, joint=40.0, crt=42.0, ncm=43.0, **others), of(1, joint=41.0, crt=43.0, ncm=46.0, **others)]
    tde = [of(1, tde=46.0), of(0, tde=44.0)]
    claim = claims.claim_gain(tde, joint)
    assert claim["rows"]["tde less crt"][0]["mean"] == 2.5
    assert claim["rows"]["tde less ncm"][0]["mean"] == 0.5
    assert claim["holds"] is False  # half a point, which is the spread over seeds
    joint[1]["rows"]["ncm"]["all"] = 44.5
    assert claims.claim_gain(tde, joint)["holds"] is True
    joint[0]["rows"]["ncm"]["all"] = 48.0
    assert claims.claim_gain(tde, joint)["holds"] is False
    for seed in joint:
        del seed["rows"]["lws"]
    assert claims.claim_gain(tde, joint)["holds"] is None  # of one row nothing is known


def test_the_best_sampler_is_the_best_of_four(monkeypatch):
    monkeypatch.setattr(claims, "results", lambda record: record)
    of = {name: [{"rows": {"crt": {"all": 40.0 - place}}}] for place, name in enumerate(claims.EVERY_SAMPLER)}
    whole = claims.claim_samplers(of)
    assert whole["holds"] is True
    last = {"progressive": of.pop("progressive")}
    three = claims.claim_samplers(of)
    assert three["holds"] is None
    assert claims.claim_samplers(last, before=three) == whole
    last["progressive"][0]["rows"]["crt"]["all"] = 40.5
    assert claims.claim_samplers(last, before=whole)["holds"] is False


def test_runs_that_are_gone_stay_as_they_were_recorded(monkeypatch):
    """Their numbers, their seeds, their command; a claim that pairs seeds is not made of runs of two records."""
    monkeypatch.setattr(claims, "results", lambda trained: trained.results())
    monkeypatch.setattr(claims, "correlation", lambda *_: 0.9)
    monkeypatch.setattr(claims, "claim_alpha", lambda run: {"holds": True, "rows": {"seeds": [len(run)]}})
    monkeypatch.setattr(claims, "head_cosines", lambda *_: {"many": 0.6, "medium": 0.5, "few": 0.4})
    monkeypatch.setattr(claims.measure, "open_trained", lambda seed, _: seed)
    counts = []
    monkeypatch.setattr(
        claims, "build_data", lambda *given: counts.append(given) or SimpleNamespace(published_counts="tail")
    )

    def about(seed, rows):
        made = {"seed": seed, "subset_hash": "s", "checkpoint": "c", "versions": {}}
        return lambda: {**made, "rows": {name: {"all": value} for name, value in rows.items()}}

    def run(name, *settings, seeds=1, **rows):
        (recipe,) = override([RECIPES[f"cifar100-lt/{name}"]], ["protocol=paper", *settings])
        trained = [SimpleNamespace(recipe=recipe, published="tail", results=about(seed, rows)) for seed in range(seeds)]
        for one in trained:
            one.model, one.stores = SimpleNamespace(classifier=None), SimpleNamespace(test=lambda: None)
        return SimpleNamespace(recipe=recipe, path=name, seeds=trained)

    others = [run(f"decoupling-{name}", joint=39.0, crt=41.0) for name in ("square-root", "class-balanced")]
    rebalanced = dict.fromkeys(claims.REBALANCED, 43.0)
    linear = run("decoupling", seeds=3, joint=40.0, **rebalanced)
    causal = run("tde", seeds=3, tde=44.0, **{"de-confound": 41.0})
    first = {"made": {"command": "the first"}, **claims.record_of([causal, linear, *others])}
    assert first["claims"]["samplers"]["holds"] is first["claims"]["head-cosine"]["holds"] is None
    assert first["claims"]["gain"]["holds"] is True

    last = [run("tde", *BALANCED, tde=50.0), run("decoupling-progressive", joint=39.0, crt=44.0)]
    record = claims.record_of(last, Path("data"), json.loads(json.dumps(first)))
    assert record["claims"]["gain"] == first["claims"]["gain"]
    assert record["claims"]["alpha"] == first["claims"]["alpha"]
    assert record["claims"]["weight-norms"] == first["claims"]["weight-norms"]
    assert record["claims"]["samplers"]["holds"] is False
    assert record["claims"]["samplers"]["rows"]["crt, square-root"] == [{"mean": 41.0, "std": None}]
    assert record["claims"]["samplers"]["fewest_seeds"] == record["claims"]["head-cosine"]["fewest_seeds"] == 1
    assert record["claims"]["head-cosine"]["holds"] is False  # as much on the balanced set
    ((recipe, seed, folder),) = counts
    assert (recipe.data.imbalance_ratio, seed, folder) == (100, 0, Path("data"))
    by = [(entry["recipe"], entry.get("made", {}).get("command")) for entry in record["runs"]]
    assert by == [
        ("cifar100-lt/tde", "the first"),
        ("cifar100-lt/decoupling", "the first"),
        ("cifar100-lt/decoupling-square-root", "the first"),
        ("cifar100-lt/decoupling-class-balanced", "the first"),
        ("cifar100-lt/decoupling-progressive", None),
        ("cifar100-lt/tde", None),
    ]
    again = claims.record_of([causal, linear, *others, *last])
    assert again["claims"] == record["claims"]
    with pytest.raises(InputError, match="both of causal and instance, whose seeds are compared in pairs"):
        claims.record_of([linear], None, first)
    with pytest.raises(InputError, match="before: expected a record of this script, got one of format, lines"):
        claims.record_of(last, None, {"format": "tailwise-reproduction/1", "lines": []})


def test_a_row_is_asked_for_where_every_seed_has_it_as_its_recipe_wants_it(tmp_path, monkeypatch):
    """A second stage that one seed lacks, or TDE at an alpha tried later: no verdict, and the other claims go on."""
    monkeypatch.setattr(claims, "correlation", lambda *_: 0.9)
    alpha = {"value": 1.5, "from": "published"}

    def seed(name, recipe, **rows):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({"seed": 0, "subset_hash": "s", "rows": rows}))
        (recipe,) = override([RECIPES[f"cifar100-lt/{recipe}"]], ["protocol=paper"])
        return SimpleNamespace(folder=tmp_path / name, recipe=recipe)

    joint, ncm = {"all": 40.0}, {"all": 43.0, "distance": "cosine"}
    whole = seed("whole", "decoupling", joint=joint, ncm=ncm)
    part = seed("part", "decoupling", joint=joint)
    assert list(claims.claim_norms([whole, part])["rows"]) == ["correlation, joint"]
    found = claims.claim_samplers({"instance": [whole], "progressive": [part]})
    assert list(found["rows"]) == ["joint, instance", "joint, progressive"]
    tde = seed("tde", "tde", **{"de-confound": joint, "tde": {"all": 44.0, "alpha": alpha}})
    assert list(claims.claim_gain([tde], [whole])["rows"]) == ["tde less joint", "tde less ncm"]
    assert list(claims.claim_gain([tde], [whole, part])["rows"]) == ["tde less joint"]
    tried = seed("tried", "tde", **{"de-confound": joint, "tde": {"all": 39.0, "alpha": {**alpha, "value": 3.0}}})
    assert claims.claim_gain([tried], [whole]) == {"holds": None, "rows": {}}


def test_a_run_without_a_seed_leaves_the_others_of_its_folder(tmp_path, capsys):
    recipe = RECIPES["digits-lt/linear"]
    (tmp_path / "a/seed-0").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    for name in ("a", "b"):
        files.write_json(tmp_path / name / runs.RECIPE, {"format": runs.FORMAT, "recipe": recorded(recipe)})
    files.write_json(tmp_path / "a/seed-0" / runs.RESULTS, {"seed": 0})
    assert [run.path.name for run in claims.finished(tmp_path)] == ["a"]
    assert "left out: " in capsys.readouterr().out


def test_the_runs_are_those_of_the_table(capsys):
    """Of any length; another ratio, network, classifier or protocol is left out, and two of a kind are refused."""

    def run(name, *settings):
        recipe = override([RECIPES[f"cifar100-lt/{name}"]], ["protocol=paper", "data.subset_seed=0", *settings])[0]
        return SimpleNamespace(recipe=recipe, path="/".join((name, *settings)))

    half = ("stages.0.epochs=100", "stages.0.schedule.milestones=[60,80]")
    expected = {
        "causal": run("tde"),
        "instance": run("joint"),  # the first stage of decoupling
        "square-root": run("decoupling-square-root"),
        "balanced": run("tde", *BALANCED, *half),
    }
    others = [
        run("joint-published"),
        run("linear"),
        run("tde", "data.imbalance_ratio=50"),
        run("tde", "classifier.num_heads=4"),
        run("tde", "protocol=clean"),
    ]
    assert claims.sorted_out([*others, *expected.values(), *others]) == expected
    assert capsys.readouterr().out.count("left out: ") == 10
    with pytest.raises(InputError, match=r"runs: expected one of a kind, got two of 'balanced': tde/.* and tde/"):
        claims.sorted_out([*expected.values(), run("tde", *BALANCED)])
