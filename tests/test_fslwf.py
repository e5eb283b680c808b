"""FSLwF (Gidaris and Komodakis 2018): the generator beside a slow float64 loop, its episodes, and what it learns."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from causal_oracles import assert_close, dot, length, rows, unchecked
from tailwise import ClassCounts, InputError
from tailwise.adjust import fit_fslwf, fslwf
from tailwise.adjust.fslwf import WeightGenerator, draw_episode
from tailwise.sampling import Members

D = 8
SIZES = (30, 25, 22, 20, 4, 2, 1)  # four base classes and three few-shot ones, at the usual 20


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(noise=0.3, sizes=SIZES):
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    centers = 2 * F.normalize(normal(1, len(sizes), D))
    return (centers[y] + noise * normal(2, len(y), D)).float(), y, centers.float()


def unit(vector):
    return [v / length(vector) for v in vector]


def generator_of(num_base):
    """Not where it starts: a part that is forgotten shows."""
    torch.manual_seed(0)
    generate = WeightGenerator(D, num_base, seed=3).double()
    for seed, p in enumerate(generate.parameters()):
        p.data.add_(0.5 * normal(seed, *p.shape))
    return generate


def oracle_weights(generate, images, owner, weight, base):
    out = []
    for c in range(max(owner) + 1):
        mine = [unit(v) for v, o in zip(rows(images), owner, strict=True) if o == c]
        read = []
        for z in mine:
            query = [dot(q, z) + b for q, b in zip(rows(generate.query), generate.query_bias.tolist(), strict=True)]
            scores = [
                generate.sharpness.item() * dot(unit(query), unit(rows(generate.keys)[place]))
                for place in base.tolist()
            ]
            exps = [math.exp(s - max(scores)) for s in scores]
            shares = [e / math.fsum(exps) for e in exps]
            read.append(
                [math.fsum(s * w[i] for s, w in zip(shares, map(unit, rows(weight)), strict=True)) for i in range(D)]
            )
        means, reads = np.mean(mine, axis=0), np.mean(read, axis=0)
        out.append(np.array(generate.average.tolist()) * means + np.array(generate.attention.tolist()) * reads)
    return np.array(out)


# --------------------------------------------------------------------------------------------------- the generator


def test_generated_weights_follow_their_equation():
    generate, images, weight = generator_of(5), normal(4, 6, D), normal(5, 3, D)
    owner, base = torch.tensor([1, 0, 1, 1, 2, 0]), torch.tensor([0, 2, 4])
    assert_close(
        generate(images, owner, weight, base), oracle_weights(generate, images, owner.tolist(), weight, base), 1e-12
    )


def test_without_attention_it_is_the_mean_of_unit_features():
    generate, images = WeightGenerator(D, 2).double(), normal(6, 5, D)
    generate.attention.data.zero_()
    weights = generate(images, torch.tensor([0, 0, 1, 1, 1]), normal(7, 2, D), torch.arange(2))
    assert_close(weights, torch.stack([F.normalize(images[:2]).mean(0), F.normalize(images[2:]).mean(0)]), 1e-12)


def test_the_first_keys_are_those_of_the_seed():
    torch.manual_seed(1)
    keys = [WeightGenerator(D, 3, seed=seed).keys for seed in (0, 0, 1)]
    assert torch.equal(keys[0], keys[1])
    assert not torch.equal(keys[0], keys[2])


def test_gradients_are_those_of_the_formula():
    generate, images, weight = generator_of(3), normal(8, 3, D).requires_grad_(), normal(9, 3, D).requires_grad_()
    leaves = (images, weight, *generate.parameters())
    call = lambda x, w, *_: generate(x, torch.tensor([0, 1, 1]), w, torch.arange(3))  # noqa: E731  # gradcheck's argument
    assert torch.autograd.gradcheck(call, leaves)


# -------------------------------------------------------------------------------------------------------- episodes


def test_an_episode_gives_and_asks_different_images_of_its_classes():
    sizes = (12, 9, 3, 10, 8, 11)
    y = np.repeat(np.arange(6), sizes)
    members, base = Members.of(y, ClassCounts(sizes)), np.array([0, 1, 3, 4, 5])
    rng, seen = np.random.default_rng(0), set()
    for _ in range(30):
        episode = draw_episode(rng, members, base, shots=7)
        novel = sorted(set(range(5)) - set(episode.rest.tolist()))
        seen |= set(novel)
        assert len(novel) == 2  # 40 % of five
        assert episode.rest.tolist() == sorted(episode.rest.tolist())
        assert np.bincount(episode.owner).tolist() == [7, 7]
        assert len(set(episode.support.tolist())) == 14
        assert not set(episode.support.tolist()) & set(episode.queries.tolist())
        owners = [set(y[episode.support[episode.owner == m]].tolist()) for m in (0, 1)]
        assert sorted(base.tolist().index(c) for o in owners for c in o) == novel
        classes = [*base[episode.rest].tolist(), *(o.pop() for o in owners)]
        assert [classes[t] for t in episode.target] == y[episode.queries].tolist()
        assert np.bincount(episode.target, minlength=5)[3:].tolist() == [6, 6]
        assert len(episode.target) == 12 + 6
    assert seen == set(range(5))


def test_of_two_base_classes_one_is_taken():
    members = Members.of(np.repeat([0, 1], 4), ClassCounts((4, 4)))
    episode = draw_episode(np.random.default_rng(0), members, np.array([0, 1]), shots=3)
    assert len(episode.rest) == 1
    assert len(set(episode.queries[episode.target == 1].tolist())) == 1  # the one image left, six times


# --------------------------------------------------------------------------------------------------------- the fit


def test_a_fit_that_does_not_move_has_base_weights_and_what_is_generated_from_them():
    """At a learning rate near 0: w* is the mean feature and a mixture of base weights, both with factor 1."""
    x, y, _ = data()
    weight = normal(10, 7, D)
    folded = fit_fslwf(x, y, weight.float(), episodes=1, learning_rate=1e-12, seed=5)
    assert folded.norm == "unit"
    assert folded.bias is None
    start = WeightGenerator(D, 4, seed=5).double()
    few = y >= 4
    owner = (y[few] - 4).tolist()
    expected = oracle_weights(start, x[few].double(), owner, weight[:4], torch.arange(4))
    assert_close(folded.weight, 10 * torch.cat([F.normalize(weight[:4]), F.normalize(torch.tensor(expected))]), 1e-5)


def test_few_shot_classes_are_found_and_base_classes_not_forgotten():
    x, y, centers = data()
    untrained = torch.cat([centers[:4], normal(11, 3, D).float()])  # nothing is known of the few-shot classes
    classifier = fit_fslwf(x, y, untrained, episodes=60)
    held_out = (centers[:, None] + 0.3 * normal(12, 7, 40, D).float()).flatten(0, 1)
    right = (
        (classifier(held_out).argmax(dim=1) == torch.arange(7).repeat_interleave(40)).view(7, 40).float().mean(dim=1)
    )
    assert right[:4].mean().item() > 0.85
    assert right[4:].mean().item() > 0.7
    before = (F.linear(held_out, untrained).argmax(dim=1).view(7, 40) == torch.arange(7)[:, None]).float().mean(dim=1)
    assert before[4:].mean().item() < 0.5


def test_a_default_of_float64_is_no_hindrance():
    x, y, centers = data()
    torch.set_default_dtype(torch.float64)
    try:
        classifier = fit_fslwf(x, y, centers, episodes=3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert classifier(x).isfinite().all()


def test_base_classes_learn_from_episodes_alone():
    """From weights that know nothing; told apart from one another."""
    x, y, _ = data()
    weight, many = normal(13, 7, D).float(), y < 4
    before, after = (
        (fit_fslwf(x, y, weight, episodes=n, learning_rate=rate)(x[many])[:, :4].argmax(dim=1) == y[many])
        for n, rate in ((1, 1e-12), (80, 0.1))
    )
    assert before.float().mean().item() < 0.5
    assert after.float().mean().item() > 0.9


def test_images_of_few_shot_classes_have_no_part_in_the_training():
    x, y, centers = data()
    folded = fit_fslwf(x, y, centers, episodes=10)
    other = fit_fslwf(torch.where((y >= 4)[:, None], -x, x), y, centers, episodes=10)
    assert torch.equal(folded.weight[:4], other.weight[:4])
    assert not torch.allclose(folded.weight[4:], other.weight[4:])


def test_every_setting_has_an_effect_and_the_same_ones_the_same_result():
    x, y, centers = data()
    settings = {"episodes": 5, "learning_rate": 0.1, "weight_decay": 5e-4, "seed": 0, "few_below": 20}
    first = fit_fslwf(x, y, centers, **settings).weight
    torch.manual_seed(77)
    assert torch.equal(fit_fslwf(x, y, centers, **settings).weight, first)
    for change in ({"episodes": 6}, {"learning_rate": 0.2}, {"weight_decay": 0.1}, {"seed": 1}, {"few_below": 21}):
        assert not torch.equal(fit_fslwf(x, y, centers, **(settings | change)).weight, first)


def test_the_steps_are_those_of_nesterov_down_half_a_cosine(monkeypatch):
    taken = []

    class Recorder(torch.optim.SGD):
        def step(self):
            taken.append({key: self.param_groups[0][key] for key in ("lr", "momentum", "nesterov", "weight_decay")})
            super().step()

    monkeypatch.setattr(fslwf, "SGD", Recorder)
    x, y, centers = data()
    fit_fslwf(x, y, centers, episodes=4, learning_rate=0.3, weight_decay=0.02)
    assert [step["lr"] for step in taken] == pytest.approx([0.15 * (1 + math.cos(math.pi * n / 4)) for n in range(4)])
    assert all(step | {"lr": 0} == {"lr": 0, "momentum": 0.9, "nesterov": True, "weight_decay": 0.02} for step in taken)


def test_episodes_are_those_of_the_seed_with_as_many_images_as_few_shot_classes_have(monkeypatch):
    drawn = []

    def recorder(*given, shots):
        drawn.append((shots, draw_episode(*given, shots=shots).support.tolist()))
        return draw_episode(*given, shots=shots)

    monkeypatch.setattr(fslwf, "draw_episode", recorder)
    x, y, centers = data()
    for seed in (0, 0, 1):
        fit_fslwf(x, y, centers, episodes=12, seed=seed)
    assert drawn[:12] == drawn[12:24]
    assert drawn[:12] != drawn[24:]
    assert {shots for shots, _ in drawn} == {4, 2, 1}


def test_the_settings_unless_told():
    x, y, centers = data()
    told = fit_fslwf(x, y, centers, few_below=20, episodes=30, learning_rate=0.1, weight_decay=5e-4, seed=0)
    assert torch.equal(fit_fslwf(x, y, centers, episodes=30).weight, told.weight)
    assert inspect.signature(fit_fslwf).parameters["episodes"].default == 1000


def test_input_is_left_alone_and_gradients_may_be_off():
    x, y, centers = data()
    before = (x.clone(), y.clone(), centers.clone())
    with torch.inference_mode():
        off = fit_fslwf(x.clone(), y.clone(), centers.clone(), episodes=3)  # inference tensors, too
        assert fit_fslwf(x, y, centers, episodes=3).weight.equal(off.weight)
    assert all(torch.equal(a, b) for a, b in zip((x, y, centers), before, strict=True))
    assert torch.equal(off.weight, fit_fslwf(x.requires_grad_(), y, centers.requires_grad_(), episodes=3).weight)
    assert x.grad is None
    assert not off.weight.requires_grad


def test_a_class_without_an_image_is_masked_or_keeps_its_weight():
    x, y, _ = data(sizes=(30, 25, 22, 0, 4, 2, 1))
    weight = normal(14, 7, D).float()
    with pytest.warns(UserWarning, match="1 of 7 classes have no training image"):
        masked = fit_fslwf(x, y, weight, episodes=2)
    assert (masked(x)[:, 3] == -math.inf).all()
    allowed = fit_fslwf(x, y, weight, episodes=2, allow_unseen=True)
    assert allowed.bias is None
    assert_close(F.normalize(allowed.weight[3:4]), F.normalize(weight[3:4]), 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"few_below": 1}, "few_below: expected a class with fewer than 1 images, got none"),
        ({"few_below": 26}, "few_below: expected two classes with 26 images at least, got 1"),
        ({"few_below": 0}, "few_below: expected a whole number of at least 1, got 0"),
        ({"episodes": 0}, "episodes: expected a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
        ({"learning_rate": 0.0}, "learning_rate: expected a finite number above 0"),
        ({"weight_decay": -1.0}, "weight_decay: expected a finite number at least 0"),
        ({"weight": torch.rand(7, 5)}, r"features: expected shape \[N, 5\], got \[104, 8\]"),
        ({"weight": torch.rand(6, D)}, "labels: expected labels in 0..5, got 6"),
        ({"weight": torch.full((7, D), math.nan)}, "weight: expected finite numbers"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "labels: expected one for each of 104 features"),
        ({"features": torch.full((104, D), math.inf)}, "features: expected finite numbers"),
        (
            {"weight_decay": 1e30, "learning_rate": 1e30},
            "learning_rate: expected one at which training does not diverge",
        ),
    ],
)
def test_misuse_is_named(change, message):
    x, y, centers = data()
    given = {"features": x, "labels": y, "weight": centers, "episodes": 3} | change
    with unchecked(), pytest.raises(InputError, match=message):
        fit_fslwf(**given)
