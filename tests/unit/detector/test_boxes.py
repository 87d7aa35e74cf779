"""Suppression, held against the loop that it is defined by."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teran.detector.boxes import best_apart, best_scores_apart, overlaps


def boxes_of(random: np.random.Generator, count: int, spread: int) -> np.ndarray:
    """Random ones, in whole pixels, so that many are equal or just touch."""
    corners = random.integers(0, spread, (count, 2))
    sides = random.integers(0, spread, (count, 2))
    boxes: np.ndarray = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    return boxes


def one_by_one(boxes: np.ndarray, order: np.ndarray, threshold: float) -> list[int]:
    over = overlaps(boxes, boxes)
    kept: list[int] = []
    for i in order.tolist():
        if all(over[i, j] < np.float32(threshold) for j in kept):
            kept.append(i)
    return kept


def test_the_last_pixel_is_inside() -> None:
    first, second = [[0, 0, 9, 9]], [[5, 0, 14, 9], [10, 0, 19, 9]]
    found = overlaps(np.array(first, np.float32), np.array(second, np.float32))
    assert found.tolist() == [[pytest.approx(50 / 150), 0.0]]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    count=st.integers(0, 1500),
    spread=st.sampled_from([5, 40, 300]),
    threshold=st.sampled_from([0.1, 0.3, 0.7]),
    most=st.integers(1, 400),
)
def test_boxes_apart_are_those_of_the_loop(
    seed: int, count: int, spread: int, threshold: float, most: int
) -> None:
    boxes = boxes_of(np.random.default_rng(seed), count, spread)
    expected = one_by_one(boxes, np.arange(count), threshold)
    assert best_apart(boxes, threshold, most).tolist() == expected[:most]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    count=st.integers(1, 60),
    classes=st.sampled_from([1, 3, 8, 64, 70, 130]),
    spread=st.sampled_from([5, 40, 300]),
    steps=st.sampled_from([3, 1000]),
)
def test_scores_are_those_that_stay_in_some_class(
    seed: int, count: int, classes: int, spread: int, steps: int
) -> None:
    """Also where many scores are equal."""
    random = np.random.default_rng(seed)
    boxes = boxes_of(random, count, spread)
    scores = random.integers(1, steps + 1, (count, classes)).astype(np.float32) / steps
    expected = np.zeros(count, np.float32)
    for column in range(classes):
        order = np.argsort(-scores[:, column], kind="stable")
        for i in one_by_one(boxes, order, 0.3):
            expected[i] = max(expected[i], scores[i, column])
    assert best_scores_apart(boxes, scores, 0.3) == pytest.approx(expected)
