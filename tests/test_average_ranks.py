"""The feature average on two ranks: each holds what one process with all the examples would."""

import datetime
import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from causal_oracles import assert_close, batches, oracle_average
from tailwise.adjust import tde
from tailwise.classifiers import CausalClassifier, FeatureAverage

DIM = 8
STEPS = batches(42, 8, 8, 8, dim=DIM)
OF_RANK = (slice(0, 3), slice(3, 8))  # 3 of the 8 rows of each step on rank 0, 5 on rank 1


def average_of(parts, update_every=1):
    average = FeatureAverage(DIM, update_every=update_every).double()
    for part in parts:
        average(part)
    return average.value


def in_two(parts):
    """Each rank's part of a step as micro-batches of different size: 2 and 1 rows, or 4 and 1."""
    return [half for part in parts for half in (part[:-1], part[-1:])]


def with_second_step(change):
    """The average after three steps of which the second is changed."""
    return lambda rank, parts: average_of([parts[0], change(rank, parts[1]), parts[2]])


def inference_on_one_rank(rank, parts):
    classifier = CausalClassifier(DIM, 3).double()
    for part in parts:
        classifier(part)
    classifier.eval()
    if rank == 0:  # waits for nobody
        tde(parts[0], classifier, 1.5)
        classifier(parts[0])
    return classifier.average.value


def checkpointed(use_reentrant):
    def run(rank, parts):
        classifier = CausalClassifier(DIM, 3).double()
        for part in parts:
            checkpoint(classifier, part.clone().requires_grad_(), use_reentrant=use_reentrant).sum().backward()
        return classifier.average.value

    return run


def micro_batches_under_ddp(no_sync):
    def run(rank, parts):
        classifier = CausalClassifier(DIM, 3).double()
        classifier.average.update_every = 2
        model = DistributedDataParallel(classifier)
        for number, part in enumerate(in_two(parts)):
            model.require_backward_grad_sync = not no_sync or number % 2 == 1  # what `no_sync()` sets
            model(part).sum().backward()
        return classifier.average.value

    return run


# name: what each rank does with its part of every step, and the steps of the one process that it must equal
SCENARIOS = {
    "uneven ranks": (lambda rank, parts: average_of(parts), STEPS),
    "micro-batches": (lambda rank, parts: average_of(in_two(parts), update_every=2), STEPS),
    "micro-batches under ddp": (micro_batches_under_ddp(no_sync=False), STEPS),
    "micro-batches under ddp, no_sync": (micro_batches_under_ddp(no_sync=True), STEPS),
    "inference on rank 0": (inference_on_one_rank, STEPS),
    "checkpoint, reentrant": (checkpointed(use_reentrant=True), STEPS),
    "checkpoint, not reentrant": (checkpointed(use_reentrant=False), STEPS),
    "no rows on rank 0": (
        with_second_step(lambda rank, part: part[:0] if rank == 0 else part),
        [STEPS[0], STEPS[1][OF_RANK[1]], STEPS[2]],
    ),
    "no rows on either": (with_second_step(lambda rank, part: part[:0]), [STEPS[0], STEPS[2]]),
    "nan on rank 0": (
        with_second_step(lambda rank, part: part * float("nan") if rank == 0 else part),
        [STEPS[0], STEPS[2]],
    ),
}


def run_rank(rank, folder):
    """All scenarios on one of two ranks, in a process of its own."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # the machine's own name need not resolve
    patience = datetime.timedelta(seconds=20)  # for a rank that waits in vain
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=patience)
    parts = [step[OF_RANK[rank]] for step in STEPS]
    held = {name: run(rank, parts) for name, (run, _) in SCENARIOS.items()}
    torch.save(held, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """Per rank, the average after each scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    start = "fork" if hasattr(os, "fork") else "spawn"  # what is forked has torch already
    # raises what a rank raises
    torch.multiprocessing.start_processes(run_rank, args=(folder,), nprocs=2, start_method=start)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_ranks_hold_the_average_of_one_process(held, name):
    expected = oracle_average(SCENARIOS[name][1], 0.9)
    assert_close(held[0][name], expected, 1e-12)
    assert torch.equal(held[0][name], held[1][name])
