"""What only a GPU can show, for benchmarks/gpu.sh; needs torch and safetensors alone.

    python benchmarks/gpu.py pack DATA OUT.npz      # CIFAR-100-LT, ratio 100, subset 0, as one file below 60 MB
    python benchmarks/gpu.py check --json OUT.json [--data FILE.npz] [--device cpu --epochs 1]

Every check stands alone: one that fails is recorded with its error, the others still run, and the exit status is 1. On
the CPU, with few epochs, the same checks show whether this file itself works.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from records import write
from tailwise import CausalClassifier, ClassCounts, LinearClassifier, Stage, fit, ranks, tde
from tailwise.backbones import ResNet32
from tailwise.data import EpochBatches, Normalize, Split, cifar_lt, random_crop
from tailwise.evaluate import predict, shot_accuracy
from tailwise.recognizer import Recognizer
from tailwise.sampling import EpochSampler, instance_draw
from tailwise.seeds import mixed_seed
from tailwise.train import Compute, multistep, on_device, snapshot_of

NORMALIZE = Normalize(scale=255.0, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
CPU = torch.device("cpu")
Figures = dict[str, Any]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """As `tailwise train` has it: fused on a GPU."""
    parameters = list(parameters)
    fused = all(p.is_cuda for p in parameters)
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4, fused=fused)


def small(seed: int = 0) -> Recognizer:
    """A network with GroupNorm, so that nothing depends on how a batch is split."""
    torch.manual_seed(seed)
    body = [nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Recognizer(nn.Sequential(*body), CausalClassifier(32, 10))


def pictures(number: int, num_classes: int = 10) -> Split:
    """Random pictures whose brightness tells their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(number) % num_classes
    noise = torch.randint(0, 80, (number, 3, 32, 32), generator=generator)
    return Split((noise + labels[:, None, None, None] * 15).to(torch.uint8), labels, np.arange(number))


def train(
    model: Recognizer, split: Split, compute: Compute, *, epochs: int = 3, batch: int = 64, **more: Any
) -> list[float]:
    """The mean loss of each epoch."""
    losses, split = [], split.to(compute.device)
    stage = Stage(
        name="joint",
        epochs=epochs,
        batch_size=batch,
        sampler=EpochSampler(partial(instance_draw, len(split), 0), batch_size=batch),
        loss=F.cross_entropy,
        optimizer=sgd,
        learning_rate=lambda done: 0.1 / (1 + done),
        **{key: more.pop(key) for key in ("accumulate", "clip_norm", "weight_average") if key in more},
    )
    crop = partial(random_crop, padding=4, flip=True)

    def load(stage: Stage, epoch: int) -> Any:
        batches = EpochBatches(split, stage.sampler.indices(epoch), batch, NORMALIZE, augment=crop, seed=epoch)
        return more["wrap"](batches) if "wrap" in more else batches

    hooks = {key: value for key, value in more.items() if key != "wrap"}
    fit(model, [stage], load, on_epoch=lambda end: losses.append(end.loss), compute=compute, **hooks)
    return losses


# ---- the checks: each returns figures, or raises


def same_as_cpu(device: torch.device, epochs: int) -> Figures:
    """float32 without TF32: weights and average of a GPU's training are those of the CPU's, to rounding."""
    here, there = small(), small()
    train(here, pictures(500), Compute(device), epochs=epochs)
    train(there, pictures(500), Compute(CPU), epochs=epochs)
    apart = {}
    for (name, a), b in zip(here.state_dict().items(), there.state_dict().values(), strict=True):
        assert a.device == CPU, f"{name} was left on {a.device}"
        apart[name] = float((a - b).norm() / b.norm().clamp_min(1e-9))
        assert apart[name] < 0.02, f"{name}: {apart[name]:.2%} apart"
    return {"furthest": max(apart.values())}


def micro_batches(device: torch.device, epochs: int) -> Figures:
    """One batch of 64 = four micro-batches of 16."""
    whole, parts = small(), small()
    train(whole, pictures(500), Compute(device), epochs=epochs)
    train(parts, pictures(500), Compute(device), epochs=epochs, accumulate=4)
    apart = max(
        float((a - b).norm() / b.norm().clamp_min(1e-9))
        for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True)
    )
    assert apart < 0.02, f"{apart:.2%} apart"
    return {"furthest": apart}


def learns(device: torch.device, epochs: int, **how: Any) -> Figures:
    """The loss falls as it does in float32, with float32 weights."""
    model, plain = small(), small()
    compute = replace(Compute(device), **how)
    losses = train(model, pictures(2_000), compute, epochs=max(epochs, 3), clip_norm=10.0, weight_average=0.9)
    expected = train(plain, pictures(2_000), Compute(device), epochs=max(epochs, 3), clip_norm=10.0, weight_average=0.9)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[-1] < losses[0], losses
    assert abs(losses[-1] - expected[-1]) < 0.25 * expected[0], (losses, expected)
    return {"losses": losses, "float32": expected}


def nothing_waits(device: torch.device, epochs: int, **how: Any) -> Figures:
    """No step asks the device for a value: torch's own guard raises where one does."""
    if device.type != "cuda":
        return {"skipped": "the guard is CUDA's"}

    class Guarded:
        def __init__(self, batches: EpochBatches) -> None:
            self.batches = batches

        def __len__(self) -> int:
            return len(self.batches)

        def __iter__(self) -> Any:
            for number, both in enumerate(self.batches):  # made, augmented and normalized under guard, too
                torch.cuda.set_sync_debug_mode("error" if number > 2 else "default")  # the first ones set things up
                yield both
            torch.cuda.set_sync_debug_mode("default")

    try:
        train(small(), pictures(1_000), replace(Compute(device), **how), epochs=epochs, wrap=Guarded, clip_norm=10.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {}


def goes_on(device: torch.device, epochs: int) -> Figures:
    """Resumed from the middle of an epoch: bit for bit the same, with torch's deterministic kernels."""
    taken: list[Any] = []
    how = Compute(device, precision="fp16")

    def pause(take: Any) -> None:
        taken.append(take() if len(taken) in (5, 12) else None)

    whole = small()
    train(whole, pictures(500), how, epochs=max(epochs, 2), on_pause=pause, weight_average=0.9)
    for snapshot in filter(None, taken):
        again = small(seed=1)
        resume = snapshot_of(snapshot.tensors, snapshot.progress)
        train(again, pictures(500), how, epochs=max(epochs, 2), resume=resume, weight_average=0.9)
        for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    return {}


def under_torchrun(device: torch.device, epochs: int) -> Figures:
    """A process that torchrun started: the group is joined (NCCL on a GPU), a sum comes back, training runs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", __file__]
    done = subprocess.run(
        [*command, "joined", "--device", device.type, "--epochs", str(epochs)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return dict(json.loads(done.stdout))


def joined(device: torch.device, epochs: int) -> None:
    """What the process of `under_torchrun` does."""
    with ranks.joined():
        one = torch.ones(3, device=device)
        torch.distributed.all_reduce(one)
        losses = train(small(), pictures(500), Compute(device), epochs=epochs)
        print(json.dumps({"sum": one.tolist(), "losses": losses, "backend": torch.distributed.get_backend()}))
    ranks.leave()


def cifar(device: torch.device, epochs: int, data: Path, kind: str, seed: int) -> Figures:
    """CIFAR-100-LT, ratio 100, as Tang et al. 2020 train it: accuracy on test, of TDE too; nothing is chosen on it."""
    with np.load(data) as file:
        images = {part: torch.from_numpy(file[f"x_{part}"]) for part in ("train", "test")}
        labels = {part: torch.from_numpy(file[f"y_{part}"]) for part in ("train", "test")}
    train_split, test = (Split(images[part], labels[part], np.arange(len(labels[part]))) for part in images)
    counts = ClassCounts.of_labels(train_split.labels.numpy(), 100)
    split, test = train_split.to(device), test.to(device)
    torch.manual_seed(mixed_seed(seed))
    backbone = ResNet32(two_branch=True)
    width = backbone.num_features
    model = Recognizer(
        backbone, CausalClassifier(width, 100) if kind == "de-confound" else LinearClassifier(width, 100)
    )
    joint = Stage(
        name="joint",
        epochs=epochs,
        batch_size=256,
        sampler=EpochSampler(partial(instance_draw, len(split), seed), batch_size=256),
        loss=F.cross_entropy,
        optimizer=sgd,
        learning_rate=multistep(0.2, (120, 160), factor=0.01, warmup_epochs=5, warmup_from=1 / 3),
        drop_last=True,
    )
    crop = partial(random_crop, padding=4, flip=True)

    def load(stage: Stage, epoch: int) -> EpochBatches:
        at = mixed_seed(seed, epoch)
        return EpochBatches(split, stage.sampler.indices(epoch), 256, NORMALIZE, augment=crop, seed=at, drop_last=True)

    start, ends = time.perf_counter(), []
    fit(model, [joint], load, on_epoch=ends.append, compute=Compute(device, "bf16", channels_last=True, compile=True))
    seconds = time.perf_counter() - start
    with on_device(model, device):
        batches = EpochBatches(test, torch.arange(len(test)), 500, NORMALIZE)
        store = predict(model, batches, ids=test.ids, checkpoint="", split="test")
    rows = {kind: shot_accuracy(store.logits.argmax(axis=1), store.labels, counts)}
    if isinstance(model.classifier, CausalClassifier):
        logits = tde(torch.from_numpy(store.features), copy.deepcopy(model.classifier).cpu().eval(), 1.5).detach()
        rows["tde, alpha 1.5"] = shot_accuracy(logits.argmax(dim=1).numpy(), store.labels, counts)
    speed = sorted(end.images / end.seconds for end in ends)[len(ends) // 2]
    return {"rows": rows, "epochs": epochs, "seconds": seconds, "images_per_second": speed, "loss": ends[-1].loss}


def checks(device: torch.device, epochs: int, data: Path | None) -> dict[str, Callable[[], Figures]]:
    """Every check by name."""
    few = min(epochs, 3)
    named: dict[str, Callable[[], Figures]] = {
        "a GPU trains as the CPU does": partial(same_as_cpu, device, few),
        "micro-batches are the batch": partial(micro_batches, device, few),
        "bf16": partial(learns, device, few, precision="bf16"),
        "fp16 with a scaler": partial(learns, device, few, precision="fp16"),
        "bf16, channels last, compiled": partial(
            learns, device, few, precision="bf16", channels_last=True, compile=True
        ),
        "no step waits": partial(nothing_waits, device, few),
        "no step waits, fp16": partial(nothing_waits, device, few, precision="fp16"),
        "a snapshot goes on": partial(goes_on, device, few),
        "torchrun": partial(under_torchrun, device, few),
    }
    if data is not None:
        for seed in range(2):
            for kind in ("de-confound", "linear"):
                named[f"cifar100-lt, {kind}, training seed {seed}"] = partial(cifar, device, epochs, data, kind, seed)
    return named


def main() -> None:
    """Pack data, or run the checks and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("pack", "check", "joined"))
    parser.add_argument("paths", nargs="*", type=Path, help="pack: where CIFAR-100 lies, and the file to write")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    device = torch.device(asked.device, 0) if asked.device == "cuda" else torch.device(asked.device)
    if asked.verb == "joined":
        joined(device, asked.epochs)
    if asked.verb == "pack":
        source, target = asked.paths
        packed = cifar_lt(100, 0, data_dir=source, imbalance_ratio=100)
        parts = {"train": packed.train, "test": packed.test}
        arrays = {f"x_{name}": part.images.numpy() for name, part in parts.items()}
        np.savez_compressed(target, **arrays, **{f"y_{name}": part.labels.numpy() for name, part in parts.items()})
        print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    record: Figures = {"device": name, "checks": {}}
    for title, check in checks(device, asked.epochs, asked.data).items():
        start = time.perf_counter()
        try:
            outcome: Figures = {"passed": True, **check()}
        except Exception:  # whatever it is, the others are still worth knowing
            outcome = {"passed": False, "error": traceback.format_exc(limit=-3)}
        outcome["took"] = time.perf_counter() - start
        record["checks"][title] = outcome
        print(f"{'ok    ' if outcome['passed'] else 'FAILED'} {title} ({outcome['took']:.1f} s)", flush=True)
        if asked.json:
            write(asked.json, record)
    sys.exit(not all(outcome["passed"] for outcome in record["checks"].values()))


if __name__ == "__main__":
    main()
