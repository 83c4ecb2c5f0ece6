"""MCAN files of openvqa and mcan-vqa fill MCAN and come back bit for bit; what does not fit is refused by name."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import linen as nn
from foreign_states import assert_same, dense, normal, vit

from jaxvl.interop import WeightsError, read
from jaxvl.interop.files import flatten
from jaxvl.interop.mcan import ADAPTERS, export_mcan, import_mcan
from jaxvl.models.mcan import MCAN

RNG = np.random.default_rng
WORDS, E, D, MLP, FLAT, HIDDEN, F, CLASSES = 11, 3, 4, 6, 10, 7, 5, 8
SIZES = dict(feat_dim=F, width=D, heads=2, mlp=MLP, depth=2, flat=FLAT, flat_mlp=HIDDEN, word_dim=E)
MODEL = MCAN(words=WORDS, classes=CLASSES, **SIZES)


def state_of(release: str = "openvqa", *, layers: int = 2) -> dict[str, np.ndarray]:
    """A tiny random state dict, written out from the published names."""
    rng = RNG(0)
    state = {"embedding.weight": normal(rng, WORDS, E)}
    for side, inputs in (("ih", E), ("hh", D)):
        state |= {
            f"lstm.weight_{side}_l0": normal(rng, 4 * D, inputs),
            f"lstm.bias_{side}_l0": normal(rng, 4 * D),
        }
    state |= dense(rng, ADAPTERS[release], D, F)
    for part, attentions in (("enc", ["mhatt"]), ("dec", ["mhatt1", "mhatt2"])):
        for i in range(layers):
            here = f"backbone.{part}_list.{i}."
            for name in attentions:
                for linear in ("linear_v", "linear_k", "linear_q", "linear_merge"):
                    state |= dense(rng, f"{here}{name}.{linear}", D, D)
            state |= dense(rng, here + "ffn.mlp.fc.linear", MLP, D) | dense(
                rng, here + "ffn.mlp.linear", D, MLP
            )
            for k in range(1, len(attentions) + 2):
                state |= {f"{here}norm{k}.a_2": normal(rng, D), f"{here}norm{k}.b_2": normal(rng, D)}
    for name in ("attflat_img", "attflat_lang"):
        state |= dense(rng, name + ".mlp.fc.linear", HIDDEN, D) | dense(rng, name + ".mlp.linear", 1, HIDDEN)
        state |= dense(rng, name + ".linear_merge", FLAT, D)
    state |= {"proj_norm.a_2": normal(rng, FLAT), "proj_norm.b_2": normal(rng, FLAT)}
    return state | dense(rng, "proj", CLASSES, FLAT)


@pytest.mark.parametrize("release", ADAPTERS)
def test_round_trip_is_bit_exact_by_way_of_either_release(release):
    imported = import_mcan(state_of(release))
    assert imported.report.unused == imported.report.missing == ()
    assert_same(export_mcan(imported.params, names=release), state_of(release))
    for other in ADAPTERS:
        again = import_mcan(export_mcan(imported.params, names=other))
        assert_same(flatten(again.params), flatten(imported.params))


def test_a_file_fills_the_whole_model():
    shapes = [
        jax.ShapeDtypeStruct(s, t)
        for s, t in (((1, 2, F), "float32"), ((1, 2), bool), ((1, 3), "int32"), ((1, 3), bool))
    ]
    fresh = nn.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), *shapes))["params"]
    want = {k: v.shape for k, v in flatten(jax.tree.map(lambda x: np.zeros(x.shape), fresh)).items()}
    assert {k: v.shape for k, v in flatten(import_mcan(state_of()).params).items()} == want


def test_where_tensors_go():
    state = state_of()
    params = flatten(import_mcan(state).params)
    query = state["backbone.dec_list.1.mhatt2.linear_q.weight"]
    np.testing.assert_array_equal(params["decoder_1/guided_attn/query/kernel"], query.T)
    np.testing.assert_array_equal(params["lstm/hh/kernel"], state["lstm.weight_hh_l0"].T)
    np.testing.assert_array_equal(params["norm/scale"], state["proj_norm.a_2"])


def test_a_checkpoint_of_a_training_run_under_a_parallel_wrapper_is_read(tmp_path):
    torch = pytest.importorskip("torch", reason="writes a file with PyTorch")
    inner = {f"module.{k}": torch.tensor(v) for k, v in state_of().items()}
    optimizer = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-4}]}
    torch.save({"state_dict": inner, "optimizer": optimizer, "lr_base": 1e-4}, tmp_path / "epoch13.pkl")
    assert_same(export_mcan(import_mcan(read(tmp_path / "epoch13.pkl")).params), state_of())


def without(state, *names):
    assert all(name in state for name in names)
    return {k: v for k, v in state.items() if k not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: vit(RNG(0)), "not an MCAN of openvqa or mcan-vqa"),
        (lambda s: s | state_of("mcan-vqa"), "not an MCAN"),
        (lambda s: {"state_dict": s}, r"pass state\['state_dict'\]"),
        (lambda s: without(s, "proj.bias"), "missing: class_head/bias"),
        (lambda s: without(s, "lstm.bias_hh_l0"), "missing: lstm/hh/bias"),
        (lambda s: without(s, "backbone.dec_list.0.norm3.a_2"), "missing: decoder_0/norm3/scale"),
        (lambda s: s | dense(RNG(0), "adapter.bbox_linear", D, 5), "unknown: adapter.bbox_linear.weight"),
        (lambda s: s | {"backbone.enc_list.2.norm1.a_2": normal(RNG(0), D)}, "missing: decoder_2/"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_refused(change, message):
    with pytest.raises(WeightsError, match=message):
        import_mcan(change(state_of()))


def test_unless_strict_what_is_there_is_imported_and_the_rest_reported():
    state = without(state_of(), "proj.weight", "proj.bias") | dense(RNG(0), "adapter.bbox_linear", D, 5)
    report = import_mcan(state, strict=False).report
    assert report.missing == ("class_head/",)
    assert {name for name, _ in report.unused} == {"adapter.bbox_linear.weight", "adapter.bbox_linear.bias"}


@pytest.mark.parametrize("name", sorted(without(state_of(), "embedding.weight", "proj.bias")))
def test_every_misshaped_tensor_is_refused_by_its_name(name):
    state = state_of()
    state[name] = np.ones((state[name].shape[0] + 1, *state[name].shape[1:]), np.float32)
    with pytest.raises(WeightsError, match="would have shape") as error:
        import_mcan(state)
    expected = {name, "proj.bias"} if name == "proj.weight" else {name}  # two tensors tell the classes
    assert any(repr(n) in str(error.value) for n in expected)


def test_export_names_a_parameter_it_cannot_write():
    params = import_mcan(state_of()).params
    with pytest.raises(WeightsError, match="'loss_net/out/kernel' has no name in MCAN's format"):
        export_mcan(params | {"loss_net": {"out": {"kernel": np.zeros((2, 1))}}})
    with pytest.raises(WeightsError, match="names='hf'"):
        export_mcan(params, names="hf")
