"""The oracle of pool scoring, what accelerated ways are measured against it, and what they do to a selection."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import test_scoring as small
from flax import linen as nn

from jaxvl.active import acceptance
from jaxvl.active.acceptance import Agreement, compare
from jaxvl.active.request import matched
from jaxvl.active.scoring import PoolScorer
from jaxvl.models.vqme import CRITICS, VQME
from jaxvl.sharding import Partition

GOOD = Agreement(0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0)


@pytest.fixture(scope="module")
def exact():
    return acceptance.oracle(small.MATCHER, small.ANSWERS, small.params(), small.request())


def test_the_oracle_is_the_double_loop_and_the_scorer_is_exact(exact):
    truth = small.pairs(small.params())
    score, mask, _ = small.brute(truth, small.request())
    np.testing.assert_allclose(exact["strength"], truth["T"], atol=1e-5)  # f32 encodings, compiled and not
    np.testing.assert_allclose(exact["f"], truth["f"], atol=1e-9)
    np.testing.assert_array_equal(exact["counts"], mask)
    np.testing.assert_allclose(exact["score"], score, rtol=1e-9)
    found = compare(exact, small.engine().detail(small.params(), small.request()), small.request(), budget=9)
    assert found.failures(exact=True) == [] and found.critic < 1e-5 and found.uncertainty < 2e-6
    assert found.members == 0


def test_half_precision_moves_values_a_little_and_a_cap_moves_members_only(exact):
    partition = Partition.create(mesh=dict(data=1, model=1))
    kw = dict(partition=partition, block=64, pairs=128)
    half = PoolScorer(small.MATCHER, small.ANSWERS, compute="bfloat16", **kw).detail(
        small.params(), small.request()
    )
    found = compare(exact, half, small.request(), budget=9)
    assert 1e-4 < found.critic < 1 and 1e-5 < found.uncertainty < 0.2 and 0.9 < found.spearman < 1
    capped = small.engine().detail(small.params(), small.request(k_max=2))
    found = compare(exact, capped, small.request(), budget=9)
    assert found.flips == 0 < found.members and found.critic < 1e-5
    assert any("Spearman" in line for line in found.failures(exact=False))
    with pytest.raises(ValueError, match="compute='float16'"):
        PoolScorer(small.MATCHER, small.ANSWERS, compute="float16", partition=partition)
    with pytest.raises(ValueError, match="without k_max"):
        acceptance.oracle(small.MATCHER, small.ANSWERS, small.params(), small.request(k_max=2))


def test_a_prefilter_leaves_the_critic_its_best_patterns(exact):
    rough = VQME(critic="separable", critic_width=6, project=3, **small.SIZES)
    rows = (small.REGIONS[:1], small.REGION_MASK[:1], small.TEXT[:1], small.TEXT[:1] != 0)
    weights = {
        **small.params(), "prefilter": nn.unbox(jax.jit(rough.init)(jax.random.key(7), *rows))["params"]
    }  # fmt: skip
    one = PoolScorer(small.MATCHER, small.ANSWERS, prefilter=rough, block=7, pairs=64,
                     partition=Partition.create(mesh=dict(data=1, model=1)))  # fmt: skip
    wanted = small.request(k_max=4, prefilter="prefilter")
    found = one.detail(weights, wanted)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), weights["prefilter"])
    images, texts = (small.REGIONS, small.REGION_MASK), (small.TEXT, small.TEXT != 0)
    v, s = (
        np.asarray(small.side(rough, f"encode_{name}", weights["prefilter"], *own), np.float64)
        for name, own in (("image", images), ("text", texts))
    )
    guess = acceptance.concatenated("separable", p, v, s)
    kept = np.argsort(-guess, axis=1, kind="stable")[:, :8]
    want = np.full(guess.shape, -np.inf)
    np.put_along_axis(want, kept, np.take_along_axis(exact["strength"], kept, 1), 1)
    np.testing.assert_allclose(found["strength"], want, atol=1e-5)
    np.testing.assert_array_equal(found["counts"], matched(wanted, want))
    assert found["counts"].sum(1).max() <= 4
    np.testing.assert_array_equal(one(weights, wanted)["n_match"], found["counts"].sum(1))
    with pytest.raises(ValueError, match="prefilter needs the stage"):
        one(small.params(), wanted)
    with pytest.raises(ValueError, match="needs match='critic' and k_max"):
        small.request(prefilter="prefilter")


@pytest.mark.parametrize("critic", CRITICS)
def test_the_concatenated_critic_is_the_model_s(critic):
    model = VQME(critic=critic, critic_width=6, project=3, **small.SIZES)
    rows = (small.REGIONS[:5], small.REGION_MASK[:5], small.TEXT[:5], small.TEXT[:5] != 0)
    weights = nn.unbox(jax.jit(model.init)(jax.random.key(2), *rows))["params"]
    v = small.side(model, "encode_image", weights, *rows[:2])
    s = small.side(model, "encode_text", weights, *rows[2:])
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), weights)
    found = acceptance.concatenated(critic, p, np.asarray(v, np.float64), np.asarray(s, np.float64))
    np.testing.assert_allclose(np.diagonal(found), small.alone(model, weights, *rows)["match"], atol=1e-5)


def test_agreement_by_hand():
    wanted = small.request(images=SimpleNamespace(ids=np.arange(4)))
    one = {
        "strength": np.array([[1.0, -1], [2, 0.1], [-3, 1], [1, 1]]), "f": np.full((4, 2), 0.5),
        "counts": np.array([[1, 0], [1, 1], [0, 1], [1, 1]], bool), "score": np.array([3.0, 5, 1, 4]),
    }  # fmt: skip
    other = {**one, "strength": one["strength"].copy(), "counts": one["counts"].copy(), "f": one["f"] + 0.25}
    other["strength"][1, 1], other["strength"][2, 0] = -0.1, -np.inf  # one flips, one is not looked at
    other["counts"][1, 1], other["score"] = False, np.array([3.0, 2, 1, 4])
    found = compare(one, other, wanted, budget=2)
    assert (found.critic, found.flips, found.members) == (pytest.approx(0.2), 1 / 7, 1 / 8)
    assert (found.uncertainty, found.jaccard, found.regret) == (0.25, 1 / 3, pytest.approx(2 / 9))
    assert (found.spearman, found.kendall) == (pytest.approx(0.4), pytest.approx(1 / 3))
    assert len(found.failures(exact=False)) == 3 and len(found.failures(exact=True)) == 2
    assert compare(one, other, wanted, budget=2, chosen=np.array([1, 3])).jaccard == 1


def test_a_way_is_accepted_up_to_its_limits():
    assert GOOD.failures(exact=True) == [] == GOOD.failures(exact=False)
    near = GOOD._replace(spearman=0.995, jaccard=0.98, flips=0.001, regret=0.01)
    assert near.failures(exact=False) == [] and len(near.failures(exact=True)) == 2
    assert GOOD._replace(spearman=float("nan")).failures(exact=False)
