"""Checkpoints restore anywhere, survive kills, keep what they promise, and say exactly what does not fit."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from jaxvl import checkpoint
from jaxvl.checkpoint import CheckpointMismatch, Checkpoints
from jaxvl.models.layers import stack_layers, unstack_layers
from jaxvl.sharding import Partition


@struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    extra: Any
    frozen: Any = None


def layers(scale=1.0, stacked=False):
    kernel = scale * jnp.arange(3 * 8 * 4, dtype=jnp.float32).reshape(3, 8, 4)
    if stacked:
        return {"enc": {"layers_0_3": {"ffn": {"kernel": kernel}}}, "temp": jnp.float32(0.07)}
    return {
        "enc": {f"layers_{i}": {"ffn": {"kernel": kernel[i]}} for i in range(3)},
        "temp": jnp.float32(0.07),
    }


def make(stacked=False, step=0, scale=1.0):
    params = layers(scale, stacked)
    opt = optax.adam(0.1).init(params)
    opt = (opt[0]._replace(mu=layers(2 * scale, stacked), count=jnp.int32(step)), opt[1])
    return State(jnp.int32(step), params, opt, {"queue": jnp.arange(16.0).reshape(2, 8), "ptr": jnp.int32(5)})


def place(state, partition):
    """Matrices split over the mesh's first axis along their rows, everything else whole."""

    def put(x):
        return jax.device_put(
            x, partition.batch() if x.ndim == 2 and x.shape[0] == 8 else partition.replicated()
        )

    return jax.tree.map(put, state)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture
def store(tmp_path):
    made = []

    def open_(folder="c", **kwargs):
        made.append(Checkpoints(tmp_path / folder, **kwargs))
        return made[-1]

    yield open_
    for c in made:
        c.close()


def test_saved_on_one_mesh_restores_on_another(store):
    c = store()
    state = place(make(step=7), Partition.create(mesh=dict(data=8)))
    c.save(7, state, {"epoch": 1, "metrics": {"loss": 0.5}}, wait=True)
    assert (c.latest(), c.meta(7)) == (7, {"epoch": 1, "metrics": {"loss": 0.5}})
    for mesh in (dict(data=4, model=2), dict(data=1, model=1)):
        wanted = abstract(place(make(), Partition.create(mesh=mesh)))
        got = c.restore(7, wanted)
        equal(got, state)
        assert jax.tree.map(lambda x: x.sharding, got) == jax.tree.map(lambda x: x.sharding, wanted)


def test_stacked_and_unrolled_layers_write_the_same_checkpoint(store):
    functions = dict(unstack=unstack_layers, stack=stack_layers)
    a, b = store("a", **functions), store("b", **functions)
    unrolled, stacked = make(step=1), make(stacked=True, step=1)
    a.save(1, unrolled, wait=True)
    b.save(1, stacked, wait=True)
    files = [d / "1" / "params.safetensors" for d in (a.directory, b.directory)]
    equal(Checkpoints.params(files[0]), Checkpoints.params(files[1]))
    equal(b.restore(1, abstract(unrolled)), unrolled)
    equal(a.restore(1, abstract(stacked)), stacked)


def test_unstacking_keeps_arrays_split(store):
    c = store(unstack=unstack_layers, stack=stack_layers)
    partition = Partition.create(mesh=dict(data=4, model=2))
    stacked = jax.tree.map(lambda x: jax.device_put(x, partition.replicated()), make(stacked=True))
    split = jax.sharding.NamedSharding(partition.mesh, jax.sharding.PartitionSpec(None, "data", "model"))
    kernel = jax.device_put(stacked.params["enc"]["layers_0_3"]["ffn"]["kernel"], split)
    tree = c._canonical({"params": {"enc": {"layers_0_3": {"ffn": {"kernel": kernel}}}}})
    one = tree["params"]["enc"]["layers_2"]["ffn"]["kernel"]
    assert one.addressable_shards[0].data.shape == (2, 2)


def test_parameters_alone_are_readable_by_any_safetensors_reader(store):
    from safetensors.numpy import load_file

    c = store()
    state = make(step=3)
    c.save(3, state, wait=True)
    flat = load_file(c.directory / "3" / "params.safetensors")
    assert sorted(flat) == [*(f"enc/layers_{i}/ffn/kernel" for i in range(3)), "temp"]
    equal(Checkpoints.last_params(c.directory), state.params)


def test_the_state_may_be_donated_while_it_is_written(store):
    c = store()
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = make()
    expected = [jax.tree.map(np.array, state)]
    for i in range(4):
        c.save(i, state)
        state = step(state)
        expected.append(jax.tree.map(np.array, state))
    c.wait()
    for i in (1, 2, 3):
        equal(c.restore(i, abstract(state)), expected[i])
        equal(Checkpoints.params(c.directory / str(i) / "params.safetensors"), expected[i].params)


def test_the_newest_and_the_best_are_kept(store):
    c = store(keep=2, best="accuracy")
    for step, accuracy in enumerate([0.1, 0.9, 0.3, float("nan"), 0.2, 0.9, 0.4, 0.5, 0.6]):
        c.save(step, {"params": {"w": jnp.ones(2)}}, {"metrics": {"accuracy": accuracy}}, wait=True)
        if step == 4:
            assert c.steps() == [1, 3, 4]
    assert (c.steps(), c.best(), c.latest()) == ([5, 7, 8], 5, 8)


def test_the_smallest_can_be_the_best_and_none_keeps_all(store):
    c = store(keep=None, best="loss", mode="min")
    for step, loss in enumerate([3.0, 1.0, 2.0]):
        c.save(step, {"params": {"w": jnp.ones(2)}}, {"metrics": {"loss": loss}}, wait=True)
    assert (c.steps(), c.best()) == ([0, 1, 2], 1)


def test_leftovers_do_not_count_and_the_next_save_removes_them(store, tmp_path):
    c = store()
    c.save(10, make(step=10), wait=True)
    root = tmp_path / "c"
    (root / "20").mkdir()  # empty
    (root / "30" / "state.orbax-checkpoint-tmp-1").mkdir(parents=True)  # killed while writing arrays
    (root / "40" / "state").mkdir(parents=True)  # killed before meta.json
    (root / "40" / "meta.json.tmp").write_text("{")
    (root / "50" / "state").mkdir(parents=True)  # meta.json without arrays
    (root / "50" / "meta.json").write_text(
        json.dumps({"format": 1, "step": 50, "state": "state", "meta": {}})
    )
    (root / "60").mkdir()
    (root / "60" / "notes.txt").write_text("somebody's")
    (root / "70").mkdir()
    (root / "70" / "meta.json").write_text("{half")
    fresh = store()
    assert fresh.steps() == [10]
    assert (root / "20").exists()  # opening and reading change nothing
    fresh.save(15, make(step=15), wait=True)
    assert fresh.steps() == [10, 15]
    assert sorted(p.name for p in root.iterdir()) == ["10", "15", "50", "60", "70"]
    equal(fresh.restore(10, abstract(make())), make(step=10))


def test_a_step_saved_twice_keeps_the_second_state(store):
    c = store()
    c.save(5, make(step=5), {"n": 1}, wait=True)
    for n in (2, 3):
        c.save(5, make(step=5, scale=float(n)), {"n": n}, wait=True)
        assert c.meta(5) == {"n": n}
        equal(c.restore(5, abstract(make())), make(step=5, scale=float(n)))
        equal(Checkpoints.last_params(c.directory), layers(float(n)))
    assert sum(p.name.startswith("state") for p in (c.directory / "5").iterdir()) == 1


def test_a_step_saved_twice_keeps_the_first_state_until_the_second_is_complete(store, monkeypatch):
    c = store()
    c.save(5, make(step=5), {"n": 1}, wait=True)
    monkeypatch.setattr(checkpoint, "_write", lambda path, data: 1 / 0)
    c.save(5, make(step=5, scale=2.0), {"n": 2})
    with pytest.raises(ZeroDivisionError):
        c.wait()
    assert c.meta(5) == {"n": 1}
    equal(c.restore(5, abstract(make())), make(step=5))


def test_a_failed_save_is_reported_by_the_next_call_and_the_step_does_not_count(store, monkeypatch):
    c = store()

    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "_write", full)
    c.save(1, make(step=1))
    with pytest.raises(OSError, match="No space left"):
        c.wait()
    monkeypatch.undo()
    assert c.latest() is None
    c.save(2, make(step=2), wait=True)
    assert c.latest() == 2


def test_every_mismatch_is_listed_in_one_error_with_the_fix(store):
    c = store()
    c.save(1, make(step=1), wait=True)
    wanted = abstract(make())
    wanted.params["enc"]["layers_3"] = {"ffn": {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32)}}
    wanted.params.pop("temp")
    wanted.extra["queue"] = jax.ShapeDtypeStruct((2, 16), jnp.float32)
    with pytest.raises(CheckpointMismatch) as error:
        c.restore(1, wanted)
    text = str(error.value)
    assert "missing in the checkpoint (1):\n    params/enc/layers_3/ffn/kernel (8, 4)" in text
    assert "not wanted (1):\n    params/temp ()" in text
    assert "extra/queue: (2, 8) float32 in the checkpoint, (2, 16) float32 wanted" in text
    assert "init_from" in text and "params.safetensors" in text


def test_the_directory_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    c = Checkpoints("runs/a")
    c.save(1, make(step=1), wait=True)
    monkeypatch.chdir("/")
    equal(c.restore(1, abstract(make())), make(step=1))
    c.close()


def test_absent_steps_and_files_are_named(store, tmp_path):
    c = store()
    assert (c.latest(), c.steps(), c.best()) == (None, [], None)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint of step 3; complete: none"):
        c.restore(3, abstract(make()))
    with pytest.raises(FileNotFoundError, match="train that stage first"):
        Checkpoints.last_params(tmp_path / "c")
    with pytest.raises(FileNotFoundError, match=r"x\.safetensors: no such"):
        Checkpoints.params(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"\x10\x00\x00\x00")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        Checkpoints.params(tmp_path / "x.safetensors")


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Orbax drops its loop on errors
@pytest.mark.parametrize("victims", ["d/*", "manifest.ocdbt"])
def test_damaged_arrays_are_reported_with_the_way_out(store, victims):
    c = store()
    c.save(1, make(step=1), wait=True)
    files = list(Path(c.directory / "1" / "state").glob(victims))
    assert files
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read; delete .*1 to fall back to an earlier step"):
        c.restore(1, abstract(make()))
    gc.collect()


def test_wrong_arguments_are_refused_before_anything_is_written(store):
    c = store()
    with pytest.raises(TypeError, match="meta of step 1 is not JSON"):
        c.save(1, make(), {"x": jnp.ones(1)})
    with pytest.raises(ValueError, match="step -1 is negative"):
        c.save(-1, make())
    boxed = jax.eval_shape(lambda: make())
    from flax.linen import LogicallyPartitioned

    with pytest.raises(ValueError, match="params/w is still in its box"):
        c.save(1, {"params": {"w": LogicallyPartitioned(boxed.step, ())}})
    assert not c.directory.exists()
    for kwargs, message in (
        (dict(keep=0), "keep=0"),
        (dict(mode="best"), "mode="),
        (dict(stack=stack_layers), "both"),
    ):
        with pytest.raises(ValueError, match=message):
            store(**kwargs)


KILLED = """
import sys, jax, jax.numpy as jnp
from jaxvl.checkpoint import Checkpoints
c = Checkpoints(sys.argv[1], keep=2)
first = (c.latest() or 0) + 1
for step in range(first, first + 1000):
    c.save(step, {"params": {str(i): jnp.full((512, 512), step, jnp.float32) for i in range(8)}})
    print(step, flush=True)
"""


def test_kill_9_in_the_middle_of_a_save_leaves_a_good_checkpoint(tmp_path):
    like = {"params": {str(i): jax.ShapeDtypeStruct((512, 512), jnp.float32) for i in range(8)}}
    before = 0
    for printed in (2, 5):
        run = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "c")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(printed):
            step = int(run.stdout.readline())
        run.kill()  # `step` is being written in the background
        run.wait()
        c = Checkpoints(tmp_path / "c", keep=2)
        last = c.latest()
        assert before < last and step - 1 <= last <= step + 1
        for good in c.steps():
            restored = c.restore(good, like)["params"]
            assert all(np.all(np.asarray(x) == good) for x in restored.values())
        assert np.all(Checkpoints.last_params(c.directory)["0"] == last)
        c.close()
        before = last


TWO = """
import sys, jax, numpy as np
import jax.experimental.multihost_utils
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize("127.0.0.1:" + sys.argv[2], num_processes=2, process_id=int(sys.argv[1]))
from jaxvl.checkpoint import Checkpoints
from jaxvl.sharding import Partition
p = Partition.create(rules="fsdp")
c = Checkpoints(sys.argv[3], keep=1)
make = jax.jit(lambda n: {"params": {"w": n + jax.numpy.arange(32.0).reshape(8, 4)}}, out_shardings=p.batch())
for step, n in ((1, 1), (2, 2), (2, 3)):
    state = make(n)
    c.save(step, state)
c.wait()
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
jax.experimental.multihost_utils.sync_global_devices("saved")
got = p.fetch(c.restore(2, like))
np.testing.assert_array_equal(got["params"]["w"], 3 + np.arange(32.0).reshape(8, 4))
c.close()
print(c.steps())
jax.distributed.shutdown()
"""


def test_two_processes_write_one_checkpoint(tmp_path):
    port = str(20000 + np.random.default_rng().integers(20000))
    command = [sys.executable, "-c", textwrap.dedent(TWO)]
    runs = [
        subprocess.Popen(
            [*command, str(i), port, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    outs = [run.communicate(timeout=120) for run in runs]
    assert [out.splitlines()[-1:] for out, _ in outs] == [["[2]"], ["[2]"]], outs
    np.testing.assert_array_equal(Checkpoints.last_params(tmp_path)["w"], 3 + np.arange(32.0).reshape(8, 4))
