"""A store gives back what was put, in records of the stated size, survives being killed, and refuses other weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxvl.cache import Fingerprint, FingerprintError, Layout, States, Store, StoreError
from jaxvl.cache import index as index_module
from jaxvl.cache.records import from_bfloat16, to_bfloat16

ROOT = Path(__file__).resolve().parents[2]
IMAGES, TEXTS = Layout("image", 3, 5, 8), Layout("text", 3, None, 8)
MADE_BY = Fingerprint({"weights": "a" * 64, "preprocessing": {"size": 32}, "mapping": {"mapping": "top"}})
# Half a unit in the last place of each type, for values below 4; int8: half a step of the largest value of a token.
PRECISION = {"float32": 0.0, "float16": 2**-10, "bfloat16": 2**-7, "int8": 4 / 254 * 1.01}


def images(count: int, seed: int = 0) -> States:
    return States(np.random.default_rng(seed).normal(size=(count, 3, 5, 8)).clip(-4, 4).astype(np.float32))


def texts(lengths: list[int], pad_to: int = 6) -> States:
    x = np.random.default_rng(1).normal(size=(len(lengths), 3, pad_to, 8)).clip(-4, 4).astype(np.float32)
    return States(x, np.arange(pad_to) < np.array(lengths)[:, None])


def keys(count: int) -> list[str]:
    return [f"k{i}" for i in range(count)]


def create(path: Path | None, layout: Layout = IMAGES, **given: object) -> Store:
    return Store.create(path, layout, fingerprint=MADE_BY, **given)


@pytest.fixture(params=["folder", "memory"])
def place(request, tmp_path):
    return tmp_path / "store" if request.param == "folder" else None


@pytest.mark.parametrize("dtype", PRECISION)
def test_images_come_back_within_the_precision_of_the_type(place, dtype):
    put = images(7)
    with create(place, dtype=dtype, shard_bytes=1000) as store:
        store.put(keys(7), put)
        for _ in range(2):  # first with a pending shard
            got = store.get(["k6", "k0", "k6"])
            np.testing.assert_allclose(got.x, put.x[[6, 0, 6]], rtol=0, atol=PRECISION[dtype])
            store.flush()
    assert got.mask is None and got.x.dtype == np.float32


@pytest.mark.parametrize("dtype", PRECISION)
def test_texts_keep_their_tokens_only_and_are_padded_on_demand(place, dtype):
    put = texts([1, 6, 3])
    with create(place, TEXTS, dtype=dtype, shard_bytes=400) as store:
        store.put(keys(3), put)
        got = store.get(["k2", "k0"], pad_to=4)
        assert [store.length(key) for key in keys(3)] == [1, 6, 3]
        assert store.nbytes == 10 * store.layout.bytes(dtype, 1)
        with pytest.raises(ValueError, match="'k1' has 6 tokens, more than pad_to=4"):
            store.get(["k0", "k1"], pad_to=4)
    assert got.mask.tolist() == [[True] * 3 + [False], [True] + [False] * 3]
    want = np.where(got.mask[:, None, :, None], put.x[[2, 0], :, :4], 0)
    np.testing.assert_allclose(got.x, want, rtol=0, atol=PRECISION[dtype])
    assert store.get(keys(3)).x.shape[2] == 6


def test_record_sizes_are_those_of_the_specification(tmp_path):
    paper, text = Layout("image", 3, 50, 768), Layout("text", 3, None, 768)
    sizes = {d: paper.bytes(d) for d in PRECISION}
    assert sizes == {"float32": 460_800, "float16": 230_400, "bfloat16": 230_400, "int8": 115_500}
    assert (text.bytes("float16", 1), text.bytes("float16", 40)) == (4_608, 184_320)
    for dtype, size in sizes.items():
        with create(tmp_path / dtype, paper, dtype=dtype) as store:
            store.put(["a", "b"], States(np.ones((2, 3, 50, 768), np.float32)))
        assert (tmp_path / dtype / "shard-00000.bin").stat().st_size == 2 * size


def test_bfloat16_is_rounded_to_nearest_ties_to_even():
    import ml_dtypes

    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    values[:3] = [1 + 2**-8, 1 + 3 * 2**-8, 0]
    np.testing.assert_array_equal(
        from_bfloat16(to_bfloat16(values)), values.astype(ml_dtypes.bfloat16).astype(np.float32)
    )


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_values_that_overflow_go_to_bfloat16_with_a_note(tmp_path, dtype):
    put = images(4)
    put.x[2, 1, 1, 1] = 7e4 if dtype == "float16" else 1e7
    with create(tmp_path / "s", dtype=dtype) as store:
        store.put(keys(4), put)
    store = Store.open(tmp_path / "s")
    assert "bfloat16 from record 2 on ('k2')" in store.notes[0] and store.dtype == dtype
    np.testing.assert_allclose(store.get(["k2", "k3"]).x, put.x[2:], rtol=2**-8, atol=2**-7)
    np.testing.assert_allclose(store.get(["k1"]).x, put.x[1:2], rtol=0, atol=PRECISION[dtype])
    with Store.open(tmp_path / "s", write=True) as store:  # which stays with bfloat16
        store.put(["k4"], images(1))
    assert store.verify() == (5, 3, 2 * store.layout.bytes(dtype) + 3 * store.layout.bytes("bfloat16"))
    assert [shard["dtype"] for shard in json.loads((tmp_path / "s/manifest.json").read_text())["shards"]] == [
        dtype,
        "bfloat16",
        "bfloat16",
    ]


def test_zero_states_stay_zero_in_int8(tmp_path):
    with create(None, dtype="int8") as store, np.errstate(all="raise"):
        store.put(["a"], States(np.zeros((1, 3, 5, 8), np.float32)))
    assert not store.get(["a"]).x.any()


def test_duplicate_keys_keep_the_first_record_and_are_counted(tmp_path):
    put = images(3)
    with create(tmp_path / "s", dtype="float32") as store:
        assert store.put(["a", "b", "a"], put) == 2
        store.flush()
        assert store.put(["b"], images(1, seed=9)) == 0
    store = Store.open(tmp_path / "s")
    assert (len(store), store.duplicates, list(store.keys())) == (2, 2, ["a", "b"])
    np.testing.assert_array_equal(store.get(["a", "b"]).x, put.x[:2])


def test_keys_of_equal_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "hash64", lambda key: len(key))
    put = images(4)
    with create(tmp_path / "s", dtype="float32", shard_bytes=1) as store:
        store.put(["ab", "ü", "cd", "x"], put)
    store = Store.open(tmp_path / "s")
    np.testing.assert_array_equal(store.get(["x", "cd", "ü", "ab"]).x, put.x[[3, 2, 1, 0]])
    assert "zz" not in store and "" not in store
    store.verify()


def test_a_closed_store_is_extended_in_new_shards(tmp_path):
    put = images(5)
    with create(tmp_path / "s", dtype="float32") as store:
        store.put(keys(5)[:2], States(put.x[:2]))
    with Store.open(tmp_path / "s", fingerprint=MADE_BY, write=True) as store:
        store.put(keys(5)[2:], States(put.x[2:]))
    store = Store.open(tmp_path / "s")
    np.testing.assert_array_equal(store.get(keys(5)).x, put.x)
    assert store.verify().shards == 2


def test_sealed_and_read_only_stores_take_no_records(tmp_path):
    with create(tmp_path / "s") as store:
        store.put(["a"], images(1))
        store.seal()
        with pytest.raises(StoreError, match="is sealed"):
            store.put(["b"], images(1))
    with pytest.raises(StoreError, match="is sealed"):
        Store.open(tmp_path / "s", write=True).put(["b"], images(1))
    with create(tmp_path / "t"):
        pass
    with pytest.raises(StoreError, match="open for reading"):
        Store.open(tmp_path / "t").put(["b"], images(1))
    with pytest.raises(StoreError, match="holds a store already"):
        create(tmp_path / "t")


def test_two_writers_exclude_each_other(tmp_path):
    with create(tmp_path / "s"):
        with pytest.raises(StoreError, match="another process writes"):
            Store.open(tmp_path / "s", write=True)
        assert len(Store.open(tmp_path / "s")) == 0
    (tmp_path / "s/shard-00000.bin.tmp").write_bytes(b"of a killed writer")
    Store.open(tmp_path / "s", write=True).close()
    assert sorted(content(tmp_path / "s")) == ["index.npz", "manifest.json"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"weights": "b" * 64}, r"weights \(sha256 aaaaaaaa... in the store, bbbbbbbb... here\)"),
        ({"preprocessing": {"size": 48}}, r"preprocessing.size \(32 in the store, 48 here\)"),
        ({"mapping": {"mapping": "cross"}}, r"mapping.mapping \('top' in the store, 'cross' here\)"),
        ({"tokenizer": {"length": 40}}, r"tokenizer \(None in the store, \{'length': 40\} here\)"),
    ],
)
def test_another_fingerprint_is_refused_and_the_difference_is_named(tmp_path, parts, said):
    create(tmp_path / "s").close()
    Store.open(tmp_path / "s", fingerprint=Fingerprint(dict(MADE_BY.parts))).close()
    with pytest.raises(FingerprintError, match=f"made with other {said}. Use"):
        Store.open(tmp_path / "s", fingerprint=Fingerprint({**MADE_BY.parts, **parts}))


@pytest.mark.parametrize(
    ("given", "states", "said"),
    [
        (["a", "b"], images(1), "2 keys with states"),
        (["a"], States(images(1).x[:, :, :4]), "states of 4 tokens"),
        ([""], images(1), "a key is empty"),
        (["a"], States(np.full((1, 3, 5, 8), np.nan)), "'a' are not finite"),
    ],
)
def test_bad_batches_are_refused_whole(given, states, said):
    with create(None) as store:
        with pytest.raises(ValueError, match=said):
            store.put(given, states)
        assert len(store) == 0


def test_text_masks_must_begin_with_the_tokens():
    with create(None, TEXTS) as store:
        for mask in (None, np.array([[False, True]]), np.array([[False, False]])):
            with pytest.raises(ValueError, match="mask|come first"):
                store.put(["a"], States(np.zeros((1, 3, 2, 8)), mask))


def test_missing_keys_are_named(tmp_path):
    with create(tmp_path / "s") as store:
        store.put(["a"], images(1))
        with pytest.raises(KeyError, match=r"no record of 'b' \(it has 1\)"):
            store.get(["a", "b"])
    with pytest.raises(FileNotFoundError, match="no store"):
        Store.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: f.write_bytes(b"\1" + f.read_bytes()[1:]), "shard-00000.bin: the checksum"),
        (lambda f: f.write_bytes(f.read_bytes()[:-1]), r"has 959 bytes, not 960"),
        (lambda f: f.unlink(), "shard-00000.bin is missing"),
    ],
)
def test_verify_names_damaged_shards(tmp_path, damage, said):
    with create(tmp_path / "s", dtype="float32") as store:
        store.put(keys(2), images(2))
    assert Store.open(tmp_path / "s").verify() == (2, 1, 960)
    damage(tmp_path / "s/shard-00000.bin")
    with pytest.raises(StoreError, match=said):
        Store.open(tmp_path / "s").verify()


def test_damaged_tables_are_refused(tmp_path):
    create(tmp_path / "s").close()
    (tmp_path / "s/index.npz").write_bytes(b"PK")
    with pytest.raises(StoreError, match="not a readable index"):
        Store.open(tmp_path / "s")
    (tmp_path / "s/manifest.json").write_text("{}")
    with pytest.raises(StoreError, match="not the manifest"):
        Store.open(tmp_path / "s")


KILLED = """
import os, signal, sys
from pathlib import Path
from test_store import MADE_BY, create, images, keys
from jaxvl.cache import Store
from jaxvl.cache.store import States

folder, at, half = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "half"
replace, renames = Path.replace, 0

def killed(self, target):
    global renames
    renames += 1
    if renames == at:
        if half:
            self.write_bytes(self.read_bytes()[: self.stat().st_size // 2])
        else:
            replace(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

Path.replace = killed
store = Store.open(folder, write=True) if (folder / "manifest.json").exists() else create(folder, shard_bytes=500)
put = images(9)
for i, key in enumerate(keys(9)):
    if key not in store:
        store.put([key], States(put.x[i : i + 1]))
store.close()
"""


def build(folder: Path, at: int, how: str) -> int:
    """Exit code of a process that builds a store and is killed in or after its rename number `at`."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(at), how], env=env, capture_output=True
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# The renames of a build: 2 tables, then shard, index, manifest for each shard.
@pytest.mark.parametrize(
    ("at", "how"), [(3, "half"), (6, "half"), (6, "whole"), (7, "whole"), (7, "half"), (8, "half")]
)
def test_killed_at_any_point_a_store_opens_and_is_rebuilt_to_the_same_bytes(tmp_path, at, how):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert build(whole, -1, "half") == 0
    assert build(killed, at, how) == -signal.SIGKILL
    store = Store.open(killed)
    assert len(store) in (0, 3) and len(store) == store.verify().records
    if len(store):
        np.testing.assert_allclose(store.get(keys(3)).x, images(9).x[:3], atol=PRECISION["float16"])
    assert build(killed, -1, "half") == 0
    assert content(killed) == content(whole)
