"""What was written since the store was last flushed, on the disk before the store is touched.

The engine writes over an item in place and brings it to the disk later, so that a loss of power may
leave neither the old one nor the new. Whatever is here is then written again.

A record is a head, with the length and the CRC-32 of its body, and the body: the length of some
JSON, the JSON, and an item's rows in fp16. All numbers are little-endian and have 32 bits.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np

from teran.gallery.embedded.files import sync_directory, write_all
from teran.gallery.item import Item
from teran.gallery.layout import VECTORS, item_of, payload_of

_HEAD, _COUNT = struct.Struct("<II"), struct.Struct("<I")


@dataclass(frozen=True)
class Deletion:
    """That an item was removed."""

    point: UUID
    version: int


Change = Item | Deletion


class RedoLog:
    """Changes in their order; one thread writes."""

    def __init__(self, path: Path, embed_dim: int) -> None:
        """Open the log, or begin one.

        Raises:
            OSError: it can't be done.
        """
        self._embed_dim = embed_dim
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.size = os.fstat(self._file).st_size
        sync_directory(path.parent)

    def close(self) -> None:
        os.close(self._file)

    def append(self, changes: Iterable[Change]) -> None:
        """Add changes; they are on the disk on return, or none of them is.

        Raises:
            OSError: they can't be written.
        """
        self._append([_record(change) for change in changes])

    def undo(self, changes: Sequence[Change]) -> None:
        """Have changes not be done again, as far as the disk lets."""
        undone = [_body({"undone": change.version}) for change in changes]
        if undone:
            with suppress(OSError):
                self._append(undone)

    def clear(self) -> None:
        """Forget all: it is on the disk elsewhere.

        Raises:
            OSError: it can't be done.
        """
        if self.size:
            os.ftruncate(self._file, 0)
            self.size = 0  # even if it comes back, nothing may be added behind a hole
            os.fsync(self._file)

    def changes(self) -> list[Change]:
        """The last change of every item that was not undone.

        The log is read as far as it is whole; what comes after was never acknowledged, and nothing
        may be added before it is cleared.

        Raises:
            OSError: it can't be read.
        """
        done: list[Change] = []
        undone = set()
        for content, rows in self._records():
            if "undone" in content:
                undone.add(content["undone"])
            else:
                done.append(self._change(content, rows))
        return list({one.point: one for one in done if one.version not in undone}.values())

    def _append(self, records: list[bytes]) -> None:
        data = b"".join(records)
        if os.fstat(self._file).st_size > self.size:  # what an earlier failure has left
            os.ftruncate(self._file, self.size)
        try:
            write_all(self._file, memoryview(data), self.size)
            os.fsync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self.size)
            raise
        self.size += len(data)

    def _records(self) -> Iterator[tuple[dict[str, Any], memoryview]]:
        data = memoryview(self._path.read_bytes())
        while len(data) >= _HEAD.size:
            length, check = _HEAD.unpack_from(data)
            body, data = data[_HEAD.size :][:length], data[_HEAD.size + length :]
            if len(body) < max(length, _COUNT.size) or zlib.crc32(body) != check:
                return
            (count,) = _COUNT.unpack_from(body)
            yield json.loads(bytes(body[_COUNT.size :][:count])), body[_COUNT.size + count :]

    def _change(self, content: dict[str, Any], rows: memoryview) -> Change:
        if "deleted" in content:
            return Deletion(UUID(content["deleted"]), content["version"])
        values = np.frombuffer(rows, "<f2").reshape(-1, self._embed_dim)
        record = SimpleNamespace(id=None, payload=content, vector={VECTORS: values})
        return item_of(record, with_rows=True)


def _record(change: Change) -> bytes:
    if isinstance(change, Deletion):
        return _body({"deleted": str(change.point), "version": change.version})
    return _body(payload_of(change), np.ascontiguousarray(change.rows, "<f2").tobytes())


def _body(content: dict[str, Any], rows: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    body = _COUNT.pack(len(text)) + text + rows
    return _HEAD.pack(len(body), zlib.crc32(body)) + body
