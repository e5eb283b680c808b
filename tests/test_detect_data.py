"""Annotation files of LVIS and COCO: what is read, what is refused, and that writing is the inverse."""

import copy
import json

import numpy as np
import pytest
import torch

from tailwise.checks import InputError
from tailwise.data.files import write_png
from tailwise.detect import DetectionSplit, Truth, decode, encode, frequency_of, read_split, read_truth, write_split

H, W = 6, 8
SQUARE = [[1.0, 1.0, 3.0, 1.0, 3.0, 4.0, 1.0, 4.0]]  # rows 1..3, columns 1..2
LVIS = {
    # ids neither in order nor without holes
    "categories": [
        {"id": 7, "name": "zebra", "frequency": "r"},
        {"id": 2, "name": "apple", "image_count": 101},
        {"id": 4, "name": "fork"},
    ],
    "images": [
        {
            "id": 11, "height": H, "width": W, "coco_url": "http://images.cocodataset.org/train2017/000000000011.jpg",
            "file_name": "COCO_train2014_000000000011.jpg",
            "neg_category_ids": [4], "not_exhaustive_category_ids": [7],
        },
        {
            "id": 5, "height": H, "width": W, "file_name": "five.png",
            "neg_category_ids": [], "not_exhaustive_category_ids": [],
        },
    ],
    "annotations": [
        {"id": 100, "image_id": 11, "category_id": 7, "bbox": [1, 1, 2, 3], "area": 6.0, "segmentation": SQUARE},
        {
            "id": 101, "image_id": 11, "category_id": 2, "bbox": [6, 0, 2.004, 6], "iscrowd": 1,
            "segmentation": {"size": [H, W], "counts": [36, 12]},
        },
    ],
}  # fmt: skip


def written(tmp_path, content, name="a.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def changed(*path, to):
    """LVIS with what lies at `path` replaced."""
    content = copy.deepcopy(LVIS)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return content


def test_what_a_file_says(tmp_path):
    truth = read_truth(written(tmp_path, LVIS))
    assert [(c.id, c.name, c.frequency) for c in truth.categories] == [
        (2, "apple", "f"), (4, "fork", None), (7, "zebra", "r"),
    ]  # fmt: skip
    assert truth.federated
    assert not truth.skipped
    first, second = truth.images
    assert (first.image_id, first.file, first.height, first.width) == (11, "train2017/000000000011.jpg", H, W)
    assert first.labels.tolist() == [3, 1]
    assert first.boxes.tolist() == [[1, 1, 3, 4], [6, 0, 8, 6]]  # cut off where rounding left the image
    assert first.is_crowd.tolist() == [False, True]
    assert first.annotation_ids.tolist() == [100, 101]
    assert first.areas.tolist() == [6, 12]
    assert (first.negative, first.not_exhaustive) == ({2}, {3})
    square, strip = decode(first.masks, (H, W))
    assert np.argwhere(square).tolist() == [[y, x] for y in (1, 2, 3) for x in (1, 2)]
    assert strip.sum() == strip[:, 6:].sum() == 12
    assert (second.file, second.labels.shape, second.boxes.shape, second.masks) == ("five.png", (0,), (0, 4), ())
    assert truth.counts_by_instances().per_class == (0, 0, 1)  # a crowd is no instance
    assert truth.counts_by_images().per_class == (0, 0, 1)


def test_counts_by_images_and_by_instances(tmp_path):
    content = copy.deepcopy(LVIS)
    again = {**LVIS["annotations"][0], "id": 102}
    content["annotations"] += [again, {**again, "id": 103, "image_id": 5}]
    truth = read_truth(written(tmp_path, content))
    assert truth.counts_by_instances().per_class == (0, 0, 3)
    assert truth.counts_by_images().per_class == (0, 0, 2)


def test_frequency_is_lvis_own():
    assert [frequency_of(n) for n in (0, 1, 10, 11, 100, 101)] == list("rrrccf")


def test_coco_is_not_federated_and_test_files_have_no_annotations(tmp_path):
    content = copy.deepcopy(LVIS)
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    assert not read_truth(written(tmp_path, content)).federated
    del content["annotations"]
    truth = read_truth(written(tmp_path, content))
    assert [len(image.labels) for image in truth.images] == [0, 0]
    for empty in (truth, Truth(truth.categories, ())):
        with pytest.raises(InputError, match="at least one training image, got none"):
            empty.counts_by_images()


@pytest.mark.parametrize("none", [{}, {"segmentation": []}, {"segmentation": None}])
def test_boxes_alone(tmp_path, none):
    content = copy.deepcopy(LVIS)
    for annotation in content["annotations"]:
        del annotation["segmentation"]
        annotation |= none
    (first, _) = read_truth(written(tmp_path, content)).images
    assert first.masks == ()
    assert first.areas.tolist() == [6, 12]  # the second has none in the file
    split = DetectionSplit(
        read_truth(written(tmp_path, content)), lambda index: torch.zeros(3, H, W, dtype=torch.uint8)
    )
    with pytest.raises(InputError, match="image 11: expected a mask for each of 2 boxes, got boxes only"):
        _ = split[0].masks


ANNOTATION = ("annotations", 0)
BAD_ANNOTATIONS = {
    "unknown image": (("image_id",), 12, "expected image_id to be in the file's list, got 12"),
    "unknown category": (("category_id",), 3, "expected category_id to be in the file's list, got 3"),
    "no box": (("bbox",), [1, 2, 3], "bbox: expected four numbers"),
    "a box of NaN": (("bbox",), [1, 2, 3, float("nan")], "bbox: expected a finite number, got nan"),
    "a box beyond all floats": (("bbox",), [1, 2, 3, 10**400], "bbox: expected a finite number, got 1000"),
    "degenerate box": (("bbox",), [1, 1, 0, 3], r"got a degenerate one, \[1, 1, 0, 3\]"),
    "box outside": (("bbox",), [5, 1, 6, 3], r"expected a box inside the image of 6 x 8 pixels, got \[5, 1, 6, 3\]"),
    "box beyond the edge": (("bbox",), [8, 1, 1, 3], "expected a box inside the image"),
    "mask outside": (("segmentation",), [[1, 1, 3, 1, 3, 9]], "mask inside the image of 6 x 8.*y in 1..9"),
    "mask of NaN": (("segmentation",), [[1, 1, 3, 1, 3, float("nan")]], "mask inside the image"),
    "mask beyond all floats": (("segmentation",), [[1, 1, 3, 1, 3, 10**400]], "numbers in a polygon"),
    "mask beyond all sums": (("segmentation",), [[1.5, 1, 3, 1, 3, 10**400]], "numbers in a polygon"),
    "two points": (("segmentation",), [[1, 1, 3, 1]], "polygons of at least three points"),
    "text": (("segmentation",), [[1, 1, 3, 1, 3, "x"]], "numbers in a polygon"),
    "no mask": (("segmentation",), [], "expected polygons or run lengths as segmentation, got"),
    "empty mask": (("segmentation",), {"size": [H, W], "counts": [H * W]}, "at least one pixel"),
    "mask of another size": (("segmentation",), {"size": [W, H], "counts": [1, 47]}, r"size \[6, 8\], got \[8, 6\]"),
    "mask of size 5": (("segmentation",), {"size": 5, "counts": [1, 47]}, r"size \[6, 8\], got 5"),
    "mask of no size": (("segmentation",), {"size": None, "counts": [1, 47]}, r"size \[6, 8\], got None"),
    "runs too short": (("segmentation",), {"size": [H, W], "counts": [1, 3]}, "run lengths that fill the image"),
    "runs too long": (("segmentation",), {"size": [H, W], "counts": "xx~~"}, "run lengths that fill the image"),
    "no runs": (("segmentation",), {"size": [H, W]}, "run lengths that fill the image"),
    "area": (("area",), "big", "area: expected a finite number, got 'big'"),
}


@pytest.mark.parametrize("case", BAD_ANNOTATIONS)
def test_a_bad_annotation_is_named_by_its_id_or_left_out(tmp_path, case):
    key, value, message = BAD_ANNOTATIONS[case]
    path = written(tmp_path, changed(*ANNOTATION, *key, to=value))
    with pytest.raises(InputError, match=f"a.json: annotation 100: .*{message}"):
        read_truth(path)
    truth = read_truth(path, on_bad="skip")
    assert truth.images[0].annotation_ids.tolist() == [101]
    (line,) = truth.skipped
    assert line.startswith("annotation 100: ")


@pytest.mark.parametrize("key", ["bbox", "id"])
def test_of_a_category_whose_annotation_was_left_out_more_may_be_there(tmp_path, key):
    """To find what the bad annotation meant is no error."""
    path = written(tmp_path, changed("annotations", 1, key, to={"bbox": [6, 0, 0, 6], "id": 100}[key]))
    assert [image.not_exhaustive for image in read_truth(path, on_bad="skip").images] == [{1, 3}, set()]


@pytest.mark.parametrize(
    ("content", "message", "left"),
    [
        (changed("annotations", 1, "id", to=100), "annotation 100: expected ids that are unique", [2, 1]),
        (changed("annotations", 1, "id", to=2**63), "annotation 9223372036854775808: expected a whole number", [2, 1]),
        (changed("annotations", 1, "id", to="x"), "annotation x: expected a whole number as id, got 'x'", [2, 1]),
        (changed("annotations", 1, to=3), "annotation of a wrong kind: expected a json object, got 3", [2, 1]),
        (changed("images", 1, "id", to=11), "image 11: expected ids that are unique", [1, 2]),
        (changed("images", 1, "width", to=0), "image 5: expected a width of at least 1, got 0", [1, 2]),
        (changed("images", 1, "file_name", to=None), "image 5: expected a coco_url or a file_name", [1, 2]),
        (changed("images", 1, "neg_category_ids", to=[1]), "image 5: expected neg_category_ids to be in the", [2, 2]),
        (changed("images", 1, "not_exhaustive_category_ids", to=4), "image 5: expected not_exh.* a list", [2, 2]),
    ],
)  # fmt: skip
def test_bad_ids_and_images(tmp_path, content, message, left):
    """`left`: images and annotations that stay when the bad are skipped."""
    path = written(tmp_path, content)
    with pytest.raises(InputError, match=message):
        read_truth(path)
    truth = read_truth(path, on_bad="skip")
    assert [len(truth.images), sum(len(image.labels) for image in truth.images)] == left
    assert message.split(":")[0] in truth.skipped[0]


def test_an_unknown_class_beside_known_ones_is_left_out_alone(tmp_path):
    """What a file says of the others decides which detections count."""
    content = changed("images", 0, "neg_category_ids", to=[4, 99])
    content["images"][0]["not_exhaustive_category_ids"] = [98, 7]
    truth, whole = read_truth(written(tmp_path, content), on_bad="skip"), read_truth(written(tmp_path, LVIS, "b.json"))
    found, expected = ({image.image_id: image for image in read.images}[11] for read in (truth, whole))
    assert (found.negative, found.not_exhaustive) == (expected.negative, expected.not_exhaustive)
    assert (len(found.negative), len(found.not_exhaustive)) == (1, 1)
    assert len(truth.skipped) == 2


@pytest.mark.parametrize("on_bad", ["error", "skip"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', "expected json, got a broken file"),
        ("[" * 100_000, "expected json, got a broken file"),
        ("[]", "expected images, annotations and categories, got a list"),
        ({"images": []}, "expected a list of categories, got None"),
        (changed("categories", 0, "name", to=""), "category 7: expected a name, got ''"),
        (changed("categories", 0, "id", to=None), "expected categories with a whole number as id"),
        (changed("categories", 0, "id", to=2), "expected category ids that are unique"),
        (changed("categories", 0, "frequency", to="x"), "category 7: expected frequency r, c or f, got 'x'"),
    ],
)
def test_what_no_reading_can_do_without(tmp_path, content, message, on_bad):
    with pytest.raises(InputError, match=f"a.json: .*{message}"):
        read_truth(written(tmp_path, content), on_bad=on_bad)
    with pytest.raises(InputError, match=r"none.json: cannot be read \(No such file"):
        read_truth(tmp_path / "none.json", on_bad=on_bad)


def picture(path, height=H, width=W):
    path.parent.mkdir(exist_ok=True, parents=True)
    write_png(torch.arange(3 * height * width, dtype=torch.uint8).view(3, height, width), path)


def test_images_lie_in_cocos_folders_or_beside_one_another(tmp_path):
    path = written(tmp_path, LVIS)
    picture(tmp_path / "coco/train2017/000000000011.jpg")  # PNG, whatever its name: what is compared is exact
    picture(tmp_path / "coco/five.png")
    picture(tmp_path / "flat/000000000011.jpg")
    picture(tmp_path / "flat/five.png")
    for folder in ("coco", "flat"):
        split = read_split(path, tmp_path / folder)
        example = split[0]
        assert example.image.flatten().tolist() == list(range(3 * H * W))
        assert example.boxes.tolist() == [[1, 1, 3, 4], [6, 0, 8, 6]]
        assert example.boxes.dtype == torch.float32
        assert (example.image_id, example.labels.tolist(), example.is_crowd.tolist()) == (11, [3, 1], [False, True])
        assert example.masks.shape == (2, H, W)
        assert (example.negative, example.not_exhaustive) == ({2}, {3})
        assert (len(split), split[1].boxes.shape, split[1].masks.shape) == (2, (0, 4), (0, H, W))
    assert [example.image_id for example in split.take([1])] == [5]


def test_lvis_05_has_names_of_2014_for_images_of_2017(tmp_path):
    content = copy.deepcopy(LVIS)
    del content["images"][0]["coco_url"]
    content["images"][1]["file_name"] = "COCO_val2014_000000000005.jpg"
    picture(tmp_path / "train2017/000000000011.jpg")
    picture(tmp_path / "val2017/000000000005.jpg")
    split = read_split(written(tmp_path, content), tmp_path)
    assert split[0].image.shape == split[1].image.shape == (3, H, W)


def test_absent_and_broken_images_are_named(tmp_path):
    path = written(tmp_path, LVIS)
    picture(tmp_path / "i/five.png")
    with pytest.raises(InputError, match=r"2 images, 1 are absent \(first: train2017/000000000011.jpg of image 11\)"):
        read_split(path, tmp_path / "i")
    split = read_split(path, tmp_path / "i", on_bad="skip")
    assert [image.image_id for image in split.truth.images] == [split[0].image_id] == [5]
    assert split.truth.skipped == ("image 11: train2017/000000000011.jpg is absent",)
    picture(tmp_path / "i/five.png", height=H + 1)
    with pytest.raises(InputError, match=r"image 5 \(five.png\): expected 3 x 6 x 8 .* got 3 x 7 x 8"):
        split[0]
    (tmp_path / "i/five.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"five.png: not a readable image"):
        split[0]
    with pytest.raises(InputError, match="images: expected a folder"):
        read_split(path, tmp_path / "nowhere")


@pytest.mark.parametrize("federated", [True, False])
def test_writing_is_the_inverse_of_reading(tmp_path, federated):
    truth = read_truth(written(tmp_path, LVIS))
    truth = Truth(truth.categories, truth.images, federated)
    pixels = torch.randint(0, 256, (2, 3, H, W), dtype=torch.uint8)
    write_split(DetectionSplit(truth, lambda index: pixels[index]), tmp_path / "out/a.json", tmp_path / "out/png")
    again = read_split(tmp_path / "out/a.json", tmp_path / "out/png")
    assert again.truth.categories == truth.categories
    assert again.truth.federated == federated
    for index, (one, other) in enumerate(zip(truth.images, again.truth.images, strict=True)):
        expected, got = vars(one).copy(), vars(other).copy()
        if not federated:
            expected |= {"negative": frozenset(), "not_exhaustive": frozenset()}
        for name in ("boxes", "labels", "is_crowd", "areas", "annotation_ids"):
            np.testing.assert_array_equal(expected.pop(name), got.pop(name))
        assert expected == got
        assert torch.equal(again[index].image, pixels[index])


@pytest.mark.parametrize("file", ["{}/photo.png", "i/../../photo.png"])
def test_a_file_beyond_the_folder_of_images_is_read_but_never_written(tmp_path, file):
    picture(tmp_path / "photo.png")
    photo = (tmp_path / "photo.png").read_bytes()
    content = changed("images", 1, "file_name", to=file.format(tmp_path))
    picture(tmp_path / "in/train2017/000000000011.jpg")
    (tmp_path / "in/i").mkdir()
    split = read_split(written(tmp_path, content), tmp_path / "in")
    with pytest.raises(InputError, match=r"split: expected files below the folder of images, got .*/photo.png of imag"):
        write_split(
            DetectionSplit(split.truth, lambda index: 255 - split.read(index)), tmp_path / "b.json", tmp_path / "in"
        )
    assert (tmp_path / "photo.png").read_bytes() == photo
    assert not (tmp_path / "b.json").exists()
    assert torch.equal(split[0].image, split[1].image)  # the first was not written either


def test_masks_are_the_same_after_run_lengths():
    masks = np.random.default_rng(0).integers(0, 2, (5, 7, 9))
    np.testing.assert_array_equal(decode(encode(masks), (7, 9)), masks)
    assert encode(masks[:0]) == ()
