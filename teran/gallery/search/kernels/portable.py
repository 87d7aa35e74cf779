"""The kernel where no compiler was at hand: torch's fp32 matmul, in blocks that stay in the cache.

Products of int8 values are integers below 2^24 for the usual dims, so fp32 holds them exactly.
"""

import numpy as np
import numpy.typing as npt

from teran.gallery.search.kernels.base import Floats, Lanes, Rows, RowType, Sides
from teran.runtime.environment import available_cores

_BLOCK = 2**21
"""Values of rows, and at most so many cosines, in one block."""


class PortableKernel:
    """Matmul and reductions of torch."""

    name = "torch"

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads or available_cores()

    def scores(
        self,
        rows: Rows,
        lanes: Lanes,
        *,
        clamp_rows: bool,
        which: npt.NDArray[np.int64] | None = None,
    ) -> Floats:
        """See `Kernel.scores`."""
        import torch

        torch.set_num_threads(self._threads)
        count = len(rows) if which is None else len(which)
        result = np.empty((len(lanes), count), np.float32)
        if not count:
            return result
        scales = np.ones(len(lanes.values), np.float32)
        values = lanes.values
        if rows.type is RowType.INT8:
            integers, scales = lanes.quantized()
            values = integers.astype(np.float32)
        transposed, lane_scale = torch.from_numpy(values.T.copy()), torch.from_numpy(scales)
        owner = torch.zeros(len(values), len(lanes))
        for query, (start, end) in enumerate(zip(lanes.starts, lanes.starts[1:], strict=False)):
            owner[start:end, query] = 1
        _, length, dim = rows.values.shape
        step = max(1, _BLOCK // (length * max(dim, len(values))))
        for start in range(0, count, step):
            part = slice(start, start + step)
            items = part if which is None else which[part]
            block = torch.from_numpy(rows.float32(items))
            cosine = (block.reshape(-1, dim) @ transposed).reshape(len(block), length, -1)
            cosine *= lane_scale
            if rows.scale is not None:
                cosine *= torch.from_numpy(rows.scale[items])[..., None]
            if rows.residual is not None:
                assert rows.slack is not None
                assert lanes.residual is not None
                assert lanes.slack is not None
                residual = torch.from_numpy(rows.residual[items])[..., None]
                cosine += residual * torch.from_numpy(lanes.residual)
                cosine += torch.from_numpy(rows.slack[items])[..., None]
                cosine += torch.from_numpy(lanes.slack)
            score = torch.zeros(len(block), len(lanes))
            if Sides.BEST_ROW in lanes.sides:
                best = cosine.amax(dim=1)
                score += (best.clamp(min=0) if clamp_rows else best) @ owner
            if Sides.BEST_LANE in lanes.sides:
                for query, (first, last) in enumerate(
                    zip(lanes.starts, lanes.starts[1:], strict=False)
                ):
                    if first < last:
                        best = cosine[:, :, first:last].amax(dim=2)
                        best = best.clamp(min=0) if lanes.clamp[query] else best
                        score[:, query] += best.sum(dim=1)
            result[:, part] = score.T.numpy()
        return result
