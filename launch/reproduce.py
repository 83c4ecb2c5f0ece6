"""Fill a table of a paper: train what is missing, write Markdown and CSV, say which of its orderings hold.

    python launch/reproduce.py --table=list
    python launch/reproduce.py --table=bridge_tower/4 --seeds=0,1,2 --workdir=runs/tables

The same command again goes on where it was stopped, cell by cell. Exit codes: 0 finished (cells that failed are in the
report), 2 bad input, 42 stopped by SIGTERM after a checkpoint.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from absl import app, flags

TABLE = flags.DEFINE_string("table", None, "Table, e.g. bridge_tower/4; `list` shows all.")
SCALE = flags.DEFINE_string("scale", "small", "Scale of the config file: tiny, small or paper.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds; each row is trained once for each.")
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/tables", "Folder of all tables of one scale and one kind of data."
)
DATA = flags.DEFINE_string("data", "scenes", "What to train on; `--table=list` shows what a table can use.")
ONLY = flags.DEFINE_string("only", None, "Run only rows whose label contains this.")
REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Write the report of what is there; run nothing.")
BUDGET = flags.DEFINE_float(
    "budget_minutes", None, "Start nothing new after so many minutes.", lower_bound=0.0
)
MIX = flags.DEFINE_bool("mix_commits", False, "Go on in a workdir whose cells were made by other code.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.getLogger("jax").setLevel(logging.WARNING)  # a machine without TPU need not be told so
    from jaxvl import reproduce as r

    root = Path(__file__).resolve().parents[1]
    try:
        if TABLE.value == "list":
            r.list_tables(root)
            return
        options = r.Options(
            workdir=Path(WORKDIR.value), root=root, scale=SCALE.value,
            seeds=r.seed_list(SEEDS.value), data=DATA.value, only=ONLY.value, report_only=REPORT_ONLY.value,
            budget_minutes=BUDGET.value, mix_commits=MIX.value,
        )  # fmt: skip
        r.reproduce(r.find(TABLE.value), options)
    except (ValueError, OSError, KeyError) as e:
        if os.environ.get("JAXVL_TRACEBACK"):
            raise
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    flags.mark_flags_as_required(["table"])
    app.run(main)
