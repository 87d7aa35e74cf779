"""A scan by torch's operations: cosines are made in blocks, reduced at once and thrown away."""

import torch
from torch import Tensor
from torch.nn import functional as F

from teran.gallery.search.device.precision import Kept, Precision
from teran.gallery.search.kernels.base import Lanes, Sides

_BLOCK = 1 << 27
"""Cosines made at a time."""
_FEWEST_ROWS = 32
"""That torch multiplies in int8 on a GPU: it refuses 16 and fewer."""
_LANE_STEP = 16
"""Lanes are padded to a multiple of this, which tensor cores take at a time."""


class PortableScan:
    """All queries' lanes on a device, and how rows are scored against them."""

    def __init__(self, lanes: Lanes, device: torch.device, precision: Precision) -> None:
        count, dim = lanes.values.shape
        self._width = count + -count % _LANE_STEP
        padded = torch.zeros(self._width, dim)
        padded[:count] = torch.from_numpy(lanes.values)
        self._lanes, self._precision = Kept.of(padded.to(device), precision), precision
        self._sides = lanes.sides
        self._starts = lanes.starts.tolist()
        self._clamp = lanes.clamp.tolist()
        owner = torch.zeros(self._width, len(lanes))
        for query, (first, last) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            owner[first:last, query] = 1
        self._owner = owner.to(device)

    def scan(self, rows: Kept, into: Tensor, *, clamp_rows: bool) -> None:
        """Write the scores of items.

        Args:
            rows: (N, R, D)
            into: (Q, N) fp32.
            clamp_rows: whether a lane's best row counts as at least 0.
        """
        length = rows.values.shape[1]
        block = _BLOCK // 4 if rows.scale is not None else _BLOCK  # of wider numbers, held twice
        step = max(1, block // (length * self._width))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            cosine = self._multiply(some).view(len(some), length, -1)
            into[:, start : start + len(some)] = self._reduce(cosine, clamp_rows=clamp_rows).T

    def _multiply(self, rows: Kept) -> Tensor:
        """Cosines (n x R, L) of rows (n, R, D) with all lanes."""
        left, right = rows.values.flatten(0, 1), self._lanes.values.T
        if rows.scale is not None and self._lanes.scale is not None:
            product = _product(left, right)
            return product.mul_(rows.scale.flatten()[:, None]).mul_(self._lanes.scale)
        if self._precision is not Precision.FP8:
            return left @ right
        if left.is_cuda:
            scale = torch.full((), self._precision.factor**0.5, device=left.device)
            return torch._scaled_mm(left, right, scale, scale, out_dtype=torch.bfloat16)
        return left.float() @ right.float() * self._precision.factor

    def _reduce(self, cosine: Tensor, *, clamp_rows: bool) -> Tensor:
        """Scores (n, Q) of cosines (n, R, L)."""
        score = torch.zeros(len(cosine), self._owner.shape[1], device=cosine.device)
        if Sides.BEST_ROW in self._sides:
            best = cosine.amax(dim=1).float()
            score += (best.clamp(min=0) if clamp_rows else best) @ self._owner
        if Sides.BEST_LANE in self._sides:
            for query, (first, last) in enumerate(
                zip(self._starts, self._starts[1:], strict=False)
            ):
                best = cosine[:, :, first:last].amax(dim=2).float()
                score[:, query] += (best.clamp(min=0) if self._clamp[query] else best).sum(dim=1)
        return score


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Of matrices in int8, in fp32."""
    if not left.is_cuda:
        # Exact up to 1,040 values, and faster there than integers are.
        return left.float() @ right.float()
    count = len(left)
    if count < _FEWEST_ROWS:
        left = F.pad(left, (0, 0, 0, _FEWEST_ROWS - count))
    return torch._int_mm(left, right)[:count].float()
