"""Scores of all pairs of many images and captions, at the speed of the matrix products in them.

Regions and words are laid out without padding, so that no product is of a row that is none. A block
of cosines is pooled while it is in the cache: the maximum over the regions of an image, then the
sum over the words of a caption, or the other way round.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from teran.contract import USUAL_REGIONS
from teran.model.alignment import align
from teran.model.config import Pooling

Floats = npt.NDArray[np.float32]
_REGIONS, _WORDS = 576, 1024
"""Rows of a block: its cosines take 2.3 MB."""
_FUSED = {Pooling.MRSW, Pooling.MWSR, Pooling.SYMM, Pooling.MRAVGW}
_IMAGES, _CAPTIONS = 8, 64
"""Of a block in the other modes."""


def score_all(
    regions: Sequence[Floats],
    words: Sequence[Floats],
    pooling: Pooling = Pooling.MRSW,
    progress: Callable[[int], None] = lambda _: None,
) -> Floats:
    """Score every image against every caption, (N, M).

    Args:
        regions: (R, E) for each image.
        words: (W, E) for each caption; one without words scores 0.
        pooling: the mode.
        progress: told how many more images are done.
    """
    scores = np.zeros((len(regions), len(words)), np.float32)
    fused = _Words(words) if pooling in _FUSED else None

    def score(part: slice) -> None:
        if fused:
            _score(regions[part], fused, pooling, scores[part])
        else:
            _score_padded(regions[part], words, pooling, scores[part])
        progress(part.stop - part.start)

    rows = [len(one) for one in regions]
    parts = _parts(rows if fused else [1] * len(rows), _REGIONS if fused else _IMAGES)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one block a core, as a block's pooling does not spread
    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(score, parts))
    finally:
        torch.set_num_threads(threads)
    return scores


class _Words:
    """The words of all captions one after the other, in blocks that end where a caption does."""

    def __init__(self, words: Sequence[Floats]) -> None:
        counts = np.array([len(one) for one in words])
        self.counts = counts
        described = np.flatnonzero(counts)
        self.blocks: list[tuple[npt.NDArray[np.int64], torch.Tensor, npt.NDArray[np.int64]]] = []
        for part in _parts(counts[described].tolist(), _WORDS):
            captions = described[part]
            starts = np.concatenate([[0], np.cumsum(counts[captions])[:-1]])
            block = np.concatenate([words[i] for i in captions])
            self.blocks.append((captions, torch.from_numpy(block).T, starts))


def _score(regions: Sequence[Floats], words: _Words, pooling: Pooling, out: Floats) -> None:
    counts = np.array([len(one) for one in regions])
    present = np.flatnonzero(counts)
    if not len(present):
        return
    rows = torch.from_numpy(np.concatenate([regions[i] for i in present]))
    starts = np.concatenate([[0], np.cumsum(counts[present])[:-1]])
    even = len(set(counts[present])) == 1
    clamped = counts[present] < USUAL_REGIONS
    for captions, block, word_starts in words.blocks:
        cosines = torch.mm(rows, block)
        pooled = np.zeros((len(present), len(captions)), np.float32)
        if pooling is not Pooling.MWSR:
            best = (
                cosines.view(len(present), -1, cosines.shape[1]).amax(dim=1).numpy()
                if even
                else np.maximum.reduceat(cosines.numpy(), starts, axis=0)
            )
            if clamped.any():
                best = np.where(clamped[:, None], np.maximum(best, 0), best)
            pooled += np.add.reduceat(best, word_starts, axis=1)
            if pooling is Pooling.MRAVGW:
                pooled /= words.counts[captions]
        if pooling in (Pooling.MWSR, Pooling.SYMM):
            best = np.maximum(np.maximum.reduceat(cosines.numpy(), word_starts, axis=1), 0)
            pooled += np.add.reduceat(best, starts, axis=0)
        out[np.ix_(present, captions)] = pooled


def _score_padded(
    regions: Sequence[Floats], words: Sequence[Floats], pooling: Pooling, out: Floats
) -> None:
    images = _padded(regions)
    for first in range(0, len(words), _CAPTIONS):
        part = slice(first, first + _CAPTIONS)
        out[:, part] = align(images, _padded(words[part]), pooling=pooling)[0].numpy()


def _padded(sets: Sequence[Floats]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(one) for one in sets], True)


def _parts(counts: Sequence[int], most: int) -> list[slice]:
    """Ranges of items that have no more than so many rows together, or one item each."""
    parts, first, rows = [], 0, 0
    for i, count in enumerate(counts):
        if rows and rows + count > most:
            parts.append(slice(first, i))
            first, rows = i, 0
        rows += count
    return [*parts, slice(first, len(counts))] if len(counts) else []
