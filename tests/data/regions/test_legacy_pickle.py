"""Pickles of region features: what they may hold is read as the standard library would, anything else is refused."""

from __future__ import annotations

import codecs
import collections
import os
import pickle
import subprocess

import numpy as np
import pytest

from jaxvl.data.records import DataError
from jaxvl.data.regions.legacy import UnsafePickleError, read_pickle


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back(protocol):
    value = {
        1: "a",
        b"k": [1.5, None, True, (2, {3}), -(2**70)],
        "d": collections.OrderedDict(x=frozenset("y")),
    }
    assert read_pickle(pickle.dumps(value, protocol=protocol), where="f") == value


def test_texts_and_sets_of_python_2_come_back():
    # what Python 2.7 writes for {391895: 0, 'k': set([7])}, with a byte that is no ASCII in a text
    data = b"\x80\x02}q\x00(J\xd7\xfa\x05\x00K\x00U\x02k\xe9q\x01c__builtin__\nset\nq\x02]q\x03K\x07a\x85Rq\x04u."
    assert read_pickle(data, where="f") == {391895: 0, "k\xe9": {7}}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8", "?", "<u1"])
def test_arrays_of_numbers_come_back(protocol, dtype):
    array = (np.arange(6).reshape(2, 3) % 2).astype(dtype)
    value = {"c": array, "f": np.asfortranarray(array), "scalar": array[0, 1]}
    found = read_pickle(pickle.dumps(value, protocol=protocol), where="f")
    np.testing.assert_array_equal(found["c"], array)
    np.testing.assert_array_equal(found["f"], array)
    assert found["scalar"] == array[0, 1] and found["c"].dtype == array.dtype


class Attack:
    """Runs a function when the standard library unpickles it."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ((os.system, "touch %s"), "posix.system"),
        ((subprocess.Popen, ["touch", "%s"]), "subprocess.Popen"),
        ((eval, "open('%s', 'w')"), "builtins.eval"),
        ((getattr, "a", "upper"), "builtins.getattr"),
        ((np.load, "%s"), "numpy.load"),
        ((codecs.decode, "a", "rot13"), "_codecs.decode"),
    ],
)
def test_a_pickle_that_runs_something_is_refused_before_it_runs(tmp_path, call, name):
    made = tmp_path / "made"
    filled = [[w % made if "%s" in w else w for w in a] if isinstance(a, list) else
              a % made if isinstance(a, str) and "%s" in a else a for a in call]  # fmt: skip
    with pytest.raises(UnsafePickleError, match=f"f.pkl: the pickle asks for {name}"):
        read_pickle(pickle.dumps({"a": Attack(*filled)}), where="f.pkl")
    assert not made.exists()


def test_arrays_of_other_objects_than_a_dict_are_refused():
    with pytest.raises(UnsafePickleError, match="array of 'M8'"):
        read_pickle(pickle.dumps(np.array(["2020-01-01"], "M8[D]")), where="f")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps({"a": [1] * 100})[:-7],
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.",  # bytes of 2^60
        b"\x80\x04]\x94K\x01b.",  # sets the state of a list
    ],
)
def test_damaged_pickles_are_errors_that_name_the_file(data):
    with pytest.raises(DataError, match="f.pkl"):
        read_pickle(data, where="f.pkl")


def test_pickles_that_would_take_the_process_down_are_errors():
    nested = b"\x80\x02" + b"K\x01" + b"\x85" * 200_000 + b"0N."  # ((((1,),),),)
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    memo = b"\x80\x02Nr\xff\xff\xff\x7f."  # a table of 2^31 places
    for data, message in ((nested, "200000 tuples"), (deep, "recursion"), (memo, "memo number 2147483647")):
        with pytest.raises(DataError, match=f"f.pkl: .*{message}"):
            read_pickle(data, where="f.pkl")
    shared: list = [1]
    for _ in range(60):  # 2^60 places, 60 objects
        shared = [shared, shared]
    found = read_pickle(pickle.dumps(shared), where="f")
    assert found[0] is found[1]


def test_an_array_with_more_places_than_bytes_is_refused():
    data = pickle.dumps({"a": np.zeros(4, "<f4")}, protocol=2)
    grown = data.replace(b"K\x04\x85", b"K\x7f\x85")
    assert grown != data
    with pytest.raises(DataError, match="damaged"):
        read_pickle(grown, where="f")
