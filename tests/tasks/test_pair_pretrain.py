"""Pre-training on pairs: each term against its definition, what goes through which network, and what a teacher sees."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_model import TOKENS, batch
from tiny_pair import Counting, TinyJoint, TinyPair, TinySimulated, noisy, retold, taught

from jaxvl import losses
from jaxvl.tasks import TASKS, PairPretrainTask, teaching
from jaxvl.tasks import pretrain_losses as parts

KEY = jax.random.key(7)
TERMS = {f"{a}{b}" for a in ("itc", "itm", "mlm") for b in ("", "_soft", "_attn_uni", "_attn_cross")}
EVERYTHING = dict(itm=("soft", "attn"), itc=("attn", "cross"), mlm=("soft", "attn"))


def make(**options) -> PairPretrainTask:
    return PairPretrainTask(options.pop("model", TinyPair()), tokens=TOKENS, **options)


def metrics(task, params, extra, rows, key=KEY) -> dict[str, float]:
    loss, (_, found) = jax.jit(task.loss)(params, extra, rows, key)
    means = {name: float(total / weight) for name, (total, weight) in found.items() if weight}
    np.testing.assert_allclose(loss, means["loss"], rtol=1e-6)
    return means


# Which terms there are ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({}, "itc itm mlm"),
        ({"itc": None}, "itm mlm"),
        ({"model": TinyJoint(), "itc": None}, "itm mlm"),
        ({"itm": None, "mlm": None}, "itc"),
        ({"distill": {}}, "itc itm mlm itc_attn_uni itm_soft itm_attn_uni itm_attn_cross"),
        ({"distill": {"cross": False}}, "itc itm mlm itc_attn_uni itm_soft itm_attn_uni"),
        ({"distill": {"uni": False}}, "itc itm mlm itm_soft itm_attn_cross"),
        ({"distill": {"itm": ("soft",), "itc": ()}}, "itc itm mlm itm_soft"),
        ({"distill": {}, "itm": None, "mlm": None}, "itc itc_attn_uni"),
        ({"distill": {"itc": ("cross",)}, "itm": None, "mlm": None}, "itc itc_attn_cross"),
        (
            {"distill": {"itm": (), "itc": (), "mlm": ("soft", "attn")}},
            "itc itm mlm mlm_soft mlm_attn_uni mlm_attn_cross",
        ),
    ],
)
def test_there_are_exactly_the_terms_that_are_asked_for(options, terms):
    task, rows = make(**options, teacher=TinyJoint() if "distill" in options else None), batch()

    def found(key):
        params, extra = nn.unbox(task.init(key, rows)), {"frozen": nn.unbox(task.init_frozen(key, rows))}
        return task.loss(params, extra, rows, key)[1][1]

    assert TERMS & jax.eval_shape(found, KEY).keys() == set(terms.split())


def test_the_loss_is_the_sum_of_all_terms():
    task, rows = make(teacher=TinyJoint(), distill=EVERYTHING), batch()
    found = metrics(task, *taught(task, rows), rows)
    assert found.keys() >= TERMS - {"itc_soft"}
    np.testing.assert_allclose(found["loss"], sum(found[t] for t in TERMS - {"itc_soft"}), rtol=1e-5)
    for kind in ("uni", "cross", "teacher"):
        assert 0 < found[f"entropy_{kind}_t2v"] <= np.log(5) + 1e-6
        assert 0 < found[f"entropy_{kind}_v2t"] <= np.log(6) + 1e-6


def test_images_are_encoded_once_and_each_network_fuses_once():
    student, other = Counting(TinyPair()), Counting(TinyJoint())
    task, rows = make(model=student, teacher=other, distill={}), batch(5)
    jax.eval_shape(task.loss, *taught(task, rows), rows, KEY)
    passes = [c for c in student.calls if c[0] in ("encode_image", "encode_text", "fuse")]
    assert passes == [("encode_image", 5), ("encode_text", 10), ("fuse", 10)]
    passes = [c for c in other.calls if c[0] in ("encode_image", "encode_text", "fuse")]
    assert passes == [("encode_image", 5), ("encode_text", 5), ("fuse", 5 + 2)]
    assert not any(given.get("train") for _, given in other.given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"itm": {"negatives": "hard"}}, "itm.negatives='hard'.*expected one of batch, dataset"),
        ({"itm": {"group": 2}}, "unknown option itm.group"),
        ({"itc": None, "itm": None, "mlm": None}, "no loss"),
        ({"model": TinyJoint()}, "TinyJoint has no contrastive heads: set itc=None"),
        ({"distill": {}}, "there is no teacher: set distill=None"),
        ({"teacher": TinyJoint()}, "distill=None learns nothing from the teacher"),
        ({"teacher": TinyJoint(), "distill": {"itc": ("soft",)}}, "distill.itc='soft'.*attn, cross"),
        ({"teacher": TinyJoint(), "distill": {"direction": "student"}}, "distill.direction.*student_teacher"),
        ({"teacher": TinyJoint(), "distill": {"tau": 0.0}}, "distill.tau=0.0"),
        ({"teacher": TinyJoint(), "distill": {}, "itc": None, "itm": None}, "distill asks nothing of the teacher"),
        ({"teacher": TinyJoint(), "distill": {"uni": False, "cross": False}}, "leave no attention to imitate"),
        ({"teacher": TinyJoint(image_size=4), "distill": {}}, "image_size=2 but the teacher's image_size=4: give"),
        ({"teacher": TinyJoint(image_tokens=2), "distill": {}}, "image_tokens=5 but.*patch size"),
        ({"teacher": TinyJoint(vocab_size=30), "distill": {}}, "vocab_size=24 but.*=30: use the teacher's tokenizer"),
        ({"teacher": TinyJoint(head_count=4), "distill": {}}, 'head_count=4: set distill.heads="mean"'),
        ({"model": TinyPair(text_arch="roberta"), "teacher": TinyJoint(), "distill": {}}, "byte-level BPE"),
        ({"model": TinyPair(interaction="virt"), "teacher": TinyJoint(), "distill": {}}, "'virt' has no cross-modal"),
        ({"model": TinyJoint(), "teacher": TinyJoint(), "distill": {}, "itc": None}, "set distill.uni=False"),
    ],
)  # fmt: skip
def test_wrong_options_and_teachers_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_task_is_registered_and_starts_towers_where_the_model_says():
    assert TASKS["pair_pretrain"] is PairPretrainTask
    assert make().renames == (("a", "b"),)
    assert make().init_frozen(KEY, batch()) is None


# Contrastive ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_same_image", [True, False])
def test_the_contrastive_loss_equals_loops_without_other_pairs_of_the_image(mask_same_image):
    task, rows = make(itc=dict(mask_same_image=mask_same_image), itm=None, mlm=None), batch(5)
    rows["image_id"] = jnp.array([3, 1, 3, 2, 1])
    params, extra = taught(task, rows)
    image, text = (
        np.asarray(task.predictors[name](params, rows, KEY), np.float64)
        for name in ("image_embed", "text_embed")
    )
    want = 0.0
    for i in range(5):
        ids = np.asarray(rows["image_id"])
        seen = [j for j in range(5) if j == i or ids[j] != ids[i] or not mask_same_image]
        for own, others in ((image[i], text), (text[i], image)):
            logits = [own @ others[j] / 0.1 for j in seen]
            want += (np.log(np.sum(np.exp(logits))) - logits[seen.index(i)]) / 10
    found = metrics(task, params, extra, rows)
    np.testing.assert_allclose(found["itc"], want, rtol=1e-5)
    np.testing.assert_allclose(found["temperature"], 0.1, rtol=1e-6)


def test_masking_the_same_image_asks_for_image_ids():
    rows = {k: v for k, v in batch().items() if k != "image_id"}
    for name, absent in (("itc", {"itm": None}), ("itm", {"itc": None})):
        task = make(**absent, mlm=None)
        with pytest.raises(KeyError, match=f"{name}.mask_same_image=True needs"):
            jax.eval_shape(task.loss, *taught(task, rows), rows, KEY)


# Matching -------------------------------------------------------------------------------------------------


def test_half_of_the_pairs_are_broken_and_those_of_one_image_count_nowhere():
    task, rows = make(itc=None, mlm=None), batch(7)
    params, extra = taught(task, rows)
    weight = lambda r: float(jax.jit(task.loss)(params, extra, r, KEY)[1][1]["itm"][1])  # noqa: E731
    assert weight(rows) == 7
    assert weight({**rows, "image_id": jnp.zeros(7, jnp.int32)}) == 7 - 3


def test_matching_is_cross_entropy_with_broken_pairs_as_class_zero():
    task, rows = make(itc=None, mlm=None), batch(7)
    params, extra = taught(task, rows)
    params["itm_head"] = jax.tree.map(jnp.zeros_like, params["itm_head"])
    params["itm_head"]["bias"] = jnp.array([0.0, np.log(3.0)])  # three to one for a match
    found = metrics(task, params, extra, rows)
    np.testing.assert_allclose(found["itm"], -(4 * np.log(3 / 4) + 3 * np.log(1 / 4)) / 7, rtol=1e-5)
    np.testing.assert_allclose(found["itm_accuracy"], 4 / 7, rtol=1e-6)


def with_false(rows):
    """`rows`, with false images that no row shows."""
    false = np.random.default_rng(9).normal(size=rows["image"].shape).astype(np.float32)
    return {**rows, "false_image": jnp.asarray(false), "false_image_id": rows["image_id"] + 100}


def test_negatives_of_the_data_set_are_the_rows_own_false_images():
    """The loss with them is that of plain batches into which each broken row's false image was put by hand."""
    task, rows = make(itc=None, mlm=None, itm=dict(negatives="dataset")), with_false(batch(7))
    params, extra = taught(task, rows)
    found = metrics(task, params, extra, rows)
    pairing = losses.mismatch_half(jax.random.split(KEY, 3)[1], valid=jnp.ones(7, bool))
    broken = np.asarray(pairing.broken)
    mixed = {**rows, "image": jnp.where(broken[:, None, None, None], rows["false_image"], rows["image"])}
    logits = np.asarray(task.predictors["match_logit"](params, mixed, KEY))
    p = np.asarray(task.predictors["match"](params, mixed, KEY), np.float64)
    assert broken.sum() == 3 and logits.shape == (7,)
    np.testing.assert_allclose(found["itm"], -np.log(np.where(broken, 1 - p, p)).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["itm_accuracy"], ((p > 0.5) == ~broken).mean(), rtol=1e-6)


def test_a_row_without_a_false_image_has_no_weight_and_a_batch_without_them_is_an_error():
    task, rows = make(itc=None, mlm=None, itm=dict(negatives="dataset")), batch(7)
    params, extra = taught(task, rows)
    loss = jax.jit(task.loss)
    alike = {**with_false(rows), "false_image_id": rows["image_id"]}
    assert float(loss(params, extra, with_false(rows), KEY)[1][1]["itm"][1]) == 7
    assert float(loss(params, extra, alike, KEY)[1][1]["itm"][1]) == 7 - 3
    with pytest.raises(KeyError, match=r"itm.negatives=\"dataset\" needs batch\[\"false_image\"\]"):
        jax.eval_shape(task.loss, params, extra, rows, KEY)


def test_only_matching_sees_false_images_and_each_network_encodes_half_a_batch_more():
    student, other = Counting(TinyPair()), Counting(TinyJoint())
    task = make(model=student, teacher=other, distill=EVERYTHING, itm=dict(negatives="dataset"))
    rows = with_false(batch(6))
    params, extra = taught(task, rows)
    student.calls.clear(), other.calls.clear()
    found = metrics(task, params, extra, rows)
    for network in (student, other):
        assert [n for name, n in network.calls if name == "encode_image"] == [6 + 3]
    plain = metrics(make(teacher=TinyJoint(), distill=EVERYTHING), params, extra, rows)
    for name in (
        "itc",
        "mlm",
        "mlm_soft",
        *(f"{x}_attn_{y}" for x in ("itc", "mlm") for y in ("uni", "cross")),
    ):
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-5, err_msg=name)
    assert all(abs(found[x] - plain[x]) > 1e-4 for x in ("itm", "itm_soft", "itm_attn_uni", "itm_attn_cross"))


# Masked words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_share", [None, 0.3])
def test_every_word_and_no_special_token_or_padding_is_predicted_from_its_own_pair(max_share):
    task, rows = make(itc=None, itm=None, mlm=dict(prob=1.0, max_share=max_share)), batch(4)
    params, extra = taught(task, rows)
    params["mlm_head"] = {"kernel": jnp.zeros((8, 24)), "bias": jnp.zeros(24).at[rows["text"][0, 1]].set(5.0)}
    _, (_, found) = jax.jit(task.loss)(params, extra, rows, KEY)
    words = np.asarray(rows["text"])[np.asarray(rows["text"]) > 3]
    log_p = np.log(np.exp(5.0) + 23)
    right = words == int(rows["text"][0, 1])
    assert found["mlm"][1] == len(words)
    np.testing.assert_allclose(found["mlm"][0], (log_p - 5.0 * right).sum(), rtol=1e-5)
    np.testing.assert_allclose(found["mlm_accuracy"][0], right.sum())


def test_whole_words_are_masked_where_the_vocabulary_says_what_continues_one():
    odd = np.arange(24) % 2 == 1
    with pytest.raises(ValueError, match="mlm.whole_word=True needs tokens.continues"):
        make(mlm=dict(whole_word=True))
    with pytest.raises(ValueError, match="whole_word=True with mlm.strategy='single'"):
        make(mlm=dict(whole_word=True, strategy="single"))
    task = PairPretrainTask(
        TinyPair(), tokens=dict(TOKENS, continues=odd), mlm=dict(prob=0.5, whole_word=True)
    )
    rows = batch(64)
    rows["text"] = jnp.asarray(np.tile([1, 4, 5, 7, 6, 9], (64, 1)))
    rows["text_mask"] = jnp.ones((64, 6), bool)
    shared = parts.Step(rows, jnp.ones(64), alpha=None, tau=1.0, queue=None)
    selected = np.asarray(parts.corrupt(task.mlm, key=KEY, tokens=task.tokens, step=shared).selected)
    assert not selected[:, 0].any()
    for word in ([1, 2, 3], [4, 5]):
        assert (selected[:, word] == selected[:, word[:1]]).all() and 10 < selected[:, word[0]].sum() < 54
    assert (selected[:, 1] != selected[:, 4]).any()


def test_no_selected_word_gives_no_masked_language_loss():
    task, rows = make(itc=None, itm=None, mlm=dict(prob=0.0)), batch(4)
    loss, _ = jax.jit(task.loss)(*taught(task, rows), rows, KEY)
    assert loss == 0.0


# Teacher --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["uni", "cross"])
def test_a_teacher_equal_to_the_student_teaches_nothing(part):
    """It must see the same pairs, true and broken, the same masked words and masks, and rows must not be mixed up."""
    distill = dict(EVERYTHING, uni=part == "uni", cross=part == "cross")
    task, rows = make(teacher=(TinySimulated if part == "uni" else TinyPair)(), distill=distill), batch(6)
    params = noisy(taught(task, rows)[0], 3)
    found = metrics(task, params, {"frozen": params}, rows)
    zero = ["itm_soft", "mlm_soft", *(f"{name}_attn_{part}" for name in ("itm", "itc", "mlm"))]
    assert {name: abs(found[name]) < 1e-6 for name in zero} == dict.fromkeys(zero, True)
    other = metrics(task, params, {"frozen": noisy(params, 4)}, rows)
    assert all(other[name] > 1e-3 for name in zero)


def test_true_pairs_are_put_together_from_the_unbroken_and_the_completed_rows():
    """Attention on the true pairs does not depend on which of them the matching loss broke up."""
    rows, found = batch(6), []
    for itm in (("soft", "attn"), ()):
        task = make(teacher=TinyJoint(), distill=dict(itm=itm, itc=("attn", "cross")))
        found.append(metrics(task, *taught(task, rows), rows))
    for name in ("itc_attn_uni", "itc_attn_cross"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-5)


def test_padding_rows_count_nowhere():
    task, rows = make(teacher=TinyJoint(), distill=EVERYTHING), batch(6)
    params, extra = taught(task, rows)
    other = {k: v[::-1][:3] for k, v in batch(6, seed=1).items()}
    padded = {k: jnp.concatenate([v, other[k]]) for k, v in rows.items()}
    padded["mask"] = jnp.arange(9) < 6
    want, got = metrics(task, params, extra, rows), metrics(task, params, extra, padded)
    assert want.keys() == got.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_no_gradient_reaches_the_teacher():
    task, rows = make(teacher=TinyJoint(), distill=EVERYTHING), batch(4)
    params, extra = taught(task, rows)
    grads = jax.jit(jax.grad(lambda p, e: task.loss(p, e, rows, KEY)[0], argnums=(0, 1)))(params, extra)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(grads[1]))
    for name in ("text_qk", "visual_qk", "cross_text", "cross_image", "itm_head", "mlm_head", "text_proj"):
        assert np.asarray(grads[0][name]["kernel"]).any(), name
    with pytest.raises(KeyError, match='extra\["frozen"\]'):
        task.loss(params, {}, rows, KEY)


def test_the_teacher_gets_the_students_pixels_normalised_its_own_way():
    raw = np.random.default_rng(0).uniform(size=(2, 4, 4, 3)).astype(np.float32)
    student = TinyPair(pixel_mean=(0.4, 0.5, 0.6), pixel_std=(0.2, 0.3, 0.4))
    other = TinyJoint(pixel_mean=(0.5, 0.4, 0.3), pixel_std=(0.5, 0.6, 0.7))
    ours, theirs = ((raw - np.array(x.pixel_mean)) / np.array(x.pixel_std) for x in (student, other))
    np.testing.assert_allclose(teaching.pixels(ours, student=student, teacher=other), theirs, atol=1e-5)
    rows, found = batch(4), []
    for mean in (0.5, 0.1):
        task = make(teacher=TinyJoint(pixel_mean=(mean,) * 3), distill={}, itc=None, mlm=None)
        found.append(metrics(task, *taught(task, rows), rows))
    assert found[0]["itm"] == found[1]["itm"]
    assert abs(found[0]["itm_attn_cross"] - found[1]["itm_attn_cross"]) > 1e-3


# Another tokenizer -------------------------------------------------------------------------------------------


def test_words_of_one_token_teach_what_tokens_do():
    rows, found = batch(6), []
    for word_align in (False, True):
        task = make(teacher=TinyJoint(), distill=dict(EVERYTHING, mlm=(), word_align=word_align))
        found.append(metrics(task, *taught(task, rows), retold(rows) if word_align else rows))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_teacher_reads_its_own_text_of_another_length_and_vocabulary():
    """A RoBERTa beside a WordPiece teacher: what the student's ids are does not matter to the teacher."""
    other = Counting(TinyJoint(vocab_size=30))
    task = make(model=TinyPair(text_arch="roberta"), teacher=other, distill=dict(word_align=True))
    theirs = np.random.default_rng(3).integers(4, 30, (5, 4)).astype(np.int32)
    rows = retold(
        batch(5),
        teacher_text=theirs,
        word=np.where(np.asarray(batch(5)["text_mask"]), [0, 1, 1, 2, 2, 2], -1).astype(np.int32),
        teacher_word=np.tile([0, 1, 2, -1], (5, 1)).astype(np.int32),
    )
    rows["text_mask"] = rows["text_word"] >= 0
    params, extra = taught(task, rows)
    extra["frozen"] = noisy(
        nn.unbox(other.model.init(KEY, rows["image"], rows["teacher_text"], rows["teacher_text_mask"]))[
            "params"
        ],
        2,
    )
    other.calls.clear()
    found = metrics(task, params, extra, rows)
    assert ("encode_text", 5) in other.calls
    assert all(
        np.isfinite(found[n]) and found[n] > 1e-4 for n in ("itm_attn_uni", "itm_attn_cross", "itc_attn_uni")
    )
    moved = metrics(task, params, extra, {**rows, "teacher_text": (rows["teacher_text"] + 5) % 30})
    assert moved["mlm"] == found["mlm"] and abs(moved["itm_attn_cross"] - found["itm_attn_cross"]) > 1e-4


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        (dict(word_align=True, queries="all"), 'set distill.queries="valid"'),
        (dict(word_align=True, mlm=("attn",)), r"distill.mlm=\('attn',\).*set distill.mlm=\(\)"),
    ],
)
def test_what_words_cannot_teach_is_refused(distill, message):
    with pytest.raises(ValueError, match=message):
        make(teacher=TinyJoint(), distill=distill)


def test_words_need_a_text_of_the_teachers():
    task, rows = make(teacher=TinyJoint(), distill=dict(word_align=True)), batch(4)
    params, extra = taught(task, rows)
    with pytest.raises(KeyError, match='needs batch\\["teacher_text"\\].*config.text.teacher_vocab'):
        jax.eval_shape(task.loss, params, extra, rows, KEY)


# Predictors -----------------------------------------------------------------------------------------------


def test_an_image_with_several_texts_matches_as_each_pair_does_also_from_stored_states():
    task, rows = make(), batch(4)
    params, _ = taught(task, rows)
    params = noisy(params, 1)
    match = jax.jit(task.predictors["match_logit"])
    many = {
        "image": rows["image"][:2],
        "text": rows["text"].reshape(2, 2, 6),
        "text_mask": rows["text_mask"].reshape(2, 2, 6),
    }
    each = {**rows, "image": rows["image"][jnp.array([0, 0, 1, 1])]}
    encode = lambda *x, method: task.model.apply({"params": params}, *x, method=method)  # noqa: E731
    text = encode(each["text"], each["text_mask"], method="encode_text")
    fused = encode(text, each["text_mask"], encode(each["image"], method="encode_image"), method="fuse")
    logits = encode(fused, method="match_logits")
    want = logits[:, 1]
    np.testing.assert_allclose(match(params, each, KEY), want, atol=1e-5)
    np.testing.assert_allclose(match(params, many, KEY).reshape(-1), want, atol=1e-5)
    images, texts = (task.predictors[f"{n}_states"](params, each, KEY) for n in ("image", "text"))
    stored = {"image_states": images, "text_states": texts, "text_mask": rows["text_mask"]}
    np.testing.assert_allclose(match(params, stored, KEY), want, atol=1e-5)
    both = {
        "image_states": images[::2],
        "text_states": texts.reshape(2, 2, 1, 6, 8),
        "text_mask": many["text_mask"],
    }
    np.testing.assert_allclose(match(params, both, KEY).reshape(-1), want, atol=1e-5)
    probability = np.exp(want) / np.exp(logits).sum(-1)
    np.testing.assert_allclose(task.predictors["match"](params, each, KEY), probability, rtol=1e-5)


def test_only_contrastive_models_have_embeddings():
    assert {"image_embed", "text_embed"} <= make().predictors.keys()
    assert not {"image_embed", "text_embed"} & make(model=TinyJoint(), itc=None).predictors.keys()
