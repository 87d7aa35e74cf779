"""Keeps a gallery's rows on devices in step with the host's, and finds the best of them."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teran.errors import GalleryError
from teran.gallery.search.compact import Chunk, Compact
from teran.gallery.search.device.choice import Scans
from teran.gallery.search.device.precision import Kept, Precision
from teran.gallery.search.kernels.base import Floats, Indices, Lanes

Masks = Sequence[npt.NDArray[np.bool_]]
"""Which slots of every chunk may be found."""
_FEWEST_SLOTS = 64
_KEPT_MASKS = 16
_FP8_CAPABILITY = (8, 9)


@dataclass(eq=False)
class _Resident:
    """One chunk on the device."""

    rows: Kept
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

    def hold(self, number: int, rows: Tensor) -> int:
        """Take embeddings (N, R, D) on a device as the rows of a chunk of N items; their bytes."""
        kept = Kept.of(rows, self._precision)
        present = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        self._home(number).chunks[number] = _Resident(kept, present, seen=1 << 62)
        return kept.nbytes

    def resident(self, number: int) -> Tensor:
        """A chunk's rows as they are kept, in fp32 on its device: (capacity, R, D)."""
        return self._homes[number].chunks[number].rows.decoded(self._precision)

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
        # No result was waited for until here: all devices are at work.
        found = [best.to_host(ends) for best in begun]
        result = []
        for query, count in enumerate(counts):
            scores = np.concatenate([one[0][query] for one in found])
            items = np.concatenate([one[1][query] for one in found])
            best = np.argsort(-scores, kind="stable")[:count]
            result.append(items[best[scores[best] > -np.inf]])
        return result


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
        if precision is Precision.FP8 and device.type == "cuda":
            capability = torch.cuda.get_device_capability(device)
            if capability < _FP8_CAPABILITY:
                raise ValueError("that is for GPUs of compute capability 8.9 or more")
        self._device, self._precision = device, precision
        self._scans = Scans(device, precision)
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
        places: slice | Tensor = slice(used)
        if len(slots) < used:
            places = torch.from_numpy(slots).to(self._device)
        which = slice(used) if len(slots) == used else slots
        rows = torch.from_numpy(chunk.arrays["exact"][which]).to(self._device)
        resident.rows.put(places, Kept.of(rows, self._precision))
        resident.present[places] = torch.from_numpy(chunk.present[which]).to(self._device)
        resident.seen = chunk.changed

    def _with_room(self, chunk: Chunk) -> _Resident:
        """A chunk's rows, grown where it has outgrown them."""
        resident, used = self.chunks.get(chunk.number), len(chunk)
        if resident is None or len(resident.rows) < used:
            size = min(chunk.capacity, max(_FEWEST_SLOTS, 2 * used))
            shape = (size, *chunk.arrays["exact"].shape[1:])
            rows = Kept.empty(shape, self._precision, self._device)
            present = torch.zeros(size, dtype=torch.bool, device=self._device)
            if resident is not None:
                rows.put(slice(len(resident.rows)), resident.rows)
                present[: len(resident.rows)] = resident.present
            resident = _Resident(rows, present, resident.seen if resident else 0)
            self.chunks[chunk.number] = resident
        return resident

    def best(
        self,
        chunks: Sequence[Chunk],
        lanes: Lanes,
        clamp_rows: Sequence[bool],
        allowed: Sequence[Masks | None],
        count: int,
    ) -> _Best:
        """Begin to look for the best items of all queries; does not wait for them."""
        # Uploads first: they wait for what the device has to do.
        forbidden = [masks and self._forbidden(chunks, masks) for masks in allowed]
        scan = self._scans.of(lanes)
        ends = np.cumsum([0, *(len(chunk) for chunk in chunks)]).tolist()
        scores = torch.empty(len(lanes), ends[-1], device=self._device)
        for chunk, start, end in zip(chunks, ends, ends[1:], strict=False):
            resident, part = self.chunks[chunk.number], scores[:, start:end]
            scan.scan(resident.rows[: len(chunk)], part, clamp_rows=clamp_rows[chunk.number])
            part.masked_fill_(~resident.present[: len(chunk)], -torch.inf)
        for row, left_out in zip(scores, forbidden, strict=True):
            if left_out is not None:
                row.masked_fill_(left_out, -torch.inf)
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
