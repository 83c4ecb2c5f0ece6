"""Losses against closed forms, PyTorch and exact distributions; state updates against their closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl import losses

KEY = jax.random.key(0)


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_equal_similarities_give_the_log_of_the_number_of_columns():
    targets = losses.own_targets(4, columns=4 + 28)
    loss = losses.soft_cross_entropy(jnp.full((4, 32), 3.0), targets=targets)
    np.testing.assert_allclose(loss, np.log(32), rtol=1e-6)


def test_own_targets_give_pytorchs_cross_entropy():
    torch = pytest.importorskip("torch")
    logits = random(5, 9) * 10
    loss = losses.soft_cross_entropy(logits, targets=losses.own_targets(5, columns=9))
    want = torch.nn.functional.cross_entropy(
        torch.tensor(np.array(logits)), torch.arange(5), reduction="none"
    )
    np.testing.assert_allclose(loss, want.numpy(), atol=1e-6, rtol=1e-6)


def test_removed_columns_leave_the_softmax_of_the_others():
    logits, where = random(3, 6), jnp.array([True, True, True, False, True, False])
    loss = losses.soft_cross_entropy(logits, targets=losses.own_targets(3, columns=6), where=where)
    kept = losses.soft_cross_entropy(logits[:, where], targets=losses.own_targets(3, columns=4))
    np.testing.assert_allclose(loss, kept, rtol=1e-6)


def test_identity_targets_spread_over_all_allowed_columns_of_the_id():
    ids, columns = jnp.array([7, 8, 7]), jnp.array([7, 8, 7, 7, -100])
    where = jnp.ones((3, 5), bool).at[0, 2].set(False)
    targets = losses.identity_targets(ids, ids_m=columns, where=where)
    np.testing.assert_allclose(targets[0], [1 / 2, 0, 0, 1 / 2, 0])
    np.testing.assert_allclose(targets[2], [1 / 3, 0, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(targets.sum(-1), 1.0, rtol=1e-6)


def test_distilled_targets_are_a_mixture_that_sums_to_one_and_has_no_gradient():
    hard, where = losses.own_targets(3, columns=5), jnp.ones((3, 5), bool).at[:, 4].set(False)

    def targets(similarities):
        return losses.distilled_targets(hard, similarities=similarities, where=where, alpha=0.4)

    similarities = random(3, 5)
    soft = np.exp(similarities[:, :4]) / np.exp(similarities[:, :4]).sum(-1, keepdims=True)
    np.testing.assert_allclose(targets(similarities)[:, :4], 0.6 * hard[:, :4] + 0.4 * soft, rtol=1e-5)
    np.testing.assert_allclose(targets(similarities).sum(-1), 1.0, rtol=1e-6)
    gradient = jax.grad(lambda s: (targets(s) ** 2).sum())(similarities)
    assert not gradient.any()


def test_cross_entropy_mixes_labels_and_teacher_like_pytorch():
    torch = pytest.importorskip("torch")
    logits, teacher, labels = random(4, 7), random(4, 7, seed=1), jnp.array([0, 6, 3, 3])
    got = losses.cross_entropy(logits, labels=labels, teacher=teacher, alpha=0.4)
    t_logits, t_teacher = (torch.tensor(np.array(x)) for x in (logits, teacher))
    functional = torch.nn.functional
    hard = functional.cross_entropy(t_logits, torch.tensor(np.array(labels)).long(), reduction="none")
    soft = functional.cross_entropy(t_logits, t_teacher.softmax(-1), reduction="none")
    np.testing.assert_allclose(got, (0.6 * hard + 0.4 * soft).numpy(), atol=1e-6)


def test_cross_entropy_of_bfloat16_logits_is_float32():
    loss = losses.cross_entropy(random(2, 5).astype(jnp.bfloat16), labels=jnp.array([0, 1]))
    assert loss.dtype == jnp.float32


def test_token_log_likelihood_sums_the_valid_tokens():
    logits, labels = random(2, 3, 5), jnp.array([[1, 2, 0], [4, 0, 0]])
    valid = jnp.array([[1.0, 1, 0], [1, 0, 0]])
    log_p = jax.nn.log_softmax(logits, axis=-1)
    got = losses.token_log_likelihood(logits, labels=labels, valid=valid)
    np.testing.assert_allclose(got, [log_p[0, 0, 1] + log_p[0, 1, 2], log_p[1, 0, 4]], rtol=1e-6)


def test_mean_ignores_weight_zero_and_is_zero_without_any_weight():
    assert losses.mean(jnp.array([2.0, 100.0, 4.0]), weights=jnp.array([1.0, 0.0, 1.0])) == 3.0
    assert losses.mean(jnp.array([2.0]), weights=jnp.zeros(1)) == 0.0


def test_groups_are_consecutive_blocks_that_divide_the_batch():
    np.testing.assert_array_equal(
        losses.same_group(4, size=2), np.kron(np.eye(2), np.ones((2, 2))).astype(bool)
    )
    assert losses.same_group(3, size=None).all()
    with pytest.raises(ValueError, match="group=3 does not divide the batch of 4"):
        losses.same_group(4, size=3)


def test_independent_classes_have_the_sum_of_their_binary_entropies():
    """Times 1/A this is PyTorch's binary cross entropy with logits, averaged over all elements."""
    logits, targets = (
        random(3, 5) * 3,
        jnp.asarray(np.random.default_rng(1).uniform(size=(3, 5)), jnp.float32),
    )
    p, t = 1 / (1 + np.exp(-np.asarray(logits, np.float64))), np.asarray(targets, np.float64)
    want = -(t * np.log(p) + (1 - t) * np.log(1 - p)).sum(-1)
    np.testing.assert_allclose(losses.binary_cross_entropy(logits, targets=targets), want, rtol=1e-5)
    assert np.isfinite(losses.binary_cross_entropy(jnp.array([200.0, -200.0]), targets=jnp.array([0.0, 1.0])))


def test_lists_of_classes_become_dense_scores_without_the_class_that_pads():
    label, score = (
        jnp.array([[2, 0, 3], [3, 3, 3], [1, 1, 3]]),
        jnp.array([[1, 0.3, 0], [0, 0, 0], [0.3, 0.6, 0.9]]),
    )
    got = losses.dense_targets(label, score=score, classes=3)
    np.testing.assert_allclose(got, [[0.3, 0, 1], [0, 0, 0], [0, 0.6, 0]], rtol=1e-6)


# Negatives ------------------------------------------------------------------------------------------------


def test_negatives_follow_the_softmax_without_the_excluded_columns():
    draws, logits = 20_000, jnp.array([2.0, -1.0, 0.5, 1.0, 0.0])
    allowed = jnp.array([False, True, True, True, True])
    rows = (draws, 5)
    drawn = losses.sample_negatives(
        KEY, logits=jnp.broadcast_to(logits, rows), allowed=jnp.broadcast_to(allowed, rows)
    )
    counts = np.bincount(drawn.column, minlength=5)
    expected = np.exp(logits[1:]) / np.exp(logits[1:]).sum() * draws
    assert counts[0] == 0
    assert drawn.found.all()
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 16.27  # chi-square, 3 degrees, 99.9 %


def test_negatives_survive_a_temperature_at_which_a_softmax_underflows():
    similarities = jnp.array([[1.0, 0.2, 0.1], [0.3, 1.0, 0.2], [0.1, 0.3, 1.0]])
    probabilities = jax.nn.softmax(similarities / 0.001, axis=-1)
    assert not (probabilities * (1 - jnp.eye(3))).any()  # the row that ALBEF would hand to multinomial
    drawn = losses.sample_negatives(KEY, logits=similarities / 0.001, allowed=~jnp.eye(3, dtype=bool))
    np.testing.assert_array_equal(drawn.column, [1, 0, 1])


def test_a_row_without_candidates_is_reported_as_not_found():
    drawn = losses.sample_negatives(
        KEY, logits=jnp.zeros((2, 2)), allowed=jnp.array([[False, False], [True, False]])
    )
    np.testing.assert_array_equal(drawn.found, [0.0, 1.0])
    assert 0 <= drawn.column[0] < 2


@pytest.mark.parametrize("size", [2, 3, 4, 7, 12])
def test_exactly_half_of_the_pairs_are_broken_and_none_keeps_its_image(size):
    half, own = size // 2, np.arange(size)
    draw = jax.jit(jax.vmap(lambda k: losses.mismatch_half(k, valid=jnp.ones(size, bool))))
    drawn = draw(jax.random.split(KEY, 200))
    columns, broken = np.asarray(drawn.column), np.asarray(drawn.broken)
    assert (broken.sum(1) == half).all()
    np.testing.assert_array_equal(np.sort(columns, axis=1), np.broadcast_to(own, columns.shape))
    assert (columns == own)[~broken].all()
    assert not (columns == own)[broken].any() or half == 1  # a lone row has nobody to swap with
    swapped = (np.take_along_axis(columns, columns, 1) == own).all(1).sum()
    assert (
        size != 12 or 15 < swapped < 75
    )  # six in a circle trade in pairs only if turned by three: one in five
    for row, places in zip(broken, np.asarray(drawn.some), strict=True):
        assert set(np.flatnonzero(row)) == set(places)


def test_each_pair_is_broken_as_often_and_gets_each_other_image_as_often():
    draw = jax.jit(jax.vmap(lambda k: losses.mismatch_half(k, valid=jnp.ones(6, bool))))
    drawn = draw(jax.random.split(KEY, 12_000))
    counts = np.zeros((6, 6))
    np.add.at(counts, (np.broadcast_to(np.arange(6), drawn.column.shape), np.asarray(drawn.column)), 1)
    np.testing.assert_allclose(np.diagonal(counts), 6000, atol=250)
    np.testing.assert_allclose(counts[~np.eye(6, dtype=bool)], 1200, atol=150)


def test_padding_rows_neither_get_nor_give_images_and_do_not_change_the_others():
    valid = jnp.arange(11) < 6
    alone = losses.mismatch_half(KEY, valid=jnp.ones(6, bool))
    padded = losses.mismatch_half(KEY, valid=valid)
    np.testing.assert_array_equal(padded.column, [*alone.column, *range(6, 11)])
    np.testing.assert_array_equal(padded.broken, [*alone.broken, *[False] * 5])
    assert set(np.flatnonzero(padded.broken)) <= set(np.asarray(padded.some))


# Masking --------------------------------------------------------------------------------------------------


def test_masking_rates_on_a_million_tokens():
    ids = jnp.full((1000, 1000), 7, jnp.int32)
    maskable = jnp.ones(ids.shape, bool).at[:, 0].set(False)
    out = losses.mask_bernoulli(KEY, ids=ids, maskable=maskable, mask_id=3, size=30522, prob=0.15)
    selected, after = np.asarray(out.selected), np.asarray(out.ids)
    assert abs(selected[:, 1:].mean() - 0.15) < 0.001
    assert not selected[:, 0].any()
    assert (after[~selected] == 7).all()
    masked, kept = (after[selected] == 3).mean(), (after[selected] == 7).mean()
    assert abs(masked - 0.8) < 0.005
    assert abs(kept - 0.1) < 0.005
    random_ids = after[selected & (after != 3) & (after != 7)]
    assert abs(random_ids.mean() / 30522 - 0.5) < 0.01
    assert random_ids.max() < 30522


def test_whole_words_are_selected_all_or_none_at_the_rate_of_tokens():
    """Rows of [CLS], words of one to three pieces, [SEP]: word numbers against losses.word_starts' first positions."""
    row = np.array([-1, 0, 1, 1, 2, 2, 2, 3, -2])
    words = jnp.broadcast_to(jnp.asarray(row), (30_000, 9))
    maskable = words >= 0
    starts = losses.word_starts(
        jnp.asarray([0, 1, 0, 1, 0, 1, 1, 0, 0], bool)[None].repeat(30_000, 0), maskable
    )
    np.testing.assert_array_equal(
        starts[0], [0, 1, 2, 2, 4, 4, 4, 7, 8]
    )  # the first word's marker does not count
    how = dict(ids=jnp.full(words.shape, 7), maskable=maskable, mask_id=3, size=30522, prob=0.15)
    out = losses.mask_bernoulli(KEY, **how, starts=starts)
    selected, after = np.asarray(out.selected), np.asarray(out.ids)
    for word in range(4):
        pieces = selected[:, row == word]
        assert (pieces == pieces[:, :1]).all()
        assert abs(pieces[:, 0].mean() - 0.15) < 0.006
    assert abs(selected[:, 1:8].mean() - 0.15) < 0.003 and not selected[:, [0, 8]].any()
    chosen = after[selected]
    assert abs((chosen == 3).mean() - 0.8) < 0.01 and abs((chosen == 7).mean() - 0.1) < 0.01
    both = selected[:, 2]  # pieces of one word are corrupted each for itself
    assert abs((after[both][:, 2:4] == 3).all(1).mean() - 0.64) < 0.03
    again = losses.mask_bernoulli(KEY, **how, starts=starts)
    np.testing.assert_array_equal(again.ids, out.ids)


def test_single_masking_takes_exactly_one_maskable_token_uniformly():
    ids = jnp.broadcast_to(jnp.array([1, 7, 8, 9, 0]), (9000, 5))
    maskable = jnp.broadcast_to(jnp.array([False, True, True, True, False]), ids.shape).at[0].set(False)
    out = losses.mask_single(KEY, ids=ids, maskable=maskable, mask_id=3)
    np.testing.assert_array_equal(out.selected.sum(-1), [0] + [1] * 8999)
    np.testing.assert_array_equal(out.ids == 3, out.selected)
    counts = np.asarray(out.selected.sum(0))
    assert counts[0] == counts[4] == 0
    assert (abs(counts[1:4] - 3000) < 200).all()


def test_selected_positions_come_first_in_reading_order():
    selected = jnp.array([[False, True, False, True], [False, False, False, False]])
    np.testing.assert_array_equal(losses.selected_first(selected), [[1, 3, 0, 2], [0, 1, 2, 3]])


# State ----------------------------------------------------------------------------------------------------


def test_the_gap_to_a_constant_shrinks_by_the_decay_each_update():
    average, current = {"w": jnp.array([3.0, -2.0])}, {"w": jnp.array([1.0, 1.0])}
    gap = np.array([2.0, -3.0])
    for _ in range(20):
        average = losses.ema(average, current=current, decay=0.995)
    np.testing.assert_allclose(average["w"] - current["w"], 0.995**20 * gap, rtol=1e-5)


def test_the_queue_overwrites_its_oldest_columns_and_wraps():
    queue, ids, ptr = jnp.zeros((2, 6)), jnp.full(6, -100), jnp.zeros((), jnp.int32)
    for batch in range(4):
        rows = jnp.array([[2.0 * batch, 1.0], [2.0 * batch + 1, 1.0]])
        queue, ids = losses.enqueue(queue, rows=rows, ptr=ptr), losses.enqueue(ids, rows=rows[:, 0], ptr=ptr)
        ptr = (ptr + 2) % 6
    np.testing.assert_array_equal(queue[0], [6, 7, 2, 3, 4, 5])
    np.testing.assert_array_equal(ids, [6, 7, 2, 3, 4, 5])


def test_a_batch_that_does_not_divide_the_queue_is_refused():
    with pytest.raises(
        ValueError, match="queue_size=6 is not a multiple of the batch of 4 rows: use queue_size=4"
    ):
        losses.enqueue(jnp.zeros((2, 6)), rows=jnp.zeros((4, 2)), ptr=jnp.zeros((), jnp.int32))
