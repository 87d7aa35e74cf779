"""How an item lies in Qdrant: the same in the embedded engine and in a cluster."""

from typing import Any

import numpy as np

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
    }
    return {key: value for key, value in known.items() if value is not None}


def item_of(record: Any) -> Item:
    """Read an item back; without embeddings where the record was asked for without."""
    payload = record.payload
    boxes = payload.get("boxes")
    rows = np.array(record.vector[VECTORS], np.float16) if record.vector else np.empty((0, 0))
    return Item(
        id=payload["id"],
        rows=rows.astype(np.float16),
        boxes=None if boxes is None else np.array(boxes, np.float32),
        tokens=tuple(payload.get("tokens", ())),
        uri=payload.get("uri"),
        text=payload.get("text"),
        metadata=payload.get("metadata", {}),
        version=int(payload["version"]),
    )
