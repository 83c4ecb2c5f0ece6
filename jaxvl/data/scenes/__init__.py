"""The embedded world: pictures of coloured shapes with captions, questions, statements and boxes.

It needs no download and no disk, is deterministic, and small enough to be learnt on a laptop in minutes. Look at
it with `python -m jaxvl.data.scenes sheet.png --task vqa`. Captions, questions and statements name sides: a
training transform must not mirror the pictures.
"""

from __future__ import annotations

from . import captions as _captions
from . import entailment as _entailment
from . import hard_questions as _hard_questions
from . import questions as _questions
from . import referring as _referring
from . import statements as _statements
from .annotators import answers
from .language import lexicon, wordpieces, words_of
from .more_readers import SceneEntailment, SceneReferring, SceneStatements
from .readers import SceneCaptions, SceneQuestions, SceneReader
from .render import box, render
from .sheet import contact_sheet, describe, save_sheet
from .world import HELD_OUT, Backdrop, Scene, Thing, scene

__all__ = [
    "HELD_OUT",
    "Backdrop",
    "Scene",
    "SceneCaptions",
    "SceneEntailment",
    "SceneQuestions",
    "SceneReader",
    "SceneReferring",
    "SceneStatements",
    "Thing",
    "answers",
    "box",
    "contact_sheet",
    "describe",
    "render",
    "save_sheet",
    "scene",
    "vocabulary",
]


def vocabulary() -> list[str]:
    """WordPiece vocabulary: special tokens, every word the world can say, then characters and "##" characters.

    [PAD], [UNK], [CLS], [SEP], [MASK] are 0..4. Any lower-case ASCII text has pieces other than [UNK].
    """
    modules = (_captions, _questions, _hard_questions, _statements, _entailment, _referring)
    templates = [template for module in modules for template in module.TEMPLATES]
    return wordpieces(lexicon() | words_of(templates) | words_of(answers()))
