import hashlib
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tailwise import InputError
from tailwise.data import (
    EpochBatches,
    Normalize,
    Split,
    cifar_lt,
    digits_lt,
    frozen_order,
    long_tailed_counts,
    long_tailed_indices,
    random_crop,
    under_protocol,
    val_sizes,
)
from tailwise.data.cifar import NORMALIZE

# ---- counts and subsets


@pytest.mark.parametrize(
    ("num_classes", "ratio", "total", "groups"),
    [  # totals of the benchmark, from the authors' profile
        (10, 100, 12406, None),
        (10, 50, 13996, None),
        (10, 10, 20431, None),
        (100, 100, 10847, (35, 35, 30)),
        (100, 50, 12608, (41, 41, 18)),
        (100, 10, 19573, (69, 31, 0)),
    ],
)
def test_cifar_profiles_have_the_published_sizes(num_classes, ratio, total, groups):
    counts = long_tailed_counts(num_classes, 50000 // num_classes, ratio)
    assert sum(counts) == total
    if groups:
        many, few = sum(n > 100 for n in counts), sum(n < 20 for n in counts)
        assert (many, num_classes - many - few, few) == groups


def test_cifar10_profile_class_by_class():
    assert long_tailed_counts(10, 5000, 100) == (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)


def test_a_smaller_largest_class():
    """Balanced, as many images as the long tail has; more than there are is refused."""
    data = digits_lt(0, imbalance_ratio=1, max_count=30)
    assert data.counts.per_class == (30,) * 10
    assert digits_lt(0, imbalance_ratio=10, max_count=40).counts.per_class == long_tailed_counts(10, 40, 10)
    whole = set(digits_lt(0, imbalance_ratio=1).train.ids)
    assert set(data.train.ids) < whole  # nested
    with pytest.raises(InputError, match="max_count: expected at most the 110 images of a class, got 111"):
        digits_lt(0, max_count=111)


def test_step_profile_and_balanced_limit():
    assert long_tailed_counts(4, 100, 10, "step") == (100, 100, 10, 10)
    assert long_tailed_counts(4, 100, 1) == (100,) * 4 == long_tailed_counts(4, 100, 1, "step")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((1, 10, 2), "num_classes"),
        ((2, 10, 0.5), "imbalance_ratio"),
        ((2, 10, 11), "leaves every class"),
    ],
)
def test_counts_refuse(arguments, named):
    with pytest.raises(InputError, match=named):
        long_tailed_counts(*arguments)


def test_frozen_order_is_the_documented_hash():
    labels = np.array([0, 1, 0, 0, 1])
    for c, order in enumerate(frozen_order(labels, "toy", 7)):
        keys = {hashlib.sha256(f"toy/7/{c}/{i}".encode()).digest(): i for i in np.flatnonzero(labels == c)}
        assert order.tolist() == [keys[key] for key in sorted(keys)]


@given(small=st.integers(1, 4), more=st.integers(0, 6), seed=st.integers(0, 5))
def test_subsets_are_nested_and_without_replacement(small, more, seed):
    labels = np.repeat(np.arange(3), 10)
    inner = long_tailed_indices(labels, (small,) * 3, dataset="toy", seed=seed)
    outer = long_tailed_indices(labels, (small + more,) * 3, dataset="toy", seed=seed)
    assert set(inner) <= set(outer)
    assert len(set(outer)) == len(outer) == 3 * (small + more)
    assert np.bincount(labels[outer]).tolist() == [small + more] * 3


def test_subset_asks_for_too_much():
    with pytest.raises(InputError, match="at most 2 images of class 1, got 3"):
        long_tailed_indices(np.array([0, 0, 0, 1, 1]), (3, 3), dataset="toy", seed=0)


# ---- digits


def test_digits_split_sizes_and_disjointness():
    data = digits_lt(seed=3)
    assert data.counts.per_class == tuple(int(110 * 50 ** (-c / 9)) for c in range(10))
    assert data.counts.group_sizes == {"many": 1, "medium": 3, "few": 6}
    for split, per_class in ((data.test, [50] * 10), (data.val, [14] * 10), (data.train, list(data.counts.per_class))):
        assert torch.bincount(split.labels, minlength=10).tolist() == per_class
    ids = [set(split.ids) for split in (data.train, data.val, data.test)]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 305 + 140 + 500


def test_digits_are_the_real_ones():
    from sklearn.datasets import load_digits

    digits = load_digits()
    data = digits_lt(seed=0)
    for image, label, name in zip(data.train.images[:20], data.train.labels[:20], data.train.ids[:20], strict=True):
        index = int(name.split("/")[1])
        np.testing.assert_array_equal(image[0], digits.images[index])
        assert label == digits.target[index]


def test_seed_decides_the_subset_and_its_hash():
    same, again, other = digits_lt(seed=0), digits_lt(seed=0), digits_lt(seed=1)
    assert same.subset_hash == again.subset_hash != other.subset_hash
    assert set(same.train.ids) == set(again.train.ids) != set(other.train.ids)


# ---- protocols


def test_protocols_on_given_val():
    data = digits_lt(seed=0)
    assert under_protocol(data, "clean", 0) is data
    assert under_protocol(data, "paper", 0).val is None
    assert under_protocol(data, "legacy", 0).val is data.test


def test_clean_carves_val_from_train(cifar10_npz):
    data = cifar_lt(10, 0, data_dir=cifar10_npz, imbalance_ratio=20)
    clean = under_protocol(data, "clean", 0)
    before, after = data.counts.per_class, clean.counts.per_class
    carved = torch.bincount(clean.val.labels, minlength=10).tolist()
    assert tuple(a + v for a, v in zip(after, carved, strict=True)) == before
    assert tuple(carved) == val_sizes(before)
    assert clean.published_counts == data.counts  # groups stay those of the benchmark
    assert set(clean.train.ids) | set(clean.val.ids) == set(data.train.ids)
    assert not set(clean.train.ids) & set(clean.val.ids)
    assert clean.subset_hash == data.subset_hash


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=30))
def test_val_sizes_never_empty_a_class(counts):
    for n, v in zip(counts, val_sizes(counts), strict=True):
        assert 0 <= v <= 20
        assert (v >= 1) == (n >= 3)
        assert n - v >= min(n, 2)


# ---- CIFAR


def fake_cifar(num_classes, per_class=40):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), per_class)
    images = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    return images, labels


@pytest.fixture
def cifar10_npz(tmp_path):
    images, labels = fake_cifar(10)
    path = tmp_path / "cifar10.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[::2], y_test=labels[::2])
    return path


def write_folder(path, num_classes):
    images, labels = fake_cifar(num_classes)
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    path.mkdir()
    kind = "fine_labels" if num_classes == 100 else "labels"
    names = ("train",) if num_classes == 100 else tuple(f"data_batch_{i}" for i in range(1, 6))
    for part, index in zip(names, np.array_split(np.arange(len(rows)), len(names)), strict=True):
        (path / part).write_bytes(pickle.dumps({"data": rows[index], kind: labels[index].tolist()}, protocol=2))
    test = {"data": rows[::2], kind: labels[::2].tolist()}
    (path / ("test" if num_classes == 100 else "test_batch")).write_bytes(pickle.dumps(test, protocol=2))
    meta = {("fine_label_names" if num_classes == 100 else "label_names"): [f"name {c}" for c in range(num_classes)]}
    (path / ("meta" if num_classes == 100 else "batches.meta")).write_bytes(pickle.dumps(meta, protocol=2))
    return images


@pytest.mark.parametrize(("num_classes", "name"), [(10, "cifar-10-batches-py"), (100, "cifar-100-python")])
@pytest.mark.parametrize("inside", [True, False])
def test_reads_torchvision_folders(tmp_path, num_classes, name, inside):
    images = write_folder(tmp_path / name, num_classes)
    where = tmp_path / name if inside else tmp_path
    data = cifar_lt(num_classes, 0, data_dir=where, imbalance_ratio=20)
    assert data.counts.per_class == long_tailed_counts(num_classes, 40, 20)
    assert data.class_names[3] == "name 3"
    index = int(data.train.ids[5].split("/")[1])
    np.testing.assert_array_equal(data.train.images[5].permute(1, 2, 0), images[index])


def test_npz_and_folder_give_the_same_subset(tmp_path, cifar10_npz):
    write_folder(tmp_path / "cifar-10-batches-py", 10)
    one = cifar_lt(10, 0, data_dir=cifar10_npz, imbalance_ratio=20)
    other = cifar_lt(10, 0, data_dir=tmp_path / "cifar-10-batches-py", imbalance_ratio=20)
    assert one.subset_hash == other.subset_hash
    assert torch.equal(one.train.images, other.train.images)


def test_environment_names_the_data(monkeypatch, cifar10_npz):
    monkeypatch.setenv("TAILWISE_DATA", str(cifar10_npz.parent))
    assert len(cifar_lt(10, 0, imbalance_ratio=1).train) == 400


def test_a_pickle_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'ran'}",)

    folder = tmp_path / "cifar-10-batches-py"
    write_folder(folder, 10)
    (folder / "data_batch_2").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(InputError, match=r"data_batch_2.*no array"):
        cifar_lt(10, 0, data_dir=folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": np.full(400, 10)}, r"labels in 0\.\.9, got 10 at position 0"),
        ({"y_train": np.zeros(399, dtype=int)}, "400 whole-number train labels"),
        ({"x_train": np.zeros((400, 32, 32, 1), dtype=np.uint8)}, r"uint8 \[N, 32, 32, 3\]"),
        ({"x_test": np.zeros((200, 32, 32, 3))}, "float64"),
        ({"y_test": np.zeros(200, dtype=int)}, "got none of class 1"),
    ],
)
def test_refuses_wrong_arrays(tmp_path, change, message):
    images, labels = fake_cifar(10)
    arrays = {"x_train": images, "y_train": labels, "x_test": images[::2], "y_test": labels[::2]} | change
    np.savez(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(InputError, match=message):
        cifar_lt(10, 0, data_dir=tmp_path)


def test_refuses_missing_and_corrupt_data(tmp_path, cifar10_npz):
    with pytest.raises(InputError, match="needs a local copy"):
        cifar_lt(10, 0)
    with pytest.raises(InputError, match="got neither"):
        cifar_lt(100, 0, data_dir=tmp_path)
    cifar10_npz.write_bytes(cifar10_npz.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"not a readable \.npz"):
        cifar_lt(10, 0, data_dir=tmp_path)
    np.savez(tmp_path / "cifar10.npz", x_train=np.zeros(3))
    with pytest.raises(InputError, match="expected arrays x_train"):
        cifar_lt(10, 0, data_dir=tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    write_folder(folder, 10)
    (folder / "test_batch").unlink()
    with pytest.raises(InputError, match="test_batch: no such file"):
        cifar_lt(10, 0, data_dir=folder)
    (folder / "test_batch").write_bytes(b"\x80\x02broken")
    with pytest.raises(InputError, match="not a readable CIFAR file"):
        cifar_lt(10, 0, data_dir=folder)


# ---- augmentation and batches


def crop_oracle(image, top, left, flip, padding):
    """Pad, crop, flip, one image, by loops."""
    _, height, width = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            source_y, source_x = y + top - padding, (width - 1 - x if flip else x) + left - padding
            if 0 <= source_y < height and 0 <= source_x < width:
                out[:, y, x] = image[:, source_y, source_x]
    return out


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (1, False), (4, True), (0, True)])
def test_random_crop_is_the_oracle_per_sample(padding, flip):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 3, 6, 5), dtype=torch.uint8, generator=generator)
    draws = torch.rand(20, 3, generator=generator)
    out = random_crop(images, draws, padding=padding, flip=flip)
    for image, draw, got in zip(images.numpy(), draws.numpy(), out.numpy(), strict=True):
        top, left = int(draw[0] * (2 * padding + 1)), int(draw[1] * (2 * padding + 1))
        np.testing.assert_array_equal(got, crop_oracle(image, top, left, flip and draw[2] < 0.5, padding))
    if padding == 0 and not flip:
        assert torch.equal(out, images)


def test_crop_reaches_every_place_and_flips_half():
    images = torch.zeros(4000, 1, 3, 3, dtype=torch.uint8)
    images[:, 0, 1, 1] = 1
    images[:, 0, 1, 2] = 2
    out = random_crop(images, torch.rand(4000, 3, generator=torch.Generator().manual_seed(1)), padding=1, flip=True)
    places = {tuple(index) for index in (out == 1).nonzero()[:, 2:].tolist()}
    assert places == {(y, x) for y in range(3) for x in range(3)}
    middle = out[(out[:, 0, 1, 1] == 1)]
    assert 0.4 < (middle[:, 0, 1, 0] == 2).float().mean() < 0.6


def test_normalize_is_totensor_then_normalize():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = (images.double() / 255 - torch.tensor([0.4914, 0.4822, 0.4465]).double().view(3, 1, 1)) / torch.tensor(
        [0.2023, 0.1994, 0.2010]
    ).double().view(3, 1, 1)
    torch.testing.assert_close(NORMALIZE(images).double(), expected, atol=1e-5, rtol=1e-5)


def toy_split(n=11):
    images = torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(n), np.array([str(i) for i in range(n)]))


def collect(**settings):
    batches = EpochBatches(
        toy_split(),
        torch.arange(11).flip(0),
        normalize=Normalize(255.0, (0.0,), (1.0,)),
        augment=lambda images, draws: random_crop(images, draws, padding=1, flip=True),
        **settings,
    )
    parts = list(batches)
    assert len(parts) == len(batches)
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def test_augmentation_belongs_to_the_place_not_to_the_batch():
    whole, labels = collect(batch_size=11, seed=5)
    for batch_size in (1, 3, 4):
        parts, part_labels = collect(batch_size=batch_size, seed=5)
        assert torch.equal(parts, whole)
        assert torch.equal(part_labels, labels)
    assert not torch.equal(collect(batch_size=11, seed=6)[0], whole)


def test_drop_last():
    assert len(collect(batch_size=4, drop_last=True)[0]) == 8
    batches = EpochBatches(toy_split(), torch.arange(11), 12, Normalize(255.0, (0.0,), (1.0,)), drop_last=True)
    assert len(batches) == 0
    assert list(batches) == []


def test_split_refuses_different_lengths():
    with pytest.raises(InputError, match="as many labels and ids as images"):
        Split(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.long), np.array(["a", "b"]))
