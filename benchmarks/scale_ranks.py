"""One of the processes that train together, for `benchmarks/scale.py`: what it sends, what it computes.

    torchrun --nproc-per-node 2 benchmarks/scale_ranks.py OUT.json

A small model of 1,000 classes, 128 images in each process whatever their number, gloo on the CPU. Bytes are counted
where they are handed to all-reduce, by a hook of DistributedDataParallel that keeps the gradients apart.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tailwise import CausalClassifier, ranks
from tailwise.recognizer import Recognizer
from tailwise.sampling import EpochSampler, instance_draw
from tailwise.train import Stage
from tailwise.train.compute import Compute
from tailwise.train.step import Training

D, C, BATCH = 64, 1_000, 128
WARM_UP, STEPS = 10, 60


def training() -> Training:
    """A model and its stage, as `fit` would start it."""
    backbone = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, D), nn.ReLU())
    batch = BATCH * ranks.count()
    stage = Stage(
        name="scale",
        epochs=1,
        batch_size=batch,
        sampler=EpochSampler(partial(instance_draw, batch, 0), batch_size=batch),
        loss=F.cross_entropy,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        learning_rate=lambda _: 0.1,
    )
    return Training(Recognizer(backbone, CausalClassifier(D, C)).train(), stage, Compute())


class Count:
    """Bytes handed to all-reduce so far."""

    def __init__(self) -> None:
        self.gradients, self.all = 0, 0

    def of(self, work: Training) -> None:
        """Listen to everything that this training sends."""
        if isinstance(work.forward.call, DistributedDataParallel):
            work.forward.call.register_comm_hook(None, self._gradient)
        all_reduce = dist.all_reduce

        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.all += tensor.nbytes
            return all_reduce(tensor, *args, **kwargs)

        dist.all_reduce = counted

    def _gradient(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        self.gradients += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)


def loopback() -> int | None:
    """Bytes that went over this machine's loopback so far, everybody's; None where the system does not say."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:")), None)


def measured() -> dict[str, Any]:
    """Per step and process."""
    torch.manual_seed(0)
    work, count = training(), Count()
    count.of(work)
    images, labels = torch.randn(BATCH, 256), torch.randint(0, C, (BATCH,))
    for _ in range(WARM_UP):  # buckets are rebuilt after the first step
        work.step(images, labels)
    ranks.wait()
    before, wire = (count.gradients, count.all), loopback()
    start = time.process_time()
    for _ in range(STEPS):
        work.step(images, labels)
    seconds = time.process_time() - start
    gradients, everything = count.gradients - before[0], count.all - before[1]
    ranks.wait()
    sent = loopback()
    return {
        "seconds": seconds / STEPS / BATCH,
        "gradient_bytes": gradients / STEPS,
        "other_bytes": (everything - gradients) / STEPS,
        "loopback_bytes": None if sent is None or wire is None else (sent - wire) / STEPS / ranks.count(),
        "parameters": sum(p.numel() for p in work.model.parameters()),
    }


def main() -> None:
    """Measure, and let the first process write what all have measured."""
    torch.set_num_threads(1)
    with ranks.joined():
        everyone = ranks.gathered(measured())
        if ranks.is_main():
            Path(sys.argv[1]).write_text(json.dumps(everyone))
    ranks.leave()


if __name__ == "__main__":
    main()
