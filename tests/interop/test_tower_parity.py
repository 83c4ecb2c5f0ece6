"""Imported towers compute every layer's output as transformers does, and with the bridge of its BridgeTower the
default model, which transformers lacks."""

from __future__ import annotations

from functools import partial

import pytest
from hf_models import (
    CROSS,
    IDS,
    IMAGE,
    LAYERS,
    MASK,
    TEXT,
    VOCAB,
    WIDTH,
    close,
    fuse,
    hf_bridgetower,
    perturbed,
    run,
    state_of,
)

from jaxvl.interop import import_bridgetower, import_text_tower, import_vision_tower, read
from jaxvl.models.bridge_tower import BridgeTower
from jaxvl.models.towers import TextTower, VisionTower

pytestmark = pytest.mark.torch
EACH = tuple((layer,) for layer in range(1, LAYERS + 1))
IMAGES = dict(
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    intermediate_size=192,
    image_size=96,
    patch_size=32,
)
SIZES = dict(width=WIDTH, depth=LAYERS, heads=4, mlp=192, taps=EACH)


@pytest.fixture(autouse=True)
def _torch():
    pytest.importorskip("torch", reason="compares with PyTorch")
    pytest.importorskip("transformers", reason="compares with transformers")


def hf_text(name, **kwargs):
    import transformers

    config = getattr(transformers, f"{name}Config")(attn_implementation="eager", **TEXT, **kwargs)
    return perturbed(partial(getattr(transformers, f"{name}Model"), add_pooling_layer=False), config)


def text_states(hf):
    import torch

    with torch.no_grad():
        ids, mask = torch.tensor(IDS), torch.tensor(MASK).long()
        return hf(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states


def image_states(hf):
    import torch

    with torch.no_grad():
        return hf(torch.tensor(IMAGE).permute(0, 3, 1, 2).double(), output_hidden_states=True).hidden_states


def hf_vit():
    import transformers

    config = transformers.ViTConfig(attn_implementation="eager", **IMAGES)
    return perturbed(partial(transformers.ViTModel, add_pooling_layer=False), config)


@pytest.mark.parametrize(("name", "types", "eps"), [("Bert", 2, 1e-12), ("Roberta", 1, 1e-5)])
def test_text_layers(name, types, eps):
    hf = hf_text(name, type_vocab_size=types, layer_norm_eps=eps)
    tower = TextTower(arch=name.lower(), vocab_size=VOCAB, max_positions=50, eps=eps, **SIZES)
    params = import_text_tower(state_of(hf)).params["text_encoder"]
    taps = run(tower, params, lambda m, *text: m(*text).taps, IDS, MASK)
    for got, want in zip(taps, text_states(hf)[1:], strict=True):
        close(got, want, 1e-5)


def test_vit_layers_under_both_names(tmp_path):
    hf = hf_vit()
    hf.save_pretrained(tmp_path)
    tower = VisionTower(arch="vit", image_size=96, patch=32, eps=1e-12, **SIZES)
    for state in (state_of(hf), read(tmp_path)):  # in memory, and as saved
        params = import_vision_tower(state).params["visual_encoder"]
        taps = run(tower, params, lambda m, image: m(image).taps, IMAGE)
        for got, want in zip(taps, image_states(hf)[1:], strict=True):
            close(got, hf.layernorm(want), 1e-5)


def test_clip_layers():
    import transformers

    config = transformers.CLIPVisionConfig(hidden_act="quick_gelu", attn_implementation="eager", **IMAGES)
    hf = perturbed(transformers.CLIPVisionModel, config)
    tower = VisionTower(arch="clip", image_size=96, patch=32, eps=1e-5, **SIZES)
    params = import_vision_tower(state_of(hf)).params["visual_encoder"]
    taps = run(tower, params, lambda m, image: m(image).taps, IMAGE)
    norm = getattr(hf, "vision_model", hf).post_layernorm
    for got, want in zip(taps, image_states(hf)[1:], strict=True):
        close(got, norm(want), 1e-5)


def cross_modal(hf, texts, images, order):
    """transformers' bridge and cross-modal layers over given taps, in the order of its calls."""
    import torch

    def attend(layer, x, y, own, other):
        cross = lambda x: layer.crossattention(  # noqa: E731
            x, attention_mask=own, encoder_hidden_states=y, encoder_attention_mask=other
        )[0]
        itself = lambda x: layer.attention(x, attention_mask=own)[0]  # noqa: E731
        x = itself(cross(x)) if order == "pre" else cross(itself(x))
        return layer.feed_forward_chunk(x)

    mask = torch.where(torch.tensor(MASK)[:, None, None], 0.0, -1e30).double()
    types = hf.token_type_embeddings.weight
    text = image = None
    for n in range(CROSS):
        x = hf.cross_modal_text_transform(texts[n]) + types[0]
        y = hf.cross_modal_image_transform(images[n]) + types[1]
        if n == 0:
            x, y = hf.cross_modal_text_layernorm(x), hf.cross_modal_image_layernorm(y)
        else:
            x = hf.cross_modal_text_link_tower[n - 1](x, text, mask)
            y = hf.cross_modal_image_link_tower[n - 1](y, image, None)
        text = attend(hf.cross_modal_text_layers[n], x, y, mask, None)
        image = attend(hf.cross_modal_image_layers[n], y, x, None, mask)
    return text, image, hf.get_cls_features(text, image)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_the_default_towers_with_the_bridge(order):
    import torch

    bert, vit, hf = hf_text("Bert"), hf_vit(), hf_bridgetower()
    params = import_bridgetower(state_of(hf)).params
    params |= import_text_tower(state_of(bert)).params | import_vision_tower(state_of(vit)).params
    model = BridgeTower(
        vocab_size=VOCAB,
        width=WIDTH,
        heads=4,
        mlp=192,
        image_size=96,
        text=dict(depth=LAYERS, max_positions=50),
        vision=dict(depth=LAYERS),
        cross=dict(order=order, eps=1e-5),
    )
    fused = run(model, params, fuse, IMAGE, IDS, MASK)
    with torch.no_grad():
        images = [vit.layernorm(x) for x in image_states(vit)[-CROSS:]]
        want = cross_modal(hf, text_states(bert)[-CROSS:], images, order)
    for got, expected in zip((fused.text, fused.image, fused.pooled), want, strict=True):
        close(got, expected, 1e-5)
