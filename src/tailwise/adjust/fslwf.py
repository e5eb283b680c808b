"""FSLwF: weights of few-shot classes, generated from their features and the other classes' weights.

Gidaris and Komodakis 2018, "Dynamic few-shot visual learning without forgetting": the backbone is frozen, and the
generator learns in episodes in which some classes that have many images are taken for few-shot ones.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from tailwise import checks
from tailwise.adjust.nearest_mean import check_samples
from tailwise.adjust.unseen import bias_of_unseen
from tailwise.classifiers import FoldedClassifier
from tailwise.classifiers.functional import unit
from tailwise.counts import FEW_BELOW, ClassCounts
from tailwise.sampling import Members
from tailwise.seeds import mixed_seed
from tailwise.shapes import Float, Int
from tailwise.train import cosine

# Of an episode, as in the authors' ImageNet configuration: 250 of 639 classes are taken for novel ones, with 6 images
# each to be recognized, and 3 of the other classes for each of them.
NOVEL = 0.4
NOVEL_QUERIES, BASE_QUERIES = 6, 3
SCALE = 10.0  # of cosines, in the classifier and in the attention, where both start


class WeightGenerator(nn.Module):
    """w*_c = phi_avg * mean_i z_i + phi_att * mean_i sum_b softmax_b(s cos(Q z_i + q, k_b)) w_b.

    z_i are the images of class c and w_b the base classes' weights, both as unit vectors (Gidaris and Komodakis 2018,
    section 3.2). Learnt are phi_avg, phi_att, Q, q, s and a key k_b per base class.

    Args:
        in_features: D.
        num_base: B.
        seed: of the first keys; all else starts from 1, the identity, 0 and 10.

    Limit case: phi_att = 0 and phi_avg = 1 is the mean of unit features, as in `fit_ncm`.

    >>> generate = WeightGenerator(2, 3)
    >>> generate(torch.eye(2), torch.tensor([0, 1]), torch.rand(3, 2), torch.arange(3)).shape
    torch.Size([2, 2])
    """

    def __init__(self, in_features: int, num_base: int, *, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(mixed_seed(seed))
        self.keys = nn.Parameter(torch.randn(num_base, in_features, generator=rng))
        self.average = nn.Parameter(torch.ones(in_features))
        self.attention = nn.Parameter(torch.ones(in_features))
        self.query = nn.Parameter(torch.eye(in_features))
        self.query_bias = nn.Parameter(torch.zeros(in_features))
        self.sharpness = nn.Parameter(torch.tensor(SCALE))

    def forward(
        self,
        images: Float[Tensor, "S D"],
        owner: Int[Tensor, " S"],
        weight: Float[Tensor, "b D"],
        base: Int[Tensor, " b"],
    ) -> Float[Tensor, "M D"]:
        """The weights of classes 0..M-1, of which image i shows owner[i]; `base` tells the keys of the b weights."""
        z = unit(images)
        asked = unit(F.linear(z, self.query, self.query_bias))
        shares = (self.sharpness * asked @ unit(self.keys[base]).T).softmax(dim=1)
        return self.average * _means(z, owner) + self.attention * _means(shares @ unit(weight), owner)


def fit_fslwf(
    features: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    weight: Float[Tensor, "C D"],
    *,
    few_below: int = FEW_BELOW,
    episodes: int = 1000,
    learning_rate: float = 0.1,
    weight_decay: float = 5e-4,
    seed: int = 0,
    allow_unseen: bool = False,
) -> FoldedClassifier:
    """A cosine classifier whose few-shot classes have generated weights (Gidaris and Komodakis 2018).

    Base classes are those with `few_below` images or more. Generator, base weights and the scale of the cosines learn
    in episodes: 40 % of the base classes are taken for novel ones, their weights are generated from a few images, and
    other images of them and of the rest are to be recognized among both. In the end the few-shot classes' weights are
    generated from all their images and all base weights.

    Departures: an episode's novel classes have as many images as a few-shot class drawn by chance, where the authors
    train for one number; the learning rate goes to 0 by half a cosine, where theirs has steps.

    Args:
        features: of the training images, [N, D].
        labels: their classes, [N].
        weight: of a trained classifier, cosine at best, [C, D]; only its rows of base classes are used.
        few_below: a class with fewer images is few-shot.
        episodes: steps of the training.
        learning_rate, weight_decay: of SGD with Nesterov momentum 0.9.
        seed: of episodes and first keys.
        allow_unseen: let a class without a training image be predicted, by its row of `weight`.

    Returns:
        A classifier in float32, whatever the precision of the features.

    Raises:
        InputError: features, labels and weight that do not fit, no few-shot class, fewer than two base classes, a
            setting outside its range, training that diverges.

    >>> y = torch.tensor([0] * 9 + [1] * 9 + [2] * 2)
    >>> x = torch.eye(3)[y]
    >>> fit_fslwf(x, y, torch.eye(3), few_below=5, episodes=20)(x).argmax(dim=1).equal(y)
    True
    """
    labels = check_samples(features, labels, len(weight))
    checks.feature_shape(features.shape, weight.shape[1])
    checks.finite("weight", weight.detach().float().cpu().numpy())
    checks.whole("episodes", episodes)
    checks.whole("seed", seed, at_least=0)
    checks.number("weight_decay", weight_decay, at_least=0)
    counts = ClassCounts.of_labels(labels.cpu().numpy(), len(weight))
    images = np.asarray(counts.per_class)
    few = np.flatnonzero((images > 0) & (images < checks.whole("few_below", few_below)))
    base = np.flatnonzero(images >= few_below)
    if not len(few):
        raise checks.InputError(f"few_below: expected a class with fewer than {few_below} images, got none")
    if len(base) < 2:
        raise checks.InputError(f"few_below: expected two classes with {few_below} images at least, got {len(base)}")

    device = features.device
    members = Members.of(labels.cpu().numpy(), counts)
    rng = np.random.Generator(np.random.PCG64(mixed_seed(seed)))
    rate = cosine(learning_rate, episodes)
    with torch.inference_mode(False), torch.enable_grad():
        x = features.detach().float()
        generate = WeightGenerator(x.shape[1], len(base), seed=seed).to(device, x.dtype)
        base_weight = nn.Parameter(unit(weight.detach().float()[base].to(device)))
        scale = nn.Parameter(torch.tensor(SCALE, device=device, dtype=x.dtype))
        optimizer = SGD(
            [*generate.parameters(), base_weight, scale], momentum=0.9, nesterov=True, weight_decay=weight_decay
        )
        for number in range(episodes):
            optimizer.param_groups[0]["lr"] = rate(number)
            episode = draw_episode(rng, members, base, shots=int(images[rng.choice(few)]))
            support, owner, rest, queries, target = (torch.from_numpy(part).to(device) for part in episode)
            both = torch.cat([base_weight[rest], generate(x[support], owner, base_weight[rest], rest)])
            optimizer.zero_grad()
            loss = F.cross_entropy(scale * unit(x[queries]) @ unit(both).T, target)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()

    with torch.no_grad():
        weight = weight.float().to(device).clone()
        place = torch.full((len(images),), -1, device=device)
        place[few] = torch.arange(len(few), device=device)
        owner = place[labels]
        weight[few] = generate(x[owner >= 0], owner[owner >= 0], base_weight, torch.arange(len(base), device=device))
        weight[base] = base_weight
        weight = scale * unit(weight)
    if not weight.isfinite().all():
        raise checks.InputError(
            f"learning_rate: expected one at which training does not diverge, got {learning_rate:g}"
        )
    return FoldedClassifier(weight, norm="unit", bias=bias_of_unseen(None, weight, counts, allow_unseen=allow_unseen))


class Episode(NamedTuple):
    """Some base classes taken for novel ones.

    support: images that the novel classes' weights are generated from. owner: which of them each shows, 0..M-1.
    rest: the other base classes, as places among the base classes, ascending. queries: images to be recognized.
    target: their classes, as places among `rest` and then the novel ones.
    """

    support: NDArray[np.int64]
    owner: NDArray[np.int64]
    rest: NDArray[np.int64]
    queries: NDArray[np.int64]
    target: NDArray[np.int64]


def draw_episode(rng: np.random.Generator, members: Members, base: NDArray[np.int64], *, shots: int) -> Episode:
    """Two fifths of the base classes, one at least, with `shots` images each; no image is both given and asked for.

    >>> members = Members.of(np.array([0] * 5 + [1] * 5), ClassCounts((5, 5)))
    >>> episode = draw_episode(np.random.default_rng(0), members, np.array([0, 1]), shots=3)
    >>> len(episode.support), len(episode.rest), len(episode.queries)
    (3, 1, 9)
    """
    num_novel = max(1, int(NOVEL * len(base)))
    order = rng.permutation(len(base))
    novel, rest = order[:num_novel], np.sort(order[num_novel:])

    def of_class(place: int) -> NDArray[np.int64]:
        start = members.starts[base[place]]
        return np.asarray(rng.permutation(members.images[start : start + members.sizes[base[place]]]))

    shuffled = [of_class(place) for place in novel.tolist()]
    known = rng.integers(len(rest), size=BASE_QUERIES * num_novel)
    asked = [rng.choice(mine[shots:], NOVEL_QUERIES) for mine in shuffled] + [
        of_class(place)[:1] for place in rest[known].tolist()
    ]
    return Episode(
        support=np.concatenate([mine[:shots] for mine in shuffled]),
        owner=np.repeat(np.arange(num_novel), shots),
        rest=rest,
        queries=np.concatenate(asked),
        target=np.concatenate([np.repeat(len(rest) + np.arange(num_novel), NOVEL_QUERIES), known]),
    )


def _means(values: Tensor, owner: Tensor) -> Tensor:
    num_owners = int(owner.max()) + 1
    sums = values.new_zeros(num_owners, values.shape[1]).index_add(0, owner, values)
    return sums / torch.bincount(owner, minlength=num_owners)[:, None]
