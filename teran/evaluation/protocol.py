"""What is reported of a set of images and captions: the columns of the paper's tables.

The figures of several folds are averaged, medians among them, as the authors do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from teran.errors import TeranInputError
from teran.evaluation.ndcg import image_ndcg, sentence_ndcg
from teran.evaluation.retrieval import Ranks, Recall, caption_ranks, image_ranks

Floats = npt.NDArray[np.floating[Any]]
CUTS = (1, 5, 10)
_RESAMPLES = 1000
_CONFIDENCE = 0.95
_SEED = 0


@dataclass(frozen=True)
class Fold:
    """One set of images, ranked against its captions."""

    image_ranks: Ranks
    """(M,), 0-based, of its own image for every caption; ties count against it."""
    caption_ranks: Ranks
    """(N,), 0-based, of the best of its own captions for every image; ties count against them."""
    owner: npt.NDArray[np.int64]
    """(M,), the image each caption belongs to."""
    best_image_ranks: Ranks
    """As `image_ranks`, where ties count for it."""
    best_caption_ranks: Ranks
    image_ndcg: dict[str, float] = field(default_factory=dict)
    """By what relevance is measured with."""
    sentence_ndcg: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        scores: npt.ArrayLike,
        image_of_caption: npt.ArrayLike,
        relevance: dict[str, Floats] | None = None,
        sentence_scores: npt.ArrayLike | None = None,
    ) -> "Fold":
        """Rank everything.

        Args:
            scores: (N, M), images by captions.
            image_of_caption: (M,), the row each caption belongs to; each row has one.
            relevance: (M, N) each, of every image to every caption, by name.
            sentence_scores: (N, M), where captions are ranked by other scores than images.

        Raises:
            TeranInputError: the scores can't be ranked, or images lack captions.
        """
        matrix, owner = np.asarray(scores), np.asarray(image_of_caption)
        other = matrix if sentence_scores is None else np.asarray(sentence_scores)
        for one in (matrix, other):
            if not np.isfinite(one).all():
                bad = int((~np.isfinite(one)).sum())
                raise TeranInputError(f"{bad:,} of {one.size:,} scores are no finite numbers")
        if not np.isin(np.arange(len(matrix)), owner).all():
            raise TeranInputError("an image has no caption; recall of sentences needs one of each")
        graded = relevance or {}
        return cls(
            image_ranks(matrix, owner),
            caption_ranks(other, owner),
            owner,
            image_ranks(matrix, owner, ties_help=True),
            caption_ranks(other, owner, ties_help=True),
            {name: image_ndcg(matrix, values) for name, values in graded.items()},
            {name: sentence_ndcg(other, values) for name, values in graded.items()},
        )


@dataclass(frozen=True)
class Direction:
    """Image or sentence retrieval: parts in percent, ranks counted from 1, NDCG@25 up to 1."""

    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    ndcg: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """Of r1, r5 and r10: where 95 % of bootstrap samples of the images lie."""
    tied_queries: int
    """Those whose rank depends on who comes first of equal scores."""
    with_ties_for: tuple[float, float, float]
    """r1, r5 and r10 if every tie counted for the query; above, every one counts against it."""

    def to_dict(self) -> dict[str, object]:
        """Everything, NDCG by names of its own."""
        kept = {name: value for name, value in vars(self).items() if name != "ndcg"}
        return kept | {f"ndcg_{name}": value for name, value in self.ndcg.items()}


@dataclass(frozen=True)
class Report:
    """Both directions."""

    image_retrieval: Direction
    sentence_retrieval: Direction
    rsum: float
    """The sum of the six recalls."""
    rsum_interval: tuple[float, float]
    images: int
    captions: int
    folds: int

    @classmethod
    def of(cls, folds: Sequence[Fold]) -> "Report":
        """Average over folds, of as many images each."""
        image_hits, sentence_hits, captions = _hits(folds)
        generator = np.random.default_rng(_SEED)
        images = len(captions)
        drawn = generator.multinomial(images, np.full(images, 1 / images), _RESAMPLES)
        image_samples = 100 * (drawn @ image_hits) / (drawn @ captions)[:, None]
        sentence_samples = 100 * (drawn @ sentence_hits) / images
        rsums = image_samples.sum(axis=1) + sentence_samples.sum(axis=1)
        image = _direction(
            [fold.image_ranks for fold in folds],
            [fold.best_image_ranks for fold in folds],
            [fold.image_ndcg for fold in folds],
            image_samples,
        )
        sentence = _direction(
            [fold.caption_ranks for fold in folds],
            [fold.best_caption_ranks for fold in folds],
            [fold.sentence_ndcg for fold in folds],
            sentence_samples,
        )
        return cls(
            image,
            sentence,
            sum((image.r1, image.r5, image.r10, sentence.r1, sentence.r5, sentence.r10)),
            _interval(rsums),
            images,
            int(captions.sum()),
            len(folds),
        )

    def to_dict(self) -> dict[str, object]:
        """As it is written into a file."""
        return vars(self) | {
            "image_retrieval": self.image_retrieval.to_dict(),
            "sentence_retrieval": self.sentence_retrieval.to_dict(),
        }


def _direction(
    ranks: Sequence[Ranks],
    best: Sequence[Ranks],
    ndcg: Sequence[dict[str, float]],
    samples: npt.NDArray[np.float64],
) -> Direction:
    recalls = [Recall.of(one) for one in ranks]
    optimistic = [Recall.of(one) for one in best]
    r1, r5, r10, median, mean = _mean([vars(one) for one in recalls]).values()
    for_query = _mean([vars(one) for one in optimistic])
    return Direction(
        r1,
        r5,
        r10,
        median,
        mean,
        _mean(ndcg),
        {f"r{k}": _interval(samples[:, i]) for i, k in enumerate(CUTS)},
        sum(int((low != high).sum()) for low, high in zip(best, ranks, strict=True)),
        (for_query["r1"], for_query["r5"], for_query["r10"]),
    )


def _hits(folds: Sequence[Fold]) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Captions of an image within every cut, whether the image is (N, 3), and its captions (N,)."""
    image, sentence, captions = [], [], []
    for fold in folds:
        within = fold.image_ranks[:, None] < np.array(CUTS)
        summed = np.zeros((len(fold.caption_ranks), len(CUTS)))
        np.add.at(summed, fold.owner, within)
        image.append(summed)
        sentence.append(fold.caption_ranks[:, None] < np.array(CUTS))
        captions.append(np.bincount(fold.owner, minlength=len(summed)))
    return (
        np.concatenate(image),
        np.concatenate(sentence).astype(np.float64),
        np.concatenate(captions),
    )


def _interval(samples: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
