"""Judges word-region alignment and contrast pairs, with what only the scene's author knows."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from examples.scenes.captions import Caption
from examples.scenes.dataset import Sample
from examples.scenes.scene import overlap

Floats = npt.NDArray[np.float32]


def noun_hits(
    sample: Sample, caption: Caption, tokens: Sequence[str], similarity: Floats
) -> list[bool]:
    """For every object noun of a caption: is its best region the right object?

    A region is right where it covers an object the noun may mean by an IoU of at least 0.5.

    Args:
        sample: the scene.
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
        best = int(similarity[: len(sample.pixel_boxes), position + 1].argmax())
        x1, y1, x2, y2 = sample.pixel_boxes[best].tolist()
        objects = [sample.scene.objects[i] for i in meant]
        hits.append(any(overlap((x1, y1, x2, y2), item.box) >= 0.5 for item in objects))
    return hits


def contrast_hits(scores: Floats) -> tuple[bool, bool]:
    """For a pair's (2, 2) scores: does each caption prefer its own image?"""
    return bool(scores[0, 0] > scores[1, 0]), bool(scores[1, 1] > scores[0, 1])
