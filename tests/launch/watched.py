"""launch/main.py that writes down the example ids of every step and may send itself a signal.

    python tests/launch/watched.py IDS_FILE SIGNAL@STEP|- FLAGS_OF_MAIN...

The signal comes right after the step was started, with the checkpoint of an earlier one half written.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from jaxvl.train import Meter


def watch(ids_file: Path, number: int, at: int) -> None:
    """Let `Meter.push`, which the loop calls at every step, append to `ids_file` and raise the signal."""
    push = Meter.push

    def watched(self: Meter, step: int, ids: Any, *rest: Any) -> None:
        push(self, step, ids, *rest)
        with ids_file.open("a", encoding="utf-8") as f:
            f.write(json.dumps([step, ids.tolist()]) + "\n")
        if step == at:
            os.kill(os.getpid(), number)

    Meter.push = watched  # type: ignore[method-assign]


if __name__ == "__main__":
    _, ids_file, event, *rest = sys.argv
    name, _, step = event.partition("@")
    watch(Path(ids_file), signal.Signals[name] if step else 0, int(step or -1))
    main = Path(__file__).resolve().parents[2] / "launch/main.py"
    sys.argv = [str(main), *rest]
    runpy.run_path(str(main), run_name="__main__")
