"""Answers of questions: weights of the human answers, their kind, and lists of candidate answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxvl.data.records import DataError, Paths, Records, as_paths, read_json, read_text
from jaxvl.scores import agreement
from jaxvl.vqa_normalise import normalise

_NUMBER = re.compile(r"\d+([.,]\d+)?")


class Questions(Protocol):
    """A question reader, as far as answers are concerned."""

    def __len__(self) -> int: ...

    def annotation(self, i: int) -> dict[str, Any]: ...


def fold(answer: str) -> str:
    """An answer in lower case with single spaces: two answers that differ in these only are the same."""
    return " ".join(answer.lower().split())


def weigh(answers: Sequence[str], *, each: float | None = None) -> dict[str, float]:
    """`{answer: weight}`: the share of the annotators who gave it, or the fixed weight `each`.

    Answers that differ in case or white space only are one. Blank answers count as annotators, but are no target.
    """
    counts = Counter(fold(answer) for answer in answers)
    weights = {answer: n / len(answers) if each is None else each for answer, n in counts.items()}
    return {answer: weight for answer, weight in weights.items() if answer}


def best(targets: Mapping[str, float]) -> str | None:
    """The heaviest answer, equal weights by the order of the strings; None without answers."""
    return min(targets, key=lambda answer: (-targets[answer], answer), default=None)


def kind(targets: Mapping[str, float]) -> str:
    """ "yes/no", "number" or "other" of the best answer, for files that do not say."""
    answer = best(targets) or ""
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if _NUMBER.fullmatch(answer) else "other"


def soft_scores(answers: Sequence[str], *, matching: str = "normalised") -> dict[str, float]:
    """`{answer: VQA accuracy of giving it}` in order of appearance; of ten annotators, 1, 2, 3, 4 give .3, .6, .9, 1.

    Args:
      answers: human answers, one per annotator.
      matching: "normalised" = answers equal in the official normal form are one (BridgeTower's corrected tables);
        "raw" = the strings as they are (ViLT).
    """
    if matching not in ("normalised", "raw"):
        raise ValueError(f"matching={matching!r} must be 'normalised' or 'raw'")
    given = [normalise(answer) for answer in answers] if matching == "normalised" else answers
    return {answer: agreement(n, annotators=len(given)) for answer, n in Counter(given).items()}


def vqa_v2_answers(annotations: Paths, *, min_count: int = 9, expect: int | None = 3129) -> list[str]:
    """VQA v2's answer classes: what `multiple_choice_answer` normalises to, in order of first appearance.

    Args:
      annotations: the official annotation files, train then val: the order of the classes is that of their rows.
      min_count: questions an answer must answer.
      expect: the number of classes there must be; None = any. Published models have 3,129.

    Raises:
      DataError: another number of classes, or rows without the field.
    """
    files = as_paths(annotations)
    found = []
    for file in files:
        content = read_json(file)
        rows = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise DataError(f"{file}: no list 'annotations' in it. Give v2_mscoco_*_annotations.json.")
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict) or not isinstance(row.get("multiple_choice_answer"), str):
                raise DataError(
                    f"{file}, row {number}, field 'multiple_choice_answer': is missing. The official files have it."
                )
            found.append(row["multiple_choice_answer"])
    counts = Counter(normalise(answer) for answer in found)
    kept = [answer for answer, n in counts.items() if n >= min_count]
    if expect is not None and len(kept) != expect:
        raise DataError(
            f"{', '.join(files)}: {len(kept)} answers answer {min_count} questions or more, {expect} were expected. "
            "Give the train and val annotations of VQA v2, in this order and complete; expect=None for other files."
        )
    return kept


def build_answers(
    reader: Questions,
    *,
    min_count: int = 1,
    top: int | None = None,
    count: str = "best",
    order: str = "count",
    expect: int | None = None,
) -> list[str]:
    """Candidate answers of a question reader, most frequent first (then by string).

    Args:
      min_count: questions an answer must answer; VQA v2's list of 3,129 uses 9.
      top: keep at most this many of the most frequent.
      count: "best" counts the heaviest answer of each question, as VQA v2's list does; "all" every answer.
      order: "count", or "appearance" = answers in their normal form by first appearance, as the classes of VQA v2 are
        numbered. The exact list is that of `vqa_v2_answers`, which counts the answer that the official files choose.
      expect: the number of answers there must be.

    Raises:
      DataError: rows without answers, as `Records.require_answers` reports them; not `expect` answers.
      ValueError: nothing is left, or an unknown `count` or `order`.
    """
    if count not in ("best", "all"):
        raise ValueError(f"count={count!r} must be 'best' or 'all'")
    if order not in ("count", "appearance"):
        raise ValueError(f"order={order!r} must be 'count' or 'appearance'")
    if isinstance(reader, Records):
        reader.require_answers()
    counts: Counter[str] = Counter()
    for i in range(len(reader)):
        targets = reader.annotation(i)["targets"]
        chosen = list(targets) if count == "all" else [a for a in [best(targets)] if a]
        counts.update(map(normalise, chosen) if order == "appearance" else chosen)
    frequent = (a for a, n in counts.items() if n >= min_count)
    kept = sorted(frequent, key=lambda a: (-counts[a], a))[:top]
    if not kept:
        raise ValueError(f"no answer is given to {min_count} questions or more: lower min_count")
    if expect is not None and len(kept) != expect:
        raise DataError(
            f"{len(kept)} answers are given to {min_count} questions or more, {expect} were expected"
        )
    return kept if order == "count" else [a for a in counts if a in set(kept)]


def read_answers(path: str | Path) -> list[str]:
    """Candidate answers of a file, in its order.

    Reads a JSON list of strings (`answer_list.json`), a JSON `{answer: index}` or `[{answer: index}, ...]`, the
    `id2label` of a Hugging Face model's `config.json`, or text with one answer a line.

    Raises:
      DataError: another content, repeated answers, or indices with gaps; names them.
    """
    path = Path(path).expanduser()
    if path.suffix != ".json":
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such list of answers")
        answers: Any = read_text(path).splitlines()
    else:
        answers = read_json(path)
        if isinstance(answers, list) and answers and isinstance(answers[0], dict):
            answers = answers[0]
        if isinstance(answers, dict) and isinstance(answers.get("id2label"), dict):
            answers = {answer: int(index) for index, answer in answers["id2label"].items()}
        if isinstance(answers, dict):
            if sorted(answers.values(), key=str) != sorted(range(len(answers)), key=str):
                raise DataError(f"{path}: the indices of the answers are not 0 to {len(answers) - 1}")
            answers = sorted(answers, key=answers.__getitem__)
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise DataError(f'{path}: not a list of answer strings. Write ["yes", "no", ...].')
    repeated = [answer for answer, n in Counter(answers).items() if n > 1]
    if repeated:
        raise DataError(
            f"{path}: {len(repeated)} answers are repeated ({', '.join(repeated[:5])}): keep each once"
        )
    return answers
