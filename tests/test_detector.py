"""Detectors: Eq. 9 in every stage, averages over stages, hard cases, masks, what is shared between ways to predict."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tailwise.checks import InputError
from tailwise.classifiers import CapsuleClassifier, CausalClassifier, CosineClassifier, LinearClassifier
from tailwise.counts import ClassCounts
from tailwise.detect import Example, decode, encode
from tailwise.detect.backbones import SmallFPN, resnet_fpn
from tailwise.detect.detector import Detector, Sizes
from tailwise.detect.inference import Inference, StageLogits, class_scores
from tailwise.detect.mask_sampling import cut_out, pasted
from tailwise.detect.region_losses import EachAgainstTheRest, Federated, WithBackground
from tailwise.detect.region_stages import Instances, MaskHead, Sampled, mask_loss
from tailwise.losses import CrossEntropy

C = 5
SIZES = Sizes(
    min_size=64,
    max_size=64,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    anchors=(16, 24, 32, 48),
    proposals=(30, 20),
    regions=16,
    width=8,
    mask_width=4,
)
FRAMEWORKS = ("mask-rcnn", "cascade", "htc")


def cross_entropy():
    return WithBackground(C, CrossEntropy(reduction="none"))


CAUSAL = partial(CausalClassifier, momentum=0.9)


def small(framework="cascade", classifier=CAUSAL, loss=cross_entropy, **settings):
    torch.manual_seed(0)
    return Detector(
        SmallFPN(width=8, out_channels=8), C, classifier, loss, framework=framework, sizes=SIZES, **settings
    )


def example(boxes, labels, crowd=False, side=64, image_id=1):
    """An image of noise in which each box is a bright rectangle, its own mask."""
    generator = torch.Generator().manual_seed(image_id)
    image = torch.randint(0, 90, (3, side, side), dtype=torch.uint8, generator=generator)
    masks = np.zeros((len(boxes), side, side), dtype=np.uint8)
    for mask, (x1, y1, x2, y2), label in zip(masks, boxes, labels, strict=True):
        mask[y1:y2, x1:x2] = 1
        image[label % 3, y1:y2, x1:x2] = 250
    return Example(
        image=image,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        is_crowd=torch.full((len(boxes),), crowd),
        rles=encode(masks) if len(boxes) else (),
        image_id=image_id,
    )


TWO = example([(5, 8, 30, 30), (34, 30, 60, 58)], [2, 5])


@pytest.fixture(scope="module")
def trained():
    """A cascade whose averages have moved, in eval mode, and what it sees in two images of different size."""
    detector = small()
    with torch.no_grad():
        for _ in range(2):
            detector([TWO, example([(10, 10, 40, 36)], [1], image_id=2)])
    detector.eval()
    images = [TWO.image, torch.nn.functional.pad(TWO.image, (0, 32))]
    return detector, images, detector.look(images)


def oracle(features, classifier, alpha, exempt):
    """One stage by the definitions, in loops: Eq. 7, Eq. 8, softmax of both, Eq. 9."""
    weight = classifier.weight.detach().double().numpy()
    mean = classifier.average.value.double().numpy()
    heads, tau, gamma = classifier.num_heads, classifier.tau, classifier.gamma
    width = features.shape[1] // heads
    rows = []
    for x in features.double().numpy():
        y, effect = np.zeros(len(weight)), np.zeros(len(weight))
        for k in range(heads):
            part = slice(k * width, (k + 1) * width)
            size = np.linalg.norm(x[part])
            if size == 0:
                continue
            direction = mean[part] / np.linalg.norm(mean[part])
            cosine = x[part] @ direction / size
            for c, w in enumerate(weight[:, part]):
                y[c] += tau / heads * (w @ x[part]) / ((np.linalg.norm(w) + gamma) * size)
                effect[c] += tau / heads * cosine * (w @ direction) / (np.linalg.norm(w) + gamma)
        p = np.exp(y) / np.exp(y).sum()
        q = np.exp(y - alpha * effect) / np.exp(y - alpha * effect).sum()
        rows.append([(1 - p[0]) * q[i] / (1 - q[0]) if exempt else q[i] for i in range(1, len(weight))])
    return np.array(rows)


@pytest.mark.parametrize("exempt", [True, False])
@pytest.mark.parametrize("kind", [CausalClassifier, CosineClassifier])
def test_each_stage_is_eq_9_and_their_probabilities_are_averaged(kind, exempt):
    detector = small(classifier=kind)
    with torch.no_grad():
        detector([TWO])
    detector.eval()
    seen = {}
    for number, stage in enumerate(detector.stages):
        stage.hidden.register_forward_hook(partial(lambda n, module, given, x: seen.update({n: x}), number))
    regions = detector.look([TWO.image])
    stages = [oracle(seen[n], stage.classifier.classifier, 1.5, exempt) for n, stage in enumerate(detector.stages)]
    assert not np.allclose(stages[0], stages[1], atol=1e-4)  # each stage has weights and a direction of its own
    for n, expected in enumerate(stages):
        alone = class_scores(regions.stages[n : n + 1], cross_entropy(), alpha=1.5, exempt_background=exempt)
        np.testing.assert_allclose(alone.numpy(), expected, atol=2e-5)
    together = class_scores(regions.stages, cross_entropy(), alpha=1.5, exempt_background=exempt)
    np.testing.assert_allclose(together.numpy(), np.mean(stages, axis=0), atol=2e-5)


def test_without_tde_logits_are_averaged():
    stages = [StageLogits(torch.tensor([[0.0, 4.0, 0.0]]), None), StageLogits(torch.tensor([[2.0, 0.0, 0.0]]), None)]
    y = np.array([1.0, 2.0, 0.0])
    expected = (np.exp(y) / np.exp(y).sum())[1:]
    scores = class_scores(stages, WithBackground(2, CrossEntropy(reduction="none")))
    np.testing.assert_allclose(scores[0].numpy(), expected, rtol=1e-6)


def test_scores_are_probabilities_that_a_threshold_can_be_set_on(trained):
    detector, _, regions = trained
    every, strict = (Inference(alpha=1.5, score_threshold=t) for t in (0.0, 0.2))
    all_found, found = (detector.detections(regions, how)[0][0] for how in (every, strict))
    assert 0 < len(found) < len(all_found)
    assert found.scores.min() > 0.2
    assert all_found.scores.max() > 1.5 / (C + 1)  # a second softmax would flatten them all
    assert (np.diff(all_found.scores) <= 0).all()
    nothing = detector.detections(regions, Inference(score_threshold=0.999))[0][0]
    assert (len(nothing), nothing.boxes.shape, nothing.masks) == (0, (0, 4), ())


def test_alpha_0_with_one_stage_changes_nothing():
    detector = small("mask-rcnn")
    with torch.no_grad():
        detector([TWO])
    regions = detector.eval().look([TWO.image])
    own, zero = (class_scores(regions.stages, cross_entropy(), alpha=alpha) for alpha in (None, 0.0))
    torch.testing.assert_close(own, zero)


def test_exemption_keeps_the_probability_of_being_something(trained):
    _, _, regions = trained
    stage = regions.stages[:1]
    own, kept, not_kept = (
        class_scores(stage, cross_entropy(), alpha=alpha, exempt_background=exempt).sum(dim=1)
        for alpha, exempt in ((None, True), (1.5, True), (1.5, False))
    )
    torch.testing.assert_close(own, kept)
    assert not torch.allclose(own, not_kept, atol=1e-3)


def test_ways_to_predict_share_regions_and_masks(trained):
    detector, _, regions = trained
    hows = Inference(), Inference(alpha=1.0), Inference(alpha=2.0, exempt_background=False, per_image=7)
    together = detector.detections(regions, *hows)
    for how, answers in zip(hows, together, strict=True):
        for answer, alone in zip(answers, detector.detections(regions, how)[0], strict=True):
            for name in ("boxes", "scores", "labels"):
                np.testing.assert_array_equal(getattr(answer, name), getattr(alone, name))
            assert answer.masks == alone.masks
    assert len(together[2][0]) == 7
    assert not np.array_equal(together[0][0].labels, together[1][0].labels)


def test_an_image_alone_or_in_a_batch_is_the_same(trained):
    detector, images, regions = trained
    how = Inference(alpha=1.5, score_threshold=0.01)
    together = detector.detections(regions, how)[0]
    for image, answer in zip(images, together, strict=True):
        alone = detector.detections(detector.look([image]), how)[0][0]
        assert len(alone) == len(answer)
        np.testing.assert_allclose(alone.scores, answer.scores, atol=1e-5)
    wide = together[1]
    assert wide.boxes[:, 2].max() <= 96  # in pixels of the image as it was
    assert wide.boxes[:, 2].max() > 64
    assert all(mask[:2] == (64, 96) for mask in wide.masks)


@pytest.mark.parametrize("trains", [True, False])
def test_regions_are_cut_from_where_they_are_whatever_image_is_seen_first(trains):
    """Resized it is 12 pixels high, padded 32: by the former, the finest map would have half its size."""
    square = example([(2, 2, 28, 28)], [1], side=30)
    masks = np.pad(square.masks.numpy(), ((0, 0), (0, 0), (0, 120)))
    strip = replace(square, image=torch.nn.functional.pad(square.image, (0, 120)), rles=encode(masks))
    detector = small().train(trains)
    with torch.no_grad():
        if trains:
            detector([strip])
        else:
            detector.detections(detector.look([strip.image]), Inference(per_image=5))
    pools = [detector.mask_pool, *(stage.pool for stage in detector.stages)]
    assert [pool.scales for pool in pools] == [[1 / 4, 1 / 8, 1 / 16]] * 4


HARD = {
    "no annotation": [example([], [])],
    "all crowds": [example([(2, 2, 40, 40)], [3], crowd=True)],
    "a box without area": [example([(7, 7, 7, 30)], [3])],
    "no foreground in the batch": [example([], []), example([(2, 2, 40, 40)], [3], crowd=True, image_id=2)],
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", HARD)
def test_what_there_is_nothing_to_learn_from_moves_no_average_and_breaks_nothing(name, framework):
    detector = small(framework)
    losses = detector(HARD[name])
    assert all(loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for parameter in detector.parameters():  # none without a gradient: processes that train together meet in each
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    for stage in detector.stages:
        assert not stage.classifier.classifier.average.value.any()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_everything_learns_and_every_average_moves(framework):
    detector = small(framework)
    losses = detector([TWO, HARD["no annotation"][0]])
    several = framework != "mask-rcnn"
    assert len(detector.stages) == len(detector.mask_heads) == (3 if several else 1)
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg"} | {
        f"{kind}_{n}" for kind in ("class", "box", "mask") for n in range(len(detector.stages))
    }
    torch.stack(list(losses.values())).sum().backward()
    learning = [p for name, p in detector.named_parameters() if not name.endswith("regressor.bias")]
    assert sum(bool(p.grad.any()) for p in learning) > 0.95 * len(learning)
    directions = [stage.classifier.classifier.average.value for stage in detector.stages]
    assert all(direction.any() for direction in directions)
    assert not several or not torch.equal(directions[0], directions[1])


@pytest.mark.parametrize("framework", ["cascade", "htc"])
def test_a_stage_counts_by_its_weight(framework, monkeypatch):
    detector, plain = small(framework), small(framework)
    with torch.no_grad():
        for stage in (*detector.stages, *plain.stages):
            stage.regressor.bias.fill_(0.1)
    monkeypatch.setattr(plain, "stage_weights", (1.0, 1.0, 1.0))
    torch.manual_seed(1)
    weighted = detector([TWO])
    torch.manual_seed(1)
    losses = plain([TWO])
    for kind in ("class", "box", "mask"):
        assert losses[f"{kind}_1"] > 1e-3
        for n, weight in enumerate((1, 0.5, 0.25)):
            torch.testing.assert_close(weighted[f"{kind}_{n}"], weight * losses[f"{kind}_{n}"])


def test_a_mask_is_the_mean_over_stages_and_each_sees_the_one_before(monkeypatch):
    detector = small("htc").eval()
    given, answers = [], [9.0, 0.5, -9.0]  # 1, 0.6 and 0, of which the mean is more than half

    def features(x, previous=None, own=detector.mask_heads[0].convolutions):
        given.append(previous)
        return own(x)

    for head, answer in zip(detector.mask_heads, answers, strict=True):
        monkeypatch.setattr(head, "features", features)
        monkeypatch.setattr(
            head, "forward", lambda seen, labels, answer=answer: torch.full((len(labels), 28, 28), answer)
        )
    (found,) = detector.detections(detector.look([TWO.image]), Inference(per_image=5))[0]
    assert decode(found.masks, (64, 64)).any(axis=(1, 2)).all()
    assert [one is None for one in given] == [True, False, False]


def test_half_precision_moves_boxes_in_full(monkeypatch):
    detector, seen = small(), []
    detector.rpn.anchor_generator.register_forward_hook(lambda module, given, anchors: seen.extend(anchors))
    detector.rpn.register_forward_hook(lambda module, given, answer: seen.extend(answer[0]))
    for stage in detector.stages:

        def moved(deltas, boxes, sizes, own=stage.moved):
            seen.extend([*boxes, *own(deltas, boxes, sizes)])
            return own(deltas, boxes, sizes)

        monkeypatch.setattr(stage, "moved", moved)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector([TWO])
    assert {boxes.dtype for boxes in seen} == {torch.float32}
    assert all(loss.isfinite() for loss in losses.values())
    wide = torch.cat([boxes.flatten() for boxes in seen])
    assert not torch.equal(wide, wide.bfloat16().float())


def test_stages_are_those_of_the_paper():
    for framework, ious in (("mask-rcnn", [0.5]), ("cascade", [0.5, 0.6, 0.7]), ("htc", [0.5, 0.6, 0.7])):
        detector = small(framework)
        assert [stage.torchvision.proposal_matcher.high_threshold for stage in detector.stages] == ious
        assert detector.stage_weights == (1.0, 0.5, 0.25)[: len(ious)]
        assert detector.stages[0].boxes_of_region == (C if framework == "mask-rcnn" else 1)
        deviations = [1 / weight for stage in detector.stages for weight in stage.torchvision.box_coder.weights[1:3]]
        assert deviations == pytest.approx([0.1, 0.2, 0.05, 0.1, 0.033, 0.067][: 2 * len(ious)])
        assert {stage.torchvision.fg_bg_sampler.positive_fraction for stage in detector.stages} == {0.25}
        rpn = detector.rpn
        assert (rpn.proposal_matcher.high_threshold, rpn.proposal_matcher.low_threshold) == (0.7, 0.3)
        assert (rpn.nms_thresh, rpn.fg_bg_sampler.batch_size_per_image) == (0.7, 256)


def test_information_flows_between_masks_in_htc_alone():
    for framework, flows in (("cascade", False), ("htc", True)):
        detector = small(framework)
        detector([TWO])["mask_2"].backward()
        first = detector.mask_heads[0]
        assert isinstance(first, MaskHead)
        assert bool(first.convolutions[0].weight.grad is not None) is flows
        assert (detector.mask_heads[1].previous is not None) is flows


@pytest.mark.parametrize("framework", ["cascade", "htc"])
def test_a_stage_starts_from_the_boxes_that_the_one_before_made_better(framework, monkeypatch):
    detector = small(framework)
    given, moved = {n: [] for n in range(3)}, {}
    for n, stage in enumerate(detector.stages):

        def sample(proposals, truths, n=n, own=stage.sample):
            given[n].append([part.clone() for part in proposals])
            return own(proposals, truths)

        def better(deltas, boxes, sizes, n=n, own=stage.moved):
            moved[n] = own(deltas, boxes, sizes)
            return moved[n]

        monkeypatch.setattr(stage, "sample", sample)
        monkeypatch.setattr(stage, "moved", better)
    detector([TWO])
    for n in range(2):
        (start,) = given[n + 1][0]
        assert not start.requires_grad
        own = len(moved[n][0]) - len(start)
        assert 0 < own <= 2  # the instances' own boxes are left out; the next stage adds them again
        assert all((start_box == moved[n][0][:, 0]).all(dim=1).any() for start_box in start)
        if framework == "htc":  # masks are learned on them, too
            assert torch.equal(given[n][1][0], start)
    assert [len(calls) for calls in given.values()] == ([2] * 3 if framework == "htc" else [1] * 3)


def test_in_prediction_too_a_stage_starts_from_the_boxes_of_the_one_before(monkeypatch):
    detector, given, moved = small().eval(), [], []
    for stage in detector.stages:
        torch.nn.init.constant_(stage.regressor.bias, 0.2)

        def features(maps, boxes, sizes, own=stage.features):
            given.append(boxes[0])
            return own(maps, boxes, sizes)

        def better(deltas, boxes, sizes, own=stage.moved):
            moved.append(own(deltas, boxes, sizes)[0])
            return own(deltas, boxes, sizes)

        monkeypatch.setattr(stage, "features", features)
        monkeypatch.setattr(stage, "moved", better)
    regions = detector.look([TWO.image])
    for start, before in zip([*given[1:], regions.boxes[0][:, 0]], moved, strict=True):
        assert torch.equal(start, before[:, 0])
    assert not torch.equal(given[0], given[1])


@pytest.mark.parametrize("framework", ["cascade", "mask-rcnn"])
def test_box_loss_by_its_definition(framework):
    """In mask-rcnn each class has a box, and deviations are of the first stage."""
    several = framework == "cascade"
    stage = small(framework).stages[1 if several else 0]
    near, far = (0.05, 0.1) if several else (0.1, 0.2)
    boxes, labels = torch.tensor([[4.0, 4, 24, 34], [0, 0, 9, 9], [30, 28, 62, 60]]), torch.tensor([2, 0, 5])
    truth = Instances(TWO.boxes, TWO.labels, None, (1.0, 1.0))
    sampled = Sampled(boxes, labels, torch.tensor([0, 0, 1]), torch.zeros(3, dtype=torch.bool))
    deltas = torch.randn(3, 1 if several else C, 4, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for r, m in ((0, 0), (2, 1)):
        x1, y1, x2, y2 = boxes[r].tolist()
        u1, v1, u2, v2 = TWO.boxes[m].tolist()
        wanted = [
            ((u1 + u2) / 2 - (x1 + x2) / 2) / (x2 - x1) / near,
            ((v1 + v2) / 2 - (y1 + y2) / 2) / (y2 - y1) / near,
            np.log((u2 - u1) / (x2 - x1)) / far,
            np.log((v2 - v1) / (y2 - y1)) / far,
        ]
        for d, w in zip(deltas[r, 0 if several else labels[r] - 1].tolist(), wanted, strict=True):
            expected += 0.5 * (d - w) ** 2 if abs(d - w) < 1 else abs(d - w) - 0.5
    assert stage.box_loss(deltas, [sampled], [truth]).item() == pytest.approx(expected / 3, rel=1e-5)


def test_mask_loss_is_of_the_mask_where_the_region_lies_in_the_image_as_it_was():
    truth = Instances(2 * TWO.boxes, TWO.labels, TWO.masks, (0.5, 0.5))  # the image was resized to twice its size
    regions = torch.cat([truth.boxes, truth.boxes[:1] + torch.tensor([25.0, 0, 25, 0])])
    half = Sampled(regions, torch.tensor([2, 5, 2]), torch.tensor([0, 1, 0]), torch.zeros(3, dtype=torch.bool))
    logits = torch.full((3, 28, 28), 9.0)
    logits[2, :, 14:] = -9.0  # of the third the instance fills the left half
    assert mask_loss(logits, [half], [truth]) < 0.1
    assert mask_loss(-logits, [half], [truth]) > 5
    assert mask_loss(logits[:0], [half.positive()], [truth]) == 0


def test_a_mask_comes_back_where_it_was_though_its_box_ends_within_pixels():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y, width, height = rng.uniform(8, 20, 4)
        mask = torch.zeros(1, 40, 40, dtype=torch.uint8)
        mask[0, int(y) + 1 : int(y + height), int(x + width / 2) - 1 : int(x + width / 2) + 2] = 1  # a stroke
        box = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float32)
        back = pasted(cut_out(mask, box, torch.tensor([0]), 28), box, (40, 40))
        both, either = (back & (mask > 0)).sum(), (back | (mask > 0)).sum()
        assert both / either > 0.85


def test_a_mask_at_the_edge_of_the_image_or_beyond():
    boxes = torch.tensor([[-3.0, -3, 2, 2], [6.5, 0, 9, 9], [7.0, 7, 8, 8], [9, 9, 12, 12]])
    found = pasted(torch.ones(4, 28, 28), boxes, (8, 8))
    assert found.flatten(1).sum(dim=1).tolist() == [4, 8, 1, 0]


def test_a_mask_is_of_its_own_class():
    torch.manual_seed(0)
    head = MaskHead(3, 4, width=2)
    seen = head.features(torch.rand(2, 3, 14, 14))
    every = head.logits(head.upsample(seen))
    own = head(seen, torch.tensor([4, 1]))
    torch.testing.assert_close(own, torch.stack([every[0, 3], every[1, 0]]))


def test_any_classifier_in_every_stage():
    for classifier in (LinearClassifier, CapsuleClassifier, partial(LinearClassifier, bias=False)):
        detector = small(classifier=classifier, masks=False)
        assert "mask_0" not in detector([TWO])
        found = detector.eval().detections(detector.look([TWO.image]), Inference())[0][0]
        assert found.masks is None
        assert all(stage.classifier.classifier.weight.shape[0] == C + 1 for stage in detector.stages)


def test_tde_needs_a_direction_and_a_background():
    linear = small(classifier=LinearClassifier, masks=False).eval()
    with pytest.raises(InputError, match="alpha: expected classifiers with a feature average"):
        linear.detections(linear.look([TWO.image]), Inference(alpha=1.0))
    sigmoids = small(loss=lambda: EachAgainstTheRest(C, Federated(ClassCounts((5,) * C))), masks=False).eval()
    regions = sigmoids.look([TWO.image])
    assert len(sigmoids.detections(regions, Inference())[0][0])
    with pytest.raises(InputError, match="alpha: expected classifiers of one softmax"):
        sigmoids.detections(regions, Inference(alpha=1.0))


def test_misuse_is_named():
    with pytest.raises(InputError, match="detector: expected it in eval mode"):
        small().look([TWO.image])
    with pytest.raises(InputError, match="image: expected one at most 64 times as long as wide, got 2 x 129 pixels"):
        small().eval().look([torch.zeros(3, 2, 129, dtype=torch.uint8)])
    assert small().eval().look([torch.zeros(3, 2, 128, dtype=torch.uint8)]).originals == ((2, 128),)
    with pytest.raises(InputError, match="score_threshold: expected a finite number at least 0 and below 1, got 1"):
        Inference(score_threshold=1)
    with pytest.raises(InputError, match="alpha: expected a finite number, got nan"):
        Inference(alpha=float("nan"))
    narrow = Detector(
        SmallFPN(width=8, out_channels=8),
        C,
        LinearClassifier,
        cross_entropy,
        sizes=Sizes(min_size=64, max_size=64, anchors=(16, 32)),
    )
    with pytest.raises(InputError, match="anchors: expected one for each of the backbone's 4 maps, got 2"):
        narrow([TWO])


def test_a_resnet_keeps_its_first_stage_and_all_batch_norm():
    backbone = resnet_fpn("resnet50", pretrained=False)
    frozen = {name for name, p in backbone.body.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(name.startswith(("conv1", "layer1")) for name in frozen)
    assert not any("bn" in name for name, _ in backbone.named_parameters())
    assert backbone.out_channels == 256
