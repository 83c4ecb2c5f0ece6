"""The pool scorer against a double loop in which every pair is encoded alone; blocks, devices, pruning, kept shards."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxvl.active import scoring
from jaxvl.active.objects import ObjectWords
from jaxvl.active.report import balance
from jaxvl.active.request import COUNTED, Request
from jaxvl.active.scoring import PoolScorer, Scorers
from jaxvl.active.strategies.ccrl import CCRL, ENGINE
from jaxvl.data.words import Words
from jaxvl.models.joint import SharedEncoders
from jaxvl.models.vaue import VAUE
from jaxvl.models.vqme import VQME
from jaxvl.sharding import Partition
from jaxvl.tasks.match_and_answer import joined, view

N, Q, R, F, L, C, BUDGET = 60, 40, 4, 5, 6, 7, 9
SIZES = dict(words=13, feat_dim=F, width=8, heads=2, word_dim=4, dropout=0.0)
MATCHER, ANSWERS = VQME(critic_width=6, project=3, **SIZES), VAUE(classes=C, **SIZES)
RNG = np.random.default_rng(5)
REGION_MASK = np.arange(R) < RNG.integers(1, R + 1, (N, 1))
REGIONS = (RNG.normal(size=(N, R, F)) * REGION_MASK[..., None]).astype(np.float32)
TEXT = RNG.integers(3, 13, (Q, L)).astype(np.int32) * (np.arange(L) < RNG.integers(2, L + 1, (Q, 1)))
KINDS = RNG.integers(0, 3, Q)
RATES = 1 - RNG.dirichlet(np.full(C, 0.5), 3)
IDS = RNG.permutation(np.arange(100, 100 + N))
WORDS = Words(["red", "cup", "dog", *"abcdefg"], dim=5, length=L)


class Named:
    """What a detector names in the images."""

    classes = ("red cup", "dog,hound", "a b c", "tree")

    def shown(self, image_id):
        return np.random.default_rng(image_id).integers(0, 4, 1 + image_id % 3)


class Images:
    """A source of image rows; `upto` rows can be read before it fails."""

    def __init__(self, rows=range(N), *, ids=IDS, cache=None, upto=None):
        self.rows, self.cache, self.upto = np.asarray(rows, np.int64), cache, upto
        self.ids = np.asarray(ids)[self.rows] if ids is IDS else np.asarray(ids)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        if self.upto is not None and self.rows[i] >= self.upto:
            raise OSError("the disk is gone")
        return {"regions": REGIONS[self.rows[i]], "region_mask": REGION_MASK[self.rows[i]]}

    def subset(self, at):
        return Images(self.rows[at], ids=self.ids[at], upto=self.upto)


def request(**kwargs):
    given = dict(images=Images(), text=TEXT, kinds=KINDS, rates=RATES, budget=BUDGET)
    return Request(**{**given, **kwargs})


@functools.cache
def params():
    """Weights with which about a third of the pairs match, and answers are more and less certain.

    None is nearly sure: `f` is 1 minus something, so in float32 a tiny `f` is known to 1e-7, not to 1e-6 of itself.
    """
    rows = (REGIONS[:1], REGION_MASK[:1], TEXT[:1], TEXT[:1] != 0)
    out = {}
    for n, (stage, model) in enumerate((("vqme", MATCHER), ("vaue", ANSWERS))):
        out[stage] = nn.unbox(jax.jit(model.init)(jax.random.key(n), *rows))["params"]
    out["vqme"]["critic_weight"] *= 20
    out["vqme"]["critic_offset"] = jnp.float32([-np.quantile(pairs(out)["T"], 2 / 3)])
    for half in ("image_half", "text_half"):
        out["vaue"][half] = {k: 6 * v for k, v in out["vaue"][half].items()}
    return out


@functools.partial(jax.jit, static_argnums=0)
def alone(model, weights, *rows):
    return model.apply({"params": weights}, *rows)


@functools.partial(jax.jit, static_argnums=(0, 1))
def side(model, method, weights, *rows):
    return model.apply({"params": weights}, *rows, method=method)


def pairs(weights):
    """`[N,Q,...]` of every pair: each has an image and a question of its own; the critic sees their concatenation."""
    i, q = np.repeat(np.arange(N), Q), np.tile(np.arange(Q), N)
    rows = (REGIONS[i], REGION_MASK[i], TEXT[q], TEXT[q] != 0)
    p = jax.tree.map(np.asarray, weights["vqme"])
    v, s = (
        np.asarray(side(MATCHER, method, weights["vqme"], *own), np.float64)
        for method, own in (("encode_image", rows[:2]), ("encode_text", rows[2:]))
    )
    kernel = np.concatenate([p["image_side"]["kernel"], p["text_side"]["kernel"]])
    hidden = np.maximum(np.concatenate([v, s], axis=1) @ kernel + p["text_side"]["bias"], 0)
    critic = hidden @ p["critic_weight"] + p["critic_offset"]
    match = alone(MATCHER, weights["vqme"], *rows)
    answer = alone(ANSWERS, weights["vaue"], *rows)
    logits = np.asarray(answer.logits, np.float64)
    prob = np.exp(logits - logits.max(1, keepdims=True))
    prob /= prob.sum(1, keepdims=True)
    most = prob.max(1)
    kappa = (C * most - 1) ** 2 / ((C - 1) * (C * (prob**2).sum(1) - 1))
    cosine = (np.asarray(answer.v) * np.asarray(answer.s)).sum(1)
    cosine /= np.linalg.norm(answer.v, axis=1) * np.linalg.norm(answer.s, axis=1)
    found = dict(T=critic, f=1 - kappa * most, answer=prob.argmax(1), cosine=cosine,
                 named=named().reshape(-1),
                 contrast=(np.asarray(match["z"]) * np.asarray(match["w"])).sum(1))  # fmt: skip
    return {k: np.asarray(x).reshape(N, Q) for k, x in found.items()}


def named():
    """`[N,Q]`: cosine of the mean vectors, a pair at a time."""
    vector = dict(zip(WORDS.vocab, WORDS.vectors.astype(np.float64), strict=True))
    vector["tree"] = Words(["tree"], dim=5).vectors[3].astype(np.float64)  # no question says it
    classes = [[vector[w] for w in said.split()] for said in ("red cup", "dog", "a b c", "tree")]
    out = np.zeros((N, Q))
    for i in range(N):
        image = np.mean([np.mean(classes[c], axis=0) for c in Named().shown(int(IDS[i]))], axis=0)
        for q in range(Q):
            text = np.mean([WORDS.vectors[w] for w in TEXT[q] if w], axis=0)
            out[i, q] = image @ text / np.linalg.norm(image) / np.linalg.norm(text)
    return out


@pytest.fixture(scope="module")
def truth():
    return pairs(params())


def test_the_strongest_patterns_of_each_image_are_those_of_its_pairs(truth):
    """In blocks of 16 images that do not divide the pool, without an answer model."""
    scorer = PoolScorer(
        MATCHER, None, partition=Partition.create(mesh=dict(data=1, model=1), rules="dp"), block=16
    )
    found = scorer.strongest({"vqme": params()["vqme"]}, request(k_max=5))
    best = np.take_along_axis(truth["T"], found, 1)
    assert found.shape == (N, 5) and (np.diff(best, axis=1) <= 1e-5).all()
    np.testing.assert_allclose(best, -np.sort(-truth["T"], axis=1)[:, :5], atol=1e-5)


def test_each_stage_is_scored_by_its_own_model_and_equal_models_share_their_programs(truth):
    """A cosine critic of the same heads ranks patterns as the contrast does."""
    models = {"vqme": MATCHER, "vqme_mi": MATCHER.clone(), "vqme_cl": MATCHER.clone(critic="cosine")}
    scorers = Scorers(models, None, partition=Partition.create(mesh=dict(data=1, model=1)), block=64)
    assert scorers.of_stage["vqme"] is scorers.of_stage["vqme_mi"] is scorers.other
    kept = {k: v for k, v in params()["vqme"].items() if "_side" not in k and "second" not in k}
    cosine = kept | {"critic_weight": np.ones(1, np.float32), "critic_offset": np.zeros(1, np.float32)}
    found = scorers.strongest({"vqme_cl": cosine}, request(stage="vqme_cl", k_max=5))
    best = np.take_along_axis(truth["contrast"], found, 1)
    np.testing.assert_allclose(best, -np.sort(-truth["contrast"], axis=1)[:, :5], atol=1e-5)


def test_a_stage_with_shared_encoders_is_scored_as_its_two_models_are():
    both = SharedEncoders(classes=C, critic_width=6, project=3, **SIZES)
    tree = joined(params()["vqme"], params()["vaue"])
    partition = Partition.create(mesh=dict(data=1, model=1))
    strategy = CCRL(encoders="shared")
    assert strategy.needs == ("joint",) and strategy.on("qa").needs == ("joint",)
    scorers = Scorers({"joint": both}, None, partition=partition, block=64, pairs=128)
    found = scorers({"joint": tree}, request(stage=strategy.matcher))
    apart = {"joint": view(tree, "match"), "vaue": view(tree, "answer")}
    want = engine()(apart, request(stage="joint"))
    assert (found["score"] > 0).any()
    for name in want:
        np.testing.assert_array_equal(found[name], want[name], err_msg=name)
    strongest = scorers.strongest({"joint": tree}, request(stage="joint", k_max=3))
    np.testing.assert_array_equal(strongest, engine().strongest(apart, request(stage="joint", k_max=3)))


def test_a_request_that_does_not_match_gets_a_scorer_with_the_answer_model():
    both = SharedEncoders(classes=C, critic_width=6, project=3, qga="question", **SIZES)
    partition = Partition.create(mesh=dict(data=1, model=1))
    assert Scorers({"joint": both}, ANSWERS, partition=partition).other.answers == ANSWERS
    assert Scorers({"joint": both}, None, partition=partition).other.answers == both.answer
    with pytest.raises(
        ValueError, match="encoders='shared' trains the stage 'joint'; ccrl.stage='vqme_cl' would mean"
    ):
        CCRL(encoders="shared", stage="vqme_cl")


def brute(truth, wanted):
    """Scores `[N]`, masks `[N,Q]` and the ids to take, image by image."""
    strength = truth[
        {"contrast": "contrast", "similarity": "cosine", "raw_glove": "named"}.get(wanted.match, "T")
    ]
    limit = {"critic": np.log(wanted.threshold / (1 - wanted.threshold)), "contrast": wanted.threshold}
    mask, score = np.zeros((N, Q), bool), np.zeros(N)
    counts = np.clip(
        (truth["T"] > 0).sum(1), wanted.min_k, wanted.k_max
    )  # of the same options with the critic
    often = round(counts.mean())
    for i in range(N):
        order = sorted(range(Q), key=lambda q, i=i: (-strength[i, q], q))
        chosen = [q for q in order if strength[i, q] > limit.get(wanted.match, -np.inf)]
        chosen = order[: wanted.min_k] if len(chosen) < wanted.min_k else chosen
        chosen = chosen[:often] if wanted.match in COUNTED else chosen
        chosen = chosen if wanted.k_max is None else chosen[: wanted.k_max]
        mask[i, chosen] = True
        least = (C - 1) / C if wanted.var_ddof else 1.0
        factor = {q: 1 - least * (1 - truth["f"][i, q]) for q in chosen}
        factor = dict.fromkeys(factor, 1.0) if wanted.uncertainty == "one" else factor
        value = sorted(f * wanted.rates[KINDS[q], truth["answer"][i, q]] for q, f in factor.items())[::-1]
        value = value[: wanted.top_k] if wanted.agg == "topk_mean" else value
        score[i] = sum(value) / (max(len(value), 1) if wanted.agg in ("mean", "topk_mean") else 1)
    rank = sorted(range(N), key=lambda i: (-score[i], IDS[i]))
    return score, mask, [int(IDS[i]) for i in rank[: wanted.budget]]


@functools.cache
def engine(devices=1, block=64, pairs=128):
    partition = Partition.create(mesh=dict(data=devices, model=1))
    objects = ObjectWords(Named(), WORDS, dim=5)
    return PoolScorer(MATCHER, ANSWERS, partition=partition, block=block, pairs=pairs, objects=objects)


def taken(found, ids=IDS, k=BUDGET):
    """The ids that the strategy takes, given what the engine found."""
    bank, shares = SimpleNamespace(text=TEXT, kinds=KINDS), SimpleNamespace(rate=lambda mode: RATES)
    pool = SimpleNamespace(bank=bank, shares=shares, ids=ids)
    choice = CCRL()(lambda name, asked: {ENGINE: found}[name], pool, None, k, np.random.default_rng(0))
    return [int(i) for i in ids[choice.rows]]


def test_the_set_up_is_a_fair_one(truth):
    """No pair is so near the threshold that rounding could decide, images differ, and answers are of all kinds."""
    assert np.abs(truth["T"]).min() > 1e-5 and 0.3 < (truth["T"] > 0).mean() < 0.37
    assert ((truth["T"] > 0).sum(1) == 0).any() or (truth["T"] > 0).sum(1).std() > 2
    assert truth["f"].min() < 0.3 and truth["f"].max() > 0.8 and len(np.unique(truth["answer"])) > 3
    assert truth["f"].std() > 0.1


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("block", [7, 64])
def test_scores_and_selection_are_those_of_the_double_loop(truth, devices, block):
    score, mask, ids = brute(truth, request())
    found = engine(devices, block)(params(), request())
    np.testing.assert_allclose(found["score"], score, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found["n_match"], mask.sum(1))
    assert taken(found) == ids
    assert engine(devices, block).block == -(-block // devices) * devices


def strengths(one, wanted):
    models, bank = one._begin(params(), wanted)
    blocks = list(one._blocks(wanted.images))
    found = [one._strength(models, bank, wanted, one._encoded(models, b))[b["keep"]] for b in blocks]
    return np.concatenate(found)


@pytest.mark.parametrize(
    "match, field", [("critic", "T"), ("contrast", "contrast"), ("similarity", "cosine")]
)
def test_strengths_of_all_pairs_are_those_of_pairs_encoded_alone(truth, match, field):
    wanted = request(match=match)
    found = strengths(engine(4, 7), wanted)
    np.testing.assert_allclose(found, truth[field], atol=1e-5)
    if match == "critic":
        np.testing.assert_array_equal(scoring.matched(wanted, found), brute(truth, wanted)[1])


CASES = [
    dict(match="contrast", threshold=0.2), dict(match="similarity"), dict(match="all"), dict(threshold=0.8, min_k=3),
    dict(threshold=0.9, min_k=0), dict(k_max=4), dict(agg="mean"), dict(agg="topk_mean"),
    dict(agg="sum_capped", k_max=3), dict(uncertainty="one"), dict(rates=np.ones((3, C))),
    dict(match="similarity", k_max=5), dict(match="raw_glove", prune="exact"), dict(match="raw_glove", k_max=5),
    dict(agg="topk_mean", top_k=3), dict(var_ddof=1),
]  # fmt: skip


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: ",".join(f"{k}={v}" for k, v in c.items() if k != "rates") or "even"
)
def test_every_option_is_that_of_the_double_loop(truth, case):
    wanted = request(**case)
    score, mask, ids = brute(truth, wanted)
    found = engine()(params(), wanted)
    np.testing.assert_allclose(found["score"], score, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found["n_match"], mask.sum(1))
    assert taken(found) == ids


def test_blocks_of_images_have_their_own_objects(truth):
    wanted = request(match="raw_glove")
    score, _, ids = brute(truth, wanted)
    found = engine(1, 7)(params(), wanted)
    np.testing.assert_allclose(found["score"], score, rtol=1e-6, atol=1e-6)
    assert taken(found) == ids


def test_without_objects_nothing_is_matched_by_them():
    with pytest.raises(ValueError, match="does not say which objects are in its regions.*--classes"):
        ObjectWords(SimpleNamespace(classes=None), WORDS, dim=5)
    bare = PoolScorer(MATCHER, ANSWERS, partition=Partition.create(mesh=dict(data=1, model=1)))
    with pytest.raises(ValueError, match="raw_glove.*give `objects`"):
        bare(params(), request(match="raw_glove"))


@pytest.mark.parametrize("budget", [1, BUDGET, N])
def test_pruning_selects_the_same(truth, budget, monkeypatch):
    monkeypatch.setattr(balance, "SAMPLE", 1)
    wanted = request(budget=budget, prune="exact", rates=RATES**0.2)
    one = engine(2, 7)
    pruned, full = one(params(), wanted), one(params(), replace(wanted, prune=None))
    assert taken(pruned, k=budget) == taken(full, k=budget)
    np.testing.assert_array_equal(pruned["n_match"], full["n_match"])
    scored = ~np.isnan(pruned["score"])
    np.testing.assert_allclose(pruned["score"][scored], full["score"][scored], rtol=1e-6)
    assert scored.sum() < N if budget == 1 else scored.sum() >= budget
    assert (pruned["top_pattern"][~scored] == -1).all()


def test_pruning_stops_neither_too_early_nor_too_late(monkeypatch):
    """Given counts and scores: three of the fourteen images with many matches have the score 5, the bound.

    Three images with five matches reach it too, and win the tie by their ids; the others need not be looked at.
    """
    monkeypatch.setattr(balance, "SAMPLE", 1)
    count, score = np.repeat([10, 5, 2], [14, 3, N - 17]), np.repeat([4.0, 5.0, 2.0], [14, 3, N - 17])
    score[:3] = 5.0
    ids, one = np.arange(N)[::-1].copy(), engine(1, 7)
    rows_of = {REGIONS[i].tobytes(): i for i in range(N)}

    def positions(block):
        found = [rows_of[np.asarray(r).tobytes()] for r in block["regions"]]
        return np.array(found)[block["keep"]]

    monkeypatch.setattr(one, "_count", lambda m, b, r, block: count[positions(block)])
    monkeypatch.setattr(one, "_block", lambda m, b, r, block: {"score": score[positions(block)]})
    found = one(params(), request(images=Images(ids=ids), prune="exact", budget=3))
    want = sorted(range(N), key=lambda i: (-score[i], ids[i]))[:3]
    assert taken(found, ids, k=3) == ids[want].tolist()
    assert np.isnan(found["score"]).sum() >= N - 28 and not np.isnan(found["score"][:17]).any()


@pytest.mark.parametrize("prune", [None, "exact"])
def test_equal_scores_are_taken_by_id(prune):
    """The same five images again and again, so that the last place is a tie."""
    ids = np.random.default_rng(2).permutation(N)
    images = Images(np.tile(np.arange(5), N // 5), ids=ids)
    wanted = request(images=images, prune=prune, uncertainty="one", rates=np.ones((3, C)), budget=15)
    found = engine(1, 7)(params(), wanted)
    copies = [ids[np.arange(N) % 5 == i] for i in np.argsort(-found["score"][:5], kind="stable")]
    assert taken(found, ids, k=15) == [*np.sort(copies[0]).tolist(), *np.sort(copies[1])[:3].tolist()]


def test_contributors_are_the_most_valuable_pairs(truth):
    _, mask, _ = brute(truth, request())
    found = engine()(params(), request())
    value = np.where(mask, truth["f"] * RATES[KINDS[None], truth["answer"]], -1)
    for i in range(N):
        n = min(5, mask[i].sum())
        order = np.argsort(-value[i], kind="stable")[:n]
        assert found["top_pattern"][i, :n].tolist() == order.tolist()
        np.testing.assert_allclose(found["top_uncertainty"][i, :n], truth["f"][i, order], atol=2e-6)
        np.testing.assert_allclose(
            found["top_match"][i, :n], 1 / (1 + np.exp(-truth["T"][i, order])), atol=1e-5
        )
        assert found["top_answer"][i, :n].tolist() == truth["answer"][i, order].tolist()


def test_each_program_is_traced_once_whatever_comes_later():
    one = PoolScorer(
        MATCHER, ANSWERS, partition=Partition.create(mesh=dict(data=1, model=1)), block=7, pairs=64
    )
    one(params(), request())
    other = jax.tree.map(lambda x: 1.5 * x, params())
    one(other, request(text=TEXT[:11], kinds=KINDS[:11], images=Images(range(23)), prune="exact", budget=2))
    one(other, request(agg="mean", threshold=0.7, k_max=5))
    assert one.traces == {"image": 1, "bank": 1, "matches": 1, "pairs": 1}


# ---- shards that are kept ---------------------------------------------------------------------------------


@pytest.fixture
def small_shards(monkeypatch):
    """Files of two blocks of seven images; the list of blocks that were scored."""
    monkeypatch.setattr(scoring, "SHARD", 2)
    monkeypatch.setattr(balance, "SAMPLE", 1)  # what is pruned is scored for statistics too, and not kept
    done, plain = [], PoolScorer._block

    def block(self, models, bank, asked, rows):
        done.append(rows["start"])
        return plain(self, models, bank, asked, rows)

    monkeypatch.setattr(PoolScorer, "_block", block)
    return done


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_a_shard_that_exists_is_not_computed_again(tmp_path, small_shards):
    want = engine(1, 7)(params(), request())
    same(engine(1, 7)(params(), request(images=Images(cache=tmp_path))), want)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    small_shards.clear()
    same(engine(1, 7)(params(), request(images=Images(cache=tmp_path))), want)
    assert small_shards == []
    files[2].unlink()
    same(engine(1, 7)(params(), request(images=Images(cache=tmp_path))), want)
    assert small_shards == [28, 35]


@pytest.mark.parametrize("prune", [None, "exact"])
def test_killed_between_shards_and_begun_again_the_results_are_equal(tmp_path, small_shards, prune):
    wanted = request(prune=prune)
    want = engine(1, 7)(params(), wanted)
    with pytest.raises(OSError, match="the disk is gone"):
        engine(1, 7)(params(), replace(wanted, images=Images(cache=tmp_path, upto=30)))
    assert len(list(tmp_path.iterdir())) == 2
    small_shards.clear()
    same(engine(1, 7)(params(), replace(wanted, images=Images(cache=tmp_path))), want)
    assert prune or not {0, 7, 14, 21} & set(small_shards)  # pruned, the first pass keeps counts
    small_shards.clear()
    same(engine(1, 7)(params(), replace(wanted, images=Images(cache=tmp_path))), want)
    assert small_shards == []


def test_kept_shards_are_of_their_precision():
    partition = Partition.create(mesh=dict(data=1, model=1))
    keys = {
        PoolScorer(MATCHER, ANSWERS, partition=partition, block=7, compute=compute)._key({}, request())
        for compute in scoring.COMPUTE
    }
    assert len(keys) == 2


def test_kept_shards_are_of_their_models_and_their_request_only(tmp_path, small_shards):
    engine(1, 7)(params(), request(images=Images(cache=tmp_path)))
    moved = {**params(), "vaue": jax.tree.map(lambda x: x * 0.5, params()["vaue"])}
    for weights, case in ((moved, {}), (params(), dict(threshold=0.7)), (params(), dict(rates=RATES / 2))):
        small_shards.clear()
        found = engine(1, 7)(weights, request(images=Images(cache=tmp_path), **case))
        assert len(small_shards) == 9
        same(found, engine(1, 7)(weights, request(**case)))


# ---- limits -----------------------------------------------------------------------------------------------


def test_the_critics_hidden_layer_is_never_an_array_of_all_pairs():
    """Temporary memory of the program below 5 % of `[B,Q,W]`."""
    model = VQME(**{**SIZES, "critic_width": 512})
    one = PoolScorer(model, None, partition=Partition.create(mesh=dict(data=1, model=1)))
    rows = (REGIONS[:1], REGION_MASK[:1], TEXT[:1], TEXT[:1] != 0)
    weights = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *rows))["params"]
    b, q = (jax.ShapeDtypeStruct((n, 512), jnp.float32) for n in (256, 128))
    with one.partition.context():
        models = {"match": weights, "answer": None, "filter": None}
        lowered = one.programs.matches.lower(models, {"critic": b}, {"critic": q}, how="critic")
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 0.05 * 256 * 128 * 512 * 4


def test_a_missing_model_is_named_and_none_is_needed_to_count_all():
    weights = params()
    with pytest.raises(ValueError, match="match='critic' needs the stage 'vqme'"):
        engine()({"vaue": weights["vaue"]}, request())
    with pytest.raises(ValueError, match="need the stage 'vaue'"):
        engine()({"vqme": weights["vqme"]}, request())
    even = dict(uncertainty="one", rates=np.ones((3, C)))
    with pytest.raises(ValueError, match="need the stage 'vaue'"):
        engine()({"vqme": weights["vqme"]}, request(match="similarity", **even))
    found = engine()({"vqme": weights["vqme"]}, request(**even))
    np.testing.assert_array_equal(found["score"], found["n_match"])


@pytest.mark.parametrize("stage, leaf", [("vqme", "critic_offset"), ("vaue", "text_half")])
def test_a_model_that_diverged_is_an_error_and_not_a_score(stage, leaf):
    broken = {**params(), stage: {**params()[stage]}}
    broken[stage][leaf] = jax.tree.map(lambda x: x * np.nan, broken[stage][leaf])
    with pytest.raises(ValueError, match=f"stage '{stage}' gives NaN"):
        engine()(broken, request())


def test_no_images_are_an_error():
    with pytest.raises(ValueError, match="no images to score"):
        engine()(params(), request(images=Images([])))
