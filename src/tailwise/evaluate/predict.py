"""Run a model over a split once."""

from collections.abc import Iterable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tailwise import checks
from tailwise.evaluate.store import Store
from tailwise.recognizer import Recognizer


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
