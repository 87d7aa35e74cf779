"""Judges regions, their alignment with words, and contrast pairs, as only a scene's author can."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from examples.scenes.captions import Caption
from examples.scenes.dataset import Sample
from examples.scenes.scene import HEIGHT, WIDTH, SceneObject, overlap

Floats = npt.NDArray[np.float32]
_COVERED = 0.5
"""Intersection over union of an object with a region that is of it."""


def object_hits(sample: Sample, boxes: Floats) -> list[bool]:
    """For every object: does a region cover it?

    Args:
        sample: the scene.
        boxes: (R, 4), as fractions of the picture's width and height.
    """
    return [any(_covers(box, item) for box in boxes) for item in sample.scene.objects]


def noun_hits(
    sample: Sample, boxes: Floats, caption: Caption, tokens: Sequence[str], similarity: Floats
) -> list[bool]:
    """For every object noun of a caption: does its best region cover an object it may mean?

    Args:
        sample: the scene.
        boxes: (R, 4), as fractions of the picture's width and height.
        caption: the sentence, with its links.
        tokens: the sentence's word pieces as the server returns them, [CLS] first.
        similarity: (R, W), regions by word pieces.
    """
    # The vocabulary holds every word of the captions, so words and pieces count alike.
    pieces = list(tokens[1 : len(caption.words) + 1])
    if pieces != caption.words:
        raise ValueError(f"the word pieces {pieces} are not the words {caption.words}")
    hits = []
    for position, meant in caption.links.items():
        best = boxes[similarity[:, position + 1].argmax()]
        hits.append(any(_covers(best, sample.scene.objects[i]) for i in meant))
    return hits


def contrast_hits(scores: Floats) -> tuple[bool, bool]:
    """For a pair's (2, 2) scores: does each caption prefer its own image?"""
    return bool(scores[0, 0] > scores[1, 0]), bool(scores[1, 1] > scores[0, 1])


def _covers(box: Floats, item: SceneObject) -> bool:
    x1, y1, x2, y2 = (box * (WIDTH, HEIGHT, WIDTH, HEIGHT)).tolist()
    return overlap((x1, y1, x2, y2), item.box) >= _COVERED
