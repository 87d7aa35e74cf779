"""Keeps the copy that searches read in files, so that the next start need not read the store.

Every array of a chunk has a file that a write goes to as well, and a journal says which item is in
which slot, with checksums of what was written there. All that is a cache: what does not fit the
store or its checksum is dropped when it is read, and a full disk only makes the next start slower.

    chunk 0 36 14563                              number, rows of an item, capacity
    slot 0 17 8b1f4a9e... 42 3141592653           chunk, slot, item, version, checksum
    bounds 0 17 2718281828                        chunk, slot, checksum
    basis 1618033988                              checksum; bounds before it mean nothing
"""

import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO
from uuid import UUID

import numpy as np
import numpy.typing as npt

from teran.gallery.embedded.files import rename_durably, write_all
from teran.gallery.search.compact import (
    LARGEST_CHUNK,
    Arrays,
    Chunk,
    Compact,
    NewBounds,
    Part,
    Place,
    in_parts,
)
from teran.gallery.search.pruning import Basis

_ROWS = ("exact", "int8", "scale")
_BOUNDS = ("prefix", "prefix_scale", "residual", "slack")
_log = logging.getLogger(__name__)


class PersistentCompact(Compact):
    """A `Compact` in files as well."""

    def __init__(self, directory: Path, dim: int) -> None:
        """An empty copy, with its files in `directory`."""
        super().__init__(dim)
        self._directory = directory
        self._files: dict[Path, int] = {}
        self._journal: TextIO | None = None
        self._noted = 0
        """Chunks that the journal knows."""
        self._new_lines: list[str] = []
        """For the journal, once new bounds are used."""

    @classmethod
    def load(cls, directory: Path, dim: int, versions: Mapping[UUID, int]) -> "PersistentCompact":
        """Read what is left of the copy that a gallery with these items had.

        What does not fit is dropped: the caller adds the rest from the store.
        """
        compact = cls(directory, dim)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            compact._read(versions)
        except Exception as error:  # whatever it holds, the store has everything
            _log.warning("%s can't be used: %r; making it again", directory, error)
            compact = cls(directory, dim)
            for path in _own_files(directory):
                path.unlink()
        compact._open_journal()
        return compact

    def put(self, point: UUID, version: int, arrays: Arrays) -> Place:
        """Add an item, in the place of the one with the same key."""
        chunk, slot = super().put(point, version, arrays)
        self._persist(lambda: self._write_slot(chunk, slot, arrays))
        return chunk, slot

    # What is removed leaves its line in the journal, whose version no longer fits the store.

    def put_bounds(self, new: NewBounds, part: Part, values: Arrays) -> None:
        """Take in bounds of a part, which are not in use yet."""
        super().put_bounds(new, part, values)
        self._persist(lambda: self._write_part(part, values))
        chunk, slots = part
        arrays = new.chunks[chunk.number]
        self._new_lines += (_bounds_line(chunk, slot, arrays) for slot in slots.tolist())

    def use_bounds(self, new: NewBounds) -> None:
        """Use new bounds, which cover every item, from now on."""
        super().use_bounds(new)
        self._persist(lambda: self._note_basis(new.basis))
        self._new_lines.clear()

    def close(self) -> None:
        """Bring the files to the disk."""
        for file in self._files.values():
            os.fsync(file)
        self._close_files()
        if self._journal is not None:
            self._journal.flush()
            os.fsync(self._journal.fileno())
            self._journal.close()
            self._journal = None

    def _persist(self, write: Callable[[], None]) -> None:
        """Write, or go on without files; the store has everything."""
        if self._journal is None:
            return
        try:
            write()
        except OSError as error:
            _log.warning(
                "%s can't be written: %s; the next start reads the store", self._directory, error
            )
            self._journal = None
            self._close_files()

    def _close_files(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _path(self, chunk: Chunk, name: str) -> Path:
        return self._directory / f"{chunk.number:05d}-{chunk.length}.{name}"

    def _write(self, chunk: Chunk, name: str, slot: int, values: npt.NDArray[np.generic]) -> None:
        """Write parts of an array, of a slot and those after it."""
        path = self._path(chunk, name)
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        write_all(self._files[path], np.ascontiguousarray(values).data, slot * values[0].nbytes)

    def _write_slot(self, chunk: Chunk, slot: int, arrays: Arrays) -> None:
        """Write an item, and only then say where it is."""
        for name, value in arrays.items():
            self._write(chunk, name, slot, value[None])
        for new in self.chunks[self._noted :]:
            self._note(_chunk_line(new))
        self._note(_slot_line(chunk, slot))
        if self.basis:
            self._note(_bounds_line(chunk, slot, chunk.arrays))
        self._noted = len(self.chunks)

    def _write_part(self, part: Part, values: Arrays) -> None:
        chunk, slots = part
        breaks = np.flatnonzero(np.diff(slots) != 1) + 1
        for run in np.split(np.arange(len(slots)), breaks):
            for name, value in values.items():
                self._write(chunk, name, int(slots[run[0]]), value[run])

    def _note_basis(self, basis: Basis) -> None:
        """Say by which basis the bounds are that the files have had since a while."""
        np.save(self._directory / "basis.npy", basis.columns)
        self._note("".join([_basis_line(basis), *self._new_lines]))

    def _note(self, line: str) -> None:
        assert self._journal is not None
        self._journal.write(line)
        self._journal.flush()

    def _open_journal(self) -> None:
        journal, temporary = self._directory / "journal", self._directory / "journal.new"
        with temporary.open("w", encoding="ascii") as file:
            file.writelines(self._lines())
            file.flush()
            os.fsync(file.fileno())
        rename_durably(temporary, journal)  # or what was removed may come back with the old one
        self._journal, self._noted = journal.open("a", encoding="ascii"), len(self.chunks)

    def _lines(self) -> Iterator[str]:
        yield from map(_chunk_line, self.chunks)
        for chunk, slot in self.places.values():
            yield _slot_line(chunk, slot)
        if self.basis:
            yield _basis_line(self.basis)
            for chunk, slot in self.places.values():
                yield _bounds_line(chunk, slot, chunk.arrays)

    def _read(self, versions: Mapping[UUID, int]) -> None:
        journal = _Journal.read(self._directory / "journal")
        basis_file = self._directory / "basis.npy"
        basis = Basis(np.load(basis_file)) if journal.basis and basis_file.is_file() else None
        if basis and zlib.crc32(basis.columns.data) != journal.basis:
            basis = None
        for number, (length, capacity) in enumerate(journal.chunks):
            chunk, held = Chunk(number, length, capacity), journal.slots[number]
            self.chunks.append(chunk)
            used, rows = max(held, default=-1) + 1, (chunk.length,)
            self._read_array(chunk, "exact", np.float16, (*rows, self.dim), used)
            self._read_array(chunk, "int8", np.uint8, (*rows, self.dim), used)
            self._read_array(chunk, "scale", np.float32, rows, used)
            if basis:
                prefix, *norms = _BOUNDS
                self._read_array(chunk, prefix, np.uint8, (*rows, basis.length), used)
                for name in norms:
                    self._read_array(chunk, name, np.float32, rows, used)
            chunk.points, chunk.versions = [None] * used, [0] * used
            for slot, (point, version, check) in held.items():
                if versions.get(point) == version and _check(chunk, slot) == check:
                    self.places[point] = chunk, slot
                    chunk.occupy(slot, point, version, 1)
            if basis:
                self._mend_bounds(chunk, basis, journal)
            chunk.free = [slot for slot in range(used) if not chunk.present[slot]]
        self.basis = basis

    def _mend_bounds(self, chunk: Chunk, basis: Basis, journal: "_Journal") -> None:
        """Make bounds again that were not written whole, or by another basis."""
        new = NewBounds(basis)
        damaged = [
            slot
            for slot in np.flatnonzero(chunk.present).tolist()
            if _checksum(chunk.arrays, slot, _BOUNDS) != journal.bounds.get((chunk.number, slot))
        ]
        for part in in_parts(chunk, np.array(damaged, np.int64)):
            values = new.of(part)
            for name, value in values.items():
                chunk.arrays[name][part[1]] = value
            with suppress(OSError):  # they are made again at the next start
                self._write_part(part, values)

    def _read_array(
        self, chunk: Chunk, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...], count: int
    ) -> None:
        """Fill the first slots of an array from its file.

        Raises:
            OSError: the file is missing or too short.
        """
        target = chunk.array(name, dtype, shape)[:count]
        path = self._path(chunk, name)
        with path.open("rb", buffering=0) as file:
            view, done = target.reshape(-1).view(np.uint8).data, 0
            while done < len(view):
                read = file.readinto(view[done:])
                if not read:
                    raise OSError(f"{path} is too short")
                done += read


def _chunk_line(chunk: Chunk) -> str:
    return f"chunk {chunk.number} {chunk.length} {chunk.capacity}\n"


def _slot_line(chunk: Chunk, slot: int) -> str:
    point = chunk.points[slot]
    assert point is not None
    return f"slot {chunk.number} {slot} {point.hex} {chunk.versions[slot]} {_check(chunk, slot)}\n"


def _basis_line(basis: Basis) -> str:
    return f"basis {zlib.crc32(basis.columns.data)}\n"


def _bounds_line(chunk: Chunk, slot: int, arrays: Arrays) -> str:
    return f"bounds {chunk.number} {slot} {_checksum(arrays, slot, _BOUNDS)}\n"


def _check(chunk: Chunk, slot: int) -> int:
    return _checksum(chunk.arrays, slot, _ROWS)


def _checksum(arrays: Arrays, slot: int, names: Iterable[str]) -> int:
    value = 0
    for name in names:
        value = zlib.crc32(arrays[name][slot].data, value)
    return value


@dataclass
class _Journal:
    """What a journal says; its last words count."""

    chunks: list[tuple[int, int]] = field(default_factory=list)
    """Rows of an item, and capacity."""
    slots: list[dict[int, tuple[UUID, int, int]]] = field(default_factory=list)
    """For every chunk, by slot: item, version, checksum."""
    bounds: dict[tuple[int, int], int] = field(default_factory=dict)
    """Checksums by chunk and slot."""
    basis: int | None = None

    @classmethod
    def read(cls, path: Path) -> "_Journal":
        """Read as far as it can be made sense of: the rest was being written, or is damaged."""
        journal = cls()
        if path.is_file():
            for line in path.read_text(encoding="ascii", errors="replace").splitlines():
                try:
                    journal._take(*line.split())
                except (ValueError, TypeError, IndexError) as error:
                    _log.warning("%s: %r can't be read: %s", path, line[:80], error)
                    break
        return journal

    def _take(self, what: str, *words: str) -> None:
        match what, words:
            case "chunk", (number, length, capacity):
                if int(number) != len(self.chunks) or not 0 < int(capacity) <= LARGEST_CHUNK:
                    raise ValueError("no such chunk")
                self.chunks.append((int(length), int(capacity)))
                self.slots.append({})
            case "slot", (number, slot, point, version, check):
                chunk = int(number)
                if not 0 <= int(slot) < self.chunks[chunk][1]:
                    raise ValueError("no such slot")
                self.slots[chunk][int(slot)] = UUID(hex=point), int(version), int(check)
            case "bounds", (number, slot, check):
                self.bounds[int(number), int(slot)] = int(check)
            case "basis", (check,):
                self.basis = int(check)
                self.bounds.clear()
            case _:
                raise ValueError("an unknown line")


def _own_files(directory: Path) -> list[Path]:
    found = [path for name in (*_ROWS, *_BOUNDS) for path in directory.glob(f"*.{name}")]
    others = ("journal", "journal.new", "basis.npy")
    return found + [directory / name for name in others if (directory / name).exists()]
