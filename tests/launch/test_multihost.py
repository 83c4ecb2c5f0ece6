"""Two processes on one machine train as one process with the same mesh, and stop together."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
from tiny_run import STEPS, WATCHED, expected_ids, finish, flags, launch, rows, start

from jaxvl.checkpoint import Checkpoints

pytestmark = pytest.mark.slow
SHARDED = ("sharding.rules=fsdp",)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def two(root, *events):
    """Both processes of a run in `root/run`, each with one device and its own file of ids."""
    address = f"--coordinator=127.0.0.1:{free_port()}"
    config = flags(root / "run", *SHARDED, arg="pretrain")
    return finish(
        *(
            start(WATCHED, str(root / f"ids{i}"), event, address, "--processes=2", f"--process={i}", *config)
            for i, event in enumerate(events)
        )
    )


def ids(root, process):
    return [json.loads(line) for line in (root / f"ids{process}").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The same run by one process with two devices."""
    folder = tmp_path_factory.mktemp("one")
    ended = launch("launch/main.py", *flags(folder, *SHARDED, arg="pretrain"), devices=2)
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(folder, endings of the two processes when the second got SIGTERM, and when started again)."""
    root = tmp_path_factory.mktemp("both")
    stopped = two(root, "-", "SIGTERM@4")
    latest = Checkpoints(root / "run/pretrain/checkpoints").latest()
    return root, stopped, latest, two(root, "-", "-")


def test_sigterm_to_one_process_stops_both_with_a_checkpoint(both):
    _, stopped, latest, _ = both
    assert [p.code for p in stopped] == [42, 42], [p.err for p in stopped]
    assert 5 <= latest <= 7
    assert all(f"checkpoint at step {latest}" in p.err for p in stopped)


def test_two_processes_train_as_one(one, both):
    root, _, _, ended = both
    assert [p.code for p in ended] == [0, 0], [p.err for p in ended]
    want, found = rows(one / "pretrain"), rows(root / "run/pretrain")
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    for name in want[-1]:
        expected = [row[name] for row in want if name in row]
        np.testing.assert_allclose([r[name] for r in found if name in r], expected, rtol=1e-5, err_msg=name)


def test_each_process_reads_its_half_of_the_same_batches(one, both):
    expected = expected_ids(one)
    first, second = ids(both[0], 0), ids(both[0], 1)
    assert [step for step, _ in first] == [step for step, _ in second]
    assert [a + b for (_, a), (_, b) in zip(first, second, strict=True)] == [expected[s] for s, _ in first]


def test_files_are_written_and_progress_is_shown_once(both):
    root, _, _, (first, second) = both
    assert len(list((root / "run/pretrain/events").iterdir())) == 2  # one for each start
    assert not [p.name for p in root.rglob("*.tmp")]
    assert "report:" in first.out and "report:" not in second.out
    assert "pretrain  " in first.err and "pretrain  " not in second.err
