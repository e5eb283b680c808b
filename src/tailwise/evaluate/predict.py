"""Run a model over a split once."""

from collections.abc import Iterable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tailwise import checks
from tailwise.evaluate.store import Store
from tailwise.recognizer import Recognizer


class NoClassifier(nn.Module):
    """In the place of a classifier, where features alone are wanted: no logits, [N, 0]."""

    def forward(self, features: Tensor) -> Tensor:
        return features[:, :0]


def extract(backbone: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, ids: NDArray[Any], split: str) -> Store:
    """Features of every image of a split, in eval mode, without logits: the way to a foundation model's features.

    Args:
        backbone: images -> features [N, D]; left in eval mode.
        batches, ids, split: as in `predict`.

    Raises:
        InputError: as `predict`.

    >>> batches = [(torch.ones(2, 1, 2, 2), torch.tensor([0, 1]))]
    >>> store = extract(torch.nn.Flatten(), batches, ids=np.array(["a", "b"]), split="train")
    >>> store.features.shape, store.logits.shape
    ((2, 4), (2, 0))
    """
    return predict(Recognizer(backbone, NoClassifier()), batches, ids=ids, checkpoint="", split=split)


@torch.no_grad()
def predict(
    model: Recognizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    ids: NDArray[Any],
    checkpoint: str,
    split: str,
) -> Store:
    """Features and logits of every image of a split, in eval mode.

    Args:
        model: left in eval mode.
        batches: (images, labels), each image once, in the order of `ids`.
        ids: sample ids, [N].
        checkpoint: digest of the checkpoint the model was loaded from or saved to; "" if it has none.
        split: its name.

    Raises:
        InputError: no batches, features that are not finite, not one id for each image.
    """
    model.eval()
    features, logits, labels = [], [], []
    for images, target in batches:
        x = model.backbone(images)
        features.append(x.float().cpu())
        logits.append(model.classifier(x).float().cpu())
        labels.append(target.cpu())
    if not labels:
        raise checks.InputError(f"batches: expected images in split '{split}', got none")
    return Store(
        torch.cat(features).numpy(), torch.cat(logits).numpy(), torch.cat(labels).numpy(), ids, checkpoint, split
    )
