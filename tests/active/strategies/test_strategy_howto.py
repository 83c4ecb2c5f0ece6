"""The example of docs/howto/add_a_strategy.md runs as it is printed and is a strategy like the others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from strategy_fakes import Predict, labelled, pool

from jaxvl.active.strategies.base import Selection, Strategy, top

PAGE = Path(__file__).resolve().parents[3] / "docs/howto/add_a_strategy.md"


def test_the_example_of_the_page_takes_images_with_rare_answers():
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    names = {"dataclass": dataclass, "Strategy": Strategy, "Selection": Selection, "top": top}
    exec(code, names)
    images, labels = pool(5), labelled()
    labels.shares = labels.shares._replace(share=np.repeat([[0.8, 0.1, 0.1, 0, 0]], 3, axis=0))
    likeliest = [0, 1, 0, 4, 0]  # the answer that each image's three questions have
    probs = {int(i): np.eye(5)[[a] * 3] for i, a in zip(images.ids, likeliest, strict=True)}
    found = names["RarestAnswer"](power=2.0)(
        Predict(task__probs=probs), images, labels, 2, np.random.default_rng(0)
    )
    assert found.rows.tolist() == [3, 1]
    assert found.score == pytest.approx([0.04, 0.81, 0.04, 1, 0.04])
    assert found.notes["p_max"].tolist() == [1.0] * 5
