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
    hits = []
    pieces = [token for token in tokens[1:] if token]
    # Each of the captions' words is one word piece, so they count alike.
    spoken = [part for word in caption.words for part in word.replace(",", " , ").split()]
    positions = [i for i, word in enumerate(caption.words) if i in caption.links]
    offset = {i: sum(1 for _ in caption.words[:i]) for i in positions}
    assert pieces[: len(spoken)] == spoken, (pieces, spoken)
    for i in positions:
        best = int(similarity[: len(sample.pixel_boxes), offset[i] + 1].argmax())
        box = tuple(float(value) for value in sample.pixel_boxes[best])
        hits.append(
            any(overlap(box, sample.scene.objects[j].box) >= 0.5 for j in caption.links[i])  # type: ignore[arg-type]
        )
    return hits


def contrast_hits(scores: Floats) -> tuple[bool, bool]:
    """For a pair's (2, 2) scores: does each caption prefer its own image?"""
    return bool(scores[0, 0] > scores[1, 0]), bool(scores[1, 1] > scores[0, 1])
