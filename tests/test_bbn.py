"""BBN: the paper's equations with two matrices, limit cases, gradients, and what each stream's statistics see."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from tailwise import ClassCounts, InputError, LinearClassifier
from tailwise.backbones import DigitsNet, ResNet32
from tailwise.losses import BalancedSoftmax, cross_entropy, focal
from tailwise.methods import BilateralLoss, BilateralView, bilateral_alpha, bilateral_features
from tailwise.recognizer import Recognizer

C, D = 5, 64


def make_view(alpha=None):
    torch.manual_seed(0)
    view = BilateralView(DigitsNet(two_branch=True), LinearClassifier(2 * D, C)).double()
    if alpha is not None:
        view.alpha.fill_(alpha)
    return view


def pairs(n=4):
    return torch.rand(n, 2, 1, 8, 8, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def test_alpha_is_the_authors_parabola():
    for epochs in (1, 7, 200):
        alphas = [bilateral_alpha(epoch, epochs) for epoch in range(1, epochs + 1)]
        assert alphas == pytest.approx([1 - ((t - 1) / epochs) ** 2 for t in range(1, epochs + 1)])
        assert alphas[0] == 1
        assert alphas[-1] > 0


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_logits_are_the_equation_with_a_matrix_for_each_branch(alpha):
    """z = alpha W_c^T f_c + (1 - alpha) W_r^T f_r, twice, and the bias once."""
    view, images = make_view(alpha).eval(), pairs()
    layers, second = view.backbone.layers, view.backbone.second
    w_c, w_r = view.classifier.weight.detach().split(D, dim=1)
    with torch.no_grad():
        f_c = layers[7:](layers[:7](images[:, 0])).mean(dim=(2, 3))
        f_r = second(layers[:7](images[:, 1])).mean(dim=(2, 3))
        logits, bias = view(images), view.classifier.bias.detach()
    for n in range(len(images)):
        for c in range(C):
            z_c = sum(float(w) * float(f) for w, f in zip(w_c[c], f_c[n], strict=True))
            z_r = sum(float(w) * float(f) for w, f in zip(w_r[c], f_r[n], strict=True))
            expected = 2 * (alpha * z_c + (1 - alpha) * z_r) + float(bias[c])
            assert float(logits[n, c]) == pytest.approx(expected)


def test_half_and_half_is_the_network_itself():
    view, images = make_view(0.5).eval(), pairs()[:, 0]
    recognizer = Recognizer(view.backbone, view.classifier)
    torch.testing.assert_close(view(torch.stack([images, images], dim=1)), recognizer(images))
    assert view.state_dict().keys() == recognizer.state_dict().keys()


@pytest.mark.parametrize("make", [DigitsNet, ResNet32])
def test_any_backbone_of_two_branches(make):
    size = (1, 8, 8) if make is DigitsNet else (3, 32, 32)
    view = BilateralView(make(two_branch=True), LinearClassifier(2 * D, C)).eval()
    images = torch.rand(2, *size)
    view.alpha.fill_(0.5)
    own = Recognizer(view.backbone, view.classifier)(images)
    torch.testing.assert_close(view(torch.stack([images, images], dim=1)), own, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="backbone: expected two branches, got 1"):
        BilateralView(make(), LinearClassifier(D, C))


@pytest.mark.parametrize(("alpha", "silent"), [(1.0, "second"), (0.0, "layers.7")])
def test_a_branch_without_weight_does_not_learn(alpha, silent):
    view = make_view(alpha)
    BilateralLoss()(view(pairs()), torch.tensor([[0, 1], [2, 3], [4, 0], [1, 1]])).backward()
    for name, parameter in view.backbone.named_parameters():
        of_silent = name.startswith(("layers.7", "layers.8") if silent == "layers.7" else silent)
        assert (parameter.grad.abs().sum() == 0) == of_silent


def test_batch_norm_sees_one_stream_after_the_other():
    view, images = make_view(0.3), pairs()
    alone = copy.deepcopy(view.backbone)
    view(images)
    first, second = alone.branches
    first(alone.trunk(images[:, 0]))
    second(alone.trunk(images[:, 1]))
    for name, tensor in view.backbone.state_dict().items():
        assert torch.equal(tensor, alone.state_dict()[name]), name
    assert view.backbone.layers[1].num_batches_tracked == 2
    assert view.backbone.layers[8].num_batches_tracked == view.backbone.second[1].num_batches_tracked == 1


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_its_equation(alpha):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, C, generator=generator, dtype=torch.float64)
    target = torch.randint(0, C, (6, 2), generator=generator)
    loss = BilateralLoss().double()
    loss.alpha.fill_(alpha)
    total = 0.0
    for row, (y_c, y_r) in zip(logits.tolist(), target.tolist(), strict=True):
        norm = math.log(sum(math.exp(z) for z in row))
        total += alpha * (norm - row[y_c]) + (1 - alpha) * (norm - row[y_r])
    assert loss(logits, target).item() == pytest.approx(total / 6)
    if alpha == 1:
        torch.testing.assert_close(loss(logits, target), cross_entropy(logits, target[:, 0]))
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.requires_grad_())


def test_the_loss_takes_any_other_inside():
    logits, target = torch.randn(6, C), torch.tensor([[0, 1], [2, 2], [4, 3], [1, 0], [0, 0], [3, 4]])
    for base in (partial(focal, gamma=1.0), BalancedSoftmax(ClassCounts((9, 5, 3, 2, 1)))):
        loss = BilateralLoss(base)
        loss.alpha.fill_(0.25)
        expected = 0.25 * base(logits, target[:, 0]) + 0.75 * base(logits, target[:, 1])
        torch.testing.assert_close(loss(logits, target), expected)
    assert "base" in dict(loss.named_modules())  # moves along to a device


def test_view_and_loss_follow_the_epochs():
    view, loss = make_view(), BilateralLoss()
    for epoch in (1, 4, 9):
        for module in (view, loss):
            assert callable(module.start_epoch)
            module.start_epoch(epoch, 9)
            assert float(module.alpha) == pytest.approx(1 - ((epoch - 1) / 9) ** 2)


def test_features_are_weighed_also_by_a_number():
    one, other = torch.rand(2, 3), torch.rand(2, 3)
    torch.testing.assert_close(bilateral_features(one, other, 0.5), torch.cat([one, other], dim=1))
    torch.testing.assert_close(bilateral_features(one, other, 1.0), torch.cat([2 * one, 0 * other], dim=1))
    assert torch.equal(bilateral_features(one, other, 0.3), bilateral_features(one, other, torch.tensor(0.3)))


@pytest.mark.parametrize(("epoch", "epochs", "named"), [(0, 5, "epoch"), (6, 5, "epoch"), (1, 0, "epochs")])
def test_epochs_outside_their_range_are_named(epoch, epochs, named):
    with pytest.raises(InputError, match=named):
        bilateral_alpha(epoch, epochs)


def test_half_precision_stays_half():
    view = BilateralView(DigitsNet(two_branch=True), nn.Linear(2 * D, C))
    view.start_epoch(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        logits = view(pairs().float())
    assert logits.dtype is torch.bfloat16
    torch.testing.assert_close(logits.float(), view(pairs().float()), rtol=0.1, atol=0.1)
