"""PyTorch files are read bit for bit without PyTorch; code in them is refused; damage is named."""

from __future__ import annotations

import argparse
import json
import re
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from foreign_states import assert_same, pickled_dict, pickled_tensor, write_zip

from jaxvl.interop import UnsafeWeightsError, WeightsError, read, save_safetensors

DTYPES = "float16 bfloat16 float32 float64 int64 int32 int16 int8 uint8 bool".split()  # noqa: SIM905
SIX = np.arange(6, dtype=np.float32)


def numpy_of(tensor) -> np.ndarray:
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().contiguous().numpy()


def hand_made(path, **options):
    """[2,3] matrix `a`, its transpose `t` and its second row `r`, all of one storage."""
    entries = {
        "a": pickled_tensor("0", "FloatStorage", 6, (2, 3), (3, 1)),
        "t": pickled_tensor("0", "FloatStorage", 6, (3, 2), (1, 3)),
        "r": pickled_tensor("0", "FloatStorage", 6, (3,), (1,), offset=3),
    }
    order = ">f4" if options.get("byteorder") == "big" else "<f4"
    return write_zip(path, pickled_dict(entries), {"0": SIX.astype(order).tobytes()}, **options)


@pytest.mark.parametrize(
    "options", [{}, {"packed": True}, {"byteorder": "big"}], ids=["plain", "packed", "big"]
)
def test_offsets_strides_and_shared_storage_without_torch(tmp_path, options):
    state = read(hand_made(tmp_path / "w.pth", **options))
    matrix = SIX.reshape(2, 3)
    assert_same(state, {"a": matrix, "t": matrix.T, "r": matrix[1]})


def test_stored_tensors_are_views_of_the_file(tmp_path):
    state = read(hand_made(tmp_path / "w.pth"))
    assert np.shares_memory(state["a"], state["t"])
    assert not state["a"].flags.owndata
    assert not state["a"].flags.writeable


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_that_torch_writes(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    tensors = {"matrix": torch.arange(6).reshape(2, 3), "scalar": torch.tensor(1), "empty": torch.zeros(0, 3)}
    tensors = {name: t.to(getattr(torch, dtype)) for name, t in tensors.items()}
    torch.save(tensors, tmp_path / "w.pth")
    assert_same(read(tmp_path / "w.pth"), {name: numpy_of(t) for name, t in tensors.items()})


def test_parameters_views_and_expanded_tensors_that_torch_writes(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.randn(4, 5)
    tensors = OrderedDict(base=base, view=base[1:, ::2].T, row=base[:1].expand(3, 5), one=base[:1].T[:, :1])
    torch.save(tensors | {"parameter": torch.nn.Parameter(base)}, tmp_path / "w.pth")
    tensors["parameter"] = base
    assert_same(read(tmp_path / "w.pth"), {name: numpy_of(t) for name, t in tensors.items()})


def test_a_training_checkpoint_yields_its_model(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    company = {"epoch": 3, "best": np.float64(0.5), "config": {"lr": [1e-4, None]}, "size": torch.Size([2])}
    company |= {"args": argparse.Namespace(lr=1.0), "dtype": torch.float16, "device": torch.device("cpu")}
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **company}, tmp_path / "w.pth"
    )
    assert_same(read(tmp_path / "w.pth"), {k: numpy_of(v) for k, v in model.state_dict().items()})


def test_level_is_found_or_asked_for(tmp_path):
    tensor = {"w": pickled_tensor("0", "FloatStorage", 6, (6,), (1,))}
    inner = pickled_dict(tensor)
    storages = {"0": SIX.tobytes()}
    one = write_zip(tmp_path / "one.pth", pickled_dict({"net": inner, "epoch": b"I3\n"}), storages)
    two = write_zip(tmp_path / "two.pth", pickled_dict({"model": inner, "model_ema": inner}), storages)
    odd = write_zip(
        tmp_path / "odd.pth", pickled_dict({"teacher": pickled_dict({"net": inner}), "b": inner}), storages
    )
    mix = write_zip(tmp_path / "mix.pth", pickled_dict(tensor | {"model": inner}), storages)
    assert list(read(one)) == list(read(two)) == list(read(odd, level="teacher.net")) == ["w"]
    for path in (odd, mix):
        with pytest.raises(WeightsError, match="several levels, pass level="):
            read(path)
    with pytest.raises(WeightsError, match="no tensors at level 'modle'.*'model_ema' \\(1 tensors\\)"):
        read(two, level="modle")


ATTACKS = {
    "os.system": b"cos\nsystem\n(Vtouch pwned\ntR",
    "posix.system": b"cposix\nsystem\n(Vtouch pwned\ntR",
    "builtins.eval": b"cbuiltins\neval\n(V1+1\ntR",
    "builtins.getattr": b"cbuiltins\ngetattr\n0N",
    "torch.hub.load": b"ctorch.hub\nload\n0N",
    "collections.OrderedDict.fromkeys": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_code_is_refused_by_name_and_not_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = write_zip(tmp_path / "evil.pth", ATTACKS[name], {})
    with pytest.raises(UnsafeWeightsError, match=rf"evil.pth: refused to read '{re.escape(name)}'"):
        read(path)
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pth"]


def test_a_module_saved_whole_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(UnsafeWeightsError, match="torch.nn.modules.linear.Linear.*state_dict"):
        read(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 7}, "missing or too short"),
        ({"key": "1"}, "missing or too short"),
        ({"shape": (7,)}, "reaches beyond storage"),
        ({"offset": 1}, "reaches beyond storage"),
        ({"strides": (2,)}, "reaches beyond storage"),
        ({"strides": (-1,)}, "strides"),
        ({"strides": (1, 1)}, "damaged"),
    ],
)
def test_no_tensor_reaches_outside_its_storage(tmp_path, change, message):
    tensor = dict(key="0", kind="FloatStorage", size=6, shape=(6,), strides=(1,), offset=0) | change
    path = write_zip(tmp_path / "w.pth", pickled_dict({"a": pickled_tensor(**tensor)}), {"0": SIX.tobytes()})
    with pytest.raises(WeightsError, match=message):
        read(path)


def test_a_description_cannot_rewrite_a_checked_tensor(tmp_path):
    tensor = pickled_tensor("0", "FloatStorage", 6, (6,), (1,))
    rewritten = tensor + pickled_dict({"shape": b"(I1000\nt"}) + b"b"
    path = write_zip(tmp_path / "w.pth", pickled_dict({"a": rewritten}), {"0": SIX.tobytes()})
    with pytest.raises(WeightsError, match="rewrites a tensor"):
        read(path)


def test_a_small_file_cannot_claim_much_memory(tmp_path):
    huge = {
        "memo number": b"}r\xff\xff\xff\x7f",
        "expected 2147483647 bytes": b"}B\xff\xff\xff\x7fabc",
        "a tensor of shape": pickled_dict(
            {"a": pickled_tensor("0", "FloatStorage", 6, (2**40, 2**40), (0, 0))}
        ),
    }
    for message, program in huge.items():
        path = write_zip(tmp_path / "w.pth", program, {"0": SIX.tobytes()})
        with pytest.raises(WeightsError, match=message):
            read(path)


def test_damage_is_named_with_the_file(tmp_path):
    whole = hand_made(tmp_path / "w.pth").read_bytes()
    flipped = whole.replace(SIX.tobytes(), SIX[::-1].tobytes())
    cases = {
        "cut.pth": (whole[: len(whole) // 2], "truncated or damaged"),
        "flipped.pth": (flipped, "does not match its checksum"),
        "empty.pth": (b"", "neither a zip"),
        "page.bin": (b"<!DOCTYPE html>", "neither a zip"),
        "pointer.bin": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "cut.safetensors": (b"\x10\x00", "damaged"),
        "w.index.json": (b"{}", "weight_map"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=f"{name}.*{message}"):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        read(tmp_path / "nothing.pth")


def test_old_formats_are_named_with_the_fix(tmp_path):
    (tmp_path / "magic.pth").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    (tmp_path / "tar.pth").write_bytes(b"\0" * 257 + b"ustar")
    for path in tmp_path.iterdir():
        with pytest.raises(WeightsError, match="before torch 1.6.*torch.save"):
            read(path)


def test_the_old_format_that_torch_still_writes_is_recognised(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(2)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match="before torch 1.6"):
        read(tmp_path / "w.pth")


def test_zip_archives_of_other_kinds_are_named(tmp_path):
    path = write_zip(tmp_path / "list.pth", b"]", {})
    with pytest.raises(WeightsError, match="holds a list"):
        read(path)
    path = write_zip(tmp_path / "none.pth", b"}", {})
    with pytest.raises(WeightsError, match="holds no named tensors"):
        read(path)


def test_shards_and_folders_of_hugging_face(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    save_safetensors(tmp_path / "1.safetensors", {"a": SIX})
    with pytest.raises(FileNotFoundError, match="2.safetensors"):
        read(index)
    save_safetensors(tmp_path / "2.safetensors", {"c": SIX})
    with pytest.raises(WeightsError, match="2.safetensors does not hold 'b'"):
        read(index)
    save_safetensors(tmp_path / "2.safetensors", {"b": SIX, "unlisted": SIX})
    assert_same(read(tmp_path), {"a": SIX, "b": SIX})
    index.write_text(json.dumps({"weight_map": {"a": "../1.safetensors"}}))
    with pytest.raises(WeightsError, match="not a plain file name"):
        read(index)
