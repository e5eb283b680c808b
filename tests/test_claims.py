"""What `benchmarks/claims.py` finds of the papers' claims, on made-up numbers."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("claims", ROOT / "benchmarks/claims.py")
claims = importlib.util.module_from_spec(spec)
spec.loader.exec_module(claims)


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
    claim = claims.claim_cosine(tailed, flat)
    assert asked == [("tailed", "tailed"), ("flat", "tailed")]
    assert claim["holds"]
    last = claim["rows"]["many less few, long-tailed, balanced"]
    assert [round(cell["mean"], 6) for cell in last] == [0.3, 0.1]
    assert not claims.claim_cosine(flat, tailed)["holds"]
    assert claims.claim_cosine(tailed, None)["holds"] is None


def test_a_gain_is_paired_over_seeds(monkeypatch):
    def of(seed, **rows):
        return {"seed": seed, "subset_hash": "s", "rows": {name: {"all": value} for name, value in rows.items()}}

    monkeypatch.setattr(claims, "results", lambda record: record)
    joint = [of(0, joint=40.0, crt=42.0, ncm=45.0), of(1, joint=41.0, crt=43.0, ncm=44.0)]
    tde = [of(1, tde=46.0), of(0, tde=44.0)]
    claim = claims.claim_gain(tde, joint)
    assert claim["rows"]["tde less crt"][0]["mean"] == 2.5
    assert claim["rows"]["tde less ncm"][0]["mean"] == 0.5
    assert claim["holds"]
    joint[0]["rows"]["ncm"]["all"] = 48.0
    assert not claims.claim_gain(tde, joint)["holds"]
