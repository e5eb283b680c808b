"""Decoupled classifiers (Kang et al. 2020) as slow float64 loops written from the equations, and made-up inputs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from causal_oracles import dot, length, rows
from tailwise.adjust import tau_norm_components
from tailwise.classifiers import LinearClassifier

DIM = 6
POWERS = (0.0, 0.3, 0.7, 1.0, 2.0, -0.5)
DISTANCES = ("cosine", "l2", "centered")

properties = settings(max_examples=15, deadline=None, database=None)
seeds = st.integers(0, 10**6)
every_distance = pytest.mark.parametrize("distance", DISTANCES)


def oracle_tau_norm(weight, power):
    """Eq. 3: w_j / |w_j|^p; a row of 0 has no direction and stays 0."""
    return np.array([[v / length(row) ** power if length(row) > 0 else 0.0 for v in row] for row in rows(weight)])


def oracle_tau_logits(features, weight, power):
    return np.array([[dot(x, w) for w in oracle_tau_norm(weight, power).tolist()] for x in rows(features)])


def unit(vector):
    return [v / (length(vector) or 1.0) for v in vector]


def oracle_means(vectors, labels, num_classes):
    """The mean of each class; 0 without a sample."""
    means = []
    for c in range(num_classes):
        mine = [v for v, label in zip(vectors, labels, strict=True) if label == c]
        columns = zip(*mine, strict=True) if mine else [[0.0]] * len(vectors[0])
        means.append([math.fsum(column) / max(len(mine), 1) for column in columns])
    return means


def oracle_ncm(train, labels, num_classes, queries, distance):
    """u(x).u(m), -|u(x) - u(m)|^2, or -|u(x - g) - m'|^2 with m' the class mean of u(x - g)."""
    train, labels, queries = rows(train), labels.tolist(), rows(queries)
    if distance == "centered":
        g = [math.fsum(column) / len(train) for column in zip(*train, strict=True)]
        train = [unit([a - b for a, b in zip(x, g, strict=True)]) for x in train]
        queries = [unit([a - b for a, b in zip(x, g, strict=True)]) for x in queries]
        means = oracle_means(train, labels, num_classes)
    else:
        queries = [unit(x) for x in queries]
        means = [unit(m) for m in oracle_means(train, labels, num_classes)]
    if distance == "cosine":
        return np.array([[dot(x, m) for m in means] for x in queries])
    return np.array([[-math.fsum((a - b) ** 2 for a, b in zip(x, m, strict=True)) for m in means] for x in queries])


def oracle_balanced_loss(logits, labels):
    """The mean, over the classes that occur, of the mean cross-entropy of the class."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    top = logits.max(axis=1)
    losses = top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    return np.mean([losses[labels == c].mean() for c in np.unique(labels)])


def balanced_shares(labels):
    """What each sample weighs in the mean over classes."""
    labels = np.asarray(labels)
    counts = np.bincount(labels)
    return 1 / (counts[labels] * (counts > 0).sum())


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def oracle_linear(features, labels, num_classes, decay, shares, steps=4000, rate=0.3):
    """Weight and bias of least weighted cross-entropy + decay/2 (|W|^2 + |b|^2), by plain gradient descent."""
    x, onehot = np.array(rows(features)), np.eye(num_classes)[np.asarray(labels)]
    weight, bias = np.zeros((num_classes, x.shape[1])), np.zeros(num_classes)
    for _ in range(steps):
        error = (softmax(x @ weight.T + bias) - onehot) * np.asarray(shares)[:, None]
        weight, bias = weight - rate * (error.T @ x + decay * weight), bias - rate * (error.sum(axis=0) + decay * bias)
    return weight, bias


def oracle_scales(logits, labels, decay, steps=4000, rate=0.1):
    """s of least class-balanced cross-entropy of s * logits + decay/2 |s|^2, from s = 1."""
    z, shares = np.array(rows(logits)), balanced_shares(labels)
    onehot, scale = np.eye(z.shape[1])[np.asarray(labels)], np.ones(z.shape[1])
    for _ in range(steps):
        error = (softmax(scale * z) - onehot) * shares[:, None]
        scale = scale - rate * ((error * z).sum(axis=0) + decay * scale)
    return scale


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def linear(seed=0, num_classes=5, dim=DIM, dtype=torch.float64, bias=True):
    """A linear classifier whose rows are of different lengths."""
    classifier = LinearClassifier(dim, num_classes, bias=bias).to(dtype)
    classifier.weight.data.copy_(normal(seed, num_classes, dim) * torch.linspace(3, 0.3, num_classes)[:, None])
    if bias:
        classifier.bias.data.copy_(normal(seed + 1, num_classes))
    return classifier


def some_labels(seed, num_rows, num_classes):
    """Every class at least once; num_rows >= num_classes."""
    generator = torch.Generator().manual_seed(seed)
    more = torch.randint(num_classes, (num_rows - num_classes,), generator=generator)
    labels = torch.cat([torch.arange(num_classes), more])
    return labels[torch.randperm(num_rows, generator=generator)]


def long_tail(seed=0, counts=(64, 24, 8), spread=1.0, dtype=torch.float64):
    """Gaussians at the corners of a triangle; the last class is rare."""
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    angles = 2 * math.pi * labels / len(counts)
    centers = 1.5 * torch.stack([angles.cos(), angles.sin()], dim=1)
    return (centers + spread * normal(seed, len(labels), 2)).to(dtype), labels


def joint(x, y, num_classes=3, bias=True):
    """The linear classifier of least ordinary cross-entropy: what training on the long tail gives."""
    weight, b = oracle_linear(x, y, num_classes, 1e-3, np.full(len(y), 1 / len(y)), steps=1500)
    classifier = LinearClassifier(x.shape[1], num_classes, bias=bias).to(x.dtype)
    classifier.weight.data.copy_(torch.from_numpy(weight))
    if bias:
        classifier.bias.data.copy_(torch.from_numpy(b))
    return classifier


def mean_class_accuracy(logits, y):
    right = logits.argmax(dim=1) == y
    return torch.stack([right[y == c].double().mean() for c in y.unique()]).mean().item()


def norm_case(seed=0, num_rows=300, num_classes=4, noise=0.4, lengths=8.0):
    """Long rows for frequent classes, as long-tailed training leaves them: the best power is neither bound."""
    share = torch.tensor([0.6, 0.25, 0.1, 0.05, 0.0])[:num_classes]
    y = torch.multinomial(share, num_rows, replacement=True, generator=torch.Generator().manual_seed(seed))
    directions = torch.nn.functional.normalize(normal(seed, num_classes, DIM), dim=1)
    x = directions[y] + noise * normal(seed + 1, num_rows, DIM)
    classifier = LinearClassifier(DIM, num_classes).double()
    classifier.weight.data.copy_(directions * torch.linspace(lengths, 1, num_classes)[:, None])
    return tau_norm_components(x, classifier), y
