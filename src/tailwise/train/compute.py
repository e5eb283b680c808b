"""How arithmetic is done: on which device, how exactly, compiled or not. What is computed stays the same."""

import functools
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tailwise import checks, ranks
from tailwise.train.stage import MovesOncePerStep

Precision = Literal["float32", "bf16", "fp16"]
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """How training does its arithmetic. Weights, optimiser and feature average are float32 in any case.

    device: where; None is where the model is.
    precision: of the forward pass, by torch's autocast; "fp16" comes with a loss scaler.
    channels_last: whether images and convolutions keep the channels of a pixel together.
    compile: whether torch.compile turns forward and backward into fused code; a warning says so where no compiler is.
    sync_batchnorm: whether several processes on GPUs share batch-norm statistics, as one process would have them.

    Raises:
        InputError: an unknown precision.
    """

    device: torch.device | None = None
    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False
    sync_batchnorm: bool = True

    def __post_init__(self) -> None:
        checks.choice("precision", self.precision, get_args(Precision))

    @contextmanager
    def placed(self, model: nn.Module) -> Iterator[None]:
        """`model` on the device and in the layout, for the length of the block; back where it was after it."""
        moving = [module for module in model.modules() if isinstance(module, MovesOncePerStep)]
        with on_device(model, self.device or device_of(model)):
            if self.compile:
                for module in moving:  # its state changes with every step, and each change would compile anew
                    module.forward = torch.compiler.disable(module.forward)  # type: ignore[no-untyped-call]  # torch's own
            model.to(memory_format=self.layout)
            try:
                yield
            finally:
                model.to(memory_format=torch.contiguous_format)
                for module in moving:
                    vars(module).pop("forward", None)

    @property
    def layout(self) -> torch.memory_format:
        """Of images and convolutions."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def forward_of(self, model: nn.Module, batch_size: int) -> "Forward":
        """The forward pass of a placed model; batch_size: the one to compile for, if at all."""
        several, device = ranks.count() > 1, device_of(model)
        if several and self.sync_batchnorm and device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # torch's own
        compiled = self.compile and compiler_works(device.type)
        call: nn.Module = torch.compile(model, dynamic=False) if compiled else model  # type: ignore[assignment]  # a module, too
        if several:
            call = DistributedDataParallel(call, device_ids=[device] if device.type == "cuda" else None)
        return Forward(call, device, self.precision, self.layout, batch_size if compiled else None)


@dataclass(frozen=True)
class Forward:
    """images -> what the model returns, in float32, computed as a `Compute` says; a batch that is no tensor as it is.

    compiled_for: the batch size that has code of its own; None where nothing is compiled.
    """

    call: nn.Module
    device: torch.device
    precision: Precision
    layout: torch.memory_format
    compiled_for: int | None

    def __call__(self, images: Any) -> Any:
        odd = self.compiled_for not in (None, len(images))  # a last batch is not worth half a minute of compiling
        half = self.precision != "float32"
        with torch.compiler.set_stance("force_eager") if odd else nullcontext():
            with torch.autocast(self.device.type, DTYPES[self.precision], enabled=half):
                if isinstance(images, Tensor):
                    # several views of each image, [N, V, channels, H, W], have no such layout: their model takes them
                    # apart
                    layout = self.layout if images.dim() == 4 else torch.contiguous_format
                    images = images.contiguous(memory_format=layout)
                output = self.call(images)
            return _float32(output) if half else output

    def alone(self) -> AbstractContextManager[None]:
        """Gradients of a backward pass inside stay in this process, for a later one to take along."""
        if isinstance(self.call, DistributedDataParallel):
            return self.call.no_sync()
        return nullcontext()


def _float32(output: Any) -> Any:
    if isinstance(output, dict):
        return {name: _float32(part) for name, part in output.items()}
    return tuple(_float32(part) for part in output) if isinstance(output, tuple) else output.float()


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held so far, in bytes; of the GPU, if that is the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage counts on Linux what held the memory before this program took its place: a notebook that started it, say
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), flags=re.M)):
        return 1024 * int(found[1])
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@functools.cache
def compiler_works(device_type: str) -> bool:
    """Whether torch.compile has what it needs here, found by compiling; says so once where it has not."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.zeros(8, device=device_type))
    except Exception as error:  # no C++ compiler, no triton, no headers: each has its own
        line = str(error).strip().splitlines()[0]
        warnings.warn(f"compile: off, torch.compile does not work here ({line})", stacklevel=2)
        return False
    return True


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """`model` on `device` for the length of the block; back where it was after it.

    Raises:
        InputError: a model that is spread over several devices.
    """
    home = device_of(model)
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


def device_of(model: nn.Module) -> torch.device:
    """Where a model is.

    Raises:
        InputError: in several places.
    """
    homes = {tensor.device for tensor in (*model.parameters(), *model.buffers())} or {torch.device("cpu")}
    if len(homes) > 1:
        raise checks.InputError(f"model: expected it on one device, got {', '.join(sorted(map(str, homes)))}")
    return homes.pop()
