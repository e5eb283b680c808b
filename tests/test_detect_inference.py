"""Which of all candidates are kept: the best of every class, each against its own class alone."""

import numpy as np
import pytest
import torch

from tailwise.detect.inference import Inference, best_places, boxes_at


def brute_force(boxes, scores, how):
    """Greedy NMS within each class over all candidates."""
    found = []
    for c in range(scores.shape[1]):
        kept = []
        for r in sorted(range(len(scores)), key=lambda r: -scores[r, c]):
            x1, y1, x2, y2 = boxes[r, c if boxes.shape[1] > 1 else 0]
            if scores[r, c] <= how.score_threshold or x2 <= x1 or y2 <= y1:
                continue
            overlaps = []
            for u1, v1, u2, v2 in kept:
                common = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
                overlaps.append(common / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - common))
            if all(overlap <= how.nms_threshold for overlap in overlaps):
                kept.append((x1, y1, x2, y2))
                found.append((scores[r, c], r, c))
    return [r * scores.shape[1] + c for _, r, c in sorted(found, reverse=True)[: how.per_image]]


@pytest.mark.parametrize("boxes_of_region", [1, 4])
def test_the_best_of_all_candidates_are_found_though_few_are_looked_at(boxes_of_region):
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 3, (90, boxes_of_region, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(-0.5, 14, (90, boxes_of_region, 2))], axis=2)
    boxes[:60] = [[2, 2, 9, 9]]  # the best are all alike: NMS leaves one for each class
    scores = rng.permutation(360).reshape(90, 4) / 720
    scores[:60] += 0.5
    for per_image in (3, 12, 300):  # of the 96 candidates that are looked at first for 12, NMS leaves 4
        how = Inference(score_threshold=0.1, nms_threshold=0.4, per_image=per_image)
        places = best_places(torch.tensor(boxes), torch.tensor(scores), how)
        assert places.tolist() == brute_force(boxes, scores, how)


def test_what_is_kept_of_a_class_depends_neither_on_its_number_nor_on_other_candidates():
    """The two overlap by 0.504, but by less than half once moved by 1,202 images in single precision."""
    pair = torch.tensor([[[900.06, 600.0, 908.06, 610.0]], [[902.7, 600.0, 910.7, 610.0]]])
    whole = torch.tensor([[[0.0, 0.0, 1333.0, 800.0]]])
    for boxes in (pair, torch.cat([pair, whole])):
        scores = torch.zeros(len(boxes), 1203)
        scores[:2, 1202] = torch.tensor([0.9, 0.8])
        scores[2:, 0] = 0.5
        assert (best_places(boxes, scores, Inference()) % 1203 == 1202).sum() == 1


def test_boxes_at_places():
    boxes = torch.arange(24.0).view(2, 3, 4)
    assert boxes_at(boxes, torch.tensor([4]), 3).tolist() == [boxes[1, 1].tolist()]
    assert boxes_at(boxes[:, :1], torch.tensor([4]), 3).tolist() == [boxes[1, 0].tolist()]
