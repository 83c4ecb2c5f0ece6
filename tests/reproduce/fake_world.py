"""A repository with a config file of one teacher and one student, and runs that take no time."""

from __future__ import annotations

import json
from pathlib import Path

from jaxvl import config as cfg
from jaxvl.reproduce.command import Options
from jaxvl.reproduce.jobs import load_config
from jaxvl.reproduce.tables import Column, Data, Kept, Row, Table, chain

CONFIG = """
from jaxvl import config as C

def get_config(arg=None):
    def stage(**values):
        shared = dict(init_from=None, teacher=None, model={}, train=dict(name="fake", size=8), val=None, rate=0.1)
        return {**shared, **values}
    order = ("first", "teacher", "pretrain", "vqa")
    stages = dict(
        first=stage(model=dict(name="other")), teacher=stage(init_from="first", model=dict(name="other")),
        pretrain=stage(teacher=dict(stage="first", params=None)),
        vqa=stage(init_from="pretrain", teacher=dict(stage="teacher", params=None)),
    )
    config = C.base(text=dict(vocab="scenes"), model=dict(name="own", width=4, order="pre"), stages=stages, report=())
    plain = C.under(("pretrain", "vqa"), {"teacher": None})
    ablations = {"post": {"model.order": "post"}, "plain": plain, "fast": {"stages.vqa.rate": 1.0}}
    scales = {"small": {}, "tiny": {"model.width": 2}}
    return C.build(config, arg, order=order, variants={}, ablations=ablations, scales=scales)
"""
VQA = Column("vqa", "VQA accuracy", "vqa", "vqa/accuracy", ("VQAv2",))
TABLE = Table(
    name="test/1",
    title="Orders",
    source="nowhere",
    columns=(VQA,),
    rows=(
        Row("pre", (70.0,)),
        Row("fast", (65.0,), "fast"),
        Row("post", (60.0,), "post"),
        Row("other", (50.0,), None, note="not implemented"),
    ),
    data={"scenes": Data("a fake world", "configs/fake.py"), "photos": Data("photos", "configs/gone.py")},
    claims=chain("pre", "post"),
    kept=(Kept("post", "pre", (85.7,)),),
)
SCORES = {"pre": 60.0, "post": 55.0}


def repository(root: Path) -> Path:
    """A folder with all that the command reads of a repository."""
    for path, text in (("configs/fake.py", CONFIG), ("jaxvl/a.py", "x = 1\n"), ("launch/main.py", "")):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def options(root: Path, **values: object) -> Options:
    """Two seeds in `root/w`, unless said otherwise."""
    return Options(**{**dict(workdir=root / "w", root=repository(root), seeds=(0, 1)), **values})


class FakeRuns:
    """Runs as `runner.execute`: reads the command as launch/main.py would and leaves what a run leaves.

    `fails` are names of stages that end with an error, `kill_at` is the number of the run in which all is killed.
    """

    def __init__(self, root: Path, *, fails: tuple[str, ...] = (), kill_at: int | None = None):
        self.root, self.fails, self.kill_at = root, fails, kill_at
        self.seen: list[tuple[str, int]] = []

    def __call__(self, argv, log, lock, watch):
        flags = dict(part.removeprefix("--").split("=", 1) for part in argv[2:])
        file, arg = flags.pop("config").split(":")
        workdir = Path(flags.pop("workdir"))
        config = load_config(self.root, str(Path(file).relative_to(self.root)), arg)
        cfg.override(config, {k.removeprefix("config."): cfg.literal(v) for k, v in flags.items()})
        (stage,) = config.run
        self.seen.append((stage, config.seed))
        if len(self.seen) == self.kill_at:
            raise KeyboardInterrupt
        if stage in self.fails:
            log.write_text(f"ValueError: {stage} cannot be\n(set JAXVL_TRACEBACK=1 for the traceback)\n")
            return 2
        for needed in (config.stages[stage].init_from, (config.stages[stage].teacher or {}).get("params")):
            assert needed is None or Path(needed).suffix == ".safetensors", needed
        cfg.save(config, workdir / "config.json")
        done = workdir / stage / "checkpoints/5/meta.json"
        done.parent.mkdir(parents=True)
        done.write_text("{}")
        metrics = {"vqa/accuracy": SCORES[config.model.order] + config.seed + config.stages.vqa.rate}
        (workdir / stage / "result.json").write_text(
            json.dumps({"steps": 5, "seconds": 2.5, "metrics": metrics})
        )
        return 0
