"""The question bank: labelled questions that can be asked of any image (specification 1.5).

Unlabelled images have no questions, so the candidates are the distinct questions of the labelled ones. It is rebuilt
every round and never sees an unlabelled image.

Shape legend: `Q` patterns, `L` words, `E` width of word vectors.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jaxvl.data.region_source import KINDS as KINDS

REDUCE = ("medoid", "frequency", "prefix", "all")
TIES = ("other", "number", "yes/no")  # which kind wins a tie
FLOOR = 64  # patterns that each kind has room for, if it has so many
PER_PREFIX = 16
ITERATIONS = 25


class Vocabulary(Protocol):
    """What the bank needs of `jaxvl.data.words.Words`."""

    vectors: np.ndarray

    def key(self, question: str) -> str: ...

    def ids(self, question: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Pattern:
    """A distinct labelled question.

    Attributes:
      id: stable over rounds: the first 12 hex digits of the key's SHA-1.
      key: the normalised question.
      question: its most frequent spelling.
      kind: position in `KINDS` of the majority of its answer types.
      count: labelled questions with this key.
      images: labelled images it was asked of.
      weight: share of its cluster among the questions of its kind; 1 / patterns where nothing was reduced.
      prefix: its most frequent official question type, or "".
    """

    id: str
    key: str
    question: str
    kind: int
    count: int
    images: int
    weight: float
    prefix: str = ""


class Bank:
    """Patterns with their words: `text [Q,L]` i32, `kinds [Q]` i32."""

    def __init__(self, patterns: Sequence[Pattern], words: Vocabulary, *, distinct: int):
        self.patterns, self.distinct = list(patterns), distinct
        self.text = np.stack([words.ids(p.question) for p in self.patterns]).astype(np.int32)
        self.kinds = np.array([p.kind for p in self.patterns], np.int32)

    def __len__(self) -> int:
        return len(self.patterns)

    def summary(self) -> dict[str, Any]:
        """`size`, `distinct` questions before the reduction, and patterns `by_type`."""
        counts = np.bincount(self.kinds, minlength=len(KINDS))
        by_type = dict(zip(KINDS, map(int, counts), strict=True))
        return {"size": len(self), "distinct": self.distinct, "by_type": by_type}


def build_bank(
    records: Sequence[Mapping[str, Any]],
    words: Vocabulary,
    *,
    rng: np.random.Generator,
    max: int | None = 1024,
    reduce: str = "medoid",
) -> Bank:
    """The bank of these labelled questions.

    Args:
      records: annotations with `question`, `image_id`, `answer_type` and, for "prefix", `question_type`.
      words: normalises questions and has a vector for each word.
      rng: seeds the clustering.
      max: most patterns; None = all.
      reduce: what happens above `max`. "medoid": each kind gets a quota in proportion to the root of its distinct
        questions, at least 64, and spherical k-means on mean word vectors picks real questions. "frequency": the most
        frequent of each kind's quota. "prefix": the 16 most frequent of each official question type. "all": nothing.

    Raises:
      ValueError: no question has a word, an unknown `reduce`, or `max` below 1.
    """
    if reduce not in REDUCE:
        raise ValueError(f"bank.reduce={reduce!r}: expected one of {', '.join(REDUCE)}")
    if max is not None and max < 1:
        raise ValueError(f"bank.max={max}: expected at least one pattern, or None for all")
    found = distinct_questions(records, words)
    if not found:
        raise ValueError("the question bank is empty: no labelled question has a word")
    even = [_weighted(p, 1 / len(found)) for p in found]
    if reduce == "all" or max is None or len(found) <= max:
        return Bank(even, words, distinct=len(found))
    if reduce == "prefix":
        if not any(p.prefix for p in found):
            raise ValueError(
                "bank.reduce='prefix': no labelled question has a 'question_type' (VQA v2's annotations have it); use "
                "'medoid' or 'frequency'"
            )
        kept = _by_prefix(even, max)
    else:
        kept = []
        for kind, quota in quotas([p.kind for p in found], most=max).items():
            group = [p for p in found if p.kind == kind]
            if len(group) <= quota:
                kept += [_weighted(p, 1 / len(group)) for p in group]
            elif reduce == "frequency":
                kept += [
                    _weighted(p, p.count / sum(q.count for q in group)) for p in _frequent(group)[:quota]
                ]
            else:
                kept += medoids(group, words, quota, rng)
    return Bank(sorted(kept, key=lambda p: p.key), words, distinct=len(found))


def distinct_questions(records: Sequence[Mapping[str, Any]], words: Vocabulary) -> list[Pattern]:
    """The distinct questions in the order of their keys; those without a word are left out."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        key = words.key(record["question"])
        if key:
            groups[key].append(record)
    return [_pattern(key, groups[key]) for key in sorted(groups)]


def pattern_id(key: str) -> str:
    """A question's name, the same in all rounds: 12 hex digits of its normal form."""
    return hashlib.sha1(key.encode()).hexdigest()[:12]


def _pattern(key: str, rows: Sequence[Mapping[str, Any]]) -> Pattern:
    types = Counter(str(r["answer_type"]) for r in rows)
    kind = min(KINDS, key=lambda k: (-types[k], TIES.index(k)))
    prefixes = Counter(str(r.get("question_type") or "") for r in rows)
    return Pattern(
        id=pattern_id(key),
        key=key,
        question=_most(Counter(str(r["question"]) for r in rows)),
        kind=KINDS.index(kind),
        count=len(rows),
        images=len({int(r["image_id"]) for r in rows}),
        weight=0.0,
        prefix=_most(prefixes),
    )


def _most(counts: Counter[str]) -> str:
    return min(counts, key=lambda text: (-counts[text], text))


def _weighted(pattern: Pattern, weight: float) -> Pattern:
    return Pattern(**{**pattern.__dict__, "weight": weight})


def _frequent(group: Sequence[Pattern]) -> list[Pattern]:
    return sorted(group, key=lambda p: (-p.count, p.key))


def _by_prefix(patterns: Sequence[Pattern], most: int) -> list[Pattern]:
    groups: dict[str, list[Pattern]] = defaultdict(list)
    for pattern in _frequent(patterns):
        groups[pattern.prefix].append(pattern)
    return _frequent([p for group in groups.values() for p in group[:PER_PREFIX]])[:most]


def quotas(kinds: Sequence[int], *, most: int) -> dict[int, int]:
    """Room for each kind: in proportion to the root of its size, at least `FLOOR` or its size; `most` in all."""
    sizes = Counter(kinds)
    low = {k: min(n, FLOOR, most // len(sizes)) for k, n in sizes.items()}
    most = min(most, sum(sizes.values()))

    def shares(factor: float) -> dict[int, float]:
        return {k: min(max(factor * n**0.5, low[k]), n) for k, n in sorted(sizes.items())}

    below, above = 0.0, max(sizes.values()) ** 0.5  # every kind whole
    for _ in range(60):  # the factor with which all shares make `most`
        middle = (below + above) / 2
        below, above = (middle, above) if sum(shares(middle).values()) < most else (below, middle)
    found = shares(above)
    out = {k: int(share + 1e-9) for k, share in found.items()}
    for k in sorted(found, key=lambda k: (out[k] - found[k], k))[: most - sum(out.values())]:
        out[k] += 1  # the largest remainders
    return out


def medoids(group: Sequence[Pattern], words: Vocabulary, k: int, rng: np.random.Generator) -> list[Pattern]:
    """`k` of these patterns, each nearest to a centre of spherical k-means, weighted by its cluster's share."""
    x = np.stack([mean_vector(words, p.question) for p in group])
    centres = _plus_plus(x, k, rng)
    for _ in range(ITERATIONS):
        owner = (x @ centres.T).argmax(1)
        sums = np.zeros_like(centres)
        np.add.at(sums, owner, x)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        moved = np.where(norms > 1e-12, sums / np.maximum(norms, 1e-12), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    similarity = x @ centres.T
    owner = similarity.argmax(1)
    chosen: dict[int, float] = {}
    for c in range(k):
        for i in np.argsort(-similarity[:, c], kind="stable"):  # two centres may be nearest to one question
            if int(i) not in chosen:
                chosen[int(i)] = float((owner == c).mean())
                break
    return [_weighted(group[i], weight) for i, weight in chosen.items()]


def mean_vector(words: Vocabulary, question: str) -> np.ndarray:
    """`[E]` float64: the mean vector of a question's words, of length 1 (zeros if none of them has a vector)."""
    ids = words.ids(question)
    mean = words.vectors[ids[ids != 0]].astype(np.float64).mean(0)
    norm = np.linalg.norm(mean)
    return mean / norm if norm > 0 else mean


def _plus_plus(x: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Starting centres: each next one with probability in proportion to its distance `1 - cos` from those before."""
    chosen = [int(rng.integers(len(x)))]
    distance = 1 - x @ x[chosen[0]]
    while len(chosen) < k:
        weights = np.maximum(distance, 0.0)
        weights[chosen] = 0.0
        if weights.sum() <= 0:  # duplicates only: any other will do
            weights = np.ones(len(x))
            weights[chosen] = 0.0
        chosen.append(int(rng.choice(len(x), p=weights / weights.sum())))
        distance = np.minimum(distance, 1 - x @ x[chosen[-1]])
    return x[chosen]


def propose(bank: Bank, labelled_kinds: np.ndarray, *, count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions `[J]` of `count` patterns to ask of every image (A17): as many of each kind as the labelled set has.

    Args:
      labelled_kinds: `[kinds]`, questions of each kind in the labelled set.
      count: J; each kind that the bank has gets at least one, if there is room. Fewer if the bank is smaller.
    """
    have = np.bincount(bank.kinds, minlength=len(KINDS))
    count = min(count, len(bank))
    shares = np.where(have > 0, np.asarray(labelled_kinds, np.float64), 0.0)
    shares = shares / shares.sum() if shares.sum() else have / have.sum()
    wanted = (
        np.minimum((have > 0).astype(int), have) if count >= (have > 0).sum() else np.zeros(len(KINDS), int)
    )
    while wanted.sum() < count:
        lack = np.where(wanted < have, shares * count - wanted, -np.inf)
        wanted[int(lack.argmax())] += 1
    rows = [rng.permutation(np.flatnonzero(bank.kinds == kind))[:n] for kind, n in enumerate(wanted)]
    return np.sort(np.concatenate(rows)).astype(np.int64)
