"""Retrieval on hand-made tables: recalls by hand, re-ranking within the cut, each image encoded once."""

from __future__ import annotations

import numpy as np
import pytest
from caption_world import Predict, source

from jaxvl.evals import EVALS
from jaxvl.evals.retrieval import RetrievalEval, candidates, reranked

# rows: images; columns: captions, the own ones of image i are 2 i and 2 i + 1
SIMILARITY = np.array(
    [[0.9, 0.1, 0.2, 0.3, 0.4, 0.5], [0.8, 0.0, 0.5, 0.4, 0.3, 0.2], [0.1, 0.2, 0.3, 0.35, 0.0, 0.05]]
)
MATCH = np.array([[-3.0, 2.0, 1, 0, -1, -2], [4.0, 0, 5.0, 1, 2, 3], [0.5, 0.4, 3.0, 0.2, 0.1, 2.0]])


def test_similarity_alone_gives_the_recalls_counted_by_hand():
    found = RetrievalEval(k_test=None)(Predict(similarity=SIMILARITY, match=MATCH), source())
    # Image ranks of the best own caption: 0, 1, 4. Text ranks of the own image, by column: 0 1 0 0 2 2.
    want = dict(tr_r1=1 / 3, tr_r5=1, tr_r10=1, ir_r1=3 / 6, ir_r5=1, ir_r10=1)
    assert {k: found[k] / 100 for k in want} == pytest.approx(want)
    assert found["r_mean"] == pytest.approx(100 * np.mean(list(want.values())))
    assert "itc/r_mean" not in found


def test_reranking_all_candidates_is_the_ranking_of_the_matching_head():
    predict = Predict(similarity=SIMILARITY, match=MATCH)
    found = RetrievalEval(k_test=6)(predict, source())
    # By match: image ranks 0 (caption 1), 0 (caption 2), 1 (caption 5); text ranks 2 0 0 0 1 1.
    assert found["tr_r1"] == pytest.approx(200 / 3)
    assert found["ir_r1"] == pytest.approx(300 / 6)
    assert found["itc/tr_r1"] == pytest.approx(100 / 3)


@pytest.mark.parametrize(("texts_per_row", "images_at_once"), [(8, 256), (1, 1), (4, 2)])
def test_reranking_reorders_only_the_candidates_and_encodes_each_image_once(texts_per_row, images_at_once):
    predict = Predict(similarity=SIMILARITY, match=MATCH)
    evaluator = RetrievalEval(k_test=2, texts_per_row=texts_per_row, images_at_once=images_at_once)
    found = evaluator(predict, source())
    # Candidates of the images: {0,5}, {0,2}, {2,3}; only the second has its own caption on top: 5 beats 4.
    assert found["tr_r1"] == pytest.approx(100 / 3)
    assert predict.rows["image_states"] == 3
    assert predict.rows["image_embed"] == 3
    assert predict.rows["text_embed"] == 6


def test_candidates_are_the_largest_of_each_row_and_ties_enter_by_column():
    chosen = candidates(np.array([[0.1, 0.5, 0.5, 0.5], [3.0, 1.0, 2.0, 0.0]]), k=2)
    np.testing.assert_array_equal(chosen, [[False, True, True, False], [True, False, True, False]])


def test_what_was_not_chosen_ranks_below_by_similarity():
    chosen = np.array([[True, True, False, False]])
    logits = np.where(chosen, [[-200.0, -300.0, 0, 0]], np.nan).astype(np.float32)
    table = reranked(np.array([[0.9, 0.8, 0.1, 0.7]]), logits=logits, chosen=chosen)
    np.testing.assert_array_equal(np.argsort(-table), [[0, 1, 3, 2]])


def test_a_collapsed_model_ranks_at_chance():
    flat = Predict(similarity=np.zeros((3, 6)), match=np.zeros((3, 6)))
    found = RetrievalEval(k_test=6)(flat, source())
    assert found["tr_r1"] == found["ir_r1"] == pytest.approx(100 / 3)


def test_wrong_sizes_are_named_and_the_evaluator_is_registered():
    with pytest.raises(ValueError, match="k_test=0"):
        RetrievalEval(k_test=0)
    assert EVALS["retrieval"] is RetrievalEval
