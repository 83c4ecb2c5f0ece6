"""Safetensors files: bit-exact, atomic, and paths that cannot be confused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from foreign_states import assert_same

from jaxvl.interop import (
    WeightsError,
    load_params,
    load_safetensors,
    safetensors_metadata,
    save_params,
    save_safetensors,
)
from jaxvl.interop.files import flatten

TREE = {
    "temp": np.float32(0.07),
    "encoder": {"layers_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T}},
}
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_]


def test_a_tree_comes_back_bit_for_bit(tmp_path):
    save_params(tmp_path / "new" / "p.safetensors", TREE, metadata={"step": "3"})
    assert sorted(load_safetensors(tmp_path / "new/p.safetensors")) == ["encoder/layers_0/kernel", "temp"]
    assert_same(flatten(load_params(tmp_path / "new/p.safetensors")), flatten(TREE))
    assert safetensors_metadata(tmp_path / "new/p.safetensors") == {"step": "3"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_comes_back(tmp_path, dtype):
    tensors = {
        "a": np.arange(4).astype(dtype),
        "scalar": np.asarray(1, dtype),
        "empty": np.zeros((0, 2), dtype),
    }
    save_safetensors(tmp_path / "t.safetensors", tensors)
    assert_same(load_safetensors(tmp_path / "t.safetensors"), tensors)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "p.safetensors"
    save_params(path, TREE)

    def interrupted(*_):
        raise OSError("disk full")

    monkeypatch.setattr("jaxvl.interop.files.os.replace", interrupted)
    with pytest.raises(OSError, match="disk full"):
        save_params(path, {"other": np.zeros(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]
    assert_same(flatten(load_params(path)), flatten(TREE))


def test_trees_that_a_file_cannot_hold_are_refused(tmp_path):
    bad = {
        "empty dict": {"a": {}},
        "may not contain '/'": {"a/b": np.zeros(1)},
        "only real numbers": {"a": np.zeros(1, complex)},
    }
    for message, tree in bad.items():
        with pytest.raises(WeightsError, match=message):
            save_params(tmp_path / "p.safetensors", tree)
    with pytest.raises(WeightsError, match="no tensor to write"):
        save_safetensors(tmp_path / "p.safetensors", {})
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_tree_are_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    save_safetensors(path, {"a/b": np.zeros(1), "a": np.zeros(1)})
    with pytest.raises(WeightsError, match="a tensor and a branch"):
        load_params(path)
    save_safetensors(path, {"text_encoder.bert.pooler": np.zeros(1)})
    with pytest.raises(WeightsError, match="not a jaxvl path; convert the file first"):
        load_params(path)
