"""Scores all pairs of encoded images and captions in blocks that the server accepts."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from teran.contract import USUAL_REGIONS
from teran_client import protocol
from teran_client.images import Floats

_FEW, _SOME, _MANY = 4, 64, 256
"""Images and captions in one request: many of the one and few of the other, or some of both."""


async def align(
    send: Callable[[protocol.Arrays], Awaitable[Floats]],
    info: protocol.ModelInfo,
    regions: Sequence[Floats],
    words: Sequence[Floats],
    in_flight: int,
) -> Floats:
    """Score every image against every caption: (N, M).

    Args:
        send: sends one request to the alignment and returns its scores.
        info: what the server takes.
        regions: (R, E) for each image.
        words: (W, E) for each caption.
        in_flight: requests kept under way.
    """
    scores = np.zeros((len(regions), len(words)), np.float32)
    if not scores.size:
        return scores
    width = max(len(one) for one in words)
    height = max(max(len(one) for one in regions), USUAL_REGIONS)
    block, wide = _SOME, _SOME
    if len(words) <= _FEW:
        block, wide = _MANY, _FEW
    elif len(regions) <= _FEW:
        block, wide = _FEW, _MANY
    block = min(block, max(info.max_cells // (height * width), 1))
    wide = min(wide, max(info.max_cells // (block * height * width), 1))
    limit = asyncio.Semaphore(in_flight)

    async def part(row: int, column: int) -> None:
        async with limit:
            image_block = regions[row : row + block]
            word_block = words[column : column + wide]
            scores[row : row + block, column : column + wide] = await send(
                {
                    "region_embeddings": protocol.stack(
                        image_block, "region embeddings", info.embed_dim
                    ),
                    "word_embeddings": protocol.stack(
                        word_block, "word embeddings", info.embed_dim
                    ),
                }
            )

    corners = [(r, c) for r in range(0, len(regions), block) for c in range(0, len(words), wide)]
    parts = [asyncio.create_task(part(*corner)) for corner in corners]
    try:
        await asyncio.gather(*parts)
    finally:  # one that fails ends the others
        for unfinished in parts:
            unfinished.cancel()
    return scores
