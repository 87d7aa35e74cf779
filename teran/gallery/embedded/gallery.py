"""One gallery in a directory: the store, the copy that is searched, and what keeps them in step."""

import json
import logging
import shutil
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from teran.errors import GalleryError, TeranInputError
from teran.gallery.catalog import Description, Model
from teran.gallery.courtesy import Courtesy
from teran.gallery.embedded.compact_files import PersistentCompact
from teran.gallery.embedded.files import rename_durably, room_of, sync_tree, write_durably
from teran.gallery.embedded.store import GalleryStore
from teran.gallery.embedded.vacuum import is_mostly_deleted
from teran.gallery.item import Item, point_of
from teran.gallery.search.compact import NewBounds, prepare
from teran.gallery.search.kernels import Kernel
from teran.gallery.search.kernels.base import DIM_STEP, Floats
from teran.gallery.search.pooling import Kind, Pooling
from teran.gallery.search.pruning import Basis
from teran.gallery.search.query import Query, SearchResult
from teran.gallery.search.searcher import Searcher

if TYPE_CHECKING:  # it needs torch
    from teran.gallery.search.device import DeviceCopy

_FEWEST_TO_PRUNE = 1000
"""Items; smaller galleries are scanned in no time."""
_SAMPLE = 20_000
"""Rows a basis is fitted to."""
_FEW = 16
"""Items whose bounds searches wait for."""
_PAGE = 4
"""Items read from the store at once, for which searches of other galleries wait."""
_MASKS = 64
"""Filters whose answers are remembered."""
_log = logging.getLogger(__name__)


class EmbeddedGallery:
    """Items of one kind. Writes come from one thread; searches from any, one at a time."""

    def __init__(
        self,
        directory: Path,
        name: str,
        model: Model,
        kernel: Kernel,
        *,
        device: "Callable[[], DeviceCopy] | None" = None,
        courtesy: Courtesy | None = None,
    ) -> None:
        """Open the gallery in `directory`, which has its description already.

        Raises:
            GalleryError: it is damaged, or made with another model.
        """
        description = read_description(directory)
        description.check(name, model)
        self.name, self.directory, self.model = name, directory, model
        self._courtesy = courtesy or Courtesy()
        self.kind = Kind(description.kind)
        pooling = Pooling(model.pooling, self.kind)
        self._searcher = Searcher(pooling, kernel, device() if device else None)
        self._masks: OrderedDict[str, tuple[int, list[npt.NDArray[np.bool_]]]] = OrderedDict()
        self._lock = threading.Lock()
        self._fitted, self._closed = 0, False
        self._fitting: threading.Thread | None = None
        started = time.monotonic()
        self.store = GalleryStore(directory / "store", model.embed_dim)
        with ExitStack() as opened:  # and closed again if the copy can't be made
            opened.callback(self.store.close)
            versions = dict(self.store.versions())
            dim = model.embed_dim + -model.embed_dim % DIM_STEP
            self._compact = PersistentCompact.load(directory / "compact", dim, versions)
            missing = [point for point in versions if point not in self._compact.places]
            self._read(missing)
            opened.pop_all()
        if self._compact.basis:
            self._fitted = len(self._compact)
        _log.info(
            "gallery %s: %d items, %d read from the store, in %.1f s",
            name, len(versions), len(missing), time.monotonic() - started,
        )  # fmt: skip

    def _read(self, points: Sequence[UUID]) -> None:
        """Read items from the store into the copy, while other galleries may be searched."""
        for start in range(0, len(points), _PAGE):
            self._courtesy.give_way()  # the engine lets no other thread run while it reads rows
            for point, item in self.store.get(points[start : start + _PAGE]).items():
                self._compact.put(point, item.version, prepare(item.rows, self._compact.basis))

    def close(self) -> None:
        """Bring everything to the disk."""
        self._closed = True
        if self._fitting is not None:
            self._fitting.join()
        with self._lock:
            try:
                self.store.close()
            finally:
                self._compact.close()

    def __len__(self) -> int:
        return len(self._compact)

    def write(self, upserts: Sequence[Item], deletes: Sequence[str]) -> int:
        """See `Gallery.write`. Nothing is searchable that is not stored."""
        if self._closed:
            raise TeranInputError(f"gallery {self.name!r} was dropped a moment ago")
        if upserts:
            self.store.require_room(upserts)
            self._write(self.store.log(upserts))
        if not deletes:
            return 0
        points = [point_of(identifier) for identifier in deletes]
        self.store.delete(points)
        with self._lock:
            return sum(self._compact.remove(point) for point in points)

    def _write(self, logged: Sequence[Item]) -> None:
        """Write items that are in the log already, step by step."""
        waiting = deque(logged)
        try:
            while waiting:  # the engine lets no other thread run for milliseconds each
                self._courtesy.give_way()
                item, basis = waiting[0], self._compact.basis
                self.store.put(item)
                arrays = prepare(item.rows, basis)
                with self._lock:
                    if self._compact.basis is not basis:  # it changed meanwhile
                        arrays = prepare(item.rows, self._compact.basis)
                    self._compact.put(item.point, item.version, arrays)
                waiting.popleft()
        finally:
            self.store.undo(waiting)

    def maintain(self) -> None:
        """What may wait for a quiet moment: flush, and start to fit the bounds to what is there."""
        self.store.flush_if_due()
        count = len(self._compact)
        fitting = self._fitting is not None and self._fitting.is_alive()
        if fitting or count < _FEWEST_TO_PRUNE or count < 2 * self._fitted:
            return
        self._fitted = count
        self._fitting = threading.Thread(target=self.fit, name=f"fit {self.name}")
        self._fitting.start()

    def fit(self) -> None:
        """Fit the bounds to the items, while searches and writes go on and wait for steps only."""
        sample = self._compact.sample(_SAMPLE)  # without the lock: any rows will do
        basis = Basis.fit(sample.astype(np.float32))
        if basis is None:
            return
        new = NewBounds(basis)
        while not self._closed:
            with self._lock:
                parts = self._compact.parts_to_bound(new)
                if sum(len(slots) for _, slots in parts) <= _FEW:
                    for part in parts:
                        self._compact.put_bounds(new, part, new.of(part))
                    self._compact.use_bounds(new)
                    return
            for part in parts:
                self._courtesy.give_way()
                values = new.of(part)
                with self._lock:  # what is written to the part meanwhile is another part
                    self._compact.put_bounds(new, part, values)

    def is_mostly_deleted(self) -> bool:
        """Whether most of its store's room is of deleted items."""
        rows = sum(chunk.length for chunk, _ in self._compact.places.values())
        return is_mostly_deleted(self.directory / "store", rows * self.model.embed_dim)

    def search(
        self, queries: Sequence[Query], where: Sequence[dict[str, Any] | None]
    ) -> list[SearchResult]:
        """See `Gallery.search`."""
        with self._lock:
            queries = [
                replace(query, allowed=self._mask(condition)) if condition else query
                for query, condition in zip(queries, where, strict=True)
            ]
            return self._searcher.search(self._compact, queries)

    def rows_of(self, identifier: str) -> Floats:
        """See `Gallery.rows_of`."""
        with self._lock:
            rows = self._compact.rows_of(point_of(identifier))
            if rows is None:
                raise TeranInputError(f"gallery {self.name!r} has no item {identifier[:64]!r}")
            return rows[:, : self.model.embed_dim].astype(np.float32)

    def items(self, points: Sequence[UUID]) -> dict[UUID, Item]:
        """See `Gallery.items`."""
        return self.store.get(points, with_rows=False)

    def similarity(self, point: UUID, query: Floats) -> Floats:
        """See `Gallery.similarity`."""
        with self._lock:
            rows = self._compact.rows_of(point)
            if rows is None:
                return np.zeros((0, len(query)), np.float32)
            cosine: Floats = rows[:, : query.shape[1]].astype(np.float32) @ query.T
            return cosine

    def info(self) -> dict[str, Any]:
        """See `Gallery.info`."""
        return {
            "name": self.name,
            "kind": self.kind.value,
            "items": len(self._compact),
            "generation": self._compact.generation,
            "model": asdict(self.model),
            "bytes_in_memory": self._compact.memory_bytes(),
            "bytes_on_disk": room_of(self.directory),
            "bounds": self._compact.basis.length if self._compact.basis else None,
        }

    def _mask(self, where: dict[str, Any]) -> list[npt.NDArray[np.bool_]]:
        """Which slots of every chunk a filter allows."""
        key = json.dumps(where, sort_keys=True)
        known = self._masks.get(key)
        if known and known[0] == self._compact.generation:
            self._masks.move_to_end(key)
            return known[1]
        masks = [np.zeros(len(chunk), bool) for chunk in self._compact.chunks]
        for point in self.store.matching(where):
            place = self._compact.places.get(point)
            if place:
                masks[place[0].number][place[1]] = True
        self._masks[key] = self._compact.generation, masks
        if len(self._masks) > _MASKS:
            self._masks.popitem(last=False)
        return masks


def create_gallery(directory: Path, kind: Kind, model: Model) -> None:
    """Make the directory of an empty gallery; it appears whole or not at all.

    Raises:
        OSError, GalleryError: it can't be made.
    """
    Pooling(model.pooling, kind)
    temporary = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    description = Description(kind.value, asdict(model))
    write_durably(temporary / "gallery.json", json.dumps(asdict(description), indent=1) + "\n")
    GalleryStore(temporary / "store", model.embed_dim).close()
    sync_tree(temporary)  # the engine flushes only what was written to
    rename_durably(temporary, directory)


def read_description(directory: Path) -> Description:
    """Read a gallery's own file.

    Raises:
        GalleryError: it is missing or damaged.
    """
    path = directory / "gallery.json"
    try:
        description = Description(**json.loads(path.read_text(encoding="utf-8")))
        Kind(description.kind)
        Model(**description.model)
        return description
    except (OSError, ValueError, TypeError) as error:
        raise GalleryError(f"{path} can't be read: {error}; nothing was changed") from error
