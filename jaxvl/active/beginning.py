"""The folder of a run, and what must be equal for runs to be one comparison."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from jaxvl.active.bank import KINDS
from jaxvl.active.folder import ABOUT, LATER, RunError, RunFolder, digest_of
from jaxvl.active.items import IMAGE
from jaxvl.active.proposers import OWN, caution
from jaxvl.active.world import TASK, World, digest
from jaxvl.atomic import read_json, write_json


def begin(world: World, method: str, repeat: int, folder: Path) -> RunFolder:
    """The run's folder, made and described if it is not there.

    Raises:
      RunError: it belongs to another pool, seed, method or protocol.
    """
    protocol = protocol_of(world, repeat)
    about = {
        "schema": "jaxvl.run/1",
        "method": method,
        "repeat": repeat,
        "protocol": protocol,
        "options": options_of(world, method),
    }
    if (folder / ABOUT).exists():
        found = read_json(folder / ABOUT)
        protocol = {k: v for k, v in protocol.items() if k not in LATER or k in found["protocol"]}
        about["protocol"] = protocol
        differ = [k for k in about if k != "options" and found.get(k) != about[k]]
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
    """What must be equal for runs to be compared; the unit and options are named unless they are the default ones."""
    options = world.options
    proposer = f"{options.proposer}/{options.asked}" if world.questions is None else OWN
    found: dict[str, Any] = {
        "pool": digest_of(world.oracle.ids), "counts": world.counts, "variant": options.variant,
        "proposer": proposer, "answers": world.answers_key, "seed": world.seed,
        "init_of": 0 if options.shared_init else repeat, "data": world.earlier_key, "kinds": list(KINDS),
        "annotations": world.data_key["annotations"],
    }  # fmt: skip
    section = getattr(world.fitter.stages.get(TASK), "section", None)
    found["task_model"] = digest([json.dumps(section, sort_keys=True, default=str)])
    found["bank"] = dict(options.bank)
    if world.unit != IMAGE:
        found["unit"] = world.unit.name
    if options.share_task_model != "plain":
        found["share_task_model"] = options.share_task_model
    if options.min_answers != 1:
        found["min_answers"] = options.min_answers
    if options.warm_start:
        found["warm_start"] = True
    if options.vocabulary.changes:
        found["vocabulary"] = dataclasses.asdict(options.vocabulary)
    return found


def options_of(world: World, method: str) -> dict[str, Any]:
    """What a method is: its strategy's options and the sections of the stages it trains, by dotted name, as JSON.

    Runs with other values are not repeats of one method; names that only one of two runs has do not tell.
    """
    strategy = world.strategies[method]
    parts: dict[str, Any] = {"strategy": {"class": type(strategy).__name__}}
    if dataclasses.is_dataclass(strategy) and not isinstance(strategy, type):
        parts["strategy"] |= {
            f.name: getattr(strategy, f.name) for f in dataclasses.fields(strategy) if f.repr
        }
    for stage in world.options.needs(strategy):
        if stage in world.fitter.stages:
            parts[stage] = world.fitter.stages[stage].section
    return {
        k: json.loads(json.dumps(v, default=str)) for k, v in sorted(flatten_dict(parts, sep=".").items())
    }


def proposer_of(world: World) -> dict[str, Any]:
    """For the metrics: which questions images were asked, and what that means."""
    if world.questions is not None:
        return {"name": OWN, "asked": 1}
    name = world.options.proposer
    found: dict[str, Any] = {"name": name, "asked": world.options.asked}
    said = caution(name)
    return found | ({} if said is None else {"caution": said, "transductive": name == "visible"})
