"""Pairs that can be learnt from: images of one of eight kinds, each with a word of its own."""

import numpy as np

from teran.training import PairDataset
from tests.conftest import TINY


def pairs(count: int, seed: int, *, even: bool = True) -> PairDataset:
    """Images of 36 regions with captions of five word pieces, or of 30 to 40 and five or six."""
    random = np.random.default_rng(seed)
    kinds = [i % 8 for i in range(count)]
    centres = np.random.default_rng(0).normal(0, 2, (8, TINY.feature_dim))
    regions = [36] * count if even else random.integers(30, 41, count).tolist()
    features = [
        (centres[kind] + random.normal(0, 0.1, (n, TINY.feature_dim))).astype(np.float32)
        for kind, n in zip(kinds, regions, strict=True)
    ]
    boxes = [np.tile(np.array([0.1, 0.1, 0.5, 0.5], np.float32), (n, 1)) for n in regions]
    more = [[5] * (i % 2) * (not even) for i in range(count)]
    captions = [[[2, 7 + k, 12 + k, *one, 4, 3]] for k, one in zip(kinds, more, strict=True)]
    return PairDataset(features, boxes, captions)
