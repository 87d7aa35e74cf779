"""A gallery's rows in a GPU's memory, scanned there: one pass over memory for all queries together.

Cosines are made in blocks, reduced at once and thrown away; only the best items' numbers leave the
device. They are scored again on the host in fp32, so that a coarser precision costs no recall.
Every operation is torch's, so the same code runs on a CPU, which is how it is tested.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teran.errors import GalleryError
from teran.gallery.search.compact import Chunk, Compact
from teran.gallery.search.kernels.base import Indices, Lanes, Sides

_BLOCK = 1 << 27
"""Cosines made at a time."""
_FEWEST_SLOTS = 64
_LANE_STEP = 16
"""Lanes are padded to a multiple of this, which tensor cores take at a time."""
_FP8_SCALE = 64.0
"""Brings the values of normalised vectors, about 1/32, into the middle of e4m3's range."""


class Precision(StrEnum):
    """How rows are kept on the device."""

    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    """e4m3: half the memory, and half the time of one query."""


_TYPES = {
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
    Precision.FP8: torch.float8_e4m3fn,
}


@dataclass(eq=False)
class _Resident:
    """One chunk on the device."""

    rows: Tensor
    """(capacity, R, D)"""
    seen: int = 0
    """The generation up to which it is in step with the host."""


class DeviceCopy:
    """Keeps itself in step with one `Compact`, and scans."""

    def __init__(self, device: str, precision: str = Precision.FP16) -> None:
        """Choose a device, for example "cuda", and one of `Precision`.

        Raises:
            GalleryError: there is no such device or precision.
        """
        try:
            self._precision = Precision(precision)
            self._device = torch.device(device)
            torch.empty(1, device=self._device)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise GalleryError(
                f"galleries can't be kept on {device!r} in {precision!r}: {error}"
            ) from error
        self._chunks: dict[int, _Resident] = {}

    def sync(self, compact: Compact) -> None:
        """Upload what changed since the last time."""
        for chunk in compact.chunks:
            resident = self._with_room(chunk)
            if resident.seen < chunk.changed:
                used = len(chunk)
                slots = np.flatnonzero(chunk.stamps[:used] > resident.seen)
                if len(slots) == used:
                    resident.rows[:used] = self._upload(chunk.arrays["exact"][:used])
                else:
                    values = self._upload(chunk.arrays["exact"][slots])
                    resident.rows[torch.from_numpy(slots).to(self._device)] = values
                resident.seen = chunk.changed

    def _with_room(self, chunk: Chunk) -> _Resident:
        """A chunk's rows, grown where it has outgrown them."""
        resident, used = self._chunks.get(chunk.number), len(chunk)
        if resident is None or len(resident.rows) < used:
            size = min(chunk.capacity, max(_FEWEST_SLOTS, 2 * used))
            shape = (size, *chunk.arrays["exact"].shape[1:])
            rows = torch.empty(shape, dtype=_TYPES[self._precision], device=self._device)
            if resident is not None:
                rows[: len(resident.rows)] = resident.rows
            resident = _Resident(rows, resident.seen if resident else 0)
            self._chunks[chunk.number] = resident
        return resident

    def hold(self, number: int, rows: Tensor) -> None:
        """Take rows (N, R, D) that are on the device already as those of a chunk."""
        self._chunks[number] = _Resident(rows, seen=1 << 62)

    def resident(self, number: int) -> Tensor:
        """A chunk's rows on the device (capacity, R, D), by the precision's own scale."""
        return self._chunks[number].rows

    def candidates(
        self,
        compact: Compact,
        lanes: Lanes,
        clamp_rows: Sequence[bool],
        allowed: Sequence[npt.NDArray[np.bool_]],
        counts: Sequence[int],
    ) -> list[Indices]:
        """Numbers of every query's best items, through all chunks, in no order.

        Args:
            compact: what `sync` was called with last.
            lanes: Q queries.
            clamp_rows: per chunk, whether a lane's best row counts as at least 0.
            allowed: per query, which items may be found (N).
            counts: per query, how many to find; no more than are allowed.
        """
        packed = _Lanes(lanes, self._device, self._precision)
        ends = np.cumsum([0, *(len(chunk) for chunk in compact.chunks)])
        scores = torch.empty(len(lanes), int(ends[-1]), device=self._device)
        for i, (chunk, clamp) in enumerate(zip(compact.chunks, clamp_rows, strict=True)):
            self._score(chunk, packed, clamp=clamp, into=scores[:, ends[i] : ends[i + 1]])
        result = []
        for row, mask, count in zip(scores, allowed, counts, strict=True):
            row.masked_fill_(~torch.from_numpy(mask).to(self._device), -torch.inf)
            best = row.topk(count, sorted=False).indices
            result.append(best.cpu().numpy())
        return result

    def _score(self, chunk: Chunk, lanes: "_Lanes", *, clamp: bool, into: Tensor) -> None:
        rows = self._chunks[chunk.number].rows
        step = max(1, _BLOCK // (chunk.length * lanes.width))
        for start in range(0, len(chunk), step):
            block = rows[start : min(start + step, len(chunk))]
            cosine = lanes.multiply(block.flatten(0, 1)).view(len(block), chunk.length, -1)
            into[:, start : start + len(block)] = lanes.reduce(cosine, clamp_rows=clamp).T

    def converted(self, rows: Tensor) -> Tensor:
        """Embeddings in fp16 as they are kept."""
        if self._precision is Precision.FP8:
            rows = rows * _FP8_SCALE
        return rows.to(_TYPES[self._precision])

    def _upload(self, rows: npt.NDArray[np.float16]) -> Tensor:
        return self.converted(torch.from_numpy(rows).to(self._device))


class _Lanes:
    """All queries' lanes on the device, and the two steps of a scan."""

    def __init__(self, lanes: Lanes, device: torch.device, precision: Precision) -> None:
        count, dim = lanes.values.shape
        self.width = count + -count % _LANE_STEP
        padded = torch.zeros(self.width, dim, device=device)
        padded[:count] = torch.from_numpy(lanes.values)
        self._fp8 = precision is Precision.FP8
        self._values = (padded * _FP8_SCALE if self._fp8 else padded).to(_TYPES[precision])
        self._sides = lanes.sides
        self._starts = lanes.starts.tolist()
        self._clamp = lanes.clamp.tolist()
        self._owner = torch.zeros(self.width, len(lanes), device=device)
        for query, (first, last) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            self._owner[first:last, query] = 1

    def multiply(self, rows: Tensor) -> Tensor:
        """Cosines of rows (n, D) with all lanes: (n, L)."""
        if not self._fp8:
            return rows @ self._values.T
        if rows.is_cuda:
            scale = torch.full((), 1 / _FP8_SCALE, device=rows.device)
            return torch._scaled_mm(rows, self._values.T, scale, scale, out_dtype=torch.bfloat16)
        return rows.float() @ self._values.float().T / _FP8_SCALE**2

    def reduce(self, cosine: Tensor, *, clamp_rows: bool) -> Tensor:
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
