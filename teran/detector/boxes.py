"""Boxes as Caffe counts them: the last pixel is inside, so a side is x2 - x1 + 1 long.

Everything is done for all boxes at once. Non-maximum suppression is a fixed point: a box stays
unless one that stays and comes before it overlaps it, which a few rounds settle for all boxes, as
chains of such boxes are short.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_BLOCK = 256
"""Boxes whose overlaps are calculated at once."""
_PAIRS = 4096
"""Pairs of boxes whose scores are compared at once."""
_WORD = 64
"""Classes in a word of bits."""


def areas(boxes: Floats) -> Floats:
    """Of boxes (N, 4)."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    result: Floats = sides[:, 0] * sides[:, 1]
    return result


def overlaps(first: Floats, second: Floats) -> Floats:
    """Intersections over unions, of boxes (N, 4) with (M, 4): (N, M)."""
    x1, y1, x2, y2 = first.T[:, :, None]
    left, top, right, bottom = second.T[:, None, :]
    width = np.minimum(x2, right) - np.maximum(x1, left) + 1
    height = np.minimum(y2, bottom) - np.maximum(y1, top) + 1
    common = np.maximum(width, 0) * np.maximum(height, 0)
    result: Floats = common / (areas(first)[:, None] + areas(second)[None, :] - common)
    return result


def best_apart(boxes: Floats, threshold: float, most: int) -> npt.NDArray[np.intp]:
    """The first boxes that no earlier one of them overlaps by the threshold or more.

    Args:
        boxes: (N, 4), the best first.
        threshold: least intersection over union that suppresses.
        most: how many to find.

    Returns:
        Their positions, in order.
    """
    kept = np.empty(0, np.intp)
    for start in range(0, len(boxes), _BLOCK):
        if len(kept) >= most:
            break
        block = boxes[start : start + _BLOCK]
        free = ~(overlaps(block, boxes[kept]) >= np.float32(threshold)).any(axis=1)
        before = np.triu(overlaps(block, block) >= np.float32(threshold), k=1)
        stays = free
        while True:
            after = free & ~before[stays].any(axis=0)
            if (after == stays).all():
                break
            stays = after
        kept = np.concatenate([kept, start + stays.nonzero()[0]])
    return kept[:most]


def best_scores_apart(boxes: Floats, scores: Floats, threshold: float) -> Floats:
    """Every box's best score among the classes in which it is not suppressed.

    In each class a box is suppressed by one of a higher score (of equal ones, the first) that stays
    and overlaps it by the threshold or more. Classes are bits here, 64 to a word.

    Args:
        boxes: (N, 4)
        scores: (N, K), of every class.
        threshold: least intersection over union that suppresses.

    Returns:
        (N,); 0 for a box that no class keeps.
    """
    one, other, ahead = _pairs(overlaps(boxes, boxes) >= np.float32(threshold), scores)
    rows, starts = np.unique(one, return_index=True)
    stays = np.full((len(boxes), ahead.shape[1]), ~np.uint64(0))
    while len(rows):
        after = stays.copy()
        after[rows] = ~np.bitwise_or.reduceat(ahead & stays[other], starts)
        if (after == stays).all():
            break
        stays = after
    kept = np.unpackbits(stays.view(np.uint8), axis=1, count=scores.shape[1]).astype(bool)
    best: Floats = np.where(kept, scores, 0).max(axis=1)
    return best


def _pairs(
    close: npt.NDArray[np.bool_], scores: Floats
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.uint64]]:
    """All pairs of close boxes, by the first one's number, and in which classes the other leads.

    Returns:
        The one and the other (P,), and bits of classes (P, words).
    """
    first, second = np.triu(close, k=1).nonzero()
    words = -(-scores.shape[1] // _WORD)
    leads = np.zeros((len(first), 8 * words), np.uint8)
    for start in range(0, len(first), _PAIRS):
        part = slice(start, start + _PAIRS)
        packed = np.packbits(scores[second[part]] > scores[first[part]], axis=1)
        leads[part, : packed.shape[1]] = packed
    one, other = np.concatenate([first, second]), np.concatenate([second, first])
    order = np.argsort(one, kind="stable")
    bits = np.concatenate([leads.view(np.uint64), ~leads.view(np.uint64)])
    return one[order], other[order], bits[order]
