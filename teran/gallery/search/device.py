"""A gallery's rows in a GPU's memory, scanned there: one pass over memory for all queries together.

Cosines are made in blocks, reduced at once and thrown away; only the best items' numbers leave the
device. They are scored again on the host in fp32, so that a coarser precision costs no recall.
Every operation is torch's, so the same code runs on a CPU, which is how it is tested.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teran.errors import GalleryError
from teran.gallery.search.compact import Chunk, Compact
from teran.gallery.search.kernels.base import Floats, Indices, Lanes, Sides

Masks = Sequence[npt.NDArray[np.bool_]]
"""Which slots of every chunk may be found."""
_BLOCK = 1 << 27
"""Cosines made at a time."""
_FEWEST_SLOTS = 64
_KEPT_MASKS = 16
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
    present: Tensor
    """(capacity,), whether a slot holds an item."""
    seen: int = 0
    """The generation up to which it is in step with the host."""


class DeviceCopy:
    """Keeps itself in step with one `Compact`, and scans; on one device, or divided among several.

    Every chunk lies on the device that had the fewest bytes when it came.
    """

    def __init__(self, devices: str, precision: str = Precision.FP16) -> None:
        """Choose devices, for example "cuda" or "cuda:0,cuda:1", and one of `Precision`.

        Raises:
            GalleryError: there is no such device or precision.
        """
        try:
            self._precision = Precision(precision)
            self._shards = [
                _Shard(torch.device(name.strip()), self._precision) for name in devices.split(",")
            ]
        except (RuntimeError, AssertionError, ValueError) as error:
            raise GalleryError(
                f"galleries can't be kept on {devices!r} in {precision!r}: {error}"
            ) from error
        self._homes: dict[int, _Shard] = {}

    def sync(self, compact: Compact) -> None:
        """Upload what changed since the last time."""
        for chunk in compact.chunks:
            self._home(chunk.number).sync(chunk)

    def _home(self, number: int) -> "_Shard":
        """The device of a chunk."""
        if number not in self._homes:
            self._homes[number] = min(self._shards, key=lambda shard: shard.bytes)
        return self._homes[number]

    def hold(self, number: int, rows: Tensor) -> None:
        """Take rows (N, R, D) that are on a device already as those of a chunk of as many items."""
        present = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        self._home(number).chunks[number] = _Resident(rows, present, seen=1 << 62)

    def resident(self, number: int) -> Tensor:
        """A chunk's rows on its device (capacity, R, D), by the precision's own scale."""
        return self._homes[number].chunks[number].rows

    def candidates(
        self,
        compact: Compact,
        lanes: Lanes,
        clamp_rows: Sequence[bool],
        allowed: Sequence[Masks | None],
        counts: Sequence[int],
    ) -> list[Indices]:
        """Numbers of every query's best items, through all chunks, in no order.

        Args:
            compact: what `sync` was called with last.
            lanes: Q queries.
            clamp_rows: per chunk, whether a lane's best row counts as at least 0.
            allowed: per query, which slots of every chunk may be found; None for all items.
            counts: per query, how many to find.
        """
        ends = np.cumsum([0, *(len(chunk) for chunk in compact.chunks)])
        begun = [
            shard.best(mine, lanes, clamp_rows, allowed, max(counts))
            for shard in self._shards
            if (mine := [one for one in compact.chunks if self._homes[one.number] is shard])
        ]
        # Nothing was waited for until here: all devices are at work.
        found = [best.to_host(ends) for best in begun]
        result = []
        for query, count in enumerate(counts):
            scores = np.concatenate([one[0][query] for one in found])
            items = np.concatenate([one[1][query] for one in found])
            best = np.argsort(-scores, kind="stable")[:count]
            result.append(items[best[scores[best] > -np.inf]])
        return result

    def converted(self, rows: Tensor) -> Tensor:
        """Embeddings in fp16 as they are kept."""
        return _converted(rows, self._precision)


@dataclass(frozen=True, eq=False)
class _Best:
    """What one device finds, perhaps still at work."""

    scores: Tensor
    """(Q, k)"""
    positions: Tensor
    """(Q, k), through the device's own chunks."""
    chunks: Sequence[Chunk]

    def to_host(self, ends: npt.NDArray[np.int64]) -> tuple[Floats, Indices]:
        """Scores and the items' numbers, (Q, k) each; waits for the device.

        Args:
            ends: where each chunk's items begin, through all chunks of the gallery.
        """
        own = np.cumsum([0, *(len(chunk) for chunk in self.chunks)])
        shift = np.array([ends[chunk.number] for chunk in self.chunks]) - own[:-1]
        positions = self.positions.cpu().numpy()
        numbers = positions + shift[np.searchsorted(own, positions, side="right") - 1]
        return self.scores.cpu().numpy(), numbers


class _Shard:
    """The chunks that lie on one device."""

    def __init__(self, device: torch.device, precision: Precision) -> None:
        torch.empty(1, device=device)  # fails where there is no such device
        self._device, self._precision = device, precision
        self.chunks: dict[int, _Resident] = {}
        self._masks: OrderedDict[tuple[int, ...], tuple[Masks, Tensor]] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Of the rows it holds."""
        return sum(one.rows.nbytes for one in self.chunks.values())

    def sync(self, chunk: Chunk) -> None:
        """Upload what changed in a chunk."""
        resident, used = self._with_room(chunk), len(chunk)
        if resident.seen >= chunk.changed:
            return
        slots = np.flatnonzero(chunk.stamps[:used] > resident.seen)
        if len(slots) == used:
            resident.rows[:used] = self._upload(chunk.arrays["exact"][:used])
            resident.present[:used] = torch.from_numpy(chunk.present[:used]).to(self._device)
        else:
            places = torch.from_numpy(slots).to(self._device)
            resident.rows[places] = self._upload(chunk.arrays["exact"][slots])
            resident.present[places] = torch.from_numpy(chunk.present[slots]).to(self._device)
        resident.seen = chunk.changed

    def _with_room(self, chunk: Chunk) -> _Resident:
        """A chunk's rows, grown where it has outgrown them."""
        resident, used = self.chunks.get(chunk.number), len(chunk)
        if resident is None or len(resident.rows) < used:
            size = min(chunk.capacity, max(_FEWEST_SLOTS, 2 * used))
            shape = (size, *chunk.arrays["exact"].shape[1:])
            rows = torch.empty(shape, dtype=_TYPES[self._precision], device=self._device)
            present = torch.zeros(size, dtype=torch.bool, device=self._device)
            if resident is not None:
                rows[: len(resident.rows)] = resident.rows
                present[: len(resident.rows)] = resident.present
            resident = _Resident(rows, present, resident.seen if resident else 0)
            self.chunks[chunk.number] = resident
        return resident

    def _upload(self, rows: npt.NDArray[np.float16]) -> Tensor:
        return _converted(torch.from_numpy(rows).to(self._device), self._precision)

    def best(
        self,
        chunks: Sequence[Chunk],
        lanes: Lanes,
        clamp_rows: Sequence[bool],
        allowed: Sequence[Masks | None],
        count: int,
    ) -> _Best:
        """Begin to look for the best items of all queries; waits for nothing."""
        packed = _Lanes(lanes, self._device, self._precision)
        ends = np.cumsum([0, *(len(chunk) for chunk in chunks)]).tolist()
        scores = torch.empty(len(lanes), ends[-1], device=self._device)
        for chunk, start, end in zip(chunks, ends, ends[1:], strict=False):
            part = scores[:, start:end]
            self._score(chunk, packed, clamp=clamp_rows[chunk.number], into=part)
            absent = ~self.chunks[chunk.number].present[: len(chunk)]
            part.masked_fill_(absent, -torch.inf)
        for row, masks in zip(scores, allowed, strict=True):
            if masks is not None:
                row.masked_fill_(self._forbidden(chunks, masks), -torch.inf)
        top = scores.topk(min(count, ends[-1]), dim=1, sorted=False)
        return _Best(top.values, top.indices, chunks)

    def _forbidden(self, chunks: Sequence[Chunk], masks: Masks) -> Tensor:
        """What a filter leaves out, (n,). Filters come again: the last ones stay on the device."""
        key = (id(masks), *(len(chunk) for chunk in chunks))
        if key not in self._masks:
            joined = np.concatenate([~masks[chunk.number] for chunk in chunks])
            # Held with it, so that no other masks get the same id.
            self._masks[key] = masks, torch.from_numpy(joined).to(self._device)
        self._masks.move_to_end(key)
        if len(self._masks) > _KEPT_MASKS:
            self._masks.popitem(last=False)
        return self._masks[key][1]

    def _score(self, chunk: Chunk, lanes: "_Lanes", *, clamp: bool, into: Tensor) -> None:
        rows = self.chunks[chunk.number].rows
        step = max(1, _BLOCK // (chunk.length * lanes.width))
        for start in range(0, len(chunk), step):
            block = rows[start : min(start + step, len(chunk))]
            cosine = lanes.multiply(block.flatten(0, 1)).view(len(block), chunk.length, -1)
            into[:, start : start + len(block)] = lanes.reduce(cosine, clamp_rows=clamp).T


def _converted(rows: Tensor, precision: Precision) -> Tensor:
    if precision is Precision.FP8:
        rows = rows * _FP8_SCALE
    return rows.to(_TYPES[precision])


class _Lanes:
    """All queries' lanes on the device, and the two steps of a scan."""

    def __init__(self, lanes: Lanes, device: torch.device, precision: Precision) -> None:
        count, dim = lanes.values.shape
        self.width = count + -count % _LANE_STEP
        padded = torch.zeros(self.width, dim)
        padded[:count] = torch.from_numpy(lanes.values)
        self._fp8 = precision is Precision.FP8
        self._values = _converted(padded.to(device), precision)
        self._sides = lanes.sides
        self._starts = lanes.starts.tolist()
        self._clamp = lanes.clamp.tolist()
        owner = torch.zeros(self.width, len(lanes))
        for query, (first, last) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            owner[first:last, query] = 1
        self._owner = owner.to(device)

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
