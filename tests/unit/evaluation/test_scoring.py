"""Scores of all pairs against the alignment of one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teran.evaluation.scoring import score_all
from teran.model.alignment import align
from teran.model.config import Pooling


def embeddings(random: np.random.Generator, counts: list[int]) -> list[np.ndarray]:
    found = [random.standard_normal((count, 8)).astype(np.float32) for count in counts]
    return [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in found]


def one_by_one(regions: list[np.ndarray], words: list[np.ndarray], pooling: Pooling) -> np.ndarray:
    def score(image: np.ndarray, caption: np.ndarray) -> float:
        padded = np.zeros((max(1, len(caption)), 8), np.float32)
        padded[: len(caption)] = caption
        sets = torch.from_numpy(image)[None], torch.from_numpy(padded)[None]
        return float(align(*sets, pooling=pooling)[0])

    return np.array([[score(image, caption) for caption in words] for image in regions])


@pytest.mark.parametrize("pooling", list(Pooling))
@given(st.integers(0, 1 << 30), st.booleans())
@settings(max_examples=20)
def test_equal_those_of_each_pair_by_itself(pooling: Pooling, seed: int, even: bool) -> None:
    """Whatever the lengths: an image of less than 36 regions clamps, captions may have no word."""
    random = np.random.default_rng(seed)
    counts = [36] * 4 if even else random.integers(1, 50, 4).tolist()
    regions = embeddings(random, counts)
    words = embeddings(random, random.integers(0, 12, 7).tolist())
    found = score_all(regions, words, pooling)
    assert found == pytest.approx(one_by_one(regions, words, pooling), abs=2e-5)


def test_more_than_a_block() -> None:
    random = np.random.default_rng(0)
    regions = embeddings(random, [36] * 40 + [20, 700, 36])
    words = embeddings(random, [9] * 200 + [1500, 0])
    done: list[int] = []
    found = score_all(regions, words, progress=done.append)
    assert sum(done) == len(regions)
    for image, caption in ((0, 0), (41, 200), (42, 3), (40, 199), (17, 201)):
        expected = one_by_one([regions[image]], [words[caption]], Pooling.MRSW)
        assert found[image, caption] == pytest.approx(expected[0, 0], abs=1e-3)


def test_nothing_to_score() -> None:
    assert score_all([], [np.ones((1, 8), np.float32)]).shape == (0, 1)
    assert (score_all([np.ones((1, 8), np.float32)], [np.zeros((0, 8), np.float32)]) == 0).all()
