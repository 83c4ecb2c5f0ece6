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

from jaxvl.active.request import Request, collect, matched
from jaxvl.atomic import write_file
from jaxvl.data.loader import evaluation_batches
from jaxvl.objectives.uncertainty import indicator
from jaxvl.sharding import Partition
from jaxvl.tasks.momentum import call
from jaxvl.types import Array, PyTree, Source

PAD = 128  # patterns are padded to a multiple: a growing bank compiles at most eight programs up to 1,024
SHARD = 32  # blocks between two files of a resumable pass
Blocks = Iterator[dict[str, Any]]


class Programs(NamedTuple):
    """The jitted pieces; compiled once for a block, a chunk and a padded bank."""

    image: Callable[..., Any]
    bank: Callable[..., Any]
    matches: Callable[..., Any]
    pairs: Callable[..., Any]


class PoolScorer:
    """Scores requests with two models: a matcher and an answer model.

    Args:
      matcher: the model of the matching stages (VQME); answers: that of the answer stage (VAUE).
      partition: images of a block are split over its `data` axis, the bank is everywhere.
      block: images of a block; pairs: matched pairs of a chunk.
      answer_stage: key of the answer model's parameters.
    """

    def __init__(
        self, matcher: Any, answers: Any, *, partition: Partition, block: int = 256, pairs: int = 2048,
        answer_stage: str = "vaue",
    ):  # fmt: skip
        shards = partition.batch_shards
        self.block, self.pairs = -(-block // shards) * shards, -(-pairs // shards) * shards
        self.partition, self.answer_stage = partition, answer_stage
        self.matcher, self.answers = matcher, answers
        self.traces: dict[str, int] = {}
        self.programs = self._programs()

    def __call__(self, params: Mapping[str, PyTree], request: Request) -> dict[str, np.ndarray]:
        """Score every image.

        Returns:
          `score [N]` f64 (NaN where pruning left it out), `n_match [N]` i32, `sum_f [N]`, `sum_rate [N]` f64, and the
          contributors, best first, unused ones -1: `top_pattern`, `top_answer` `[N,T]` i32, `top_match`,
          `top_uncertainty`, `top_p_max`, `top_rate` `[N,T]` f32.
        """
        models = {"match": params.get(request.stage), "answer": params.get(self.answer_stage)}
        self._check(request, models)
        with self.partition.context():
            bank = self.programs.bank(models, self._padded(request.text))
        if request.match == "similarity":  # ablation B: only which patterns match differs, not how many
            critic = replace(request, match="critic")
            most = max(1, request.min_k, round(float(self._counts(models, bank, critic).mean())))
            request = replace(request, k_max=most if request.k_max is None else min(most, request.k_max))
        prunes = request.prune is not None and request.agg == "sum" and request.match != "similarity"
        if prunes and request.budget is not None:
            return self._pruned(models, bank, request)
        return self._scores(models, bank, request)

    def strongest(self, params: Mapping[str, PyTree], request: Request) -> np.ndarray:
        """`[N,K]` i32: the `k_max` patterns that match each image best, best first; fewer if there are no more."""
        if not len(request.images):
            return np.zeros((0, min(request.k_max or 1, len(request.text))), np.int32)
        models = {"match": params.get(request.stage), "answer": None}
        self._check(replace(request, uncertainty="one", rates=np.ones((1 + max(request.kinds), 1))), models)
        with self.partition.context():
            bank = self.programs.bank(models, self._padded(request.text))
        found = []
        for block in self._blocks(request.images):
            strength = self._strength(models, bank, request, self._encoded(models, block))
            check_finite(strength, request.stage)
            found.append(np.argsort(-strength, axis=1, kind="stable")[block["keep"], : request.k_max])
        return np.concatenate(found).astype(np.int32)

    def _check(self, request: Request, models: Mapping[str, PyTree]) -> None:
        """Raise ValueError for no images, and for a model that the request needs and the round has not."""
        if not len(request.images):
            raise ValueError("no images to score: every image of the pool is labelled or excluded")
        if request.match != "all" and models["match"] is None:
            raise ValueError(
                f"match={request.match!r} needs the stage {request.stage!r}, which this round has not trained"
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
        found = hashlib.sha256(repr([sorted(plain.items()), self.block]).encode())
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
        self, models: Mapping[str, PyTree], bank: Any, request: Request, encoded: Any
    ) -> np.ndarray:
        """`[B,Q]` f32 on the host: how well each pattern matches; larger is better."""
        if request.match == "all":
            return np.zeros((self.block, len(request.text)), np.float32)
        if request.match == "similarity":  # its image side attends to the question: a pair at a time
            image, pattern = np.divmod(np.arange(self.block * len(request.text)), len(request.text))
            return self._chunks(models, bank, encoded, image, pattern)["cosine"].reshape(self.block, -1)
        with self.partition.context():
            found = self.programs.matches(models, encoded, bank, how=request.match)
        return self.partition.fetch(found)[:, : len(request.text)]

    def _count(
        self, models: Mapping[str, PyTree], bank: Any, request: Request, block: Mapping[str, Any]
    ) -> np.ndarray:
        strength = self._strength(models, bank, request, self._encoded(models, block))
        check_finite(strength, request.stage)
        return matched(request, strength)[block["keep"]].sum(1).astype(np.int32)

    def _block(
        self, models: Mapping[str, PyTree], bank: Any, request: Request, block: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        encoded = self._encoded(models, block)
        strength = self._strength(models, bank, request, encoded)
        check_finite(strength, self.answer_stage if request.match == "similarity" else request.stage)
        mask = matched(request, strength) & block["keep"][:, None]
        image, pattern = np.nonzero(mask)  # ordered by image, then pattern: sums do not depend on the blocks
        found = self._uncertainty(models, bank, request, encoded, image, pattern)
        check_finite(found["f"], self.answer_stage)
        rate = request.rates[request.kinds[pattern], found["answer"]]
        value = found["f"].astype(np.float64) * rate
        out = collect(request, image, pattern, {**found, "rate": rate, "value": value}, strength)
        return {k: v[block["keep"]] for k, v in out.items()}

    def _uncertainty(
        self,
        models: Mapping[str, PyTree],
        bank: Any,
        request: Request,
        encoded: Any,
        image: np.ndarray,
        pattern: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """`f`, `p_max` f32 and `answer` i32 of each pair."""
        if models["answer"] is None:
            ones = np.ones(len(image), np.float32)
            return {"f": ones, "p_max": ones, "answer": np.zeros(len(image), np.int32)}
        out = self._chunks(models, bank, encoded, image, pattern)
        if request.uncertainty == "one":
            out["f"] = np.ones_like(out["f"])
        return out

    def _chunks(
        self, models: Mapping[str, PyTree], bank: Any, encoded: Any, image: np.ndarray, pattern: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What the answer model says of these pairs, in chunks of one size."""
        starts = range(0, max(len(image), 1), self.pairs)
        lo, hi = self.partition.rows(self.pairs)
        parts, last = [], None
        for start in starts:
            i, q = (np.zeros(self.pairs, np.int32) for _ in range(2))
            n = min(self.pairs, len(image) - start)
            i[:n], q[:n] = image[start : start + n], pattern[start : start + n]
            placed = self.partition.place_batch({"image": i[lo:hi], "pattern": q[lo:hi]})
            with self.partition.context():
                got = self.programs.pairs(models, encoded, bank, placed["image"], placed["pattern"])
            if last is not None:  # fetched while the next one is computed
                parts.append(self.partition.fetch(last))
            last = got
        parts.append(self.partition.fetch(last))
        return {k: np.concatenate([p[k] for p in parts])[: len(image)] for k in parts[0]}

    # ---- programs -------------------------------------------------------------------------------------------

    def _programs(self) -> Programs:
        matcher, answers = self.matcher, self.answers
        rep, split = self.partition.replicated(), self.partition.batch()

        def counted(name: str) -> None:
            self.traces[name] = self.traces.get(name, 0) + 1

        def image(models: PyTree, regions: Array, mask: Array) -> dict[str, Any]:
            counted("image")
            out: dict[str, Any] = {"mask": mask}
            if models["match"] is not None:
                v = call(matcher, models["match"], "encode_image", regions, mask)
                out["critic"] = call(matcher, models["match"], "critic_image", v)
                out["contrast"] = call(matcher, models["match"], "project_image", v)
            if models["answer"] is not None:
                out["answer"] = call(answers, models["answer"], "image_ready", regions, mask)
            return out

        def bank(models: PyTree, text: Array) -> dict[str, Any]:
            counted("bank")
            mask = text != 0
            out: dict[str, Any] = {"mask": mask}
            if models["match"] is not None:
                s = call(matcher, models["match"], "encode_text", text, mask)
                out["critic"] = call(matcher, models["match"], "critic_text", s)
                out["contrast"] = call(matcher, models["match"], "project_text", s)
            if models["answer"] is not None:
                out["answer"] = call(answers, models["answer"], "text_ready", text, mask)
            return out

        def matches(models: PyTree, encoded: PyTree, bank: PyTree, *, how: str) -> Array:
            counted("matches")
            if how == "contrast":
                return encoded["contrast"] @ bank["contrast"].T
            a, b = encoded["critic"], bank["critic"]
            return call(matcher, models["match"], "critic_all", a, b).astype(jnp.float32)

        def pairs(models: PyTree, encoded: PyTree, bank: PyTree, i: Array, q: Array) -> dict[str, Array]:
            counted("pairs")
            one = jax.tree.map(lambda x: x[i], (encoded["answer"], encoded["mask"]))
            other = jax.tree.map(lambda x: x[q], (bank["answer"], bank["mask"]))
            out = call(answers, models["answer"], "pair_ready", *one, *other)
            found = indicator(out.logits)
            cosine = (unit(out.v) * unit(out.s)).sum(-1)
            return {"f": found.f, "p_max": found.p_max, "answer": found.index, "cosine": cosine}

        return Programs(
            jax.jit(image, out_shardings=split), jax.jit(bank, out_shardings=rep),
            jax.jit(matches, static_argnames="how", out_shardings=rep), jax.jit(pairs, out_shardings=rep),
        )  # fmt: skip


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


def unit(x: Array) -> Array:
    """Rows of length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _save(arrays: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)
