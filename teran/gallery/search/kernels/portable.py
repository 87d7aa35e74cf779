"""The kernel where no compiler was at hand: numpy's fp32 matmul, in blocks that stay in the cache.

Products of int8 values are integers below 2^24 for the usual dims, so fp32 holds them exactly.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from teran.gallery.search.kernels.base import Floats, Indices, Lanes, Rows, RowType, Sides
from teran.runtime.environment import available_cores

_BLOCK = 2**21
"""Values of rows, and at most so many cosines, in one block."""


class PortableKernel:
    """Matmul and reductions of numpy, on several threads."""

    name = "numpy"

    def __init__(self, threads: int = 0) -> None:
        self._pool = ThreadPoolExecutor(threads or available_cores(), "scan")

    def scores(
        self, rows: Rows, lanes: Lanes, *, clamp_rows: bool, which: Indices | None = None
    ) -> Floats:
        """See `Kernel.scores`."""
        count = len(rows) if which is None else len(which)
        result = np.empty((len(lanes), count), np.float32)
        _, length, dim = rows.values.shape
        step = max(1, _BLOCK // (length * max(dim, len(lanes.values))))

        def run(start: int) -> None:
            part = slice(start, start + step)
            cosine = _bounds_or_cosines(rows, lanes, part if which is None else which[part])
            result[:, part] = _pool(cosine, lanes, clamp_rows=clamp_rows)

        list(self._pool.map(run, range(0, count, step)))
        return result


def _bounds_or_cosines(rows: Rows, lanes: Lanes, items: slice | Indices) -> Floats:
    """Products of some items' rows with all lanes, or what bounds them from above: (n, R, L)."""
    values, scales = lanes.values, np.ones(1, np.float32)
    if rows.type is RowType.INT8:
        integers, scales = lanes.quantized()
        values = integers.astype(np.float32)
    block = rows.float32(items)
    cosine = (block.reshape(-1, block.shape[2]) @ values.T).reshape(*block.shape[:2], -1)
    cosine *= scales
    if rows.scale is not None:
        cosine *= rows.scale[items][..., None]
    if rows.residual is not None:
        assert rows.slack is not None
        assert lanes.residual is not None
        assert lanes.slack is not None
        cosine += rows.residual[items][..., None] * lanes.residual
        cosine += rows.slack[items][..., None] + lanes.slack
    return cosine


def _pool(cosine: Floats, lanes: Lanes, *, clamp_rows: bool) -> Floats:
    """Scores (Q, n) of cosines (n, R, L)."""
    score = np.zeros((len(lanes), len(cosine)), np.float32)
    ends = list(zip(lanes.starts, lanes.starts[1:], strict=False))
    if Sides.BEST_ROW in lanes.sides:
        best = cosine.max(axis=1)
        best = best.clip(0) if clamp_rows else best
        for query, (first, last) in enumerate(ends):
            score[query] += best[:, first:last].sum(axis=1)
    if Sides.BEST_LANE in lanes.sides:
        for query, (first, last) in enumerate(ends):
            if first < last:
                best = cosine[:, :, first:last].max(axis=2)
                score[query] += (best.clip(0) if lanes.clamp[query] else best).sum(axis=1)
    return score
