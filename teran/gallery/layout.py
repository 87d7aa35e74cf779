"""How an item lies in Qdrant: the same in the embedded engine and in a cluster."""

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from teran.errors import GalleryError
from teran.gallery.filters import flags
from teran.gallery.item import Item

VECTORS = "rows"
"""The multivector of an item's embeddings."""


def payload_of(item: Item) -> dict[str, Any]:
    """What is stored beside an item's embeddings."""
    known = {
        "id": item.id,
        "version": item.version,
        "uri": item.uri,
        "text": item.text,
        "metadata": dict(item.metadata),
        "flags": flags(item.metadata),
        "tokens": list(item.tokens) or None,
        "boxes": None if item.boxes is None else item.boxes.astype(float).round(6).tolist(),
        "checksum": _checksum(item.rows),
    }
    return {key: value for key, value in known.items() if value is not None}


def item_of(record: Any, *, with_rows: bool) -> Item:
    """Read an item back, with its embeddings where the record was asked for with them.

    Raises:
        GalleryError: it is not as it was written.
    """
    payload = record.payload or {}
    try:
        boxes = payload.get("boxes")
        rows = np.empty((0, 0), np.float16)
        if with_rows:
            rows = np.array((record.vector or {})[VECTORS], np.float16)
        if with_rows and payload.get("checksum", _checksum(rows)) != _checksum(rows):
            raise GalleryError(
                f"item {payload['id'][:64]!r} is damaged: its embeddings have changed"
            )
        return Item(
            id=payload["id"],
            rows=rows,
            boxes=None if boxes is None else np.array(boxes, np.float32),
            tokens=tuple(payload.get("tokens", ())),
            uri=payload.get("uri"),
            text=payload.get("text"),
            metadata=payload.get("metadata", {}),
            version=int(payload["version"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise GalleryError(f"item {record.id} is damaged: {error!r}") from error


def _checksum(rows: npt.NDArray[np.float16]) -> int:
    return zlib.crc32(np.ascontiguousarray(rows, "<f2").data)
