"""What strategies read off a VQA model on regions: means over the questions asked, dropout passes, sketches, states."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_regions import C, Counting, F, J, TinyRegions, asked, images, questions, words

from jaxvl.models.mcan import MCAN
from jaxvl.objectives import acquisition
from jaxvl.tasks.region_vqa import RegionVQATask

KEY = jax.random.key(5)
T, DIM = 4, 64
REDUCED = ("least_conf", "entropy", "margin", "uncertainty", "bald", "mc_entropy", "mocu", "loss")


@pytest.fixture(scope="module")
def task():
    return RegionVQATask(TinyRegions(), loss_net={}, passes=T, sketch_dim=DIM)


@pytest.fixture(scope="module")
def params(task):
    params = jax.jit(lambda k: nn.unbox(task.init(k, questions())))(KEY)
    return jax.tree.map(
        lambda x: x + np.random.default_rng(x.size).standard_normal(x.shape, np.float32), params
    )


def run(task, params, name, batch, key=KEY):
    return jax.jit(task.predictors[name])(params, batch, key)


def close(got, want, atol=1e-6):
    np.testing.assert_allclose(got, want, atol=atol, rtol=0)


def by_hand(task, params, batch):
    """`[B,J,C]` softmax of each image with each question, one question batch at a time."""
    out = []
    for j in range(J):
        text = batch["asked"][:, j]
        rows = {k: batch[k] for k in ("regions", "region_mask")} | {"text": text, "text_mask": text != 0}
        out.append(jax.nn.softmax(task.predictors["logits"](params, rows, KEY), axis=-1))
    return np.stack(out, 1).astype(np.float64)


def test_pairs_are_all_images_with_all_questions_and_shared_ones_are_encoded_once(params):
    model = Counting(TinyRegions())
    task, batch = RegionVQATask(model), asked(4)
    own = {k: v for k, v in batch.items() if k != "asked_shared"} | {
        "asked": jnp.asarray(words(4, J, seed=7))
    }
    for rows, encoded in ((batch, J), (own, 4 * J)):
        close(task.predictors["probs"](params, rows, KEY), by_hand(task, params, rows))
        assert ("encode_text", encoded) in model.calls
        model.calls.clear()


def test_scores_are_means_over_the_questions_that_are_asked(task, params):
    batch = asked()
    p = by_hand(task, params, batch)[:, : J - 1]  # the last is padding
    top = np.sort(p, -1)
    close(run(task, params, "least_conf", batch), (1 - top[..., -1]).mean(1))
    close(run(task, params, "margin", batch), (top[..., -2] - top[..., -1]).mean(1))
    close(run(task, params, "entropy", batch), -(p * np.log(p)).sum(-1).mean(1), 1e-5)
    m, var = top[..., -1], p.var(-1)
    least = ((1 / C - m) ** 2 + (C - 1) * (1 / C - (1 - m) / (C - 1)) ** 2) / C
    close(run(task, params, "uncertainty", batch), (1 - least / var * m).mean(1), 1e-5)


def test_dropout_passes_are_the_same_networks_for_every_batch_and_key(task, params):
    batch = asked(4)
    members = run(task, params, "members", batch)
    assert members.shape == (4, J, T, C)
    some = {k: v[jnp.array([2, 0])] for k, v in batch.items()}
    close(run(task, params, "members", some, jax.random.key(9)), members[jnp.array([2, 0])])
    own = {k: v for k, v in batch.items() if k != "asked_shared"}
    close(run(task, params, "members", own), members)
    assert np.abs(members[:, :2, 0] - members[:, :2, 1]).max() > 1e-3


def test_scores_of_dropout_passes_follow_from_the_members(task, params):
    batch = asked()
    p = np.asarray(run(task, params, "members", batch), np.float64)[:, : J - 1]
    entropy = lambda q: -(q * np.log(q)).sum(-1)  # noqa: E731
    mean = p.mean(2)
    close(run(task, params, "mc_entropy", batch), entropy(mean).mean(1), 1e-5)
    close(run(task, params, "bald", batch), (entropy(mean) - entropy(p).mean(2)).mean(1), 1e-5)
    k = p.max(-1).mean(2) - mean.max(-1)
    close(run(task, params, "mocu", batch), ((1 - k) * k).mean(1), 1e-5)
    assert (run(task, params, "bald", batch) > 1e-4).all()


def test_passes_without_dropout_are_refused(params):
    task = RegionVQATask(TinyRegions(dropout=0.0))
    with pytest.raises(ValueError, match="model.dropout=0"):
        task.predictors["bald"](params, asked(), KEY)


def test_sketches_are_summed_over_the_questions_that_are_asked(task, params):
    batch = asked()
    states = run(task, params, "states", batch)
    p = run(task, params, "probs", batch)
    residual = (p - jax.nn.one_hot(p.argmax(-1), C))[:, : J - 1]
    hashes = acquisition.sketch_hashes(jax.random.key(0), (C, 8), DIM)
    want = acquisition.tensor_sketch(residual, states["fused"][:, : J - 1], hashes).sum(1)
    got = run(task, params, "badge", batch)
    close(got, want, 1e-5)
    assert got.shape == (4, DIM) and np.abs(got).max() > 0.01


def test_states_embedding_vision_and_loss(task, params):
    batch = asked()
    states = run(task, params, "states", batch)
    assert {k: v.shape for k, v in states.items()} == dict.fromkeys(("image", "language", "fused"), (4, J, 8))
    close(run(task, params, "embed", batch), states["fused"][:, : J - 1].mean(1))
    mask = np.asarray(batch["region_mask"])[..., None]
    close(run(task, params, "vision", images()), (batch["regions"] * mask).sum(1) / mask.sum(1))
    assert run(task, params, "vision", images()).shape == (4, F)
    image, text = states["image"], states["language"]
    inputs = ((image, text, jnp.tanh(image + text)), states["fused"])
    net = {"params": params["loss_net"]}
    guess = [task.loss_net.apply(net, *jax.tree.map(lambda x, j=j: x[:, j], inputs)) for j in range(J - 1)]
    close(run(task, params, "loss", batch), np.mean(guess, 0), 1e-5)
    assert "loss" not in RegionVQATask(TinyRegions()).predictors


def test_mixtures_by_answer_type_leave_out_what_is_not_asked(task, params):
    batch = asked()  # types 0 and 2, and a question without words of type 1
    p = by_hand(task, params, batch)
    present, mixture = run(task, params, "kind_present", batch), run(task, params, "kind_mixture", batch)
    np.testing.assert_array_equal(present, [[True, False, True]] * 4)
    close(mixture[:, 0], p[:, 0], 1e-5)
    close(mixture[:, 2], p[:, 1], 1e-5)


def test_answers_and_confidence_of_questions(params):
    task, rows = RegionVQATask(TinyRegions(), top_n=3), questions()
    z = np.asarray(run(task, params, "logits", rows), np.float64)
    found = run(task, params, "answer", rows)
    np.testing.assert_array_equal(found["index"], np.argsort(-z, axis=1)[:, :3])
    close(found["score"], 1 / (1 + np.exp(np.sort(-z, 1)[:, :3])))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    close(run(task, params, "confidence", rows), p.max(1))
    assert RegionVQATask(TinyRegions(), top_n=99).top_n == C


def test_images_of_which_nothing_is_asked_are_named(task, params):
    with pytest.raises(KeyError, match='neither "asked" nor "asked_shared"'):
        task.predictors["entropy"](params, images(), KEY)


def test_logits_are_read_as_probabilities_as_asked(params):
    batch, z = asked(), np.log(by_hand(RegionVQATask(TinyRegions()), params, asked()))
    p = run(RegionVQATask(TinyRegions(), prob="bernoulli"), params, "probs", batch)
    close(np.log(p / (1 - p)) - z, np.broadcast_to((np.log(p / (1 - p)) - z)[..., :1], z.shape), 1e-3)
    close(
        run(RegionVQATask(TinyRegions(), prob="sigmoid_norm"), params, "probs", batch),
        p / p.sum(-1, keepdims=True),
    )


def test_every_predictor_of_images_fits_mcan():
    model = MCAN(
        words=24, classes=C, feat_dim=F, width=8, heads=2, mlp=8, depth=2, flat=12, flat_mlp=4, word_dim=6
    )
    task = RegionVQATask(model, loss_net={}, passes=T, sketch_dim=DIM)
    params = nn.unbox(jax.eval_shape(task.init, KEY, questions()))
    others = ("answer", "logits", "confidence", "states", "truth")  # of question rows
    found = {
        n: jax.eval_shape(f, params, asked(), KEY) for n, f in task.predictors.items() if n not in others
    }
    shapes = {name: x.shape for name, x in found.items()}
    assert {shapes.pop(name) for name in REDUCED} == {(4,)}
    kinds = dict(kind_mixture=(4, 3, C), kind_present=(4, 3))
    assert (
        shapes
        == dict(embed=(4, 12), badge=(4, DIM), vision=(4, F), probs=(4, J, C), members=(4, J, T, C)) | kinds
    )


def test_the_truth_is_the_probability_of_the_consensus_answer_and_0_without_one(task, params):
    batch = {**questions(3), "hard_label": jnp.asarray([2, -1, 0], jnp.int32)}
    p = jax.nn.softmax(task.predictors["logits"](params, batch, KEY), axis=-1)
    close(run(task, params, "truth", batch), [p[0, 2], 0.0, p[2, 0]])
