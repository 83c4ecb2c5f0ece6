"""Answers of questions: weights of the human answers, their kind, and lists of candidate answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxvl.data.records import DataError, Records, read_json, read_text

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


def build_answers(
    reader: Questions, *, min_count: int = 1, top: int | None = None, count: str = "best"
) -> list[str]:
    """Candidate answers of a question reader, most frequent first (then by string).

    Args:
      min_count: questions an answer must answer; VQA v2's list of 3,129 uses 9.
      top: keep at most this many.
      count: "best" counts the heaviest answer of each question, as VQA v2's list does; "all" every answer.

    Raises:
      DataError: rows without answers, as `Records.require_answers` reports them.
      ValueError: nothing is left, or an unknown `count`.
    """
    if count not in ("best", "all"):
        raise ValueError(f"count={count!r} must be 'best' or 'all'")
    if isinstance(reader, Records):
        reader.require_answers()
    counts: Counter[str] = Counter()
    for i in range(len(reader)):
        targets = reader.annotation(i)["targets"]
        counts.update(list(targets) if count == "all" else [a for a in [best(targets)] if a])
    kept = sorted((a for a, n in counts.items() if n >= min_count), key=lambda a: (-counts[a], a))[:top]
    if not kept:
        raise ValueError(f"no answer is given to {min_count} questions or more: lower min_count")
    return kept


def read_answers(path: str | Path) -> list[str]:
    """Candidate answers of a file, in its order.

    Reads a JSON list of strings (`answer_list.json`), a JSON `{answer: index}` or `[{answer: index}, ...]`, or text
    with one answer a line.

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
