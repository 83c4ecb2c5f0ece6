"""Images, labels and predictions for tests of strategies, without a model.

`Predict` knows the predictors in `TABLE` of every file `predictions_*.py` beside this one: name -> function from a
generator to one row. To have a new strategy checked by `test_strategy_contract.py`, add such a file with what it asks
for.
"""

from __future__ import annotations

import importlib
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from jaxvl.active.balance import Shares
from jaxvl.data.region_source import RegionImages, RegionQuestions, Regions
from jaxvl.data.words import Words

J, C, KINDS = 3, 5, 3
TABLE = {}
for path in sorted(Path(__file__).parent.glob("predictions_*.py")):
    TABLE |= importlib.import_module(path.stem).TABLE
WORDS = Words.build(["is there a cat", "how many dogs", "what is it"], dim=4, length=6)
ASKED = np.stack([WORDS.ids(q) for q in ("is there a cat", "how many dogs", "what is it")])


class Provider:
    """Three random regions of every image."""

    regions, width, digest = 3, 4, "fake"

    def of(self, image_id):
        rng = np.random.default_rng(image_id)
        return Regions(rng.random((3, 4), np.float32), rng.random((3, 4), np.float32), np.ones(3, bool))

    def has(self, image_id):
        return True

    def ids(self):
        return np.arange(2000)


class Pool(RegionImages):
    """Unlabelled images: whoever wants their questions or answers fails the test."""

    def __getattr__(self, name):
        if name in ("records", "questions", "truth", "answers", "oracle"):
            raise AssertionError(f"a strategy read `{name}` of unlabelled images")
        raise AttributeError(name)


def pool(n=12, *, order=slice(None)):
    """`n` images whose ids are not in order."""
    ids = np.random.default_rng(0).permutation(1000)[:n][order]
    out = Pool(Provider(), ids, asked=ASKED, asked_kinds=np.arange(J))
    out.bank = SimpleNamespace(text=ASKED, kinds=np.arange(J))
    out.shares = Shares.from_counts(np.ones((KINDS, C)))
    return out


def labelled(n=4):
    """`n` images with two questions each, from other ids than the pool's."""
    out = RegionImages(Provider(), np.arange(1000, 1000 + n), asked=ASKED, asked_kinds=np.arange(J))
    out.records = [
        dict(
            image=f"{i}.jpg", image_id=i, question=q, question_id=10 * i + k, answers=[a] * 10, answer_type=t
        )
        for i in out.ids.tolist()
        for k, (q, a, t) in enumerate((("is there a cat", "yes", "yes/no"), ("what is it", "a dog", "other")))
    ]
    out.questions = RegionQuestions(
        out.provider, out.records, WORDS, ["yes", "no", "1", "a dog", "a cat"], max_keys=4
    )
    out.shares = Shares.from_counts(np.ones((KINDS, C)))
    out.bank = SimpleNamespace(text=ASKED, kinds=np.arange(J))
    return out


class Predict:
    """`predict(name, source)`; a row depends on name and image alone, so any subset gives the same rows.

    Args:
      given: name -> `{image_id: row}` to be used instead of random rows.
    """

    def __init__(self, **given):
        self.given = {name.replace("__", "/"): rows for name, rows in given.items()}
        self.calls = []

    def __call__(self, name, source):
        source = getattr(source, "images", source)  # the pool scorer takes a request
        self.calls.append((name, len(source)))
        rows = [self._row(name, source, i) for i in range(len(source))]
        stacked = {k: np.stack([r[k] for r in rows]) for k in rows[0]} if isinstance(rows[0], dict) else rows
        out = stacked if isinstance(stacked, dict) else np.stack(stacked)
        for array in out.values() if isinstance(out, dict) else (out,):
            array.setflags(write=False)  # predictions may be shared
        return out

    def _row(self, name, source, i):
        row = source[i]
        image = int(row["image_id"])
        if name in self.given:
            return np.asarray(self.given[name][image])
        if name not in TABLE:
            raise KeyError(
                f"no made-up rows of {name!r}: add them to a file predictions_*.py beside the test"
            )
        seed = (zlib.crc32(name.encode()), image, int(row.get("question_key", 0)))
        return TABLE[name](np.random.default_rng(seed))
