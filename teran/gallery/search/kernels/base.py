"""What every kernel takes: items as rows, queries as lanes, and which maxima are summed.

An *item* is a set of vectors (an image's regions), its rows; a *query* is a set of vectors (a
sentence's words), its lanes. For a gallery of sentences the words are the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
"""Positions of items."""

DIM_STEP = 64
"""Rows are padded with zeros to a multiple of this, which the native kernel reads at a time."""


class RowType(IntEnum):
    """How rows are stored."""

    INT8 = 0
    """uint8 with an offset of 128, times a scale for each row."""
    BF16 = 1
    """bfloat16, held as uint16."""
    FP16 = 2


class Sides(IntFlag):
    """Which maxima make the score."""

    BEST_ROW = 1
    """For every lane its best row, summed over the lanes."""
    BEST_LANE = 2
    """For every row its best lane, summed over the rows."""


@dataclass(frozen=True)
class Rows:
    """N items of R rows each."""

    values: npt.NDArray[Any]
    """(N, R, D) in `type`; D is a multiple of `DIM_STEP`."""
    type: RowType
    scale: Floats | None = None
    """(N, R), for int8."""
    residual: Floats | None = None
    """(N, R), for upper bounds: see `teran.gallery.search.pruning`."""
    slack: Floats | None = None
    """(N, R), likewise."""

    def __len__(self) -> int:
        return len(self.values)

    def float32(self, which: slice | Indices) -> Floats:
        """Some items' rows in fp32, without their scale: (n, R, D)."""
        values = self.values[which]
        if self.type is RowType.INT8:
            return values.astype(np.float32) - 128
        if self.type is RowType.BF16:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)


@dataclass(frozen=True)
class Lanes:
    """Q queries, their lanes one after the other."""

    values: Floats
    """(L, D)"""
    starts: npt.NDArray[np.int32]
    """(Q + 1,) the first lane of every query, and the end."""
    sides: Sides
    clamp: npt.NDArray[np.uint8]
    """(Q,) whether a row's best lane counts as at least 0."""
    residual: Floats | None = None
    """(L,), for upper bounds."""
    slack: Floats | None = None
    """(L,), likewise."""
    cache: dict[Any, Any] = field(default_factory=dict, compare=False)
    """Kernels keep what they made of the lanes."""

    @classmethod
    def of(
        cls, queries: Sequence[Floats], sides: Sides, clamp: Sequence[bool] | None = None
    ) -> "Lanes":
        """Queries of shape (W, D) each; their dim is padded to `DIM_STEP`."""
        starts = np.concatenate([[0], np.cumsum([len(query) for query in queries])])
        values = pad_dim(np.concatenate(list(queries)).astype(np.float32))
        flags = np.zeros(len(queries), np.uint8) if clamp is None else np.array(clamp, np.uint8)
        return cls(values, starts.astype(np.int32), sides, flags)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def quantized(self) -> tuple[npt.NDArray[np.int8], Floats]:
        """The lanes in int8, and the scale of each."""
        if "int8" not in self.cache:
            scale = np.abs(self.values).max(axis=1) / 127
            values = np.rint(self.values / np.maximum(scale, 1e-30)[:, None]).astype(np.int8)
            self.cache["int8"] = values, scale.astype(np.float32)
        pair: tuple[npt.NDArray[np.int8], Floats] = self.cache["int8"]
        return pair


class Kernel(Protocol):
    """Scores items against queries."""

    name: str

    def scores(
        self, rows: Rows, lanes: Lanes, *, clamp_rows: bool, which: Indices | None = None
    ) -> Floats:
        """Every query against every item, or against those that `which` lists: (Q, N).

        Args:
            rows: the items.
            lanes: the queries.
            clamp_rows: whether a lane's best row counts as at least 0.
            which: positions of items.
        """


def pad_dim(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pad the last axis with zeros to a multiple of `DIM_STEP`, which changes no product."""
    missing = -values.shape[-1] % DIM_STEP
    if not missing:
        return values
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])


def to_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_int8(values: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Quantize every row by its largest value: values with an offset of 128, and the scales."""
    scale = np.abs(values).max(axis=-1) / np.float32(127)
    quantized = np.rint(values / np.maximum(scale, np.float32(1e-30))[..., None]) + 128
    return quantized.astype(np.uint8), scale
