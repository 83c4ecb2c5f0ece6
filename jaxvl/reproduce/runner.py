"""Running jobs: one process of launch/main.py each, one line of progress each, and nothing is run twice."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from jaxvl.config import ConfigError
from jaxvl.display import duration
from jaxvl.reproduce.jobs import Job
from jaxvl.reproduce.store import Store

STOPPED = 42  # the exit code of launch/main.py, and ours, after a stop that leaves a checkpoint
Execute = Callable[[Sequence[str], Path, int, Callable[[str], None]], int]


def command(job: Job, store: Store, *, relative: bool = False) -> list[str]:
    """The command that trains a job whose needs are finished; `relative` as one types it in the repository."""
    record = store.record(
        job
    )  # of the row that started the folder: a workdir resumes with its own config only
    arg, overrides = record.get("arg", job.arg), record.get("overrides", job.overrides)
    prefix = "" if relative else f"{store.root}/"
    flags: dict[str, Any] = {"run": f'("{job.stage}",)', "seed": job.seed, **overrides}
    flags |= {f"stages.{job.stage}.{key}": str(store.params(need)) for key, need in job.needs.items()}
    return [
        "python" if relative else sys.executable,
        f"{prefix}launch/main.py",
        f"--config={prefix}{job.config}:{arg}",
        f"--workdir={store.folder(job)}",
        *(
            f"--config.{key}={value if isinstance(value, str) else repr(value)}"
            for key, value in flags.items()
        ),
    ]


def execute(argv: Sequence[str], log: Path, lock: int, watch: Callable[[str], None]) -> int:
    """Run a command to its end with its output in `log`; returns the exit code.

    The process inherits `lock`, so that a job whose parent was killed is not started a second time. If the parent is
    stopped, the process gets SIGTERM and may write its checkpoint.
    """
    with log.open("ab") as out:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, pass_fds=(lock,),
            start_new_session=True,
        )  # fmt: skip
    try:
        while True:
            try:
                return process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                watch(["", *tail(log)][-1])
    except BaseException:
        process.terminate()
        process.wait()
        raise


def tail(log: Path, size: int = 8192) -> list[str]:
    """The last lines of a log that say anything, of so many bytes."""
    with log.open("rb") as f:
        f.seek(max(0, log.stat().st_size - size))
        lines = f.read().decode("utf-8", "replace").splitlines()
    return [x.strip() for x in lines if x.strip() and not x.startswith("(set JAXVL_TRACEBACK")]


class Line:
    """Progress of a job: one line that is drawn over on a terminal; elsewhere only what is final."""

    def __init__(self, head: str):
        self.head = head

    def draw(self, text: str) -> None:
        """Show for now."""
        if sys.stdout.isatty():
            print(f"\r\x1b[2K{self.head}  {text}"[:150], end="", flush=True)

    def end(self, text: str) -> None:
        """Show for good."""
        start = "\r\x1b[2K" if sys.stdout.isatty() else ""
        print(f"{start}{self.head}  {text}", flush=True)


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """SIGTERM ends the program as an exception would, so that the job under way is stopped with a checkpoint."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(STOPPED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_jobs(
    jobs: Sequence[Job],
    store: Store,
    *,
    labels: Mapping[str, str],
    metrics: Mapping[str, str],
    budget: float | None = None,
    execute: Execute = execute,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Run what is not finished, in order; a failed job and those that need it are left, the others go on.

    Args:
      jobs: each after those it needs.
      labels: job name -> what to call it.
      metrics: job name -> the metric that is shown when it is finished; of others the first ones are.
      budget: seconds after which no job is started.
      execute: runs a command; see `execute`.

    Returns:
      Why it ended early, or "".

    Raises:
      ConfigError: the code was changed meanwhile.
      SystemExit, KeyboardInterrupt: stopped; the job under way was told to write a checkpoint.
    """
    started = clock()
    waiting = [job for job in jobs if store.result(job) is None]
    with sigterm_exits():
        for i, job in enumerate(waiting):
            if budget is not None and clock() - started >= budget:
                left = len(waiting) - i
                return f"the budget of {duration(budget)} is spent: {left} of {len(jobs)} jobs not started"
            line = Line(f"[{len(jobs) - len(waiting) + i + 1}/{len(jobs)}] {labels[job.name]}")
            lacking = [need.name for need in job.needs.values() if store.result(need) is None]
            if lacking:
                line.end(f"not run: needs {', '.join(lacking)}")
                continue
            store.check_code()
            with store.lock(job) as lock:
                if lock is None:
                    line.end("not run: another process is at it")
                    continue
                run_job(job, store, lock, line, metrics.get(job.name), execute, clock)
    return ""


def run_job(
    job: Job,
    store: Store,
    lock: int,
    line: Line,
    metric: str | None,
    execute: Execute,
    clock: Callable[[], float],
) -> None:
    """One attempt at a job; its failure is written down, not raised."""
    if store.result(job) is not None:
        line.end("finished by another process")
        return
    log = store.folder(job) / "log.txt"
    argv = command(job, store)
    store.start(job, shlex.join(command(job, store, relative=True)))
    line.draw("starts")
    began = clock()
    code = STOPPED
    try:
        code = execute(argv, log, lock, line.draw)
    finally:
        seconds = clock() - began
        store.spent(job, seconds)
    result = store.result(job)
    if code == STOPPED and result is None:
        line.end("stopped; the same command goes on from its checkpoint")
        raise SystemExit(STOPPED)
    try:
        if code != 0 or result is None:
            raise ConfigError(ended(code, log))
        store.check_key(job)
    except ConfigError as e:
        store.fail(job, str(e))
        line.end(f"FAILED after {duration(seconds)}: {e}  (log: {log})")
        return
    line.end(f"{duration(seconds)}{line_of(result['metrics'], metric)}")


def ended(code: int, log: Path) -> str:
    """Why a process ended, in one line."""
    if code < 0:
        hint = ": out of memory?" if -code == signal.SIGKILL else ""
        return f"killed by signal {-code}{hint}"
    lines = tail(log) if log.exists() else []
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Mismatch|Interrupt)\b", line)]
    return [f"exit code {code} without a word", *lines, *errors][-1]


def line_of(metrics: Mapping[str, float], metric: str | None) -> str:
    """One metric of a result, or else the first ones, for the progress line."""
    shown = [metric] if metric is not None and metric in metrics else list(metrics)[:2]
    return "".join(f"  {key} {metrics[key]:.4g}" for key in shown)
