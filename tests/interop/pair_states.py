"""Tiny random state dicts in the names of ViLT, BridgeTower, RoBERTa and CLIP, written out from their layouts."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from foreign_states import MLP, PATCH, VOCAB, D, State, bert, dense, hf_vit, norm, normal, vit

SIDE = 3  # patches per side
CLASSES = 5


def renamed(state: State, *changes: tuple[str, str]) -> State:
    """`state` with each (pattern, replacement) made in every name."""
    out = {}
    for name, array in state.items():
        for pattern, new in changes:
            name = re.sub(pattern, new, name)
        out[name] = array
    return out


def class_head(rng: np.random.Generator, name: str, *, into: int = D, classes: int = CLASSES) -> State:
    state = dense(rng, f"{name}.0", 2 * D, into) | dense(rng, f"{name}.3", classes, 2 * D)
    return state | {f"{name}.1.weight": normal(rng, 2 * D), f"{name}.1.bias": normal(rng, 2 * D)}


def mlm_score(rng: np.random.Generator, decoder: np.ndarray | None = None) -> State:
    """Head of ViLT and BridgeTower with an untied decoder, unless one is given."""
    state = dense(rng, "mlm_score.transform.dense", D, D) | norm(rng, "mlm_score.transform.LayerNorm")
    decoder = normal(rng, VOCAB, D) if decoder is None else decoder
    return state | {"mlm_score.bias": normal(rng, VOCAB), "mlm_score.decoder.weight": decoder}


def words(rng: np.random.Generator, foreign: str, *, types: int = 2) -> State:
    """BERT's embeddings alone."""
    state = {k: v for k, v in bert(rng, layers=0).items() if "position_ids" not in k}
    state["embeddings.token_type_embeddings.weight"] = normal(rng, types, D)
    return renamed(state, (r"^embeddings\.", foreign))


def vilt_body(rng: np.random.Generator, *, original: bool, images: int = 1) -> State:
    """Embeddings, 2 blocks of a `SIDE` x `SIDE` grid, final norm and pooler."""
    if original:
        state = vit(rng, "transformer.") | words(rng, "text_embeddings.")
        positions, types = "transformer.pos_embed", "token_type_embeddings.weight"
    else:
        state = hf_vit(rng) | words(rng, "embeddings.text_embeddings.")
        positions, types = "embeddings.position_embeddings", "embeddings.token_type_embeddings.weight"
    state[positions] = normal(rng, 1, 1 + SIDE**2, D)
    return state | {types: normal(rng, 1 + images, D)} | dense(rng, "pooler.dense", D, D)


def vilt_hf(rng: np.random.Generator, head: str = "", *, images: int = 1) -> State:
    """A Hugging Face class: `head` "" (ViltModel), "mlm" or "class" (VQA; NLVR2 with two images)."""
    body = vilt_body(rng, original=False, images=images)
    if not head:
        return body
    state = {f"vilt.{name}": array for name, array in body.items()}
    if head == "class":
        return state | class_head(rng, "classifier", into=images * D)
    state |= mlm_score(rng, state["vilt.embeddings.text_embeddings.word_embeddings.weight"])
    return renamed(state, (r"mlm_score\.bias", "mlm_score.decoder.bias"))


def vilt_original(rng: np.random.Generator, task: str = "") -> State:
    """The release: `task` "" has the heads of pre-training, else a classifier."""
    state = vilt_body(rng, original=True, images=2 if task == "nlvr2" else 1)
    if not task:
        return state | mlm_score(rng) | dense(rng, "itm_score.fc", 2, D)
    return state | class_head(rng, f"{task}_classifier", into=2 * D if task == "nlvr2" else D)


def clip(rng: np.random.Generator, *, conv: str, positions: str) -> State:
    """OpenAI's vision encoder of 2 blocks; Hugging Face's BridgeTower calls `conv` and `positions` otherwise."""
    state = {conv + ".weight": normal(rng, D, 3, PATCH, PATCH), positions: normal(rng, 5, D)}
    state[re.sub(r"positional_embedding|position_embedding.*", "class_embedding", positions)] = normal(rng, D)
    for i in range(2):
        block = f"transformer.resblocks.{i}."
        state |= norm(rng, block + "ln_1") | norm(rng, block + "ln_2")
        state |= {block + "attn.in_proj_weight": normal(rng, 3 * D, D)}
        state |= {block + "attn.in_proj_bias": normal(rng, 3 * D)}
        state |= dense(rng, block + "attn.out_proj", D, D)
        state |= dense(rng, block + "mlp.c_fc", MLP, D) | dense(rng, block + "mlp.c_proj", D, MLP)
    return state | norm(rng, "ln_pre") | norm(rng, "ln_post")


def openai_clip(rng: np.random.Generator) -> State:
    return clip(rng, conv="conv1", positions="positional_embedding")


def hf_clip(rng: np.random.Generator) -> State:
    """Hugging Face's CLIP vision model of 2 layers."""
    positions = "embeddings.position_embedding.weight"
    state = {"embeddings.class_embedding": normal(rng, D), positions: normal(rng, 5, D)}
    state["embeddings.patch_embedding.weight"] = normal(rng, D, 3, PATCH, PATCH)
    for i in range(2):
        layer = f"encoder.layers.{i}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= dense(rng, f"{layer}self_attn.{part}", D, D)
        state |= norm(rng, layer + "layer_norm1") | norm(rng, layer + "layer_norm2")
        state |= dense(rng, layer + "mlp.fc1", MLP, D) | dense(rng, layer + "mlp.fc2", D, MLP)
    return state | norm(rng, "pre_layrnorm") | norm(rng, "post_layernorm")


def roberta(rng: np.random.Generator) -> State:
    """RobertaForMaskedLM's body of 2 layers and head, as it is saved (no decoder)."""
    state = bert(rng, "roberta.", layers=2)
    state["roberta.embeddings.token_type_embeddings.weight"] = normal(rng, 1, D)
    state |= dense(rng, "lm_head.dense", D, D) | norm(rng, "lm_head.layer_norm")
    return state | {"lm_head.bias": normal(rng, VOCAB)}


def cross(rng: np.random.Generator, *, depth: int, bridge: str | None, shared: bool) -> State:
    """Projections, types, norms, cross-modal layers and poolers."""
    state = {"token_type_embeddings.weight": normal(rng, 2, D)}
    for modality in ("text", "image"):
        name = f"cross_modal_{modality}"
        layers = {k: v for k, v in bert(rng, layers=depth, cross=0).items() if k.startswith("encoder.")}
        state |= renamed(layers, (r"encoder\.layer", f"{name}_layers"))
        for infix in [""] if shared else [f".{n}" for n in range(depth)]:
            state |= dense(rng, f"{name}_transform{infix}", D, D)
        state |= norm(rng, f"{name}_layernorm") | dense(rng, f"{name}_pooler.dense", D, D)
        for n in range(depth - 1):
            state |= norm(rng, f"{name}_link_tower.{n}.LayerNorm")
            if bridge:
                state[f"{name}_link_tower.{n}.{bridge}"] = normal(rng)
    return state


def bridgetower_hf(
    rng: np.random.Generator,
    head: str = "",
    *,
    depth: int = 3,
    bridge: str | None = None,
    shared: bool = True,
) -> State:
    """A Hugging Face class: `head` "" (BridgeTowerModel), "mlm", "itm" or "itc"."""
    vision = clip(rng, conv="embeddings.patch_embedding", positions="embeddings.position_embedding.weight")
    state = {f"vision_model.visual.{name}": array for name, array in vision.items()}
    text = {k: v for k, v in bert(rng, "text_model.", layers=3).items() if "position_ids" not in k}
    text["text_model.embeddings.token_type_embeddings.weight"] = normal(rng, 1, D)
    state |= text | cross(rng, depth=depth, bridge=bridge, shared=shared)
    if not head:
        return state
    heads: dict[str, Callable[[], State]] = {
        "mlm": lambda: mlm_score(rng),
        "itm": lambda: dense(rng, "itm_score.fc", 2, 2 * D),
        "itc": lambda: (
            {"logit_scale": normal(rng)}
            | dense(rng, "itc_text_head.fc", 3, D)
            | dense(rng, "itc_image_head.fc", 3, D)
            | dense(rng, "itc_cross_modal_head.fc", 3, 2 * D)
        ),
    }
    return {f"bridgetower.{name}": array for name, array in state.items()} | heads[head]()


def bridgetower_original(rng: np.random.Generator, task: str = "", *, timm: bool = False) -> State:
    """The release: heads of pre-training and a temperature, or the classifier of a task; CLIP or a ViT of timm."""
    vision = (
        vit(rng, "vit_model.") if timm else {f"vit_model.visual.{k}": v for k, v in openai_clip(rng).items()}
    )
    text = {k: v for k, v in bert(rng, "text_transformer.", layers=3).items() if "position_ids" not in k}
    state = vision | text | cross(rng, depth=3, bridge=None, shared=True)
    state |= {"temperature": normal(rng)}
    if task:
        return state | class_head(rng, f"{task}_classifier", into=(4 if task == "nlvr2" else 2) * D)
    state |= mlm_score(rng) | dense(rng, "itm_score.fc", 2, 2 * D)
    return state | dense(rng, "itc_text_head.fc", 3, D) | dense(rng, "itc_image_head.fc", 3, D)
