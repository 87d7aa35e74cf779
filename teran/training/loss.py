"""The triplet loss over a batch's score matrix (VSE++; paper, section 3.4)."""

import torch
from torch import Tensor


def triplet_loss(scores: Tensor, margin: float = 0.2, hardest_negative: bool = True) -> Tensor:
    """Hinge loss that ranks every pair above its negatives in the batch, summed over the batch.

    Args:
        scores: (B, B), images by captions; the pairs are on the diagonal.
        margin: how far above a negative the pair should score.
        hardest_negative: count only the worst negative per image and per caption, not all.

    Returns:
        A scalar.
    """
    own = scores.diagonal()
    negatives = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    caption_cost = (margin + scores - own[:, None]).clamp(min=0.0) * negatives
    image_cost = (margin + scores - own[None, :]).clamp(min=0.0) * negatives
    if hardest_negative:
        return caption_cost.amax(dim=1).sum() + image_cost.amax(dim=0).sum()
    return caption_cost.sum() + image_cost.sum()
