"""Scans by our own kernel, which writes only what cosines are reduced to.

With torch's operations every cosine goes to memory and comes back: at 64 queries that is more than
the rows themselves (docs/gallery.md has the arithmetic).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
from torch import Tensor

from teran.gallery.search.device.fused_kernel import scan
from teran.gallery.search.device.precision import Kept, Precision
from teran.gallery.search.kernels.base import Lanes, Sides

_BLOCK = 128
"""Most lanes of a block."""
_FEWEST_LANES = 16
"""That tensor cores take at a time."""


@dataclass(frozen=True)
class Tile:
    """What one program works on, by arithmetic: no GPU has been asked."""

    lanes: int
    dim: int
    """Values of a row at a time."""
    warps: int
    rows: int = 128
    stages: int = 3
    """Loads in flight: what they hold of shared memory is less than the 99 KiB of small GPUs."""

    @classmethod
    def of(cls, lanes: int, dim: int, value_bytes: int) -> "Tile":
        """The tile for so many lanes of all queries, padded, and rows of `dim` values."""
        width = max(_FEWEST_LANES, min(_BLOCK, triton.next_power_of_2(lanes)))
        step = 128 if value_bytes == 1 and dim % 128 == 0 else 64
        return cls(width, step, 8 if width > 64 else 4)


class FusedScan:
    """All queries' lanes on a device, in the layout of the kernel."""

    def __init__(self, lanes: Lanes, device: torch.device, precision: Precision) -> None:
        """Lay out queries for which it `fits`."""
        self._sides, self._factor, self._queries = lanes.sides, precision.factor, len(lanes)
        total, dim = lanes.values.shape
        self._tile = Tile.of(total, dim, precision.type.itemsize)
        counts, width = np.diff(lanes.starts), self._tile.lanes
        starts, first_query = _places(counts, width, whole=Sides.BEST_LANE in lanes.sides)
        self._blocks = len(first_query) - 1
        query = np.repeat(np.arange(self._queries, dtype=np.int32), counts)
        places = np.arange(total) - lanes.starts[query] + starts[query]
        values = np.zeros((self._blocks * width, dim), np.float32)
        values[places] = lanes.values
        owner = np.full(len(values), -1, np.int32)
        owner[places] = query
        self._lanes = Kept.of(torch.from_numpy(values).to(device), precision)
        self._owner = torch.from_numpy(owner).to(device)
        self._first_query = torch.from_numpy(first_query).to(device)
        self._clamp = torch.from_numpy(lanes.clamp.astype(np.int8)).to(device)
        self._queries_of_lanes = torch.from_numpy(
            (owner[:, None] == np.arange(self._queries)).astype(np.float32)
        ).to(device)

    @staticmethod
    def fits(lanes: Lanes) -> bool:
        """Whether the kernel is for such queries: one whose lanes compete lies in one block."""
        return Sides.BEST_LANE not in lanes.sides or int(np.diff(lanes.starts).max()) <= _BLOCK

    def scan(self, rows: Kept, into: Tensor, *, clamp_rows: bool) -> None:
        """See `PortableScan.scan`."""
        items, length, dim = rows.values.shape
        tile, device = self._tile, into.device
        best_rows = sums = None
        if Sides.BEST_ROW in self._sides:
            best_rows = torch.full((items, len(self._lanes)), -torch.inf, device=device)
        if Sides.BEST_LANE in self._sides:
            sums = torch.zeros(items, self._queries, device=device)
        grid: Any = (triton.cdiv(items * length, tile.rows) * self._blocks,)
        with torch.cuda.device_of(into):  # where the compiler starts it
            scan[grid](
                rows.values,
                rows.scale,
                self._lanes.values,
                self._lanes.scale,
                self._owner,
                self._first_query,
                self._clamp,
                best_rows,
                sums,
                items * length,
                length,
                dim,
                self._blocks,
                self._queries,
                self._factor,
                ROWS=tile.rows,
                LANES=tile.lanes,
                DIM=tile.dim,
                BEST_ROW=best_rows is not None,
                BEST_LANE=sums is not None,
                SCALED=rows.scale is not None,
                num_warps=tile.warps,
                num_stages=tile.stages,
            )
        score = torch.zeros(items, self._queries, device=device) if sums is None else sums
        if best_rows is not None:
            best = best_rows.clamp_(min=0) if clamp_rows else best_rows
            score += best @ self._queries_of_lanes
        into.copy_(score.T)


def _places(
    counts: npt.NDArray[np.int32], width: int, *, whole: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Where every query's lanes begin in blocks of a width, and the first query of every block.

    Args:
        counts: lanes of every query.
        width: lanes of a block.
        whole: whether a query must not lie in two blocks.
    """
    if not whole:
        blocks = -(-int(counts.sum()) // width)
        return np.cumsum(counts) - counts, np.zeros(blocks + 1, np.int32)
    starts, first_query, end = [], [0], 0
    for query, count in enumerate(counts.tolist()):
        if end + count > len(first_query) * width:
            end = len(first_query) * width
            first_query.append(query)
        starts.append(end)
        end += count
    return np.array(starts), np.array([*first_query, len(counts)], np.int32)
