"""Events survive a kill, refuse damage, and have one writer."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from jaxvl.active.ledger import EVENTS, Ledger, LedgerError, Locked


def written(folder, n=3):
    with Ledger(folder) as ledger:
        for i in range(n):
            ledger.append("TRAINED", round=i, files={})
    return folder / EVENTS


def test_events_come_back_in_order(tmp_path):
    written(tmp_path)
    assert [(e.seq, e.kind, e.data["round"]) for e in Ledger(tmp_path).events] == [
        (i, "TRAINED", i) for i in range(3)
    ]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_last_line_that_was_cut_short_is_dropped_and_overwritten(tmp_path, cut):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    with Ledger(tmp_path) as ledger:
        assert len(ledger.events) == 2
        ledger.append("EVALUATED", round=2)
    assert [e.kind for e in Ledger(tmp_path).events] == ["TRAINED", "TRAINED", "EVALUATED"]


def test_a_changed_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = written(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1].replace('"round": 1', '"round": 7') + lines[2])
    with pytest.raises(LedgerError, match="line 2"):
        Ledger(tmp_path)


def test_a_second_process_is_refused_and_a_killed_ones_lock_is_free(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from jaxvl.active.ledger import Ledger\n"
        f"Ledger(Path({str(tmp_path)!r})).open(); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(Locked, match=str(other.pid)):
        Ledger(tmp_path).open()
    other.kill()
    other.wait()
    Ledger(tmp_path).open().close()


def test_a_rollback_takes_back_what_came_after_it(tmp_path):
    written(tmp_path)
    with Ledger(tmp_path) as ledger:
        ledger.append("ROLLED_BACK", to=1)
        ledger.append("EVALUATED", round=0)
    kinds = [(e.kind, e.seq) for e in Ledger(tmp_path).valid()]
    assert kinds == [("TRAINED", 0), ("EVALUATED", 4)]
    assert Ledger(tmp_path).last("TRAINED", round=1) is None


def test_reading_only_cannot_append(tmp_path):
    written(tmp_path)
    with pytest.raises(LedgerError, match="reading only"):
        Ledger(tmp_path).append("TRAINED", round=9)


def test_a_line_is_plain_json_with_its_checksum(tmp_path):
    row = json.loads(written(tmp_path, 1).read_text())
    assert set(row) == {"seq", "kind", "data", "crc"}
