"""What a run's folder says of its protocol: runs that differ in it are neither continued nor compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxvl.active.bank import KINDS
from jaxvl.active.folder import ABOUT, RunError, RunFolder, digest_of
from jaxvl.active.proposers import caution
from jaxvl.active.world import Options, World
from jaxvl.atomic import read_json, write_json


def begin(world: World, method: str, repeat: int, folder: Path) -> RunFolder:
    """The run's folder, made and described if it is not there.

    Raises:
      RunError: it belongs to another pool, seed, method or protocol.
    """
    protocol = {
        "pool": digest_of(world.oracle.ids), "counts": world.counts, "variant": world.options.variant,
        "proposer": f"{world.options.proposer}/{world.options.asked}", "answers": world.answers_key, "seed": world.seed,
        "init_of": 0 if world.options.shared_init else repeat, "data": world.data_key, "kinds": list(KINDS),
    }  # fmt: skip
    if world.options.share_task_model != "plain":
        protocol["share_task_model"] = world.options.share_task_model
    if world.options.warm_start:
        protocol["warm_start"] = True
    if world.options.vocabulary.changes:
        protocol["vocabulary"] = dataclasses.asdict(world.options.vocabulary)
    about = {"schema": "jaxvl.run/1", "method": method, "repeat": repeat, "protocol": protocol}
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


def proposer_of(options: Options) -> dict[str, Any]:
    """For the metrics: which questions images were asked, and what that means."""
    found: dict[str, Any] = {"name": options.proposer, "asked": options.asked}
    said = caution(options.proposer)
    return found | ({} if said is None else {"caution": said, "transductive": options.proposer == "visible"})
