"""Contact sheets: pictures of the embedded world with their texts, to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .language import article, phrase
from .more_readers import SceneEntailment, SceneReferring, SceneStatements
from .readers import SceneCaptions, SceneQuestions, SceneReader
from .relations import Description
from .world import Scene

_SHOWN = 192  # side of a picture on the sheet, pixels
_COLUMNS = 6
_LINE = 15
_MARGIN = 8
_RIGHT, _OTHER = (20, 200, 20), (90, 90, 90)

TASKS: Mapping[str, type[SceneReader]] = {
    "captions": SceneCaptions,
    "vqa": SceneQuestions,
    "statements": SceneStatements,
    "entailment": SceneEntailment,
    "referring": SceneReferring,
}


def describe(scene: Scene) -> str:
    """Everything there is in a scene, one line a thing, in drawing order."""
    lines = [f"{scene.key}: {len(scene.things)} things on a {scene.backdrop.kind} background"]
    for t in scene.things:
        words = phrase(Description(t.colour, t.shape, t.size, t.texture))
        lines.append(f"  {article(words)} at x={t.x:.2f}, y={t.y:.2f}, radius {t.radius:.2f}")
    if scene.screen is not None:
        lines.append("  a screen at " + ", ".join(f"{v:.2f}" for v in scene.screen))
    return "\n".join(lines)


def contact_sheet(task: str, *, count: int = 24, **kwargs: Any) -> np.ndarray:
    """Pictures and texts of the first `count` examples, uint8 RGB.

    Args:
      task: a key of `TASKS`.
      kwargs: of the reader (`split`, `seed`, `image_size`, ...).

    Raises:
      ValueError: for an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r} of the embedded world: choose one of {sorted(TASKS)}")
    reader = TASKS[task](size=count, **kwargs)
    cells = [_cell(*_CONTENT[task](reader, i)) for i in range(count)]
    columns = max(1, _COLUMNS // (cells[0].shape[1] // _SHOWN))
    height = max(len(c) for c in cells)
    cells = [np.pad(c, ((0, height - len(c)), (0, 0), (0, 0)), constant_values=255) for c in cells]
    cells += [np.full_like(cells[0], 255)] * (-count % columns)
    return np.concatenate(
        [np.concatenate(cells[i : i + columns], axis=1) for i in range(0, len(cells), columns)]
    )


def save_sheet(path: str | Path, task: str, **kwargs: Any) -> None:
    """Write `contact_sheet` to an image file.

    Raises:
      OSError: if the file cannot be written.
    """
    path = Path(path)
    ok, data = cv2.imencode(path.suffix or ".png", contact_sheet(task, **kwargs)[..., ::-1])
    if not ok:
        raise OSError(f"cannot write an image as {path.suffix!r}: use .png")
    path.write_bytes(data.tobytes())


def _cell(picture: np.ndarray, texts: list[str]) -> np.ndarray:
    wide = picture.shape[1]
    lines = [line for text in texts for line in textwrap.wrap(text, wide // 8, subsequent_indent=" ")]
    caption = np.full((_LINE * len(lines) + _MARGIN, wide, 3), 255, np.uint8)
    for i, line in enumerate(lines):
        cv2.putText(
            caption, line, (2, _LINE * (i + 1) - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA
        )
    cell = np.concatenate([picture, caption])
    return np.pad(cell, ((_MARGIN, 0), (_MARGIN // 2, _MARGIN // 2), (0, 0)), constant_values=255)


def _enlarged(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (_SHOWN, _SHOWN), interpolation=cv2.INTER_NEAREST)


def _captions(reader: SceneReader, i: int) -> tuple[np.ndarray, list[str]]:
    return _enlarged(reader.image(i)), ["- " + c for c in reader.annotation(i)["captions"]]


def _vqa(reader: SceneReader, i: int) -> tuple[np.ndarray, list[str]]:
    a = reader.annotation(i)
    shares = ", ".join(
        f"{answer} {share:.1f}" for answer, share in sorted(a["targets"].items(), key=lambda p: -p[1])
    )
    return _enlarged(reader.image(i)), [a["question"], shares, f"[{a['question_type']}, {a['level']}]"]


def _statements(reader: SceneReader, i: int) -> tuple[np.ndarray, list[str]]:
    assert isinstance(reader, SceneStatements)
    pair = [_enlarged(reader.image(i)), _enlarged(reader.image2(i))]
    gap = np.full((_SHOWN, _MARGIN, 3), 255, np.uint8)
    a = reader.annotation(i)
    return np.concatenate([pair[0], gap, pair[1]], axis=1), [a["sentence"], a["label_name"]]


def _entailment(reader: SceneReader, i: int) -> tuple[np.ndarray, list[str]]:
    a = reader.annotation(i)
    return _enlarged(reader.image(i)), [a["sentence"], a["label_name"]]


def _referring(reader: SceneReader, i: int) -> tuple[np.ndarray, list[str]]:
    a = reader.annotation(i)
    picture = _enlarged(reader.image(i))
    scale = _SHOWN / reader.image_size
    for j, corners in enumerate(a["proposals"]):
        x1, y1, x2, y2 = (round(v * scale) for v in corners)
        cv2.rectangle(
            picture, (x1, y1), (x2, y2), _RIGHT if j == a["target"] else _OTHER, 2 if j == a["target"] else 1
        )
    return picture, [a["expression"]]


_CONTENT: Mapping[str, Callable[[SceneReader, int], tuple[np.ndarray, list[str]]]] = {
    "captions": _captions,
    "vqa": _vqa,
    "statements": _statements,
    "entailment": _entailment,
    "referring": _referring,
}
