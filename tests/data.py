"""Random images and captions for the tiny model."""

import numpy as np
from teran_client import ImageRegions

from tests.conftest import TINY, WORDS


def images(count: int, seed: int = 0, longest: int = 50) -> list[ImageRegions]:
    random = np.random.default_rng(seed)
    made = []
    for i in range(count):
        regions = int(random.integers(1, longest + 1))
        corner = random.random((regions, 2)) * 0.5
        boxes = np.concatenate([corner, corner + 0.3], axis=1)
        features = random.exponential(1.0, (regions, TINY.feature_dim))
        made.append(
            ImageRegions(features.astype(np.float32), boxes.astype(np.float32), f"image-{i}")
        )
    return made


def captions(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    random = np.random.default_rng(seed)
    words = [word for word in WORDS if not word.startswith("##")]
    return [
        " ".join(random.choice(words, size=int(random.integers(1, longest + 1))))
        for _ in range(count)
    ]
