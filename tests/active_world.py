"""A small pool of the embedded world for tests of rounds, with a fitter that trains nothing."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.active.bank import KINDS
from jaxvl.active.budget import targets
from jaxvl.active.fitting import Fitted
from jaxvl.active.items import UNITS, Questions
from jaxvl.active.oracle import Oracle, records_of
from jaxvl.active.strategies.classics import Entropy, Random
from jaxvl.active.world import Options, World
from jaxvl.data import scenes
from jaxvl.data.region_source import RegionQuestions
from jaxvl.data.scenes.pool import ScenePool
from jaxvl.data.scenes.regions import SceneRegions
from jaxvl.data.words import Words


class FakeTrainer:
    """Predictions that are a hash of the model and the row."""

    def __init__(self, answers: int):
        self.answers = answers

    def predict(self, params: str, name: str, source: Any) -> Any:
        seeds = [hashlib.sha256(f"{params}{name}{i}".encode()).digest() for i in self._ids(source)]
        values = np.array([int.from_bytes(s[:4], "big") / 2**32 for s in seeds])
        if name == "answer":
            return {"index": (values[:, None] * self.answers).astype(np.int32)}
        return values[:, None] if name == "vision" else values

    def _ids(self, source: Any) -> list[int]:
        return [int(i) for i in getattr(source, "ids", range(len(source)))]


class FakeStage:
    def __init__(self, trainer: FakeTrainer, section: str = ""):
        self.trainer, self.section = trainer, section


class FakeFitter:
    """A fitter whose models are the hash of what they depend on, kept as files like real ones."""

    def __init__(self, folder: Path, answers: int, section: str = ""):
        self.section = section
        self.folder, self.stages = folder, {"task": FakeStage(FakeTrainer(answers), section)}
        self.fits: list[str] = []
        self.starts: list[str | None] = []

    def key(self, name: str, *, seed: int, data: Any) -> str:
        text = json.dumps([self.section, name, seed, data], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fit(
        self,
        name: str,
        source: Any,
        *,
        seed: int,
        data: Any,
        title: str = "",
        start: str | None = None,
        each_epoch: Any = None,
    ) -> Fitted:
        self.starts.append(start)
        key = self.key(name, seed=seed, data=data)
        path = self.folder / f"{name}-{key}" / "result.json"
        hit = path.exists()
        if not hit:
            path.parent.mkdir(parents=True)
            path.write_text("{}")
            self.fits.append(key)
            for number in (1, 2) if each_epoch is not None else ():
                predict = functools.partial(self.stages[name].trainer.predict, f"{key}{number}")
                each_epoch(path.parent, number, predict)
        return Fitted(key, key, hit, {"seconds": 0.0, "steps": 1})

    def load(self, name: str, key: str) -> str:
        if not (self.folder / f"{name}-{key}" / "result.json").exists():
            raise FileNotFoundError(key)
        return key


def world(
    folder: Path, *, images: int = 50, budget: float = 0.5, unit: str = "image", **kwargs: Any
) -> World:
    """`images` scenes with two questions each, an eighth labelled at first, steps of an eighth."""
    pool, val = ScenePool("train", images=images, questions=2), ScenePool("val", images=6, questions=2)
    records, held = records_of(pool), records_of(val)
    words = Words.build(r["question"] for r in [*records, *held])
    answers = kwargs.pop("answers", scenes.answers())
    provider = SceneRegions(regions=6, width=8)
    records = kwargs.pop("wrap", list)(records)
    oracle = Oracle(records, unit=UNITS[unit])
    options = {k: kwargs.pop(k) for k in list(kwargs) if k in Options.__dataclass_fields__}
    made = World(
        seed=kwargs.pop("seed", 0), oracle=oracle, provider=provider, words=words, answers=answers,
        questions=Questions(records) if unit == "qa" else None,
        counts=targets(len(oracle.ids), init=0.125, step=0.125, budget=budget),
        val=RegionQuestions(provider, held, words, answers, kinds=KINDS),
        fitter=FakeFitter(folder / "models", len(answers)),
        strategies={"random": Random(), "entropy": Entropy()},
        data_key={"pool": "p", "val": "v", "regions": "r", "annotations": "a"},
        options=Options(asked=4, **options), picture=provider.picture, **kwargs,
    )  # fmt: skip

    def rebuild(words: Words, answers: list[str]) -> World:
        val = RegionQuestions(provider, held, words, answers, kinds=KINDS)
        fitter = FakeFitter(made.fitter.folder, len(answers), section=f"{words.digest}{answers}")
        fitter.fits = made.fitter.fits
        return replace(made, words=words, answers=answers, val=val, fitter=fitter)

    made.make_words, made.rebuild = Words.build, rebuild
    return made
