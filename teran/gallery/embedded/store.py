"""The durable truth of one gallery: a shard of Qdrant's engine in a directory of this process.

Changes go to a log of ours first, which is on the disk before anything else is done; the shard,
which is quicker to read and slower to bring to the disk, is flushed every few seconds.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import qdrant_edge as edge

from teran.errors import GalleryError
from teran.gallery.embedded.engine import EngineDialect, engine_config, engine_errors
from teran.gallery.embedded.files import (
    RESERVE,
    require_free,
    sync_directory,
    sync_names,
    write_durably,
)
from teran.gallery.embedded.redo import Change, Deletion, RedoLog
from teran.gallery.embedded.vacuum import settle
from teran.gallery.filters import to_filter
from teran.gallery.item import Item
from teran.gallery.layout import VECTORS, item_of, payload_of

_PAGE = 256
_PAGE_WITHOUT_VECTORS = 10_000
_BYTES_PER_VALUE = 16
"""What a value may take on the disk while it is in the log as well."""
_TALLY = "store.json"
_REDO = "redo"
_LARGEST_REDO = 64 << 20
"""Bytes of the log after which the shard is flushed, however busy it is."""
_FLUSH_INTERVAL = 2.0
"""Seconds; the log of what was not flushed is read again at the next start."""
_log = logging.getLogger(__name__)


class GalleryStore:
    """Items by id. Writes come from one thread at a time; reads from any."""

    def __init__(self, directory: Path, embed_dim: int) -> None:
        """Open a shard, or make it where there is none, and do again what it may have lost.

        Raises:
            GalleryError: it can't be opened; nothing is changed.
        """
        self._directory, self._tally = directory, directory.with_name(_TALLY)
        self._flushed = time.monotonic()
        self._unflushed = False
        self._writing = threading.Lock()
        self.embed_dim = embed_dim
        with engine_errors(f"{directory} can't be opened as a gallery's store"):
            settle(directory)
            exists = directory.is_dir() and any(directory.iterdir())
            if exists:
                self._shard = edge.EdgeShard.load(str(directory))
            else:
                directory.mkdir(parents=True, exist_ok=True)
                self._shard = edge.EdgeShard.create(str(directory), engine_config(embed_dim))
            with ExitStack() as opened:  # and closed again if anything fails
                opened.callback(_close_quietly, self._shard)
                self._redo = RedoLog(directory.with_name(_REDO), embed_dim)
                opened.callback(_close_quietly, self._redo)
                changes = self._redo.changes()
                self._do_again(changes)
                versions = [version for _, version in self.versions()]
                self._version = max([*versions, *(one.version for one in changes)], default=0)
                self._check(len(versions))
                opened.pop_all()

    def close(self) -> None:
        """Flush and close, and note how many items there are."""
        with self._writing, engine_errors(f"{self._directory} can't be closed"):
            try:
                count = self.count()
                self._flush()
            finally:
                self._release()
        with suppress(OSError):  # it is only for the case that something is lost
            tally = {"items": count, "version": self._version}
            write_durably(self._tally, json.dumps(tally) + "\n")

    def _release(self) -> None:
        """Let go of all files, so that their room is free once they are removed."""
        try:
            self._shard.close()
        finally:
            self._redo.close()

    def _check(self, count: int) -> None:
        """Compare with what was there at the last close: the engine misses no lost list of items.

        Raises:
            GalleryError: it is something else.
        """
        try:
            noted = json.loads(self._tally.read_text(encoding="utf-8"))
            items, version = int(noted["items"]), int(noted["version"])
        except (OSError, ValueError, KeyError, TypeError):  # it was not closed in good order
            return
        if count < items and self._version <= version:
            raise GalleryError(
                f"{self._directory} holds {count} items instead of {items}; restore a snapshot, or "
                f"remove {self._tally} to go on with what is left"
            )

    def require_room(self, items: Sequence[Item]) -> None:
        """Refuse items that the disk has no room for, before any of them is written.

        Raises:
            GalleryError: it has none.
        """
        values = sum(item.rows.size for item in items)
        require_free(self._directory, values * _BYTES_PER_VALUE)

    def log(self, items: Sequence[Item]) -> list[Item]:
        """Bring items to the disk, each to be `put` next; returns them with their versions.

        Raises:
            GalleryError: they can't be written.
        """
        written = []
        for item in items:
            self._version += 1
            written.append(replace(item, version=self._version))
        self._append(written)
        return written

    def put(self, item: Item) -> None:
        """Write an item from the log, in the place of the one with the same id.

        Raises:
            GalleryError: it can't be written.
        """
        with self._writing:
            self._put(item)

    def undo(self, items: Sequence[Item]) -> None:
        """Forget items that were not put."""
        self._redo.undo(items)

    def delete(self, points: Sequence[UUID]) -> None:
        """Remove items; those that are not there are no error.

        Raises:
            GalleryError: the deletion can't be written.
        """
        require_free(self._directory, -RESERVE * 3 // 4)
        self._version += 1
        deletions = [Deletion(point, self._version) for point in points]
        self._append(deletions)
        try:
            with self._writing:
                self._remove(points)
        except GalleryError:
            self._redo.undo(deletions)
            raise

    def _append(self, changes: Sequence[Change]) -> None:
        if self._redo.size > _LARGEST_REDO:
            self.flush()
        try:
            if self._tally.exists():  # the number at the last close tells nothing from now on
                self._tally.unlink()
                sync_directory(self._tally.parent)
            self._redo.append(changes)
        except OSError as error:
            raise GalleryError(f"{self._directory} can't be written: {error}") from error

    def _put(self, item: Item) -> None:
        point = edge.Point(str(item.point), {VECTORS: item.rows.tolist()}, payload_of(item))
        with engine_errors(f"{self._directory} can't be written"):
            self._unflushed = True
            self._shard.update(edge.UpdateOperation.upsert_points([point]))

    def _remove(self, points: Sequence[UUID]) -> None:
        operation = edge.UpdateOperation.delete_points([str(point) for point in points])
        with engine_errors(f"{self._directory} can't be written"):
            self._unflushed = True
            self._shard.update(operation)

    def _do_again(self, changes: Sequence[Change]) -> None:
        """Do what the shard has not done, or not whole.

        Raises:
            GalleryError: it can't be written, as where the disk has no room for it.
        """
        missing = [change for change in changes if not self._is_done(change)]
        if items := [change for change in missing if isinstance(change, Item)]:
            self.require_room(items)
        for change in missing:
            if isinstance(change, Item):
                self._put(change)
            else:
                self._remove([change.point])
        if changes:
            self._flush()
        self._redo.clear()

    def _is_done(self, change: Change) -> bool:
        try:
            there = self.get([change.point]).get(change.point)
        except GalleryError:
            _log.warning("%s: an item is damaged, and written again", self._directory)
            return False
        if there is None:
            return isinstance(change, Deletion)
        return there.version >= change.version

    def flush_if_due(self) -> None:
        """Flush what has waited long enough, so that a restart has little to read again.

        Raises:
            GalleryError: it can't be written.
        """
        if self._unflushed and time.monotonic() - self._flushed > _FLUSH_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Bring everything to the disk, and forget the log.

        Raises:
            GalleryError: it can't be written.
        """
        with self._writing, engine_errors(f"{self._directory} can't be flushed"):
            self._flush()

    def _flush(self) -> None:
        self._shard.flush()
        sync_names(self._directory)  # which the engine does not for all it makes
        self._redo.clear()
        self._unflushed, self._flushed = False, time.monotonic()

    def count(self) -> int:
        return self._shard.count(edge.CountRequest())

    def versions(self) -> Iterator[tuple[UUID, int]]:
        """Every item's key and version."""
        for record in self._scroll(_PAGE_WITHOUT_VECTORS, with_payload=["version"]):
            yield UUID(str(record.id)), int(record.payload["version"])

    def items(self) -> Iterator[Item]:
        """Every item."""
        for record in self._scroll(_PAGE, with_payload=True, with_vector=True):
            yield item_of(record, with_rows=True)

    def get(self, points: Sequence[UUID], *, with_rows: bool = True) -> dict[UUID, Item]:
        """Those of the items that are there; without rows much faster."""
        if not points:
            return {}
        with engine_errors(f"{self._directory} can't be read"):
            records = self._shard.retrieve(
                [str(point) for point in points], with_payload=True, with_vector=with_rows
            )
        found = (item_of(record, with_rows=with_rows) for record in records)
        return {item.point: item for item in found}

    def matching(self, where: Mapping[str, Any]) -> list[UUID]:
        """Keys of the items that a filter lets through.

        Raises:
            TeranInputError: the filter makes no sense.
        """
        condition = to_filter(where, EngineDialect())
        return [record.id for record in self._scroll(_PAGE_WITHOUT_VECTORS, filter=condition)]

    def _scroll(self, page: int, **options: Any) -> Iterator[Any]:
        offset = None
        while True:
            request = edge.ScrollRequest(offset=offset, limit=page, **options)
            with engine_errors(f"{self._directory} can't be read"):
                records, offset = self._shard.scroll(request)
            yield from records
            if offset is None:
                return


def _close_quietly(opened: edge.EdgeShard | RedoLog) -> None:
    """Close what is of no use, for a reason that is to be told rather than what closing says."""
    with suppress(Exception):
        opened.close()
