"""Choice of boxes: the formula box by box, and what must hold for any boxes (section 5.1)."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvl.data.regions.rerank import METHODS, iou, rerank


def random_boxes(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    low = rng.random((n, 2))
    return np.concatenate([low, low + rng.random((n, 2))], 1), rng.permuted(np.linspace(0.05, 0.95, n))


def overlap(a, b) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inside = max(w, 0) * max(h, 0)
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)


def test_onepass_is_the_formula_written_as_loops():
    boxes, conf = random_boxes(0)
    lowered = conf.copy()
    for n in range(len(conf)):
        for m in range(len(conf)):
            if conf[m] > conf[n]:
                lowered[n] *= np.exp(-(overlap(boxes[n], boxes[m]) ** 2) / 0.5)
    np.testing.assert_array_equal(rerank(boxes, conf, keep=36), np.argsort(-lowered)[:36])


@pytest.mark.parametrize("method", ["softnms", "softnms_linear"])
def test_softnms_is_the_formula_written_as_loops(method):
    def decay(iou):
        if method == "softnms_linear":
            return 1 - iou if iou > 0.3 else 1
        return np.exp(-(iou**2) / 0.5)

    boxes, conf = random_boxes(1)
    left, want = dict(enumerate(conf)), []
    while len(want) < 36:
        best = max(left, key=left.get)
        want.append(best)
        del left[best]
        left = {n: s * decay(overlap(boxes[n], boxes[best])) for n, s in left.items()}
    np.testing.assert_array_equal(rerank(boxes, conf, keep=36, method=method), want)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [1, 36, 100])
def test_distinct_positions_and_the_most_confident_box_first(method, keep):
    boxes, conf = random_boxes(2)
    kept = rerank(boxes, conf, keep=keep, method=method)
    assert len(set(kept.tolist())) == len(kept) == min(keep, len(conf))
    assert kept[0] == np.argmax(conf)


@pytest.mark.parametrize("method", METHODS)
def test_disjoint_boxes_keep_the_order_of_their_confidences(method):
    corner = np.arange(20)[:, None] * np.ones(4)
    conf = random_boxes(3, 20)[1]
    kept = rerank(corner + [0, 0, 0.9, 0.9], conf, keep=20, method=method)
    np.testing.assert_array_equal(kept, np.argsort(-conf))


@pytest.mark.parametrize("method", ["onepass", "softnms"])
def test_a_copy_of_a_kept_box_falls_by_e_to_the_minus_2(method):
    far, box = [5.0, 5, 6, 6], [0.0, 0, 1, 1]
    just_above, just_below = 0.9 * np.exp(-2) + 1e-6, 0.9 * np.exp(-2) - 1e-6
    for conf, want in ((just_above, [0, 2, 1]), (just_below, [0, 1, 2])):
        kept = rerank(np.array([box, box, far]), np.array([0.9, 0.9, conf]), keep=3, method=method)
        assert kept.tolist() == want


def test_equal_confidences_keep_the_order_of_the_file():
    boxes = np.arange(30)[:, None] + np.array([0, 0, 0.5, 0.5])
    for method in METHODS:
        kept = rerank(boxes, np.full(30, 0.5), keep=30, method=method)
        np.testing.assert_array_equal(kept, np.arange(30))


def test_confidences_of_zero_and_boxes_without_area_are_no_trouble():
    boxes = np.zeros((5, 4))
    for method in METHODS:
        assert sorted(rerank(boxes, np.zeros(5), keep=5, method=method)) == [0, 1, 2, 3, 4]
    assert (iou(boxes, boxes) == 0).all()
    # a box does not overlap itself: else this one would have an advantage over all that have an area
    kept = rerank(np.array([[0.0, 0, 0, 0], [2, 2, 3, 3]]), np.array([0.5, 0.55]), keep=2)
    assert kept.tolist() == [1, 0]


def test_what_cannot_be_ranked_is_refused():
    boxes, conf = random_boxes(4)
    with pytest.raises(ValueError, match="expected one of onepass, softnms, softnms_linear, none"):
        rerank(boxes, conf, keep=3, method="nms")
    for bad in (conf[:3], conf - 1, np.where(conf > 0.5, np.nan, conf)):
        with pytest.raises(ValueError, match="finite and not negative"):
            rerank(boxes, bad, keep=3)
