"""Arrays of numbers from files."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tailwise import InputError
from tailwise.data.arrays import read_arrays


def test_arrays_come_by_name(tmp_path):
    numbers = np.arange(6, dtype=np.float64).reshape(2, 3)
    np.save(tmp_path / "one.npy", numbers)
    np.savez(tmp_path / "two.npz", x=numbers, y=numbers[0])
    save_file({"x": torch.from_numpy(numbers).bfloat16(), "y": torch.tensor([1, 2])}, tmp_path / "three.safetensors")
    found = [read_arrays(tmp_path / name) for name in ("one.npy", "two.npz", "three.safetensors")]
    assert [sorted(arrays) for arrays in found] == [["one"], ["x", "y"], ["x", "y"]]
    assert (found[0]["one"] == numbers).all()
    assert (found[1]["y"] == numbers[0]).all()
    assert (found[2]["x"] == numbers).all()
    assert (found[2]["x"].dtype, found[2]["y"].dtype) == (np.float32, np.int64)


def test_what_is_no_number_is_left_out_and_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(2), names=np.array(["a", None], dtype=object), words=np.array(["b"]))
    assert list(read_arrays(tmp_path / "a.npz")) == ["x"]


@pytest.mark.parametrize("name", ["cut.npz", "cut.npy", "cut.safetensors", "none.npy", "a.txt"])
def test_a_file_that_will_not_do_is_named(tmp_path, name):
    np.savez(tmp_path / "whole.npz", x=np.ones(100))
    if name.startswith("cut"):
        (tmp_path / name).write_bytes((tmp_path / "whole.npz").read_bytes()[:-20])
    with pytest.raises(InputError, match=f"{name}: "):
        read_arrays(tmp_path / name)
