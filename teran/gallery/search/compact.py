"""The copy of a gallery that searches read: rows in memory, in chunks of slots.

Items of equal row counts lie together in a chunk. Nothing here knows of files: what keeps the copy
for the next start is `teran.gallery.embedded.compact_files`.
"""

import mmap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from teran.gallery.search.kernels.base import Rows, RowType, pad_dim, to_int8
from teran.gallery.search.pruning import Basis

Arrays = dict[str, npt.NDArray[Any]]
Place = tuple["Chunk", int]
"""A chunk and a slot in it."""
_CHUNK_BYTES = 1 << 28
LARGEST_CHUNK = 1 << 14
"""Slots."""
_SMALL_PAGES = 32 << 20
"""Bytes of an array after which it may take huge pages, which are faster to scan."""
_PART = 1 << 22
"""Values of the rows whose bounds are made at once."""


def reserve(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array that takes memory as it is written to, and gives all of it back when it goes.

    `np.empty` would take what the C library has at hand, or huge pages for a few items.

    Raises:
        MemoryError: there is none.
    """
    length = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        pages = mmap.mmap(-1, max(1, length), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {length} bytes") from error
    with suppress(OSError):  # a kernel without huge pages
        pages.madvise(mmap.MADV_NOHUGEPAGE, 0, min(length, _SMALL_PAGES))
        if length > _SMALL_PAGES:
            pages.madvise(mmap.MADV_HUGEPAGE, _SMALL_PAGES)
    return np.frombuffer(pages, np.uint8, length).view(dtype).reshape(shape)


def prepare(rows: npt.NDArray[np.float16], basis: Basis | None) -> Arrays:
    """What is kept of one item's rows (R, E) for searches: fp16, int8, and its bounds."""
    exact = pad_dim(rows)
    values = exact.astype(np.float32)
    integers, scale = to_int8(values)
    arrays: Arrays = {"exact": exact, "int8": integers, "scale": scale}
    return arrays | (basis.rows(values) if basis else {})


@dataclass
class Chunk:
    """Up to `capacity` items of `length` rows each."""

    number: int
    length: int
    capacity: int
    arrays: Arrays = field(default_factory=dict)
    points: list[UUID | None] = field(default_factory=list)
    """The item in every slot in use; None where it was removed."""
    versions: list[int] = field(default_factory=list)
    present: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """(capacity,), whether a slot holds an item."""
    stamps: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(capacity,), the gallery's generation when a slot was written or emptied last."""
    changed: int = 0
    """The largest of them."""
    free: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.present = np.zeros(self.capacity, bool)
        self.stamps = np.zeros(self.capacity, np.int64)

    def __len__(self) -> int:
        """Slots in use, by items or by what was removed."""
        return len(self.points)

    @property
    def has_room(self) -> bool:
        return bool(self.free) or len(self.points) < self.capacity

    def add_slot(self) -> int:
        """One slot more; returns its number."""
        self.points.append(None)
        self.versions.append(0)
        return len(self) - 1

    def occupy(self, slot: int, point: UUID, version: int, generation: int) -> None:
        """Give a slot to an item."""
        self.points[slot], self.versions[slot], self.present[slot] = point, version, True
        self.stamps[slot] = self.changed = generation

    def vacate(self, slot: int, generation: int) -> None:
        """Take a slot back."""
        self.points[slot], self.present[slot] = None, False
        self.stamps[slot] = self.changed = generation
        self.free.append(slot)

    def reserve(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep room for items with such values.

        Raises:
            MemoryError: there is none.
        """
        for name, value in values.items():
            self.array(name, value.dtype, value.shape)

    def put(self, slot: int, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Fill a slot."""
        for name, value in values.items():
            self.array(name, value.dtype, value.shape)[slot] = value

    def array(self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        if name not in self.arrays:
            self.arrays[name] = reserve((self.capacity, *shape), dtype)
        return self.arrays[name]

    def rows(self) -> Rows:
        """The int8 copy."""
        count = len(self)
        return Rows(self.arrays["int8"][:count], RowType.INT8, self.arrays["scale"][:count])

    def exact_rows(self) -> Rows:
        """The embeddings as they are stored."""
        return Rows(self.arrays["exact"][: len(self)], RowType.FP16)

    def bounds(self) -> Rows:
        """Prefixes with their norms."""
        names = ("prefix", "prefix_scale", "residual", "slack")
        prefix, scale, residual, slack = (self.arrays[name][: len(self)] for name in names)
        return Rows(prefix, RowType.INT8, scale, residual, slack)


Part = tuple[Chunk, npt.NDArray[np.int64]]
"""Some slots of a chunk."""


def in_parts(chunk: Chunk, slots: npt.NDArray[np.int64]) -> list[Part]:
    """Parts that are worked on at once."""
    values = chunk.arrays["exact"][0].size
    step = max(1, _PART // values)
    return [(chunk, slots[start : start + step]) for start in range(0, len(slots), step)]


@dataclass
class NewBounds:
    """Bounds of all items by a new basis, in the making."""

    basis: Basis
    chunks: list[Arrays] = field(default_factory=list)
    generation: int = 0
    """Of the gallery: what was written until then is known."""

    def of(self, part: Part) -> Arrays:
        """The bounds of a part; takes time, and nobody need wait for it."""
        chunk, slots = part
        return self.basis.rows(chunk.arrays["exact"][slots].astype(np.float32))

    def put(self, part: Part, values: Arrays) -> None:
        """Take them in."""
        chunk, slots = part
        while len(self.chunks) <= chunk.number:
            self.chunks.append({})
        arrays = self.chunks[chunk.number]
        for name, value in values.items():
            if name not in arrays:
                arrays[name] = reserve((chunk.capacity, *value.shape[1:]), value.dtype)
            arrays[name][slots] = value


class Compact:
    """All chunks of a gallery. One thread at a time may change or read it."""

    def __init__(self, dim: int) -> None:
        """An empty copy of rows of `dim` values, a multiple of `DIM_STEP`."""
        self.dim = dim
        self.chunks: list[Chunk] = []
        self.places: dict[UUID, Place] = {}
        self.basis: Basis | None = None
        self.generation = 1
        """Grows with every change."""

    def __len__(self) -> int:
        return len(self.places)

    def put(self, point: UUID, version: int, arrays: Arrays) -> Place:
        """Add an item, in the place of the one with the same key."""
        self.remove(point)
        length = len(arrays["exact"])
        chunk = next((c for c in self.chunks if c.length == length and c.has_room), None)
        if chunk is None:
            capacity = max(64, min(LARGEST_CHUNK, _CHUNK_BYTES // (length * self.dim * 2)))
            chunk = Chunk(len(self.chunks), length, capacity)
            chunk.reserve(arrays)  # or fail before anything is changed
            self.chunks.append(chunk)
        slot = chunk.free.pop() if chunk.free else chunk.add_slot()
        self.generation += 1
        chunk.put(slot, arrays)
        chunk.occupy(slot, point, version, self.generation)
        self.places[point] = chunk, slot
        return chunk, slot

    def remove(self, point: UUID) -> bool:
        """Remove an item; whether it was there."""
        place = self.places.pop(point, None)
        if place is None:
            return False
        chunk, slot = place
        self.generation += 1
        chunk.vacate(slot, self.generation)
        return True

    def rows_of(self, point: UUID) -> npt.NDArray[np.float16] | None:
        """An item's rows (R, D), padded."""
        place = self.places.get(point)
        return None if place is None else place[0].arrays["exact"][place[1]]

    def sample(self, rows: int, seed: int = 0) -> npt.NDArray[np.float16]:
        """Rows (n, D) of items taken at random."""
        random = np.random.default_rng(seed)
        places = list(self.places.values())
        mean = max(1, round(sum(chunk.length for chunk, _ in places[:1000]) / len(places[:1000])))
        chosen = random.choice(len(places), min(len(places), max(1, rows // mean)), replace=False)
        parts = [places[i][0].arrays["exact"][places[i][1]] for i in chosen]
        result: npt.NDArray[np.float16] = np.concatenate(parts)
        return result

    def parts_to_bound(self, new: NewBounds) -> list[Part]:
        """What was written since this was asked for the same bounds, in parts of a size."""
        parts = []
        for chunk in self.chunks:
            if chunk.changed > new.generation:
                written = np.flatnonzero(chunk.stamps[: len(chunk)] > new.generation)
                parts += in_parts(chunk, written)
        new.generation = self.generation
        return parts

    def put_bounds(self, new: NewBounds, part: Part, values: Arrays) -> None:
        """Take in bounds of a part, which are not in use yet."""
        new.put(part, values)

    def use_bounds(self, new: NewBounds) -> None:
        """Use new bounds, which cover every item, from now on."""
        nothing = np.zeros(0, np.int64)
        for chunk in self.chunks:
            new.put((chunk, nothing), new.of((chunk, nothing)))  # there may be a chunk of no items
            chunk.arrays |= new.chunks[chunk.number]
        self.basis = new.basis

    def memory_bytes(self) -> int:
        """Bytes of the arrays in use."""
        return sum(
            array[:1].nbytes * len(chunk)
            for chunk in self.chunks
            for array in chunk.arrays.values()
        )
