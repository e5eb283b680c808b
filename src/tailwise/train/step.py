"""One optimiser step: model, optimiser, loss scaler and weight average, moved together."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tailwise import checks, ranks
from tailwise.train.checkpoint import load_state
from tailwise.train.compute import Compute, device_of
from tailwise.train.sharpness import at_worst_nearby, held
from tailwise.train.stage import FollowsEpochs, MovesOncePerStep, Stage

MIRRORS = ("momentum_buffer", "exp_avg", "exp_avg_sq")  # what an optimiser keeps in the shape of a parameter


class Training:
    """A stage at work on a model that is placed where it is to be trained."""

    def __init__(self, model: nn.Module, stage: Stage, compute: Compute) -> None:
        self.model, self.stage = model, stage
        if isinstance(stage.loss, nn.Module):
            _without_learning(stage.loss)
        learning = [p for p in model.parameters() if p.requires_grad]
        if not learning:
            raise checks.InputError(
                f"trainable: expected a module with parameters to train, got {list(stage.trainable)}"
            )
        self.optimizer = stage.optimizer(learning)
        groups = self.optimizer.param_groups
        self.settings = [dict(group) for group in groups]
        rates = [float(group["lr"]) for group in groups]
        self.shares = [rate / max(rates) if max(rates) else 1.0 for rate in rates]
        # of the loss, so that gradients keep within half precision's range; does nothing otherwise
        self.scaler = torch.amp.GradScaler(device_of(model).type, enabled=compute.precision == "fp16")
        sizes = [len(part) for part in torch.arange(stage.batch_size).tensor_split(ranks.count())]
        largest = -(-sizes[ranks.rank()] // micro_batches(sizes, stage.accumulate))
        self.forward = compute.forward_of(model, batch_size=largest)
        # a copy of its own, for what a loss has seen belongs to this training
        self.loss = copy.deepcopy(stage.loss).to(device_of(model)) if isinstance(stage.loss, nn.Module) else stage.loss
        self.first = True  # step of this training or after resuming it
        self.average: AveragedModel | None = None
        if stage.weight_average is not None:
            self.average = AveragedModel(model, multi_avg_fn=partial(_follow, stage.weight_average), use_buffers=True)

    def start_epoch(self, epoch: int) -> None:
        """Tell whoever follows the epochs, in the model or in the loss; counted from 1."""
        for module in self._modules():
            if isinstance(module, FollowsEpochs):
                module.start_epoch(epoch, self.stage.epochs)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Of the next step: of the parameters that began with the highest rate, of others as much less as they did."""
        self.stage.on_learning_rate(learning_rate)
        for group, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            group["lr"] = learning_rate * share

    def step(self, images: Any, labels: Tensor) -> Tensor:
        """Move once; returns the sum of the losses of this process's samples, still on the device.

        images: a tensor, or what comes apart by `tensor_split` as one does.
        """
        stage = self.stage
        sizes = torch.zeros(ranks.count(), dtype=torch.int64)
        sizes[ranks.rank()] = len(labels)
        sizes = ranks.total(sizes)
        if not sizes.all():
            raise checks.InputError(
                f"batch_size: expected an image of each batch for each of {len(sizes)} processes, got {sizes.tolist()}"
            )
        number = micro_batches(sizes.tolist(), stage.accumulate)
        micro = list(zip(images.tensor_split(number), labels.tensor_split(number), strict=True))
        for module in self._modules():
            if isinstance(module, MovesOncePerStep):
                module.update_every = len(micro)
        # DistributedDataParallel takes the mean over processes; what is wanted is the mean over all samples
        whole = int(sizes.sum()) / ranks.count()
        loss_sum = self._gradient(micro, whole)
        if self.first and ranks.count() > 1:
            self._all_take_part()
        self.first = False
        if stage.sharpness is not None:
            with at_worst_nearby(self.model, stage.sharpness), held(self.model, self.loss):
                self._gradient(micro, whole)
        if stage.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), stage.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss_sum

    def _modules(self) -> Iterator[nn.Module]:
        """Of the model and of the loss."""
        yield from self.model.modules()
        if isinstance(self.loss, nn.Module):
            yield from self.loss.modules()

    def _gradient(self, micro: Sequence[tuple[Any, Tensor]], whole: float) -> Tensor:
        """Of the mean loss over all samples, left with the parameters; returns the sum of this process's losses."""
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = torch.zeros((), device=micro[0][1].device)
        for number, (part, target) in enumerate(micro, 1):
            with self.forward.alone() if number < len(micro) else nullcontext():  # gradients meet in the last part
                loss = self.loss(self.forward(part), target)
                self.scaler.scale(loss * (len(target) / whole)).backward()
            loss_sum += loss.detach() * len(target)
        return loss_sum

    def _all_take_part(self) -> None:
        """Raise InputError for parameters without a gradient, of which DistributedDataParallel would wait in vain."""
        idle = [name for name, p in self.model.named_parameters() if p.requires_grad and p.grad is None]
        if idle:
            raise checks.InputError(
                f"model: expected a gradient of every parameter, as several processes need it, got none of "
                f"{', '.join(idle)}; `requires_grad_(False)` leaves them out"
            )

    def share_buffers(self) -> None:
        """Give every process the main one's buffers, such as batch norm's: it has seen images of its own until now."""
        ranks.from_main(self.model.buffers())
        if self.average is not None:
            ranks.from_main(self.average.buffers())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights, if there are any, for the length of the block."""
        if self.average is None:
            yield
            return
        own = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.keep_average()
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def keep_average(self) -> None:
        """Put the averaged weights, if there are any, in the place of the last ones."""
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())

    def state(self) -> dict[str, Tensor]:
        """All that moves, by name."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if torch.is_tensor(value):
                    tensors[f"optimizer.{number}.{key}"] = value
                elif value is not None:
                    tensors[f"optimizer-number.{number}.{key}"] = self._number(key, value)
        for number, (group, was) in enumerate(zip(self.optimizer.param_groups, self.settings, strict=True)):
            for key in group.keys() - {"params", "lr"}:
                if key not in was or group[key] != was[key]:  # counted or found by the optimiser
                    tensors[f"optimizer-group.{number}.{key}"] = self._number(key, group[key])
        for key, value in self.scaler.state_dict().items():
            tensors[f"scaler.{key}"] = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
        if isinstance(self.loss, nn.Module):
            tensors |= {f"loss.{name}": tensor for name, tensor in self.loss.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Bring all that moves to where `state` was taken.

        Raises:
            InputError: names or shapes that do not fit.
        """
        load_state(self.model, tensors, prefix="model.")
        self._check_optimizer(tensors)
        if self.average is not None:
            load_state(self.average, tensors, prefix="average.")
        if isinstance(self.loss, nn.Module):
            load_state(self.loss, tensors, prefix="loss.")
        scaler = {f"scaler.{key}" for key in self.scaler.state_dict()}
        there = {name for name in tensors if name.startswith("scaler.")}
        if there != scaler:
            raise checks.InputError(
                f"snapshot: expected one taken {'with' if scaler else 'without'} a loss scaler (fp16), got the other"
            )
        self.scaler.load_state_dict({name.removeprefix("scaler."): tensors[name].item() for name in scaler})
        state: dict[int, dict[str, Any]] = {}
        # the groups are the stage's own: its schedule sets their learning rate at every step
        groups = self.optimizer.state_dict()["param_groups"]
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            place, _, key = rest.partition(".")
            if kind == "optimizer":
                state.setdefault(int(place), {})[key] = tensor
            elif kind == "optimizer-number":
                state.setdefault(int(place), {})[key] = tensor.item()
            elif kind == "optimizer-group":
                groups[int(place)][key] = tensor.item()
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _check_optimizer(self, tensors: dict[str, Tensor]) -> None:
        """Raise InputError for what another optimiser, or one of other parameters, has left in a snapshot."""
        learning = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            place, _, key = rest.partition(".")
            if kind == "optimizer" and key in MIRRORS:
                shapes = [list(learning[int(place)].shape)] if int(place) < len(learning) else []
                if list(tensor.shape) not in shapes:
                    raise checks.InputError(
                        f"snapshot: expected {key} of {len(learning)} trained parameters, "
                        f"got one of shape {list(tensor.shape)} for number {place}, which has another"
                    )

    def _number(self, key: str, value: Any) -> Tensor:
        """What an optimiser keeps beside its tensors, as a tensor.

        Raises:
            InputError: it is no number.
        """
        if not isinstance(value, bool | int | float):
            optimizer = type(self.optimizer).__name__
            raise checks.InputError(
                f"optimizer: expected tensors and numbers to keep in a snapshot, {optimizer} has {key} of type "
                f"{type(value).__name__}"
            )
        return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def micro_batches(sizes: Sequence[int], accumulate: int) -> int:
    """Into how many parts every process divides its share of a batch; sizes: of the shares.

    Of all the same number, for batch norm that is shared waits in every forward for all. As many as `torch.chunk` makes
    of the largest share, but none without an image.

    >>> micro_batches([8], 4), micro_batches([9], 4), micro_batches([5, 4], 4), micro_batches([4, 3], 4)
    (4, 3, 3, 3)
    """
    largest = -(-max(sizes) // accumulate)
    return max(1, min(-(-max(sizes) // max(largest, 1)), *sizes))


def _without_learning(loss: nn.Module) -> None:
    if learning := [name for name, p in loss.named_parameters() if p.requires_grad]:
        raise checks.InputError(
            f"loss: expected one without parameters to learn, for no optimiser has them, got {', '.join(learning)}; "
            "make them part of the model"
        )


def _follow(decay: float, averages: Sequence[Tensor], currents: Sequence[Tensor], number: Tensor | int) -> None:
    """One step of the moving average, in place, of tensors of one type; a count is taken over as it is."""
    if averages[0].is_floating_point():
        get_ema_multi_avg_fn(decay)(averages, currents, number)  # type: ignore[no-untyped-call]  # torch's own
        return
    for average, current in zip(averages, currents, strict=True):
        average.copy_(current)
