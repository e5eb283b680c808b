"""Grad-CAM against gradients taken by hand."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from causal_oracles import unchecked
from tailwise import CausalClassifier, CosineClassifier, InputError, LinearClassifier, fit_ncm, fold_tau_norm, fold_tde
from tailwise.adjust import grad_cam
from tailwise.backbones import DigitsNet, ResNet32
from tailwise.classifiers import FoldedClassifier, MlpClassifier


class Tiny(nn.Module):
    """One linear convolution, 2 x 2 with stride 2: its map is a product that a loop can write out."""

    num_features = 3

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 2, stride=2)

    def forward_map(self, images):
        return self.convolution(images)

    def forward(self, images):
        return self.forward_map(images).mean(dim=(2, 3))


def by_hand(backbone, gradient, image):
    """relu(sum_d g_d A_d) at the map's own places; gradient: of the logit by the features, [D]."""
    weight, bias = (p.detach().double().numpy() for p in (backbone.convolution.weight, backbone.convolution.bias))
    image = image.double().numpy()
    rows, columns = image.shape[1] // 2, image.shape[2] // 2
    found = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            patch = image[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            for d in range(len(weight)):
                # features are the mean over places: each place has a share of 1 / places of the gradient
                found[i, j] += gradient[d] / (rows * columns) * ((weight[d] * patch).sum() + bias[d])
    return np.maximum(found, 0)


def gradient_of(logit, features):
    """By central differences, in float64."""
    step, found = 1e-5, []
    for d in range(len(features)):
        ends = [features.copy(), features.copy()]
        ends[0][d] += step
        ends[1][d] -= step
        found.append((logit(ends[0]) - logit(ends[1])) / (2 * step))
    return np.array(found)


def upsampled(small, size):
    """Bilinear, between the centres of places; at the border the nearest."""
    found = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y = np.clip((i + 0.5) * small.shape[0] / size[0] - 0.5, 0, small.shape[0] - 1)
            x = np.clip((j + 0.5) * small.shape[1] / size[1] - 0.5, 0, small.shape[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, small.shape[0] - 1), min(left + 1, small.shape[1] - 1)
            v, u = y - top, x - left
            found[i, j] = (1 - v) * ((1 - u) * small[top, left] + u * small[top, right]) + v * (
                (1 - u) * small[bottom, left] + u * small[bottom, right]
            )
    return found


def test_a_linear_classifier_weighs_the_map_by_its_weights():
    torch.manual_seed(0)
    backbone, classifier, images = Tiny(), LinearClassifier(3, 4), torch.randn(5, 2, 6, 8)
    classes = torch.tensor([0, 3, 1, 1, 2])
    found = grad_cam(backbone, classifier, images, classes)
    for image, where, c in zip(images, found, classes, strict=True):
        expected = upsampled(by_hand(backbone, classifier.weight[c].detach().numpy(), image), (6, 8))
        np.testing.assert_allclose(where.numpy(), expected, atol=1e-6)
    assert found.max() > 0.01
    assert (found == 0).any()  # what speaks against the class is left out


def test_total_direct_effect_has_the_gradient_of_its_own_logit():
    """Of Eq. 8 written out, differentiated by differences: features are normalized, so no constant weights will do."""
    torch.manual_seed(1)
    backbone, classifier = Tiny(), CosineClassifier(3, 4)
    classifier(torch.randn(9, 3) + 1)
    image, alpha, c = torch.randn(1, 2, 6, 8), 1.7, 2
    found = grad_cam(backbone, fold_tde(classifier.eval(), alpha), image, torch.tensor([c]))[0]
    w, d = (t.detach().double().numpy() for t in (classifier.weight[c], classifier.average.direction()[0]))

    def logit(x):
        unit = x / np.sqrt(x @ x)
        return 16 * (w @ unit - alpha * (unit @ d) * (w @ d)) / np.sqrt(w @ w)

    features = backbone(image)[0].detach().double().numpy()
    expected = upsampled(by_hand(backbone, gradient_of(logit, features), image[0]), (6, 8))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    assert found.max() > 0.1
    plain = grad_cam(backbone, classifier, image, torch.tensor([c]))[0]
    assert not torch.allclose(found, plain, atol=0.01)
    unadjusted = grad_cam(backbone, fold_tde(classifier, 0.0), image, torch.tensor([c]))[0]
    torch.testing.assert_close(unadjusted, plain)


@pytest.mark.parametrize("backbone", [DigitsNet(two_branch=True), ResNet32(two_branch=True)])
def test_networks_are_left_as_they_were(backbone):
    """Their map is the one that features are the mean of, both branches of it; nothing is trained by looking."""
    torch.manual_seed(2)
    classifier = CausalClassifier(128, 5)
    images = torch.rand(2, *((1, 8, 8) if isinstance(backbone, DigitsNet) else (3, 32, 32)))
    classifier(torch.randn(8, 128)), backbone.train(), classifier.train()
    backbone.branches[0].eval()  # as a frozen part is
    whole = nn.ModuleList([backbone, classifier])
    before, modes = {k: v.clone() for k, v in whole.state_dict().items()}, [m.training for m in whole.modules()]
    classes = torch.tensor([1, 4])
    with torch.no_grad():
        found = grad_cam(backbone, classifier, images, classes)
    assert all(torch.equal(v, before[k]) for k, v in whole.state_dict().items())
    assert [m.training for m in whole.modules()] == modes
    assert all(p.grad is None for p in whole.parameters())
    assert not found.requires_grad

    whole.eval()
    maps = backbone.forward_map(images).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier(maps.mean(dim=(2, 3)))[[0, 1], classes].sum(), maps)
    small = (gradient.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).relu().detach().numpy()
    assert small.shape[1:] == ((4, 4) if isinstance(backbone, DigitsNet) else (8, 8))
    for where, expected in zip(found, small, strict=True):
        np.testing.assert_allclose(where.numpy(), upsampled(expected, images.shape[2:]), atol=1e-5)


def test_any_classifier_will_do():
    torch.manual_seed(3)
    backbone, linear, images, classes = Tiny(), LinearClassifier(3, 4), torch.randn(6, 2, 6, 8), torch.arange(6) % 4
    plain = grad_cam(backbone, linear, images, classes)
    tau = grad_cam(backbone, fold_tau_norm(linear, 1.0), images, classes)
    torch.testing.assert_close(tau, plain / linear.weight.norm(dim=1)[classes, None, None])  # a factor, no more
    unseen = FoldedClassifier(linear.weight.detach(), bias=torch.tensor([0.0, -torch.inf, 0.0, 0.0]))
    torch.testing.assert_close(grad_cam(backbone, unseen, images, classes), plain)
    means = fit_ncm(torch.randn(40, 3), torch.arange(40) % 4, 4)
    for classifier in (means, MlpClassifier(3, 4, num_layers=2, hidden_features=8)):
        found = grad_cam(backbone, classifier, images, classes)
        assert found.isfinite().all()
        assert found.max() > 0


def test_what_will_not_do_is_named(monkeypatch):
    images, classes = torch.rand(2, 2, 6, 8), torch.tensor([0, 1])
    for arguments, message in (
        (
            (nn.Identity(), LinearClassifier(3, 4), images, classes),
            "backbone: expected one with forward_map, got Ident",
        ),
        (
            (Tiny(), LinearClassifier(3, 4), images, classes[:1]),
            r"classes: expected one for each of 2 images, got \[1\]",
        ),
        (
            (Tiny(), LinearClassifier(3, 4), images, classes + 3),
            r"classes: expected labels in 0\.\.3, got 4 at position",
        ),
    ):
        with unchecked(), pytest.raises(InputError, match=message):
            grad_cam(*arguments)
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(InputError, match=r"grad-cam: expected the package captum; in the clone: .* --extra explain"):
        grad_cam(Tiny(), LinearClassifier(3, 4), images, classes)
