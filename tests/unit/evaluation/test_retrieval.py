"""Ranks and recall against the authors' evaluation and a plain count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from teran.evaluation.retrieval import Recall, caption_ranks, image_ranks
from tests.conftest import reference_archive


@given(arrays(np.float32, (3, 6), elements=st.floats(-2, 2, width=16)))
def test_ranks_equal_plain_count(scores: np.ndarray) -> None:
    owner = [0, 0, 1, 1, 2, 2]
    for caption, image in enumerate(owner):
        own = scores[image, caption]
        better = sum(scores[i, caption] >= own for i in range(3) if i != image)
        assert image_ranks(scores, owner)[caption] == better
    for image in range(3):
        best = max(scores[image, c] for c in range(6) if owner[c] == image)
        better = sum(scores[image, c] >= best for c in range(6) if owner[c] != image)
        assert caption_ranks(scores, owner)[image] == better


def test_constant_scores_rank_last() -> None:
    assert image_ranks(np.zeros((4, 4)), range(4)).tolist() == [3, 3, 3, 3]


def test_what_is_no_number_ranks_last() -> None:
    scores = np.full((4, 4), np.nan)
    assert image_ranks(scores, range(4)).tolist() == [3, 3, 3, 3]
    assert caption_ranks(scores, range(4)).tolist() == [3, 3, 3, 3]


def test_equals_authors_on_5k() -> None:
    archive = reference_archive("metrics_global.npz")
    images, captions = (archive[key].astype(np.float32) for key in ("img", "cap"))
    scores, owner = images @ captions.T, np.repeat(np.arange(5000), 5)
    for ranks, name in ((image_ranks(scores, owner), "t2i"), (caption_ranks(scores, owner), "i2t")):
        low, high = archive[f"{name}_5k_rank_lo"], archive[f"{name}_5k_rank_hi"]
        assert ((low <= ranks) & (ranks <= high)).all()
        recall, expected = Recall.of(ranks), archive[f"{name}_5k_metrics"]
        assert [recall.r1, recall.r5, recall.r10] == pytest.approx(expected[:3], abs=0.05)
