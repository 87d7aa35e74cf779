"""The alignment: a region x word cosine matrix, pooled into one score for every pair.

Scores equal the authors' *evaluation*, which pads every image to 36 regions and every caption to
85 scored positions with zeros, and masks before it takes maxima. In effect a region's best word is
never below 0, nor is a word's best region where an image has fewer than 36 regions. Written that
way no padding is needed, and a pair's score never depends on the rest of the batch.
"""

import torch
from torch import Tensor

from teran.contract import USUAL_REGIONS
from teran.model.config import Pooling

EVALUATION_WORDS = 85
"""Scored positions of a caption padded to the authors' 88 (without [CLS] and the last two)."""


def present(embeddings: Tensor) -> Tensor:
    """Which rows of (B, L, E) stand for a region or a word: a zero row is none. (B, L) bool."""
    return embeddings.abs().amax(dim=-1) > 0


def region_word_similarity(region_embeddings: Tensor, word_embeddings: Tensor) -> Tensor:
    """Dot products of every region with every word: (N, R, E), (M, W, E) -> (N, R, M, W)."""
    regions, words = region_embeddings.flatten(0, 1), word_embeddings.flatten(0, 1)
    return torch.matmul(regions, words.transpose(0, 1)).view(
        *region_embeddings.shape[:2], *word_embeddings.shape[:2]
    )


def pool(
    similarity: Tensor,
    word_embeddings: Tensor,
    region_mask: Tensor,
    word_mask: Tensor,
    pooling: Pooling,
) -> Tensor:
    """Pool (N, R, M, W) into scores (N, M).

    A caption without any word scores 0, whatever the image; so does an image without any region.

    Args:
        similarity: (N, R, M, W), zero wherever the region or the word is absent.
        word_embeddings: (M, W, E), needed by `scan-sentences` only.
        region_mask: (N, R) bool.
        word_mask: (M, W) bool.
        pooling: the mode.
    """
    n_regions = region_mask.sum(dim=1)[:, None]
    n_words = word_mask.sum(dim=1)[None, :]

    def best_region_per_word() -> Tensor:
        best = similarity.masked_fill(~region_mask[:, :, None, None], -2.0).amax(dim=1)
        clamped = best.clamp(min=0.0)
        complete = (n_regions >= USUAL_REGIONS)[:, :, None]
        return torch.where(complete, best, clamped).masked_fill(~word_mask, 0.0).sum(dim=-1)

    def best_word_per_region() -> Tensor:
        return similarity.amax(dim=-1).clamp(min=0.0).sum(dim=1)

    match pooling:
        case Pooling.MRSW:
            return best_region_per_word()
        case Pooling.MRAVGW:
            return best_region_per_word() / n_words.clamp(min=1)
        case Pooling.MWSR:
            return best_word_per_region()
        case Pooling.SYMM:
            return best_region_per_word() + best_word_per_region()
        case Pooling.SUM:
            return similarity.sum(dim=(1, 3))
        case Pooling.MEAN:
            cells = n_regions.clamp(min=USUAL_REGIONS) * n_words.clamp(min=EVALUATION_WORDS)
            return similarity.sum(dim=(1, 3)) / cells
        case Pooling.SCAN_SENTENCES:
            return _scan_sentences(similarity, word_embeddings, region_mask, word_mask)


def _scan_sentences(
    similarity: Tensor, words: Tensor, region_mask: Tensor, word_mask: Tensor
) -> Tensor:
    """Every region's cosine with the mean of the words, weighted by its attention to them.

    The attended vector itself is never formed: its dot product with the region is the weighted sum
    of similarities, and its norm follows from the words' Gram matrix.
    """
    attention = similarity.relu()
    attention = attention / attention.norm(dim=1, keepdim=True).clamp(min=1e-12)
    # A caption without words keeps uniform weights over zero vectors, and scores 0.
    absent = ~word_mask & word_mask.any(dim=1, keepdim=True)
    weights = attention.masked_fill(absent, -torch.inf).softmax(dim=-1)
    dot = (weights * similarity).sum(dim=-1)
    gram = torch.matmul(words, words.transpose(1, 2))
    squared = (torch.einsum("nrmw,mwv->nrmv", weights, gram) * weights).sum(dim=-1)
    cosine = dot / squared.clamp(min=1e-16).sqrt()
    return cosine.masked_fill(~region_mask[:, :, None], 0.0).sum(dim=1)


def align(
    region_embeddings: Tensor,
    word_embeddings: Tensor,
    region_mask: Tensor | None = None,
    word_mask: Tensor | None = None,
    pooling: Pooling | str = Pooling.MRSW,
) -> tuple[Tensor, Tensor]:
    """Score every image against every sentence.

    Args:
        region_embeddings: (N, R, E), L2-normalised rows.
        word_embeddings: (M, W, E), L2-normalised rows.
        region_mask: (N, R), true where there is a region; without it, the rows that are not zero.
        word_mask: (M, W), true where there is a word; without it, the rows that are not zero.
        pooling: the mode, or its name.

    Returns:
        Scores (N, M) and the region x word matrix (N, M, R, W), zero at absent regions and words.
    """
    scores, similarity = align_masked(
        region_embeddings,
        word_embeddings,
        present(region_embeddings) if region_mask is None else region_mask.bool(),
        present(word_embeddings) if word_mask is None else word_mask.bool(),
        Pooling(pooling),
    )
    return scores, similarity.permute(0, 2, 1, 3)


def align_masked(
    region_embeddings: Tensor,
    word_embeddings: Tensor,
    region_mask: Tensor,
    word_mask: Tensor,
    pooling: Pooling,
) -> tuple[Tensor, Tensor]:
    """`align` with explicit masks, its matrix in the order it is computed in: (N, R, M, W)."""
    regions = region_embeddings * region_mask[..., None].to(region_embeddings.dtype)
    words = word_embeddings * word_mask[..., None].to(word_embeddings.dtype)
    similarity = region_word_similarity(regions, words)
    return pool(similarity, words, region_mask, word_mask, pooling), similarity
