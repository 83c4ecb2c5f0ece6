"""Imported ViLT weights compute what transformers' ViLT computes at another resolution than its own, once that stops
shuffling patches."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hf_models import IDS, LARGE, MASK, VILT, close, fuse, hf_vilt, run, run_hf, state_of

from jaxvl.interop import import_vilt
from jaxvl.losses import binary_cross_entropy

pytestmark = pytest.mark.torch
IMAGE, SECOND = LARGE


@pytest.fixture(autouse=True)
def _torch():
    pytest.importorskip("torch", reason="compares with PyTorch")
    pytest.importorskip("transformers", reason="compares with transformers")


@pytest.fixture
def in_order(monkeypatch):
    """transformers takes patches row by row instead of at random."""
    import torch

    monkeypatch.setattr(torch, "multinomial", lambda weights, count, **_: torch.arange(count))


def params_of(hf, **kwargs):
    return import_vilt(state_of(hf), **kwargs).params


def test_states_and_attention(in_order):
    hf = hf_vilt()
    fused = run(VILT, params_of(hf), fuse, IMAGE, IDS, MASK)
    want = run_hf(hf, IMAGE, output_attentions=True)
    close(np.concatenate([fused.text, fused.image], 1), want.last_hidden_state, 5e-6)
    close(fused.pooled, want.pooler_output, 5e-6)
    attention, cut = want.attentions[-1].numpy(), IDS.shape[1]
    across = attention[:, :, :cut, cut:]  # of the joint attention: renormalised, it is ours
    logits = np.einsum("bmhk,bphk->bhmp", fused.qk.text_q, fused.qk.image_k) / np.sqrt(8)
    close(jax.nn.softmax(logits, -1), across / across.sum(-1, keepdims=True), 1e-6)
    across = attention[:, :, cut:, :cut]
    logits = np.einsum("bphk,bmhk->bhpm", fused.qk.image_q, fused.qk.text_k) / np.sqrt(8)
    logits = np.where(MASK[:, None, None], logits, -1e30)
    close(jax.nn.softmax(logits, -1), across / across.sum(-1, keepdims=True), 1e-6)


def test_text_and_pooled_states_do_not_depend_on_the_order_of_patches():
    hf = hf_vilt()
    want = run_hf(hf, IMAGE)
    for tokens in ("all", "class"):
        fused = run(VILT, params_of(hf), fuse, IMAGE, IDS, MASK, tokens=tokens)
        close(fused.pooled, want.pooler_output, 5e-6)
        if tokens == "all":
            close(fused.text, want.last_hidden_state[:, : IDS.shape[1]], 5e-6)


def test_answer_logits_and_loss(in_order):
    import torch

    hf = hf_vilt("ViltForQuestionAnswering", num_labels=11)
    model = VILT.clone(classes=11)
    logits = run(model, params_of(hf), lambda m, *b: m.class_logits((fuse(m, *b).pooled,)), IMAGE, IDS, MASK)
    labels = np.random.default_rng(0).uniform(size=(3, 11)).astype(np.float32)
    want = run_hf(hf, IMAGE, labels=torch.tensor(labels).double())
    close(logits, want.logits, 1e-5)
    close(
        binary_cross_entropy(logits, targets=labels).mean(), want.loss, 1e-5
    )  # the mean over classes, times 11


def test_two_images(in_order):
    hf = hf_vilt("ViltForImagesAndTextClassification", num_labels=2, num_images=2, modality_type_vocab_size=3)
    model = VILT.clone(classes=2, images=2)

    def logits(m, first, second, text, mask):
        pooled = fuse(m, first, text, mask).pooled, fuse(m, second, text, mask, image_type=2).pooled
        return m.class_logits(pooled)

    got = run(model, params_of(hf), logits, IMAGE, SECOND, IDS, MASK)
    close(got, run_hf(hf, np.stack([IMAGE, SECOND], 1)).logits, 1e-5)


def test_vocabulary_logits(in_order):
    hf = hf_vilt("ViltForMaskedLM")
    logits = lambda m, *batch: m.mlm_logits(fuse(m, *batch).text)  # noqa: E731
    want = run_hf(hf, IMAGE).logits
    close(run(VILT, params_of(hf), logits, IMAGE, IDS, MASK), want, 1e-5)
    untied = params_of(hf, tied=False)
    close(run(VILT.clone(mlm_tied=False), untied, logits, IMAGE, IDS, MASK), want, 1e-5)
