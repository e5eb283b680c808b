import itertools
import math
import os
import stat
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from causal_oracles import unchecked
from tailwise import CausalClassifier, InputError, LinearClassifier, Stage, fit, ranks
from tailwise.losses import CrossEntropy, cross_entropy
from tailwise.recognizer import Recognizer
from tailwise.sampling import EpochSampler, instance_draw
from tailwise.seeds import mixed_seed
from tailwise.train import (
    Compute,
    constant,
    cosine,
    load_checkpoint,
    load_state,
    multistep,
    only_trainable,
    save_checkpoint,
    warm_multistep,
)
from tailwise.train.step import Training, micro_batches


class List(list):
    """Batches of one epoch."""


def toy_batches(n=256, batch=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator)
    return List(zip(x.split(batch), y.split(batch), strict=True))


def toy_model(seed=0, classifier=CausalClassifier):
    torch.manual_seed(seed)
    return Recognizer(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), classifier(8, 3))


def stage(**changes):
    settings = {
        "name": "joint",
        "epochs": 2,
        "batch_size": 256,
        "sampler": EpochSampler(partial(instance_draw, 256, 0), batch_size=256),
        "loss": cross_entropy,
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        "learning_rate": constant(0.1),
    }
    return Stage(**(settings | changes))


# ---- the loop


@pytest.mark.parametrize("n", [256, 250, 257])
def test_one_batch_is_its_micro_batches(n):
    """One batch of 256 = four accumulated ones, uneven splits and a last odd batch included."""
    models = []
    for accumulate in (1, 4):
        model = toy_model()
        fit(model, [stage(accumulate=accumulate)], lambda s, e: toy_batches(n, seed=e))
        models.append(model)
    one, four = (model.state_dict() for model in models)
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-5, atol=1e-6)
    assert one["classifier.average.value"].norm() > 0


def test_every_process_has_as_many_micro_batches(monkeypatch):
    """Whatever the sizes; and one process has the parts that `chunk` makes where these are equal."""
    forwards, training = [], Training(toy_model(), stage(accumulate=4), Compute())
    training.model.register_forward_hook(lambda *_: forwards.append(1))
    for processes, size, accumulate in itertools.product((1, 2, 3, 4), range(4, 41), (1, 2, 3, 4, 7)):
        shares = torch.arange(size).tensor_split(processes)
        number = micro_batches([len(share) for share in shares], accumulate)
        assert 1 <= number <= accumulate
        parts = [share.tensor_split(number) for share in shares]
        assert all(len(part) for share in parts for part in share)
        assert max(len(part) for share in parts for part in share) <= max(
            -(-len(shares[0]) // accumulate), -(-len(shares[0]) // len(shares[-1]))
        )
        chunks = torch.arange(size).chunk(accumulate)
        if processes == 1 and len(chunks[-1]) == len(chunks[0]):
            assert [part.tolist() for part in parts[0]] == [part.tolist() for part in chunks]
    for rank, mine in enumerate((5, 4)):  # as one of two processes that share 9 images
        monkeypatch.setattr(ranks, "count", lambda: 2)
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(ranks, "total", lambda value: torch.tensor([5, 4]))
        forwards.clear()
        training.step(*toy_batches(mine)[0])
        assert len(forwards) == 3


def test_fit_is_plain_sgd():
    """Against the loop one would write by hand."""
    ours, byhand = toy_model(classifier=LinearClassifier), toy_model(classifier=LinearClassifier)
    ends = []
    fit(ours, [stage(learning_rate=cosine(0.1, 2))], lambda s, e: toy_batches(256, 64, seed=e), on_epoch=ends.append)
    optimizer = torch.optim.SGD(byhand.parameters(), lr=0.1, momentum=0.9)
    for epoch in (1, 2):
        losses = []
        for step, (x, y) in enumerate(toy_batches(256, 64, seed=epoch)):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * (epoch - 1 + step / 4) / 2))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(byhand(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert ends[epoch - 1].loss == pytest.approx(sum(losses) / 4)
    for a, b in zip(ours.parameters(), byhand.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert [(end.epoch, end.epochs, end.images) for end in ends] == [(1, 2, 256), (2, 2, 256)]


def test_stages_run_in_order_each_with_a_fresh_optimizer():
    made = []

    def optimizer(parameters):
        made.append(len(list(parameters)))
        return torch.optim.SGD(toy.parameters(), lr=0.1)

    toy = toy_model()
    seen = []
    stages = [
        stage(name="one", epochs=1, optimizer=optimizer),
        stage(name="two", trainable=("classifier",), optimizer=optimizer),
    ]
    fit(toy, stages, lambda s, e: toy_batches(seed=e), on_epoch=lambda end: seen.append((end.stage, end.epoch)))
    assert seen == [("one", 1), ("two", 1), ("two", 2)]
    assert made == [3, 1]


def test_frozen_means_frozen():
    model = Recognizer(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()), CausalClassifier(8, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(model, [stage(trainable=("classifier",))], lambda s, e: toy_batches(256, 64, seed=e))
    after = model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith("backbone.")}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_a_module_keeps_in_eval_mode_stays_there():
    """As in a loop that calls `model.train()`; asked for by name, it is trained all the same."""

    class KeepsNorm(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    for trainable, kept in ((("",), True), (("backbone", "classifier"), True), (("backbone.1",), False)):
        model = Recognizer(KeepsNorm(nn.Linear(6, 8), nn.BatchNorm1d(8)), CausalClassifier(8, 3))
        before = model.backbone[1].running_mean.clone()
        fit(model, [stage(trainable=trainable)], lambda s, e: toy_batches(256, 64, seed=e))
        assert torch.equal(model.backbone[1].running_mean, before) is kept, trainable


def test_groups_of_parameters_keep_the_ratio_of_their_learning_rates():
    rates = []
    model = toy_model(classifier=LinearClassifier)

    def optimizer(parameters):
        first, *others = parameters
        made = torch.optim.SGD([{"params": [first], "lr": 0.01}, {"params": others}], lr=0.1)
        made.register_step_pre_hook(lambda one, *_: rates.append([group["lr"] for group in one.param_groups]))
        return made

    fit(model, [stage(optimizer=optimizer, learning_rate=constant(0.5))], lambda s, e: toy_batches(seed=e))
    assert rates == [pytest.approx([0.05, 0.5])] * 2


def test_a_loss_that_would_have_to_learn_is_refused():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, logits, target):
            return cross_entropy(self.scale * logits, target)

    with pytest.raises(InputError, match=r"loss: expected one without parameters to learn, .* got scale; make them"):
        fit(toy_model(), [stage(loss=Scaled())], lambda s, e: toy_batches())
    fit(toy_model(), [stage(loss=Scaled().requires_grad_(False))], lambda s, e: toy_batches(seed=e))


def test_frozen_classifier_does_not_move_its_average():
    model = toy_model()
    fit(model, [stage(trainable=("backbone",))], lambda s, e: toy_batches(seed=e))
    assert model.classifier.average.value.abs().sum() == 0


def test_trainable_names_are_checked():
    with (
        pytest.raises(InputError, match="trainable: unknown value 'classifer'; did you mean 'classifier'"),
        only_trainable(toy_model(), ("classifer",)),
    ):
        pass


def test_divergence_and_empty_epochs_are_named():
    with pytest.raises(InputError, match="stage 'joint': training diverged in epoch 1"):
        fit(
            toy_model(classifier=LinearClassifier),
            [stage(learning_rate=constant(1e30))],
            lambda s, e: toy_batches(256, 16),
        )
    with pytest.raises(InputError, match="batch_size"):
        fit(toy_model(), [stage()], lambda s, e: List())
    with pytest.raises(InputError, match=r"batch_size: expected an image of each batch for each of 1 .* got \[0\]"):
        fit(toy_model(), [stage()], lambda s, e: List([(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))]))


def test_learning_rate_is_told():
    told = []
    fit(
        toy_model(),
        [stage(learning_rate=cosine(0.2, 2), on_learning_rate=told.append)],
        lambda s, e: toy_batches(256, 128, seed=e),
    )
    assert told == pytest.approx([0.2, 0.1 + 0.1 * math.cos(math.pi / 4), 0.1, 0.1 - 0.1 * math.cos(math.pi / 4)])


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch_size": 0}, {"accumulate": 0}, {"accumulate": 257}])
def test_stage_refuses(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        stage(**bad)


# ---- losses, sampling, schedules


def test_cross_entropy_oracle_and_module():
    torch.manual_seed(0)
    logits, target = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2])
    each = [-(row[t] - math.log(sum(math.exp(v) for v in row))) for row, t in zip(logits.tolist(), target, strict=True)]
    torch.testing.assert_close(cross_entropy(logits, target, reduction="none"), torch.tensor(each).double())
    torch.testing.assert_close(CrossEntropy()(logits, target), torch.tensor(sum(each) / 5).double())


@pytest.mark.parametrize("trainable", ["classifier", ()])
def test_what_is_trained_is_named_in_a_tuple(trainable):
    with pytest.raises(InputError, match="trainable: expected names of modules, such as"), unchecked():
        stage(trainable=trainable)


def test_a_model_with_nothing_to_train_is_named():
    model = torch.nn.Linear(4, 3).requires_grad_(False)
    with pytest.raises(InputError, match="trainable: expected a module with parameters to train, got "):
        fit(model, [stage()], lambda *_: toy_batches(8, 4))


def test_a_seed_may_be_numpys():
    with unchecked():
        assert mixed_seed(*np.arange(3)) == mixed_seed(0, 1, 2)


def test_mixed_seeds_do_not_collide():
    seeds = {mixed_seed(a, b) for a in range(100) for b in range(100)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_cosine_schedule():
    rate = cosine(0.2, 10, warmup_epochs=2)
    assert [rate(0), rate(1), rate(2), rate(6)] == pytest.approx([0.008, 0.104, 0.2, 0.1])
    assert rate(10) == pytest.approx(0)
    assert cosine(0.2, 10)(0) == 0.2


def test_multistep_is_the_published_cifar_schedule():
    rate = multistep(0.2, [120, 160], factor=0.01, warmup_epochs=5)
    by_epoch = [rate(epoch - 1 + 0.5) for epoch in (1, 2, 3, 4, 5, 6, 119, 120, 159, 160, 200)]
    expected = [0.2 * 7 / 15, 0.12, 0.2 * 11 / 15, 0.2 * 13 / 15, 0.2, 0.2, 0.2, 2e-3, 2e-3, 2e-5, 2e-5]
    assert by_epoch == pytest.approx(expected)
    assert multistep(0.3, [], factor=0.5)(7) == constant(0.3)(7)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: constant(0.0), "learning_rate"),
        (lambda: cosine(-1.0, 5), "learning_rate"),
        (lambda: cosine(0.1, 5, warmup_epochs=5), "warmup_epochs"),
        (lambda: multistep(0.1, [5, 3], factor=0.1), "milestones"),
        (lambda: multistep(0.1, [5], factor=0.0), "factor"),
        (lambda: multistep(0.1, [5], factor=2), "factor"),
        (lambda: multistep(0.1, [5], factor=0.1, warmup_epochs=-1), "warmup_epochs"),
        (lambda: multistep(0.1, [5], factor=0.1, warmup_from=-1), "warmup_from"),
        (lambda: warm_multistep(0.1, [5], factor=2), "factor"),
        (lambda: cosine(0.1, 5, warmup_from=-1), "warmup_from"),
        (lambda: cosine(0.1, 0), "epochs: "),
    ],
)
def test_schedules_refuse(make, named):
    with pytest.raises(InputError, match=named):
        make()


# ---- checkpoints


def test_checkpoint_round_trip(tmp_path):
    model = toy_model()
    model(torch.randn(5, 6))
    meta = {"counts": [3, 2, 1], "recipe": {"name": "x"}}
    digest = save_checkpoint(tmp_path / "a.safetensors", model.state_dict(), meta)
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert (loaded.digest, loaded.meta) == (digest, meta)
    other = toy_model(seed=1)
    load_state(other, loaded.state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.safetensors"]


def test_digest_knows_tensors_names_and_meta(tmp_path):
    state = {"a": torch.ones(2), "b": torch.ones(2)}
    variants = [
        (state, {}),
        (state, {"x": 1}),
        ({"a": torch.ones(2), "c": torch.ones(2)}, {}),
        ({"a": torch.ones(2), "b": torch.tensor([1.0, 2.0])}, {}),
        ({"a": torch.ones(2), "b": torch.ones(2).double()}, {}),
        ({"a": torch.ones(2), "b": torch.ones(2, 1)}, {}),
    ]
    digests = {save_checkpoint(tmp_path / "x", tensors, meta) for tensors, meta in variants}
    assert len(digests) == len(variants)
    assert save_checkpoint(tmp_path / "x", dict(reversed(state.items())), {}) in digests


def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"a": torch.arange(8.0)}, {"counts": [1]})
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(InputError):
            load_checkpoint(path)


def test_checkpoint_errors_name_the_file(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not one")
    with pytest.raises(InputError, match=r"bad\.safetensors: not a readable checkpoint"):
        load_checkpoint(tmp_path / "bad.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match="expected format tailwise-checkpoint/1, got none"):
        load_checkpoint(tmp_path / "foreign.safetensors")


def test_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    digest = save_checkpoint(path, {"a": torch.ones(2)}, {})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tailwise.train.checkpoint.save_file", full)
    with pytest.raises(InputError, match="No space left"):
        save_checkpoint(path, {"a": torch.zeros(2)}, {})
    assert load_checkpoint(path).digest == digest
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="there the system itself refuses")
def test_a_file_is_flushed_by_who_may_write_it(tmp_path, monkeypatch):
    import fcntl

    flushed = []

    def fsync(handle):  # Windows refuses to flush a file that is open for reading alone
        if stat.S_ISREG(os.fstat(handle).st_mode):
            flushed.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)

    monkeypatch.setattr(os, "fsync", fsync)
    save_checkpoint(tmp_path / "a.safetensors", {"a": torch.ones(2)}, {})
    assert flushed
    assert os.O_RDONLY not in flushed


def test_load_state_names_what_does_not_fit():
    state = toy_model().state_dict()
    state["classifier.weight"] = torch.zeros(4, 8)
    state["extra"] = torch.zeros(1)
    del state["backbone.0.bias"]
    model = toy_model(seed=3)
    before = model.classifier.weight.clone()
    with pytest.raises(InputError) as caught:
        load_state(model, state)
    message = str(caught.value)
    assert "backbone.0.bias is missing" in message
    assert "extra is unknown" in message
    assert "classifier.weight is [4, 8], expected [3, 8]" in message
    assert torch.equal(model.classifier.weight, before)


# ---- models and losses of their own kind


class TwoViews(nn.Module):
    """Returns logits of both views of each image, and the features of the first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.classifier = nn.Linear(6, 8), nn.Linear(8, 3)
        self.told = []

    def start_epoch(self, epoch, epochs):
        self.told.append((epoch, epochs))

    def forward(self, views):
        features = self.backbone(views)
        return self.classifier(features), features[:, 0]


class Counting(nn.Module):
    """Cross-entropy of both views, louder with every image it has seen in training and with every epoch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.epoch = 0

    def start_epoch(self, epoch, epochs):
        self.epoch = epoch

    def forward(self, output, target):
        logits, features = output
        self.seen += len(target)
        both = cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="mean")
        return both * (1 + 0.001 * self.seen) + 0.1 * self.epoch * features.square().mean()


def paired(epoch):
    first, second = toy_batches(256, 64, seed=epoch), toy_batches(256, 64, seed=100 + epoch)
    return List((torch.stack((x, y), 1), torch.stack((a, b), 1)) for (x, a), (y, b) in zip(first, second, strict=True))


def test_a_model_may_return_whatever_its_loss_takes():
    """Two views and two labels per image, logits and features, a loss that counts and follows the epochs."""
    ours, byhand, loss = TwoViews(), TwoViews(), Counting()
    fit(ours, [stage(loss=loss, batch_size=64)], lambda s, e: paired(e))
    optimizer = torch.optim.SGD(byhand.parameters(), lr=0.1, momentum=0.9)
    own = Counting()
    for own.epoch in (1, 2):
        for views, labels in paired(own.epoch):
            optimizer.zero_grad()
            own(byhand(views), labels).backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), byhand.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert ours.told == [(1, 2), (2, 2)]
    assert loss.seen == 0  # the stage's own is left as it was, for the next training


def test_what_a_loss_has_seen_is_part_of_a_snapshot():
    whole, first, again = TwoViews(), TwoViews(), TwoViews()
    two = stage(loss=Counting(), batch_size=64)
    fit(whole, [two], lambda s, e: paired(e))
    taken = []

    class StopError(Exception):
        pass

    def pause(take):
        taken.append(take())
        if len(taken) == 6:  # the second step of the second epoch, the pause between them counted
            raise StopError

    with pytest.raises(StopError):
        fit(first, [two], lambda s, e: paired(e), on_pause=pause)
    assert taken[-1].tensors["loss.seen"] == 5 * 64
    fit(again, [two], lambda s, e: paired(e), resume=taken[-1])
    for a, b in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
