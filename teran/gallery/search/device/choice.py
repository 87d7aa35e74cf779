"""Chooses how a device is scanned: by our own kernel where it is found to work."""

import logging
from collections.abc import Sequence
from functools import cache
from itertools import product
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from teran.gallery.search.device.portable import PortableScan
from teran.gallery.search.device.precision import Kept, Precision
from teran.gallery.search.kernels.base import Floats, Lanes, Sides

_log = logging.getLogger(__name__)
_TOLERANCE = 0.003
"""Of a cosine: sums in another order, and the rounding of torch's in half precision."""
_COUNTS = ((9,), (12, 1, 15), (33, 28), (12,) * 9 + (100,))
"""Lanes of queries: for every width of a block, and for several blocks."""
_TIMED = (2048, 36, 1024)
"""Items, rows and values that both ways are timed with: 150 MB in fp16."""
_WIDTHS = (12, 96, 768)


class Scan(Protocol):
    """Queries, laid out for a device."""

    def scan(self, rows: Kept, into: Tensor, *, clamp_rows: bool) -> None:
        """See `PortableScan.scan`."""


class Scans:
    """Makes scans for one device."""

    def __init__(self, device: torch.device, precision: Precision) -> None:
        """Find out what works there, and what is faster."""
        self._device, self._precision = device, precision
        self.fused_up_to = 0.0
        """Lanes of all queries."""
        if device.type == "cuda" and fused_works(device, precision):
            self.fused_up_to = fused_wins_up_to(device, precision)

    def of(self, lanes: Lanes) -> Scan:
        """For some queries."""
        if len(lanes.values) <= self.fused_up_to:
            from teran.gallery.search.device.fused import FusedScan

            if FusedScan.fits(lanes):
                return FusedScan(lanes, self._device, self._precision)
        return PortableScan(lanes, self._device, self._precision)


@cache
def fused_wins_up_to(device: torch.device, precision: Precision) -> float:
    """Lanes up to which our kernel takes less time than torch's operations, as measured.

    With more lanes than a block has, it reads rows from the cache again for each block, which may
    cost more than writing cosines does.
    """
    from teran.gallery.search.device.fused import FusedScan

    items = Kept.of(torch.randn(_TIMED, device=device), precision)
    widest, random = 0.0, np.random.default_rng(0)
    for width in _WIDTHS:
        queries = list(random.standard_normal((width // 12, 12, _TIMED[-1])).astype(np.float32))
        lanes = Lanes.of(queries, Sides.BEST_ROW)
        ours, theirs = (
            seconds_of(kind(lanes, device, precision), items, len(queries))
            for kind in (FusedScan, PortableScan)
        )
        if ours > theirs:
            return widest
        widest = width
    return np.inf


def seconds_of(scan: Scan, rows: Kept, queries: int) -> float:
    """The least time of a few scans on a GPU."""
    into, times = torch.empty(queries, len(rows), device=rows.values.device), []
    for _ in range(4):  # the first one may compile
        torch.cuda.synchronize(into.device)
        start = perf_counter()
        scan.scan(rows, into, clamp_rows=False)
        torch.cuda.synchronize(into.device)
        times.append(perf_counter() - start)
    return min(times)


@cache
def fused_works(device: torch.device, precision: Precision) -> bool:
    """Whether our kernel runs on a device and says what torch says, of a few items."""
    try:
        worst = max(_difference(device, precision, counts) for counts in _COUNTS)
    except Exception as error:  # of a compiler, a driver: searches do without
        _log.warning("the kernel for searches does not run on %s: %s; torch is used", device, error)
        return False
    if not worst <= _TOLERANCE:
        _log.warning("the kernel for searches is wrong on %s: torch is used", device)
        return False
    return True


def _difference(device: torch.device, precision: Precision, counts: Sequence[int]) -> float:
    """Between our kernel's scores and torch's, as a share of the cosines in them."""
    from teran.gallery.search.device.fused import FusedScan

    random, dim, items = np.random.default_rng(0), 192, 9

    def unit(*shape: int) -> Floats:
        vectors = random.standard_normal(shape).astype(np.float32)
        result: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        return result

    queries, worst = [unit(count, dim) for count in counts], 0.0
    for length, sides in product((36, 150), (Sides(1), Sides(2), Sides(3))):
        rows = Kept.of(torch.from_numpy(unit(items, length, dim)).to(device), precision)
        lanes = Lanes.of(queries, sides, [i % 2 == 0 for i in range(len(queries))])
        found = torch.full((len(queries), items), torch.nan, device=device)
        right = found.clone()
        FusedScan(lanes, device, precision).scan(rows, found, clamp_rows=True)
        PortableScan(lanes, device, precision).scan(rows, right, clamp_rows=True)
        summed = np.array(counts) * (Sides.BEST_ROW in sides) + length * (Sides.BEST_LANE in sides)
        shares = (found - right).abs().amax(dim=1).cpu().numpy() / summed
        worst = max(worst, float(shares.max())) if np.isfinite(shares).all() else np.inf
    return worst
