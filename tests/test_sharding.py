"""Rule sets split what they say, on any mesh, and constraints inside models are really there."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxvl.models.layers import Dense, Embedding, batch_major
from jaxvl.sharding import Partition, _by_process, _mesh_shape, _slots

MESH = dict(data=4, model=2)


class Net(nn.Module):
    """One of each: a table, a column-split and a row-split kernel."""

    width: int = 16

    @nn.compact
    def __call__(self, ids):
        x = batch_major(Embedding(20, self.width, axis="vocab", name="word")(ids))
        x = Dense(32, ("embed", "mlp"), name="up")(x)
        return Dense(self.width, ("mlp", "embed"), name="down")(x)


def init(key, width=16):
    params = Net(width).init(key, jnp.zeros((4, 3), jnp.int32))["params"]
    return {"params": params, "opt": optax.adam(1e-3).init(params), "step": jnp.zeros((), jnp.int32)}


@functools.cache
def born(rules="fsdp", width=16):
    partition = Partition.create(mesh=MESH, rules=rules)
    shardings = partition.state(jax.eval_shape(lambda k: init(k, width), jax.random.key(0)))
    with partition.context():
        return jax.jit(lambda k: nn.unbox(init(k, width)), out_shardings=shardings)(jax.random.key(0))


def local(x):
    return x.addressable_shards[0].data.shape


@pytest.mark.parametrize(
    ("rules", "word", "up", "down", "bias"),
    [
        ("dp", (20, 16), (16, 32), (32, 16), (32,)),
        ("fsdp", (20, 16), (4, 32), (32, 4), (32,)),
        ("tp", (10, 16), (16, 16), (16, 16), (16,)),
        ("fsdp_tp", (10, 16), (4, 16), (16, 4), (16,)),
    ],
)
def test_each_rule_set_splits_parameters_and_their_moments_alike(rules, word, up, down, bias):
    state = born(rules)
    for tree in (state["params"], state["opt"][0].mu, state["opt"][0].nu):
        assert local(tree["word"]["embedding"]) == word
        assert local(tree["up"]["kernel"]) == up
        assert local(tree["up"]["bias"]) == bias
        assert local(tree["down"]["kernel"]) == down
    assert state["step"].sharding.is_fully_replicated


def test_all_rules_and_meshes_give_the_same_numbers():
    params = jax.device_get(born("dp")["params"])
    ids = np.arange(24, dtype=np.int32).reshape(8, 3) % 20
    expected = Net().apply({"params": params}, ids)
    for rules, mesh in (("fsdp_tp", MESH), ("fsdp", dict(data=8)), ("tp", dict(data=2, model=4))):
        partition = Partition.create(mesh=mesh, rules=rules)
        boxed = jax.eval_shape(init, jax.random.key(0))["params"]
        placed, batch = jax.device_put(params, partition.state(boxed)), partition.place_batch({"ids": ids})
        with partition.context():
            out = partition.fetch(jax.jit(lambda p, i: Net().apply({"params": p}, i))(placed, batch["ids"]))
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-8)


def test_constraints_reach_the_compiler_inside_the_context_only():
    partition = Partition.create(mesh=MESH)
    params, ids = born()["params"], jnp.zeros((8, 3), jnp.int32)
    with partition.context():
        inside = jax.jit(lambda p, i: Net().apply({"params": p}, i)).lower(params, ids).as_text()
    outside = jax.jit(lambda p, i: Net().apply({"params": p}, i)).lower(params, ids).as_text()
    assert "sharding_constraint %" in inside and '[{"data"}, {}, {}]' in inside
    assert "sharding_constraint" not in outside


def test_dimensions_that_do_not_divide_stay_whole_and_are_reported(caplog):
    with caplog.at_level(logging.WARNING, logger="jaxvl.sharding"):
        params = born("fsdp_tp", width=6)["params"]
    assert local(params["up"]["kernel"]) == (6, 16)  # embed=6 over data=4: whole; mlp=32 over model=2: split
    assert "embed=6 is not a multiple of data=4" in caplog.text
    assert "mu/up/kernel" in caplog.text


def test_unknown_logical_names_are_refused_with_the_parameter():
    box = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((4, 4), jnp.float32), ("embd", None))
    with pytest.raises(ValueError, match=r"a/kernel: unknown logical axis 'embd'.*did you mean 'embed'"):
        Partition.create().state({"a": {"kernel": box}})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(rules="fdsp"), "unknown sharding.rules 'fdsp'.*did you mean 'fsdp'"),
        (dict(mesh=dict(date=2)), "unknown axis of sharding.mesh 'date'.*'data'"),
        (dict(mesh=dict(data=3)), "data=3, model=1 does not divide the 8 devices"),
        (dict(mesh=dict(data=-1, model=5)), "model=5 does not divide the 8 devices"),
        (dict(mesh=dict(data=-1, model=-1)), "only one"),
        (dict(mesh=dict(data=0)), "data=0: expected a positive number"),
        (dict(mesh=dict(data=16)), "does not divide the 8 devices"),
    ],
)
def test_bad_meshes_and_rules_say_what_is_wrong(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Partition.create(**kwargs)


def test_mesh_sizes_are_resolved_and_smaller_meshes_use_the_first_devices():
    assert dict(Partition.create(mesh=dict(data=-1, model=2)).mesh.shape) == {"data": 4, "model": 2}
    one = Partition.create(mesh=dict(data=1, model=1), rules="dp")
    assert one.mesh.devices.tolist() == [[jax.devices()[0]]]
    assert one.batch_shards == 1


def test_batches_are_split_by_rows_and_come_back_whole():
    partition = Partition.create(mesh=MESH)
    host = {
        "image": np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32),
        "mask": np.ones(8, bool),
    }
    batch = partition.place_batch(host)
    assert (partition.rows(8), partition.reader()) == ((0, 8), (0, 1))
    assert local(batch["image"]) == (2, 3) and batch["mask"].sharding == partition.batch()
    jax.tree.map(np.testing.assert_array_equal, partition.fetch(batch), host)
    assert partition.fetch({"n": 3})["n"] == 3


def test_batches_that_do_not_divide_are_refused():
    partition = Partition.create(mesh=MESH)
    with pytest.raises(ValueError, match="batch of 6 rows cannot be split over mesh data=4"):
        partition.rows(6)
    with pytest.raises(
        ValueError, match=r"batch\['image'\] of shape \(6, 2\): axis 0 must be a multiple of 4"
    ):
        partition.place_batch({"image": np.zeros((6, 2))})


def devices(processes):
    return np.vectorize(lambda p: SimpleNamespace(process_index=p), otypes=[object])(np.array(processes))


def test_interleaved_hosts_are_put_in_the_order_of_their_rows():
    interleaved = devices([[0], [1], [0], [1]])
    ordered = interleaved[_by_process(interleaved)]
    assert [d.process_index for d in ordered.ravel()] == [0, 0, 1, 1]
    assert (_slots(ordered, 0), _slots(ordered, 1)) == ([0, 1], [2, 3])
    shared = devices([[0, 1], [0, 1], [2, 3], [2, 3]])  # a model axis across two hosts
    assert _slots(shared, 0) == _slots(shared, 1) == [0, 1]
    with pytest.raises(ValueError, match="does not fit the processes"):
        _slots(devices([[0, 0], [0, 1], [1, 1]]), 0)


def test_several_processes_must_use_all_devices():
    two = list(devices([0, 0, 1, 1]))
    for d in two:
        d.platform = "cpu"
    with pytest.raises(ValueError, match="uses 2 of 4 devices"):
        _mesh_shape(dict(data=2, model=1), two)


TWO = """
import sys, numpy as np, jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize("127.0.0.1:" + sys.argv[2], num_processes=2, process_id=int(sys.argv[1]))
from jaxvl.sharding import Partition
p = Partition.create(mesh=dict(data=-1, model=1), rules="dp")
lo, hi = p.rows(8)
whole = np.arange(16.0).reshape(8, 2)
x = p.place_batch({"x": whole[lo:hi]})["x"]
np.testing.assert_array_equal(p.fetch(x), whole)
total = jax.jit(lambda x: x.sum(), out_shardings=p.replicated())(x)
print(lo, hi, *p.reader(), p.fetch({"a": total})["a"])
jax.distributed.shutdown()
"""


def test_two_processes_supply_their_rows_and_fetch_the_whole():
    port = str(20000 + np.random.default_rng().integers(20000))
    command = [sys.executable, "-c", textwrap.dedent(TWO)]
    runs = [
        subprocess.Popen([*command, str(i), port], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    outs = [run.communicate(timeout=120) for run in runs]
    assert [out.splitlines()[-1:] for out, _ in outs] == [["0 4 0 2 120.0"], ["4 8 1 2 120.0"]], outs
