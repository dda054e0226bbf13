"""How far two weights files are apart, tensor by tensor."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from storage.errors import CorruptCheckpoint
from storage.registry.weight_changes import TensorChange, differing_tensors, tensor_headers, weight_changes


def test_headers_tell_which_tensors_differ(tmp_path: Path):
    one, other = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_file({"same": np.ones(2, np.float32), "typed": np.ones(2, np.float32), "old": np.ones(1, np.float32)}, one)
    save_file({"same": np.zeros(2, np.float32), "typed": np.ones(2, np.int64), "new": np.ones(1, np.float32)}, other)
    assert tensor_headers(one)["same"] == ("F32", (2,))
    assert differing_tensors(tensor_headers(one), tensor_headers(other)) == ["new", "old", "typed"]
    other.write_bytes(b"")
    with pytest.raises(CorruptCheckpoint, match=r"2\.safetensors: not a readable safetensors file"):
        tensor_headers(other)


def test_each_tensor_is_compared_by_norms(tmp_path: Path):
    one, other = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_file(
        {
            "same": np.ones((2, 3), np.float32),
            "doubled": np.full(4, 3.0, np.float32),
            "was_zero": np.zeros(2, np.float32),
            "steps": np.array(7, np.int64),
            "reshaped": np.ones((2, 3), np.float32),
            "old": np.ones(5, np.float32),
        },
        one,
    )
    save_file(
        {
            "same": np.ones((2, 3), np.float32),
            "doubled": np.full(4, 6.0, np.float32),
            "was_zero": np.ones(2, np.float32),
            "steps": np.array(14, np.int64),
            "reshaped": np.ones((3, 2), np.float32),
            "new": np.ones((), np.float32),
        },
        other,
    )
    assert weight_changes([one], [other]) == [
        TensorChange("doubled", (4,), 1.0),
        TensorChange("new", (), None, "only in the second"),
        TensorChange("old", (5,), None, "only in the first"),
        TensorChange("reshaped", (3, 2), None, "shape [2, 3] became [3, 2]"),
        TensorChange("same", (2, 3), 0.0),
        TensorChange("steps", (), 1.0),
        TensorChange("was_zero", (2,), None, "was all zeros"),
    ]
    assert all(change.relative in (0.0, None) for change in weight_changes([one], [one]))


def test_bfloat16_is_read_without_torch(tmp_path: Path):
    import torch  # to write what numpy cannot; collecting the tests of this room needs none of it
    from safetensors.torch import save_file as save_torch

    one, other = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    values = torch.tensor([[1.5, -2.0], [0.25, 1e30]], dtype=torch.bfloat16)
    save_torch({"a": torch.zeros(3), "b": values}, one)
    save_torch({"a": torch.zeros(3), "b": values.float()}, other)
    assert [change.relative for change in weight_changes([one], [other])] == [0.0, 0.0]
    save_torch({"a": torch.zeros(3), "b": (values * 3).to(torch.bfloat16)}, other)
    assert weight_changes([one], [other])[1].relative == pytest.approx(2.0, rel=0.01)


def test_values_that_are_not_finite_are_said(tmp_path: Path):
    one, other = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_file({"a": np.ones(2, np.float32)}, one)
    save_file({"a": np.array([1.0, np.nan], np.float32)}, other)
    assert weight_changes([one], [other]) == [TensorChange("a", (2,), None, "values are not finite")]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    good, bad = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_file({"a": np.ones(2, np.float32)}, good)
    bad.write_bytes(b"no weights")
    with pytest.raises(CorruptCheckpoint, match=r"2\.safetensors: not a readable safetensors file"):
        weight_changes([good], [bad])
