"""Several processes train as one: the same steps, files from one of them, and a way back when one dies."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch

from tailwise import ranks
from tailwise.experiments import runs
from tailwise.train import load_checkpoint

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


# ---- the loop

# 74 samples in batches of 32: the last one has 10, which 4 processes share as 3, 3, 2 and 2
STEPS = """
import sys
import torch
from torch import nn
from torch.nn import functional as F
from functools import partial
from tailwise import CausalClassifier, InputError, Stage, fit, ranks
from tailwise.data import EpochBatches, Split
from tailwise.recognizer import Recognizer
from tailwise.sampling import EpochSampler, instance_draw
from tailwise.train import cosine
import numpy as np

def augment(images, draws):  # by the place in the epoch, whoever holds it
    return (images.float() * (0.5 + draws[:, :1, None, None])).to(torch.uint8)

def train(accumulate=1, sharpness=None):
    torch.manual_seed(ranks.rank())  # DistributedDataParallel gives all the weights of the first
    body = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.GroupNorm(2, 8), nn.ReLU())
    norm = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Recognizer(norm, CausalClassifier(8, 5, num_heads=2)).double()
    images = torch.randint(0, 256, (74, 3, 6, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    split = Split(images, torch.arange(74) % 5, np.arange(74))
    stage = Stage(
        name="a", epochs=3, batch_size=32, sampler=EpochSampler(partial(instance_draw, 74, 0), batch_size=32),
        loss=F.cross_entropy, optimizer=partial(torch.optim.SGD, lr=1.0, momentum=0.9, weight_decay=1e-3),
        learning_rate=cosine(0.1, 3), accumulate=accumulate, sharpness=sharpness,
    )
    ends = []
    def load(stage, epoch):
        return EpochBatches(
            split, stage.sampler.indices(epoch), 32, lambda x: x.double() / 255 - 0.5, augment=augment, seed=epoch,
            rank=ranks.rank(), num_ranks=ranks.count(),
        )
    fit(model, [stage], load, on_epoch=ends.append)
    return model.state_dict(), [(end.loss, end.images) for end in ends]

def measured(idle=False):
    # what each process makes of the same images when an epoch ends, by batch norm and an average of weights
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 5))
    if idle:
        model.register_parameter("idle", nn.Parameter(torch.zeros(3)))
    stage = Stage(
        name="a", epochs=2, batch_size=16, sampler=EpochSampler(partial(instance_draw, 40, 0), batch_size=16),
        loss=F.cross_entropy, optimizer=partial(torch.optim.SGD, lr=0.1), learning_rate=cosine(0.1, 2),
        weight_average=0.9,
    )
    images = torch.randn(40, 4)
    parts = [part.tensor_split(ranks.count())[ranks.rank()] for part in torch.arange(40).split(16)]
    found = []
    def on_epoch(end):
        found.append(model.eval()(images).tolist())
    fit(model, [stage], lambda stage, epoch: [(images[part], part % 5) for part in parts], on_epoch=on_epoch)
    return [*found, model.eval()(images).tolist()]

def refusal():
    try:
        measured(idle=True)
    except InputError as error:
        return str(error)

if __name__ == "__main__":
    with ranks.joined():
        trained = train(), train(sharpness=0.1)
        torch.save((*trained, ranks.gathered(ranks.rank()), ranks.count()), f"{sys.argv[1]}-{ranks.rank()}")
        torch.save((measured(), refusal()), f"{sys.argv[1]}-norm-{ranks.rank()}")
    ranks.leave()
"""


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The script, and its train() for this process."""
    path = tmp_path_factory.mktemp("steps") / "steps.py"
    path.write_text(STEPS)
    namespace = {"__name__": "steps"}
    exec(compile(STEPS, str(path), "exec"), namespace)
    return path, namespace["train"]


@pytest.fixture(scope="module")
def alone(steps):
    return steps[1]()


def assert_same_training(one, other):
    for name, tensor in one[0].items():
        torch.testing.assert_close(other[0][name], tensor, rtol=1e-9, atol=1e-11)
    assert [images for _, images in other[1]] == [images for _, images in one[1]] == [74, 74, 74]
    assert [loss for loss, _ in other[1]] == pytest.approx([loss for loss, _ in one[1]], rel=1e-6)


def test_micro_batches_are_the_whole_batch(steps, alone):
    assert_same_training(alone, steps[1](accumulate=4))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_are_the_whole_batch(steps, alone, tmp_path, processes):
    """One process with 32 = two with 16 = four with 8: loss, average and weights, uneven last batches included.

    Also when the gradient is taken elsewhere: all go the same way, by the gradient of the whole batch.
    """
    command = [*TORCHRUN, "--nproc-per-node", str(processes), "--master-port", free_port(), str(steps[0])]
    done = subprocess.run(
        [*command, str(tmp_path / "out")], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    sharp_alone = steps[1](sharpness=0.1)
    for rank in range(processes):
        trained, sharp, numbers, count = torch.load(tmp_path / f"out-{rank}", weights_only=True)
        assert (numbers, count) == (list(range(processes)), processes)
        assert_same_training(alone, trained)
        assert_same_training(sharp_alone, sharp)
    norms, refused = zip(
        *(torch.load(tmp_path / f"out-norm-{rank}", weights_only=True) for rank in range(processes)), strict=True
    )
    assert all(norm == norms[0] for norm in norms)  # a model of which every process has its own copy
    assert all("expected a gradient of every parameter" in text and "got none of idle;" in text for text in refused)


def late(rank, port):
    """One of two processes that wait for the first, longer than a reduction would."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    os.environ |= dict(zip(names, (str(rank), "2", "127.0.0.1", port, "none"), strict=True))
    with ranks.joined():
        device = torch.device("cpu")
        torch.distributed.group.WORLD._get_backend(device)._set_default_timeout(timedelta(seconds=0.2))
        time.sleep(0.0 if rank else 0.6)
        ranks.wait()
        assert ranks.agree(rank) == 0
    os._exit(0)  # as `leave`


@pytest.mark.filterwarnings("ignore:.*fork")
def test_what_one_process_prepares_may_take_longer_than_a_reduction():
    fork, port = multiprocessing.get_context("fork"), free_port()
    pair = [fork.Process(target=late, args=(rank, port)) for rank in (0, 1)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in pair] == [0, 0]


# ---- the command

SETTINGS = ["stages.0.epochs=5", "second.crt.stage.epochs=2", "second.lws.stage.epochs=1", "--seeds", "1"]


def train(folder, *torchrun, more=()):
    command = [*TORCHRUN, "--nproc-per-node", "2", "--master-port", free_port(), *torchrun, "-m", "tailwise"]
    return [*command, "train", "digits-lt/decoupling", *SETTINGS, "--out", str(folder), *more]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """digits-lt/decoupling by two processes; (folder, what was printed)."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    done = subprocess.run(train(folder, more=["--json"]), env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def results(folder):
    """The result and the record of every epoch, without the time and memory they took."""
    (seed,) = runs.open_run(folder).seeds
    records = [json.loads(line) for line in (seed.path / runs.LOG).read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "images_per_second", "memory")}
        for record in (seed.results(), *records)
    ]


def test_one_process_speaks_and_writes(pair):
    folder, printed = pair
    record = json.loads(printed)  # once, and nothing else
    assert [row["method"] for row in record["rows"]] == ["joint", "ncm", "tau-norm", "crt", "lws"]
    assert results(folder)[0]["versions"]["processes"] == "2"
    assert len((folder / "seed-0/log.jsonl").read_text().splitlines()) == 5 + 2 + 1
    assert not list(folder.rglob(".*"))
    assert load_checkpoint(folder / "seed-0/checkpoint.safetensors").digest == results(folder)[0]["checkpoint"]


def test_predictions_of_two_processes_are_whole_and_in_order(pair):
    from tailwise.experiments import measure
    from tailwise.experiments.build_data import build_data

    folder, _ = pair
    (seed,) = runs.open_run(folder).seeds
    trained = measure.open_trained(seed, None)
    data = build_data(seed.recipe, 0, None)
    for split, store in (
        ("train", trained.stores.train()),
        ("val", trained.stores.val()),
        ("test", trained.stores.test()),
    ):
        part = getattr(data, split)
        assert store.ids.tolist() == part.ids.tolist()
        with torch.no_grad():
            logits = trained.model(data.normalize(part.images))
        torch.testing.assert_close(torch.from_numpy(store.logits.copy()), logits, rtol=1e-4, atol=1e-4)


def test_when_one_process_dies_the_run_goes_on_and_ends_the_same(pair, tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        train(folder, "--max-restarts", "3", more=["--save-every", "0"]),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    snapshot = folder / "seed-0.partial/last-first.safetensors"
    deadline = time.monotonic() + 60
    while not snapshot.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "lws" in out
    assert results(folder) == results(pair[0])


def test_two_nodes(pair, tmp_path):
    """Two launchers that meet over the network, here of one machine, one process each."""
    folder, port = tmp_path / "run", free_port()
    nodes = [
        subprocess.Popen(
            [
                *TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node),
                "--master-addr", "127.0.0.1", "--master-port", port,
                "-m", "tailwise", "train", "digits-lt/decoupling", *SETTINGS, "--out", str(folder),
            ],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (0, 1)
    ]  # fmt: skip
    printed = [node.communicate(timeout=200) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    assert ["lws" in out for out, _ in printed] == [True, False]
    assert results(folder) == results(pair[0])


def test_a_batch_without_an_image_for_each_process_is_named():
    import numpy as np

    from tailwise import InputError
    from tailwise.data import EpochBatches, Split

    split = Split(torch.zeros(9, 1, 2, 2, dtype=torch.uint8), torch.zeros(9, dtype=torch.long), np.arange(9))
    with pytest.raises(InputError, match=r"batch_size: expected a last batch of at least 2 images.*got 1"):
        EpochBatches(split, torch.arange(9), 4, lambda x: x, rank=0, num_ranks=2)
    batches = EpochBatches(split, torch.arange(9), 4, lambda x: x, rank=1, num_ranks=2, drop_last=True)
    assert [len(labels) for _, labels in batches] == [2, 2]
