"""What is finished is never run again, whatever stopped the command; what fails stops nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from fake_world import TABLE, FakeRuns, options

from jaxvl.config import ConfigError
from jaxvl.reproduce import reproduce
from jaxvl.reproduce.jobs import cells, in_order
from jaxvl.reproduce.report import collect
from jaxvl.reproduce.runner import command, ended, execute
from jaxvl.reproduce.store import Store

ONE_SEED = ["first", "pretrain", "teacher", "vqa", "vqa", "pretrain", "vqa"]


def all_cells(o):
    return cells(TABLE, TABLE.rows, seeds=o.seeds, root=o.root, data=o.data, scale=o.scale)


def values(o):
    found = collect(all_cells(o), Store(o.workdir, o.root))
    return {(f.cell.row, f.cell.seed): f.value for f in found}


def test_each_distinct_stage_is_run_once_and_the_second_command_runs_nothing(tmp_path, capsys):
    o, runs = options(tmp_path), FakeRuns(tmp_path)
    reproduce(TABLE, o, execute=runs)
    assert "post: vqa  0 s  vqa/accuracy 55.1\n" in capsys.readouterr().out
    assert runs.seen == [(stage, seed) for seed in (0, 1) for stage in ONE_SEED]
    assert values(o)[("post", 1)] == pytest.approx(56.1)
    again = FakeRuns(tmp_path)
    reproduce(TABLE, o, execute=again)
    assert again.seen == [] and "[1/14]" not in capsys.readouterr().out


@pytest.mark.parametrize("at", [1, 4, 7])
def test_after_a_kill_only_what_was_not_finished_is_run(tmp_path, at):
    o = options(tmp_path, seeds=(0,))
    first = FakeRuns(tmp_path, kill_at=at)
    with pytest.raises(KeyboardInterrupt):
        reproduce(TABLE, o, execute=first)
    assert "Ended early: stopped" in (o.workdir / "test_1.md").read_text()
    second = FakeRuns(tmp_path)
    reproduce(TABLE, o, execute=second)
    assert [stage for stage, _ in second.seen] == ONE_SEED[at - 1 :]


def test_failed_stage_is_reported_what_needs_it_waits_and_the_others_go_on(tmp_path, capsys):
    o, runs = options(tmp_path, seeds=(0,)), FakeRuns(tmp_path, fails=("teacher",))
    reproduce(TABLE, o, execute=runs)
    assert [stage for stage, _ in runs.seen] == ["first", "pretrain", "teacher", "pretrain"]
    assert set(values(o).values()) == {None}
    out = capsys.readouterr().out
    assert "teacher  FAILED after" in out and "ValueError: teacher cannot be" in out
    assert "failed: teacher: ValueError: teacher cannot be" in (o.workdir / "test_1.md").read_text()
    mended = FakeRuns(tmp_path)
    reproduce(TABLE, o, execute=mended)
    assert [stage for stage, _ in mended.seen] == ["teacher", "vqa", "vqa", "vqa"]
    assert None not in [v for (row, _), v in values(o).items() if row != "other"]


def test_only_runs_the_rows_asked_for_and_the_report_still_has_all(tmp_path):
    o = options(tmp_path, seeds=(0,), only="POST")
    runs = FakeRuns(tmp_path)
    reproduce(TABLE, o, execute=runs)
    assert len(runs.seen) == 4
    assert values(o) == {
        ("pre", 0): None,
        ("fast", 0): None,
        ("post", 0): pytest.approx(55.1),
        ("other", 0): None,
    }


def test_nothing_starts_after_the_budget(tmp_path):
    clock = iter(range(0, 10_000, 20))  # seconds; each job reads the clock twice, the loop once
    o, runs = options(tmp_path, budget_minutes=2.0), FakeRuns(tmp_path)
    reproduce(TABLE, o, execute=runs, clock=lambda: next(clock))
    assert len(runs.seen) == 2
    assert (
        "the budget of 2 min 00 s is spent: 12 of 14 jobs not started"
        in (o.workdir / "test_1.md").read_text()
    )


def test_a_job_that_another_process_runs_is_left_to_it(tmp_path, capsys):
    o = options(tmp_path, seeds=(0,))
    store, job = Store(o.workdir, o.root), in_order(all_cells(o))[0]
    runs = FakeRuns(tmp_path)
    with store.lock(job) as held:
        assert held is not None
        reproduce(TABLE, o, execute=runs)
    assert "first" not in [stage for stage, _ in runs.seen]
    assert "another process is at it" in capsys.readouterr().out


def test_a_job_is_resumed_with_the_config_of_the_row_that_started_it(tmp_path):
    o = options(tmp_path, seeds=(0,))
    with pytest.raises(KeyboardInterrupt):
        reproduce(TABLE, o, execute=FakeRuns(tmp_path, kill_at=2))
    fast = next(c.job for c in all_cells(o) if c.row == "fast")
    store, pretrain = Store(o.workdir, o.root), fast.needs["init_from"]
    assert "ablation=fast" in pretrain.arg
    store.start(pretrain, "again")
    assert "ablation=fast" not in " ".join(command(pretrain, store))


def test_a_run_that_did_not_build_the_config_of_its_row_is_a_failure(tmp_path):
    class Wrong(FakeRuns):
        def __call__(self, argv, *rest):
            return super().__call__([*argv, "--config.model.width=3"], *rest)

    o = options(tmp_path, seeds=(0,), only="pre")
    reproduce(TABLE, o, execute=Wrong(tmp_path))
    assert "its config has hash" in (o.workdir / "test_1.md").read_text()
    assert set(values(o).values()) == {None}


def test_code_that_changes_during_the_run_stops_it(tmp_path):
    class Editing(FakeRuns):
        def __call__(self, *args):
            (tmp_path / "jaxvl/a.py").write_text("x = 2\n")
            return super().__call__(*args)

    runs = Editing(tmp_path)
    with pytest.raises(ConfigError, match="the code is another now"):
        reproduce(TABLE, options(tmp_path), execute=runs)
    assert len(runs.seen) == 1


def test_stopped_run_ends_the_command_with_its_exit_code(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        reproduce(TABLE, options(tmp_path), execute=lambda *_: 42)
    assert stopped.value.code == 42
    assert "goes on from its checkpoint" in capsys.readouterr().out


# ---- processes ------------------------------------------------------------------------------------------


def test_execute_keeps_the_output_and_the_exit_code(tmp_path):
    log = tmp_path / "log.txt"
    code = "import sys; print('one'); print('ValueError: two', file=sys.stderr); print('hint'); sys.exit(3)"
    with log.open("wb") as lock:
        assert execute([sys.executable, "-u", "-c", code], log, lock.fileno(), print) == 3
    assert log.read_text().splitlines() == ["one", "ValueError: two", "hint"]
    assert ended(3, log) == "ValueError: two"
    assert ended(-9, log) == "killed by signal 9: out of memory?"
    assert ended(1, tmp_path / "none.txt") == "exit code 1 without a word"


def test_the_run_inherits_the_lock(tmp_path):
    with (tmp_path / "lock").open("wb") as lock:
        held = f"import os; os.fstat({lock.fileno()})"
        assert execute([sys.executable, "-c", held], tmp_path / "log.txt", lock.fileno(), print) == 0


def test_sigterm_reaches_the_run_and_is_waited_for(tmp_path):
    code = (
        "import signal, sys, time, pathlib\n"
        f"done = pathlib.Path({str(tmp_path / 'checkpoint')!r})\n"
        "def stop(*_): time.sleep(0.3); done.touch(); sys.exit(42)\n"
        "signal.signal(signal.SIGTERM, stop); print('ready', flush=True); time.sleep(60)\n"
    )
    log = tmp_path / "log.txt"
    o = options(tmp_path)

    def slow(argv, _, lock, watch):
        def terminate():
            while "ready" not in log.read_text():
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGTERM)

        log.touch()
        threading.Thread(target=terminate).start()
        return execute([sys.executable, "-c", code], log, lock, watch)

    with pytest.raises(SystemExit):
        reproduce(TABLE, o, execute=slow)
    assert (tmp_path / "checkpoint").exists()


def test_an_orphan_keeps_its_job_locked(tmp_path):
    o = options(tmp_path)
    store, job = Store(o.workdir, o.root), in_order(all_cells(o))[0]
    with store.lock(job) as lock:
        orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with store.lock(job) as again:
        assert again is None
    orphan.communicate(b"\n")
    with store.lock(job) as free:
        assert free is not None
