"""How good labels of people are: agreement, known answers, answers outside the list, suggestions taken over.

NumPy only. Specification 11.7.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvl import scores
from jaxvl.active.report.balance import consensus, question_key
from jaxvl.vqa_normalise import normalise

FLAG = 0.3  # agreement below which a question is worth another look

Record = Mapping[str, Any]


class Agreement(NamedTuple):
    """Shares of answers equal to the consensus of their question, in normal form, over questions with two or more.

    Attributes:
      questions: `(image_id, question) -> share`.
      annotators: `annotator -> mean share of the others who gave the same answer`.
      flagged: questions below `FLAG`, worst first.
    """

    questions: dict[tuple[int, str], float]
    annotators: dict[str, float]
    flagged: list[tuple[int, str]]


def agreement(records: Sequence[Record]) -> Agreement:
    """How far annotators agree; annotators are compared with the other answers of each question."""
    questions: dict[tuple[int, str], float] = {}
    mine: dict[str, list[float]] = defaultdict(list)
    for record in records:
        answers = [normalise(a) for a in record["answers"]]
        if len(answers) < 2:
            continue
        counts = Counter(answers)
        questions[int(record["image_id"]), record["question"]] = counts[consensus(answers)] / len(answers)
        for name, answer in zip(
            record.get("annotators") or (), answers, strict=bool(record.get("annotators"))
        ):
            mine[_person(name)].append((counts[answer] - 1) / (len(answers) - 1))
    flagged = sorted((q for q, share in questions.items() if share < FLAG), key=lambda q: (questions[q], q))
    return Agreement(questions, {n: float(np.mean(v)) for n, v in sorted(mine.items())}, flagged)


def _person(name: str) -> str:
    """`anna#2`, a second answer of hers to one question, is `anna`."""
    return name.partition("#")[0]


def gold_accuracy(given: Sequence[Record], truth: Sequence[Record]) -> dict[str, float]:
    """Official VQA accuracy in [0, 1] of each annotator on questions whose answers are known.

    Args:
      given: `Imported.gold`.
      truth: records of those images as they were labelled before; other questions are not compared.
    """
    return {name: float(np.mean(v)) for name, v in sorted(gold_scores(given, truth).items())}


def gold_scores(given: Sequence[Record], truth: Sequence[Record]) -> dict[str, list[float]]:
    """Official VQA accuracy of each known answer, by annotator; nobody is compared with answers of her own."""
    known = {(int(r["image_id"]), question_key(r["question"])): r for r in truth}
    values: dict[str, list[float]] = defaultdict(list)
    for record in given:
        before = known.get((int(record["image_id"]), question_key(record["question"])))
        if before is None:
            continue
        authors = [_person(n) for n in before.get("annotators") or [""] * len(before["answers"])]
        for name, answer in zip(record["annotators"], record["answers"], strict=True):
            others = [a for a, who in zip(before["answers"], authors, strict=True) if who != _person(name)]
            if others:
                values[_person(name)].append(scores.vqa_accuracy(answer, answers=others))
    return dict(values)


def summary(
    records: Sequence[Record],
    gold: Sequence[Record],
    truth: Sequence[Record],
    *,
    selection: Sequence[Record],
    answers: Collection[str] | None,
) -> dict[str, Any]:
    """What is said of the labels of a round, as JSON: what `report.labelling` shows.

    Args:
      records: the labels; gold: those of images with known labels; truth: what was known of these.
      selection: the round's, for suggestions that were taken over.
      answers: the candidate answers; None = not known.

    Returns:
      `questions`, `compared` (those with two answers or more), `agreement` (mean over them), `flagged`
      `[{image_id, question, agreement, answers}]`, `outside` (None without `answers`), `taken_over`, and `annotators`
      `{name: {answers, compared, agreement, gold, accuracy}}` with counts of what the two means are over.
    """
    found, judged = agreement(records), gold_scores(gold, truth)
    given: Counter[str] = Counter(_person(n) for r in records for n in r.get("annotators") or ())
    compared: Counter[str] = Counter(
        _person(n) for r in records if len(r["answers"]) > 1 for n in r.get("annotators") or ()
    )
    said = {(int(r["image_id"]), r["question"]): list(r["answers"]) for r in records}
    return {
        "questions": len(records), "compared": len(found.questions),
        "agreement": float(np.mean(list(found.questions.values()))) if found.questions else None,
        "flagged": [
            {"image_id": i, "question": q, "agreement": found.questions[i, q], "answers": said[i, q]}
            for i, q in found.flagged
        ],
        "outside": None if answers is None else outside(records, answers),
        "taken_over": sum(map(len, taken_over(records, selection).values())),
        "annotators": {
            name: {
                "answers": given[name], "compared": compared[name], "agreement": found.annotators.get(name),
                "gold": len(judged.get(name, ())),
                "accuracy": float(np.mean(judged[name])) if name in judged else None,
            }
            for name in sorted({*given, *judged})
        },
    }  # fmt: skip


def choose_gold(labelled: Sequence[int], *, batch: int, share: float, rng: np.random.Generator) -> list[int]:
    """Labelled images to mix into a batch: `share` of its size, rounded, at most as many as there are.

    Raises:
      ValueError: a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"gold share={share} must lie between 0 and 1")
    ids = np.array(sorted({int(i) for i in labelled}), np.int64)
    count = min(int(share * batch + 0.5), len(ids))
    return [int(i) for i in rng.choice(ids, count, replace=False)]


def outside(records: Sequence[Record], answers: Collection[str]) -> dict[str, int]:
    """Consensus answers that are no candidates, with how many questions have them, most frequent first."""
    known = {normalise(a) for a in answers}
    counts = Counter(consensus(r["answers"]) for r in records)
    return dict(sorted(((a, n) for a, n in counts.items() if a not in known), key=lambda x: (-x[1], x[0])))


def taken_over(records: Sequence[Record], selection: Sequence[Record]) -> dict[int, list[str]]:
    """image -> its questions that are suggestions taken over as they were; none where questions went out themselves."""
    if any("question_id" in row for row in selection):
        return {}
    offered = {
        int(row["image_id"]): {question_key(c["question"]) for c in row.get("contributors") or ()}
        for row in selection
    }
    out: dict[int, list[str]] = defaultdict(list)
    for record in records:
        if question_key(record["question"]) in offered.get(int(record["image_id"]), ()):
            out[int(record["image_id"])].append(record["question"])
    return dict(out)


def duplicates(digests: Mapping[int, Any]) -> list[list[int]]:
    """Groups of images with equal digests (of their features or pixels), each sorted, of two or more."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for image_id, digest in digests.items():
        groups[digest].append(int(image_id))
    return sorted(sorted(ids) for ids in groups.values() if len(ids) > 1)
