"""The native kernel, `scan.c`, which the build compiles where it finds a compiler."""

import ctypes
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teran.gallery.search.kernels.base import (
    DIM_STEP,
    Floats,
    Indices,
    Lanes,
    Rows,
    RowType,
    Sides,
    to_bf16,
    to_int8,
)
from teran.gallery.search.kernels.portable import PortableKernel
from teran.runtime.environment import available_cores

LIBRARY = Path(__file__).parent / "libscan.so"
_PANEL = 16
_PARTS_PER_THREAD = 8
"""Pieces of work for each thread, so that none waits long for the last."""
_SMALLEST_PART = 1 << 21
"""Products in a piece of work: less is done sooner than handed over."""
_log = logging.getLogger(__name__)


class Level(IntEnum):
    """What the processor can do."""

    NONE = 0
    AVX2 = 1
    AVX512 = 2


class _Layout(IntEnum):
    SINGLES = 0
    PAIRS = 1
    QUADS = 2


class _Scan(ctypes.Structure):
    """`scan` in scan.c."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("row_scale", ctypes.c_void_p),
        ("row_residual", ctypes.c_void_p),
        ("row_slack", ctypes.c_void_p),
        ("rows_per_item", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("row_type", ctypes.c_int32),
        ("level", ctypes.c_int32),
        ("panels", ctypes.c_void_p),
        ("lane_scale", ctypes.c_void_p),
        ("lane_residual", ctypes.c_void_p),
        ("lane_slack", ctypes.c_void_p),
        ("query_start", ctypes.c_void_p),
        ("clamp_lanes", ctypes.c_void_p),
        ("queries", ctypes.c_int32),
        ("sides", ctypes.c_int32),
        ("clamp_rows", ctypes.c_int32),
    )


class NativeKernel:
    """The fused scan, on several threads."""

    def __init__(self, library: ctypes.CDLL, level: Level, threads: int = 0) -> None:
        self._library, self._level = library, level
        self.name = f"native {level.name.lower()}"
        self._threads = threads or available_cores()
        self._pool = ThreadPoolExecutor(self._threads, "scan") if self._threads > 1 else None

    @classmethod
    def load(
        cls, threads: int = 0, limit: Level = Level.AVX512, path: Path = LIBRARY
    ) -> "NativeKernel | None":
        """The kernel at the highest level that works here, or None where there is none.

        Every level must give the right scores on a small example before it is trusted.
        """
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            return None
        library.teran_scan.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            *[ctypes.c_int64] * 2,
            ctypes.c_void_p,
            ctypes.c_int64,
        ]
        for level in reversed(Level):
            if Level.NONE < level <= min(limit, library.teran_level()):
                kernel = cls(library, level, threads)
                if _agrees(kernel):
                    return kernel
                _log.warning("the %s kernel gives wrong scores here; not using it", kernel.name)
        return None

    def scores(
        self, rows: Rows, lanes: Lanes, *, clamp_rows: bool, which: Indices | None = None
    ) -> Floats:
        """See `Kernel.scores`."""
        count = len(rows) if which is None else len(which)
        result = np.empty((len(lanes), count), np.float32)
        packed = self._pack(lanes, rows.type)
        which = None if which is None else np.ascontiguousarray(which, np.int64)
        scan = _Scan(
            rows=_pointer(rows.values),
            row_scale=_pointer(rows.scale),
            row_residual=_pointer(rows.residual),
            row_slack=_pointer(rows.slack),
            rows_per_item=rows.values.shape[1],
            dim=rows.values.shape[2],
            row_type=rows.type,
            level=self._level,
            **{name: _pointer(array) for name, array in packed.items()},
            query_start=_pointer(lanes.starts),
            clamp_lanes=_pointer(lanes.clamp),
            queries=len(lanes),
            sides=lanes.sides,
            clamp_rows=clamp_rows,
        )

        def run(begin: int, end: int) -> None:
            if self._library.teran_scan(
                ctypes.byref(scan), _pointer(which), begin, end, _pointer(result), count
            ):
                raise MemoryError("no memory to score the gallery with")

        products = count * scan.rows_per_item * scan.dim * len(lanes.values)
        self._spread(run, count, products // _SMALLEST_PART)
        return result

    def _spread(self, run: Callable[[int, int], None], count: int, most: int) -> None:
        """Run all of it, in parts on the pool, not more than so many."""
        parts = min(count, self._threads * _PARTS_PER_THREAD, most)
        if self._pool is None or parts < 2:
            run(0, count)
            return
        ends = np.linspace(0, count, parts + 1).astype(int).tolist()
        list(self._pool.map(run, ends[:-1], ends[1:]))

    def _pack(self, lanes: Lanes, row_type: RowType) -> dict[str, npt.NDArray[Any]]:
        """Bring the lanes into the layout the rows' kernel reads; done once for all blocks."""
        layout = _Layout(self._library.teran_layout(row_type, self._level))
        key = (row_type, layout)
        if key not in lanes.cache:
            values, scale = _columns(lanes, row_type, layout)
            extra = {"lane_residual": lanes.residual, "lane_slack": lanes.slack}
            floats = {name: _panels(one) for name, one in extra.items() if one is not None}
            lanes.cache[key] = {"panels": values, "lane_scale": _panels(scale), **floats}
        packed: dict[str, npt.NDArray[Any]] = lanes.cache[key]
        return packed


def _columns(lanes: Lanes, row_type: RowType, layout: _Layout) -> tuple[npt.NDArray[Any], Floats]:
    """The lanes' values in a layout, and their scales."""
    values: npt.NDArray[Any]
    scale = np.ones(len(lanes.values), np.float32)
    if row_type is RowType.INT8:
        values, scale = lanes.quantized()
        values = values if layout is _Layout.QUADS else values.astype(np.int16)
    else:
        values = lanes.values if layout is _Layout.SINGLES else to_bf16(lanes.values)
    together = {_Layout.SINGLES: 1, _Layout.PAIRS: 2, _Layout.QUADS: 4}[layout]
    panels = _panels(values)
    dim = values.shape[1]
    ordered = panels.reshape(-1, _PANEL, dim // together, together).transpose(0, 2, 1, 3)
    ordered = np.ascontiguousarray(ordered)
    if layout is _Layout.QUADS:
        start = -128 * panels.astype(np.int32).sum(axis=2, dtype=np.int32)
        flat = ordered.reshape(len(panels), -1)
        ordered = np.concatenate([start.view(np.int8).reshape(len(panels), -1), flat], axis=1)
    return ordered, scale


def _panels(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Lanes in panels of sixteen, the last filled up with zeros: (P, 16, ...)."""
    missing = -len(values) % _PANEL
    padded = np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)])
    panels: npt.NDArray[Any] = padded.reshape(-1, _PANEL, *values.shape[1:])
    return panels


def _pointer(array: npt.NDArray[Any] | None) -> int | None:
    if array is None:
        return None
    assert array.flags.c_contiguous
    return int(array.ctypes.data)


def _agrees(kernel: NativeKernel) -> bool:
    """Whether a kernel gives the portable kernel's scores on a small example of every row type."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((5, 13, DIM_STEP), np.float32)
    queries = [random.standard_normal((n, DIM_STEP), np.float32) for n in (3, 20)]
    lanes = Lanes.of(queries, Sides.BEST_ROW | Sides.BEST_LANE, [True, False])
    integers, scale = to_int8(vectors)
    examples = (
        Rows(integers, RowType.INT8, scale),
        Rows(to_bf16(vectors), RowType.BF16),
        Rows(vectors.astype(np.float16), RowType.FP16),
    )
    portable = PortableKernel(1)
    return all(
        np.allclose(
            kernel.scores(rows, lanes, clamp_rows=True),
            portable.scores(rows, lanes, clamp_rows=True),
            rtol=2e-2,
        )
        for rows in examples
    )
