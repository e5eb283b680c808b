"""How time and memory grow with classes, samples and processes: a curve for each part, with its exponent.

    python benchmarks/scale.py --json results/scale.json --plot docs/scale.png    # some minutes
    python benchmarks/scale.py --quick                                            # small sizes, half a minute

Exits with 1 if a curve grows faster than linearly (`curves.too_steep`). D is 64, but for one curve; labels are
Zipf-like. With --only, the curves take the place of those of the same name in --json's file.

Each point is a process of its own, with one thread. Seconds are CPU seconds of the process, so what else the machine
does hardly counts; the least of two calls or more, except where one takes 5 seconds. Memory is the most the process
held during the first call less what it held before it, so inputs are not counted: the peak resident set where Linux
lets a process reset its peak, else what the peak grew by. Files that are mapped into memory count when they are read;
they lie in memory where there is /dev/shm, since what a disk takes depends on what else waits for it.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

import curves
from records import write
from tailwise import CausalClassifier, ClassCounts
from tailwise.adjust import sweep_alpha, tde_components
from tailwise.data import frozen_order
from tailwise.evaluate import Store
from tailwise.evaluate.metrics import METRICS, mean_per_class_accuracy, metric
from tailwise.sampling import (
    EpochSampler,
    Members,
    class_aware_draw,
    class_draw,
    class_probabilities,
    instance_draw,
    repeat_draw,
    repeat_factors,
)

D = 64
GPUS = 64
Work = Callable[[], object]


@dataclass(frozen=True)
class Curve:
    """build: a size -> the work to measure at that size, its inputs made. sizes: of the full benchmark."""

    part: str
    name: str
    against: str
    at: str
    build: Callable[[int], Work]
    sizes: tuple[int, ...]


def half_decades(low: int, high: int) -> tuple[int, ...]:
    """10^low, 10^(low + 1/2), ... 10^high."""
    return tuple(round(10 ** (step / 2)) for step in range(2 * low, 2 * high + 1))


# ---- what is measured


def zipf_labels(samples: int, classes: int) -> tuple[NDArray[np.int64], ClassCounts]:
    """Shuffled labels, counts proportional to 1 / (rank + 25), every class at least once."""
    weights = 1 / (np.arange(classes) + 25.0)
    counts = 1 + ((samples - classes) * weights / weights.sum()).astype(int)
    counts[0] += samples - counts.sum()
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), counts))
    return labels, ClassCounts(tuple(counts.tolist()))


def step(batch: int, classes: int, width: int = D) -> Work:
    """A training step of the causal classifier: forward, average, loss, backward, SGD with momentum."""
    torch.manual_seed(0)
    classifier = CausalClassifier(width, classes)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1, momentum=0.9)
    features, labels = torch.rand(batch, width), torch.randint(0, classes, (batch,))

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(classifier(features), labels).backward()
        optimizer.step()

    return work


def draw(rule: str, samples: int, classes: int) -> Work:
    """The indices of an epoch."""
    labels, counts = zipf_labels(samples, classes)
    members = Members.of(labels, counts)
    rules: dict[str, Callable[[], Work]] = {
        "instance": lambda: partial(instance_draw, samples, 0, 2),
        "class-balanced": lambda: partial(class_draw, members, class_probabilities(counts, 0), 0, 2),
        "class-aware": lambda: partial(class_aware_draw, members, 0, 2),
        "repeat-factor": lambda: partial(repeat_draw, members, repeat_factors(counts, 0.001), 0, 2),
    }
    return rules[rule]()


def random_reads(samples: int, classes: int) -> Work:  # noqa: ARG001  # called as the others
    """As many reads of whole numbers in random order: what a machine's caches and memory make of linear work."""
    order, values = np.random.default_rng(0).permutation(samples), np.arange(samples)
    return lambda: values[order]


def members_of(samples: int, classes: int) -> Work:
    """What every rule but the first starts from: counts, and the images sorted by class."""
    labels, _ = zipf_labels(samples, classes)
    return lambda: Members.of(labels, ClassCounts.of_labels(labels, classes))


def share(samples: int, classes: int) -> Work:  # noqa: ARG001  # called as the others
    """One of GPUS ranks draws an epoch and goes through its part of it."""
    sampler = EpochSampler(partial(instance_draw, samples, 0), batch_size=16 * GPUS, rank=1, num_ranks=GPUS)

    def work() -> int:
        sampler.set_epoch(1)
        return sum(1 for _ in sampler)

    return work


def subset(samples: int, classes: int) -> Work:
    """Which images make a long-tailed subset or a validation split."""
    labels, _ = zipf_labels(samples, classes)
    return lambda: frozen_order(labels, "scale", 0)


def components(samples: int, classes: int) -> Work:
    """a and b of Eq. 8 from stored features."""
    torch.manual_seed(0)
    classifier, features = CausalClassifier(D, classes), torch.rand(samples, D)
    classifier(features[:64])
    classifier.eval()
    return torch.no_grad()(lambda: tde_components(features, classifier))


def sweep(samples: int, classes: int) -> Work:
    """51 alphas on given components, each scored by the mean over classes."""
    torch.manual_seed(0)
    a, b = torch.rand(samples, classes), torch.rand(samples, classes)
    labels = np.random.default_rng(0).integers(0, classes, samples)
    return lambda: sweep_alpha((a, b), lambda predicted: mean_per_class_accuracy(predicted, labels, classes))


def metrics(samples: int, classes: int) -> Work:
    """Every metric there is, once."""
    labels, counts = zipf_labels(samples, classes)
    predicted = np.where(np.random.default_rng(1).random(samples) < 0.5, labels, np.roll(labels, 1))
    groups = [name for name in METRICS if len(counts.groups.get(name, [0]))]  # few-shot classes may be missing
    return lambda: [metric(name, labels, counts)(predicted) for name in groups]


def store_of(samples: int, classes: int) -> Store:
    """A store of random numbers."""
    rng = np.random.default_rng(0)
    features, logits = (rng.random((samples, width), dtype=np.float32) for width in (D, classes))
    ids = np.arange(samples)
    return Store(features, logits, rng.integers(0, classes, samples), ids, "digest", "val")


def scratch() -> Path:
    """A folder that goes when this process has been measured."""
    return Path(SCRATCH[0])


def save(samples: int, classes: int) -> Work:
    """`Store.save`."""
    store = store_of(samples, classes)

    def work() -> None:
        shutil.rmtree(scratch() / "store", ignore_errors=True)  # two at a time would be much memory
        store.save(scratch() / "store")

    return work


def plain_write(samples: int, classes: int) -> Work:
    """As many bytes as a store has, to a file."""
    block, path = bytes(samples * (4 * (D + classes) + 16)), scratch() / "bytes"

    def work() -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(block)

    return work


def load(samples: int, classes: int) -> Work:
    """`Store.load`, which maps the arrays and reads them once to check them."""
    store_of(samples, classes).save(scratch() / "store")
    gc.collect()
    return lambda: Store.load(scratch() / "store", "digest")


CLASSES = half_decades(2, 5)
SAMPLES = half_decades(3, 7)
PER_CLASS = f"{curves.PER_CLASS} samples a class"


def all_curves(quick: bool) -> list[Curve]:
    """Every part against classes, against samples, and against both together."""
    fixed = 10_000 if quick else 300_000
    rules = ("instance", "class-balanced", "class-aware", "repeat-factor")
    found = [
        Curve("causal step", "step", "classes", "256 samples", partial(step, 256), CLASSES),
        # Little but the weight, which no cache holds: memory over 4 C D says how many sizes of it a step takes.
        Curve("causal step", "wide step", "classes", "8 samples, D 1,024", partial(step, 8, width=1_024), CLASSES[4:6]),
        Curve("causal step", "step", "samples", "100 classes", partial(step, classes=100), half_decades(3, 6)),
    ]
    for against, at, sizes in (
        ("classes", f"{fixed:,} samples", CLASSES),
        ("samples", "100 classes", SAMPLES),
        ("classes and samples", PER_CLASS, CLASSES),
    ):

        def both(build: Callable[..., Work], against: str = against) -> Callable[[int], Work]:
            if against == "classes":
                return partial(build, fixed)
            return partial(build, classes=100) if against == "samples" else partial(ten_a_class, build)

        def add(
            part: str, name: str, build: Callable[..., Work], against: str = against, at: str = at, sizes: Any = sizes
        ) -> None:
            found.append(Curve(part, name, against, at, both(build, against), sizes))

        for rule in rules:
            if against != "classes and samples" or rule.startswith("class"):
                add("sampler", rule, partial(draw, rule))
        add("sampler", "counts and members", members_of)
        if against == "samples":
            add("sampler", curves.REFERENCES["sampler"], random_reads)
            add("sampler", "one of 64 ranks", share)
        add("subset", "frozen order", subset, sizes=tuple(x for x in sizes if x <= 1_000_000))
        add("metrics", "all metrics", metrics)
    for name, build in (("components", components), ("51 alphas", sweep)):
        found.append(Curve("sweep", name, "classes", "10^3 samples", partial(build, 1_000), CLASSES))
    found += [
        Curve("sweep", "components", "samples", "100 classes", partial(components, classes=100), half_decades(3, 6)),
        Curve("sweep", "51 alphas", "samples", "10 classes", partial(sweep, classes=10), SAMPLES),
    ]
    for name, build in (("save", save), ("load", load), (curves.REFERENCES["Store"], plain_write)):
        found.append(Curve("Store", name, "classes", "10^3 samples", partial(build, 1_000), CLASSES))
        found.append(Curve("Store", name, "samples", "10 classes", partial(build, classes=10), SAMPLES))
    order = ["causal step", "sampler", "subset", "sweep", "metrics", "Store"]
    axes = ["classes", "samples", "classes and samples"]
    return sorted(found, key=lambda curve: (order.index(curve.part), axes.index(curve.against)))


def ten_a_class(build: Callable[[int, int], Work], classes: int) -> Work:
    """Samples that grow with the classes: what grows with their product would grow with the square."""
    return build(curves.PER_CLASS * classes, classes)


# ---- how it is measured

SCRATCH: list[str] = []
MEMORY = "/dev/shm"
# glibc gives blocks from 32 MB on back to the system when they are freed and takes them anew, with a page fault for
# every 4 kB: half the time of a step of 100,000 classes, and a curve that bends where a block comes to be that large
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


def measure(number: int, x: int, quick: bool, send: Connection) -> None:
    """A point of a curve; the whole of a process."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    curve = all_curves(quick)[number]
    with tempfile.TemporaryDirectory(dir=MEMORY if Path(MEMORY).is_dir() else None) as folder:
        SCRATCH[:] = [folder]
        work = curve.build(x)
        before = reset_peak()
        times = [cpu_seconds(work)]
        point = {"x": x, "bytes": peak() - before}
        # the first call also asks the system for its memory, which a long one can bear
        while times[0] < 5 and (len(times) < 2 or sum(times) < (0.02 if quick else 0.3)) and len(times) < 20:
            times.append(cpu_seconds(work))
        files = [path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()]
    send.send({**point, "seconds": min(times), "disk": sum(files)})


def cpu_seconds(work: Work) -> float:
    """Of one call; its result is let go after it."""
    start = time.process_time()
    result = work()
    taken = time.process_time() - start
    del result
    return taken


def reset_peak() -> int:
    """Bytes held now; the peak starts from here where the system allows that."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # glibc keeps what was freed: it would be used again, uncounted
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return status("VmRSS")
    except OSError:
        return peak()


def peak() -> int:
    """The most bytes held since the peak was reset, or ever."""
    try:
        return status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def status(key: str) -> int:
    """A size of this process in bytes, as Linux knows it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def run_curves(only: str, quick: bool) -> list[dict[str, Any]]:
    """Measure all curves, one process at a time."""
    context = multiprocessing.get_context("forkserver")  # imports torch once, then forks a clean process for each point
    context.set_forkserver_preload(["torch", "tailwise.adjust", "tailwise.data", "tailwise.evaluate"])
    found: list[dict[str, Any]] = []
    for number, curve in enumerate(all_curves(quick)):
        if only not in f"{curve.part} {curve.name} {curve.against}":
            continue
        points = []
        for x in curve.sizes[: 3 if quick else None]:
            receive, send = context.Pipe(duplex=False)
            process = context.Process(target=measure, args=(number, x, quick, send))
            process.start()
            send.close()  # the child has its own end: should it die, reading ends with an error
            points.append(receive.recv())
            process.join()
        described = {"part": curve.part, "name": curve.name, "against": curve.against, "at": curve.at}
        disk = [{"x": point["x"], "bytes": point.pop("disk")} for point in points]
        found.append({**described, "points": points})
        print(curves.table({"curves": found[-1:]}).splitlines()[-1], flush=True)
        if curve.name == "save":
            found.append({**described, "name": "on disk", "points": disk})
    return found


# ---- several processes


def run_ranks() -> list[dict[str, Any]]:
    """Bytes per step and process, CPU seconds per image, for 1, 2 and 4 processes."""
    means = {processes: mean_of(launch(processes)) for processes in (1, 2, 4)}
    shared = {"part": "ranks", "against": "processes", "at": "128 images each"}
    several = [(processes, mean) for processes, mean in means.items() if processes > 1]
    reduced = [{"x": x, "bytes": mean["gradient_bytes"] + mean["other_bytes"], **mean} for x, mean in several]
    sent = [{"x": x, "bytes": mean["loopback_bytes"]} for x, mean in several if "loopback_bytes" in mean]
    found = [
        {**shared, "name": "one image", "points": [{"x": x, "seconds": mean["seconds"]} for x, mean in means.items()]},
        {**shared, "name": "to all-reduce, a step", "points": [{**p, "seconds": None} for p in reduced]},
    ]
    return found + ([{**shared, "name": "sent, a step", "points": sent}] if sent else [])


def mean_of(everyone: list[dict[str, Any]]) -> dict[str, float]:
    """The mean over processes of what each could measure."""
    known = [key for key, value in everyone[0].items() if value is not None]
    return {key: float(np.mean([one[key] for one in everyone])) for key in known}


def launch(processes: int) -> list[dict[str, Any]]:
    """What each process measured."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        out = Path(folder) / "out.json"
        script = Path(__file__).with_name("scale_ranks.py")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command = [*torchrun, "--master-port", str(port), str(script), str(out)]
        subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
        result: list[dict[str, Any]] = json.loads(out.read_text())
        return result


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The old curves with the new ones in their places; a new one goes to the end of its part."""

    def key(curve: dict[str, Any]) -> tuple[str, str, str]:
        return curve["part"], curve["name"], curve["against"]

    by_key = {key(curve): curve for curve in (*old, *new)}
    parts = list(dict.fromkeys(curve["part"] for curve in (*old, *new)))
    return sorted(by_key.values(), key=lambda curve: parts.index(curve["part"]))


def main() -> None:
    """Measure, print, write, draw; exit with 1 if something grows faster than linearly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest sizes only, and no verdict")
    parser.add_argument("--only", default="", metavar="TEXT", help="curves whose part, name and unit contain this")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    arguments = parser.parse_args()
    os.environ |= ENVIRONMENT
    start = time.perf_counter()
    measured = run_curves(arguments.only, arguments.quick)
    if arguments.only in "ranks processes":
        measured += run_ranks()
    if arguments.only and arguments.json and arguments.json.exists():
        measured = merged(json.loads(arguments.json.read_text())["curves"], measured)
    record = {"name": "scale", "curves": measured}
    print(
        f"\n{time.perf_counter() - start:.0f} s; ~ is the exponent of the upper half\n\n{curves.table(record)}", end=""
    )
    if arguments.json:
        write(arguments.json, record)
    if arguments.plot:
        curves.draw(record, arguments.plot)
    if arguments.quick:  # no size here is large enough for its exponent to say anything
        return
    steep = curves.too_steep(record)
    print(
        "\n".join(steep)
        or f"nothing grows faster than linearly (exponents up to {curves.LIMIT}, or the reference's excess more)"
    )
    sys.exit(bool(steep))


if __name__ == "__main__":
    main()
