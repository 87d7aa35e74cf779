"""Which proposals become an image's regions."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teran.detector.boxes import Floats, best_scores_apart
from teran.detector.config import DetectorConfig
from teran.errors import TeranInputError

_NMS = 0.3
_CONFIDENCE = 0.2
"""Score from which a proposal is chosen, as far as their number allows."""


@dataclass(frozen=True, eq=False)
class Regions:
    """A photo's regions."""

    features: Floats
    """(R, F)"""
    boxes: Floats
    """(R, 4), x1 y1 x2 y2 in the photo's pixels."""
    confidence: Floats
    """(R,), the score of the class that each was chosen for."""
    labels: npt.NDArray[np.int64]
    """(R,), the likeliest class, counted without the background."""


def choose(features: Floats, classes: Floats, boxes: Floats, config: DetectorConfig) -> Regions:
    """Choose among all proposals of a photo.

    Those of enough confidence, in the order of proposals; where they are too few, the fewest
    allowed, and where they are too many, the most: the surest first.

    Args:
        features: (P, F)
        classes: (P, 1 + K), probabilities, the background first.
        boxes: (P, 4), in the photo's pixels.
        config: how many.

    Raises:
        TeranInputError: they differ in their number, or hold what is no number.
    """
    counts = {len(features), len(classes), len(boxes)}
    if len(counts) > 1 or 0 in counts or classes.shape[1] < 2:
        raise TeranInputError(
            f"there are {len(boxes)} proposals, {len(features)} features of them, and scores of "
            f"{len(classes)} for {classes.shape[1]} classes"
        )
    if not all(np.isfinite(values).all() for values in (features, classes, boxes)):
        raise TeranInputError("features, scores or boxes hold NaN or infinite values")
    confidence = best_scores_apart(boxes, classes[:, 1:], _NMS)
    chosen = (confidence >= _CONFIDENCE).nonzero()[0]
    if not config.min_regions <= len(chosen) <= config.max_regions:
        is_few = len(chosen) < config.min_regions
        count = config.min_regions if is_few else config.max_regions
        chosen = np.argsort(-confidence, kind="stable")[:count]
    labels = classes[chosen, 1:].argmax(axis=1).astype(np.int64)
    return Regions(features[chosen], boxes[chosen], confidence[chosen], labels)
