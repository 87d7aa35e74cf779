"""The copy of a gallery that searches read: rows in memory, and in files for the next start.

Items of equal row counts lie together in chunks of slots. Every array of a chunk has a file that a
write goes to as well, and a journal says which item is in which slot. All that is a cache: what
does not fit the store is dropped when it is read, and a full disk only makes the next start slower.
"""

import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from teran.gallery.kernels.base import Rows, RowType, pad_dim, to_int8
from teran.gallery.pruning import Basis

Arrays = dict[str, npt.NDArray[Any]]
_CHUNK_BYTES = 1 << 28
_MAX_SLOTS = 1 << 14
_log = logging.getLogger(__name__)


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
    directory: Path | None
    arrays: Arrays = field(default_factory=dict)
    points: list[UUID | None] = field(default_factory=list)
    """The item in every slot in use; None where it was removed."""
    versions: list[int] = field(default_factory=list)
    present: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """(capacity,), whether a slot holds an item."""
    stamps: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(capacity,), the gallery's generation when a slot was written last."""
    changed: int = 0
    """The largest of them."""
    free: list[int] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.present = np.zeros(self.capacity, bool)
        self.stamps = np.zeros(self.capacity, np.int64)

    def __len__(self) -> int:
        """Slots in use, by items or by what was removed."""
        return len(self.points)

    @property
    def has_room(self) -> bool:
        return bool(self.free) or len(self.points) < self.capacity

    def occupy(self, slot: int, point: UUID, version: int, generation: int) -> None:
        """Give a slot to an item."""
        self.points[slot], self.versions[slot], self.present[slot] = point, version, True
        self.stamps[slot] = self.changed = generation

    def vacate(self, slot: int) -> None:
        """Take a slot back."""
        self.points[slot], self.present[slot] = None, False
        self.free.append(slot)

    def put(self, slot: int, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Fill a slot, in memory and in the files."""
        for name, value in values.items():
            self.array(name, value.dtype, value.shape)[slot] = value
            self._write(name, slot, value)

    def array(self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        if name not in self.arrays:
            # Memory is taken as it is written to.
            self.arrays[name] = np.empty((self.capacity, *shape), dtype)
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

    def path(self, name: str) -> Path:
        assert self.directory is not None
        return self.directory / f"{self.number:05d}-{self.length}.{name}"

    def _write(self, name: str, slot: int, value: npt.NDArray[Any]) -> None:
        if self.directory is None:
            return
        if name not in self.files:
            self.files[name] = os.open(self.path(name), os.O_RDWR | os.O_CREAT, 0o644)
        data = np.ascontiguousarray(value)
        os.pwrite(self.files[name], data.data, slot * data.nbytes)

    def write_whole(self, name: str) -> None:
        """Write all slots of one array."""
        if self.directory is not None:
            self._write(name, 0, self.arrays[name][: len(self)])

    def read(self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...], count: int) -> None:
        """Fill the first slots of an array from its file.

        Raises:
            OSError: the file is missing or too short.
        """
        target = self.array(name, dtype, shape)[:count]
        with self.path(name).open("rb", buffering=0) as file:
            view, done = target.reshape(-1).view(np.uint8).data, 0
            while done < len(view):
                read = file.readinto(view[done:])
                if not read:
                    raise OSError(f"{self.path(name)} is too short")
                done += read

    def close(self) -> None:
        for file in self.files.values():
            os.close(file)
        self.files.clear()


class Compact:
    """All chunks of a gallery. One thread at a time may change or read it."""

    def __init__(self, directory: Path | None, dim: int) -> None:
        """An empty copy, with its files in `directory`."""
        self._directory, self._dim = directory, dim
        self.chunks: list[Chunk] = []
        self.places: dict[UUID, tuple[Chunk, int]] = {}
        self.basis: Basis | None = None
        self.generation = 1
        """Grows with every change."""
        self._journal: Any = None
        self._persistent = directory is not None
        self._touched: set[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.places)

    @classmethod
    def load(cls, directory: Path, dim: int, versions: Mapping[UUID, int]) -> "Compact":
        """Read what is left of the copy that a gallery with these items had.

        What does not fit is dropped: the caller adds the rest from the store.
        """
        compact = cls(directory, dim)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            compact._read(versions)
        except (OSError, ValueError, KeyError) as error:
            _log.warning("%s can't be used: %s; making it again", directory, error)
            compact = cls(directory, dim)
            for path in _own_files(directory):
                path.unlink()
        compact._open_journal()
        return compact

    def put(self, point: UUID, version: int, arrays: Arrays) -> None:
        """Add an item, in the place of the one with the same key."""
        self.remove(point)
        length = len(arrays["exact"])
        chunk = next((c for c in self.chunks if c.length == length and c.has_room), None)
        if chunk is None:
            item_bytes = length * self._dim * 2
            capacity = max(64, min(_MAX_SLOTS, _CHUNK_BYTES // item_bytes))
            directory = self._directory if self._persistent else None
            chunk = Chunk(len(self.chunks), length, capacity, directory)
            self.chunks.append(chunk)
            self._note(_chunk_line(chunk))
        if chunk.free:
            slot = chunk.free.pop()
        else:
            slot = len(chunk)
            chunk.points.append(None)
            chunk.versions.append(0)
        self.generation += 1
        chunk.occupy(slot, point, version, self.generation)
        self.places[point] = chunk, slot
        if self._touched is not None:
            self._touched.add((chunk.number, slot))
        try:
            chunk.put(slot, arrays)
            self._note(_slot_line(chunk, slot))
        except OSError as error:
            self._give_up(error)
            chunk.put(slot, arrays)

    def remove(self, point: UUID) -> bool:
        """Remove an item; whether it was there."""
        place = self.places.pop(point, None)
        if place is None:
            return False
        chunk, slot = place
        chunk.vacate(slot)
        self.generation += 1
        # Its line in the journal stays: its version no longer fits the store.
        return True

    def rows_of(self, point: UUID) -> npt.NDArray[np.float16] | None:
        """An item's rows (R, D), padded."""
        place = self.places.get(point)
        return None if place is None else place[0].arrays["exact"][place[1]]

    def sample(self, rows: int, seed: int = 0) -> npt.NDArray[np.float32]:
        """Rows (n, D) of items taken at random."""
        random = np.random.default_rng(seed)
        places = list(self.places.values())
        mean = max(1, round(sum(chunk.length for chunk, _ in places[:1000]) / len(places[:1000])))
        chosen = random.choice(len(places), min(len(places), max(1, rows // mean)), replace=False)
        parts = [places[i][0].arrays["exact"][places[i][1]] for i in chosen]
        result: npt.NDArray[np.float32] = np.concatenate(parts).astype(np.float32)
        return result

    def watch(self) -> None:
        """Remember from now on which slots are written."""
        self._touched = set()

    def bounds_for(self, basis: Basis) -> list[Arrays]:
        """Bounds of all chunks by a new basis, while writes go on; nothing is changed yet."""
        result = []
        for chunk in list(self.chunks):
            parts: dict[str, list[npt.NDArray[Any]]] = {}
            step = max(1, (1 << 22) // (chunk.length * self._dim))
            count = len(chunk)
            for start in range(0, count, step):
                part = chunk.arrays["exact"][start : min(start + step, count)]
                for name, value in basis.rows(part.astype(np.float32)).items():
                    parts.setdefault(name, []).append(value)
            result.append({name: np.concatenate(values) for name, values in parts.items()})
        return result

    def use_basis(self, basis: Basis, bounds: list[Arrays]) -> None:
        """Take over what `bounds_for` made, and make what was written since `watch`."""
        bounds = self._completed(basis, bounds)
        try:
            if self._persistent:
                assert self._directory is not None
                (self._directory / "basis.npy").unlink(missing_ok=True)
            for chunk, arrays in zip(self.chunks, bounds, strict=True):
                for name, value in arrays.items():
                    chunk.arrays.pop(name, None)
                    chunk.array(name, value.dtype, value.shape[1:])[: len(value)] = value
                    chunk.write_whole(name)
            if self._persistent:
                assert self._directory is not None
                np.save(self._directory / "basis.npy", basis.columns)
        except OSError as error:
            self._give_up(error)
            for chunk, arrays in zip(self.chunks, bounds, strict=True):
                for name, value in arrays.items():
                    chunk.array(name, value.dtype, value.shape[1:])[: len(value)] = value
        self.basis = basis

    def _completed(self, basis: Basis, bounds: list[Arrays]) -> list[Arrays]:
        """Bounds of every slot in use."""
        result = []
        for i, chunk in enumerate(self.chunks):
            known = bounds[i] if i < len(bounds) else {}
            count = len(next(iter(known.values()))) if known else 0
            tail = chunk.arrays["exact"][count : len(chunk)].astype(np.float32)
            extra = basis.rows(tail)
            arrays = {
                name: np.concatenate([known[name], value]) if known else value
                for name, value in extra.items()
            }
            for number, slot in self._touched or ():
                if number == i and slot < count:
                    values = basis.rows(chunk.arrays["exact"][slot].astype(np.float32))
                    for name, value in values.items():
                        arrays[name][slot] = value
            result.append(arrays)
        self._touched = None
        return result

    def memory_bytes(self) -> int:
        """Bytes of the arrays in use."""
        return sum(
            array[:1].nbytes * len(chunk)
            for chunk in self.chunks
            for array in chunk.arrays.values()
        )

    def close(self) -> None:
        """Bring the files to the disk and note that they are whole."""
        for chunk in self.chunks:
            if self._persistent:
                for file in chunk.files.values():
                    os.fsync(file)
            chunk.close()
        if self._journal is not None:
            self._journal.flush()
            os.fsync(self._journal.fileno())
            self._journal.close()
            self._journal = None
            assert self._directory is not None
            (self._directory / "clean").touch()

    def _note(self, line: str) -> None:
        """Add to the journal; what a slot holds, only after its data was written."""
        if self._journal is not None:
            self._journal.write(line)
            self._journal.flush()

    def _give_up(self, error: OSError) -> None:
        """Go on without files; the store has everything."""
        _log.warning("%s can't be written: %s; the next start reads the store", self._directory,
                     error)  # fmt: skip
        self._persistent = False
        if self._journal is not None:
            self._journal = None
        for chunk in self.chunks:
            chunk.close()
            chunk.directory = None

    def _open_journal(self) -> None:
        assert self._directory is not None
        (self._directory / "clean").unlink(missing_ok=True)
        temporary = self._directory / "journal.new"
        with temporary.open("w", encoding="ascii") as file:
            for line in self._lines():
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._directory / "journal")
        self._journal = (self._directory / "journal").open("a", encoding="ascii")

    def _lines(self) -> Iterator[str]:
        yield from map(_chunk_line, self.chunks)
        for chunk, slot in self.places.values():
            yield _slot_line(chunk, slot)

    def _read(self, versions: Mapping[UUID, int]) -> None:
        assert self._directory is not None
        journal = self._directory / "journal"
        if not journal.is_file():
            return
        slots: list[dict[int, tuple[UUID, int, int]]] = []
        for line in journal.read_text(encoding="ascii").splitlines():
            what, number, *rest = line.split()
            if what == "chunk":
                self.chunks.append(Chunk(int(number), int(rest[0]), int(rest[1]), self._directory))
                slots.append({})
            else:
                slots[int(number)][int(rest[0])] = UUID(hex=rest[1]), int(rest[2]), int(rest[3])
        clean = (self._directory / "clean").is_file()
        basis_file = self._directory / "basis.npy"
        basis = Basis(np.load(basis_file)) if basis_file.is_file() else None
        for chunk, held in zip(self.chunks, slots, strict=True):
            used, shape = max(held, default=-1) + 1, (chunk.length,)
            chunk.read("exact", np.float16, (*shape, self._dim), used)
            chunk.read("int8", np.uint8, (*shape, self._dim), used)
            chunk.read("scale", np.float32, shape, used)
            if basis:
                chunk.read("prefix", np.uint8, (*shape, basis.length), used)
                for name in ("prefix_scale", "residual", "slack"):
                    chunk.read(name, np.float32, shape, used)
            chunk.points, chunk.versions = [None] * used, [0] * used
            for slot, (point, version, check) in held.items():
                if versions.get(point) == version and (clean or _check(chunk, slot) == check):
                    self.places[point] = chunk, slot
                    chunk.occupy(slot, point, version, 1)
            chunk.free = [slot for slot in range(used) if not chunk.present[slot]]
        self.basis = basis


def _chunk_line(chunk: Chunk) -> str:
    return f"chunk {chunk.number} {chunk.length} {chunk.capacity}\n"


def _slot_line(chunk: Chunk, slot: int) -> str:
    point = chunk.points[slot]
    assert point is not None
    return f"slot {chunk.number} {slot} {point.hex} {chunk.versions[slot]} {_check(chunk, slot)}\n"


def _check(chunk: Chunk, slot: int) -> int:
    return zlib.crc32(chunk.arrays["exact"][slot].data)


def _own_files(directory: Path) -> list[Path]:
    names = ("exact", "int8", "scale", "prefix", "prefix_scale", "residual", "slack")
    found = [path for name in names for path in directory.glob(f"*.{name}")]
    others = ("journal", "journal.new", "clean", "basis.npy")
    return found + [directory / name for name in others if (directory / name).exists()]
