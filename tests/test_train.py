"""The loop: one compilation, one prepare and finish per update, exact resume, late but certain stops.

A linear model with a counter and a ring buffer as `extra` stands in for a real task.
"""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxvl.checkpoint import Checkpoints
from jaxvl.optim import Table, make_optimizer, set_rates
from jaxvl.sharding import Partition
from jaxvl.train import Evaluation, NonFiniteError, Preempted, Sigterm, Trainer

BATCH = 8


class Linear:
    """Mean squared error of `x @ w`; `extra` counts updates and keeps the last batch's targets."""

    def __init__(self):
        self.predictors = {"output": lambda params, batch, rng: batch["x"] @ params["w"]}

    def init(self, rng, batch):
        init = nn.with_logical_partitioning(nn.initializers.normal(), ("embed", None))
        return {"w": init(rng, (batch["x"].shape[-1], 1), jnp.float32)}

    def start(self, params, rng):
        return {"updates": jnp.int32(0), "ring": jnp.zeros((BATCH,))}

    def prepare(self, params, extra):
        return {**extra, "updates": extra["updates"] + 1}

    def loss(self, params, extra, batch, rng):
        noise = jax.random.normal(rng, (1,)) * 1e-3
        error = (batch["x"] @ params["w"])[:, 0] - batch["y"] + 0 * noise.sum()
        loss = jnp.square(error).mean()
        return loss, ({"y": batch["y"]}, {"loss": (loss, jnp.ones(()))})

    def finish(self, extra, aux):
        return {**extra, "ring": aux["y"]}


class Examples:
    """Rows of a fixed random matrix and a linear function of them; `bad` marks one row whose target is NaN."""

    def __init__(self, n=64, bad=None):
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(n, 4)).astype(np.float32)
        self.y = self.x @ np.array([1.0, -2.0, 0.5, 3.0], np.float32)
        if bad is not None:
            self.y[bad] = np.nan

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "y": self.y[i]}

    def augmented(self, i, rng):
        return self[i]

    def annotation(self, i):
        return {}


class Batches:
    """The loader's interface over `Examples`, in order; calls `at(step)` before it hands out a step."""

    batch_size = BATCH

    def __init__(self, source=None, at=lambda step: None):
        self.source, self.at = source or Examples(), at

    def batches(self, start, stop):
        for step in range(start, stop):
            self.at(step)
            ids = (np.arange(BATCH) + step * BATCH) % len(self.source)
            rows = [self.source[i] for i in ids]
            batch = {k: np.stack([r[k] for r in rows]) for k in rows[0]}
            yield {**batch, "id": ids.astype(np.int32), "mask": np.ones(BATCH, bool)}


class Silent:
    """A log and a progress display that remember what they were given."""

    def __init__(self):
        self.rows = []

    def write_scalars(self, step, scalars):
        self.rows.append((step, scalars))

    def update(self, step, scalars):
        pass


def trainer(accumulate=1, seed=0, **mesh):
    partition = Partition.create(mesh=mesh or dict(data=1, model=1), rules="fsdp")
    return Trainer(
        Linear(), optax.adam(0.1), partition=partition, seed=seed, accumulate=accumulate, eval_batch_size=8
    )


def example():
    return next(Batches().batches(0, 1))


def fit(t, folder, *, steps, state=None, loader=None, log=None, checkpoints=None, **kwargs):
    checkpoints = checkpoints or Checkpoints(folder)
    state = t.init(example()) if state is None else state
    kwargs = dict(save_every_seconds=None, log_every=1, meta={}) | kwargs
    try:
        return t.fit(
            state,
            loader or Batches(),
            steps=steps,
            log=log or Silent(),
            progress=Silent(),
            checkpoints=checkpoints,
            **kwargs,
        )
    finally:
        checkpoints.close()


def test_loss_falls_and_each_program_is_traced_once(tmp_path):
    t, log = trainer(), Silent()
    state = fit(t, tmp_path, steps=30, log=log)
    losses = [row["loss"] for _, row in log.rows]
    assert losses[-1] < 0.7 * losses[0]
    for n in (5, 8, 13):
        assert t.predict(state.params, "output", Examples(n)).shape == (n, 1)
    assert t.traces == {"init": 1, "step": 1, "output": 1}


def test_predictions_are_in_order_and_without_padding(tmp_path):
    t = trainer()
    state, source = t.init(example()), Examples(21)
    want = source.x @ np.asarray(state.params["w"])
    np.testing.assert_allclose(t.predict(state.params, "output", source), want, atol=1e-6)


def test_accumulation_equals_one_large_batch_with_one_prepare_and_one_finish(tmp_path):
    whole = fit(trainer(), tmp_path / "a", steps=3)
    parts = fit(trainer(accumulate=4), tmp_path / "b", steps=3)
    np.testing.assert_allclose(whole.params["w"], parts.params["w"], rtol=1e-5)
    assert int(parts.extra["updates"]) == 3
    np.testing.assert_array_equal(whole.extra["ring"], parts.extra["ring"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_eight_devices_equal_one(tmp_path, accumulate):
    one = fit(trainer(accumulate), tmp_path / "a", steps=5)
    four = fit(trainer(accumulate, data=4, model=1), tmp_path / "b", steps=5)
    np.testing.assert_allclose(one.params["w"], four.params["w"], rtol=1e-5)
    assert four.params["w"].sharding.shard_shape((4, 1)) == (1, 1)


def test_resumed_run_equals_uninterrupted_bit_for_bit(tmp_path):
    whole = fit(trainer(), tmp_path / "a", steps=9)
    fit(trainer(), tmp_path / "b", steps=4)
    t = trainer()
    t.init(example())
    state = Checkpoints(tmp_path / "b").restore(4, t.abstract)
    resumed = fit(t, tmp_path / "b", steps=9, state=state)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_a_log_line_that_a_stop_cut_in_two_is_whole_after_resuming(tmp_path):
    whole, parts = Silent(), Silent()
    fit(trainer(), tmp_path / "a", steps=10, log=whole, log_every=5)
    loader = Batches(at=lambda step: step == 6 and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted):
        fit(trainer(), tmp_path / "b", steps=10, log=parts, log_every=5, loader=loader)
    t = trainer()
    t.init(example())
    state = Checkpoints(tmp_path / "b").restore(7, t.abstract)
    fit(t, tmp_path / "b", steps=10, state=state, log=parts, log_every=5)

    def logged(log):
        return [(step, row["loss"], row["grad_norm"]) for step, row in log.rows]

    assert [step for step, _ in whole.rows] == [5, 10]
    assert logged(parts) == logged(whole)


def test_non_finite_loss_names_step_term_and_examples_and_is_not_saved(tmp_path):
    loader = Batches(Examples(bad=19))
    with pytest.raises(
        NonFiniteError, match=r"step 3: grad_norm, loss not finite; example ids.* 16, 17, 18, 19"
    ):
        fit(trainer(), tmp_path, steps=8, loader=loader, save_every_steps=1)
    assert Checkpoints(tmp_path).latest() == 2


def test_sigterm_saves_and_stops_at_the_next_step(tmp_path):
    loader = Batches(at=lambda step: step == 3 and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted) as stopped:
        fit(trainer(), tmp_path, steps=50, loader=loader)
    assert stopped.value.step == 4
    assert Checkpoints(tmp_path).latest() == stopped.value.step


def test_sigterm_is_heard_although_every_step_is_saved(tmp_path):
    loader = Batches(at=lambda step: step == 3 and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted) as stopped:
        fit(trainer(), tmp_path, steps=50, loader=loader, save_every_steps=1)
    assert stopped.value.step == 4


def test_seconds_between_checkpoints_are_respected(tmp_path):
    fit(trainer(), tmp_path, steps=6, save_every_seconds=0.0)
    assert len(Checkpoints(tmp_path).steps()) >= 2


def test_a_timed_checkpoint_is_written_once(tmp_path, monkeypatch):
    now, saved, save = [0.0], [], Checkpoints.save

    def noted(self, step, *args, **kwargs):
        saved.append(step)
        save(self, step, *args, **kwargs)

    monkeypatch.setattr("jaxvl.train.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Checkpoints, "save", noted)
    loader = Batches(at=lambda step: now.__setitem__(0, 10.0 * step))
    fit(trainer(), tmp_path, steps=30, loader=loader, save_every_seconds=95.0)
    assert len(saved) >= 3 and np.diff(saved)[:-1].min() >= 9, saved


def test_a_signal_that_came_before_the_stage_stops_it_at_its_first_step(tmp_path):
    with Sigterm() as sigterm, pytest.raises(Preempted) as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
        fit(trainer(), tmp_path, steps=9, sigterm=sigterm)
    assert stopped.value.step == 1 and Checkpoints(tmp_path).latest() == 1


def test_a_signal_in_the_last_step_is_not_forgotten(tmp_path):
    loader = Batches(at=lambda step: step == 8 and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted) as stopped:
        fit(trainer(), tmp_path, steps=9, loader=loader)
    assert stopped.value.step == 9


def test_unknown_predictor_and_empty_source_are_named(tmp_path):
    t = trainer()
    state = t.init(example())
    with pytest.raises(KeyError, match="no predictor 'outpt'; it has \\['output'\\]"):
        t.predict(state.params, "outpt", Examples())
    with pytest.raises(ValueError, match="empty"):
        t.predict(state.params, "output", Examples(0))


def test_start_follows_loaded_parameters():
    t = trainer()
    state = t.init(example(), load=lambda fresh: {"w": np.full_like(fresh["w"], 2.0)})
    np.testing.assert_array_equal(state.params["w"], 2.0)


def test_a_second_run_of_another_seed_and_table_of_rates_compiles_nothing(tmp_path):
    partition = Partition.create(mesh=dict(data=1, model=1), rules="dp")
    t = Trainer(Linear(), make_optimizer(schedule=Table(40)), partition=partition)
    weights = []
    for run, (seed, steps) in enumerate([(0, 8), (1, 30), (0, 8)]):
        t.reseed(seed)
        state = t.init(example())
        state = state.replace(opt_state=set_rates(state.opt_state, lambda n: 0.05 + 0 * n, steps=steps))
        weights.append(np.asarray(fit(t, tmp_path / str(run), steps=steps, state=state).params["w"]))
    assert t.traces == {"init": 1, "step": 1}
    np.testing.assert_array_equal(weights[0], weights[2])  # nothing of the run between is left
    assert np.abs(weights[0] - weights[1]).max() > 0.01


def test_evaluated_states_are_kept_with_their_scores_if_a_best_one_is_wanted(tmp_path):
    scores = iter([2.0, 5.0, 3.0, 4.0, 1.0])
    checkpoints = Checkpoints(tmp_path, keep=1, best="held/accuracy")
    evaluation = Evaluation(lambda state: {"held/accuracy": next(scores)}, every=5)
    fit(trainer(), tmp_path, steps=30, evaluation=evaluation, checkpoints=checkpoints)
    assert checkpoints.best() == 10 and checkpoints.steps() == [10, 30]
    assert checkpoints.meta(10)["metrics"] == {"held/accuracy": 5.0} and "metrics" not in checkpoints.meta(30)


def test_an_evaluation_can_end_training_and_the_last_state_is_saved(tmp_path):
    seen = []

    def score(state):
        seen.append(int(state.step))
        return {"score": 1.0}

    state = fit(
        trainer(), tmp_path, steps=30, evaluation=Evaluation(score, every=4, stop=lambda: len(seen) == 3)
    )
    assert seen == [4, 8, 12]
    assert int(state.step) == Checkpoints(tmp_path).latest() == 12
