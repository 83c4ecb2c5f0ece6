"""Proves single towers leave as they came: a round trip is exact to the bit, and what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest
from foreign_states import D, assert_same, bert, hf_vit, vit
from pair_states import bridgetower_hf, hf_clip, openai_clip, roberta, vilt_hf

from jaxvl.interop import (
    WeightsError,
    export_text_tower,
    export_vision_tower,
    foreign_params,
    import_text_tower,
    import_vision_tower,
    save_safetensors,
)
from jaxvl.interop.__main__ import main
from jaxvl.interop.files import flatten, load_safetensors, save_params

RNG = np.random.default_rng
REST = {"shallow": {"fc": {"kernel": np.ones((D, D), np.float32)}}, "itm_head": {"bias": np.ones(2)}}


def same(got, want):
    assert_same(got, {name: array for name, array in want.items() if "position_ids" not in name})


@pytest.mark.parametrize("prefix", ["bert.", "roberta."])
def test_a_text_tower_leaves_as_bert_or_roberta_and_the_rest_stays(prefix):
    state = bert(RNG(0), prefix, layers=2)
    if prefix == "roberta.":
        state["roberta.embeddings.token_type_embeddings.weight"] = np.ones((1, D), np.float32)
    same(export_text_tower(import_text_tower(state).params | REST), state)


@pytest.mark.parametrize("tied", [True, False])
def test_the_language_model_head_comes_along_if_asked_for(tied):
    state = roberta(RNG(0))
    params = import_text_tower(state, tied=tied).params
    got = export_text_tower(params, head=True)
    np.testing.assert_array_equal(
        got.pop("lm_head.decoder.weight"), state["roberta.embeddings.word_embeddings.weight"]
    )
    same(got, state)
    again = import_text_tower(export_text_tower(params, head=True), tied=tied).params
    assert_same(flatten(again), flatten(params))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: {f"vit.{k}": v for k, v in hf_vit(RNG(0)).items() if not k.startswith("pooler")}, "hf"),
        (lambda: vit(RNG(0)), "original"),
        (lambda: {f"vision_model.{k}": v for k, v in hf_clip(RNG(0)).items()}, "hf"),
        (lambda: {f"visual.{k}": v for k, v in openai_clip(RNG(0)).items()}, "original"),
    ],
)
def test_a_vision_tower_leaves_as_vit_or_clip(make, names):
    params = import_vision_tower(make()).params
    same(export_vision_tower(params | REST, names=names), make())
    again = import_vision_tower(export_vision_tower(params)).params
    assert_same(flatten(again), flatten(params))


def without(params, path):
    """A copy of nested `params` without the tensor at `path`."""
    head, _, rest = path.partition("/")
    inner = {head: without(params[head], rest)} if rest else {}
    return {k: v for k, v in params.items() if k != head} | inner


@pytest.mark.parametrize(
    ("export", "make", "message"),
    [
        (
            export_text_tower,
            lambda: import_text_tower(vilt_hf(RNG(0))),
            "a tower of ViLT is no model of its own",
        ),
        (export_vision_tower, lambda: import_vision_tower(vilt_hf(RNG(0)), grid=3), "a tower of ViLT"),
        (export_text_tower, lambda: import_vision_tower(hf_clip(RNG(0))), "params have no text_encoder"),
    ],
)
def test_towers_without_a_counterpart_are_refused(export, make, message):
    with pytest.raises(WeightsError, match=message):
        export(make().params)


def test_a_tower_must_be_whole_and_have_nothing_more():
    params = import_text_tower(bert(RNG(0), "bert.", layers=2)).params
    lost = without(params, "text_encoder/layers_1/ffn/up/bias")
    with pytest.raises(
        WeightsError, match="lack 'text_encoder/layers_1/ffn/up/bias', which a BERT has; 1 such"
    ):
        export_text_tower(lost)
    more = {"text_encoder": params["text_encoder"] | {"adapter": np.ones(1)}}
    with pytest.raises(WeightsError, match="'text_encoder/adapter' has no name in BERT's format"):
        export_text_tower(more)
    with pytest.raises(WeightsError, match="names='timm': expected 'hf' or 'original'"):
        export_vision_tower(import_vision_tower(hf_clip(RNG(0))).params, names="timm")


def test_the_command_writes_towers_of_a_whole_model(tmp_path):
    state = bert(RNG(0), "bert.", layers=2)
    save_params(tmp_path / "params.safetensors", import_text_tower(state).params | REST)
    out = tmp_path / "bert.safetensors"
    assert (
        main(
            [
                "convert",
                str(tmp_path / "params.safetensors"),
                str(out),
                "--from",
                "jaxvl",
                "--to",
                "text_tower",
            ]
        )
        == 0
    )
    same(load_safetensors(out), state)


def test_a_config_chooses_layers_of_a_bridgetower_file(tmp_path):
    path = str(tmp_path / "bridge.safetensors")
    state = bridgetower_hf(RNG(0), depth=6)
    save_safetensors(path, state)
    like = {
        "bridge": {},
        "cross": {f"layers_{i}": {} for i in range(3)},
        "text_encoder": {},
        "visual_encoder": {},
    }
    with pytest.raises(WeightsError, match=r"pass take=\(3, 4, 5\)"):
        foreign_params({"bridgetower": path}, like)
    params = foreign_params({"bridgetower": path}, like, take=(3, 4, 5))
    name = next(k for k in state if "cross_modal_text_layers.5.attention.self.key.weight" in k)
    kernel = params["cross"]["layers_2"]["text"]["attention"]["key"]["kernel"]
    np.testing.assert_array_equal(kernel, state[name].T)
    with pytest.raises(WeightsError, match=r"take=\(0,\) chooses cross-modal layers of weights.bridgetower"):
        foreign_params({"text": path}, like, take=(0,))
