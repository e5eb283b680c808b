"""Train a classifier on features as they come, with no end in sight: one pass or many, one chunk or a hundred."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from tailwise import checks
from tailwise.adjust.nearest_mean import check_samples
from tailwise.seeds import mixed_seed
from tailwise.shapes import Float, Int

POWER = 8  # of the average over steps: half of its weight lies on the last 7 % of them
Classifier = TypeVar("Classifier", bound=nn.Module)


class Streamed(Generic[Classifier]):
    """A classifier that learns from chunks of features, instance-balanced, and can be used after any of them.

    AdamW at one learning rate, for nobody knows when to lower it; what a falling rate is for, the average over steps
    does, in which step s weighs about s^8 (polynomial-decay averaging, Shamir and Zhang 2013). It has a learning
    rate's noise taken out at every moment, so that where a stream is cut into chunks changes little.

    Args:
        classifier: features -> logits, untrained; kept, and holds the average from then on, in eval mode. Its
            buffers, such as a feature average, follow the last step.
        learning_rate: of every step; 0.1 is for normalized classifiers, whose weights turn by it over their length. No
            weight decay: the length of a normalized weight says nothing.

    >>> streamed = Streamed(tailwise.CausalClassifier(4, 2))
    >>> for chunk in torch.eye(4).repeat(8, 1).split(8):
    ...     streamed.learn(chunk, torch.tensor([0, 0, 1, 1]).repeat(2))
    >>> streamed.classifier(torch.eye(4)).argmax(dim=1)
    tensor([0, 0, 1, 1])
    """

    @torch.inference_mode(mode=False)  # what is made in that mode cannot be trained
    def __init__(self, classifier: Classifier, learning_rate: float = 0.1) -> None:
        self.classifier = classifier.eval()
        self.steps = 0
        self._moving = copy.deepcopy(classifier)
        checks.number("learning_rate", learning_rate, above=0)
        self._optimizer = AdamW(self._moving.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)

    def learn(
        self,
        features: Float[Tensor, "N D"],
        labels: Int[Tensor, " N"],
        *,
        epochs: int = 1,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        """Pass over a chunk `epochs` times.

        Args:
            features, labels: the chunk, [N, D] and [N]; features of any precision, no gradient goes to them.
            epochs: passes.
            batch_size: of a step; None is N / 100, but 8 at least and 1024 at most.
            seed: of the order.

        Raises:
            InputError: features and labels that do not fit, a setting outside its range, weights that diverge.
        """
        features = features.detach().to(next(self.classifier.parameters()).dtype)
        with torch.no_grad():
            labels = check_samples(features, labels, self.classifier(features[:1]).shape[1])
        checks.whole("epochs", epochs)
        size = min(1024, max(8, len(labels) // 100)) if batch_size is None else checks.whole("batch_size", batch_size)
        order = torch.Generator().manual_seed(mixed_seed(checks.whole("seed", seed, at_least=0)))
        self._moving.train()
        with torch.inference_mode(False), torch.enable_grad():
            for _ in range(epochs):
                for batch in torch.split(torch.randperm(len(labels), generator=order).to(labels.device), size):
                    self._optimizer.zero_grad()
                    loss = F.cross_entropy(self._moving(features[batch]), labels[batch])
                    torch.autograd.backward(loss)
                    self._optimizer.step()
                    self._average()
        for mine, moving in zip(self.classifier.buffers(), self._moving.buffers(), strict=True):
            mine.copy_(moving)
        if not all(parameter.isfinite().all() for parameter in self.classifier.parameters()):
            raise checks.InputError(f"learning_rate: training diverged after {self.steps} steps")

    @torch.no_grad()
    def _average(self) -> None:
        self.steps += 1
        share = (POWER + 1) / (POWER + self.steps)
        for mine, moving in zip(self.classifier.parameters(), self._moving.parameters(), strict=True):
            mine.lerp_(moving, share)
