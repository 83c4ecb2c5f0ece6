"""Name tables of CLIP's vision encoder: OpenAI, BridgeTower (both releases), Hugging Face."""

from __future__ import annotations

from jaxvl.interop.names import Row

_BLOCKS = (
    Row("ln_pre", "norm_pre", "norm"),
    Row("transformer.resblocks.{n}.ln_1", "blocks_{i}/norm1", "norm"),
    Row(
        "transformer.resblocks.{n}.attn.in_proj",
        tuple(f"blocks_{{i}}/attn/{p}" for p in ("query", "key", "value")),
        "in_proj",
    ),
    Row("transformer.resblocks.{n}.attn.out_proj", "blocks_{i}/attn/out", "dense"),
    Row("transformer.resblocks.{n}.ln_2", "blocks_{i}/norm2", "norm"),
    Row("transformer.resblocks.{n}.mlp.c_fc", "blocks_{i}/mlp/fc1", "dense"),
    Row("transformer.resblocks.{n}.mlp.c_proj", "blocks_{i}/mlp/fc2", "dense"),
    Row("ln_post", "norm", "norm"),
)
OPENAI = (  # below `visual.`
    Row("class_embedding", "cls_token", "class"),
    Row("conv1", "patch_embed", "unbiased conv"),
    Row("positional_embedding", "pos_embed", "rows"),
    *_BLOCKS,
)
BRIDGETOWER = (  # the same in Hugging Face's BridgeTower, below `vision_model.visual.`
    Row("embeddings.class_embedding", "cls_token", "class"),
    Row("embeddings.patch_embedding", "patch_embed", "unbiased conv"),
    Row("embeddings.position_embedding.weight", "pos_embed", "rows"),
    *_BLOCKS,
)
HF_CLIP = (  # below `vision_model.`, or nothing
    *BRIDGETOWER[:3],
    Row("pre_layrnorm", "norm_pre", "norm"),  # sic
    Row("encoder.layers.{n}.layer_norm1", "blocks_{i}/norm1", "norm"),
    Row("encoder.layers.{n}.self_attn.q_proj", "blocks_{i}/attn/query", "dense"),
    Row("encoder.layers.{n}.self_attn.k_proj", "blocks_{i}/attn/key", "dense"),
    Row("encoder.layers.{n}.self_attn.v_proj", "blocks_{i}/attn/value", "dense"),
    Row("encoder.layers.{n}.self_attn.out_proj", "blocks_{i}/attn/out", "dense"),
    Row("encoder.layers.{n}.layer_norm2", "blocks_{i}/norm2", "norm"),
    Row("encoder.layers.{n}.mlp.fc1", "blocks_{i}/mlp/fc1", "dense"),
    Row("encoder.layers.{n}.mlp.fc2", "blocks_{i}/mlp/fc2", "dense"),
    Row("post_layernorm", "norm", "norm"),
)
RESBLOCK = r"transformer\.resblocks\.(\d+)\."
HF_LAYER = r"encoder\.layers\.(\d+)\."
# CLIP's text side, and what only its contrastive loss reads.
OPENAI_UNUSED = (
    r"visual\.proj|(transformer|token_embedding|ln_final)\..*|positional_embedding|text_projection|logit_scale"
    r"|input_resolution|context_length|vocab_size"
)
HF_UNUSED = r"text_model\..*|(text|visual)_projection\.weight|logit_scale|.*position_ids"
