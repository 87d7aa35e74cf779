"""ROUGE-L of sentences, as COCO's caption evaluation computes it (Lin, 2004).

Words are what single spaces part, in lower case. Of several references the best precision and the
best recall count, each by itself.
"""

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

BETA = 1.2
"""How much more recall weighs than precision."""
_ROWS = 256
"""Candidates that are compared at a time."""


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """ROUGE-L of a sentence, from 0 to 1.

    Args:
        candidate: the sentence.
        references: what it is compared with, at least one.
    """
    words = _words(candidate)
    others = [_words(reference) for reference in references]
    common = [LCSseq.similarity(words, other) for other in others]
    precision = max(common) / len(words)
    recall = max(length / len(other) for length, other in zip(common, others, strict=True))
    return float(_combined(np.array(precision), np.array(recall)))


def relevance(
    captions: Sequence[str], image_of_caption: npt.ArrayLike, images: int
) -> Iterator[npt.NDArray[np.float32]]:
    """ROUGE-L of every caption with the captions of every image, some rows (m, N) at a time.

    Args:
        captions: M of them, those of an image one after the other.
        image_of_caption: (M,), the image each belongs to, ascending; each of them has one.
        images: N.
    """
    owner = np.asarray(image_of_caption)
    starts = np.searchsorted(owner, np.arange(images))
    numbers: dict[str, str] = {}
    free = (chr(code) for code in count(1) if not 0xD800 <= code < 0xE000)
    for word in (word for caption in captions for word in _words(caption)):
        if word not in numbers:  # a word is a character: so rapidfuzz compares many at once
            numbers[word] = next(free)
    lines = ["".join(numbers[word] for word in _words(caption)) for caption in captions]
    lengths = np.array([len(line) for line in lines], np.float64)
    for first in range(0, len(lines), _ROWS):
        rows = slice(first, first + _ROWS)
        common = cdist(lines[rows], lines, scorer=LCSseq.similarity, dtype=np.uint16, workers=-1)
        precision = np.maximum.reduceat(common, starts, axis=1) / lengths[rows, None]
        recall = np.maximum.reduceat(common / lengths, starts, axis=1)
        yield _combined(precision, recall).astype(np.float32)


def _words(sentence: str) -> list[str]:
    return sentence.lower().split(" ")


def _combined(
    precision: npt.NDArray[np.float64], recall: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    below = recall + BETA**2 * precision
    combined: npt.NDArray[np.float64] = (
        (1 + BETA**2) * precision * recall / np.where(below == 0, 1, below)
    )
    return combined
