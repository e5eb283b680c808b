"""Training chunk by chunk: the average over steps, state, misuse."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

import tailwise
from tailwise import InputError
from tailwise.adjust import Streamed

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + 2 * torch.eye(6).repeat(7, 1)[:40]
Y = torch.arange(40) % 6 % 4


def causal():
    torch.manual_seed(1)
    return tailwise.CausalClassifier(6, 4, num_heads=2, momentum=1.0)


def test_what_is_used_is_the_average_in_which_step_s_weighs_about_s_to_the_8():
    streamed, moving = Streamed(causal(), 0.05), causal().train()
    optimizer = torch.optim.AdamW(moving.parameters(), lr=0.05, betas=(0.9, 0.99), weight_decay=0)
    steps = []
    for _ in range(7):
        streamed.learn(X, Y, batch_size=40)
        optimizer.zero_grad()
        F.cross_entropy(moving(X), Y).backward()
        optimizer.step()
        steps.append(moving.weight.detach().double().clone())
    shares = torch.tensor([math.prod(range(s, s + 8)) for s in range(1, 8)], dtype=torch.float64)
    expected = sum(share * weight for share, weight in zip(shares / shares.sum(), steps, strict=True))
    torch.testing.assert_close(streamed.classifier.weight.detach().double(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(streamed.classifier.average.value, 7 * X.mean(dim=0), atol=1e-4, rtol=1e-4)
    assert streamed.steps == 7
    assert not streamed.classifier.training


def test_chunks_make_steps_of_their_own_in_an_order_the_seed_decides():
    one, again, other = (Streamed(causal()) for _ in range(3))
    for streamed, seed in ((one, 3), (again, 3), (other, 4)):
        streamed.learn(X, Y, epochs=2, seed=seed)
    assert one.steps == 2 * 5  # of 8 samples
    assert torch.equal(one.classifier.weight, again.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    twin = copy.deepcopy(one)
    for streamed in (one, twin):
        with torch.inference_mode():
            streamed.learn(X[:9], Y[:9])
    assert torch.equal(one.classifier.weight, twin.classifier.weight)
    one.learn(X, Y, epochs=40)
    assert (one.classifier(X).argmax(dim=1) == Y).float().mean() > 0.6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_features_of_any_precision(dtype):
    x = X.bfloat16()
    one, same = Streamed(causal()), Streamed(causal())
    one.learn(x.to(dtype), Y)
    same.learn(x.float(), Y)
    assert torch.equal(one.classifier.weight, same.classifier.weight)


def test_no_gradient_reaches_what_made_the_features():
    backbone = torch.nn.Linear(6, 6)
    Streamed(causal()).learn(backbone(X), Y, epochs=2)  # a second step through its graph would raise
    assert backbone.weight.grad is None


def test_misuse_is_refused_and_changes_nothing():
    streamed = Streamed(causal())
    before = streamed.classifier.weight.clone()
    for wrong, message in (
        (lambda: streamed.learn(X, Y + 9), "labels: expected labels in 0..3"),
        (lambda: streamed.learn(X * torch.nan, Y), "features: expected finite"),
        (lambda: streamed.learn(X, Y, epochs=0), "epochs"),
        (lambda: streamed.learn(X, Y, batch_size=0), "batch_size"),
        (lambda: streamed.learn(X, Y, seed=-1), "seed"),
        (lambda: Streamed(causal(), 0.0), "learning_rate: expected a finite number above 0"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()
    assert torch.equal(streamed.classifier.weight, before)
    with pytest.raises(InputError, match="diverged"):
        Streamed(tailwise.LinearClassifier(6, 4), 1e37).learn(1e3 * X, Y, epochs=3)
