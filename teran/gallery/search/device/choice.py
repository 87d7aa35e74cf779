"""Chooses how a device is scanned: by our own kernel where it is found to work."""

import logging
from itertools import product
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from teran.gallery.search.device.portable import PortableScan
from teran.gallery.search.device.precision import Kept, Precision
from teran.gallery.search.kernels.base import Floats, Lanes, Sides

_log = logging.getLogger(__name__)
_TOLERANCE = 0.02
"""Of a cosine: what rounding in half precision, or in bf16 after fp8, may do to it."""


class Scan(Protocol):
    """Queries, laid out for a device."""

    def scan(self, rows: Kept, into: Tensor, *, clamp_rows: bool) -> None:
        """See `PortableScan.scan`."""


class Scans:
    """Makes scans for one device."""

    def __init__(self, device: torch.device, precision: Precision) -> None:
        """Find out what works there."""
        self._device, self._precision = device, precision
        self.fused = device.type == "cuda" and fused_works(device, precision)

    def of(self, lanes: Lanes) -> Scan:
        """For some queries."""
        if self.fused:
            from teran.gallery.search.device.fused import MAX_LANES, FusedScan

            if np.diff(lanes.starts).max() <= MAX_LANES:
                return FusedScan(lanes, self._device, self._precision)
        return PortableScan(lanes, self._device, self._precision)


def fused_works(device: torch.device, precision: Precision) -> bool:
    """Whether our kernel runs on a device and says what torch says, of a few items."""
    try:
        from teran.gallery.search.device.fused import FusedScan

        random = np.random.default_rng(0)

        def unit(*shape: int) -> Floats:
            vectors = random.standard_normal(shape).astype(np.float32)
            result: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
            return result

        queries = [unit(count, 128) for count in (12, 1, 33)]
        for length, sides in product((36, 150), (Sides.BEST_ROW, Sides.BEST_LANE)):
            rows = Kept.of(torch.from_numpy(unit(9, length, 128)).to(device), precision)
            lanes = Lanes.of(queries, sides, [True, False, True])
            found = torch.full((len(queries), len(rows)), torch.nan, device=device)
            right = found.clone()
            FusedScan(lanes, device, precision).scan(rows, found, clamp_rows=True)
            PortableScan(lanes, device, precision).scan(rows, right, clamp_rows=True)
            summed = length if sides is Sides.BEST_LANE else 33
            if not (found - right).abs().max() < _TOLERANCE * summed:
                _log.warning("the kernel for searches is wrong on %s: torch is used", device)
                return False
    except Exception as error:  # of a compiler, a driver: searches do without
        _log.warning("the kernel for searches does not run on %s: %s; torch is used", device, error)
        return False
    return True
