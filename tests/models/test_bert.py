"""The BERT text encoder, vocabulary head and answer decoder equal Hugging Face's, padding changes nothing, answers
of a question do not see each other, and scanned or rematerialised layers are the same function."""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import (
    SIZES,
    bert_config,
    draw,
    draw_ids,
    fill_bert,
    fill_dense,
    fill_norm,
    lengths_mask,
    record_main,
    recorded,
    seeded,
)

from jaxvl.models.bert import (
    BertAttention,
    Decoder,
    Embeddings,
    FeedForward,
    MLMHead,
    TextEncoder,
    causal_mask,
    padding_mask,
)
from jaxvl.models.layers import Embedding, stack_layers, unstack_layers

ENCODER = TextEncoder(depth=2, **SIZES)
DECODER = Decoder(depth=2, **SIZES)
TEXT = draw_ids(3, 7)
MASK = lengths_mask(7, 7, 4, 1)
ANSWER = draw_ids(3, 2, 5, seed=1)  # [B,N,L]
ANSWER_MASK = lengths_mask(5, 5, 3, 2, 4, 5, 1).reshape(3, 2, 5)
STATES = draw(3, 7, SIZES["width"], seed=2)


class TiedHead(nn.Module):
    """The vocabulary head with a table of its own."""

    @nn.compact
    def __call__(self, x):
        return MLMHead(name="head")(x, Embedding(SIZES["vocab_size"], SIZES["width"], "vocab", name="word"))


def torch_encoder() -> np.ndarray:
    import torch
    from transformers import BertModel

    bert = BertModel(bert_config(2), add_pooling_layer=False).eval()
    params = seeded(ENCODER, TEXT, MASK)
    fill_bert(bert, params["embeddings"], params)
    with torch.no_grad():
        out = bert(torch.tensor(TEXT), attention_mask=torch.tensor(MASK).long())
    return out.last_hidden_state.numpy()


def torch_mlm() -> np.ndarray:
    import torch
    from transformers import BertForMaskedLM

    bert = BertForMaskedLM(bert_config(2)).eval()
    params, head = seeded(ENCODER, TEXT, MASK), seeded(TiedHead(), STATES)["head"]
    fill_bert(bert.bert, params["embeddings"], params)
    fill_head(bert, head)
    with torch.no_grad():
        return bert(torch.tensor(TEXT), attention_mask=torch.tensor(MASK).long()).logits.numpy()


def torch_decoder() -> np.ndarray:
    import torch
    from transformers import BertLMHeadModel

    bert = BertLMHeadModel(bert_config(2, cross=True)).eval()
    params = seeded(DECODER, ANSWER, STATES, MASK)
    fill_bert(bert.bert, params["embeddings"], params)
    fill_head(bert, params["mlm_head"])
    with torch.no_grad():
        out = bert(
            torch.tensor(ANSWER).flatten(0, 1),
            attention_mask=torch.tensor(ANSWER_MASK).flatten(0, 1).long(),
            encoder_hidden_states=torch.tensor(np.repeat(STATES, 2, axis=0)),
            encoder_attention_mask=torch.tensor(np.repeat(MASK, 2, axis=0)).long(),
            use_cache=False,
        )
    return out.logits.numpy().reshape(*ANSWER.shape, -1)


def fill_head(bert, head: dict) -> None:
    import torch

    fill_dense(bert.cls.predictions.transform.dense, head["dense"])
    fill_norm(bert.cls.predictions.transform.LayerNorm, head["norm"])
    bert.tie_weights()
    bert.cls.predictions.bias.data = torch.tensor(head["bias"])
    bert.cls.predictions.decoder.bias = bert.cls.predictions.bias


def record() -> dict[str, np.ndarray]:
    return {"encoder": torch_encoder(), "mlm": torch_mlm(), "decoder": torch_decoder()}


@partial(jax.jit, static_argnums=0, static_argnames="train")
def run(module, params, *args, **kwargs) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, *args, **kwargs)


def encode(params=None, text=TEXT, mask=MASK, **kwargs) -> jax.Array:
    params = seeded(ENCODER, TEXT, MASK) if params is None else params
    return run(ENCODER, params, text, mask, **kwargs)


def decode(answer=ANSWER, states=STATES, mask=MASK, **kwargs) -> jax.Array:
    return run(DECODER, seeded(DECODER, ANSWER, STATES, MASK), answer, states, mask, **kwargs)


def mlm() -> jax.Array:
    params = seeded(ENCODER, TEXT, MASK)
    head = {"head": seeded(TiedHead(), STATES)["head"], "word": params["embeddings"]["word"]}
    return run(TiedHead(), head, encode(params))


@pytest.mark.parametrize("source", ["recorded", pytest.param("live", marks=pytest.mark.torch)])
def test_equals_hugging_face(source):
    if source == "live":
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    want = recorded("bert") if source == "recorded" else record()
    np.testing.assert_allclose(encode()[MASK], want["encoder"][MASK], atol=2e-5, rtol=0)
    np.testing.assert_allclose(mlm()[MASK], want["mlm"][MASK], atol=2e-5, rtol=0)
    np.testing.assert_allclose(decode()[ANSWER_MASK], want["decoder"][ANSWER_MASK], atol=2e-5, rtol=0)


def test_padding_of_text_changes_no_token():
    longer = np.concatenate([np.where(MASK, TEXT, 5), draw_ids(3, 4, seed=9)], axis=1)
    mask = np.concatenate([MASK, np.zeros((3, 4), bool)], axis=1)
    np.testing.assert_allclose(encode(text=longer, mask=mask)[:, :7][MASK], encode()[MASK], atol=2e-6, rtol=0)


def test_padding_of_question_and_answer_changes_no_valid_logit():
    states = np.where(MASK[..., None], STATES, 50.0)
    answer = np.where(ANSWER_MASK, ANSWER, 0)
    got = decode(answer, states)
    np.testing.assert_allclose(got[ANSWER_MASK], decode()[ANSWER_MASK], atol=2e-6, rtol=0)


def test_decoder_is_causal_and_answers_do_not_see_each_other():
    changed = ANSWER.copy()
    changed[:, 0, 3] = (changed[:, 0, 3] % (SIZES["vocab_size"] - 1)) + 1
    difference = np.abs(decode(changed) - decode()).max(-1)
    assert difference[:, 0, :3].max() == 0 and difference[:, 1].max() == 0
    assert difference[:, 0, 3:].min() > 1e-3


def test_decoder_computes_question_keys_once():
    """The keys of the cross attention have one row per question, not one per answer."""
    params = seeded(DECODER, ANSWER, STATES, MASK)
    many = jax.ShapeDtypeStruct((3, 50, 5), jnp.int32)
    text = str(jax.make_jaxpr(lambda a: DECODER.apply({"params": params}, a, STATES, MASK))(many))
    assert re.search(r"f32\[3,(2,7|7,2),8\]", text)  # keys of three questions of seven tokens
    assert not re.search(r"f32\[150,[^\]]*\b7\b", text)  # never of 150 answers


def test_masks():
    assert padding_mask(jnp.asarray(MASK)).shape == (3, 1, 1, 7)
    np.testing.assert_array_equal(causal_mask(3)[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("module", "args"),
    [(ENCODER, (TEXT, MASK)), (DECODER, (ANSWER, STATES, MASK))],
    ids=["encoder", "decoder"],
)
def test_dropout_is_active_only_in_training(module, args):
    module = module.clone(depth=1)
    params = seeded(module, *args)

    def outputs(train):
        keys = [jax.random.key(k) for k in (0, 1)]
        return [run(module, params, *args, train=train, rngs={"dropout": key}) for key in keys]

    a, b = outputs(train=True)
    assert np.abs(a - b).max() > 0.1
    a, b = outputs(train=False)
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "module",
    [
        BertAttention(2, dropout=0.5, attn_dropout=0.0, train=True),
        BertAttention(2, dropout=0.0, attn_dropout=0.5, train=True),
        FeedForward(32, dropout=0.5, train=True),
        Embeddings(vocab_size=23, width=16, dropout=0.5),
    ],
    ids=["attention output", "attention probabilities", "feed-forward", "embeddings"],
)
def test_each_dropout_acts_on_its_own(module):
    train = {"train": True} if isinstance(module, Embeddings) else {}
    args = {BertAttention: (STATES, STATES), FeedForward: (STATES,), Embeddings: (TEXT,)}[type(module)]
    params = seeded(module, *args)
    a, b = (run(module, params, *args, **train, rngs={"dropout": jax.random.key(k)}) for k in (0, 1))
    assert np.abs(a - b).max() > 0.05


def test_too_long_text_is_refused():
    with pytest.raises(ValueError, match="length 13 exceeds max_positions=12"):
        encode(text=draw_ids(1, 13), mask=np.ones((1, 13), bool))


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_scan_and_remat_keep_outputs_and_gradients(kind):
    base = ENCODER if kind == "encoder" else DECODER
    args = (TEXT, MASK) if kind == "encoder" else (ANSWER, STATES, MASK)
    params = seeded(base, *args)

    def value_and_grad(module, p):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sin(run(module, p, *args)).sum()))(p)

    want = value_and_grad(base, params)
    module = base.clone(remat="names", scan=True)
    got, grads = value_and_grad(module, stack_layers(params, seeded(module, *args)))
    np.testing.assert_allclose(got, want[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), unstack_layers(grads), want[1])


def test_bfloat16_computes_in_bfloat16_with_float32_parameters_and_logits():
    module = DECODER.clone(dtype=jnp.bfloat16)
    variables = jax.eval_shape(module.init, jax.random.key(0), ANSWER, STATES, MASK)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert jax.eval_shape(module.apply, variables, ANSWER, STATES, MASK).dtype == jnp.float32
    states = run(ENCODER.clone(dtype=jnp.bfloat16), seeded(ENCODER, TEXT, MASK), TEXT, MASK)
    assert states.dtype == jnp.bfloat16
    assert np.abs(states.astype(jnp.float32) - encode())[MASK].max() < 0.2


if __name__ == "__main__":
    record_main("bert", record)
