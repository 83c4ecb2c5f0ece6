"""Pre-training: each loss against its definition, negatives, masking shares, momentum state and predictors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TOKENS, Counting, TinyModel, batch, started

from jaxvl.tasks import TASKS, PretrainTask
from jaxvl.tasks import pretrain_losses as parts
from jaxvl.tasks.options import Matching

KEY = jax.random.key(7)
ALONE = dict(momentum=None, queue_size=None, distill=None)


def make(**options) -> PretrainTask:
    return PretrainTask(options.pop("model", TinyModel()), tokens=TOKENS, **{"queue_size": 8, **options})


def predicted(task, name, params, rows):
    return jax.jit(task.predictors[name])(params, rows, KEY)


def metrics(task, params, extra, rows, key=KEY) -> dict[str, float]:
    loss, (_, found) = jax.jit(task.loss)(params, extra, rows, key)
    means = {name: float(total / weight) for name, (total, weight) in found.items()}
    assert np.isfinite(loss)
    np.testing.assert_allclose(loss, means["loss"], rtol=1e-6)
    return means


# Which losses there are -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("absent", "terms"),
    [
        ({}, {"itc", "itm", "mlm", "alpha"}),
        ({"itc": None}, {"itm", "mlm", "alpha"}),
        ({"itm": None}, {"itc", "mlm", "alpha"}),
        ({"mlm": None}, {"itc", "itm", "alpha"}),
        ({"itm": None, "mlm": None}, {"itc", "alpha"}),
        ({"queue_size": None}, {"itc", "itm", "mlm", "alpha"}),
        ({"distill": None}, {"itc", "itm", "mlm"}),
        (ALONE, {"itc", "itm", "mlm"}),
    ],
)
def test_a_part_given_as_none_drops_its_term_and_nothing_else(absent, terms):
    task, rows = make(**absent), batch()
    params, extra = started(task, rows)
    found = metrics(task, params, extra, rows)
    assert terms == {"itc", "itm", "mlm", "alpha"} & found.keys()
    np.testing.assert_allclose(found["loss"], sum(found[t] for t in terms - {"alpha"}), rtol=1e-5)


def test_each_image_is_encoded_once_by_each_network_and_fused_in_one_call_of_four_batches():
    model = Counting(TinyModel())
    task, rows = make(model=model), batch(4)
    params, extra = started(task, rows)
    jax.eval_shape(task.loss, params, extra, rows, KEY)
    assert model.calls.count(("encode_image", 4)) == 2
    assert [size for name, size in model.calls if name == "fuse"] == [16, 4]
    assert [size for name, size in model.calls if name == "encode_text"] == [8, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"itm": {"negative": "hard"}}, "itm.negative: did you mean 'negatives'"),
        ({"mlm": {"strategy": "one"}}, "mlm.strategy='one'.*single"),
        ({"momentum": None}, "momentum=None leaves nothing to fill queue_size"),
        ({"itc": None, "itm": None, "mlm": None}, "no loss"),
        ({"distill": {"alpha": 1.4}}, "distill.alpha=1.4"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_task_is_registered():
    assert TASKS["pretrain"] is PretrainTask


# Contrastive ----------------------------------------------------------------------------------------------


def embeddings(task, params, rows):
    return (
        np.asarray(predicted(task, name, params, rows), np.float64) for name in ("image_embed", "text_embed")
    )


def info_nce(logits: np.ndarray) -> np.ndarray:
    return np.log(np.exp(logits).sum(1)) - np.diagonal(logits)


def test_without_momentum_the_contrastive_loss_is_symmetric_info_nce_in_the_batch():
    task, rows = make(**ALONE, itm=None, mlm=None), batch()
    params, extra = started(task, rows)
    image, text = embeddings(task, params, rows)
    logits = image @ text.T / 0.1
    want = 0.5 * (info_nce(logits) + info_nce(logits.T)).mean()
    np.testing.assert_allclose(metrics(task, params, extra, rows)["itc"], want, rtol=1e-5)


def test_the_queue_adds_its_columns_as_they_were_before_the_write():
    task, rows = make(itm=None, mlm=None, distill=None), batch()
    params, extra = started(task, rows)
    image, text = embeddings(task, params, rows)  # the momentum copy still equals the parameters
    to_texts = np.hstack([image @ text.T, image @ np.asarray(extra["queue"]["text"])]) / 0.1
    to_images = np.hstack([text @ image.T, text @ np.asarray(extra["queue"]["image"])]) / 0.1
    want = 0.5 * (info_nce(to_texts) + info_nce(to_images)).mean()
    np.testing.assert_allclose(metrics(task, params, extra, rows)["itc"], want, rtol=1e-5)


def test_soft_targets_weigh_alpha_and_a_teacher_equal_to_the_student_adds_the_entropy():
    rows = batch()
    plain, soft = (make(itm=None, mlm=None, distill=d) for d in (None, dict(alpha=1.0)))
    params, extra = started(plain, rows)
    image, text = embeddings(plain, params, rows)
    entropy = []
    for query, key, name in ((image, text, "text"), (text, image, "image")):
        logits = np.hstack([query @ key.T, query @ np.asarray(extra["queue"][name])]) / 0.1
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        entropy.append(-(np.exp(log_p) * log_p).sum(1).mean())
    np.testing.assert_allclose(metrics(soft, params, extra, rows)["itc"], np.mean(entropy), rtol=1e-5)


def test_groups_equal_shards_that_run_separately():
    whole, shard = (make(itm=None, mlm=None, itc=dict(group=g)) for g in (2, None))
    rows = batch(4)
    params, extra = started(whole, rows)
    halves = [{k: v[i : i + 2] for k, v in rows.items()} for i in (0, 2)]
    want = np.mean([metrics(shard, params, extra, half)["itc"] for half in halves])
    np.testing.assert_allclose(metrics(whole, params, extra, rows)["itc"], want, rtol=1e-6)
    assert metrics(shard, params, extra, rows)["itc"] > want


def test_image_ids_make_all_captions_of_an_image_positive():
    rows = batch(4) | {"image_id": jnp.array([5, 5, 6, 7], jnp.int32)}
    task = make(**ALONE, itm=None, mlm=None, itc=dict(targets="image_id"))
    params, extra = started(task, rows)
    image, text = embeddings(task, params, rows)
    targets = np.array([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    logits = image @ text.T / 0.1
    both = [
        -(targets * (x - np.log(np.exp(x).sum(1, keepdims=True)))).sum(1).mean() for x in (logits, logits.T)
    ]
    np.testing.assert_allclose(metrics(task, params, extra, rows)["itc"], np.mean(both), rtol=1e-5)
    del rows["image_id"]
    with pytest.raises(KeyError, match="itc.targets"):
        task.loss(params, extra, rows, KEY)


def test_rows_of_padding_change_no_contrastive_loss():
    task, rows = make(itm=None, mlm=None), batch(3)
    params, extra = started(make(), batch(4))
    padded = {k: jnp.concatenate([v, v[:1]]) for k, v in rows.items()}
    padded["image"] = padded["image"].at[3].set(1e3)
    padded["mask"] = jnp.array([True, True, True, False])
    plain = metrics(task, params, extra, rows)["itc"]
    np.testing.assert_allclose(metrics(task, params, extra, padded)["itc"], plain, rtol=1e-6)


# Matching -------------------------------------------------------------------------------------------------


def draw(itm: dict, rows, *, draws: int = 64, weights=None):
    size = len(rows["text"])
    similar = parts.Similarities(*(jax.random.normal(jax.random.key(i), (size, size + 3)) for i in (1, 2)))
    weights = jnp.ones(size) if weights is None else weights
    step = parts.Step(rows, weights, None, jnp.float32(0.1), None)
    one = lambda key: parts.draw_negatives(Matching(**itm), key=key, similar=similar, step=step)  # noqa: E731
    return jax.jit(jax.vmap(one))(jax.random.split(KEY, draws))


@pytest.mark.parametrize("negatives", ["hard", "uniform"])
def test_negatives_are_never_the_own_row_the_same_image_padding_or_of_another_group(negatives):
    rows = batch(6) | {"image_id": jnp.array([1, 1, 2, 3, 4, 4], jnp.int32)}
    weights = jnp.array([1.0, 1, 1, 1, 1, 0])
    pairing = draw(dict(negatives=negatives, exclude="image_id", group=3), rows, weights=weights)
    seen = [[set(np.asarray(way.column[:, b]).tolist()) for b in range(6)] for way in pairing]
    assert seen == [[{2}, {2}, {0, 1}, {4}, {3}, {3}]] * 2


def test_hard_negatives_follow_the_similarity_and_uniform_ones_do_not():
    rows, draws = batch(3), 3000
    similarity = jax.random.normal(jax.random.key(2), (3, 6))[0, 1:3]  # text 0 against images 1 and 2
    hard, uniform = (draw(dict(negatives=n), rows, draws=draws) for n in ("hard", "uniform"))
    probability = float(jax.nn.softmax(similarity)[0])
    assert abs(float((hard.images.column[:, 0] == 1).mean()) - probability) < 0.03
    assert abs(float((uniform.images.column[:, 0] == 1).mean()) - 0.5) < 0.03
    assert abs(probability - 0.5) > 0.06


def test_a_batch_without_any_negative_trains_on_the_positives_alone():
    rows = batch(4) | {"image_id": jnp.zeros(4, jnp.int32)}
    task = make(itc=None, mlm=None, itm=dict(exclude="image_id"))
    params, extra = started(task, rows)
    match = np.asarray(predicted(task, "match", params, rows))
    np.testing.assert_allclose(metrics(task, params, extra, rows)["itm"], -np.log(match).mean(), rtol=1e-5)


def test_matching_labels_the_three_thirds_and_counts_both_kinds_of_negatives():
    rows = batch(2)  # the only negative of each row is the other one
    task = make(itc=None, mlm=None)
    params, extra = started(task, rows)
    swapped = rows | {"image": rows["image"][::-1]}
    own, other = (np.asarray(predicted(task, "match", params, x)) for x in (rows, swapped))
    want = -(np.log(own).sum() + 2 * np.log(1 - other).sum()) / 6
    found = metrics(task, params, extra, rows)
    np.testing.assert_allclose(found["itm"], want, rtol=1e-5)
    np.testing.assert_allclose(
        found["itm_accuracy"], ((own > 0.5).sum() + 2 * (other < 0.5).sum()) / 6, rtol=1e-6
    )


# Masked language ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prob", [0.15, 1.0])
def test_the_share_of_positions_in_the_vocabulary_product_changes_neither_loss_nor_gradient(prob):
    rows = batch(4, length=8)
    values = []
    for share in (None, 0.3):
        task = make(itc=None, itm=None, mlm=dict(prob=prob, max_share=share), distill=dict(alpha=0.4))
        params, extra = started(task, rows)
        values.append(
            jax.jit(jax.value_and_grad(lambda p, t=task, e=extra: t.loss(p, e, rows, KEY)[0]))(params)
        )
    for full, gathered in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(gathered, full, atol=1e-6, rtol=1e-5)


def test_the_fallback_keeps_no_logits_of_the_rest_for_the_backward_pass():
    rows = batch(4, length=8)
    task = make(itc=None, itm=None, mlm=dict(max_share=0.25))
    params, extra = started(task, rows)
    program = jax.make_jaxpr(jax.grad(lambda p: task.loss(p, extra, rows, KEY)[0]))(params)
    shapes = {v.aval.shape for eqn in program.eqns for v in eqn.outvars}
    assert (4, 2, TOKENS["size"]) in shapes
    assert (4, 6, TOKENS["size"]) not in shapes


def test_masked_loss_is_the_mean_over_selected_tokens_of_the_clean_labels():
    rows = batch(3)
    task = make(**ALONE, itc=None, itm=None, mlm=dict(strategy="single"))
    params, extra = started(task, rows)
    step = parts.Step(rows, jnp.ones(3), None, jnp.float32(1), None)
    k_mask = jax.random.split(KEY, 6)[0]

    @jax.jit
    def expected(params):
        ids, selected = parts.corrupt(task.mlm, key=k_mask, tokens=task.tokens, step=step)
        call = lambda *args, method: task.model.apply({"params": params}, *args, method=method)  # noqa: E731
        images, texts = (
            call(rows["image"], method="encode_image"),
            call(ids, rows["text_mask"], method="encode_text"),
        )
        fused = call(texts, rows["text_mask"], images, method="fuse")
        return selected, jax.nn.log_softmax(call(fused, method="mlm_logits"))

    selected, log_p = expected(params)
    where = np.nonzero(np.asarray(selected))
    want = -np.mean(np.asarray(log_p)[(*where, np.asarray(rows["text"])[where])])
    np.testing.assert_allclose(metrics(task, params, extra, rows)["mlm"], want, rtol=1e-5)


def test_special_tokens_padding_and_padding_rows_are_never_masked():
    rows = batch(4) | {"mask": jnp.array([True, True, True, False])}
    rows["text"] = rows["text"].at[0, 1].set(TOKENS["sep"])
    task = make(mlm=dict(prob=1.0))
    step = parts.Step(rows, rows["mask"].astype(jnp.float32), None, jnp.float32(1), None)
    _, selected = parts.corrupt(task.mlm, key=KEY, tokens=task.tokens, step=step)
    words = (rows["text"] > TOKENS["sep"]) & rows["mask"][:, None]
    np.testing.assert_array_equal(selected, words)


def test_a_batch_with_nothing_to_mask_has_loss_zero_and_finite_gradients():
    rows = batch(4)
    rows["text_mask"] = rows["text_mask"].at[:, 1:].set(False)
    task = make(itc=None, itm=None)
    params, extra = started(task, rows)
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: task.loss(p, extra, rows, KEY)[0]))(params)
    assert loss == 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


# State ----------------------------------------------------------------------------------------------------


def test_the_momentum_copy_starts_equal_leaves_out_what_it_does_not_read_and_follows():
    task, rows = make(momentum=dict(decay=0.9)), batch()
    params, extra = started(task, rows)
    assert extra["momentum"].keys() == params.keys() - {"itm_head", "temp"}
    moved = jax.tree.map(lambda x: x + 1.0, params)
    for _ in range(5):
        extra = task.prepare(moved, extra)
    gap = jax.tree.map(lambda m, p: m - p, extra["momentum"], {k: moved[k] for k in extra["momentum"]})
    for leaf in jax.tree.leaves(gap):
        np.testing.assert_allclose(leaf, -(0.9**5), rtol=1e-4)


def test_no_gradient_reaches_the_student_through_the_momentum_copy():
    task, rows = make(itm=None, mlm=None, distill=None), batch()
    params, extra = started(task, rows)
    gradient = jax.jit(jax.grad(lambda e: task.loss(params, {**extra, "momentum": e}, rows, KEY)[0]))(
        extra["momentum"]
    )
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_finish_writes_momentum_features_and_ids_wraps_and_counts():
    task = make(queue_size=8)
    rows = [batch(4, seed=s) | {"image_id": jnp.arange(4, dtype=jnp.int32) + 10 * s} for s in range(3)]
    params, extra = started(task, rows[0])
    for part in rows:
        _, (aux, _) = jax.jit(task.loss)(params, extra, part, KEY)
        extra = task.finish(extra, aux)
    assert int(extra["updates"]) == 3
    assert int(extra["queue"]["ptr"]) == 4
    np.testing.assert_array_equal(extra["queue"]["ids"], [20, 21, 22, 23, 10, 11, 12, 13])
    image, text = embeddings(task, params, rows[2])
    np.testing.assert_allclose(extra["queue"]["image"][:, :4], image.T, rtol=1e-5)
    np.testing.assert_allclose(extra["queue"]["text"][:, :4], text.T, rtol=1e-5)


def test_a_batch_that_does_not_divide_the_queue_is_refused_at_init():
    with pytest.raises(ValueError, match="queue_size=8 is not a multiple of the batch of 3"):
        make().init(KEY, batch(3))


def test_alpha_ramps_by_finished_updates():
    task, rows = make(itm=None, mlm=None, distill=dict(alpha=0.4, warmup_updates=10)), batch()
    params, extra = started(task, rows)
    values = [metrics(task, params, extra | {"updates": jnp.int32(n)}, rows)["alpha"] for n in (0, 5, 10, 99)]
    np.testing.assert_allclose(values, [0.0, 0.2, 0.4, 0.4], rtol=1e-6)


# Predictors -----------------------------------------------------------------------------------------------


def test_cached_image_states_give_what_the_image_gives():
    task, rows = make(), batch()
    params, _ = started(task, rows)
    cached = {k: v for k, v in rows.items() if k != "image"}
    cached["image_states"] = predicted(task, "image_states", params, rows)
    for name in ("image_embed", "match", "match_logit"):
        want, got = (predicted(task, name, params, x) for x in (rows, cached))
        np.testing.assert_array_equal(got, want)


def test_several_texts_of_an_image_are_matched_in_one_row():
    task, rows = make(), batch(4)
    params, _ = started(task, rows)
    many = {k: jnp.stack([rows[k], rows[k][::-1]], axis=1) for k in ("text", "text_mask")}
    got = predicted(task, "match", params, {"image": rows["image"], **many})
    flipped = rows | {k: rows[k][::-1] for k in ("text", "text_mask")}
    want = [predicted(task, "match", params, x) for x in (rows, flipped)]
    assert got.shape == (4, 2)
    np.testing.assert_allclose(got, np.stack(want, axis=1), rtol=1e-6)
