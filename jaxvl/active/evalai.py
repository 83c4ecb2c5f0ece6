"""The protocol `test`: answers go to EvalAI as files, and what its page shows comes back through a small file.

EvalAI takes answers to the *whole* test file, every question once (specification 1.3). Its scores are typed in by the
user: `{"phase": "test-dev", "rounds": {"0": {"overall": 48.69, "yes/no": 66.34, "number": 31.6, "other": 37.46}}}`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvl.active.bank import KINDS
from jaxvl.atomic import read_json, write_file, write_json

RESULTS, SCORES_FILE, SCHEMA = "evalai.json", "evalai_scores.json", "jaxvl.evalai_scores/1"
OVERALL = "overall"


def check_ids(given: Iterable[int], wanted: Iterable[int], *, where: Path | str, of: Path | str) -> None:
    """Raise ValueError unless `given` are the `wanted` question ids, each once; `where` and `of` name their files."""
    counts, ids = Counter(given), set(wanted)
    for what, wrong in (
        ("are repeated", [i for i, n in counts.items() if n > 1]),
        ("are missing", sorted(ids - set(counts))),
        ("are not among the questions", sorted(set(counts) - ids)),
    ):
        if wrong:
            raise ValueError(
                f"{where}: {len(wrong)} question ids {what}, e.g. {wrong[0]}: every question must occur once ({of})"
            )


def write_results(path: Path, rows: Sequence[Mapping[str, Any]], *, ids: Iterable[int]) -> None:
    """Write `[{"question_id", "answer"}]` after a check of its ids.

    Raises:
      ValueError: ids that repeat, are missing or strange.
    """
    check_ids((int(r["question_id"]) for r in rows), ids, where=path, of="the evaluation questions")
    write_file(path, lambda p: p.write_text(json.dumps(list(rows)) + "\n", encoding="utf-8"))


def read_results(path: Path) -> list[dict[str, Any]]:
    """A result file.

    Raises:
      ValueError: not `[{"question_id": int, "answer": str}]`; names the file and the row.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f'{path}: expected [{{"question_id": 1, "answer": "yes"}}, ...]')
    for number, row in enumerate(rows, start=1):
        good = isinstance(row, dict) and set(row) == {"question_id", "answer"}
        if not good or type(row["question_id"]) is not int or not isinstance(row["answer"], str):
            raise ValueError(
                f'{path}, row {number}: is {json.dumps(row)[:80]}, expected {{"question_id": 1, "answer": "yes"}}'
            )
    return rows


def check_results(path: Path, questions: Path) -> int:
    """How many answers a result file has, if it is complete.

    Args:
      path: the file.
      questions: `v2_OpenEnded_mscoco_test2015_questions.json`, or any question file of VQA v2.

    Raises:
      ValueError: what EvalAI would refuse; names the file, the row or the ids.
    """
    content = read_json(questions)
    rows = content.get("questions") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f"{questions}: no list 'questions' in it; give a question file of VQA v2")
    require_whole(questions, _subtype(content))
    found = read_results(path)
    check_ids(
        (r["question_id"] for r in found), (int(r["question_id"]) for r in rows), where=path, of=questions
    )
    return len(found)


def subtype_of(questions: Path | str) -> str:
    """What a question file says that it is, whatever its name: "test2015", "test-dev2015"; "" if it does not say."""
    return _subtype(read_json(Path(questions).expanduser()))


def _subtype(content: Any) -> str:
    return str(content.get("data_subtype", "")) if isinstance(content, dict) else ""


def require_whole(questions: Path | str, subtype: str = "") -> None:
    """Raise ValueError for the questions of test-dev alone: EvalAI wants the answers to all of test2015."""
    if "test-dev" in subtype or "test-dev" in Path(questions).name:
        raise ValueError(
            f"{questions}: questions of test-dev only; EvalAI takes answers to the whole test file: give "
            "v2_OpenEnded_mscoco_test2015_questions.json"
        )


def read_scores(path: Path) -> tuple[str, dict[int, dict[str, float]]]:
    """(phase, round -> percent by answer type and overall) of a user's file; see the module.

    Raises:
      ValueError: another content; names the file, the round and the field.
    """
    content = read_json(path)
    rounds = content.get("rounds") if isinstance(content, dict) else None
    if not isinstance(rounds, dict) or not rounds or not isinstance(content.get("phase"), str):
        raise ValueError(f'{path}: expected {{"phase": "test-dev", "rounds": {{"0": {{"overall": 48.69}}}}}}')
    out = {}
    for number, given in rounds.items():
        if not number.isdecimal() or not isinstance(given, dict) or OVERALL not in given:
            raise ValueError(f'{path}, rounds, {number!r}: expected "<round>": {{"overall": percent, ...}}')
        for name, value in given.items():
            fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 100
            if name not in (OVERALL, *KINDS) or not fits:
                raise ValueError(
                    f"{path}, rounds, {number!r}, {name!r}: is {value!r}; expected a percentage of one of "
                    f"{', '.join((OVERALL, *KINDS))}"
                )
        out[int(number)] = {name: float(value) for name, value in given.items()}
    return content["phase"], out


def take_scores(folder: Path, file: Path, results: Mapping[int, str]) -> dict[int, dict[str, float]]:
    """Keep the scores of a user's file in a run's folder; the rounds it is of.

    Args:
      folder: the run's.
      file: see `read_scores`; rounds that were there before are replaced.
      results: round -> SHA-256 of its result file, of the rounds that have one.

    Raises:
      ValueError: rounds without a result file, or another phase than that of the scores which are there.
    """
    phase, found = read_scores(file)
    strange = sorted(set(found) - set(results))
    if strange:
        there = ", ".join(map(str, results)) or "none"
        raise ValueError(
            f"{file}: round {strange[0]} of {folder} has no {RESULTS}; rounds that have one: {there}"
        )
    path = folder / SCORES_FILE
    before: dict[str, Any] = (
        read_json(path) if path.exists() else {"schema": SCHEMA, "phase": phase, "rounds": {}}
    )
    if before["phase"] != phase:
        raise ValueError(
            f"{file}: phase {phase!r}, but {path} has scores of {before['phase']!r}: two phases are two sets of "
            "questions; delete that file to change over"
        )
    new = {str(r): {"acc": acc, "sha256": results[r]} for r, acc in found.items()}
    write_json(path, {**before, "rounds": {**before["rounds"], **new}})
    return found


def scores_of(folder: Path) -> tuple[str, dict[int, dict[str, Any]]]:
    """(phase, round -> `{"acc", "sha256"}`) of a run; ("", {}) if there are none."""
    path = folder / SCORES_FILE
    if not path.exists():
        return "", {}
    content = read_json(path)
    return content["phase"], {int(r): one for r, one in content["rounds"].items()}
