"""Distillation losses against a joint attention made by hand and closed forms, and what must not matter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl import distillation
from jaxvl.types import CrossQK

DIRECTIONS = pytest.mark.parametrize("direction", distillation.DIRECTIONS)
MASK = jnp.array([[True, True, True, False, False], [True, True, True, True, True]])


def qk(
    seed: int, *, texts: int = 5, images: int = 7, heads: int = 3, dim: int = 4, batch: int = 2
) -> CrossQK:
    rng = np.random.default_rng(seed)
    sizes = (texts, images, images, texts)
    return CrossQK(*(jnp.asarray(rng.normal(size=(batch, s, heads, dim)) * 2, jnp.float32) for s in sizes))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits_qk(logits: list[float]) -> CrossQK:
    """One head, one text token whose scores for the images are `logits`; image to text is a single certain key."""
    n = len(logits)
    key = jnp.asarray(logits, jnp.float32).reshape(1, n, 1, 1)
    return CrossQK(jnp.ones((1, 1, 1, 1)), key, jnp.ones((1, n, 1, 1)), jnp.ones((1, 1, 1, 1)))


ONE = jnp.ones((1, 1), bool)


# Maps -----------------------------------------------------------------------------------------------------


def test_maps_are_the_blocks_of_a_joint_attention_divided_by_their_row_sums():
    part, mask = qk(0), np.asarray(MASK)
    query = np.concatenate([part.text_q, part.image_q], 1)  # [B,M+P,H,K]
    key = np.concatenate([part.text_k, part.image_k], 1)
    scores = np.einsum("bqhk,bshk->bhqs", query, key) / 2.0
    keys = np.concatenate([mask, np.ones((2, 7), bool)], 1)[:, None, None, :]
    joint = softmax(np.where(keys, scores, -np.inf))
    t2v, v2t = joint[:, :, :5, 5:], joint[:, :, 5:, :5]
    got = distillation.cross_maps(part, MASK)
    np.testing.assert_allclose(got[0], t2v / t2v.sum(-1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(got[1], v2t / v2t.sum(-1, keepdims=True), atol=1e-6)


def test_rows_of_maps_sum_to_one_and_masked_keys_are_exactly_zero():
    t2v, v2t = distillation.cross_maps(qk(1), MASK)
    np.testing.assert_allclose(t2v.sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(v2t.sum(-1), 1.0, rtol=1e-6)
    assert not np.asarray(v2t)[0, :, :, 3:].any()
    assert not np.asarray(distillation.cross_maps(qk(1), jnp.zeros_like(MASK))[1]).any()


# Attention divergence -------------------------------------------------------------------------------------


def by_hand(
    student: CrossQK, teacher: CrossQK, direction: str, queries: str = "valid", mean: bool = False
) -> float:
    """Loops over every row, in float64."""
    maps = [[np.asarray(x, np.float64) for x in distillation.cross_maps(x, MASK)] for x in (student, teacher)]
    if mean:
        maps = [[x.mean(1, keepdims=True) for x in pair] for pair in maps]
    found = 0.0
    for way in (0, 1):
        p, q = maps[0][way], maps[1][way]
        p, q = (p, q) if direction == "student_teacher" else (q, p)
        total, count = 0.0, 0
        for b, h, i in np.ndindex(*p.shape[:3]):
            keys = np.asarray(MASK[b]) if way else np.ones(7, bool)
            if way or queries == "all" or MASK[b, i]:
                total += (p[b, h, i][keys] * np.log(p[b, h, i][keys] / q[b, h, i][keys])).sum()
                count += 1
        found += total / count
    return found


@DIRECTIONS
@pytest.mark.parametrize("queries", distillation.QUERIES)
@pytest.mark.parametrize("heads", distillation.HEADS)
def test_divergence_equals_loops_over_all_rows(direction, queries, heads):
    student, teacher = qk(0), qk(1)
    how = dict(direction=direction, queries=queries, heads=heads)
    got = jax.jit(lambda: distillation.attention_kl(student, teacher, text_mask=MASK, **how))()
    np.testing.assert_allclose(got, by_hand(student, teacher, direction, queries, heads == "mean"), rtol=1e-5)


@DIRECTIONS
@pytest.mark.parametrize("heads", distillation.HEADS)
def test_equal_maps_have_no_divergence_and_no_gradient(direction, heads):
    """As with a student that has copied the teacher's last queries and keys and sees the same input."""
    teacher = qk(0)
    student = jax.tree.map(
        lambda x: jnp.pad(x, ((0, 0),) * 3 + ((0, 12),)) * 2.0**0.5, teacher
    )  # sqrt(16/4) = 2
    loss = lambda s: distillation.attention_kl(s, teacher, text_mask=MASK, direction=direction, heads=heads)  # noqa: E731
    value, grads = jax.value_and_grad(loss)(student)
    assert abs(value) < 1e-7
    assert max(float(abs(g).max()) for g in grads) < 1e-7


@pytest.mark.parametrize(
    ("direction", "value", "gradient"),
    [
        ("student_teacher", 0.1260507, (0.132857, -0.195853, 0.062996)),
        ("teacher_student", 0.1348117, (0.184953, -0.235559, 0.050606)),
    ],
)
def test_known_values_and_gradients(direction, value, gradient):
    student, teacher = jnp.array([1.0, 0.0, -1.0]), jnp.array([0.5, 0.5, -2.0])

    def loss(logits):
        return distillation.soft_categorical(logits, teacher, direction=direction)

    got, slope = jax.value_and_grad(loss)(student)
    np.testing.assert_allclose(got, value, atol=1e-6)
    np.testing.assert_allclose(slope, gradient, atol=1e-6)
    attention = distillation.attention_kl(
        logits_qk([1.0, 0.0, -1.0]), logits_qk([0.5, 0.5, -2.0]), text_mask=ONE, direction=direction
    )
    np.testing.assert_allclose(attention, value, atol=1e-6)


def test_two_keys_are_a_bernoulli_and_a_uniform_teacher_leaves_the_missing_entropy():
    p, q = (1 / (1 + np.exp(-g)) for g in (1.3, -0.4))
    want = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    got = distillation.attention_kl(logits_qk([1.3, 0.0]), logits_qk([0.0, 0.4]), text_mask=ONE)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    student = logits_qk([2.0, 0.0, -1.0, 0.5])
    entropy = distillation.attention_entropy(student, ONE)
    got = distillation.attention_kl(student, logits_qk([0.0] * 4), text_mask=ONE)
    np.testing.assert_allclose(got, np.log(4) - entropy["t2v"], rtol=1e-5)
    assert entropy["v2t"] == 0.0


@DIRECTIONS
def test_what_padding_holds_and_how_much_there_is_changes_neither_loss_nor_gradient(direction):
    student, teacher = qk(0), qk(1)

    def longer(part: CrossQK, seed: int) -> CrossQK:
        extra = qk(seed, texts=9)
        noise = jnp.where(MASK[:, :, None, None], 0.0, 3.0)
        text = lambda x, y: jnp.concatenate([x + noise, y], 1)  # noqa: E731
        return part._replace(text_q=text(part.text_q, extra.text_q), text_k=text(part.text_k, extra.text_k))

    def loss(part, other, mask, **how):
        return distillation.attention_kl(part, other, text_mask=mask, direction=direction, **how)

    long_mask = jnp.pad(MASK, ((0, 0), (0, 9)))
    both = longer(student, 2), longer(teacher, 3)
    want, slope = jax.value_and_grad(loss)(student, teacher, MASK)
    got, long_slope = jax.value_and_grad(loss)(*both, long_mask)
    np.testing.assert_allclose(got, want, atol=1e-6)
    for name in CrossQK._fields:
        part, whole = getattr(slope, name), getattr(long_slope, name)
        np.testing.assert_allclose(whole[:, : part.shape[1]], part, atol=1e-6)
        assert not whole[:, part.shape[1] :].any()
    assert abs(loss(*both, long_mask, queries="all") - loss(student, teacher, MASK, queries="all")) > 1e-2


def test_a_pair_of_weight_zero_counts_in_neither_sum_nor_count():
    student, teacher = qk(0), qk(1)
    alone = [jax.tree.map(lambda x: x[:1], part) for part in (student, teacher)]
    got = distillation.attention_kl(student, teacher, text_mask=MASK, weights=jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(got, distillation.attention_kl(*alone, text_mask=MASK[:1]), rtol=1e-6)
    assert distillation.attention_kl(student, teacher, text_mask=MASK, weights=jnp.zeros(2)) == 0.0


@DIRECTIONS
def test_values_and_gradients_are_finite_with_extreme_scores_and_a_text_without_tokens(direction):
    student = jax.tree.map(lambda x: x * 30, qk(0))
    mask = jnp.array([[False] * 5, [True] * 3 + [False] * 2])
    loss = lambda s: distillation.attention_kl(s, qk(1), text_mask=mask, direction=direction)  # noqa: E731
    for value in jax.tree.leaves(jax.value_and_grad(loss)(student)):
        assert np.isfinite(value).all()


def test_shuffling_the_teachers_image_tokens_alone_is_noticed_and_shuffling_both_is_not():
    """A teacher that draws its patches in random order, as ViLT's code does, would teach the wrong places."""
    order = np.random.default_rng(0).permutation(7)
    shuffle = lambda x: x._replace(image_k=x.image_k[:, order], image_q=x.image_q[:, order])  # noqa: E731
    student, loss = qk(0), lambda s, t: float(distillation.attention_kl(s, t, text_mask=MASK))
    near = jax.tree.map(lambda x: x + 0.01, student)
    assert loss(student, near) < 1e-3
    assert loss(student, shuffle(near)) > 1.0
    np.testing.assert_allclose(loss(shuffle(student), shuffle(near)), loss(student, near), atol=1e-6)


def test_the_teacher_is_a_constant_and_bfloat16_inputs_are_compared_in_float32():
    student, teacher = qk(0), qk(1)
    slope = jax.grad(lambda t: distillation.attention_kl(student, t, text_mask=MASK))(teacher)
    assert not any(x.any() for x in slope)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (student, teacher))
    whole = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    got = distillation.attention_kl(*half, text_mask=MASK)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, distillation.attention_kl(*whole, text_mask=MASK), rtol=1e-6)


def test_heads_of_another_number_are_compared_by_their_mean():
    got = distillation.attention_kl(qk(0, heads=2), qk(1, heads=4), text_mask=MASK, heads="mean")
    assert got > 0.1
    with pytest.raises(ValueError, match='text_q: 1 heads but 4 of the teacher: use heads="mean"'):
        distillation.attention_kl(qk(0, heads=1), qk(1, heads=4), text_mask=MASK)
    with pytest.raises(ValueError, match=r"image_k: \[B,S\] is \(2, 7\) for the student but \(2, 8\)"):
        distillation.attention_kl(qk(0), qk(1, images=8), text_mask=MASK)


def test_entropies_are_those_of_valid_rows_and_log_of_the_keys_when_uniform():
    uniform = jax.tree.map(jnp.zeros_like, qk(0))
    got = distillation.attention_entropy(uniform, MASK)
    np.testing.assert_allclose(got["t2v"], np.log(7), rtol=1e-6)
    np.testing.assert_allclose(got["v2t"], (np.log(3) + np.log(5)) / 2, rtol=1e-6)
    got = distillation.attention_entropy(uniform, MASK, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(got["v2t"], np.log(5), rtol=1e-6)


# Soft labels ----------------------------------------------------------------------------------------------


def test_temperature_divides_logits_and_multiplies_the_divergence_by_its_square():
    ours, theirs = (jnp.asarray(np.random.default_rng(i).normal(size=(3, 5)), jnp.float32) for i in (0, 1))
    p, q = softmax(np.asarray(ours) / 2), softmax(np.asarray(theirs) / 2)
    got = distillation.soft_categorical(ours, theirs, tau=2.0)
    np.testing.assert_allclose(got, 4 * (p * np.log(p / q)).sum(-1), rtol=1e-5)


def test_bernoulli_labels_are_cross_entropy_minus_the_teachers_entropy():
    ours, theirs = (jnp.asarray(np.random.default_rng(i).normal(size=(3, 5)), jnp.float32) for i in (0, 1))
    p, t = (1 / (1 + np.exp(-np.asarray(x, np.float64))) for x in (ours, theirs))
    cross, entropy = (-(t * np.log(x) + (1 - t) * np.log(1 - x)).sum(-1) for x in (p, t))
    value, slope = jax.value_and_grad(lambda z: distillation.soft_bernoulli(z, theirs).mean())(ours)
    np.testing.assert_allclose(value, (cross - entropy).mean(), rtol=1e-5)
    np.testing.assert_allclose(slope, (p - t) / 3, atol=1e-6)
    assert not distillation.soft_bernoulli(theirs, theirs).any()


def test_bernoulli_labels_are_finite_for_certain_teachers():
    far = jnp.array([[200.0, -200.0]])
    value, slope = jax.value_and_grad(lambda z: distillation.soft_bernoulli(z, far).sum())(-far)
    np.testing.assert_allclose(value, 400.0, rtol=1e-6)
    assert np.isfinite(slope).all()


# Words ----------------------------------------------------------------------------------------------------


def numbered(mask) -> jnp.ndarray:
    """Each token is a word of its own."""
    return jnp.where(mask, jnp.arange(mask.shape[1]), -1)


WORD = jnp.array([[0, 1, 1, -1, -1], [0, 1, 2, 2, 3]])  # of MASK's tokens
THEIRS = jnp.array([[0, 0, 1, -1], [0, 1, 2, 3]])


@DIRECTIONS
@pytest.mark.parametrize("heads", distillation.HEADS)
def test_words_of_one_token_on_both_sides_change_nothing(direction, heads):
    how = dict(text_mask=MASK, direction=direction, heads=heads, weights=jnp.array([1.0, 0.5]))
    words = distillation.Words(numbered(MASK), numbered(MASK), MASK)
    want = distillation.attention_kl(qk(0), qk(1), **how)
    np.testing.assert_allclose(distillation.attention_kl(qk(0), qk(1), words=words, **how), want, rtol=1e-5)


def test_a_word_has_the_sum_of_its_pieces_as_key_and_their_mean_as_query():
    part = qk(2)
    t2v, v2t = (np.asarray(x) for x in distillation.cross_maps(part, MASK))
    got = [np.exp(x) for x in distillation.word_maps(part, MASK, WORD, count=5)]
    for b, row in enumerate(np.asarray(WORD)):
        for word in range(row.max() + 1):
            np.testing.assert_allclose(got[0][b, :, word], t2v[b][:, row == word].mean(1), rtol=1e-5)
            np.testing.assert_allclose(got[1][b, :, :, word], v2t[b][:, :, row == word].sum(-1), rtol=1e-5)
        np.testing.assert_allclose(got[0][b, :, : row.max() + 1].sum(-1), 1.0, rtol=1e-5)
        assert got[1][b, :, :, row.max() + 1 :].max() < 1e-30
    np.testing.assert_allclose(got[1].sum(-1), 1.0, rtol=1e-5)


@DIRECTIONS
def test_the_divergence_over_words_equals_loops(direction):
    ours, theirs, mask = qk(3), qk(4, texts=4), THEIRS >= 0
    got = distillation.attention_kl(
        ours, theirs, text_mask=MASK, direction=direction, words=distillation.Words(WORD, THEIRS, mask)
    )
    maps = [
        [np.exp(np.asarray(x, np.float64)) for x in distillation.word_maps(part, m, word, count=5)]
        for part, m, word in ((ours, MASK, WORD), (theirs, mask, THEIRS))
    ]
    s, t = maps if direction == "student_teacher" else maps[::-1]
    with np.errstate(invalid="ignore"):  # words that are not there
        kl = [np.log(p / q) * p for p, q in zip(s, t, strict=True)]
    sizes = [2, 4]  # words of the two texts
    text = sum(kl[0][b, :, :n].sum((-1, -2)).mean() for b, n in enumerate(sizes)) / sum(sizes)
    image = np.mean([kl[1][b, :, :, :n].sum(-1).mean() for b, n in enumerate(sizes)])
    np.testing.assert_allclose(got, text + image, rtol=1e-5)


def test_a_token_cut_in_two_halves_is_the_same_word_and_has_no_divergence_or_gradient():
    """The teacher's second token is two pieces, each with its scores less log 2 as key and its query twice."""
    ours = qk(5, texts=3, batch=1)
    ones = jnp.ones((*ours.image_q.shape[:3], 1))
    key = jnp.concatenate([ours.text_k, jnp.zeros((1, 3, 3, 1))], -1)[:, jnp.array([0, 1, 1, 2])]
    key = (
        (key * np.sqrt(5 / 4)).at[:, 1:3, :, -1].set(-np.log(2.0) * np.sqrt(5))
    )  # five dims are scaled by 1/sqrt(5)
    theirs = CrossQK(
        ours.text_q[:, jnp.array([0, 1, 1, 2])], ours.image_k, jnp.concatenate([ours.image_q, ones], -1), key
    )
    words = distillation.Words(jnp.array([[0, 1, 2]]), jnp.array([[0, 1, 1, 2]]), jnp.ones((1, 4), bool))
    loss = lambda student: distillation.attention_kl(  # noqa: E731
        student, theirs, text_mask=jnp.ones((1, 3), bool), words=words
    )
    value, grads = jax.jit(jax.value_and_grad(loss))(ours)
    assert abs(value) < 1e-6
    assert max(float(jnp.abs(g).max()) for g in grads) < 1e-6


def test_padding_is_no_word():
    ours, theirs, mask = qk(6), qk(7, texts=4), THEIRS >= 0
    loss = jax.jit(
        lambda s, t, m, words: jax.value_and_grad(
            lambda x: distillation.attention_kl(x, t, text_mask=m, words=words)
        )(s)
    )
    words = distillation.Words(WORD, THEIRS, mask)
    value, grads = loss(ours, theirs, MASK, words)
    pads = [(ours, MASK), (theirs, mask)]
    noisy = [
        part._replace(text_q=jnp.where(m[..., None, None], part.text_q, 9.0),
                      text_k=jnp.where(m[..., None, None], part.text_k, -9.0)) for part, m in pads
    ]  # fmt: skip
    again, _ = loss(*noisy, MASK, words)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    assert all(np.isfinite(g).all() for g in grads) and not np.asarray(grads.text_k)[0, 3:].any()
    wider = [jnp.pad(x, ((0, 0), (0, 2)), constant_values=-1) for x in (WORD, THEIRS)]
    more = [
        p._replace(
            **{k: jnp.pad(getattr(p, k), ((0, 0), (0, 2), (0, 0), (0, 0))) for k in ("text_q", "text_k")}
        )
        for p in (ours, theirs)
    ]
    longer, _ = loss(*more, wider[0] >= 0, distillation.Words(*wider, wider[1] >= 0))
    np.testing.assert_allclose(longer, value, rtol=1e-6)


def test_words_need_valid_queries_and_images_of_the_same_patches():
    words = distillation.Words(WORD, THEIRS, THEIRS >= 0)
    with pytest.raises(ValueError, match='queries="all" counts padding'):
        distillation.attention_kl(qk(0), qk(1, texts=4), text_mask=MASK, words=words, queries="all")
    with pytest.raises(ValueError, match=r"image_k: \[B,S\]"):
        distillation.attention_kl(qk(0), qk(1, texts=4, images=6), text_mask=MASK, words=words)
