"""Which of a detector's boxes to keep: confident ones that do not show again what is kept already (section 5.1).

All methods are of order N^2 in the boxes of an image. The factor exp(-IoU^2 / 0.5) is that of Soft-NMS (Bodla et al.,
2017) with sigma = 0.5.

Shape legend: `N` boxes, `K` boxes kept.
"""

from __future__ import annotations

import numpy as np

METHODS = ("onepass", "softnms", "softnms_linear", "none")
SIGMA = 0.5
OVERLAP = 0.3  # "softnms_linear" leaves boxes alone that overlap no more than this


def rerank(boxes: np.ndarray, conf: np.ndarray, *, keep: int, method: str = "onepass") -> np.ndarray:
    """Positions `[min(K,N)]` of the boxes to keep, best first.

    Args:
      boxes: `[N,4]`, x1, y1, x2, y2.
      conf: `[N]`, finite and not negative; of a detection, the greatest probability of a class other than background.
      keep: K.
      method: "onepass" lowers each confidence by its overlaps with all boxes of higher confidence, then sorts again;
        "softnms" takes the best, lowers the others by their overlap with it, and so on; "softnms_linear" likewise, by
        the factor 1 - IoU where IoU > 0.3; "none" sorts by confidence. Of equal values, the earlier box comes first.

    Raises:
      ValueError: unknown method, or shapes or values that do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    boxes, conf = np.asarray(boxes, np.float64), np.asarray(conf, np.float64)
    if boxes.shape != (len(conf), 4) or conf.ndim != 1 or not (np.isfinite(conf).all() and (conf >= 0).all()):
        raise ValueError(
            f"boxes {list(boxes.shape)} with conf {list(conf.shape)}: expected [N,4], [N] finite and not negative"
        )
    if method.startswith("softnms"):
        return _softnms(boxes, conf, keep, linear=method == "softnms_linear")
    order = np.argsort(-conf, kind="stable")
    if method == "onepass":
        lowered = conf[order] * np.exp(_log_decay(boxes[order]))
        # by the lowered confidence, then by the position in the input
        order = order[np.lexsort((order, -lowered))]
    return order[:keep]


def iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`[N,4]`, `[M,4]` -> `[N,M]`: intersection over union; 0 between boxes without area."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(-1)
    union = _area(one)[:, None] + _area(other)[None] - inside
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)


def _log_decay(boxes: np.ndarray) -> np.ndarray:
    """`[N]`: sum of -IoU^2 / 0.5 of each box with those before it."""
    overlap = iou(boxes, boxes)
    return -np.tril(overlap**2, k=-1).sum(-1) / SIGMA


def _softnms(boxes: np.ndarray, conf: np.ndarray, keep: int, *, linear: bool) -> np.ndarray:
    left, taken = conf.copy(), []
    for _ in range(min(keep, len(conf))):
        best = int(np.argmax(left))  # the first of equals
        taken.append(best)
        overlap = iou(boxes[best : best + 1], boxes)[0]
        decay = np.where(overlap > OVERLAP, 1 - overlap, 1.0) if linear else np.exp(-(overlap**2) / SIGMA)
        left = left * decay
        left[taken] = -1.0  # below any that is left, also below one that fell to 0
    return np.array(taken, np.int64)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1)
