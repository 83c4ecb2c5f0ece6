"""A run that is killed, preempted and moved to other machines ends as the run that was left alone.

The uninterrupted run is the session's `finished` one; "pretrain" has dropout, augmentation, three epochs.
"""

from __future__ import annotations

import json
import shutil
import signal

import numpy as np
import pytest
from tiny_run import STEPS, WATCHED, expected_ids, flags, launch, rows

from jaxvl.checkpoint import Checkpoints

pytestmark = pytest.mark.slow


def pretrain(root, event, *overrides, devices=1):
    """The first stage in `root/run`, watched; `event` is `SIGNAL@STEP` or "-"."""
    config = flags(root / "run", *overrides, arg="pretrain")
    return launch(WATCHED, str(root / "ids"), event, *config, devices=devices)


def seen_ids(root):
    """[(step, ids)] of all processes so far."""
    return [json.loads(line) for line in (root / "ids").read_text().splitlines()]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that SIGKILL ended at step 5, while the checkpoints of steps 3 and 4 were on their way."""
    root = tmp_path_factory.mktemp("killed")
    ended = pretrain(root, "SIGKILL@5")
    assert ended.code == -signal.SIGKILL, ended.err
    assert 1 <= Checkpoints(root / "run/pretrain/checkpoints").latest() <= 4
    return root


def test_killed_then_preempted_run_ends_bit_for_bit_as_the_uninterrupted_one(finished, killed, tmp_path):
    root = shutil.copytree(killed, tmp_path / "copy")
    checkpoints = Checkpoints(root / "run/pretrain/checkpoints")

    stopped = pretrain(root, "SIGTERM@7", "loader.workers=2")
    assert stopped.code == 42, stopped.err
    assert checkpoints.latest() == 7  # the step that was under way
    assert f"checkpoint at step {checkpoints.latest()}" in stopped.err
    assert not (root / "run/pretrain/result.json").exists()

    ended = pretrain(root, "-")
    assert ended.code == 0, ended.err
    assert rows(root / "run/pretrain") == rows(finished.workdir / "pretrain")
    want = Checkpoints.last_params(finished.workdir / "pretrain/checkpoints")
    equal(Checkpoints.last_params(root / "run/pretrain/checkpoints"), want)

    expected = expected_ids(finished.workdir)
    seen = seen_ids(root)
    assert {step for step, _ in seen} == set(range(1, STEPS + 1))
    assert [ids for _, ids in seen] == [expected[step] for step, _ in seen]


def test_killed_run_continues_on_another_number_of_devices(finished, killed, tmp_path):
    root = shutil.copytree(killed, tmp_path / "copy")
    ended = pretrain(root, "-", "sharding.rules=fsdp", devices=2)
    assert ended.code == 0, ended.err
    for name in ("loss", "itc", "itm", "mlm", "grad_norm"):
        want = [row[name] for row in rows(finished.workdir / "pretrain")]
        found = [row[name] for row in rows(root / "run/pretrain")]
        np.testing.assert_allclose(found, want, rtol=1e-4, err_msg=name)


def equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        if isinstance(a[key], dict):
            equal(a[key], b[key])
        else:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
