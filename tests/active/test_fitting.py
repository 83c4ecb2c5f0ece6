"""Models of rounds: trained once for what they depend on, kept, ended at a plateau with the best parameters."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxvl.active.fitting import Fitter, Stage, split_by_image, with_vectors
from jaxvl.active.plateau import Plateau, Watch, save_tree
from jaxvl.optim import Table, make_optimizer
from jaxvl.sharding import Partition
from jaxvl.train import Trainer

SCHEDULE = dict(name="cosine", lr=0.1, warmup=2)


class Rows:
    """Inputs and targets of a linear function, four rows an image."""

    def __init__(self, n=64, rows=None):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(n, 4)).astype(np.float32)
        self.rows = np.arange(n) if rows is None else rows
        self.x, self.y = x, x @ np.array([1.0, -2.0, 0.5, 3.0], np.float32)
        self.image_ids = np.arange(n)[self.rows] // 4

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {"x": self.x[self.rows[i]], "y": self.y[self.rows[i]]}

    def augmented(self, i, rng):
        return self[i]

    def annotation(self, i):
        return {}

    def subset(self, positions):
        out = Rows(len(self.x))
        out.rows = self.rows[positions]
        out.image_ids = np.arange(len(self.x))[out.rows] // 4
        return out


class Linear:
    """Least squares; collects the number of updates and exports it as a parameter."""

    def __init__(self):
        self.predictors = {
            "error": lambda p, batch, rng: jnp.square((batch["x"] @ p["w"])[:, 0] - batch["y"])
        }

    def init(self, rng, batch):
        box = nn.with_logical_partitioning(nn.initializers.normal(), ("embed", None))
        return {"w": box(rng, (4, 1), jnp.float32)}

    def start(self, params, rng):
        return {"updates": jnp.int32(0), "steps": jnp.int32(2**30)}

    def prepare(self, params, extra):
        return extra

    def loss(self, params, extra, batch, rng):
        loss = jnp.square((batch["x"] @ params["w"])[:, 0] - batch["y"]).mean()
        share = extra["updates"] / extra["steps"]
        return loss, ({}, {"loss": (loss, jnp.ones(())), "share": (share, jnp.ones(()))})

    def finish(self, extra, aux):
        return {**extra, "updates": extra["updates"] + 1}


def fitter(folder, **kwargs):
    partition = Partition.create(mesh=dict(data=1, model=1), rules="dp")
    tx = make_optimizer(schedule=Table(200), weight_decay=0.0)
    trainer = Trainer(Linear(), tx, partition=partition, eval_batch_size=8)
    values = dict(section={"a": 1}, schedule=SCHEDULE, batch_size=8, epochs=4.0, most_steps=200) | kwargs
    return Fitter(folder, {"task": Stage("task", trainer, **values)})


def test_a_model_is_trained_once_for_what_it_depends_on(tmp_path):
    one = fitter(tmp_path)
    first = one.fit("task", Rows(), seed=1, data="a")
    again, other = one.fit("task", Rows(), seed=1, data="a"), one.fit("task", Rows(), seed=2, data="a")
    assert (first.hit, again.hit, other.hit) == (False, True, False)
    np.testing.assert_array_equal(first.params["w"], again.params["w"])
    assert len({first.key, other.key, one.fit("task", Rows(), seed=1, data="b").key}) == 3
    assert one.stages["task"].trainer.traces == {"init": 1, "step": 1}
    np.testing.assert_array_equal(one.load("task", first.key)["w"], first.params["w"])
    with pytest.raises(FileNotFoundError, match="roll back"):
        one.load("task", "0" * 16)


def test_a_model_may_start_from_another_ones_parameters(tmp_path):
    one = fitter(tmp_path)
    first = one.fit("task", Rows(), seed=1, data="a")
    cold = one.fit("task", Rows(), seed=2, data="b")
    warm = one.fit("task", Rows(), seed=2, data=["b", first.key], start=first.key)
    assert warm.result["first_loss"] < 0.3 * cold.result["first_loss"]
    with pytest.raises(FileNotFoundError, match="roll back"):
        one.fit("task", Rows(), seed=3, data="c", start="0" * 16)


def test_more_rows_train_longer_with_one_compiled_step(tmp_path):
    one = fitter(tmp_path, min_steps=20)
    steps = [one.fit("task", Rows(n), seed=0, data=n).result["steps"] for n in (32, 64, 128)]
    assert steps == [20, 32, 64]  # at least 20 in whole epochs
    assert one.stages["task"].trainer.traces == {"init": 1, "step": 1}


def test_few_rows_shrink_the_batch_and_too_few_are_refused(tmp_path):
    one = fitter(tmp_path)
    assert one.fit("task", Rows(7), seed=0, data=7).result["steps"] == 4  # one batch of four an epoch
    with pytest.raises(ValueError, match="too few to train on"):
        one.fit("task", Rows(3), seed=0, data=3)


def test_a_task_is_told_how_many_updates_there_will_be(tmp_path):
    one = fitter(tmp_path)
    fitted = one.fit("task", Rows(), seed=0, data=0)
    rows = (tmp_path / f"task-{fitted.key}" / "metrics.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    assert float(last["share"]) < 1.0 and fitted.result["steps"] == 32


def test_a_killed_fit_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    whole = fitter(tmp_path / "a").fit("task", Rows(), seed=0, data=0)
    one = fitter(tmp_path / "b")
    trainer, step = one.stages["task"].trainer, type(one.stages["task"].trainer).step
    calls = []

    def dies(self, state, batch):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return step(self, state, batch)

    monkeypatch.setattr(type(trainer), "step", dies)
    fit = trainer.fit
    monkeypatch.setattr(trainer, "fit", lambda *a, **k: fit(*a, **{**k, "save_every_steps": 5}))
    with pytest.raises(KeyboardInterrupt):
        one.fit("task", Rows(), seed=0, data=0)
    resumed = one.fit("task", Rows(), seed=0, data=0)
    assert len(calls) < 32 + 20
    np.testing.assert_array_equal(resumed.params["w"], whole.params["w"])


def test_every_epoch_is_recorded_also_where_a_fit_was_killed(tmp_path, monkeypatch):
    seen = []

    def each_epoch(folder, number, predict):
        seen.append((number, float(predict("error", Rows()).mean())))
        if dies and number == 3:
            raise KeyboardInterrupt
        return {"error": seen[-1][1]}

    dies, one = False, fitter(tmp_path / "a")
    first = one.fit("task", Rows(), seed=0, data=0, each_epoch=each_epoch)
    whole, seen[:] = list(seen), []
    assert [n for n, _ in whole] == [1, 2, 3, 4] and whole[0][1] > whole[3][1]
    assert one.fit("task", Rows(), seed=0, data=0, each_epoch=each_epoch).hit and seen == []
    log = (tmp_path / "a" / f"task-{first.key}" / "metrics.jsonl").read_text()
    assert log.count('"error"') == 3  # the last epoch ends the fit

    dies, other = True, fitter(tmp_path / "b")
    trainer = other.stages["task"].trainer
    fit = trainer.fit
    monkeypatch.setattr(trainer, "fit", lambda *a, **k: fit(*a, **{**k, "save_every_steps": 5}))
    with pytest.raises(KeyboardInterrupt):
        other.fit("task", Rows(), seed=0, data=0, each_epoch=each_epoch)
    dies = False
    other.fit("task", Rows(), seed=0, data=0, each_epoch=each_epoch)
    assert {n: pytest.approx(v, rel=1e-5) for n, v in whole} == dict(seen)


def test_a_fit_that_may_end_early_has_no_record_of_epochs(tmp_path):
    plateau = Plateau(score=lambda predict, held, rng: {"score": 0.5}, key="score")
    with pytest.raises(ValueError, match="epochs cannot be recorded"):
        fitter(tmp_path, plateau=plateau).fit("task", Rows(), seed=0, data=0, each_epoch=lambda *a: {})


def test_a_plateau_ends_the_fit_and_keeps_the_best_parameters(tmp_path):
    seen = []

    def score(predict, held, rng):
        error = float(predict("error", held).mean())
        value = [0.5, 0.9, 0.8, 0.7, 0.6][
            min(len(seen), 4)
        ]  # best after the second epoch, whatever the model
        seen.append(error)
        return {"score": value, "error": error}

    def finish(trainer, params, held, rng):
        asked.append(float(trainer.predict(params, "error", held).mean()))
        return params, {"more": 7.0}

    asked = []
    plateau = Plateau(score=score, key="score", patience=3, least=2, share=0.25, finish=finish)
    one = fitter(tmp_path, plateau=plateau, epochs=20.0)
    fitted = one.fit("task", Rows(), seed=0, data=0)
    assert len(seen) == 5 and fitted.result["steps"] == 5 * 6  # 48 of 64 rows train
    assert fitted.result["held_out"]["score"] == 0.9
    held = split_by_image(Rows(), share=0.25, rng=np.random.default_rng(0))[1]
    again = one.stages["task"].trainer.predict(fitted.params, "error", held).mean()
    assert again == pytest.approx(seen[1], rel=1e-5)
    assert asked == [pytest.approx(seen[1], rel=1e-5)] and fitted.result["held_out"]["more"] == 7.0


@pytest.mark.parametrize("dies_at", [3, 14, 20, 23])  # before the first score, between scores, after the best
def test_a_killed_fit_with_a_plateau_goes_on_and_ends_the_same(tmp_path, monkeypatch, dies_at):
    def score(predict, held, rng):
        error = float(predict("error", held).mean())
        scored.append(error)
        return {"score": -abs(error - 2.0), "error": error}  # best somewhere on the way

    def fit_of(folder):
        plateau = Plateau(score=score, key="score", patience=2, least=2, share=0.25)
        one = fitter(folder, plateau=plateau, epochs=20.0)
        fit = one.stages["task"].trainer.fit
        monkeypatch.setattr(
            one.stages["task"].trainer, "fit", lambda *a, **k: fit(*a, **{**k, "save_every_steps": 4})
        )
        return one

    scored = []
    whole = fit_of(tmp_path / "a").fit("task", Rows(), seed=0, data=0)
    steps, all_scores = whole.result["steps"], list(scored)
    one = fit_of(tmp_path / "b")
    kind, calls = type(one.stages["task"].trainer), []
    step = kind.step

    def dies(self, state, batch):
        calls.append(1)
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        return step(self, state, batch)

    assert dies_at < steps
    monkeypatch.setattr(kind, "step", dies)
    scored.clear()
    with pytest.raises(KeyboardInterrupt):
        one.fit("task", Rows(), seed=0, data=0)
    resumed = fit_of(tmp_path / "b").fit("task", Rows(), seed=0, data=0)
    assert len(calls) < steps + dies_at or dies_at < 5  # it went on from a checkpoint
    np.testing.assert_array_equal(resumed.params["w"], whole.params["w"])
    assert resumed.result["held_out"] == whole.result["held_out"]
    assert set(scored) == set(all_scores)
    (folder,) = (tmp_path / "b").iterdir()
    assert not [p.name for p in folder.iterdir() if p.name.startswith(("best", "plateau", "checkpoints"))]


def test_what_a_killed_fit_left_is_gone_and_what_cannot_be_gone_on_from_starts_anew(tmp_path):
    plateau = Plateau(score=lambda predict, held, rng: {"score": 0.5}, key="score", share=0.25)
    one = fitter(tmp_path, plateau=plateau, epochs=4.0)
    done = one.fit("task", Rows(), seed=0, data=0)
    folder = tmp_path / f"task-{done.key}"
    (folder / "checkpoints").mkdir()
    for name in ("best-00000006.safetensors", "plateau.json", "params.safetensors.1f.tmp"):
        (folder / name).write_text("{}")
    before = set(folder.iterdir())
    assert one.fit("task", Rows(), seed=0, data=0).hit  # killed between the result and the clean-up
    assert {p.name for p in before - set(folder.iterdir())} == {
        "checkpoints", "best-00000006.safetensors", "plateau.json", "params.safetensors.1f.tmp",
    }  # fmt: skip

    watch = Watch(one.stages["task"], plateau, Rows(), 6, 0, folder=tmp_path, saved=lambda: 12)
    rows = [{"step": s, "scores": {"score": v}} for s, v in ((6, 0.1), (12, 0.3), (18, 0.7))]
    (tmp_path / "plateau.json").write_text(json.dumps(rows))
    for step in (6, 12, 18):
        save_tree(tmp_path / f"best-{step:08d}.safetensors", {"w": np.full(1, step)})
    assert watch.restored(12) == 12 and watch.best.params["w"] == 12
    assert [p.name for p in sorted(tmp_path.glob("best-*"))] == [
        "best-00000012.safetensors"
    ]  # 18 was not reached
    again = Watch(one.stages["task"], plateau, Rows(), 6, 0, folder=tmp_path, saved=lambda: 12)
    (tmp_path / "best-00000012.safetensors").unlink()
    assert again.restored(12) is None and not list(tmp_path.glob("plateau*")) and again.rows == []


def test_images_are_never_on_both_sides_of_a_split():
    train, held = split_by_image(Rows(), share=0.2, rng=np.random.default_rng(3))
    assert not set(train.image_ids) & set(held.image_ids) and len(train) + len(held) == 64
    with pytest.raises(ValueError, match="label more images"):
        split_by_image(Rows(8), share=0.5, rng=np.random.default_rng(0))


def test_word_vectors_replace_tables_of_their_shape_or_it_is_an_error():
    fresh = {"text": {"word_embedding": {"embedding": np.zeros((3, 2))}}, "w": np.zeros((3, 2))}
    found = with_vectors(fresh, np.ones((3, 2)))
    assert found["text"]["word_embedding"]["embedding"].all() and not found["w"].any()
    with pytest.raises(ValueError, match="no table of word embeddings"):
        with_vectors(fresh, np.ones((4, 2)))


def test_what_a_task_exports_is_what_is_kept_and_compiled_once(tmp_path):
    class Exporting(Linear):
        def export(self, params, extra):
            traced.append(1)
            return {"w": params["w"] + extra["updates"]}

    traced, stage = [], fitter(tmp_path).stages["task"]
    stage.trainer.task = Exporting()
    batch = {"x": np.zeros((8, 4), np.float32), "y": np.zeros(8, np.float32)}
    state = stage.trainer.init({**batch, "id": np.zeros(8, np.int32), "mask": np.ones(8, bool)})
    for updates in (3, 5):
        later = state.replace(extra={**state.extra, "updates": jnp.int32(updates)})
        np.testing.assert_allclose(stage.exported(later)["w"], np.asarray(state.params["w"]) + updates)
    assert len(traced) == 1
    assert jax.tree.structure(stage.exported(state)) == jax.tree.structure(state.params)


def test_a_model_is_loaded_without_the_rows_that_it_was_trained_on(tmp_path):
    one = fitter(tmp_path)
    fitted = one.fit("task", Rows(), seed=0, data=0)
    again = fitter(tmp_path).load("task", fitted.key)  # as a new process would
    np.testing.assert_array_equal(again["w"], fitted.params["w"])
    (tmp_path / f"task-{fitted.key}" / "shapes.json").unlink()  # as models of earlier versions are
    with pytest.raises(FileNotFoundError, match=r"shapes\.json.*roll back"):
        fitter(tmp_path).load("task", fitted.key)
    assert fitter(tmp_path).fit("task", Rows(), seed=0, data=0).hit
    fitter(tmp_path).load("task", fitted.key)
