"""What the papers claim, asked of trained runs, and reported as found.

    tailwise reproduce claims --seeds 1 --data-dir DIR                     # trains what it takes, on CIFAR-100-LT
    python benchmarks/claims.py runs/reproduce/cifar100-lt/* --out results/claims.json

A claim whose runs or rows are not all there has no verdict, only the numbers there are. The runs are those that the
table `claims` asks for, under protocol paper: a causal classifier on a long-tailed set, one on a balanced set of as
many images, a linear one by each sampler; of any length, which the record says. Others among those given are left out,
and two of a kind are refused. Runs that are gone stand in an earlier record (`--before`), with the command they came
by. Nothing here chooses anything: curves and correlations on test are for looking at.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from records import seeds_of, write
from tailwise import InputError
from tailwise.counts import GROUPS
from tailwise.experiments import measure
from tailwise.experiments.adjusters import head_cosines
from tailwise.experiments.build_data import build_data
from tailwise.experiments.files import read_json
from tailwise.experiments.runs import RECIPE, open_run
from tailwise.figures.per_class import weight_of
from tailwise.recipes.catalog import RECIPES, SAMPLERS
from tailwise.report.summary import mean_and_std, paired_difference
from tailwise.report.table import figure
from tailwise.reproduction.evidence import first_stage, usable_rows
from tailwise.reproduction.plan import changes
from tailwise.reproduction.targets import targets_of

ALL = (*GROUPS, "all")
ALPHAS = tuple(round(0.1 * step, 1) for step in range(51))
NOISE = 0.5  # points between neighbouring alphas that count as neither rise nor fall
REBALANCED = ("ncm", "tau-norm", "crt", "lws")
EVERY_SAMPLER = ("instance", *SAMPLERS)
TAIL, FLAT = "long-tailed", "balanced"  # sets, as cosines are told apart by
KINDS = {  # of runs, by the claim that rests on them
    "alpha": ("causal",),
    "head-cosine": ("causal", "balanced"),
    "weight-norms": ("instance",),
    "samplers": EVERY_SAMPLER,
    "gain": ("causal", "instance"),
}
CLAIMS = {
    "alpha": "with alpha many falls and few rises, up to its peak (Tang et al. 2020, Fig. 4)",
    "head-cosine": "features lean to the head direction, head classes most (Tang et al. 2020, Assumption 1)",
    "weight-norms": "norms of weights follow counts after joint training, not after cRT (Kang et al. 2020, Fig. 2)",
    "samplers": "instance-balanced features are the best (Kang et al. 2020, Fig. 1)",
    "gain": "TDE gains over re-balancing (Tang et al. 2020, Table 2)",
}


def alpha_of_seed(trained, values=ALPHAS):
    """Where each group peaks, and the largest step the wrong way before few's peak, in points of test accuracy."""
    curve = measure.strength_curve(trained, "tde", values=values)["test"]
    groups = [group for group in ALL if curve[group][0] is not None]
    peaks = {group: values[int(np.argmax(curve[group]))] for group in groups}
    end = values.index(peaks["few"]) + 1 if "few" in peaks else len(values)

    def largest(steps):
        return float(np.max(steps, initial=0.0))

    return {
        "at 0": {group: curve[group][0] for group in groups},
        "at few's peak": {group: curve[group][end - 1] for group in groups},
        "peaks": peaks,
        "many rises by": largest(np.diff(curve["many"][:end])) if "many" in peaks else 0.0,
        "few falls by": largest(-np.diff(curve["few"][:end])) if "few" in peaks else 0.0,
    }


def claim_alpha(causal):
    """Curves of TDE over the seeds of a run."""
    seeds = [alpha_of_seed(trained) for trained in causal]
    holds = all(seed["many rises by"] <= NOISE and seed["few falls by"] <= NOISE for seed in seeds)
    rows = {
        f"{group} at alpha 0, at few's peak": [
            over([seed[at].get(group) for seed in seeds]) for at in ("at 0", "at few's peak")
        ]
        for group in ALL
    }
    rows |= {f"alpha where {group} peaks": [over([seed["peaks"].get(group) for seed in seeds])] for group in ALL}
    rows |= {name: [over([seed[name] for seed in seeds])] for name in ("many rises by", "few falls by")}
    return {"holds": holds, "rows": rows}


def cosines(run, counts):
    """Mean cos to the head direction by groups of these counts, over the seeds of a run."""
    seeds = [head_cosines(trained.model.classifier, trained.stores.test(), counts) for trained in run]
    return {group: over([seed[group] for seed in seeds]) for group in GROUPS}


def claim_cosine(causal, balanced, counts, before=None):
    """By group on the long-tailed set and, for the same classes, on the balanced one, if that was run."""
    sets = {TAIL: causal, FLAT: balanced}
    found = cosines_before(before) | {name: cosines(run, counts) for name, run in sets.items() if run}
    found = {name: found[name] for name in sets if name in found}
    header = ", ".join(found)
    rows = {f"{group}, {header}": [found[name][group] for name in found] for group in GROUPS}
    lean = {name: difference(by_group) for name, by_group in found.items()}
    rows[f"many less few, {header}"] = [over([value]) for value in lean.values()]
    known = set(found) == set(sets) and None not in lean.values()
    return {"holds": lean[TAIL] > max(0.0, lean[FLAT]) if known else None, "rows": rows}


def cosines_before(claim):
    """Those of an earlier record: by set, by group."""
    found = {}
    for row, cells in claim["rows"].items() if claim else ():
        group, *sets = row.split(", ")
        if group in GROUPS:
            for name, cell in zip(sets, cells, strict=True):
                found.setdefault(name, {})[group] = cell
    return found


def difference(found):
    """Of the first group that there is and the last."""
    known = [found[group]["mean"] for group in GROUPS if found[group]]
    return known[0] - known[-1] if len(known) > 1 else None


def correlation(trained, method):
    """Pearson's, of log(images of a class) and log of the norm of its weights; None where there is no matrix."""
    weight = weight_of(trained.made(method).model.classifier)
    if weight is None:
        return None
    norms = torch.linalg.vector_norm(weight, dim=1).double().numpy()
    counts = np.array(trained.counts.per_class)
    seen = counts > 0
    return float(np.corrcoef(np.log(counts[seen]), np.log(norms[seen]))[0, 1])


def claim_norms(linear):
    """After joint training, and after each second stage that is there."""
    there = common(("joint", "crt", "lws", "tau-norm"), linear)
    rows = {f"correlation, {name}": [over([correlation(trained, name) for trained in linear])] for name in there}
    joint, crt = (rows.get(f"correlation, {name}", [None])[0] for name in ("joint", "crt"))
    holds = joint["mean"] > 0.5 and abs(crt["mean"]) < joint["mean"] / 2 if joint and crt else None
    return {"holds": holds, "rows": rows}


def claim_samplers(by_sampler, before=None):
    """Accuracy over all classes of each row that every seed has, by the sampler of the first stage."""
    found = {row: cells for row, cells in (before or {"rows": {}})["rows"].items() if sampler_of(row) not in by_sampler}
    for sampler, run in by_sampler.items():
        for name in common(("joint", *REBALANCED), run):
            found[f"{name}, {sampler}"] = [over([results(seed)["rows"][name]["all"] for seed in run])]
    there = [sampler for sampler in EVERY_SAMPLER if sampler in map(sampler_of, found)]
    by_method = {name: [f"{name}, {sampler}" for sampler in there] for name in ("joint", *REBALANCED)}
    rows = {row: found[row] for needed in by_method.values() if set(needed) <= set(found) for row in needed}
    if there != list(EVERY_SAMPLER) or "crt, instance" not in rows:
        return {"holds": None, "rows": rows}
    best = max(EVERY_SAMPLER, key=lambda sampler: rows[f"crt, {sampler}"][0]["mean"])
    return {"holds": best == "instance", "rows": rows}


def sampler_of(row):
    """Of the name of a row of this claim."""
    return row.rpartition(", ")[2]


def claim_gain(causal, linear):
    """Of TDE over each row of the plain classifier, on the seeds and subsets of both; and of its own features."""
    if not common(("tde",), causal):
        return {"holds": None, "rows": {}}
    tde, joint = [results(seed) for seed in causal], [results(seed) for seed in linear or ()]
    names = common(("joint", *REBALANCED), linear) if linear else []
    rows = {f"tde less {name}": [paired_difference(joint, tde, (name, "tde"))] for name in names}
    same = common(("logit-adjustment", "crt-stored", *REBALANCED), causal)
    rows |= {f"tde less {name} of its own features": [paired_difference(tde, tde, (name, "tde"))] for name in same}
    gains = [rows.get(f"tde less {name}", [None])[0] for name in REBALANCED]
    # by more than its own spread over seeds: a gain within it may as well be a loss on other seeds
    return {
        "holds": None if None in gains else all(gain["mean"] > (gain["std"] or 0.0) for gain in gains),
        "rows": rows,
    }


def over(values):
    """Mean and spread over seeds."""
    return mean_and_std(values)


def results(trained):
    """What was written of a seed, but rows at strengths that its recipe does not have; second stages as they are."""
    written = json.loads((trained.folder / "results.json").read_text())
    usable = usable_rows(written, trained.recipe)
    rows = {name: row for name, row in written["rows"].items() if name in usable or "second_stage" in row}
    return {**written, "rows": rows}


def common(names, seeds):
    """Those of the rows that every seed has."""
    found = [results(seed)["rows"] for seed in seeds]
    return [name for name in names if all(name in rows for rows in found)]


def kind_of(recipe):
    """What a run is to the claims, if they ask for it: "causal", "balanced", or the sampler of a linear classifier."""
    if recipe.classifier.name == "causal":
        return "balanced" if recipe.data.imbalance_ratio == 1 else "causal"
    return recipe.stages[0].sampler


def training_of(recipe):
    """What makes two trainings the same but for their length and their subset."""
    first, *others = recipe.stages
    stages = (first.model_copy(update={"epochs": 1, "schedule": None}), *others)
    data = recipe.data.model_copy(update={"subset_seed": 0})
    return first_stage(recipe.model_copy(update={"stages": stages, "data": data}), 0)


def sorted_out(runs):
    """The runs that the table `claims` asks for, by what they are to the claims; says which are left out.

    Raises:
        InputError: two of a kind, none of which is to be preferred.
    """
    asked_for = {training_of(target.recipe.model_copy(update={"protocol": "paper"})) for target in targets_of("claims")}
    taken = {}
    for run in runs:
        kind = kind_of(run.recipe)
        if training_of(run.recipe) not in asked_for:
            print(f"left out: {run.path}, which no claim asks for")
        elif kind in taken:
            raise InputError(f"runs: expected one of a kind, got two of '{kind}': {taken[kind].path} and {run.path}")
        else:
            taken[kind] = run
    return taken


def asked(taken, data_dir, before):
    """Every claim, as found; None where its runs are not there. What none of the runs has a say in stays as it was."""
    opened = {kind: [measure.open_trained(seed, data_dir) for seed in run.seeds] for kind, run in taken.items()}
    causal, balanced, linear = (opened.get(kind) for kind in ("causal", "balanced", "instance"))
    by_sampler = {kind: opened[kind] for kind in EVERY_SAMPLER if kind in opened}
    earlier = before["claims"] if before else dict.fromkeys(CLAIMS)
    found = dict(earlier)
    if causal:
        found["alpha"] = claim_alpha(causal)
        found["gain"] = claim_gain(causal, linear)
    if causal or (balanced and earlier["head-cosine"]):
        counts = causal[0].published if causal else counts_before(before, data_dir)
        found["head-cosine"] = claim_cosine(causal, balanced, counts, earlier["head-cosine"])
    if linear:
        found["weight-norms"] = claim_norms(linear)
    if len(by_sampler) > 1 or (by_sampler and earlier["samplers"]):
        found["samplers"] = claim_samplers(by_sampler, earlier["samplers"])
    return found


def counts_before(before, data_dir):
    """What groups go by, of the long-tailed set of an earlier record."""
    (run,) = (run for run in before["runs"] if kind_before(run) == "causal")
    return build_data(recipe_before(run), run["seeds"][0]["seed"], data_dir).published_counts


def recipe_before(run):
    """Of a recorded run: its classifier, its first sampler and its data; not its length."""
    recipe = RECIPES[run["recipe"]]
    return recipe.model_copy(update={"data": type(recipe.data)(**run["data"]), "protocol": run["protocol"]})


def kind_before(run):
    """What a recorded run is to the claims."""
    return kind_of(recipe_before(run))


def record_of(runs, data_dir=None, before=None):
    """The claims, with what they rest on.

    Args:
        runs: those that are there.
        before: an earlier record, whose numbers stay where a run of it is not among them.

    Raises:
        InputError: runs that cannot be told apart, one of two that are compared seed by seed, another record.
    """
    if before is not None and not {"made", "claims", "runs"} <= set(before):
        raise InputError(f"before: expected a record of this script, got one of {', '.join(before) or 'nothing'}")
    taken = sorted_out(runs)
    about = {
        kind: {
            "recipe": run.recipe.name,
            "data": run.recipe.data.model_dump(mode="json"),
            "changed": changes(run.recipe),
            "epochs": sum(stage.epochs for stage in run.recipe.stages),
            "protocol": run.recipe.protocol,
            "compute": run.recipe.compute.model_dump(mode="json"),
            "seeds": seeds_of(run),
        }
        for kind, run in taken.items()
    }
    gone = {kind_before(run): run for run in (before or {"runs": []})["runs"]}
    gone = {kind: {"made": before["made"], **run} for kind, run in gone.items() if kind not in taken}
    pair = [kind for kind in KINDS["gain"] if kind in taken or kind in gone]
    if len(pair) == 2 and len(set(pair) & set(gone)) == 1:
        raise InputError(f"runs: expected both of {' and '.join(pair)}, whose seeds are compared in pairs, got one")
    about = {kind: (about | gone)[kind] for kind in ("causal", *EVERY_SAMPLER, "balanced") if kind in about | gone}
    claims = {
        name: claim
        and {**claim, "fewest_seeds": min(len(about[kind]["seeds"]) for kind in KINDS[name] if kind in about)}
        for name, claim in asked(taken, data_dir, before).items()
    }
    return {"claims": claims, "runs": list(about.values())}


def table(record):
    """Each claim, whether it held, and the numbers it was judged by."""
    lines = [
        f"{run['recipe']}, ratio {run['data']['imbalance_ratio']:g}, epochs {run['epochs']}, "
        f"protocol {run['protocol']}, "
        f"{'seed' if len(run['seeds']) == 1 else 'seeds'} {', '.join(str(seed['seed']) for seed in run['seeds'])}"
        for run in record["runs"]
    ]
    for name, claim in record["claims"].items():
        verdict = {None: "no verdict, runs are missing", True: "as claimed", False: "not as claimed"}[
            claim and claim["holds"]
        ]
        few = " (fewer than three seeds)" if verdict.endswith("claimed") and claim["fewest_seeds"] < 3 else ""
        lines += ["", f"{CLAIMS[name]}: {verdict}{few}"]
        for row, cells in (claim or {"rows": {}})["rows"].items():
            digits = 2 if "cos" in name or "norms" in name else 1
            lines.append(f"  {row:<44}" + "".join(f"{shown(cell, digits):>14}" for cell in cells))
    return "\n".join(lines) + "\n"


def shown(cell, digits):
    """A mean and its spread; "-" where there is none."""
    if cell is None or digits == 1:
        return figure(cell)
    return f"{cell['mean']:.{digits}f}" + ("" if cell["std"] is None else f" ± {cell['std']:.{digits}f}")


def finished(folder):
    """The runs in a folder that have a seed to ask; says which have none."""
    found = []
    for path in sorted(child.parent for child in folder.glob(f"*/{RECIPE}")) or [folder]:
        try:
            found.append(open_run(path))
        except InputError as error:
            print(f"left out: {error}")
    return found


def main():
    """Ask, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or folders of several runs")
    parser.add_argument("--data-dir", type=Path, help="for stores that are gone")
    parser.add_argument("--before", type=Path, help="an earlier record, for runs that are gone")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    try:
        before = read_json(given.before) if given.before else None
        record = record_of([run for folder in given.runs for run in finished(folder)], given.data_dir, before)
    except InputError as error:
        parser.error(str(error))
    print(table(record), end="")
    if given.out:
        write(given.out, record)


if __name__ == "__main__":
    main()
