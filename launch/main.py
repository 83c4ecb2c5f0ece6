"""Train, evaluate and report what a config describes.

    python launch/main.py --config=configs/hyper_albef.py --workdir=runs/demo
    python launch/main.py --config=configs/hyper_albef.py:vqa,ablation=no_hyper,scale=tiny --workdir=runs/x

Running the same command again resumes, or reports if everything is finished. Exit codes: 0 finished, 2 bad
input, 3 another process works on the run, 42 stopped by SIGTERM after a checkpoint (restart the command).
"""

from __future__ import annotations

import logging
import os
import sys

from absl import app, flags
from ml_collections import config_flags

from jaxvl.config import allow_none

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/hyper_albef.py[:arg].", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, curves, report.")
MULTIHOST = flags.DEFINE_bool("multihost", False, "Call jax.distributed.initialize() (one process per host).")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where no cluster tells it.")
PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
PROCESS = flags.DEFINE_integer("process", None, "Index of this process, with --coordinator.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected {argv[1:]}; overrides look like --config.stages.vqa.epochs=2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("jax").setLevel(logging.WARNING)  # a machine without TPU need not be told so
    import jax

    if MULTIHOST.value or COORDINATOR.value:
        jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    from jaxvl.active.ledger import Locked
    from jaxvl.run import run
    from jaxvl.train import Preempted

    try:
        run(CONFIG.value, WORKDIR.value)
    except (Preempted, Locked) as e:
        print(e, file=sys.stderr, flush=True)
        os._exit(e.exit_code) if MULTIHOST.value or COORDINATOR.value else sys.exit(e.exit_code)
    except (ValueError, FileNotFoundError, KeyError, ImportError) as e:  # the last: an optional package
        if os.environ.get("JAXVL_TRACEBACK"):
            raise
        message = e.args[0] if isinstance(e, KeyError) and e.args else e
        print(f"{type(e).__name__}: {message}\n(set JAXVL_TRACEBACK=1 for the traceback)", file=sys.stderr)
        sys.exit(2)


def parse(argv: list[str]) -> list[str]:
    """Flags of the command line; a mistyped stage, choice or key ends with one line and exit code 2."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, KeyError, AttributeError, TypeError, OSError) as e:
        if os.environ.get("JAXVL_TRACEBACK"):
            raise
        print(one_line(e), file=sys.stderr)
        sys.exit(2)


def one_line(error: Exception) -> str:
    """The message of an error; ml_collections quotes whole tracebacks of config files, whose last line says it all."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    lines = str(error.args[0] if error.args else error).strip().splitlines()
    quoted = any(line.startswith("Traceback") for line in lines)
    return lines[-1] if quoted else " ".join([f"{type(error).__name__}:", *lines])


if __name__ == "__main__":
    allow_none()
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
