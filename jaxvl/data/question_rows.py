"""Questions as arrays: words, labels, kinds and keys of all records at once.

Shape legend: `Q` questions, `L` words, `K` labels, `M` keys.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvl.data.hard_labels import AnswerClasses
from jaxvl.data.records import DataError
from jaxvl.data.words import PAD, Words

Arrays = dict[str, np.ndarray]
Record = Mapping[str, Any]


class Keys(NamedTuple):
    """Numbers of questions, equal for questions that say the same.

    Attributes:
      of_question: `[Q]` i32.
      of_image: `[images, M]` i32: of all questions of an image, images in the order of their ids; unused -1. Where M is
        too few, those stay that most images share.
      dropped: how many were left out although another image has them too.
    """

    of_question: np.ndarray
    of_image: np.ndarray
    dropped: int


def keys(records: Sequence[Record], words: Words, image_ids: np.ndarray, *, most: int) -> Keys:
    """The keys of these questions; `most` is M."""
    texts = [words.key(r["question"]) for r in records]
    numbers = {key: n for n, key in enumerate(sorted(set(texts)))}
    of_question = np.array([numbers[key] for key in texts], np.int32)
    asked: dict[int, set[int]] = defaultdict(set)
    for key, image in zip(of_question.tolist(), image_ids.tolist(), strict=True):
        asked[image].add(key)
    images = Counter(key for found in asked.values() for key in found)
    of_image, dropped = np.full((len(asked), most), -1, np.int32), 0
    for row, image in enumerate(sorted(asked)):
        found = sorted(asked[image], key=lambda key: (-images[key], key))
        of_image[row, : len(found[:most])] = found[:most]
        dropped += sum(images[key] > 1 for key in found[most:])
    return Keys(of_question, of_image, dropped)


def texts(records: Sequence[Record], words: Words) -> Arrays:
    """`text [Q,L]` i32 and `text_mask [Q,L]`."""
    text = np.zeros((len(records), words.length), np.int32)
    for row, record in enumerate(records):
        text[row] = words.ids(record["question"])
    return {"text": text, "text_mask": text != PAD}


def labels(records: Sequence[Record], answers: Sequence[str], *, most: int) -> Arrays:
    """`label [Q,K]` i32, `label_score`, `label_share` `[Q,K]` f32, `hard_label [Q]` i32; `most` is K."""
    classes, many = AnswerClasses(answers, max_labels=most), len(records)
    out = {
        "label": np.zeros((many, most), np.int32),
        "label_score": np.zeros((many, most), np.float32),
        "label_share": np.zeros((many, most), np.float32),
        "hard_label": np.zeros(many, np.int32),
    }
    for row, record in enumerate(records):
        found = classes.targets(record)
        out["label"][row], out["label_score"][row] = found.label, found.score
        out["label_share"][row], out["hard_label"][row] = found.share, found.hard
    return out


def check(records: Sequence[Record], kinds: Sequence[str]) -> None:
    """Raise DataError, naming the record, unless all have an image, a question and one of these answer types."""
    for i, record in enumerate(records):
        absent = [name for name in ("image_id", "question", "answer_type") if record.get(name) is None]
        if absent:
            raise DataError(
                f"question {i} has no {absent[0]!r} (it has {', '.join(record)}): give question records"
            )
        if record["answer_type"] not in kinds:
            raise DataError(
                f"question {i} (question_id {record.get('question_id')}), field 'answer_type': is "
                f"{record['answer_type']!r}, expected one of {', '.join(kinds)}. To have the reader tell the type "
                'from the answers, give it fields={"answer_type": "none"}.'
            )
