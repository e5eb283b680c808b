"""Kill training 50 times at random moments, 25 of them with two processes, and see that nothing is lost.

    python benchmarks/campaign.py        # or make campaign; a quarter of an hour; writes results/campaign.json

Every run that comes to its end must have, bit for bit, the weights and results of one that was never disturbed; after
every kill, every visible file must be whole. One process alone is started again with --resume; of two under
torchrun one is killed, and torchrun starts both again.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from records import write
from tailwise.experiments import files, runs
from tailwise.train import load_checkpoint

TRAIN = ["-m", "tailwise", "train", "digits-lt/decoupling", "--seeds", "2", "--save-every", "0"]
LENGTH = ["stages.0.epochs=6", "second.crt.stage.epochs=6", "second.lws.stage.epochs=5"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1000"]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"OMP_NUM_THREADS": "1"}
PATIENCE = 180.0  # seconds without a sign of life after which a run is stuck


@dataclass
class Tally:
    """What happened. moments: what was going on when the process was killed."""

    kills: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    runs_ended: int = 0
    runs_that_differ: int = 0
    corrupt_files: int = 0
    stuck: int = 0


def start(folder: Path, processes: int) -> subprocess.Popen[bytes]:
    """Begin the run in `folder`, or go on with it."""
    begun = ["--resume"] if (folder / runs.RECIPE).exists() else []
    launch = TORCHRUN if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *launch, *TRAIN, *LENGTH, "--out", str(folder), *begun],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def content(folder: Path) -> dict[str, object]:
    """Everything that must not depend on what happened on the way: results, records of epochs, digests."""
    found: dict[str, object] = {}
    for seed in runs.open_run(folder).seeds:
        found[seed.path.name] = {k: v for k, v in seed.results().items() if k != "seconds"}
        lines = [json.loads(line) for line in (seed.path / runs.LOG).read_text().splitlines()]
        times = ("seconds", "images_per_second", "memory")
        found[f"{seed.path.name} log"] = [{k: v for k, v in line.items() if k not in times} for line in lines]
        for path in sorted(seed.path.rglob("*.safetensors")):
            found[str(path.relative_to(folder))] = load_checkpoint(path).digest
    return found


def corrupt(folder: Path) -> list[str]:
    """The visible files that cannot be read, or do not match their digest."""
    bad = []
    for path in folder.rglob("*"):
        if path.suffix not in (".safetensors", ".json") or any(part.startswith(".") for part in path.parts):
            continue
        try:
            load_checkpoint(path) if path.suffix == ".safetensors" else json.loads(path.read_text())
        except FileNotFoundError:
            pass  # renamed by a process that lives on
        except Exception as error:
            bad.append(f"{path}: {error}")
    return bad


def moment(folder: Path) -> str:
    """What is going on."""
    seeds = sorted(path.name for path in folder.glob("seed-*"))
    if not seeds:
        return "before training"
    if not seeds[-1].endswith(files.PARTIAL):
        return "between two seeds"
    within = folder / seeds[-1]
    if not (within / runs.CHECKPOINT).exists():
        return "first stage"
    return "second stage" if list(within.glob("last-*")) else "measuring"


def stamp(folder: Path) -> float:
    """When the run last wrote a snapshot, or anything else that it had to train for."""
    try:
        return max((path.stat().st_mtime for path in folder.rglob("*.safetensors")), default=0.0)
    except FileNotFoundError:  # renamed meanwhile
        return time.time()


def wait_for_life(process: subprocess.Popen[bytes], folder: Path, since: float) -> bool:
    """Until the run writes something or ends; False if it does neither for too long."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and stamp(folder) <= since:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def workers(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that a launcher has started."""
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]


def campaign(kills: int, processes: int, rng: random.Random) -> Tally:
    """Kill one process of runs of so many, over and over."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as place:
        reference, folder = Path(place) / "reference", Path(place) / "run"
        if start(reference, processes).wait() != 0:
            raise SystemExit("the undisturbed run failed")
        expected = content(reference)
        process, since = start(folder, processes), 0.0
        while tally.kills < kills or process.poll() is None:
            # after its first new snapshot, or, one time in five, while it starts
            early = tally.kills < kills and rng.random() < 0.2
            alive = early or wait_for_life(process, folder, since)
            if alive and tally.kills < kills:
                try:
                    process.wait(rng.uniform(0.0, 4.0))
                except subprocess.TimeoutExpired:
                    since = strike(process, folder, processes, rng, tally)
            elif alive:
                process.wait(PATIENCE)
            if not alive:
                tally.stuck += 1
                for pid in (process.pid, *workers(process)):
                    os.kill(pid, signal.SIGKILL)
            if process.poll() is None:
                continue
            if process.returncode == 0:
                tally.runs_ended += 1
                found = content(folder)
                tally.runs_that_differ += found != expected
                for name in sorted(found.keys() | expected.keys()):
                    if found.get(name) != expected.get(name):
                        print(f"DIFFERS {name}: expected {expected.get(name)}, got {found.get(name)}", flush=True)
                if tally.kills >= kills:
                    break
                shutil.rmtree(folder)
            process, since = start(folder, processes), stamp(folder)
    return tally


def strike(process: subprocess.Popen[bytes], folder: Path, processes: int, rng: random.Random, tally: Tally) -> float:
    """Kill, look at the files, count; returns when it was."""
    victims = [process.pid] if processes == 1 else workers(process)
    if not victims:
        return stamp(folder)
    now = moment(folder)
    os.kill(rng.choice(victims), signal.SIGKILL)
    if processes == 1:
        process.wait()
    tally.kills += 1
    tally.moments[now] += 1
    bad = corrupt(folder)
    tally.corrupt_files += len(bad)
    print(f"{processes} process(es), kill {tally.kills}: {now}", *bad, sep="\n  ", flush=True)
    return time.time()


def main() -> None:
    """Run both halves and write what happened; exit 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="of each half")
    parser.add_argument("--out", type=Path, default=Path("results/campaign.json"))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args()
    rng, record, lost = random.Random(asked.seed), {}, 0
    for processes in (1, 2):
        tally = campaign(asked.kills, processes, rng)
        lost += tally.runs_that_differ + tally.corrupt_files + tally.stuck
        record[f"{processes} process{'es' if processes > 1 else ''}"] = vars(tally)
    write(asked.out, record)
    print(json.dumps(record, indent=1))
    sys.exit(lost > 0)


if __name__ == "__main__":
    main()
