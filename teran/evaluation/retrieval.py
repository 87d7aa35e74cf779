"""Ranks and recall of image and sentence retrieval, from a score matrix (numpy only)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ranks = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Recall:
    """Recall in per cent, and the median and mean rank counted from 1."""

    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float

    @classmethod
    def of(cls, ranks: Ranks) -> "Recall":
        """Summarise 0-based `ranks`, as the authors' evaluation does."""
        r1, r5, r10 = (float(100.0 * np.mean(ranks < k)) for k in (1, 5, 10))
        return cls(r1, r5, r10, float(np.floor(np.median(ranks)) + 1), float(ranks.mean() + 1))


def image_ranks(
    scores: npt.ArrayLike, image_of_caption: npt.ArrayLike, *, ties_help: bool = False
) -> Ranks:
    """Rank of its own image for every caption (image retrieval).

    Args:
        scores: (N, M), images by captions.
        image_of_caption: (M,), the row each caption belongs to.
        ties_help: let a tie count for the image. By default it counts against it, so that constant
            scores rank last.

    Returns:
        (M,) 0-based ranks.
    """
    matrix, owner = np.asarray(scores), np.asarray(image_of_caption)
    own = matrix[owner, np.arange(matrix.shape[1])]
    # In this form what is not a number counts against the image, too.
    ranks: Ranks = (matrix > own).sum(axis=0) if ties_help else (~(matrix < own)).sum(axis=0) - 1
    return ranks


def caption_ranks(
    scores: npt.ArrayLike, image_of_caption: npt.ArrayLike, *, ties_help: bool = False
) -> Ranks:
    """Rank of the best of its own captions for every image (sentence retrieval), (N,) 0-based.

    Images without any caption are left out.

    Args:
        scores: (N, M), images by captions.
        image_of_caption: (M,), the row each caption belongs to.
        ties_help: let a tie count for the captions; by default it counts against them.
    """
    matrix, owner = np.asarray(scores), np.asarray(image_of_caption)
    owned = owner[None, :] == np.arange(matrix.shape[0])[:, None]
    described = owned.any(axis=1)
    matrix, owned = matrix[described], owned[described]
    best = np.where(owned, matrix, -np.inf).max(axis=1, keepdims=True)
    ahead = matrix > best if ties_help else ~(matrix < best)
    ranks: Ranks = (ahead & ~owned).sum(axis=1)
    return ranks
