"""NDCG of both directions, where relevance is graded: how good a ranking is that misses its own.

A result of relevance r gains 2^r - 1, divided by log2(place + 1), places counted from 1; the sum
over the first k is divided by that of the best ranking there is. Among equal scores the later
column comes first, as in a reversed stable sort.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Scores = npt.NDArray[np.floating[Any]]
DEPTH = 25
"""Results that count, in the paper."""
_ROWS = 1024


def image_ndcg(scores: npt.ArrayLike, relevance: npt.ArrayLike, k: int = DEPTH) -> float:
    """Mean NDCG of image retrieval: every caption is a query.

    Args:
        scores: (N, M), images by captions.
        relevance: (M, N), of every image to every caption.
        k: results that count.
    """
    return float(_ndcg(np.asarray(scores).T, np.asarray(relevance), k).mean())


def sentence_ndcg(scores: npt.ArrayLike, relevance: npt.ArrayLike, k: int = DEPTH) -> float:
    """Mean NDCG of sentence retrieval: every image is a query.

    As in the authors' evaluation, queries whose NDCG is 0 are left out of the mean; 0 where there
    are no others.

    Args:
        scores: (N, M), images by captions.
        relevance: (M, N), of every image to every caption.
        k: results that count.
    """
    values = _ndcg(np.asarray(scores), np.asarray(relevance).T, k)
    return float(values[values != 0].mean()) if values.any() else 0.0


def _ndcg(scores: Scores, relevance: Scores, k: int) -> Floats:
    """NDCG of every query, (Q,), from scores and relevances (Q, results)."""
    k = min(k, scores.shape[1])
    discounts = 1 / np.log2(np.arange(k) + 2)
    values = []
    for first in range(0, len(scores), _ROWS):
        rows = slice(first, first + _ROWS)
        found = np.take_along_axis(relevance[rows], _best(scores[rows], k), axis=1)
        # The best relevances, whichever of equal ones they are of.
        ideal = -np.partition(-relevance[rows], k - 1, axis=1)[:, :k]
        ideal = -np.sort(-ideal, axis=1)
        gained, possible = (
            ((2.0 ** kept.astype(np.float64) - 1) * discounts).sum(axis=1)
            for kept in (found, ideal)
        )
        values.append(np.divide(gained, possible, out=np.zeros_like(gained), where=possible != 0))
    return np.concatenate(values)


def _best(scores: Scores, k: int) -> npt.NDArray[np.int64]:
    """The columns of the k best of every row, best first, (Q, k)."""
    best = np.empty((len(scores), k), np.int64)
    for row, out in zip(scores, best, strict=True):
        columns = np.flatnonzero(row >= np.partition(row, -k)[-k])
        out[:] = columns[np.argsort(row[columns], kind="stable")[::-1][:k]]
    return best
