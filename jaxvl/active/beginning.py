"""The folder of a run, and what must be equal for runs to be one comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxvl.active.bank import KINDS
from jaxvl.active.folder import ABOUT, RunError, RunFolder, digest_of
from jaxvl.active.items import IMAGE
from jaxvl.active.world import World
from jaxvl.atomic import read_json, write_json


def begin(world: World, method: str, repeat: int, folder: Path) -> RunFolder:
    """The run's folder, made and described if it is not there.

    Raises:
      RunError: it belongs to another pool, seed, method or protocol.
    """
    about = {
        "schema": "jaxvl.run/1",
        "method": method,
        "repeat": repeat,
        "protocol": protocol_of(world, repeat),
    }
    if (folder / ABOUT).exists():
        found = read_json(folder / ABOUT)
        differ = [k for k in about if found.get(k) != about[k]]
        if differ:
            raise RunError(
                f"{folder / ABOUT} is of another run ({', '.join(differ)} differ): give another --workdir, or the "
                "config that it was begun with"
            )
    else:
        write_json(folder / "pool.json", {"ids": world.oracle.ids.tolist()})
        write_json(folder / ABOUT, about)
    return RunFolder(folder)


def protocol_of(world: World, repeat: int) -> dict[str, Any]:
    """What must be equal for runs to be compared; the unit is named unless items are images."""
    proposer = f"bank_random/{world.options.asked}" if world.questions is None else "own"
    return {
        "pool": digest_of(world.oracle.ids), "counts": world.counts, "variant": world.options.variant,
        "proposer": proposer, "answers": world.answers_key, "seed": world.seed,
        "init_of": 0 if world.options.shared_init else repeat, "data": world.data_key, "kinds": list(KINDS),
    } | ({} if world.unit == IMAGE else {"unit": world.unit.name})  # fmt: skip
