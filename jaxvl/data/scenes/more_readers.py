"""Readers of the embedded world: statements about pairs of pictures, entailment, referring expressions."""

from __future__ import annotations

from typing import Any

import numpy as np

from .entailment import LABELS, Hypothesis, hypothesis
from .readers import SceneReader
from .referring import proposals, refer
from .render import box, render
from .statements import statement
from .world import HELD_OUT, Scene


class SceneStatements(SceneReader):
    """True and false statements about two pictures (as in NLVR2); example i shows scenes 2i (left) and 2i + 1.

    Record: `image`, `image2` (keys), `image_id`, `image2_id`, `sentence`, `sentence_id`, `label` (1 = true),
    `label_name` ("True", "False"), `statement_type` (family), `heldout` (it is about a held-out pair).
    """

    def scene(self, i: int) -> Scene:
        """The left scene of example `i`."""
        return self._scene(2 * self._index(i))

    def scene2(self, i: int) -> Scene:
        """The right scene of example `i`."""
        return self._scene(2 * self._index(i) + 1)

    def image2(self, i: int) -> np.ndarray:
        """Right picture of example `i`, uint8 RGB [image_size, image_size, 3]."""
        return render(self.scene2(i), image_size=self.image_size)

    def annotation(self, i: int) -> dict[str, Any]:
        """Record of example `i`, without drawing it."""
        left, right = self.scene(i), self.scene2(i)
        name, found = statement(left, right, self._dice(left.number))
        return {
            "image": left.key,
            "image2": right.key,
            "image_id": left.image_id,
            "image2_id": right.image_id,
            "sentence": found.text,
            "sentence_id": left.image_id,
            "label": int(found.truth),
            "label_name": str(found.truth),
            "statement_type": name,
            "heldout": found.held_out,
        }


class SceneEntailment(SceneReader):
    """Pictures, some with a screen that may hide things, and hypotheses about them (as in SNLI-VE).

    Record: `image` (key), `image_id`, `sentence`, `sentence_id`, `label` (0 contradiction, 1 neutral,
    2 entailment), `label_name`, `screened` (the picture has a screen), `heldout` (it is about a held-out pair).
    """

    def scene(self, i: int) -> Scene:
        """The scene of example `i` as it is shown."""
        return self._hypothesis(i).scene

    def annotation(self, i: int) -> dict[str, Any]:
        """Record of example `i`, without drawing it."""
        found = self._hypothesis(i)
        return {
            "image": found.scene.key,
            "image_id": found.scene.image_id,
            "sentence": found.text,
            "sentence_id": found.scene.image_id,
            "label": LABELS.index(found.label),
            "label_name": found.label,
            "screened": found.scene.screen is not None,
            "heldout": found.held_out,
        }

    def _hypothesis(self, i: int) -> Hypothesis:
        whole = self._scene(self._index(i))
        return hypothesis(whole, self._dice(whole.number))


class SceneReferring(SceneReader):
    """Expressions that pick one thing of a picture (as in RefCOCO+, but places may be named).

    Record: `image` (key), `image_id`, `expression`, `captions` [expression], `ref_id`, `box` (x1, y1, x2, y2 in
    pixels of the picture), `proposals` [boxes] of which exactly one is right, `target` (its position), `heldout`
    (it mentions a held-out pair).
    """

    def annotation(self, i: int) -> dict[str, Any]:
        """Record of example `i`, without drawing it."""
        s = self.scene(i)
        dice = self._dice(s.number)
        found = refer(s, dice)
        boxes, target = proposals(s, found.thing, dice, image_size=self.image_size)
        return {
            "image": s.key,
            "image_id": s.image_id,
            "expression": found.text,
            "captions": [found.text],
            "ref_id": s.image_id,
            "box": box(found.thing, image_size=self.image_size),
            "proposals": boxes,
            "target": target,
            "heldout": any(t.pair in HELD_OUT for t in found.things),
        }
