"""How fast training is, each figure a ratio of two things timed in turn in one run: medians of 5 pairs.

    python benchmarks/speed.py loop          # fit() against a plain loop as the field writes it, in images/s
    python benchmarks/speed.py classifier    # a step of the causal classifier against a linear one; folded TDE likewise
    python benchmarks/speed.py ranks         # 2 processes x 1 thread against 1 process x 2 threads
    python benchmarks/speed.py loop classifier ranks --json speed.json

`loop` trains the two-branch ResNet-32 with the causal classifier on images of CIFAR-100-LT's size, in batches of 256.
The plain loop has what published code has: a PIL transform per image in two DataLoader workers, the average of features
in NumPy on the CPU at every step, the loss read at every step, float32. It keeps its workers between epochs, which
published code does not. `fit` keeps the images as bytes on the device; bf16, channels last and torch.compile are its
settings. Compiling comes before the timing. `loop` needs torchvision.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from records import write
from tailwise import CausalClassifier, LinearClassifier, Stage, fit, fold_tde, ranks
from tailwise.backbones import ResNet32
from tailwise.data import EpochBatches, Normalize, Split, random_crop
from tailwise.recognizer import Recognizer
from tailwise.sampling import EpochSampler, instance_draw
from tailwise.train import Compute, constant

BATCH, C = 256, 100
NORMALIZE = Normalize(scale=255.0, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
Figures = dict[str, Any]


def pairs(ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> Figures:
    """The median ratio ours / theirs of what both return, called in turn; and all of them."""
    both = [(ours(), theirs()) for _ in range(repeats)]
    ratios = [a / b for a, b in both]
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "ours": statistics.median(a for a, _ in both),
        "theirs": statistics.median(b for _, b in both),
    }


# ---- the whole loop


def pictures(number: int) -> Split:
    """Random pictures: what they show does not change how long they take."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, 3, 32, 32), generator=generator).to(torch.uint8)
    return Split(images, torch.arange(number) % C, np.arange(number))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """As Tang et al. 2020 train on CIFAR-LT."""
    parameters = list(parameters)
    fused = all(p.is_cuda for p in parameters)
    return torch.optim.SGD(parameters, lr=0.2, momentum=0.9, weight_decay=5e-4, fused=fused)


def network() -> Recognizer:
    """The two-branch ResNet-32 with the causal classifier."""
    torch.manual_seed(0)
    backbone = ResNet32(two_branch=True)
    return Recognizer(backbone, CausalClassifier(backbone.num_features, C))


def fitted(split: Split, compute: Compute) -> Callable[[], float]:
    """Images per second of one epoch of `fit`. The first epoch, which compiles, is over when this returns."""
    model, split = network(), split.to(compute.device)
    stage = Stage(
        name="joint",
        epochs=1_000_000,
        batch_size=BATCH,
        sampler=EpochSampler(partial(instance_draw, len(split), 0), batch_size=BATCH),
        loss=F.cross_entropy,
        optimizer=sgd,
        learning_rate=constant(0.2),
        drop_last=True,
    )
    crop = partial(random_crop, padding=4, flip=True)

    def load(stage: Stage, epoch: int) -> EpochBatches:
        indices = stage.sampler.indices(epoch)
        share = {"rank": ranks.rank(), "num_ranks": ranks.count()}
        return EpochBatches(split, indices, BATCH, NORMALIZE, augment=crop, seed=epoch, drop_last=True, **share)

    epochs = _one_at_a_time(lambda each: fit(model, [stage], load, on_epoch=each, compute=compute))
    next(epochs)
    next(epochs)
    return lambda: next(epochs)


def _one_at_a_time(train: Callable[[Any], None]) -> Any:
    """The images per second of each epoch of a training that goes on only when asked for the next."""
    import queue
    import threading

    asked: queue.Queue[None] = queue.Queue()
    done: queue.Queue[float] = queue.Queue()

    def each(end: Any) -> None:
        done.put(end.images / end.seconds)
        asked.get()

    threading.Thread(target=train, args=(each,), daemon=True).start()
    while True:
        yield done.get()
        asked.put(None)


class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]  # torch's own
    """A PIL image through a transform, one at a time."""

    def __init__(self, split: Split, transform: Callable[[Any], Tensor]) -> None:
        self.images = split.images.permute(0, 2, 3, 1).numpy()
        self.labels, self.transform = split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def plain(split: Split, device: torch.device) -> Callable[[], float]:
    """Images per second of one epoch of a loop as published code has it."""
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(NORMALIZE.mean, NORMALIZE.std),
        ]
    )
    loader = torch.utils.data.DataLoader(
        Pictures(split, transform),
        batch_size=BATCH,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        pin_memory=device.type == "cuda",
        persistent_workers=True,
    )
    model = network().to(device)
    weight = model.classifier.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4)
    average = np.zeros(model.backbone.num_features, dtype=np.float32)

    def logits_of(features: Tensor) -> Tensor:
        total = torch.zeros(len(features), C, device=device)
        for x, w in zip(features.chunk(2, dim=1), weight.chunk(2, dim=1), strict=True):
            x = x / x.norm(dim=1, keepdim=True)
            w = w / (w.norm(dim=1, keepdim=True) + 1 / 32)
            total = total + x @ w.t()
        return 16.0 / 2 * total

    def epoch() -> float:
        nonlocal average
        model.train()
        losses, right, start = [], 0, time.perf_counter()
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            features = model.backbone(images)
            average = 0.9 * average + features.detach().mean(dim=0).cpu().numpy()
            logits = logits_of(features)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            right += (logits.argmax(dim=1) == labels).sum().item()
        return len(losses) * BATCH / (time.perf_counter() - start)

    epoch()
    return epoch


def loop(device: torch.device, repeats: int) -> Figures:
    """`fit`, in float32 and as fast as its settings make it, against the plain loop; in images per second."""
    split = pictures(BATCH * (42 if device.type == "cuda" else 10))
    theirs = plain(split, device)
    figures = {}
    for name, compute in (
        ("bf16, compiled, channels last", Compute(device, "bf16", channels_last=True, compile=True)),
        ("bf16, compiled", Compute(device, "bf16", compile=True)),
        ("bf16, channels last", Compute(device, "bf16", channels_last=True)),
        ("float32", Compute(device)),
    ):
        figures[f"fit against a plain loop, {name}"] = pairs(fitted(split, compute), theirs, repeats)
    return figures


# ---- the classifier alone


def classifier(device: torch.device, repeats: int) -> Figures:
    """A training step and folded inference at iNaturalist 2018's size, against a linear classifier; in seconds."""
    d, c, n = 2_048, 8_142, 512
    figures: Figures = {}
    x = torch.rand(n, d, generator=torch.Generator().manual_seed(0)).to(device)
    labels = (torch.arange(n) % c).to(device)
    for precision in ("float32", "bf16"):
        steps = []
        for kind in (CausalClassifier, LinearClassifier):
            module = kind(d, c).to(device)
            steps.append(
                partial(_seconds, partial(_step, module, sgd(module.parameters()), x, labels, precision), device)
            )
        figures[f"step of the causal classifier, {precision}"] = pairs(*steps, repeats)
        causal, linear = CausalClassifier(d, c).to(device), nn.Linear(d, c, bias=False).to(device)
        causal(x)
        folded = fold_tde(causal.eval(), 1.0)
        inputs = [partial(_infer, module, x, precision) for module in (folded, linear)]
        with torch.no_grad():
            figures[f"folded TDE, {precision}"] = pairs(*(partial(_seconds, work, device) for work in inputs), repeats)
    return figures


def _step(module: nn.Module, optimizer: Any, x: Tensor, labels: Tensor, precision: str) -> None:
    x = x.detach().requires_grad_()  # the backbone wants its gradient
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = module(x)
    F.cross_entropy(logits.float(), labels).backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def _infer(module: nn.Module, x: Tensor, precision: str) -> None:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        module(x)


def _seconds(work: Callable[[], None], device: torch.device, times: int = 3) -> float:
    """The least of some timings, after one that does not count."""
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


# ---- two processes


def several(device: torch.device, repeats: int) -> Figures:
    """2 processes x 1 thread against 1 process x 2 threads, seconds for the same images; CPU only."""
    del device

    def seconds(processes: int) -> float:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run(
            [sys.executable, *launch, __file__, "--part", str(2 // processes)],
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)

    return {"2 processes x 1 thread": pairs(partial(seconds, 2), partial(seconds, 1), repeats)}


def part(threads: int) -> None:
    """What each process of `several` does: print, once, how long one epoch takes."""
    torch.set_num_threads(threads)
    with ranks.joined():
        speed = fitted(pictures(BATCH * 3), Compute())
        seconds = BATCH * 3 / statistics.median(speed() for _ in range(3))
        if ranks.is_main():
            print(seconds, flush=True)
        ranks.wait()
    ranks.leave()


def table(record: Figures) -> str:
    """The figures of a record, a line each."""
    lines = [f"{'':56} {'ratio':>6}  {'from .. to':>12}  {'ours':>9}  {'theirs':>9}"]
    for name, figures in record.items():
        if isinstance(figures, dict) and "ratios" in figures:
            spread = f"{min(figures['ratios']):.2f} .. {max(figures['ratios']):.2f}"
            both = f"{figures['ours']:9.3g}  {figures['theirs']:9.3g}"
            lines.append(f"{name:56} {figures['ratio']:6.2f}  {spread:>12}  {both}")
    return "\n".join(lines) + "\n"


WHAT: dict[str, Callable[[torch.device, int], Figures]] = {"loop": loop, "classifier": classifier, "ranks": several}


def main() -> None:
    """Print the figures asked for; write them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(WHAT)}")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        part(asked.part)
    if not asked.what or set(asked.what) - WHAT.keys():
        parser.error(f"what: expected some of {', '.join(WHAT)}, got {' '.join(asked.what) or 'nothing'}")
    device = torch.device(asked.device)
    record: Figures = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    for what in asked.what:
        for name, figures in WHAT[what](device, asked.repeats).items():
            record[name] = figures
    print(table(record), end="")
    if asked.json:
        write(asked.json, record)


if __name__ == "__main__":
    main()
