"""Labels of questions that went out as items: each names the question of the batch that it answers.

{"schema": "ccrl.labels/1", "question_id": 294001, "status": "ok", "answers": ["red", {"answer": "red", ...}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxvl.active.human.entries import KINDS, STATUS, Asked, Entry, Fields, Problems, given
from jaxvl.active.report.balance import question_key


def entry(data: Mapping[str, Any], where: str, problems: Problems) -> Entry | None:
    """What a line of JSON Lines says of the question that it names; image and words may be left out."""
    before, fields = len(problems.lines), Fields(data, where, problems)
    number, status = fields.integer("question_id"), fields.one_of("status", STATUS, "ok")
    image_id = fields.integer("image_id", needed=False)
    text, kind = fields.text("question", needed=False), fields.one_of("answer_type", KINDS)
    values = fields.rows("answers") if status == "ok" else []
    answers = [given(v, where, problems, f"answers[{i}]") for i, v in enumerate(values)]
    if number is None or status is None or len(problems.lines) > before:
        return None
    asked = [Asked(text or "", [a for a in answers if a is not None], kind, number)] if status == "ok" else []
    return Entry(where, -1 if image_id is None else image_id, status, asked, None, number)


def of_questions(found: Entry, batch: Mapping[int, Mapping[str, Any]], problems: Problems) -> list[Entry]:
    """An entry for each question of the batch that an entry of a file speaks of, with the batch's image and words.

    Args:
      found: from any format.
      batch: question id -> its line, with `image_id` and `question`.
      problems: notes questions without an id or outside the batch, and images or words that are another question's.
    """
    out = []
    for asked in found.asked if found.status == "ok" else [None]:
        number = found.question_id if asked is None or asked.question_id is None else asked.question_id
        line = None if number is None else batch.get(number)
        if number is None or line is None:
            what = "is missing" if number is None else f"{number} is not in the batch that was exported"
            fix = "Questions went out: name the one that is answered, as the batch does."
            problems.add(found.where, "question_id", what, fix)
        elif found.image_id not in (-1, line["image_id"]):
            problems.add(
                found.where, "image_id", f"is {found.image_id}, that of question {number} is {line['image_id']}",
                "Leave it out, or take it from the batch.",
            )  # fmt: skip
        elif (
            asked is not None
            and asked.question
            and question_key(asked.question) != question_key(line["question"])
        ):
            problems.add(
                found.where, "question", f"is not that of question {number}, {line['question']!r}",
                "Answer the question as it went out; for another one there is no place in the batch.",
            )  # fmt: skip
        else:
            own = [] if asked is None else [asked._replace(question=line["question"], question_id=number)]
            out.append(found._replace(image_id=int(line["image_id"]), asked=own, question_id=number))
    return out
