"""Boxes as Caffe counts them: the last pixel is inside, so a side is x2 - x1 + 1 long.

Everything is done for all boxes at once. Non-maximum suppression is a fixed point: a box stays
unless one that stays and comes before it overlaps it, which a few rounds settle for all boxes, as
chains of such boxes are short.
"""

import torch
from torch import Tensor

_BLOCK = 1024
"""Boxes whose overlaps are calculated at once."""


def areas(boxes: Tensor) -> Tensor:
    """Of boxes (N, 4)."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    return sides[:, 0] * sides[:, 1]


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Intersections over unions, of boxes (N, 4) with (M, 4): (N, M)."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = (high - low + 1).clamp(min=0)
    common = sides[..., 0] * sides[..., 1]
    return common / (areas(first)[:, None] + areas(second)[None, :] - common)


def best_apart(boxes: Tensor, threshold: float, most: int) -> Tensor:
    """The first boxes that no earlier one of them overlaps by the threshold or more.

    Args:
        boxes: (N, 4), the best first.
        threshold: least intersection over union that suppresses.
        most: how many to find.

    Returns:
        Their positions, in order.
    """
    kept = torch.zeros(0, dtype=torch.long, device=boxes.device)
    for start in range(0, len(boxes), _BLOCK):
        if len(kept) >= most:
            break
        block = boxes[start : start + _BLOCK]
        free = ~(overlaps(block, boxes[kept]) >= threshold).any(dim=1)
        before = (overlaps(block, block) >= threshold).triu(diagonal=1).float()
        stays = free
        while True:
            after = free & (stays.float() @ before == 0)
            if torch.equal(after, stays):
                break
            stays = after
        kept = torch.cat([kept, start + stays.nonzero().flatten()])
    return kept[:most]


def best_scores_apart(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Every box's best score among the classes in which it is not suppressed.

    In each class a box is suppressed by one of a higher score (of equal ones, the first) that stays
    and overlaps it by the threshold or more.

    Args:
        boxes: (N, 4)
        scores: (N, K), of every class.

    Returns:
        (N,); 0 for a box that no class keeps.
    """
    close = overlaps(boxes, boxes) >= threshold
    close.fill_diagonal_(False)
    one, other = close.nonzero(as_tuple=True)  # ordered by `one`
    ahead = scores[other] > scores[one]
    ahead |= (scores[other] == scores[one]) & (other < one)[:, None]  # (P, K)
    stays = torch.ones_like(scores, dtype=torch.bool)
    while True:
        hits = torch.zeros_like(scores, dtype=torch.int16)
        hits.index_add_(0, one, (ahead & stays[other]).to(torch.int16))
        after = hits == 0
        if torch.equal(after, stays):
            break
        stays = after
    return scores.masked_fill(~stays, 0).amax(dim=1)
