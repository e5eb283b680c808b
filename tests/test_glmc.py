"""GLMC: slow float64 loops from the paper's equations, limit cases, gradients, and what trains what."""

import copy
import math
from typing import NamedTuple

import pytest
import torch
from torch import nn

from tailwise import CausalClassifier, ClassCounts, InputError, LinearClassifier
from tailwise.losses import cross_entropy
from tailwise.methods import GlmcLoss, GlmcView, consistency, inverse_frequency_weights
from tailwise.recognizer import Recognizer

N, C, D, H = 5, 4, 6, 3
COUNTS = ClassCounts((50, 20, 5, 0))


class Output(NamedTuple):
    """What a view gives, by name."""

    logits: torch.Tensor
    conventional: torch.Tensor
    projections: torch.Tensor
    predictions: torch.Tensor


def make_view(classifier=LinearClassifier, seed=0):
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(8, D), nn.BatchNorm1d(D), nn.ReLU())
    parts = backbone, classifier(D, C), classifier(D, C)
    return GlmcView(*parts, num_features=D, hidden_features=H).double()


def views(n=N):
    return torch.rand(n, 2, 2, 2, 2, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def sample(seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (C, C, H, H, C)
    *output, target = (torch.randn(N, 2, size, generator=generator, dtype=torch.float64) for size in sizes)
    return Output(*output), target.softmax(dim=2)


# ---- the view


def test_each_view_goes_its_own_way():
    view, images = make_view(), views()
    alone = copy.deepcopy(view)
    output = Output(*view(images))
    for v in range(2):
        features = alone.backbone(images[:, v])
        projections = alone.projector(features)
        torch.testing.assert_close(output.logits[:, v], alone.classifier(features))
        torch.testing.assert_close(output.conventional[:, v], alone.conventional(features))
        torch.testing.assert_close(output.projections[:, v], projections)
        torch.testing.assert_close(output.predictions[:, v], alone.predictor(projections))
    assert torch.equal(view.backbone[2].running_mean, alone.backbone[2].running_mean)
    assert view.backbone[2].num_batches_tracked == 2


def test_the_recognizer_is_the_kept_half():
    view, images = make_view().eval(), views()
    logits = Recognizer(view.backbone, view.classifier)(images[:, 1])
    torch.testing.assert_close(view(images)[0][:, 1], logits)
    assert not torch.allclose(view(images)[1][:, 1], logits)
    extra = view.state_dict().keys() - Recognizer(view.backbone, view.classifier).state_dict().keys()
    assert {name.partition(".")[0] for name in extra} == {"conventional", "projector", "predictor"}


def test_both_views_are_one_forward_of_a_feature_average():
    """Otherwise the average would move twice a step."""
    view, images = make_view(CausalClassifier), views()
    view(images)
    features = torch.cat([copy.deepcopy(view.backbone)(images[:, v]) for v in range(2)])
    torch.testing.assert_close(view.classifier.average.value, features.detach().mean(dim=0))


@pytest.mark.parametrize("sizes", [{"num_features": 0}, {"num_features": D, "hidden_features": 0}])
def test_widths_are_checked(sizes):
    with pytest.raises(InputError, match=list(sizes)[-1]):
        GlmcView(nn.Flatten(), nn.Linear(D, C), nn.Linear(D, C), **sizes)


# ---- the parts of the loss


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 1.2])
def test_weights_are_their_equation(power):
    """w_c = C n_c^-k / sum_j n_j^-k, over the classes there are."""
    counts = torch.tensor(COUNTS.per_class).double()
    raw = [n**-power if n else 0.0 for n in COUNTS.per_class]
    expected = [3 * w / sum(raw) for w in raw]
    torch.testing.assert_close(inverse_frequency_weights(counts, power=power), torch.tensor(expected).double())


def cosine(a, b):
    dot, aa, bb = (sum(x * y for x, y in zip(u, v, strict=True)) for u, v in ((a, b), (a, a), (b, b)))
    return dot / math.sqrt(aa * bb)


def consistency_oracle(output):
    h, u = output.projections.tolist(), output.predictions.tolist()
    return sum(-cosine(u[n][0], h[n][1]) - cosine(u[n][1], h[n][0]) for n in range(N)) / N


def test_consistency_is_its_equation_and_stops_the_gradient():
    output, _ = sample()
    h, u = output.projections.requires_grad_(), output.predictions.requires_grad_()
    loss = consistency(h, u)
    assert loss.item() == pytest.approx(consistency_oracle(Output(*map(torch.detach, output))))
    loss.backward()
    assert h.grad is None
    assert (u.grad != 0).all()
    assert torch.autograd.gradcheck(lambda p: consistency(h.detach(), p), u)


def test_views_that_agree_cost_least():
    h = sample()[0].projections
    assert consistency(h, 3 * h.flip(1)).item() == pytest.approx(-2)
    assert consistency(h, -h.flip(1)).item() == pytest.approx(2)


# ---- the loss


def of(alpha, **settings):
    loss = GlmcLoss(COUNTS, **settings).double()
    loss.alpha.fill_(alpha)
    return loss


def log_softmax(row):
    norm = math.log(sum(math.exp(z) for z in row))
    return [z - norm for z in row]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("power", "gamma"), [(1.0, 10.0), (1.2, 4.0), (0.0, 0.0)])
def test_the_loss_is_its_equation(alpha, power, gamma):
    output, target = sample()
    raw = [n**-power if n else 0.0 for n in COUNTS.per_class]
    w = [3 * value / sum(raw) for value in raw]
    conventional = rebalanced = 0.0
    for n in range(N):
        for v in range(2):
            log_c, log_r = log_softmax(output.conventional[n, v].tolist()), log_softmax(output.logits[n, v].tolist())
            conventional -= sum(q * p for q, p in zip(target[n, v].tolist(), log_c, strict=True)) / N
            rebalanced -= sum(k * q * p for k, q, p in zip(w, target[n, v].tolist(), log_r, strict=True)) / N
    expected = alpha * conventional + (1 - alpha) * rebalanced + gamma * consistency_oracle(output)
    assert of(alpha, power=power, gamma=gamma)(output, target).item() == pytest.approx(expected, rel=1e-6)


def test_limits_are_the_conventional_cross_entropy_of_both_views():
    output, target = sample()
    both = sum(cross_entropy(output.conventional[:, v], target[:, v]) for v in range(2))
    torch.testing.assert_close(of(1.0, gamma=0.0)(output, target), both)
    same = output._replace(logits=output.conventional)
    loss = GlmcLoss(ClassCounts((7, 5, 2, 1)), power=0.0, gamma=0.0).double()
    for epoch in (1, 3, 5):
        loss.start_epoch(epoch, 5)
        torch.testing.assert_close(loss(same, target), both)


def test_gradients():
    output, target = sample()
    parts = [part.requires_grad_() for part in output]
    loss = of(0.3)
    assert torch.autograd.gradcheck(
        lambda a, b, u: loss(Output(a, b, parts[2].detach(), u), target), [*parts[:2], parts[3]]
    )


@pytest.mark.parametrize(("alpha", "learns"), [(1.0, "conventional"), (0.0, "classifier")])
def test_each_classifier_learns_from_its_own_loss(alpha, learns):
    view, target = make_view(), sample()[1]
    of(alpha)(view(views()), target).backward()
    for name in ("conventional", "classifier"):
        assert (getattr(view, name).weight.grad.abs().sum() > 0) == (name == learns)


def test_the_backbone_learns_from_the_consistency_and_no_classifier_does():
    view = make_view()
    output = Output(*view(views()))
    consistency(output.projections, output.predictions).backward()
    for module in (view.backbone[1], view.projector, view.predictor):
        assert module.weight.grad.abs().sum() > 0
    assert view.classifier.weight.grad is None
    assert view.conventional.weight.grad is None


def test_the_loss_follows_the_epochs():
    loss = GlmcLoss(COUNTS)
    for epoch in (1, 4, 9):
        loss.start_epoch(epoch, 9)
        assert float(loss.alpha) == pytest.approx(1 - ((epoch - 1) / 9) ** 2)
    assert {name for name, _ in loss.named_buffers()} == {"weights", "alpha"}  # they move along to a device


@pytest.mark.parametrize("settings", [{"power": -1.0}, {"gamma": -0.1}])
def test_settings_outside_their_range_are_named(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        GlmcLoss(COUNTS, **settings)
