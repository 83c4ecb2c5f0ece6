"""EfficientNet's names fill the model as a whole, from npz and PyTorch files; what is not Lite is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from efficientnet_states import SMALL, small_state
from flax import linen as nn

from jaxvl.interop import WeightsError, save_safetensors
from jaxvl.interop.efficientnet import import_efficientnet, load_efficientnet
from jaxvl.interop.files import flatten


def test_every_parameter_of_the_model_is_filled_and_every_tensor_used():
    imported = import_efficientnet(small_state())
    image = np.zeros((1, 8, 8, 3), np.float32)
    like = jax.eval_shape(lambda: SMALL.init(jax.random.key(0), image, method=SMALL.classify))
    want = {path: leaf.shape for path, leaf in _leaves(nn.unbox(like)["params"]).items()}
    assert {path: a.shape for path, a in flatten(imported.params).items()} == want
    assert not imported.report.unused and not imported.report.missing
    assert len(imported.report.mapped) == len(small_state())


def _leaves(tree, prefix=""):
    if hasattr(tree, "shape"):
        return {prefix[:-1]: tree}
    return {k: v for name, part in tree.items() for k, v in _leaves(part, f"{prefix}{name}/").items()}


def test_kernels_are_turned_and_half_precision_becomes_single():
    state = {name: a.astype(np.float16) for name, a in small_state().items()}
    params = import_efficientnet(state).params
    block = params["blocks_1"]
    assert block["expand"]["kernel"].dtype == np.float32 and block["depthwise"]["kernel"].shape == (
        5,
        5,
        1,
        12,
    )
    want = state["_blocks.1._expand_conv.weight"][7, 3, 0, 0].astype(np.float32)
    assert block["expand"]["kernel"][3, 7] == want
    want = state["_blocks.1._depthwise_conv.weight"][7, 0, 4, 1].astype(np.float32)
    assert block["depthwise"]["kernel"][4, 1, 0, 7] == want


def test_files_of_both_kinds_give_the_same(tmp_path):
    state = small_state() | {"_bn0.num_batches_tracked": np.array(7)}
    np.savez(tmp_path / "w.npz", **state)
    save_safetensors(tmp_path / "w.safetensors", state)
    one, two = (load_efficientnet(tmp_path / f"w.{kind}") for kind in ("npz", "safetensors"))
    for path, array in flatten(one.params).items():
        np.testing.assert_array_equal(array, flatten(two.params)[path])
    assert dict(one.report.unused) == {
        "_bn0.num_batches_tracked": "counter of training steps",
        "_fc.weight": "class head",
        "_fc.bias": "class head",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "_conv_stem.weight"}, "not an EfficientNet"),
        (lambda s: s | {"_blocks.1._se_reduce.weight": np.ones((1, 4, 1, 1))}, "use a Lite variant"),
        (lambda s: {k: v for k, v in s.items() if k != "_bn1.running_var"}, "missing: head_norm/var"),
        (lambda s: {k: v for k, v in s.items() if k != "_blocks.1._expand_conv.weight"}, "blocks_1/expand/"),
        (lambda s: s | {"_blocks.1._bn3.weight": np.ones(4)}, r"unknown: _blocks.1._bn3.weight \(expected"),
        (lambda s: s | {"_conv_head.weight": np.ones((8, 6, 3, 3))}, "_conv_head.weight' of shape"),
        (lambda s: {k: v for k, v in s.items() if k != "_fc.bias"}, "missing: class_head/bias"),
    ],
)
def test_what_cannot_be_imported_is_refused(change, message):
    with pytest.raises(WeightsError, match=message):
        import_efficientnet(change(small_state()))


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and then nothing")
    np.savez(tmp_path / "objects.npz", _conv_stem=np.array([{}], object))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name, why in {"cut": "damaged", "objects": "plain arrays", "other": "not an EfficientNet"}.items():
        with pytest.raises(WeightsError, match=rf"{name}\.npz: .*{why}"):
            load_efficientnet(tmp_path / f"{name}.npz")
    with pytest.raises(FileNotFoundError, match="absent.npz: no such file"):
        load_efficientnet(tmp_path / "absent.npz")
