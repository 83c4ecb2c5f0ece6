"""Imported BridgeTower weights compute what transformers' BridgeTower computes, in every variant that it has."""

from __future__ import annotations

import numpy as np
import pytest
from hf_models import (
    BRIDGE_TOWER,
    IDS,
    IMAGE,
    MASK,
    close,
    cross_first,
    fuse,
    hf_bridgetower,
    run,
    run_hf,
    state_of,
)

from jaxvl.interop import import_bridgetower

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _torch():
    pytest.importorskip("torch", reason="compares with PyTorch")
    pytest.importorskip("transformers", reason="compares with transformers")


def compare(hf, model=BRIDGE_TOWER):
    """Our outputs are those of `hf`, text rows at padding included."""
    fused = run(model, import_bridgetower(state_of(hf)).params, fuse, IMAGE, IDS, MASK)
    want = run_hf(hf)
    close(fused.text, want.text_features, 1e-5)
    close(fused.image, want.image_features, 1e-5)
    close(fused.pooled, want.pooler_output, 1e-5)
    return fused


def with_cross(**kwargs):
    return BRIDGE_TOWER.clone(cross=dict(BRIDGE_TOWER.cross) | kwargs)


def test_order_post_is_bridgetower():
    compare(hf_bridgetower())


def test_order_pre_is_bridgetower_with_cross_attention_first(monkeypatch):
    from transformers.models.bridgetower import modeling_bridgetower as source

    post = compare(hf_bridgetower())
    monkeypatch.setattr(source.BridgeTowerBertCrossLayer, "forward", cross_first)
    pre = compare(hf_bridgetower(), with_cross(order="pre"))
    assert np.abs(pre.text - post.text).max() > 0.1


def test_what_the_bridge_taps_are_the_hidden_states():
    hf = hf_bridgetower()
    params = import_bridgetower(state_of(hf)).params
    taps = run(
        BRIDGE_TOWER,
        params,
        lambda m, image, text, mask: (m.text_encoder(text, mask).taps, m.visual_encoder(image).taps),
        IMAGE,
        IDS,
        MASK,
    )
    texts, images, _ = run_hf(hf, output_hidden_states=True).hidden_states
    for n in range(3):
        close(taps[0][n], texts[n - 3], 1e-5)
        close(taps[1][n], hf.vision_model.visual.forward_post(images[n - 3]), 1e-5)


@pytest.mark.parametrize(
    ("option", "bridge"),
    [("scaled_add", "scaled_add"), ("interpolate", "interpolate"), (None, "add")],
    ids=["scaled add", "interpolate", "own projections"],
)
def test_bridges_and_projections_of_every_kind(option, bridge):
    shared = option is not None
    kwargs = dict(link_tower_type=option) if shared else dict(share_cross_modal_transformer_layers=False)
    compare(hf_bridgetower(**kwargs), with_cross(bridge=bridge, share_projection=shared))


def test_vocabulary_and_matching_logits():
    hf = hf_bridgetower("BridgeTowerForMaskedLM")
    params = import_bridgetower(state_of(hf)).params
    logits = run(BRIDGE_TOWER, params, lambda m, *batch: m.mlm_logits(fuse(m, *batch).text), IMAGE, IDS, MASK)
    close(logits, run_hf(hf).logits, 1e-4)
    hf = hf_bridgetower("BridgeTowerForImageAndTextRetrieval")
    params = import_bridgetower(state_of(hf)).params
    for tokens in ("all", "class"):
        match = lambda m, *batch: m.match_logits(fuse(m, *batch, tokens=tokens))  # noqa: B023, E731
        close(run(BRIDGE_TOWER, params, match, IMAGE, IDS, MASK), run_hf(hf).logits, 1e-4)


def test_contrastive_embeddings():
    hf = hf_bridgetower("BridgeTowerForContrastiveLearning")
    params = import_bridgetower(state_of(hf)).params
    want = run_hf(hf)
    text = run(BRIDGE_TOWER, params, lambda m, *text: m.text_embed(m.encode_text(*text)), IDS, MASK)
    close(text, want.text_embeds, 1e-5)
    image = run(BRIDGE_TOWER, params, lambda m, x: m.image_embed(m.encode_image(x)), IMAGE)
    close(image, want.image_embeds, 1e-5)
    temperature = run(BRIDGE_TOWER, params, lambda m: m.temperature())
    close(text @ image.T / temperature, want.text_embeds @ want.image_embeds.T * hf.logit_scale.exp(), 1e-4)


def test_contrastive_embeddings_are_the_normalised_projection_of_the_class_tokens():
    params = import_bridgetower(state_of(hf_bridgetower())).params
    rng = np.random.default_rng(1)
    head = {"kernel": rng.standard_normal((128, 7), np.float32), "bias": rng.standard_normal(7, np.float32)}
    params |= {"text_proj": head, "vision_proj": head}
    both = lambda m, text, mask: (m.encode_text(text, mask).last, m.text_embed(m.encode_text(text, mask)))  # noqa: E731
    last, got = run(BRIDGE_TOWER, params, both, IDS, MASK)
    want = np.asarray(last)[:, 0].astype(np.float64) @ head["kernel"] + head["bias"]
    close(got, want / np.linalg.norm(want, axis=-1, keepdims=True), 1e-6)
