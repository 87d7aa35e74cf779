"""NDCG against its definition."""

from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teran.evaluation.ndcg import image_ndcg, sentence_ndcg


def plain(scores: list[float], relevance: list[float], k: int) -> float:
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i), reverse=True)

    def gain(values: list[float]) -> float:
        return sum((2**value - 1) / log2(place + 2) for place, value in enumerate(values[:k]))

    best = gain(sorted(relevance, reverse=True))
    return gain([relevance[i] for i in order]) / best if best else 0.0


@given(st.integers(0, 1 << 30), st.integers(1, 6), st.integers(1, 9), st.integers(1, 12))
def test_equals_the_definition(seed: int, images: int, captions: int, k: int) -> None:
    """With ties, and with queries for which nothing is relevant."""
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, (images, captions)).astype(np.float32)
    relevance = random.choice([0, 0, 0.25, 1], (captions, images)).astype(np.float32)
    of_captions = [plain(scores[:, c].tolist(), relevance[c].tolist(), k) for c in range(captions)]
    assert image_ndcg(scores, relevance, k) == pytest.approx(np.mean(of_captions))
    of_images = [plain(scores[i].tolist(), relevance[:, i].tolist(), k) for i in range(images)]
    counted = [value for value in of_images if value] or [0]
    assert sentence_ndcg(scores, relevance, k) == pytest.approx(np.mean(counted))


def test_only_the_first_25_count() -> None:
    scores = np.arange(60, dtype=np.float32)[None]
    relevance = np.zeros((60, 1), np.float32)
    relevance[34] = 1  # the 26th
    assert sentence_ndcg(scores, relevance) == 0
    relevance[35] = 1
    assert 0 < sentence_ndcg(scores, relevance) < 1
