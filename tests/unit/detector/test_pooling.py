"""Pooling of regions, held against its definition."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teran.detector.pooling import levels_of, roi_pool


def rounded(value: float) -> int:
    return math.floor(np.float32(value) / np.float32(16) + np.float32(0.5))


def by_definition(features: np.ndarray, box: np.ndarray) -> np.ndarray:
    channels, height, width = features.shape
    x1, y1, x2, y2 = (rounded(value) for value in box)
    rows, columns = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    result = np.zeros((channels, 14, 14), np.float32)
    step_y, step_x = np.float32(rows) / np.float32(14), np.float32(columns) / np.float32(14)
    for i in range(14):
        top = min(max(math.floor(np.float32(i) * step_y) + y1, 0), height)
        end = min(max(math.ceil(np.float32(i + 1) * step_y) + y1, 0), height)
        for j in range(14):
            left = min(max(math.floor(np.float32(j) * step_x) + x1, 0), width)
            right = min(max(math.ceil(np.float32(j + 1) * step_x) + x1, 0), width)
            if end > top and right > left:
                result[:, i, j] = features[:, top:end, left:right].max(axis=(1, 2))
    return result


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), height=st.integers(1, 63), width=st.integers(1, 63))
def test_cells_are_the_largest_values_of_their_parts(seed: int, height: int, width: int) -> None:
    """Of regions of any size, also beyond the map, in whole and in broken pixels."""
    random = np.random.default_rng(seed)
    features = random.standard_normal((2, 3, height, width)).astype(np.float32)
    corners = random.uniform(-8, 16 * max(height, width), (12, 4))
    boxes = np.concatenate(
        [np.minimum(corners[:, :2], corners[:, 2:]), corners.max(1)[:, None].repeat(2, 1)], axis=1
    )
    boxes = (boxes.round() if seed % 2 else boxes).astype(np.float32).reshape(2, 6, 4)
    arguments = (torch.from_numpy(features), torch.from_numpy(boxes))
    found = roi_pool(*arguments).numpy()
    assert (found == roi_pool(*arguments, levels_of(16 * 63)).numpy()).all()
    for i, (cells, box) in enumerate(zip(found, boxes.reshape(-1, 4), strict=True)):
        assert (cells == by_definition(features[i // 6], box)).all()
