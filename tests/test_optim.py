"""AdamW is PyTorch's, the schedules are ALBEF's, and bounded parameters stay inside with a live gradient."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxvl.optim import SCHEDULES, Table, decays, make_optimizer, make_schedule, set_rates

RECORDED = Path(__file__).parent / "data" / "adamw.npz"
STEPS, LR = 20, 1e-2
SHAPES = {"a/kernel": (4, 3), "a/bias": (3,), "norm/scale": (4,), "temp": (), "cls_token": (1, 1, 4)}


def nested(flat):
    out: dict = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        node = out
        for part in path:
            node = node.setdefault(part, {})
        node[last] = jnp.asarray(value)
    return out


def problem():
    rng = np.random.default_rng(0)
    start = {k: rng.normal(size=s).astype(np.float32) for k, s in SHAPES.items()}
    grads = [{k: rng.normal(size=s).astype(np.float32) for k, s in SHAPES.items()} for _ in range(STEPS)]
    return start, grads


def run_torch():
    """Parameters after each of 20 steps of torch.optim.AdamW, decay off for bias and scale."""
    import torch

    start, grads = problem()
    params = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in start.items()}
    plain = [k for k in params if k.rsplit("/", 1)[-1] in ("bias", "scale")]
    groups = [
        dict(params=[params[k] for k in params if k not in plain], weight_decay=0.3),
        dict(params=[params[k] for k in plain], weight_decay=0.0),
    ]
    adamw = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.999), eps=1e-8)
    out = []
    for step in grads:
        for k, p in params.items():
            p.grad = torch.tensor(step[k])
        adamw.step()
        out.append({k: p.detach().numpy().copy() for k, p in params.items()})
    return {k: np.stack([o[k] for o in out]) for k in SHAPES}


def run_ours(**kwargs):
    start, grads = problem()
    tx = make_optimizer(schedule=LR, weight_decay=0.3, **{"bounds": {}, **kwargs})
    params = nested(start)
    state, out = tx.init(params), []
    for step in grads:
        updates, state = jax.jit(tx.update)(nested(step), state, params)
        params = optax.apply_updates(params, updates)
        out.append(params)
    return jax.tree.map(lambda *xs: np.stack(xs), *out)


def compare(expected):
    ours = run_ours()
    for name, value in expected.items():
        node = ours
        for part in name.split("/"):
            node = node[part]
        np.testing.assert_allclose(node, value, rtol=0, atol=1e-6, err_msg=name)


def test_twenty_steps_equal_recorded_pytorch_adamw():
    compare(np.load(RECORDED))


@pytest.mark.torch
def test_twenty_steps_equal_pytorch_adamw():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    compare(run_torch())


def test_only_bias_and_scale_escape_weight_decay():
    got = decays(
        nested({k: np.zeros(s) for k, s in {**SHAPES, "pos_embed": (1, 2), "word/embedding": (2, 2)}.items()})
    )
    assert got == {
        "a": {"kernel": True, "bias": False}, "norm": {"scale": False}, "temp": True,
        "cls_token": True, "pos_embed": True, "word": {"embedding": True},
    }  # fmt: skip


def test_new_modules_learn_faster_by_the_factor_and_no_others_do():
    params = {"layers_0": {"hypergraph": {"kernel": jnp.ones(2)}, "ffn": {"kernel": jnp.ones(2)}}}
    grads = jax.tree.map(jnp.ones_like, params)

    def step(**kw):
        tx = make_optimizer(schedule=0.1, **kw)
        return tx.update(grads, tx.init(params), params)[0]["layers_0"]

    plain, fast = step(), step(new_lr_mult=5.0)
    np.testing.assert_allclose(fast["hypergraph"]["kernel"], 5 * plain["hypergraph"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(fast["ffn"]["kernel"], plain["ffn"]["kernel"])


def test_heads_and_cross_modal_layers_have_factors_of_their_own():
    params = {"cross": {"layers_0": jnp.ones(2)}, "class_head": {"kernel": jnp.ones(2)}, "text": jnp.ones(2)}
    grads = jax.tree.map(jnp.ones_like, params)

    def step(**kw):
        tx = make_optimizer(schedule=0.1, **kw)
        return tx.update(grads, tx.init(params), params)[0]

    plain = step()
    fast = step(lr_mult={"cross": 5.0, "class_head": 10.0}, new=("class_head",), new_lr_mult=2.0)
    for name, factor in (("cross", 5.0), ("class_head", 20.0), ("text", 1.0)):
        want = jax.tree.map(lambda x, f=factor: f * x, plain[name])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), fast[name], want)
    with pytest.raises(ValueError, match="optim.lr_mult.*'cros'"):
        step(lr_mult={"cros": 5.0})
    with pytest.raises(ValueError, match="the others not negative"):
        step(lr_mult={"cross": -1.0})


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_bounded_parameters_never_leave_their_interval_by_a_bit(sign):
    low, high = np.float32(0.001), np.float32(0.5)
    starts = np.random.default_rng(0).uniform(low, high, 500).astype(np.float32)
    for lr in (0.03, 0.3):
        tx = make_optimizer(schedule=lr)

        @jax.jit
        def step(params, state, tx=tx):
            updates, state = tx.update({"temp": jnp.full(500, sign)}, state, params)
            return optax.apply_updates(params, updates), state

        params = {"temp": jnp.asarray(starts)}
        state = tx.init(params)
        for _ in range(20):
            params, state = step(params, state)
            assert np.all(params["temp"] >= low) and np.all(params["temp"] <= high)
    np.testing.assert_allclose(params["temp"], low if sign > 0 else high, rtol=1e-5)


def test_gradient_at_a_bound_is_alive_and_leads_away_from_it():
    tx = make_optimizer(schedule=0.01)
    params = {"temp": jnp.float32(0.001)}
    gradient = jax.grad(lambda p: jnp.square(p["temp"] - 0.2))(params)
    assert gradient["temp"] < -0.3
    updates, _ = tx.update(gradient, tx.init(params), params)
    np.testing.assert_allclose(params["temp"] + updates["temp"], 0.011, rtol=1e-3)


def test_clip_limits_the_global_norm_before_the_moments():
    params, grads = {"w": jnp.zeros(2)}, {"w": jnp.array([3.0, 4.0])}
    tx = make_optimizer(schedule=1.0, clip=1.0, bounds={})
    _, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(optax.tree_utils.tree_get(state, "mu")["w"], [0.06, 0.08], rtol=1e-6)


def test_boxed_parameters_and_unboxed_ones_have_the_same_state():
    boxed = {"a": {"bias": nn.LogicallyPartitioned(jnp.ones(3), ("embed",))}, "temp": jnp.float32(0.07)}
    tx = make_optimizer(schedule=0.1, new_lr_mult=2.0)
    assert jax.tree.structure(nn.unbox(tx.init(boxed))) == jax.tree.structure(tx.init(nn.unbox(boxed)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            dict(new=("hypergrph",)),
            r"optim.new: no parameter's path contains 'hypergrph'; did you mean 'hypergraph'",
        ),
        (dict(bounds={"tmp": (0, 1)}), r"optim.bounds: .*'tmp'; did you mean 'temp'"),
        (dict(bounds={"temp": (1, 0)}), "low must be below high"),
        (dict(betas=(0.9, 1.0)), r"betas must be in \[0,1\)"),
        (dict(clip=0.0), "clip positive"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    params = {"temp": jnp.zeros(()), "hypergraph": {"kernel": jnp.zeros(2)}}
    with pytest.raises(ValueError, match=message):
        make_optimizer(schedule=1.0, **kwargs).init(params)


PRETRAIN = dict(
    name="albef", lr=1e-4, warmup_lr=1e-5, min_lr=1e-5, warmup=20, steps=30 * 5000, steps_per_epoch=5000
)
VQA = dict(name="albef", lr=2e-5, warmup_lr=1e-5, min_lr=1e-6, warmup=4, steps=8 * 1000, steps_per_epoch=1000)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        (PRETRAIN, {1: 9.975349e-5, 10: 7.75e-5, 20: 3.25e-5, 29: 1.024651e-5}),
        (
            VQA,
            {
                1: 1.927686e-5,
                2: 1.721751e-5,
                3: 1.413549e-5,
                4: 1.05e-5,
                5: 6.864507e-6,
                6: 3.782486e-6,
                7: 1.723144e-6,
            },
        ),
    ],
)
def test_albef_rates_of_the_epochs(kwargs, expected):
    rate, n = make_schedule(**kwargs), kwargs["steps_per_epoch"]
    for epoch, lr in expected.items():
        first, last = rate(jnp.int32(epoch * n)), rate(jnp.int32(epoch * n + n - 1))
        np.testing.assert_allclose([first, last], lr, rtol=1e-6)


def test_albef_warm_up_climbs_in_stairs_of_a_hundred_updates():
    got = [make_schedule(**PRETRAIN)(i) for i in (0, 100, 101, 2000, 2001, 4999)]
    np.testing.assert_allclose(got, [1e-5, 1e-5, 1.45e-5, 9.55e-5, 1e-4, 1e-4], rtol=1e-6)


def test_albef_warm_up_by_epochs_and_smooth_variant():
    stairs = make_schedule(**{**VQA, "unit": "epoch"})
    np.testing.assert_allclose(
        [stairs(i) for i in (0, 999, 1000, 3999)], [1e-5, 1e-5, 1.25e-5, 1.75e-5], rtol=1e-6
    )
    np.testing.assert_allclose(stairs(4000), 1.05e-5, rtol=1e-6)
    smooth = make_schedule(**{**VQA, "granularity": "step"})
    np.testing.assert_allclose(
        [smooth(i) for i in (0, 200, 400, 8000)], [1e-5, 1.5e-5, 2e-5, 1e-6], rtol=1e-5
    )
    rates = np.array(jax.vmap(smooth)(jnp.arange(8000)))
    assert np.all(np.diff(rates[:400]) > 0) and np.all(np.diff(rates[401:]) < 0)


def test_a_warm_up_longer_than_the_first_epoch_is_cut_short():
    rate = make_schedule(**{**PRETRAIN, "steps_per_epoch": 300, "steps": 9000})
    np.testing.assert_allclose([rate(299), rate(300)], [1e-5 + 2 * 4.5e-6, 9.975349e-5], rtol=1e-6)


def test_linear_rises_over_a_tenth_and_falls_to_nothing():
    """0 at the start, the peak after the warm-up, 5/9 of it at half, 0 after the last update (specification, L4)."""
    rate = make_schedule(name="linear", lr=0.9, steps=100, steps_per_epoch=7)
    assert [float(rate(n)) for n in (0, 5, 10, 50, 100)] == pytest.approx([0.0, 0.45, 0.9, 0.5, 0.0])
    assert float(
        make_schedule(name="linear", lr=0.9, min_lr=0.1, steps=9, steps_per_epoch=3)(9)
    ) == pytest.approx(0.1)


def test_cosine_and_constant():
    rate = make_schedule(name="cosine", lr=1.0, min_lr=0.1, warmup=0.1, steps=100, steps_per_epoch=7)
    np.testing.assert_allclose(
        [rate(i) for i in (0, 5, 10, 55, 100, 200)], [0, 0.5, 1, 0.55, 0.1, 0.1], atol=1e-6
    )
    assert make_schedule(name="constant", lr=0.3, steps=1, steps_per_epoch=1)(7) == np.float32(0.3)


def test_stairs_fall_at_shares_of_all_updates():
    rate = make_schedule(name="stairs", lr=1.0, steps=10, steps_per_epoch=5, factor=0.5, at=(0.5, 0.8))
    np.testing.assert_allclose([float(rate(n)) for n in range(10)], [1] * 5 + [0.5] * 3 + [0.25] * 2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_positive_and_traceable(name):
    rate = make_schedule(name=name, lr=1e-3, steps=50, steps_per_epoch=10, examples=640, batch_size=64)
    rates = np.array(jax.jit(jax.vmap(rate))(jnp.arange(1, 50)))
    assert rates.shape == (49,) and np.all(rates > 0) and np.all(rates <= 1e-3 * (1 + 1e-6))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(name="cosin"), "unknown schedule 'cosin'.*did you mean 'cosine'"),
        (dict(name="cosine", warm_up=3), "unknown argument 'warm_up'.*did you mean 'warmup'"),
        (dict(name="constant", steps=1, steps_per_epoch=1), "needs lr"),
        (dict(name="cosine", lr=1.0, steps=9, steps_per_epoch=3, warmup=1.5), "warmup=1.5"),
        (dict(name="albef", lr=1.0, steps=9, steps_per_epoch=3, granularity="day"), "granularity='day'"),
        (dict(name="albef", lr=1.0, steps=9, steps_per_epoch=3, unit="day"), "unit='day'"),
        (dict(name="constant", lr=1.0, steps=0, steps_per_epoch=3), "must be positive"),
    ],
)
def test_wrong_schedules_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**kwargs)


def test_a_table_of_rates_equals_the_schedule_it_was_filled_with():
    params = {"w": jnp.arange(4.0)}
    schedule = make_schedule(name="cosine", steps=7, steps_per_epoch=7, lr=0.1, warmup=2)
    direct, tabled = make_optimizer(schedule=schedule), make_optimizer(schedule=Table(20))
    states = direct.init(params), set_rates(tabled.init(params), schedule, steps=7)
    for step in range(7):
        grads = {"w": jnp.cos(jnp.arange(4.0) + step)}
        (a, first), (b, second) = (
            tx.update(grads, s, params) for tx, s in zip((direct, tabled), states, strict=True)
        )
        states = first, second
        np.testing.assert_allclose(a["w"], b["w"], rtol=1e-6)


@pytest.mark.parametrize(("tx", "message"), [(Table(5), "room for 5"), (0.1, "no table of learning rates")])
def test_a_table_that_is_too_short_or_absent_is_refused(tx, message):
    state = make_optimizer(schedule=tx).init({"w": jnp.zeros(2)})
    with pytest.raises(ValueError, match=message):
        set_rates(state, lambda n: 0.1 + 0 * n, steps=6)


if __name__ == "__main__" and "--record" in sys.argv:
    RECORDED.parent.mkdir(exist_ok=True)
    np.savez_compressed(RECORDED, **run_torch())
