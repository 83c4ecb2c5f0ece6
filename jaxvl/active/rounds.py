"""One run: a method and a repeat, round by round. Every phase is an event; what is done is never done again.

    TRAINED -> EVALUATED -> FITTED -> SCORED -> SELECTED -> EXPORTED -> IMPORTED -> COMMITTED -> the next round

Files are written first, then the event with their checksums: a run that is killed anywhere goes on at the first missing
event and selects the same images. Specification: sections 1.4, 7.1 and 11.1.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvl.active import balance, evaluation, matching, people, vocabulary
from jaxvl.active.bank import KINDS, Bank, build_bank, propose
from jaxvl.active.folder import (
    FINISHED,
    INITIAL,
    LABELS,
    METRICS,
    SCORES,
    SELECTION,
    RunError,
    digest_of,
    plain_record,
)
from jaxvl.active.pool import Candidates, Labelled
from jaxvl.active.proposers import PROPOSERS, About, Asked
from jaxvl.active.protocol import begin, proposer_of
from jaxvl.active.seeds import generator, seed_of
from jaxvl.active.selecting import check_selection, save_npz, score_summary, selection_rows
from jaxvl.active.strategies.base import Strategy
from jaxvl.active.world import SAMPLER, TASK, World
from jaxvl.atomic import sha256, write_file, write_json, write_jsonl
from jaxvl.data.region_source import RegionImages
from jaxvl.types import PyTree, Rows, Source

SHARDS = "scoring"  # folder of a round for what an engine has scored so far
COUNT = 0.95  # rank correlation of score and match count above which a score is reported to be a count


class Outcome(NamedTuple):
    """Where a run stands when it stops: "finished", "waiting" (for people), or "paused" (as asked); and why."""

    state: str
    why: str


class Run:
    """Drives one run in its folder. Use as a context: it holds the run's lock.

    Args:
      world: what all runs of a config share.
      method: key of `world.strategies`.
      repeat: repeats share nothing but the data; methods of one repeat share the initial images and all seeds of the
        task model.
      folder: the run's; made if it is not there.
      say: takes a line for each phase.
    """

    def __init__(
        self, world: World, *, method: str, repeat: int, folder: Path, say: Callable[[str], None] = print
    ):
        self.base, self.method, self.repeat, self.say = world, method, repeat, say
        self.world = world  # with the words and answers of the present round
        self._entered: int | None = None
        self.folder = begin(world, method, repeat, folder)
        self.ledger = self.folder.ledger
        self.strategy: Strategy = world.strategies[method]
        self.params: dict[str, PyTree] = {}
        self.keys: dict[str, str] = {}
        self.needs = world.options.needs(self.strategy)
        self._pool: tuple[Labelled, Candidates] | None = None
        self.started = time.monotonic()

    def __enter__(self) -> Run:
        self.ledger.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.ledger.close()

    # ---- the machine --------------------------------------------------------------------------------------

    def advance(self, *, rounds: int | None = None, until: str | None = None) -> Outcome:
        """Go on until the budget is spent, people are needed, `rounds` more are committed, or phase `until` is done."""
        committed = 0
        while True:
            round, phase = self.folder.position()
            if phase is None:
                return Outcome(
                    "finished", str((self.ledger.last(FINISHED) or self.ledger.events[-1]).data["why"])
                )
            if phase == "IMPORTED" and not self.world.simulated:
                lacking = people.lacking(self.folder, round, self.world.options.min_fraction)
                if lacking:
                    return Outcome("waiting", lacking)
            self._enter(round, note=phase == "TRAINED")
            why = self._over(round) if phase == "FITTED" else None
            if why is not None:
                self.ledger.append(FINISHED, round=round, why=why)
                continue
            started = time.monotonic()
            data = getattr(self, f"_{phase.lower()}")(round)
            files = {name: sha256(self.folder.folder(round) / name) for name in data.pop("files", ())}
            seconds = round_time(time.monotonic() - started)
            self.ledger.append(phase, **{"round": round, "seconds": seconds, "files": files, **data})
            committed += phase == "COMMITTED" and round != INITIAL
            if (rounds is not None and committed >= rounds) or phase == until:
                return Outcome("paused", f"round {round}: {phase}")

    def _enter(self, round: int, *, note: bool = False) -> None:
        """Have the words and answers of a round, if rounds differ in them; `note`: the ledger may be written."""
        scope = self.base.options.vocabulary
        if not scope.changes or round in (INITIAL, self._entered):
            return
        records, base = self.folder.records(round), self.base
        share: dict[str, Any] = {
            "fraction": len(self.folder.labelled(round)) / len(base.oracle.ids),
            "min_count": scope.min_count,
        }
        words = base.words if scope.words == "all" else base.make_words(r["question"] for r in records)
        answers = base.answers
        if scope.answers == "strict":
            answers = vocabulary.frequent(records, **share)
        if scope.grow:
            events = [e.data for e in self.ledger.valid() if e.kind == vocabulary.GREW]
            answers = [*answers, *(a for e in events if e["round"] <= round for a in e["answers"])]
            if note and all(e["round"] != round for e in events):
                new = vocabulary.grown(records, answers, **share)
                if new:
                    self.ledger.append(vocabulary.GREW, round=round, answers=new)
                    self._tell(round, f"{len(new)} new answers: {', '.join(new[:5])}")
                    answers = [*answers, *new]
        if (words.vocab, answers) != (self.world.words.vocab, self.world.answers):
            assert base.rebuild is not None
            self.world = base.rebuild(words, answers)
            self.params, self.keys = {}, {}
        self._entered = round

    def _over(self, round: int) -> str | None:
        """Why no more images are bought after this round's evaluation."""
        counts = self.world.counts
        if round + 1 >= len(counts):
            return f"budget of {counts[-1]} images reached"
        metrics = self.folder.rounds
        curve = [m["acc"]["overall"] for m in metrics]
        return self.world.options.stop.reason(
            curve, cost=metrics[-1]["cost"]["total"], seconds=time.monotonic() - self.started
        )

    # ---- phases -------------------------------------------------------------------------------------------

    def _trained(self, round: int) -> dict[str, Any]:
        start = None  # from scratch, unless the model of the round before is to be trained on
        if self.world.options.warm_start and round > 0:
            start = self.folder.events(round - 1)["TRAINED"].data["model"]["key"]
        data = {} if start is None else {"start": start}
        fitted = self._fit(TASK, self.labelled(round).questions, round, data=data, start=start)
        kept = "kept" if fitted["hit"] else f"{fitted['result']['seconds']:.1f} s"
        self._tell(round, f"task model on {len(self.labelled(round))} images: {kept}")
        return {"model": fitted}

    def _evaluated(self, round: int) -> dict[str, Any]:
        world, labelled = self.world, self.labelled(round)
        path = self.folder.folder(round)
        self._load(TASK, round)
        kept = world.fitter.folder / f"{TASK}-{self.keys[TASK]}" / f"evaluation-{world.data_key['val']}.npz"
        if not kept.exists():  # one model is scored once, whoever shares it
            scored = evaluation.score(
                functools.partial(self.predict, f"{TASK}/answer"),
                world.val,
                world.answers,
                variant=world.options.variant,
            )
            write_file(kept, lambda p: scored.save(p))
        scored = evaluation.Scored.load(kept)
        write_file(path / "evaluation.npz", lambda p: scored.save(p))
        records = labelled.records
        result = self._result(TASK, round)
        accuracy, before = scored.accuracy(), self.folder.rounds
        metrics: dict[str, Any] = {
            "schema": "jaxvl.round/1",
            "round": round,
            "fraction": len(labelled) / len(world.oracle.ids),
            "n_images": len(labelled),
            "n_qas": len(records),
            "n_answers": sum(len(r["answers"]) for r in records),
            "cost": self._cost(records, len(labelled)),
            "acc": accuracy,
            "train": {TASK: result},
            "balance": balance.summary(labelled.shares.counts, KINDS),
            "seeds": {"master": world.seed, "task": self._seed(TASK, round)},
            "proposer": proposer_of(world.options),
            "vocabulary": vocabulary.summary(
                records,
                world.words.vocab,
                world.answers,
                before=before[-1].get("vocabulary") if before else None,
            ),
        }
        write_json(path / METRICS, metrics)
        self._tell(round, f"accuracy {metrics['acc']['overall']:.2f}")
        return {"files": (METRICS, "evaluation.npz"), "accuracy": metrics["acc"]["overall"]}

    def _fitted(self, round: int) -> dict[str, Any]:
        self._load(TASK, round)
        self.keys = {TASK: self.keys[TASK]}  # keys of models must not tell whether a run was resumed
        models = {}
        for stage in self.needs:
            source = self._rows(stage, round)
            shared = stage not in self.strategy.needs or type(self.strategy).data is Strategy.data
            data = {} if shared else self._dependent()
            models[stage] = self._fit(stage, source, round, data=data)
            kept = "kept" if models[stage]["hit"] else f"{models[stage]['result']['seconds']:.1f} s"
            held = models[stage]["result"].get("held_out", {})
            if "balanced_accuracy" in held:
                kept += f", balanced accuracy {held['balanced_accuracy']:.2f} on held-out images"
            self._tell(round, f"{stage}: {kept}")
            doubt = matching.warning(held["match_rate"]) if "match_rate" in held else None
            if doubt is not None:
                self._tell(round, f"{stage}: {doubt}")
        return {"models": models}

    def _scored(self, round: int) -> dict[str, Any]:
        self._load_all(round)
        pool, wanted = self.pool(round), self._wanted(round)
        reserve = 0 if self.world.simulated else int(np.ceil(self.world.options.reserve * wanted))
        budget = min(wanted + reserve, len(pool))
        started = time.monotonic()
        found = self.strategy(self.ask, pool, self.labelled(round), budget, self._rng(round, "select"))
        check_selection(found, pool, budget, self.method)
        path = self.folder.folder(round) / SCORES
        arrays = {f"note/{k}": np.asarray(v) for k, v in found.notes.items()}
        score = np.zeros(0) if found.score is None else np.asarray(found.score, np.float64)
        write_file(path, lambda p: save_npz(p, ids=pool.ids, rows=found.rows, score=score, **arrays))
        shutil.rmtree(self.folder.folder(round) / SHARDS, ignore_errors=True)
        summary = score_summary(found)
        if summary.get("spearman_n_match", 0.0) > COUNT:
            self._tell(
                round,
                f"the score is nearly a count of matches (rank correlation {summary['spearman_n_match']:.2f})",
            )
        seconds = round_time(time.monotonic() - started)
        return {"files": (SCORES,), "strategy_seconds": seconds, "wanted": wanted, "score": summary}

    def _selected(self, round: int) -> dict[str, Any]:
        path = self.folder.folder(round)
        rows: list[dict[str, Any]]
        if round == INITIAL:
            rng = generator(self.world.seed, self._repeat_of_init(), "initial pool")
            ids = np.sort(rng.choice(self.world.oracle.ids, self.world.counts[0], replace=False))
            rows = [{"rank": n, "image_id": int(i), "score": None} for n, i in enumerate(ids, start=1)]
        else:
            wanted = self.folder.events(round)["SCORED"].data["wanted"]
            with np.load(path / SCORES) as scores:
                rows = selection_rows(scores, wanted, self.bank(round), self.world.answers)
        write_jsonl(path / SELECTION, rows)
        return {"files": (SELECTION,), "images": len(rows), "sha": digest_of(r["image_id"] for r in rows)}

    def _exported(self, round: int) -> dict[str, Any]:
        if self.world.simulated:
            return {}
        where = people.export(self.folder, round, self.world)
        self._tell(round, f"a batch for people is in {where}")
        return {"batch": str(where.relative_to(self.folder.path))}

    def _imported(self, round: int) -> dict[str, Any]:
        path = self.folder.folder(round)
        path.mkdir(parents=True, exist_ok=True)
        if self.world.simulated:
            self.world.oracle.restore(self.folder.labelled(round))
            ids = [row["image_id"] for row in self.folder.selection(round) if not row.get("reserve")]
            records = self.world.oracle.label(ids, selected=set(ids))
            taken = people.Taken([plain_record(r) for r in records], ids, [])
        else:
            taken = people.taken(self.folder, round)
        write_jsonl(path / LABELS, taken.records)
        return {
            "files": (LABELS,),
            "ids": [int(i) for i in taken.ids],
            "excluded": [int(i) for i in taken.excluded],
        }

    def _committed(self, round: int) -> dict[str, Any]:
        imported = self.folder.events(round)["IMPORTED"].data
        data = {"ids": imported["ids"], "excluded": imported["excluded"]}
        if round == INITIAL:
            return data
        self._tell(round, f"{len(data['ids'])} images labelled")
        return data

    def preview(self, ids: Sequence[int]) -> tuple[int, list[dict[str, Any]]]:
        """(round, lines as of `selection.jsonl`) for any images, by the newest round whose models are there.

        Nothing is written. Every image gets a line, best first.

        Raises:
          RunError: no round has models yet, or an image has no features.
        """
        fitted = [r for r in range(self.folder.last_round() + 1) if "FITTED" in self.folder.events(r)]
        if not fitted:
            raise RunError(f"{self.folder.path}: no round has trained its samplers yet; run one first")
        strange = [i for i in ids if not self.world.provider.has(int(i))]
        if strange:
            raise RunError(f"image {strange[0]} has no region features in this run's data")
        round = fitted[-1]
        self._enter(round)
        self._load_all(round)
        labelled = self.labelled(round)
        pool = self._candidates(np.array(sorted(set(ids)), np.int64), round)
        found = self.strategy(self.ask, pool, labelled, len(pool), self._rng(round, "preview"))
        arrays = {f"note/{k}": np.asarray(v) for k, v in found.notes.items()}
        score = np.zeros(0) if found.score is None else np.asarray(found.score)
        scores = {"ids": pool.ids, "rows": np.asarray(found.rows), "score": score, **arrays}
        return round, selection_rows(scores, len(pool), labelled.bank, self.world.answers)

    # ---- what phases work with ------------------------------------------------------------------------------

    def predict(self, name: str, source: Source) -> Rows:
        """Rows of `<stage>/<predictor>` on a source, or of an engine, by the models of the present round."""
        engine = self.world.engines.get(name)
        if engine is not None:
            return engine(self.params, source)
        stage, _, predictor = name.partition("/")
        if stage not in self.params:
            raise KeyError(
                f"predict({name!r}): no model {stage!r} in this round; there are {', '.join(self.params)}"
            )
        return self.world.fitter.stages[stage].trainer.predict(self.params[stage], predictor, source)

    def ask(self, name: str, source: Source) -> Rows:
        """`predict` as the strategy has it: "task" is its own model if the scored one is not shared (A16)."""
        if SAMPLER in self.needs and name.startswith(f"{TASK}/"):
            name = f"{SAMPLER}/{name.partition('/')[2]}"
        return self.predict(name, source)

    @functools.lru_cache(maxsize=1)  # noqa: B019  a run lives as long as its command
    def labelled(self, round: int) -> Labelled:
        """The labelled images at the start of a round, with their questions."""
        ids = np.array(sorted(self.folder.labelled(round)), np.int64)
        return self.world.labelled(ids, self.folder.records(round), self.bank_of)

    def bank_of(self, records: Sequence[Mapping[str, Any]]) -> Bank:
        """The question bank of these records; its randomness is the repeat's, so methods with equal sets share it."""
        rng = generator(self.world.seed, self.repeat, digest_of(r["question_id"] for r in records), "bank")
        return build_bank(records, self.world.words, rng=rng, **self.world.options.bank)

    def bank(self, round: int) -> Bank:
        """The question bank of a round."""
        return self.labelled(round).bank

    def pool(self, round: int) -> Candidates:
        """The unlabelled images of a round, with the questions that are asked of them."""
        labelled = self.labelled(round)
        if self._pool is not None and self._pool[0] is labelled:
            return self._pool[1]
        taken = {*self.folder.labelled(round), *self.folder.excluded()}
        ids = np.array([i for i in self.world.oracle.ids.tolist() if i not in taken], np.int64)
        cache = self.folder.folder(round) / SHARDS  # a pass over a large pool goes on where it was killed
        self._pool = labelled, self._candidates(ids, round, cache=cache)
        return self._pool[1]

    def _candidates(self, ids: np.ndarray, round: int, *, cache: Path | None = None) -> Candidates:
        labelled, options = self.labelled(round), self.world.options
        about = About(
            labelled.bank, self.asked(round), options.asked, labelled.records, self.predict,
            self.world.oracle.questions, self.world.words,
        )  # fmt: skip
        # Where nobody reads what is asked, the cheapest questions do.
        ask = PROPOSERS[options.proposer if self.strategy.asks else "bank_random"]

        def asked(images: RegionImages) -> Asked:
            return ask(images, about)

        return self.world.candidates(ids, labelled, asked, cache=cache)

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def asked(self, round: int) -> np.ndarray:
        """Positions in the bank of the patterns that "bank_random" asks of every image (A17): common to methods, if
        they are at equal labelled sets."""
        labelled = self.labelled(round)
        kinds = Counter(r["answer_type"] for r in labelled.records)
        rng = generator(self.world.seed, self.repeat, round, "proposer")
        return propose(
            labelled.bank, np.array([kinds[k] for k in KINDS]), count=self.world.options.asked, rng=rng
        )

    # ---- models ---------------------------------------------------------------------------------------------

    def _fit(
        self, stage: str, source: Source, round: int, *, data: Mapping[str, Any], start: str | None = None
    ) -> dict[str, Any]:
        fitted = self.world.fitter.fit(
            stage,
            source,
            seed=self._seed(stage, round),
            data=self._data(round, data),
            title=self._title(round, stage),
            **({} if start is None else {"start": start}),
        )
        self.params[stage], self.keys[stage] = fitted.params, fitted.key
        return {"key": fitted.key, "hit": fitted.hit, "result": dict(fitted.result)}

    def _load(self, stage: str, round: int) -> None:
        """Have the model of a finished phase at hand, also in a new process."""
        event = self.folder.events(round)
        known = event["TRAINED"].data["model"] if stage == TASK else event["FITTED"].data["models"][stage]
        if self.keys.get(stage) != known["key"]:
            source: Source = self.labelled(round).questions
            if stage != TASK:
                source = self._rows(stage, round)
            self.params[stage] = self.world.fitter.load(stage, known["key"], source)
            self.keys[stage] = known["key"]

    def _load_all(self, round: int) -> None:
        for stage in (TASK, *self.needs):
            self._load(stage, round)

    def _rows(self, stage: str, round: int) -> Source:
        """Training rows of a sampler stage: the strategy's, or the labelled questions for one it did not ask for."""
        labelled = self.labelled(round)
        if stage not in self.strategy.needs:
            return labelled.questions
        return self.strategy.data(
            stage, self.ask, self.pool(round), labelled, self._rng(round, stage, "data")
        )

    def _result(self, stage: str, round: int) -> dict[str, Any]:
        model = self.folder.events(round)["TRAINED"].data["model"]
        return {**model["result"], "kept": model["hit"], "key": model["key"]}

    def _data(self, round: int, more: Mapping[str, Any]) -> dict[str, Any]:
        return {"labelled": digest_of(self.folder.labelled(round)), **self.world.data_key, **more}

    def _dependent(self) -> dict[str, Any]:
        """What training rows depend on that a strategy makes itself: its options and the models before."""
        return {
            "strategy": repr(self.strategy),
            "models": dict(self.keys),
            "excluded": digest_of(self.folder.excluded()),
        }

    def _seed(self, stage: str, round: int) -> int:
        own = (self.method,) if stage == SAMPLER else ()  # the others are shared where their rows agree
        return seed_of(self.world.seed, self.repeat, *own, round, stage)

    def _rng(self, round: int, *purpose: str) -> np.random.Generator:
        return generator(self.world.seed, self.repeat, self.method, round, *purpose)

    # ---- small things ---------------------------------------------------------------------------------------

    def _repeat_of_init(self) -> int:
        return 0 if self.world.options.shared_init else self.repeat

    def _wanted(self, round: int) -> int:
        have = len(self.folder.labelled(round))
        return max(1, self.world.counts[round + 1] - have)

    def _cost(self, records: Sequence[Mapping[str, Any]], images: int) -> dict[str, float]:
        seconds = sum(float(r.get("seconds") or 0.0) for r in records)
        total = self.world.options.cost.of(records, images=images, seconds=seconds)
        return {"total": total, "images": images, "questions": len(records), "seconds": seconds}

    def _title(self, round: int, what: str) -> str:
        return f"{self.method} {self.repeat} round {round} {what}"

    def _tell(self, round: int, text: str) -> None:
        name = "initial" if round == INITIAL else f"round {round}"
        self.say(f"{self.method}  repeat {self.repeat}  {name}  {text}")


def round_time(seconds: float) -> float:
    """Seconds to the millisecond."""
    return float(f"{seconds:.3f}")
