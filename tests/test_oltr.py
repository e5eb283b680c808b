"""OLTR (Liu et al. 2019): memory, attention and centroid loss beside slow float64 loops, and as they are trained."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from causal_oracles import assert_close, assert_finite_gradients, dot, length, rows, unchecked
from tailwise import InputError
from tailwise.adjust import class_means, counterfactual_tde, relearn
from tailwise.backbones import DigitsNet, ResNet32
from tailwise.methods.oltr import (
    MetaEmbeddingClassifier,
    ModulatedAttention,
    ModulatedBackbone,
    OltrLoss,
    OltrView,
    centroid_loss,
    meta_embedding,
)
from tailwise.recognizer import Recognizer

D, C = 6, 4


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classifier_of(centroids=None, tau=8.0):
    torch.manual_seed(0)
    centroids = normal(1, C, D) if centroids is None else centroids
    return MetaEmbeddingClassifier(D, C, centroids, tau=tau).double()


# ---------------------------------------------------------------------------------------------------- the oracles


def softmax(values):
    exps = [math.exp(v - max(values)) for v in values]
    return [e / math.fsum(exps) for e in exps]


def affine(layer, vector):
    weight = rows(layer.weight.flatten(1))
    bias = [0.0] * len(weight) if layer.bias is None else layer.bias.tolist()
    return [dot(row, vector) + b for row, b in zip(weight, bias, strict=True)]


def oracle_logits(classifier, features):
    """Dynamic meta-embedding with the 10 of the authors' code, then their squash and cosine."""
    centroids, out = rows(classifier.centroids), []
    for v in rows(features):
        recalled = softmax(affine(classifier.hallucinator, v))
        memory = [math.fsum(o * c[i] for o, c in zip(recalled, centroids, strict=True)) for i in range(len(v))]
        selector = [math.tanh(s) for s in affine(classifier.selector, v)]
        reach = 10 / min(length([a - b for a, b in zip(v, c, strict=True)]) for c in centroids)
        meta = [reach * (a + e * m) for a, e, m in zip(v, selector, memory, strict=True)]
        norm = length(meta)
        squashed = [norm / (1 + norm) * a / norm for a in meta]
        out.append([classifier.tau * dot(w, squashed) / length(w) for w in rows(classifier.weight)])
    return np.array(out)


def oracle_attention(layer, maps):
    """f + MA(f) * SA(f), one image, one position, one channel at a time."""
    out = maps.detach().clone()
    height, width = maps.shape[2:]
    places = [(i, j) for i in range(height) for j in range(width)]
    for n, image in enumerate(maps.detach()):
        at = [image[:, i, j].tolist() for i, j in places]
        theta, phi, g = ([affine(part, v) for v in at] for part in (layer.theta, layer.phi, layer.g))
        spatial = softmax(affine(layer.spatial, image.flatten().tolist()))
        for p, (i, j) in enumerate(places):
            shares = softmax([dot(theta[p], phi[q]) for q in range(len(places))])
            read = [math.fsum(s * v[c] for s, v in zip(shares, g, strict=True)) for c in range(len(g[0]))]
            out[n, :, i, j] += spatial[p] * torch.tensor(affine(layer.back, read), dtype=torch.float64)
    return out


def oracle_centroid_loss(features, target, centroids, margin, repulsion):
    out = []
    for v, y in zip(rows(features), target.tolist(), strict=True):
        squares = [length([a - b for a, b in zip(v, c, strict=True)]) ** 2 for c in rows(centroids)]
        others = math.fsum(s for i, s in enumerate(squares) if i != y) / len(squares)
        out.append(squares[y] / 2 + repulsion * max(0.0, margin - others))
    return out


# ------------------------------------------------------------------------------------------------ the classifier


def test_logits_follow_the_equations():
    classifier, x = classifier_of(), normal(2, 7, D)
    assert_close(classifier(x), oracle_logits(classifier, x), 1e-12)
    assert_close(classifier(100 * x), oracle_logits(classifier, 100 * x), 1e-12)


def test_centroids_of_zero_give_a_cosine_classifier():
    classifier, x = classifier_of(torch.zeros(C, D)), normal(3, 5, D)
    cosine = F.linear(F.normalize(x), F.normalize(classifier.weight))
    assert_close(classifier(x), 8 * 10 / 11 * cosine, 1e-12)
    empty = MetaEmbeddingClassifier(D, C)
    assert torch.equal(empty.centroids, torch.zeros(C, D))
    assert empty.tau == 16.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_feature_at_a_centroid_has_full_length_and_finite_gradients(dtype):
    """The class with one image: its feature is its centroid, and 1 / 0 is no number."""
    centroids = normal(4, C, D).to(dtype)
    v = torch.cat([centroids[:2], centroids[:1] + 0.5]).clone().requires_grad_()
    memory, selector = (normal(seed, 3, D).to(dtype).requires_grad_() for seed in (5, 6))
    embedding = meta_embedding(v, memory, selector, centroids)
    assert embedding.dtype is dtype
    direction = F.normalize((v + selector * memory).double())
    assert_close(embedding[:2], direction[:2], 1e-2 if dtype.itemsize == 2 else 1e-6)
    assert embedding[2].norm().item() < 1
    assert_finite_gradients(embedding, v, memory, selector)


def test_a_feature_of_zero_at_a_centroid_of_zero_says_nothing():
    v = torch.zeros(2, D, dtype=torch.float64, requires_grad=True)
    embedding = meta_embedding(v, torch.zeros_like(v), torch.zeros_like(v), torch.zeros(C, D, dtype=torch.float64))
    assert torch.equal(embedding, torch.zeros_like(v))
    assert_finite_gradients(embedding, v)


def test_the_length_tells_how_near_the_nearest_centroid_is():
    centroids = torch.zeros(C, D, dtype=torch.float64)
    centroids[:, 0] = torch.arange(C)
    v = torch.zeros(3, D, dtype=torch.float64)
    v[:, 0] = torch.tensor([1.01, 1.5, 30.0], dtype=torch.float64)
    lengths = meta_embedding(v, v * 0, v * 0, centroids).norm(dim=1).tolist()
    assert lengths == pytest.approx([10.1 / 10.11, 15 / 15.5, 300 / 327], rel=1e-12)


def test_gradients_are_those_of_the_formula():
    classifier, x = classifier_of(), normal(7, 2, D).requires_grad_()
    learnt = [p for name, p in classifier.named_parameters() if name != "centroids"]
    assert torch.autograd.gradcheck(lambda v, *_: classifier(v), (x, *learnt))


def test_no_gradient_of_the_logits_reaches_the_centroids():
    classifier = classifier_of()
    classifier(normal(8, 5, D)).sum().backward()
    assert classifier.centroids.grad is None
    assert all(p.grad is not None for name, p in classifier.named_parameters() if name != "centroids")


def test_copies_precisions_and_autocast():
    classifier, x = classifier_of().float(), normal(9, 5, D).float()
    expected = classifier(x)
    fresh = MetaEmbeddingClassifier(D, C, tau=8.0)
    fresh.load_state_dict(classifier.state_dict())
    assert torch.equal(fresh(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = classifier(x.requires_grad_())
    assert_close(logits.float(), expected, 5e-2)
    assert_finite_gradients(logits.float(), x, *(p for n, p in classifier.named_parameters() if n != "centroids"))
    low = copy.deepcopy(classifier).bfloat16()(x.bfloat16())
    assert low.dtype is torch.bfloat16
    assert_close(low.float(), expected, 5e-2)
    assert "6, 4, tau=8" in repr(classifier)


def test_the_centroids_are_a_copy():
    centroids = normal(10, C, D)
    classifier = classifier_of(centroids)
    classifier.centroids.data.zero_()
    assert torch.equal(centroids, normal(10, C, D))


def test_it_is_trained_on_features_alone_while_the_centroids_stay():
    """Decouple-OLTR: frozen features, classes drawn equally often."""
    y = torch.arange(C).repeat_interleave(torch.tensor([60, 20, 6, 2]))
    x = 3 * F.one_hot(y, D).double() + 0.5 * normal(11, len(y), D)
    classifier = MetaEmbeddingClassifier(D, C, class_means(x, y, C)).double()
    before = copy.deepcopy(classifier.state_dict())
    assert relearn(classifier, x, y, C, epochs=3, batch_size=8) is classifier
    moved = {name for name, tensor in classifier.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(before) - {"centroids"}
    assert float((classifier(x).argmax(dim=1) == y).double().mean()) > 0.95


def test_total_direct_effect_of_it():
    classifier, x = classifier_of(), normal(12, 5, D)
    direction = F.normalize(x.mean(dim=0, keepdim=True))
    assert torch.equal(counterfactual_tde(classifier, x, direction, 0.0), classifier(x))
    head_part = (x @ direction.T) * direction
    expected = oracle_logits(classifier, x) - 1.5 * oracle_logits(classifier, head_part)
    assert_close(counterfactual_tde(classifier, x, direction, 1.5), expected, 1e-12)


# --------------------------------------------------------------------------------------------------- the attention


def attention_of(size=(2, 3), width=4):
    torch.manual_seed(0)
    layer = ModulatedAttention(width, size).double()
    torch.nn.init.normal_(layer.back.weight)
    torch.nn.init.normal_(layer.theta.bias)
    return layer


@pytest.mark.parametrize("size", [(2, 3), (1, 1)], ids=str)
def test_attention_follows_its_equation(size):
    layer, maps = attention_of(size), normal(13, 3, 4, *size)
    assert_close(layer(maps).flatten(1), oracle_attention(layer, maps).flatten(1), 1e-12)


def test_attention_starts_as_nothing_and_learns():
    layer, maps = ModulatedAttention(5, (2, 3)).double(), normal(14, 2, 5, 2, 3)
    assert torch.equal(layer(maps), maps)
    assert layer.theta.weight.shape == (2, 5, 1, 1)
    layer(maps).square().sum().backward()
    assert float(layer.back.weight.grad.abs().sum()) > 0


def test_gradients_of_the_attention():
    layer, maps = attention_of(), normal(15, 2, 4, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, *_: layer(m), (maps, *layer.parameters()))


@pytest.mark.parametrize(
    ("make", "image", "size"), [(DigitsNet, (1, 8, 8), (4, 4)), (ResNet32, (3, 16, 16), (4, 4))], ids=["digits", "32"]
)
def test_a_modulated_backbone_is_a_backbone(make, image, size):
    torch.manual_seed(0)
    base = make()
    backbone = ModulatedBackbone(base, size).eval()
    images = torch.rand(3, *image)
    assert torch.equal(backbone(images), base(images))
    torch.nn.init.normal_(backbone.attention.back.weight)
    maps = backbone.forward_map(images)
    assert torch.equal(maps, backbone.attention(base.forward_map(images)))
    assert maps.shape == (3, backbone.num_features, *size)
    torch.testing.assert_close(backbone(images), maps.mean(dim=(2, 3)))
    assert not torch.allclose(backbone(images), base(images))
    assert backbone.num_features == base.num_features
    modules = dict(backbone.named_modules())
    expected = [*(dict(base.named_modules())[name] for name in base.last_block), backbone.attention]
    assert [modules[name] for name in backbone.last_block] == expected


# -------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("margin", [0.0, 12.0, 1000.0])
def test_the_centroid_loss_follows_its_equation(margin):
    x, centroids, y = 1.5 * normal(16, 9, D), normal(17, C, D) + 3, torch.arange(9) % C
    expected = oracle_centroid_loss(x, y, centroids, margin, 0.3)
    loss = partial(centroid_loss, margin=margin, repulsion=0.3)
    assert_close(loss(x, y, centroids, reduction="none")[:, None], np.array(expected)[:, None], 1e-12)
    assert float(loss(x, y, centroids)) == pytest.approx(np.mean(expected), rel=1e-12)


def test_without_repulsion_it_is_the_center_loss():
    x, centroids, y = normal(18, 5, D), normal(19, C, D), torch.tensor([0, 1, 1, 3, 2])
    assert_close(
        centroid_loss(x, y, centroids, repulsion=0.0)[None, None],
        0.5 * F.mse_loss(x, centroids[y])[None, None] * D,
        1e-12,
    )


def test_gradients_of_the_centroid_loss():
    x, centroids = normal(20, 3, D).requires_grad_(), normal(21, C, D).requires_grad_()
    for margin in (0.0, 100.0):
        loss = partial(centroid_loss, margin=margin, repulsion=0.3)
        assert torch.autograd.gradcheck(lambda a, b, f=loss: f(a, torch.tensor([0, 3, 3]), b), (x, centroids))


def test_the_loss_is_cross_entropy_and_its_share_of_the_centroid_loss():
    classifier, x, y = classifier_of(), normal(22, 5, D), torch.tensor([0, 1, 1, 3, 2])
    plain = F.cross_entropy(classifier(x), y)
    loss = OltrLoss(weight=0.2, margin=40.0, repulsion=0.5)
    expected = plain + 0.2 * centroid_loss(x, y, classifier.centroids, margin=40.0, repulsion=0.5)
    assert torch.equal(loss((classifier(x), x, classifier.centroids), y), expected)
    told = plain + 0.01 * centroid_loss(x, y, classifier.centroids, margin=10.0, repulsion=0.01)
    assert torch.equal(OltrLoss()((classifier(x), x, classifier.centroids), y), told)


# -------------------------------------------------------------------------------------------------------- training


def test_the_view_is_the_recognizer_with_its_features():
    backbone, classifier = ModulatedBackbone(DigitsNet(), (4, 4)), MetaEmbeddingClassifier(64, C, torch.rand(C, 64))
    view, recognizer = OltrView(backbone, classifier).eval(), Recognizer(backbone, classifier).eval()
    images = torch.rand(3, 1, 8, 8)
    logits, features, centroids = view(images)
    assert centroids is classifier.centroids
    assert torch.equal(logits, recognizer(images))
    assert torch.equal(features, backbone(images))
    assert list(view.state_dict()) == list(recognizer.state_dict())
    features.sum().backward()  # the centroid loss trains the backbone, too
    assert all(p.grad is not None for p in backbone.backbone.parameters())


def test_stage_two_moves_everything_and_brings_features_to_their_centroids():
    torch.manual_seed(0)
    y = torch.arange(C).repeat_interleave(torch.tensor([24, 12, 6, 3]))
    images = torch.rand(C, 1, 8, 8)[y] + 0.1 * torch.rand(len(y), 1, 8, 8)
    base = DigitsNet()
    with torch.no_grad():
        centroids = class_means(base.eval()(images), y, C)
    backbone, classifier = ModulatedBackbone(base, (4, 4)), MetaEmbeddingClassifier(64, C, centroids)
    view, loss = OltrView(backbone, classifier), OltrLoss()
    before = copy.deepcopy(dict(view.named_parameters()))
    optimizer = torch.optim.SGD(view.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        losses.append(loss(view.train()(images), y))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].item() < 0.5 * losses[0].item()
    still = {name for name, tensor in view.named_parameters() if torch.equal(tensor, before[name])}
    assert still <= {
        "backbone.attention.phi.bias"
    }  # its product with theta is one number for all that the softmax is over
    recognizer = Recognizer(backbone, classifier).eval()
    assert float((recognizer(images).argmax(dim=1) == y).float().mean()) > 0.9


# ---------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MetaEmbeddingClassifier(0, C), "in_features: expected a whole number of at least 1, got 0"),
        (lambda: MetaEmbeddingClassifier(D, 0), "num_classes: expected a whole number of at least 1, got 0"),
        (lambda: MetaEmbeddingClassifier(D, C, tau=0.0), "tau: expected a finite number above 0, got 0.0"),
        (
            lambda: MetaEmbeddingClassifier(D, C, torch.rand(D, C)),
            r"centroids: expected shape \[4, 6\], got \[6, 4\]",
        ),
        (lambda: MetaEmbeddingClassifier(D, C)(torch.rand(2, 5)), r"features: expected shape \[N, 6\], got \[2, 5\]"),
        (lambda: ModulatedAttention(0, (4, 4)), "num_features: expected a whole number of at least 1, got 0"),
        (lambda: ModulatedAttention(4, (4, 0)), "map_size: expected a whole number of at least 1, got 0"),
        (
            lambda: ModulatedBackbone(DigitsNet(), (4, 4))(torch.rand(1, 1, 12, 12)),
            r"map_size: expected maps of \[4, 4\], got \[6, 6\]",
        ),
        (
            lambda: ModulatedBackbone(torch.nn.Identity(), (4, 4)),
            "backbone: expected one with forward_map, got Identity",
        ),
        (
            lambda: OltrLoss(weight=-1.0),
            "weight: expected a finite number at least 0",
        ),
        (
            lambda: OltrLoss(margin=-1.0),
            "margin: expected a finite number at least 0",
        ),
        (lambda: OltrLoss(repulsion=-1.0), "repulsion: expected a finite number"),
        (
            lambda: centroid_loss(torch.rand(2, D), torch.tensor([0, 1]), torch.rand(C, D), margin=math.nan),
            "margin: expected a finite number at least 0",
        ),
        (
            lambda: centroid_loss(torch.rand(2, D), torch.tensor([0, 1]), torch.rand(C, D), repulsion=-1.0),
            "repulsion: expected a finite number at least 0",
        ),
    ],
)
def test_misuse_is_named(call, message):
    with unchecked(), pytest.raises(InputError, match=message):
        call()
