"""Question matching: the loss by hand, what each part trains, and a matcher that learns which questions fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiny_regions import F, questions

from jaxvl.active import matching
from jaxvl.data.region_source import RegionQuestions, Regions
from jaxvl.data.words import Words
from jaxvl.models.vqme import VQME
from jaxvl.objectives.mutual_information import derangements
from jaxvl.sharding import Partition
from jaxvl.tasks.question_match import QuestionMatchTask
from jaxvl.train import Trainer

KEY = jax.random.key(3)
MODEL = VQME(words=24, feat_dim=F, width=8, heads=2, critic_width=16, project=4, word_dim=4, dropout=0.0)


def rows(size=6):
    """Rows 0 and 1 are of one image; rows 2 and 3 have equal questions."""
    key = np.array([1, 2, 3, 3, 4, 5][:size], np.int32)
    image = np.array([0, 0, 1, 2, 3, 4][:size], np.int32)
    keys = np.stack([key, np.where(image == 0, 3 - key, -1)], 1)  # both questions of image 0
    extra = dict(image_id=image, question_key=key, keys_of_image=keys)
    return {**questions(size), **{k: jnp.asarray(v) for k, v in extra.items()}}


def started(task, batch):
    params = jax.jit(lambda k: nn.unbox(task.init(k, batch)))(KEY)
    return jax.tree.map(
        lambda x: x + 0.3 * np.random.default_rng(x.size).standard_normal(x.shape, np.float32), params
    )


class Sides(nn.Module):
    """What is asked of a model for the states of one side."""

    def encode_image(self, regions, region_mask):
        return (regions * region_mask[..., None]).sum(1)

    def encode_text(self, text, text_mask):
        return (text * text_mask).sum(-1, keepdims=True)


def test_the_states_of_either_side_need_that_side_alone():
    task, batch = QuestionMatchTask(Sides()), {k: np.asarray(v) for k, v in rows().items()}
    image = task.predictors["image_state"]({}, {k: batch[k] for k in ("regions", "region_mask")}, KEY)
    text = task.predictors["text_state"]({}, {k: batch[k] for k in ("text", "text_mask")}, KEY)
    np.testing.assert_allclose(image, (batch["regions"] * batch["region_mask"][..., None]).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(text[:, 0], (batch["text"] * batch["text_mask"]).sum(-1))


def evaluated(task, params, batch):
    loss, (_, metrics) = jax.jit(task.loss)(params, {}, batch, KEY)
    return float(loss), {name: float(total / weight) for name, (total, weight) in metrics.items()}


def by_hand(task, params, batch, false):
    """Both losses, float64; `false` lists the pairs that are no negatives."""
    got = {k: np.asarray(v, np.float64) for k, v in task.predictors["encoded"](params, batch, KEY).items()}
    hidden = np.maximum(got["a"][:, None] + got["b"][None], 0)
    t = hidden @ np.asarray(params["critic_weight"]) + float(params["critic_offset"][0])
    size = len(t)
    off = np.ones((size, size), bool) & ~np.eye(size, dtype=bool)
    for i, j in false:
        off[i, j] = off[j, i] = False
    l_mi = np.logaddexp(0, -np.diag(t)).mean() + np.logaddexp(0, t)[off].mean()
    e = np.exp(got["z"] @ got["w"].T / 0.1) * (off | np.eye(size, dtype=bool))
    l_cl = 0.5 * (np.log(e.sum(1) / np.diag(e)) + np.log(e.sum(0) / np.diag(e))).mean()
    return l_mi, l_cl, t


def test_losses_by_hand_without_false_negatives_and_without_padding():
    task, batch = QuestionMatchTask(MODEL, mi_weight=2.0, cl_weight=0.5), rows()
    params = started(task, batch)
    l_mi, l_cl, t = by_hand(task, params, batch, [(0, 1), (2, 3)])
    loss, found = evaluated(task, params, batch)
    np.testing.assert_allclose(
        [found["mi"], found["cl"], loss], [l_mi, l_cl, 2 * l_mi + 0.5 * l_cl], rtol=1e-4
    )
    np.testing.assert_allclose(found["information"], 2 * np.log(2) - l_mi, atol=1e-4)
    np.testing.assert_allclose(task.predictors["match"](params, batch, KEY), np.diag(t), atol=1e-4)
    padded = {**batch, "mask": jnp.arange(6) < 4}
    short = {k: v[:4] for k, v in batch.items()}
    np.testing.assert_allclose(
        evaluated(task, params, padded)[0], evaluated(task, params, short)[0], rtol=1e-5
    )


def moved(task, params, batch):
    """The top-level parts that get a gradient."""
    grads = jax.jit(jax.grad(lambda p: task.loss(p, {}, batch, KEY)[0]))(params)
    return {k for k, v in grads.items() if any(np.abs(x).max() > 0 for x in jax.tree.leaves(v))}


def test_each_loss_trains_its_own_head_and_both_encoders():
    both = {"image_encoder", "text_encoder", "image_pool", "text_pool"}
    critic = {"image_side", "text_side", "critic_weight", "critic_offset"}
    heads = {"image_head_0", "image_head_1", "text_head_0", "text_head_1"}
    batch = rows()
    params = started(QuestionMatchTask(MODEL), batch)
    assert moved(QuestionMatchTask(MODEL, cl_weight=0.0), params, batch) == both | critic
    assert moved(QuestionMatchTask(MODEL, mi_weight=0.0, cl_form="printed"), params, batch) == both | heads
    cosine = QuestionMatchTask(MODEL.clone(critic="cosine"), mi_weight=0.0)
    assert (
        moved(cosine, started(cosine, batch), batch) == both | heads
    )  # scale and offset are for calibration


@pytest.mark.parametrize("count", [None, 3])
def test_with_derangements_the_critic_has_few_negatives_a_row_and_the_contrast_still_has_all(count):
    batch = rows()
    params = started(QuestionMatchTask(MODEL), batch)
    few = QuestionMatchTask(MODEL, neg="derangement", neg_count=count)
    everything, some = (evaluated(task, params, batch)[1] for task in (QuestionMatchTask(MODEL), few))
    assert some["cl"] == pytest.approx(everything["cl"], rel=1e-6)
    _, _, t = by_hand(QuestionMatchTask(MODEL), params, batch, [])
    partners = np.asarray(derangements(jax.random.fold_in(KEY, 1), 6, count=count or 1))
    pairs = [(i, int(j)) for row in partners for i, j in enumerate(row)]
    kept = [t[p] for p in pairs if set(p) not in ({0, 1}, {2, 3})]  # false negatives are left out
    assert len(pairs) == 6 * (count or 1) >= len(kept)
    want = np.logaddexp(0, -np.diag(t)).mean() + np.logaddexp(0, kept).mean()
    assert some["mi"] == pytest.approx(want, rel=1e-4) != everything["mi"]


NAMES = ("cat", "dog", "cup", "car", "tree", "ball")


class Things:
    """Images with one or two of six things, each a region; one region is empty."""

    regions, width, digest = 3, F + 4, "things"

    def __init__(self, images=160):
        rng = np.random.default_rng(0)
        self.looks = rng.standard_normal((6, self.width), np.float32) * 2
        self.shown = [rng.choice(6, rng.integers(1, 3), replace=False).tolist() for _ in range(images)]

    def has(self, image_id):
        return image_id < len(self.shown)

    def ids(self):
        return np.arange(len(self.shown))

    def of(self, image_id):
        shown = self.shown[image_id]
        features = np.zeros((3, self.width), np.float32)
        features[: len(shown)] = self.looks[shown]
        return Regions(features, np.zeros((3, 4), np.float32), np.arange(3) < len(shown))


def asked_about_things(provider, images):
    return [
        dict(image_id=i, question=f"{start} the {NAMES[thing]}", answers=["x"],
             answer_type=kind)
        for i in images for thing in provider.shown[i]
        for start, kind in (("is this", "yes/no"), ("where is", "other"))
    ]  # fmt: skip


def test_it_learns_which_questions_fit_an_image_and_scores_unseen_images():
    """Trained on true pairs alone; held-out pairs are told apart though the questions recur."""
    provider = Things()
    records = asked_about_things(provider, range(160))
    words = Words.build([r["question"] for r in records], length=4, dim=8)
    source = RegionQuestions(provider, records, words, ["x"], max_keys=6)
    held, train = (
        source.subset(np.flatnonzero(source.image_ids >= 120)),
        source.subset(np.flatnonzero(source.image_ids < 120)),
    )
    sizes = dict(width=16, heads=2, critic_width=32, project=8, word_dim=8)
    model = VQME(words=len(words), feat_dim=provider.width, dropout=0.0, **sizes)
    task, rng = QuestionMatchTask(model), np.random.default_rng(0)
    partition = Partition.create(mesh=dict(data=1), rules="dp", devices=jax.devices()[:1])
    trainer = Trainer(task, partition=partition)
    stacked = {k: np.stack([train[i][k] for i in range(len(train))]) for k in train[0]}
    state = trainer.init({k: v[:32] for k, v in stacked.items()})
    before = matching.held_out_scores(
        lambda n, s: trainer.predict(state.params, n, s), held, np.random.default_rng(1)
    )
    tx = optax.adam(5e-3)

    def step(carry, at):
        params, opt = carry
        batch = {k: jnp.asarray(v)[at] for k, v in stacked.items()}
        updates, opt = tx.update(jax.grad(lambda p: task.loss(p, {}, batch, KEY)[0])(params), opt)
        return (optax.apply_updates(params, updates), opt), None

    order = np.stack([rng.permutation(len(train))[:32] for _ in range(250)])
    (params, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), order))(state.params)
    after = matching.held_out_scores(
        lambda n, s: trainer.predict(params, n, s), held, np.random.default_rng(1)
    )
    assert before["balanced_accuracy"] < 0.65 and after["balanced_accuracy"] > 0.85
    assert after["information"] > 0.4 and trainer.traces["match"] == 1  # five passes, one program
    encoded = trainer.predict(params, "encoded", held)
    assert {k: v.shape for k, v in encoded.items()} == {
        k: (len(held), n) for k, n in dict(a=32, b=32, z=8, w=8).items()
    }


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(cl_form="nce"), "cl_form='nce'"),
        (dict(neg="some"), "neg='some'"),
        (dict(neg_count=2), "neg_count=2, neg='all'"),
        (dict(mi_weight=0.0, cl_weight=0.0), "not both 0"),
        (dict(mi_weight=-1.0), "mi_weight=-1.0"),
    ],
)
def test_wrong_options_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        QuestionMatchTask(MODEL, **kwargs)


def test_vectors_of_images_need_no_question_and_are_those_of_the_pairs():
    task, batch = QuestionMatchTask(MODEL), rows()
    params = started(task, batch)
    images = {k: batch[k] for k in ("regions", "region_mask")}

    @jax.jit
    def both(params):
        v = task.predictors["image_state"](params, images, KEY)
        return (
            v,
            MODEL.apply({"params": params}, v, method="critic_image"),
            task.predictors["encoded"](params, batch, KEY),
        )

    v, a, encoded = both(params)
    assert v.shape == (6, 8) and v.dtype == jnp.float32
    np.testing.assert_allclose(a, encoded["a"], rtol=1e-5, atol=1e-6)
