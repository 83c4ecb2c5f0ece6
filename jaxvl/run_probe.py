"""Linear probes from a config of active learning: which features there are, and a result file for each row and seed.

    <root>/probe/ccrl-s0.json     accuracy, the chosen rate, what it is a function of; written last, so it counts
    <root>/models/                fits, as of rounds

The evaluation questions are the config's `active.val`; training questions are all of its pool. Specification 9.2.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxvl import build_active, optim
from jaxvl import config as cfg
from jaxvl.active import probe_features
from jaxvl.active.bank import KINDS
from jaxvl.active.fitting import Fitter, Stage
from jaxvl.active.probe import Features, ProbeOptions, ProbeRows, Scale, probe, stage_name
from jaxvl.active.seeds import seed_of
from jaxvl.atomic import read_json, sha256, write_json
from jaxvl.config import ConfigError, plain, unknown
from jaxvl.data.region_source import RegionQuestions
from jaxvl.models.linear_probe import LinearProbe
from jaxvl.sharding import Partition
from jaxvl.tasks.linear_probe import LinearProbeTask
from jaxvl.train import Trainer

FOLDER, SCHEMA, MATCHER = "probe", "jaxvl.probe/1", "vqme"


class Sides(NamedTuple):
    """Where a row's features come from: `image` is MATCHER, "regions", the key of a file, or None; `text` too."""

    image: str | None
    text: str


ROWS: Mapping[str, Sides] = {
    "ccrl": Sides(MATCHER, MATCHER),
    "fr_g": Sides("regions", "words"),
    "bottom_up": Sides("bottom_up", "words"),
    "resnet_g": Sides("resnet", "words"),
    "language": Sides(None, "words"),
}
WANTED = {
    "bottom_up": "region features of an attention model trained on captions of COCO, an image a row",
    "resnet": "pool5 of ResNet-152 trained on ImageNet",
}


def path_of(root: Path, row: str, seed: int) -> Path:
    """The result of a row and a seed."""
    return root / FOLDER / f"{row}-s{seed}.json"


def unavailable(root: Path, row: str) -> str:
    """Why there cannot be a result of this row: the file that it needs, or ""."""
    if row not in ROWS:
        raise unknown("row of probes", row, ROWS)
    key = ROWS[row].image
    if key not in WANTED:
        return ""
    path = file_of(root, str(key))
    what = f"{WANTED[str(key)]}: .npz of image_id [K] and features [K,D]"
    return "" if path.exists() else f"not available: needs {path}, {what}"


def file_of(root: Path, key: str) -> Path:
    """A user's file of features, beside the results."""
    return root / FOLDER / f"{key}.npz"


def section(config: ConfigDict) -> ConfigDict:
    """The config's `probe`."""
    if "probe" not in config:
        raise ConfigError("the config has no section 'probe': take configs/ccrl.py of this version")
    return config.probe


class Prober:
    """Everything that rows and seeds share.

    Args:
      config: of active learning, with `probe`.
      root: folder of the results and of the models.

    Raises:
      ConfigError, ValueError, FileNotFoundError: bad input, before any work.
    """

    def __init__(self, config: ConfigDict, root: Path):
        options = plain(section(config))
        try:
            self.options = ProbeOptions(**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.probe: {error}") from error
        if config.active.oracle.name != "simulate" or build_active.protocol_of(config.active) != "val":
            raise ConfigError(
                "probes need the answers of pool and evaluation questions: active.oracle.name=simulate, "
                "active.protocol=val"
            )
        self.config, self.root = config, root
        try:
            self.world = build_active.world(config, root, methods=())
        except FileNotFoundError as error:
            raise FileNotFoundError(build_active.all_missing(config) or str(error)) from error
        world = self.world
        records = world.oracle.everything()
        self.train = RegionQuestions(world.provider, records, world.words, world.answers, kinds=KINDS)
        self.held = world.val
        self.partition = Partition.create(**plain(config.sharding))
        matcher = build_active.stage(
            config, MATCHER, world.words, world.answers, world.provider, self.partition, len(records)
        )
        world.fitter.stages[MATCHER] = matcher
        self._stages: dict[int, dict[str, Stage]] = {}

    @property
    def words(self) -> str:
        """What "G" is: GloVe, or the vectors that stand in for it."""
        glove = self.config.active.words.glove
        return (
            f"GloVe ({glove})" if glove else "no GloVe: a fixed random vector for each word of the questions"
        )

    def result(self, row: str, seed: int, *, note: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The result of a row and a seed, from its file if there is one.

        Args:
          row: of `ROWS`.
          seed: the repeat.
          note: more to write down with it.

        Raises:
          ConfigError: the file is of other options or data; names it.
        """
        path, key = path_of(self.root, row, seed), self.key(row, seed)
        if path.exists():
            found = read_json(path)
            if found.get("key") not in (key, self.key(row, seed, data=self.world.earlier_key)):
                raise ConfigError(
                    f"{path} is of other options, data or files: delete it, or take another folder"
                )
            return found
        started = time.monotonic()
        master = seed_of(self.world.seed, seed, "probe")
        train, held = self.features(row, seed)
        scale = Scale.of(train)
        rows = ProbeRows(self.train, train, scale), ProbeRows(self.held, held, scale)
        fitter = Fitter(self.root / "models", self.stages(train.width))
        probed = probe(
            *rows, fitter=fitter, answers=self.world.answers, options=self.options, seed=master, data=key,
            variant=self.config.active.variant, title=f"{row} {seed}",
        )  # fmt: skip
        out = {
            "schema": SCHEMA, "row": row, "seed": seed, "key": key, "accuracy": probed.accuracy, "lr": probed.lr,
            "tried": {f"{lr:g}": value for lr, value in probed.tried.items()}, "width": train.width,
            "examples": len(self.train), "held": len(self.held), "words": self.words, "model": probed.key,
            "seconds": round(time.monotonic() - started, 1), **(note or {}),
        }  # fmt: skip
        write_json(path, out)
        return out

    def key(self, row: str, seed: int, *, data: Mapping[str, Any] | None = None) -> str:
        """A hash of what a result depends on; `data` says which data that is (default: the world's)."""
        sides, world = ROWS[row], self.world
        facts: dict[str, Any] = {
            "row": row, "seed": seed_of(world.seed, seed, "probe"), "options": repr(self.options),
            "data": data or world.data_key, "words": world.words.digest, "answers": world.answers_key,
        }  # fmt: skip
        if sides.image == MATCHER:
            facts["matcher"] = world.fitter.stages[MATCHER].section
        elif sides.image in WANTED:
            facts["file"] = sha256(file_of(self.root, str(sides.image)))
        return hashlib.sha256(json.dumps([SCHEMA, facts], sort_keys=True, default=str).encode()).hexdigest()[
            :16
        ]

    # ---- features -------------------------------------------------------------------------------------------

    def features(self, row: str, seed: int) -> tuple[Features, Features]:
        """Of the training and of the evaluation questions."""
        sides, found = ROWS[row], []
        if sides.image == MATCHER:
            found = self._matched(seed)
        else:
            for questions in (self.train, self.held):
                found.append(self._plain(sides, questions))
        train, held = (Features(*arrays, fusion=self.options.fusion) for arrays in found)
        return train, held

    def _plain(self, sides: Sides, questions: RegionQuestions) -> tuple[Any, ...]:
        text = probe_features.mean_words(self.world.words, questions.array("text"))
        if sides.image is None:
            return (text,)
        ids, row = np.unique(questions.image_ids, return_inverse=True)
        if sides.image in WANTED:
            image = probe_features.from_file(file_of(self.root, sides.image), ids)
        else:
            image = probe_features.mean_regions(self.world.provider, ids)
        return text, image, row

    def _matched(self, seed: int) -> list[tuple[Any, ...]]:
        """v and s of a matcher that was trained on all training pairs; their answers play no part."""
        world = self.world
        fitted = world.fitter.fit(
            MATCHER, self.train, seed=seed_of(world.seed, seed, "probe", MATCHER),
            data={"labelled": "all", **world.data_key}, title=f"ccrl {seed}, matcher",
        )  # fmt: skip
        trainer, out = world.fitter.stages[MATCHER].trainer, []

        def predict(name: str, source: Any) -> Any:
            return trainer.predict(fitted.params, name, source)

        for questions in (self.train, self.held):
            ids, row = np.unique(questions.image_ids, return_inverse=True)
            image = probe_features.matcher_images(predict, world.provider, ids)
            out.append((probe_features.matcher_texts(predict, questions), image, row))
        return out

    # ---- fits -----------------------------------------------------------------------------------------------

    def stages(self, width: int) -> dict[str, Stage]:
        """A stage for each learning rate; all of one width share a trainer, so its step is compiled once."""
        if width not in self._stages:
            options, world = self.options, self.world
            each = max(1, len(self.train) // options.batch_size)
            most = (options.epochs + 1) * each
            task: Any = LinearProbeTask(LinearProbe(classes=len(world.answers)))
            tx = optim.make_optimizer(
                schedule=optim.Table(most), weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, bounds={}
            )
            trainer = Trainer(
                task, tx, partition=self.partition, seed=world.seed, eval_batch_size=options.batch_size
            )
            self._stages[width] = {
                stage_name(lr): Stage(
                    name=stage_name(lr), trainer=trainer, schedule=dict(name="constant", lr=lr),
                    section=dict(model="linear_probe", width=width, lr=lr, batch_size=options.batch_size,
                                 epochs=options.epochs, classes=len(world.answers)),
                    batch_size=options.batch_size, epochs=options.epochs, most_steps=most,
                    loader={k: v for k, v in plain(self.config.loader).items() if k != "workers"},
                )
                for lr in options.lrs
            }  # fmt: skip
        return self._stages[width]


def fill(
    prober: Prober, rows: Sequence[str], seeds: Sequence[int], *, note: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """The results of rows and seeds, all rows of a seed first; a line for each is printed.

    Rows whose file is not there are said to be missing and left out.
    """
    logging.getLogger("absl").setLevel(logging.WARNING)  # a word for each checkpoint is too much
    missing = {row: unavailable(prober.root, row) for row in rows}
    for row, why in missing.items():
        if why:
            print(f"{row}: {why}", flush=True)
    for seed in seeds:
        for row in (r for r in rows if not missing[r]):
            kept = path_of(prober.root, row, seed).exists()
            found = prober.result(row, seed, note=note)
            values = "  ".join(f"{k} {v:.2f}" for k, v in found["accuracy"].items())
            took = "kept" if kept else f"{found['seconds']:.1f} s"
            print(f"{row}  seed {seed}  {values}  (rate {found['lr']:g}, {took})", flush=True)
            yield found


def begin(config: ConfigDict, root: Path) -> None:
    """Take a folder for this config; its `config.json` says whose it is.

    Raises:
      ConfigError: it was begun with another one.
    """
    path = root / "config.json"
    mine = cfg.to_dict({k: config[k] for k in ("seed", "scale", "active", "stages", "probe", "precision")})
    if path.exists():
        before = json.loads(json.dumps(cfg.to_dict(cfg.load(path))))
        differ = [k for k, v in mine.items() if before.get(k) != json.loads(json.dumps(v))]
        if differ:
            raise ConfigError(
                f"{root} was begun with another config ({', '.join(differ)}): give another --workdir"
            )
        return
    root.mkdir(parents=True, exist_ok=True)
    cfg.save(config, path)
