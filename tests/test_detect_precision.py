"""Average precision against LVIS's and COCO's definitions, in slow loops and by hand; the results json."""

import json

import numpy as np
import pytest

from tailwise.checks import InputError
from tailwise.detect import (
    Category,
    Detections,
    ImageTruth,
    Truth,
    average_precision,
    class_precision,
    decode,
    encode,
    read_results,
    write_results,
)

SIDE = 32


def drawn(boxes):
    """Filled boxes as masks, with a corner cut off: a box's overlap is not its mask's."""
    masks = np.zeros((len(boxes), SIDE, SIDE), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, np.asarray(boxes).round().astype(int), strict=True):
        mask[y1:y2, x1:x2] = 1
        mask[y1 : y1 + (y2 - y1) // 2, x1 : x1 + (x2 - x1) // 3] = 0
    return encode(masks)


def image(image_id, boxes, labels, crowd=(), negative=(), not_exhaustive=()):
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return ImageTruth(
        image_id=image_id,
        file=f"{image_id}.png",
        height=SIDE,
        width=SIDE,
        boxes=boxes,
        labels=np.array(labels, dtype=np.int64),
        is_crowd=np.isin(np.arange(len(boxes)), list(crowd)),
        areas=np.full(len(boxes), 9.0),
        annotation_ids=np.arange(1, len(boxes) + 1),
        masks=drawn(boxes),
        negative=frozenset(negative),
        not_exhaustive=frozenset(not_exhaustive),
    )


def detections(image_id, boxes, scores, labels):
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Detections(
        image_id, boxes, np.array(scores, dtype=np.float32), np.array(labels, dtype=np.int64), drawn(boxes)
    )


def truth(*images, frequencies="rcf", federated=True):
    # ids with holes, and not those that labels are
    categories = tuple(Category(10 * c + 3, f"class {c}", f) for c, f in enumerate(frequencies))
    return Truth(categories, images, federated)


# --- the oracle ---------------------------------------------------------------------------------------------------


def overlap_of_boxes(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common, (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])


def overlap_of_masks(a, b):
    return float((a & b).sum()), float(a.sum()), float(b.sum())


def slow_precision(known, found, kind):
    """AP at each IoU and of each class, from Gupta et al. 2019 (federated) and Lin et al. 2014 (not)."""
    found = {one.image_id: one for one in found}
    result = np.full((10, known.num_classes), np.nan)
    overlap = {"box": overlap_of_boxes, "mask": overlap_of_masks}[kind]
    pool = []  # image, label, score, shape of each detection that counts, best score first within its image
    for one_image in sorted(known.images, key=lambda i: i.image_id):
        one = found.get(one_image.image_id)
        if one is None:
            continue
        shapes = one.boxes.astype(np.float64) if kind == "box" else decode(one.masks, (SIDE, SIDE))
        order = sorted(range(len(one)), key=lambda i: -one.scores[i])
        if known.federated:
            order = order[:300]
        pool += [(one_image.image_id, int(one.labels[i]), float(one.scores[i]), shapes[i]) for i in order]
    for label in range(1, known.num_classes + 1):
        positives, judged = 0, []
        for one_image in sorted(known.images, key=lambda i: i.image_id):
            own = [i for i, other in enumerate(one_image.labels) if other == label]
            if known.federated and not own and label not in one_image.negative:
                continue
            shapes = one_image.boxes if kind == "box" else decode(one_image.masks, (SIDE, SIDE))
            real = [shapes[i] for i in own if not one_image.is_crowd[i]]
            crowds = [shapes[i] for i in own if one_image.is_crowd[i]]
            positives += len(real)
            mine = [entry for entry in pool if entry[:2] == (one_image.image_id, label)]
            for _, _, score, shape in mine if known.federated else mine[:100]:
                ious = [common / (a + b - common) for common, a, b in (overlap(shape, other) for other in real)]
                inside = [common / a for common, a, _ in (overlap(shape, other) for other in crowds)]
                judged.append((one_image, score, ious, inside))
        if not positives:
            continue
        for row in range(10):
            least = 0.5 + 0.05 * row
            outcomes = []  # score, right; in LVIS's order of images and scores
            taken = set()
            for one_image, score, ious, inside in judged:
                best, match = least, None
                for i, iou in enumerate(ious):
                    if (one_image.image_id, i) not in taken and iou >= best - 1e-12:
                        best, match = iou, i
                if match is not None:
                    taken.add((one_image.image_id, match))
                    outcomes.append((score, True))
                elif any(part >= least - 1e-12 for part in inside):
                    continue
                elif not (known.federated and label in one_image.not_exhaustive):
                    outcomes.append((score, False))
            outcomes.sort(key=lambda outcome: -outcome[0])
            right = np.cumsum([hit for _, hit in outcomes])
            recall, precision = right / positives, right / np.arange(1, len(outcomes) + 1)
            total = 0.0
            for step in range(101):
                reached = [p for r, p in zip(recall, precision, strict=True) if r >= step / 100 - 1e-12]
                total += max(reached, default=0.0)
            result[row, label - 1] = 100 * total / 101
    return result


def random_case(seed, *, federated, per_image):
    """Detections around the truth and elsewhere, with ties in the scores, wrong labels and near misses."""
    rng = np.random.default_rng(seed)
    images, found = [], []
    num_classes = 6
    for image_id in rng.permutation(100)[:7].tolist():
        count = int(rng.integers(0, 7))
        corners = rng.integers(0, 20, (count, 2))
        boxes = np.concatenate([corners, corners + rng.integers(4, 12, (count, 2))], axis=1)
        labels = rng.integers(1, num_classes, count)  # the last class is in no truth
        absent = sorted(set(range(1, num_classes + 1)) - set(labels.tolist()))
        crowd = [] if federated else [i for i in range(count) if rng.random() < 0.3]
        images.append(
            image(
                image_id,
                boxes,
                labels,
                crowd=crowd,
                negative=[c for c in absent if rng.random() < 0.5],
                not_exhaustive=[c for c in set(labels.tolist()) if rng.random() < 0.4],
            )
        )
        guesses = int(per_image * rng.random()) + 1
        near = boxes[rng.integers(0, count, guesses)] if count else np.tile([4, 4, 14, 14], (guesses, 1))
        moved = near + rng.integers(-3, 4, (guesses, 4)) * (rng.random((guesses, 1)) < 0.7)
        moved = np.clip(np.concatenate([moved[:, :2], np.maximum(moved[:, 2:], moved[:, :2] + 2)], 1), 0, SIDE)
        moved[:, :2] = np.minimum(moved[:, :2], moved[:, 2:] - 1)
        found.append(
            detections(image_id, moved, rng.random(guesses).round(1), rng.integers(1, num_classes + 1, guesses))
        )
    return truth(*images, frequencies="rrccff", federated=federated), found[1:]  # one image is left without


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("federated", [True, False])
@pytest.mark.parametrize("per_image", [30, 700])  # 700: more than any limit
def test_precision_is_that_of_the_definition(kind, federated, per_image):
    measured = 0
    for seed in range(4 if per_image == 30 else 1):
        known, found = random_case(seed, federated=federated, per_image=per_image)
        expected = slow_precision(known, found, kind)
        np.testing.assert_allclose(class_precision(known, found, kind), expected, atol=1e-6)
        measured += np.nanmax(expected) > np.nanmin(expected)
        assert np.isnan(expected[:, -1]).all()
        figures = average_precision(known, found, kind)
        groups = {"APr": expected[:, :2], "APc": expected[:, 2:4], "APf": expected[:, 4:]}
        rows = {"AP": expected, "AP50": expected[0], "AP75": expected[5], **groups}
        assert figures == {name: pytest.approx(np.nanmean(row), abs=1e-6) for name, row in rows.items()}
    assert measured


# --- by hand ------------------------------------------------------------------------------------------------------

CAT, DOG = 1, 2
THERE, ELSEWHERE = [2, 2, 12, 12], [18, 18, 30, 30]


def ap(known, *found, kind="box"):
    return average_precision(known, found, kind)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_a_find_after_an_error_is_worth_half(kind):
    found = detections(1, [ELSEWHERE, THERE], [0.9, 0.8], [CAT, CAT])
    expected = {"AP": 50, "AP50": 50, "AP75": 50, "APr": 50, "APc": None, "APf": None}
    assert ap(truth(image(1, [THERE], [CAT])), found, kind=kind) == pytest.approx(expected)


def test_what_matches_nothing_is_no_error_where_not_all_are_annotated():
    found = detections(1, [ELSEWHERE, THERE], [0.9, 0.8], [CAT, CAT])
    assert ap(truth(image(1, [THERE], [CAT], not_exhaustive=[CAT])), found)["AP"] == pytest.approx(100)


@pytest.mark.parametrize(("negative", "expected"), [([], 100), ([DOG], 50)])
def test_an_absent_category_is_judged_only_where_its_absence_is_verified(negative, expected):
    """A dog seen where nobody looked for dogs."""
    known = truth(image(1, [THERE], [CAT], negative=negative), image(2, [THERE], [DOG]))
    found = [detections(1, [THERE], [0.9], [DOG]), detections(2, [THERE], [0.8], [DOG])]
    assert class_precision(known, found)[:, 1] == pytest.approx(expected)


@pytest.mark.parametrize(("before", "expected"), [(299, 100), (300, 0)])
def test_only_three_hundred_count_and_those_nobody_judges_take_their_places(before, expected):
    found = detections(1, [THERE] * (before + 1), [*[0.9] * before, 0.1], [*[DOG] * before, CAT])
    assert ap(truth(image(1, [THERE], [CAT])), found)["APr"] == pytest.approx(expected)


@pytest.mark.parametrize(("before", "expected"), [(99, 1), (100, 0)])
def test_coco_counts_a_hundred_of_each_category(before, expected):
    known = truth(image(1, [THERE, THERE], [CAT, DOG]), federated=False)
    boxes, labels = [ELSEWHERE] * before + [THERE, THERE], [CAT] * before + [CAT, DOG]
    found = detections(1, boxes, [0.9] * before + [0.1, 0.05], labels)
    assert class_precision(known, [found])[0, :2] == pytest.approx([expected, 100])


@pytest.mark.parametrize(("crowd", "expected"), [((), 50 / 101 * 51), ((1,), 100)])
def test_what_lies_in_a_crowd_is_neither_error_nor_find(crowd, expected):
    known = truth(image(1, [THERE, [16, 16, 32, 32]], [CAT, CAT], crowd=crowd), federated=False)
    found = detections(1, [ELSEWHERE, THERE], [0.9, 0.8], [CAT, CAT])
    at_75 = class_precision(known, [found])[5, 0]  # the overlap of ELSEWHERE and what is there is 144 / 256
    assert at_75 == pytest.approx(expected)


def test_overlaps_decide_by_threshold():
    """9 of 10 rows overlap: right up to an IoU of 0.9, not at 0.95."""
    found = detections(1, [[2, 2, 12, 11]], [0.5], [CAT])
    assert class_precision(truth(image(1, [THERE], [CAT])), [found])[:, 0] == pytest.approx([100] * 9 + [0])


def test_a_class_that_is_not_there_has_no_figure_and_one_never_found_has_zero():
    figures = ap(truth(image(1, [THERE, ELSEWHERE], [CAT, DOG])), detections(1, [THERE], [0.5], [CAT]))
    assert figures == pytest.approx({"AP": 50, "AP50": 50, "AP75": 50, "APr": 100, "APc": 0, "APf": None})
    assert ap(truth(image(1, [THERE], [CAT]))) == {**dict.fromkeys(figures, 0), "APc": None, "APf": None}


def test_more_classes_than_a_block():
    """LVIS's 1,203 are evaluated a part at a time."""
    known = truth(image(1, [THERE] * 5, [1, 100, 101, 200, 250]), frequencies="r" * 250)
    found = detections(1, [THERE, THERE, ELSEWHERE, THERE], [0.9, 0.8, 0.7, 0.6], [100, 101, 200, 250])
    per_class = class_precision(known, [found])
    assert per_class.shape == (10, 250)
    assert {c + 1: per_class[0, c] for c in np.flatnonzero(~np.isnan(per_class[0]))} == pytest.approx(
        {1: 0, 100: 100, 101: 100, 200: 0, 250: 100}
    )


def test_what_cannot_be_judged_is_named():
    known, found = truth(image(1, [THERE], [CAT])), detections(1, [THERE], [0.5], [CAT])
    boxes_only = Detections(1, found.boxes, found.scores, found.labels)
    small = Detections(1, found.boxes, found.scores, found.labels, encode(np.ones((1, 4, 4), dtype=bool)))
    for wrong, kind, message in [
        ([detections(9, [], [], [])], "box", "detections: expected images of the truth, got image 9"),
        ([found, found], "box", "detections: expected an image once, got image 1 twice"),
        ([detections(1, [THERE], [0.5], [4])], "box", r"expected labels in 1\.\.3, got 4\.\.4 in image 1"),
        ([detections(1, [THERE], [0.5], [0])], "box", r"expected labels in 1\.\.3, got 0\.\.0 in image 1"),
        ([boxes_only], "mask", r"detections: expected masks, got boxes only \(first: image 1\)"),
        ([small], "mask", r"expected masks of \[32, 32\], got others in image 1"),
    ]:
        with pytest.raises(InputError, match=message):
            class_precision(known, wrong, kind)
    with pytest.raises(InputError, match="truth: expected images with annotations, got none"):
        class_precision(truth(image(1, [], [])), [])
    with pytest.raises(InputError, match=r"scores of image 1: expected finite numbers"):
        detections(1, [THERE], [np.nan], [CAT])
    with pytest.raises(InputError, match="image 1: expected labels for each of 1 scores"):
        detections(1, [THERE], [0.5], [CAT, DOG])


# --- the results json ---------------------------------------------------------------------------------------------


def test_results_are_what_the_server_takes_and_read_back(tmp_path):
    known = truth(image(5, [THERE], [CAT]), image(2, [], []))
    found = detections(5, [[1.234567, 2, 11, 12.5], ELSEWHERE], [0.1234567, 1e-5], [DOG, 3])
    write_results(tmp_path / "r.json", [found], known)
    entries = json.loads((tmp_path / "r.json").read_text())
    assert [set(entry) for entry in entries] == [{"image_id", "category_id", "bbox", "score", "segmentation"}] * 2
    assert [entry["category_id"] for entry in entries] == [13, 23]
    assert entries[0]["bbox"] == [1.23, 2.0, 9.77, 10.5]
    assert entries[0]["segmentation"] == {"size": [SIDE, SIDE], "counts": found.masks[0].counts.decode()}
    (read,) = read_results(tmp_path / "r.json", known)
    assert (read.image_id, read.labels.tolist(), read.masks) == (5, [DOG, 3], found.masks)
    assert read.scores.tolist() == found.scores.tolist()  # to the last bit
    np.testing.assert_allclose(read.boxes, found.boxes, atol=0.011)


def test_results_hold_the_best_three_hundred(tmp_path):
    found = detections(1, [THERE] * 301, [0.1, *[0.5] * 300], [CAT] * 301)
    for federated, count in ((True, 300), (False, 301)):
        known = truth(image(1, [THERE], [CAT]), federated=federated)
        write_results(tmp_path / "r.json", [found], known)
        assert len(json.loads((tmp_path / "r.json").read_text())) == count
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_results_of_other_tools_may_have_boxes_or_masks_alone(tmp_path):
    known = truth(image(1, [THERE], [CAT]))
    mask = {"size": [SIDE, SIDE], "counts": drawn([THERE])[0].counts.decode()}
    (tmp_path / "r.json").write_text(
        json.dumps([{"image_id": 1, "category_id": 3, "score": 1, "bbox": [2, 2, 10, 10], "segmentation": []}])
    )
    assert average_precision(known, read_results(tmp_path / "r.json", known))["AP"] == pytest.approx(100)
    (tmp_path / "r.json").write_text(json.dumps([{"image_id": 1, "category_id": 3, "score": 1, "segmentation": mask}]))
    (read,) = read_results(tmp_path / "r.json", known)
    assert read.boxes.tolist() == [THERE]
    assert average_precision(known, [read], "mask")["AP"] == pytest.approx(100)


def test_a_half_written_file_never_stands_there(tmp_path):
    known = truth(image(1, [THERE], [CAT]))
    good = detections(1, [THERE], [0.5], [CAT])
    for wrong, message in [
        ([good, good], "at most once, got image 1"),
        ([detections(7, [], [], [])], "at most once, got image 7"),
        ([detections(1, [THERE], [0.5], [9])], r"expected labels in 1\.\.3 in image 1"),
    ]:
        with pytest.raises(InputError, match=message):
            write_results(tmp_path / "r.json", wrong, known)
    assert not list(tmp_path.iterdir())


def test_broken_results_are_named_by_their_place(tmp_path):
    known, path = truth(image(1, [THERE], [CAT])), tmp_path / "r.json"
    good = {"image_id": 1, "category_id": 3, "score": 0.5, "bbox": [2, 2, 10, 10]}
    for wrong, message in [
        ({**good, "image_id": 8}, "expected an image of the truth, got 8"),
        ({**good, "category_id": 1}, "expected a category of the truth, got 1"),
        ({**good, "score": None}, "score: expected a finite number, got None"),
        ({**good, "bbox": [1, 2, 3]}, "bbox: expected four numbers x, y, width, height"),
        ({**good, "bbox": [9, 9, -2, 3]}, r"bbox: expected a width and height of at least 0, got \[9, 9, -2, 3\]"),
        ({**good, "bbox": [9, 9, 2, -3]}, "bbox: expected a width and height of at least 0"),
        (7, "expected a json object, got 7"),
    ]:
        path.write_text(json.dumps([good, wrong]))
        with pytest.raises(InputError, match=f"r.json: detection 1: {message}"):
            read_results(path, known)
    for broken in ("[{", "[" * 100_000):
        path.write_text(broken)
        with pytest.raises(InputError, match="expected results as json"):
            read_results(path, known)
    path.write_text("{}")
    with pytest.raises(InputError, match="expected a list of detections, got a dict"):
        read_results(path, known)
