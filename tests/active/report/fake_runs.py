"""Runs as a report reads them, made up: accuracies, picks and reasons follow from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

KINDS = ("yes/no", "number", "other")
ANSWERS = {
    "yes/no": ("yes", "no"),
    "number": tuple("012345"),
    "other": ("red", "blue", "a cat", "dog", "wood", "sky"),
}


class Event(NamedTuple):
    data: Mapping[str, Any]


def record(image_id: int, k: int, rng: np.random.Generator, kind: str | None = None) -> dict[str, Any]:
    """A question with ten answers."""
    kind = kind or str(rng.choice(KINDS, p=(0.38, 0.12, 0.5)))
    first = ANSWERS[kind][int(rng.integers(len(ANSWERS[kind])) * rng.random())]
    other = str(rng.choice(ANSWERS[kind]))
    return {
        "image": f"{image_id}.jpg", "image_id": image_id, "question": f"What {kind} is at {int(rng.integers(40))}?",
        "question_id": image_id * 1000 + k, "answers": [first] * 8 + [other] * 2, "answer_type": kind,
    }  # fmt: skip


def contributors(rng: np.random.Generator, n: int = 5) -> list[dict[str, Any]]:
    """Reasons of a pick, most valuable first."""
    asked = (
        "What color is the ball?",
        "Is it raining?",
        "How many chairs are there?",
        "Is the man standing?",
        "Who is it?",
    )
    rows = [
        {
            "pattern_id": f"{i:012x}", "question": asked[i % 5], "type": KINDS[i % 3],
            "match": float(rng.uniform(0.5, 1)),
            "uncertainty": float(rng.uniform(0.3, 0.95)), "p_max": float(rng.uniform(0.1, 0.6)), "answer": "red",
            "rate": float(rng.uniform(0.5, 1)),
        }
        for i in range(n)
    ]  # fmt: skip
    return sorted(rows, key=lambda c: -c["uncertainty"] * c["rate"])


class FakeRun:
    """A run over a pool of `size` images of which each round labels `step`; ids 0 ... size - 1."""

    def __init__(
        self, method: str, repeat: int, *, gain: float = 0.0, rounds: int = 5, size: int = 500, step: int = 20,
        root: Path | None = None, noise: float = 0.3, per_image: int = 3, reasons: bool = False, **protocol: Any,
    ):  # fmt: skip
        self.method, self.repeat, self.root, self.reasons = method, repeat, root, reasons
        self.full: Path | None = None
        self.options: dict[str, Any] = {"strategy.class": method}
        self.size, self.step = size, step
        self.protocol = {
            "pool": "abc",
            "variant": "official",
            "proposer": "bank_random/8",
            "init_of": repeat,
            **protocol,
        }
        common, own = np.random.default_rng(repeat), np.random.default_rng([repeat, *method.encode()])
        start = common.choice(size, step, replace=False)
        rest = own.permutation(np.setdiff1d(np.arange(size), start))
        self._ids = [*map(int, start), *map(int, rest[: step * (rounds - 1)])]
        self._questions = {
            r: [record(i, k, own if r else common) for i in self._new(r) for k in range(per_image)]
            for r in range(rounds)
        }
        self.rounds = []
        for r in range(rounds):
            rng = common if r == 0 else own
            base = 48 + 12 * (1 - (r + 1) ** -0.7) + (gain if r else 0.0)
            acc = {
                k: float(base + d + noise * rng.normal())
                for k, d in zip(("overall", *KINDS), (0, 16, -14, -8), strict=True)
            }
            labelled = sum(len(self._questions[i]) for i in range(r + 1))
            self.rounds.append({
                "round": r, "fraction": (r + 1) * step / size, "n_images": (r + 1) * step, "n_qas": labelled,
                "n_answers": 10 * labelled, "cost": {"total": float((r + 1) * step)}, "acc": acc,
                "seeds": {"master": 0}, **({"approximate": ["k_max=16"]} if reasons else {}),
            })  # fmt: skip
            if root is not None:
                self._write(r, acc["overall"] / 100, rng)

    def _new(self, r: int) -> list[int]:
        return self._ids[r * self.step : (r + 1) * self.step]

    def _write(self, r: int, accuracy: float, rng: np.random.Generator) -> None:
        folder = self.folder(r)
        folder.mkdir(parents=True, exist_ok=True)
        image = np.repeat(np.arange(200), 3)
        np.savez(
            folder / "evaluation.npz", value=(rng.random(600) < accuracy).astype(np.float32),
            question_id=np.arange(600), image_id=image, kind=np.zeros(600, np.int8),
        )  # fmt: skip
        if self.reasons:
            count = rng.integers(1, 40, self.size)
            score = count * 0.4 + rng.normal(size=self.size)
            np.savez(folder / "scores.npz", ids=np.arange(self.size), rows=np.argsort(-score)[: self.step], score=score,
                     **{"note/n_match": count})  # fmt: skip

    def folder(self, round: int) -> Path:
        return (self.root or Path("/none")) / self.method / f"r{self.repeat}" / f"round_{round:03d}"

    def labelled(self, round: int | None = None) -> list[int]:
        return self._ids if round is None else self._ids[: (round + 1) * self.step]

    def questions(self, round: int) -> list[dict[str, Any]]:
        return self._questions.get(round + 1, [])

    def selection(self, round: int) -> list[dict[str, Any]]:
        rng = np.random.default_rng(round)
        rows = []
        for rank, image_id in enumerate(self._new(round + 1), start=1):
            row: dict[str, Any] = {"rank": rank, "image_id": image_id, "score": 20.0 - rank}
            rows.append({**row, "n_match": 30, "contributors": contributors(rng)} if self.reasons else row)
        return rows

    def events(self, round: int) -> dict[str, Event]:
        held = {"balanced_accuracy": 0.61 + 0.1 * round, "balanced_accuracy_text": 0.6, "ece": 0.25}
        doubts = [f"{0.015 + 0.001 * self.repeat:+.3f}: it carries no visual evidence"] if round == 0 else []
        vqme = {"hit": False, "result": {"held_out": held}, "warnings": doubts}
        models = {"vqme": vqme, "vaue": {"hit": False, "result": {}}} if self.reasons else {}
        return {
            "TRAINED": Event({"seconds": 120.0, "model": {"hit": round == 0}}), "EVALUATED": Event({"seconds": 9.5}),
            "FITTED": Event({"seconds": 60.0, "models": models}),
            "SCORED": Event({"seconds": 4.0, "strategy_seconds": 3.4}), "EXPORTED": Event({"seconds": 0.0}),
        }  # fmt: skip


def study(
    root: Path | None = None, *, methods: Mapping[str, float], repeats: int = 5, **kwargs: Any
) -> list[FakeRun]:
    """Runs of methods with these gains over random."""
    return [
        FakeRun(m, r, gain=g, root=root, reasons=m.startswith("ccrl"), **kwargs)
        for m, g in methods.items()
        for r in range(repeats)
    ]
