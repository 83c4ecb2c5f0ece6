"""CCRL's score of every image of a pool: exact, in blocks, sharded, and without ever holding all pairs.

An image's score is the sum, over the patterns that match it, of uncertainty times balance (specification 6.5, 7). All
that depends on one side is computed once for that side: critic and attention inputs of an image, and of a pattern.
What depends on the pair runs in two stages: the critic for all pairs of a block, fused so that its hidden layer is
never an array, then uncertainty for the matched pairs only, packed into chunks of one fixed size. Sums are float64 on
the host, in the order of the pairs, whatever the blocks and devices.

Shape legend: `B` images of a block, `N` images, `Q` patterns (padded to a multiple of 128), `P` pairs of a chunk, `W`
critic width, `C` answers, `T` kept contributors.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvl.active.objects import ObjectWords
from jaxvl.active.pair_programs import programs
from jaxvl.active.report.balance import representative
from jaxvl.active.request import COUNTED, Request, best, collect, matched
from jaxvl.atomic import write_file
from jaxvl.data.loader import evaluation_batches
from jaxvl.models.joint import SharedEncoders
from jaxvl.sharding import Partition
from jaxvl.tasks.match_and_answer import view
from jaxvl.types import PyTree, Source

PAD = 128  # patterns are padded to a multiple: a growing bank compiles at most eight programs up to 1,024
COMPUTE = ("float32", "bfloat16")
SHARD = 32  # blocks between two files of a resumable pass
Blocks = Iterator[dict[str, Any]]


class Pairs(NamedTuple):
    """The `P` pairs of a block that count, by image, then pattern.

    Attributes:
      image, pattern: `[P]`, rows of the block and of the bank.
      values: `f`, `p_max`, `answer`, `rate`, `value` `[P]`.
      strength, mask: `[B,Q]` of all pairs of the block.
    """

    image: np.ndarray
    pattern: np.ndarray
    values: Mapping[str, np.ndarray]
    strength: np.ndarray
    mask: np.ndarray


class PoolScorer:
    """Scores requests with two models: a matcher and an answer model.

    Args:
      matcher: the model of the matching stages (VQME); answers: that of the answer stage (VAUE).
      partition: images of a block are split over its `data` axis, the bank is everywhere.
      block: images of a block; pairs: matched pairs of a chunk.
      answer_stage: key of the answer model's parameters.
      objects: word vectors of what images show, for match="raw_glove".
      prefilter: the model of the stage that a request may have as its `prefilter`.
      compute: dtype of the models here, "float32" or, as an approximation, "bfloat16"; whatever they were trained in.
    """

    def __init__(
        self, matcher: Any, answers: Any, *, partition: Partition, block: int = 256, pairs: int = 2048,
        answer_stage: str = "vaue", objects: ObjectWords | None = None, prefilter: Any = None,
        compute: str = "float32",
    ):  # fmt: skip
        shards = partition.batch_shards
        self.block, self.pairs = -(-block // shards) * shards, -(-pairs // shards) * shards
        self.partition, self.answer_stage = partition, answer_stage
        if compute not in COMPUTE:
            raise ValueError(f"scoring.compute={compute!r}: expected one of {', '.join(COMPUTE)}")
        # as they came, in the precision that they were trained in
        self.trained, self.trained_answers = matcher, answers
        self.matcher, self.answers, self.prefilter = (
            model
            if model is None or model.dtype == jnp.dtype(compute)
            else model.clone(dtype=jnp.dtype(compute))
            for model in (matcher, answers, prefilter)
        )
        self.objects, self.compute = objects, compute
        self.traces: dict[str, int] = {}
        self.programs = programs(
            self.matcher, self.answers, self.prefilter, partition=partition, counted=self._traced
        )

    def __call__(self, params: Mapping[str, PyTree], request: Request) -> dict[str, np.ndarray]:
        """Score every image.

        Returns:
          `score [N]` f64 (NaN where pruning left it out), `n_match [N]` i32, `sum_f [N]`, `sum_rate [N]` f64, and the
          contributors, best first, unused ones -1: `top_pattern`, `top_answer` `[N,T]` i32, `top_match`,
          `top_uncertainty`, `top_p_max`, `top_rate` `[N,T]` f32.
        """
        models, bank = self._begin(params, request)
        if request.match in COUNTED:  # ablation B: only which patterns match differs, not how many
            critic = replace(request, match="critic")
            most = max(1, request.min_k, round(float(self._counts(models, bank, critic).mean())))
            request = replace(request, k_max=most if request.k_max is None else min(most, request.k_max))
        prunes = request.prune is not None and request.agg == "sum" and request.match not in COUNTED
        if prunes and request.budget is not None:
            return self._pruned(models, bank, request)
        return self._scores(models, bank, request)

    def strongest(self, params: Mapping[str, PyTree], request: Request) -> np.ndarray:
        """`[N,K]` i32: the `k_max` patterns that match each image best, best first; fewer if there are no more."""
        if not len(request.images):
            return np.zeros((0, min(request.k_max or 1, len(request.text))), np.int32)
        request = replace(request, uncertainty="one", rates=np.ones((1 + int(max(request.kinds)), 1)))
        models, bank = self._begin({request.stage: params.get(request.stage)}, request)
        found = []
        for block in self._blocks(request.images):
            encoded = self._encoded(models, block)
            strength = self._strength(models, bank, request, encoded, start=block["start"])
            check_finite(strength, request.stage)
            found.append(np.argsort(-strength, axis=1, kind="stable")[block["keep"], : request.k_max])
        return np.concatenate(found).astype(np.int32)

    def _traced(self, program: str) -> None:
        self.traces[program] = self.traces.get(program, 0) + 1

    def detail(self, params: Mapping[str, PyTree], request: Request) -> dict[str, np.ndarray]:
        """Every pair of a pool that is small enough, by the same programs: what an accelerated mode is judged by.

        Returns:
          `strength`, `f` (NaN where the pattern does not count) f32, `counts` bool, all `[N,Q]`, and `score [N]` f64.

        Raises:
          ValueError: a match that counts patterns over the whole pool first.
        """
        if request.match in COUNTED:
            raise ValueError(f"match={request.match!r} has no detail: it takes two passes over the pool")
        models, bank = self._begin(params, request)
        parts: dict[str, list[np.ndarray]] = {"strength": [], "counts": [], "f": [], "score": []}
        for block in self._blocks(request.images):
            found = self._pairs(models, bank, request, block)
            table = np.full(found.strength.shape, np.nan, np.float32)
            table[found.image, found.pattern] = found.values["f"]
            scores = collect(request, found.image, found.pattern, found.values, found.strength)["score"]
            for name, values in zip(parts, (found.strength, found.mask, table, scores), strict=True):
                parts[name].append(values[block["keep"]])
        return {name: np.concatenate(blocks) for name, blocks in parts.items()}

    def _begin(self, params: Mapping[str, PyTree], request: Request) -> tuple[dict[str, PyTree], Any]:
        """The models that a request needs, and its patterns encoded by them."""
        models = {"match": params.get(request.stage), "answer": params.get(self.answer_stage), "filter": None}
        if request.prefilter is not None:
            models["filter"] = params.get(request.prefilter)
        self._check(request, models)
        with self.partition.context():
            return models, self.programs.bank(models, self._padded(request.text))

    def _check(self, request: Request, models: Mapping[str, PyTree]) -> None:
        """Raise ValueError for no images, and for a model that the request needs and the round has not."""
        if not len(request.images):
            raise ValueError("no images to score: every image of the pool is labelled or excluded")
        if request.match == "raw_glove" and self.objects is None:
            raise ValueError("match='raw_glove' needs the word vectors of what images show: give `objects`")
        if request.match != "all" and models["match"] is None:
            raise ValueError(
                f"match={request.match!r} needs the stage {request.stage!r}, which this round has not trained"
            )
        if request.prefilter is not None and (models["filter"] is None or self.prefilter is None):
            raise ValueError(
                f"prefilter needs the stage {request.prefilter!r}, which this round has not trained"
            )
        counts_only = request.uncertainty == "one" and (request.rates == 1).all()
        if models["answer"] is None and (request.match == "similarity" or not counts_only):
            raise ValueError(
                "uncertainty, balance and match='similarity' need the stage "
                f"{self.answer_stage!r}, which this round has not trained"
            )

    # ---- passes -------------------------------------------------------------------------------------------

    def _counts(self, models: Mapping[str, PyTree], bank: Any, request: Request) -> np.ndarray:
        """`[N]` i32: how many patterns match each image."""

        def count(blocks: Blocks) -> Iterator[dict[str, np.ndarray]]:
            yield from ({"n_match": self._count(models, bank, request, block)} for block in blocks)

        order = np.arange(len(request.images))
        return self._shards(models, request, order, count, name="counts")["n_match"]

    def _scores(self, models: Mapping[str, PyTree], bank: Any, request: Request) -> dict[str, np.ndarray]:
        """Scores of all images."""

        def score(blocks: Blocks) -> Iterator[dict[str, np.ndarray]]:
            yield from (self._block(models, bank, request, block) for block in blocks)

        return self._shards(models, request, np.arange(len(request.images)), score, name="scores")

    def _pruned(self, models: Mapping[str, PyTree], bank: Any, request: Request) -> dict[str, np.ndarray]:
        """The same selection with fewer pairs: images in the order of their matches, until none can be among the best.

        A score is at most the number of matches, as uncertainty and balance are at most 1. The bound is the
        budget-th best score so far; an image with as many matches as that is still looked at, so ties are kept.
        An even sample of the pool is scored besides: what is said of scores must not be of the first images alone.
        """
        count = self._counts(models, bank, request)
        order = np.lexsort((request.images.ids, -count))
        best = Best(request.budget or 1)

        def score(blocks: Blocks) -> Iterator[dict[str, np.ndarray]]:
            for block in blocks:
                if count[order[block["start"]]] < best.bound:
                    return
                yield self._block(models, bank, request, block)

        out = self._shards(models, request, order, score, name="pruned", seen=best.add)
        rest = representative(count)
        rest = rest[np.isnan(out["score"][rest])]
        for block in self._blocks(request.images.subset(rest)) if len(rest) else ():
            for field, values in self._block(models, bank, request, block).items():
                out[field][rest[block["start"] : block["start"] + len(values)]] = values
        out["n_match"] = count
        return out

    def _shards(
        self,
        models: Mapping[str, PyTree],
        request: Request,
        order: np.ndarray,
        compute: Callable[[Blocks], Iterator[dict[str, np.ndarray]]],
        *,
        name: str,
        seen: Callable[[dict[str, np.ndarray]], None] = lambda found: None,
    ) -> dict[str, np.ndarray]:
        """Results of the images in this order, in place; a shard whose file is in the cache is not computed again.

        Args:
          compute: results of blocks of images, a block at a time; it ends early where the rest need no results.
          name: of the files. Their names have a hash of all that the results depend on.
          seen: is told of every block's, or kept shard's, results.
        """
        images, out = request.images, {}
        cache: Path | None = getattr(images, "cache", None)
        key = "" if cache is None else self._key(models, request)
        for number, start in enumerate(range(0, len(order), self.block * SHARD)):
            rows = order[start : start + self.block * SHARD]
            path = None if cache is None else cache / f"{name}-{key}-{number:05d}.npz"
            if path is not None and path.exists():
                with np.load(path) as kept:
                    part = {k: kept[k] for k in kept.files}
                seen(part)
            else:
                found = []
                for block in compute(self._blocks(images.subset(rows), start)):
                    seen(block)
                    found.append(block)
                part = {k: np.concatenate([f[k] for f in found]) for k in found[0]} if found else {}
                if path is not None and found:
                    write_file(path, functools.partial(_save, part))
            for field, values in part.items():
                if field not in out:
                    blank = np.nan if values.dtype.kind == "f" else -1
                    out[field] = np.full((len(order), *values.shape[1:]), blank, values.dtype)
                out[field][rows[: len(values)]] = values
            if not part or len(next(iter(part.values()))) < len(rows):
                break
        return out

    def _key(self, models: Mapping[str, PyTree], request: Request) -> str:
        """A hash of what results depend on: models, images, patterns and options."""
        plain = {k: v for k, v in vars(request).items() if k not in ("images", "text", "kinds", "rates")}
        found = hashlib.sha256(repr([sorted(plain.items()), self.block, self.compute]).encode())
        leaves = jax.tree.leaves(self.partition.fetch(dict(models)))
        for array in (request.images.ids, request.text, request.kinds, request.rates, *leaves):
            found.update(repr((np.shape(array), np.asarray(array).dtype)).encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:16]

    def _blocks(self, images: Source, start: int = 0) -> Blocks:
        """Blocks of images on the devices; on the host `keep`, which rows are real, and `start`, of the block."""
        with evaluation_batches(images, self.block) as batches:  # ends its threads if the rest is not wanted
            for number, host in enumerate(batches):
                keep = np.asarray(host["mask"])
                lo, hi = self.partition.rows(self.block)
                wanted = {k: host[k][lo:hi] for k in ("regions", "region_mask")}
                placed = self.partition.place_batch(wanted)
                yield {**placed, "keep": keep, "start": start + number * self.block}

    def _padded(self, text: np.ndarray) -> np.ndarray:
        out = np.zeros((-(-len(text) // PAD) * PAD, text.shape[1]), np.int32)
        out[: len(text)] = text
        return out

    # ---- one block ------------------------------------------------------------------------------------------

    def _encoded(self, models: Mapping[str, PyTree], block: Mapping[str, Any]) -> Any:
        with self.partition.context():
            return self.programs.image(models, block["regions"], block["region_mask"])

    def _strength(
        self, models: Mapping[str, PyTree], bank: Any, request: Request, encoded: Any, *, start: int = 0
    ) -> np.ndarray:
        """`[B,Q]` f32 on the host: how well each pattern matches; larger is better."""
        if request.match == "all":
            return np.zeros((self.block, len(request.text)), np.float32)
        if request.match == "raw_glove":  # never pruned: a block's images are in the order of the request's
            return self._named(request, start)
        if request.match == "similarity":  # its image side attends to the question: a pair at a time
            image, pattern = np.divmod(np.arange(self.block * len(request.text)), len(request.text))
            run = self._answering(models, bank, request, encoded)
            return self._chunks(run, image, pattern)["cosine"].reshape(self.block, -1)
        how = request.match if request.prefilter is None else "filter"
        with self.partition.context():
            found = self.programs.matches(models, encoded, bank, how=how)
        strength = self.partition.fetch(found)[:, : len(request.text)]
        return (
            strength if request.prefilter is None else self._again(models, bank, request, encoded, strength)
        )

    def _again(
        self, models: Mapping[str, PyTree], bank: Any, request: Request, encoded: Any, rough: np.ndarray
    ) -> np.ndarray:
        """`[B,Q]` f32: the critic of the best pairs by `rough [B,Q]`, the others minus infinity."""
        check_finite(rough, str(request.prefilter))
        image, pattern = np.nonzero(best(rough, 2 * (request.k_max or 1)))
        run = functools.partial(self.programs.again, models, encoded, bank)
        out = np.full(rough.shape, -np.inf, np.float32)
        out[image, pattern] = self._chunks(run, image, pattern)["match"]
        return out

    def _answering(
        self, models: Mapping[str, PyTree], bank: Any, request: Request, encoded: Any
    ) -> Callable[..., Any]:
        """What the answer model says of a chunk of pairs."""
        how = {"var_ddof": request.var_ddof, "at_uniform": request.at_uniform}
        return functools.partial(self.programs.pairs, models, encoded, bank, **how)

    def _named(self, request: Request, start: int) -> np.ndarray:
        """`[B,Q]` f32: cosine of what the detector names and what the pattern says; rows beyond the images are 0."""
        assert self.objects is not None
        found = np.zeros((self.block, len(request.text)), np.float32)
        ids = request.images.ids[start : start + self.block]
        found[: len(ids)] = self.objects.images(ids) @ self.objects.questions(request.text).T
        return found

    def _count(
        self, models: Mapping[str, PyTree], bank: Any, request: Request, block: Mapping[str, Any]
    ) -> np.ndarray:
        strength = self._strength(models, bank, request, self._encoded(models, block))
        check_finite(strength, request.stage)
        return matched(request, strength)[block["keep"]].sum(1).astype(np.int32)

    def _block(
        self, models: Mapping[str, PyTree], bank: Any, request: Request, block: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        found = self._pairs(models, bank, request, block)
        out = collect(request, found.image, found.pattern, found.values, found.strength)
        return {k: v[block["keep"]] for k, v in out.items()}

    def _pairs(
        self, models: Mapping[str, PyTree], bank: Any, request: Request, block: Mapping[str, Any]
    ) -> Pairs:
        """The pairs of a block that count."""
        encoded = self._encoded(models, block)
        strength = self._strength(models, bank, request, encoded, start=block["start"])
        check_finite(strength, self.answer_stage if request.match == "similarity" else request.stage)
        mask = matched(request, strength) & block["keep"][:, None]
        image, pattern = np.nonzero(mask)  # ordered by image, then pattern: sums do not depend on the blocks
        found = self._uncertainty(models, bank, request, encoded, image, pattern)
        check_finite(found["f"], self.answer_stage)
        rate = request.rates[request.kinds[pattern], found["answer"]]
        value = found["f"].astype(np.float64) * rate
        return Pairs(image, pattern, {**found, "rate": rate, "value": value}, strength, mask)

    def _uncertainty(
        self,
        models: Mapping[str, PyTree],
        bank: Any,
        request: Request,
        encoded: Any,
        image: np.ndarray,
        pattern: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """`f`, `p_max` f32 and `answer` i32 of each pair; without an answer model NaN and -1 for the latter two."""
        if models["answer"] is None:
            ones = np.ones(len(image), np.float32)
            return {"f": ones, "p_max": ones * np.nan, "answer": np.full(len(image), -1, np.int32)}
        out = self._chunks(self._answering(models, bank, request, encoded), image, pattern)
        if request.uncertainty == "one":
            out["f"] = np.ones_like(out["f"])
        return out

    def _chunks(
        self, run: Callable[..., Any], image: np.ndarray, pattern: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What a program says of these pairs, in chunks of one size."""
        starts = range(0, max(len(image), 1), self.pairs)
        lo, hi = self.partition.rows(self.pairs)
        parts, last = [], None
        for start in starts:
            i, q = (np.zeros(self.pairs, np.int32) for _ in range(2))
            n = min(self.pairs, len(image) - start)
            i[:n], q[:n] = image[start : start + n], pattern[start : start + n]
            placed = self.partition.place_batch({"image": i[lo:hi], "pattern": q[lo:hi]})
            with self.partition.context():
                got = run(placed["image"], placed["pattern"])
            if last is not None:  # fetched while the next one is computed
                parts.append(self.partition.fetch(last))
            last = got
        parts.append(self.partition.fetch(last))
        return {k: np.concatenate([p[k] for p in parts])[: len(image)] for k in parts[0]}


class Best:
    """The `k` largest scores so far.

    Attributes:
      bound: the smallest of them; minus infinity as long as there are fewer.
    """

    def __init__(self, k: int):
        self.k, self.bound = k, -np.inf
        self._kept = np.zeros(0)

    def add(self, found: Mapping[str, np.ndarray]) -> None:
        """Take in the `score` of more images."""
        scores = np.concatenate([self._kept, found["score"]])
        self._kept = np.partition(scores, -self.k)[-self.k :] if len(scores) > self.k else scores
        if len(self._kept) == self.k:
            self.bound = float(self._kept.min())


def check_finite(values: np.ndarray, stage: str) -> None:
    """Raise ValueError if a model gave NaN: no comparison would ever notice."""
    if np.isnan(values).any():
        raise ValueError(
            f"the model of stage {stage!r} gives NaN: it has diverged; train it with a lower rate"
        )


def _save(arrays: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


class Scorers:
    """A scorer for each matcher's model; stages with equal models share one, and with it its programs.

    Args:
      matchers: stage -> its model, in the order of the config; empty = no method matches. The model of a stage that
        both matches and answers is a `SharedEncoders`.
      answers: the model of the answer stage.
      kwargs: of `PoolScorer`.
    """

    def __init__(self, matchers: Mapping[str, Any], answers: Any, **kwargs: Any):
        made: list[PoolScorer] = []
        self.of_stage: dict[str, PoolScorer] = {}
        self.joint = {stage for stage, model in matchers.items() if isinstance(model, SharedEncoders)}
        for stage, model in matchers.items():
            both = (model.match, model.answer) if stage in self.joint else (model, answers)
            known = [one for one in made if (one.trained, one.trained_answers) == both]
            self.of_stage[stage] = known[0] if known else PoolScorer(*both, **kwargs)
            made += [] if known else [self.of_stage[stage]]
        fits = [one for one in made if answers is None or one.trained_answers == answers]
        self.other = fits[0] if fits else PoolScorer(None, answers, **kwargs)

    def __call__(self, params: Mapping[str, PyTree], request: Request) -> dict[str, np.ndarray]:
        """`PoolScorer.__call__` of the request's stage; without a match, of any scorer with the answer model."""
        return self.of_stage.get(request.stage, self.other)(self._apart(params, request), request)

    def strongest(self, params: Mapping[str, PyTree], request: Request) -> np.ndarray:
        """`PoolScorer.strongest` of the request's stage."""
        return self.of_stage.get(request.stage, self.other).strongest(self._apart(params, request), request)

    def _apart(self, params: Mapping[str, PyTree], request: Request) -> Mapping[str, PyTree]:
        """The parameters, those of a stage that matches and answers as two models'."""
        tree = params.get(request.stage) if request.stage in self.joint else None
        if tree is None:
            return params
        scorer = self.of_stage[request.stage]
        return {**params, request.stage: view(tree, "match"), scorer.answer_stage: view(tree, "answer")}
