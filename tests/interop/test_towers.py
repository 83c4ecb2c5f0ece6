"""BERT, RoBERTa and ViLT fill a text tower, ViT, CLIP and ViLT a vision tower, under all their names."""

from __future__ import annotations

import numpy as np
import pytest
from foreign_states import VOCAB, D, assert_same, bert, dense, hf_vit, mlm_head, norm, vit
from pair_states import SIDE, bridgetower_hf, hf_clip, openai_clip, roberta, vilt_hf, vilt_original

from jaxvl.interop import (
    WeightsError,
    foreign_params,
    import_text_tower,
    import_vilt,
    import_vision_tower,
    save_safetensors,
)
from jaxvl.interop.files import flatten

RNG = np.random.default_rng


def bert_mlm():
    body = bert(RNG(0), "bert.", layers=2)
    return body | mlm_head(RNG(1), body["bert.embeddings.word_embeddings.weight"])


def prefixed(state, prefix):
    return {prefix + name: array for name, array in state.items()}


def test_bert_fills_the_tower_and_an_untied_decoder_starts_as_the_word_table():
    state = bert_mlm() | dense(RNG(0), "bert.pooler.dense", D, D)
    params = import_text_tower(state).params
    assert sorted(params["text_encoder"]) == ["embeddings", "layers_0", "layers_1"]
    table = state["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(params["mlm_head"]["decoder"]["kernel"], table.T)
    assert "decoder" not in import_text_tower(state, tied=True).params["mlm_head"]
    assert list(import_text_tower(bert(RNG(0))).report.missing) == ["mlm_head/"]


def test_roberta_has_its_own_head_and_one_type():
    state = roberta(RNG(0))
    params = import_text_tower(state).params
    assert params["text_encoder"]["embeddings"]["token_type"]["embedding"].shape == (1, D)
    np.testing.assert_array_equal(params["mlm_head"]["norm"]["bias"], state["lm_head.layer_norm.bias"])
    assert params["mlm_head"]["decoder"]["kernel"].shape == (D, VOCAB)


def test_the_first_layers_are_taken_and_too_few_are_an_error():
    got = import_text_tower(bert_mlm(), layers=1)
    assert sorted(got.params["text_encoder"]) == ["embeddings", "layers_0"]
    assert sum(why == "layer beyond the tower's" for _, why in got.report.unused) == 16
    with pytest.raises(WeightsError, match="the file has 2 layers, the text tower 3: build it with depth=2"):
        import_text_tower(bert_mlm(), layers=3)


@pytest.mark.parametrize("make", [lambda: vilt_hf(RNG(0), "mlm"), lambda: vilt_original(RNG(0))])
def test_a_vilt_fills_both_towers(make):
    whole = import_vilt(make(), grid=5, tied=False).params
    text, vision = import_text_tower(make()), import_vision_tower(make(), grid=5)
    tower = text.params["text_encoder"]
    assert_same(flatten(tower["blocks_1"]), flatten(whole["blocks_1"]))
    rows = whole["modality"]["embedding"]
    np.testing.assert_array_equal(tower["embeddings"]["modality"]["embedding"], rows[:1])
    assert_same(flatten(text.params["mlm_head"]), flatten(whole["mlm_head"]))
    tower = vision.params["visual_encoder"]
    np.testing.assert_array_equal(tower["modality"]["embedding"], rows[1:2])
    np.testing.assert_array_equal(tower["pos_embed"], whole["pos_embed"])
    assert sorted(set(tower) & set(whole)) == sorted(tower)
    assert sorted(import_text_tower(make(), layers=1).params["text_encoder"]) == [
        "blocks_0",
        "embeddings",
        "norm",
    ]


CLIPS = {
    "OpenAI": lambda: prefixed(openai_clip(RNG(0)), "visual."),
    "OpenAI with text": lambda: (
        prefixed(openai_clip(RNG(0)), "visual.")
        | norm(RNG(0), "transformer.resblocks.0.ln_1")
        | {"visual.proj": np.ones((D, 3), np.float32), "logit_scale": np.ones((), np.float32)}
        | {"input_resolution": np.array(224), "positional_embedding": np.ones((7, D), np.float32)}
    ),
    "Hugging Face": lambda: hf_clip(RNG(0)),
    "Hugging Face, both sides": lambda: (
        prefixed(hf_clip(RNG(0)), "vision_model.")
        | norm(RNG(0), "text_model.final_layer_norm")
        | {"visual_projection.weight": np.ones((3, D), np.float32), "logit_scale": np.ones((), np.float32)}
    ),
}


@pytest.mark.parametrize("name", CLIPS)
def test_clip_fills_the_tower(name):
    state = CLIPS[name]()
    got = import_vision_tower(state)
    tower = got.params["visual_encoder"]
    assert set(tower) == {
        "cls_token",
        "pos_embed",
        "patch_embed",
        "norm_pre",
        "blocks_0",
        "blocks_1",
        "norm",
    }
    assert list(tower["patch_embed"]) == ["kernel"]
    assert tower["cls_token"].shape == (1, 1, D)
    assert tower["pos_embed"].shape == (1, 5, D)
    assert {why for _, why in got.report.unused} <= {"no part of the vision tower"}
    if name.startswith("OpenAI"):
        fused = state["visual.transformer.resblocks.1.attn.in_proj_weight"]
        np.testing.assert_array_equal(tower["blocks_1"]["attn"]["key"]["kernel"], fused[D : 2 * D].T)
    else:
        name = next(k for k in state if k.endswith("layers.1.self_attn.k_proj.weight"))
        np.testing.assert_array_equal(tower["blocks_1"]["attn"]["key"]["kernel"], state[name].T)


@pytest.mark.parametrize(
    "make", [lambda: vit(RNG(0)), lambda: hf_vit(RNG(0)), lambda: hf_vit(RNG(0), memory=True)]
)
def test_a_vit_fills_the_tower(make):
    tower = import_vision_tower(make()).params["visual_encoder"]
    assert set(tower) == {"cls_token", "pos_embed", "patch_embed", "blocks_0", "blocks_1", "norm"}


@pytest.mark.parametrize(
    ("load", "make", "change", "message"),
    [
        (import_text_tower, bert_mlm, lambda s: vit(RNG(0)), "not a BERT, RoBERTa or ViLT"),
        (import_text_tower, bert_mlm, lambda s: bridgetower_hf(RNG(0)), "not a BERT, RoBERTa or ViLT"),
        (
            import_text_tower,
            bert_mlm,
            lambda s: s | {"bert.encoder.layer.1.output.dense.weight": np.ones((D, 2 * D), np.float32)},
            "'encoder.layer.1.output.dense.weight': text_encoder/layers_1/ffn/down/kernel would have shape",
        ),
        (
            import_text_tower,
            bert_mlm,
            lambda s: s | {"bert.adapter": np.ones(1, np.float32)},
            "unknown: adapter",
        ),
        (
            import_text_tower,
            bert_mlm,
            lambda s: {k: v for k, v in s.items() if k != "bert.encoder.layer.0.attention.self.key.bias"},
            "missing: text_encoder/layers_0/attention/key/bias",
        ),
        (import_vision_tower, CLIPS["OpenAI"], lambda s: bert_mlm(), "not a ViT"),
        (
            import_vision_tower,
            CLIPS["Hugging Face"],
            lambda s: s | {"post_layernorm.bias": np.ones(D + 1, np.float32)},
            "'post_layernorm.bias'",
        ),
        (
            import_vision_tower,
            CLIPS["Hugging Face"],
            lambda s: {k: v for k, v in s.items() if k != "embeddings.class_embedding"},
            "missing: visual_encoder/cls_token",
        ),
        (
            import_vision_tower,
            CLIPS["Hugging Face"],
            lambda s: s | dense(RNG(0), "adapter", D, D),
            "unknown: adapter.weight",
        ),
        (
            import_vision_tower,
            lambda: vit(RNG(0)),
            lambda s: s | {"blocks.0.attn.qkv.weight": np.ones((3 * D, D + 1), np.float32)},
            "'blocks.0.attn.qkv.weight'",
        ),
    ],
)
def test_what_cannot_be_imported_is_refused(load, make, change, message):
    with pytest.raises(WeightsError, match=message):
        load(change(make()))


def like(**changes):
    tower = {"pos_embed": np.zeros((1, 1 + SIDE**2, D)), "blocks_0_1": {}, "blocks_1": {}}
    head = {"norm": {"scale": np.zeros(D)}, "decoder": {}}
    text = {"embeddings": {}, "layers_0": {}}
    return {"bridge": {}, "text_encoder": text, "visual_encoder": tower, "mlm_head": head} | changes


def test_a_config_names_the_files_of_its_towers(tmp_path):
    weights = {"text": str(tmp_path / "text.safetensors"), "vision": str(tmp_path / "vision.safetensors")}
    save_safetensors(weights["text"], bert_mlm())
    save_safetensors(weights["vision"], hf_clip(RNG(0)))
    params = foreign_params(weights, like())
    assert sorted(params) == ["mlm_head", "text_encoder", "visual_encoder"]
    assert sorted(params["text_encoder"]) == ["embeddings", "layers_0"]  # as deep as the model's
    assert "decoder" in params["mlm_head"]
    wide = {"norm": {"scale": np.zeros(2 * D)}, "decoder": {}}
    assert "mlm_head" not in foreign_params({"text": weights["text"]}, like(mlm_head=wide))
    save_safetensors(weights["vision"], vilt_hf(RNG(0)))
    visual = foreign_params({"vision": weights["vision"]}, like())["visual_encoder"]
    assert visual["pos_embed"].shape == (1, 1 + SIDE**2, D)
