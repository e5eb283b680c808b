"""Mean and spread over seeds, from stored records alone."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from tailwise import checks
from tailwise.counts import ClassCounts

GROUPS = ("many", "medium", "few", "all")
STRENGTHS = {"alpha", "norm_power"}
Result = dict[str, Any]


def mean_and_std(values: Sequence[float | None]) -> dict[str, float | None] | None:
    """Mean and sample standard deviation; None if nothing was measured, std None for a single value.

    >>> mean_and_std([80.0, 90.0])
    {'mean': 85.0, 'std': 7.0710678118654755}
    >>> mean_and_std([-3.0, None, 1.0])["mean"]
    -1.0
    """
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return None
    return {"mean": statistics.fmean(known), "std": statistics.stdev(known) if len(known) > 1 else None}


def over_seeds(seeds: Sequence[int]) -> str:
    """What figures are over.

    >>> over_seeds([0, 1]), over_seeds([3])
    ('mean ± std over seeds 0, 1', 'single run, seed 3')
    """
    return f"{'mean ± std over' if len(seeds) > 1 else 'single run,'} {listed(seeds)}"


def listed(seeds: Sequence[int]) -> str:
    """
    >>> listed([0, 1]), listed([3])
    ('seeds 0, 1', 'seed 3')
    """
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def summarize(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per method over the seeds of one run: accuracies in percent, and how strong an adjustment was.

    Args:
        results: one record per seed, each with the same "rows".

    Returns:
        {"recipe", "method", "many", "medium", "few", "all"}, each accuracy {"mean", "std"} or None for an empty group;
        "seeds" that it is over;
        "metrics", others by name, alike;
        "alpha" or "norm_power" (one value per seed, where from) where there is one, with alpha "head_cosine" by group;
        "second_stage" where there was one, with what it was trained on.
    """
    summary = []
    everywhere = set.intersection(*(set(result["rows"]) for result in results))
    for method in (name for name in results[0]["rows"] if name in everywhere):
        rows = [result["rows"][method] for result in results]
        row: dict[str, Any] = {"recipe": results[0]["recipe"]["name"], "method": method}
        row["seeds"] = [result["seed"] for result in results]
        row.update({group: mean_and_std([r[group] for r in rows]) for group in GROUPS})
        if all("metrics" in r for r in rows):
            row["metrics"] = {name: mean_and_std([r["metrics"][name] for r in rows]) for name in rows[0]["metrics"]}
        for strength in STRENGTHS & rows[0].keys():
            origin = _alike(method, [_without(r[strength], "value") for r in rows])
            row[strength] = {"values": [r[strength]["value"] for r in rows], **origin}
        if "second_stage" in rows[0]:
            row["second_stage"] = _alike(method, [_without(r["second_stage"], "epoch") for r in rows])
        if "distance" in rows[0]:
            row["distance"] = _alike(method, [r["distance"] for r in rows])
        if "head_cosine" in rows[0]:
            row["head_cosine"] = {g: mean_and_std([r["head_cosine"][g] for r in rows]) for g in GROUPS[:3]}
        summary.append(row)
    return summary


def _without(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != key}


def _alike(method: str, settings: Sequence[Any]) -> Any:
    """What all seeds have; a mean over seeds of different settings would mean nothing."""
    if any(other != settings[0] for other in settings):
        raise checks.InputError(f"method: seeds of this run have '{method}' in different settings; adjust it anew")
    return settings[0]


def combined(name: str, runs: dict[str, list[Result]]) -> dict[str, Any]:
    """One record of all runs of a recipe or suite: a row per method, and what they rest on.

    Args:
        name: of the recipe or suite.
        runs: run folder -> its seeds' results, all under one protocol.
    """
    first = next(iter(runs.values()))
    subsets = {result["seed"]: result["subset_hash"] for results in reversed(runs.values()) for result in results}
    return {
        "name": name,
        "protocol": first[0]["protocol"],
        "seeds": sorted(subsets),
        "subset_hashes": [subsets[seed] for seed in sorted(subsets)],
        "group_sizes": _group_sizes(first[0]),
        "rows": [row for results in runs.values() for row in summarize(results)],
        "runs": list(runs),
        "versions": first[0]["versions"],
        **({"left_out": first[0]["left_out"]} if first[0].get("left_out") else {}),
    }


def compared(runs: dict[str, list[Result]]) -> dict[str, Any]:
    """One record of any runs side by side: each row names its run and protocol, and differs from the first row.

    Args:
        runs: run folder -> its seeds' results.
    """
    first = next(iter(runs.values()))
    first_method = next(iter(first[0]["rows"]))
    rows: list[dict[str, Any]] = []
    for folder, results in runs.items():
        for row in summarize(results):
            difference = paired_difference(first, results, (first_method, row["method"])) if rows else None
            rows.append({"run": folder, "protocol": results[0]["protocol"], **row, "difference": difference})
    sizes = [_group_sizes(results[0]) for results in runs.values()]
    return {
        "name": "compare",
        "protocol": ", ".join(sorted({results[0]["protocol"] for results in runs.values()})),
        "seeds": sorted({result["seed"] for results in runs.values() for result in results}),
        "group_sizes": sizes[0] if all(size == sizes[0] for size in sizes) else None,
        "rows": rows,
        "runs": list(runs),
    }


def swept(name: str, results: Sequence[Result], curves: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One record of a strength's curve over the seeds of a run.

    Args:
        name: of the recipe.
        results: one record per seed.
        curves: of each seed: {"values", "val" and "test" (accuracies by group, one per value), "chosen"}.

    Returns:
        The curve with {"mean", "std"} (or None) in place of each accuracy.
    """
    first = curves[0]
    record = {
        "name": name,
        "protocol": results[0]["protocol"],
        "seeds": [result["seed"] for result in results],
        "subset_hashes": [result["subset_hash"] for result in results],
        "versions": results[0]["versions"],
        "group_sizes": _group_sizes(results[0]),
        **{key: first[key] for key in ("method", "strength", "metric", "values")},
    }
    for split in ("val", "test"):
        if split in first:
            record[split] = {
                group: [mean_and_std(at) for at in zip(*(curve[split][group] for curve in curves), strict=True)]
                for group in first[split]
            }
    record["chosen"] = None
    if "chosen" in first:
        origin = _alike(first["method"], [_without(curve["chosen"], "value") for curve in curves])
        record["chosen"] = {"values": [curve["chosen"]["value"] for curve in curves], **origin}
    return record


def _group_sizes(result: Result) -> dict[str, int]:
    groups = ClassCounts(tuple(result["published_counts"])).group_sizes
    return {**groups, "all": sum(groups.values())}


def paired_difference(first: Sequence[Result], other: Sequence[Result], methods: tuple[str, str]) -> Any:
    """Mean and spread, over the seeds both have on the same subset, of other's "all" minus first's; None if none.

    >>> first = [{"seed": 0, "subset_hash": "a", "rows": {"linear": {"all": 80.0}}}]
    >>> other = [{"seed": 0, "subset_hash": "a", "rows": {"tde": {"all": 83.0}}}]
    >>> paired_difference(first, other, ("linear", "tde"))
    {'mean': 3.0, 'std': None}
    """
    before = {(r["seed"], r["subset_hash"]): r["rows"][methods[0]]["all"] for r in first}
    after = {(r["seed"], r["subset_hash"]): r["rows"][methods[1]]["all"] for r in other}
    return mean_and_std([after[key] - before[key] for key in sorted(before.keys() & after.keys())])
