"""Giving the room of deleted items back: a copy without them takes the place of the store.

The engine can do so where the store lies, but not safely: after a loss of power it may find new
files whose contents never came to the disk, and prefers them to the old ones.
"""

import logging
import shutil
from pathlib import Path

import qdrant_edge as edge

from teran.errors import GalleryError
from teran.gallery.embedded.engine import engine_errors, vacuum_config
from teran.gallery.embedded.files import copy_tree, rename_durably, require_free, room_of, sync_tree
from teran.gallery.layout import VECTORS

_EMBEDDINGS = f"segments/*/vector_storage-{VECTORS}"
"""Where the engine keeps them."""
_BYTES_PER_VALUE = 2
_LITTLE = 1 << 20
"""Bytes that are not worth the while."""
_log = logging.getLogger(__name__)


def is_mostly_deleted(directory: Path, values: int) -> bool:
    """Whether most of a store's embeddings are not those of its items, which have so many values.

    Raises:
        OSError: it can't be read.
    """
    room = sum(map(room_of, directory.glob(_EMBEDDINGS)))
    return room > 2 * _BYTES_PER_VALUE * values + _LITTLE


def vacuum(directory: Path, items: int, embed_dim: int) -> None:
    """Give the room of deleted items back to the disk; nobody may have the store open meanwhile.

    It takes as long as copying the store, and room for the copy. Whatever fails is logged, and the
    store stays what it was, as nothing depends on it.
    """
    new, old = _beside(directory)
    before = room_of(directory)
    _log.info("%s: most of %d MiB are of deleted items, to be freed", directory, before >> 20)
    try:
        require_free(directory, 2 * before)
        with engine_errors(f"{directory} keeps the room of deleted items"):
            copy_tree(directory, new)
            _optimize(new, embed_dim)
            sync_tree(new)
            _require(new, items)
        directory.rename(old)
        rename_durably(new, directory)
    except (GalleryError, OSError) as error:
        _log.warning("%s", error)
    settle(directory)
    _log.info("%s: %d MiB freed", directory, before - room_of(directory) >> 20)


def settle(directory: Path) -> None:
    """End what was cut off of `vacuum`, so that there is one store and nothing beside it.

    Raises:
        OSError: it can't be done.
    """
    new, old = _beside(directory)
    for whole in (new, old):  # the store was moved away, so either is whole
        if whole.is_dir() and not directory.exists():
            rename_durably(whole, directory)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


def _beside(directory: Path) -> tuple[Path, Path]:
    new, old = (directory.with_name(f"{directory.name}.{suffix}") for suffix in ("new", "old"))
    return new, old


def _optimize(directory: Path, embed_dim: int) -> None:
    shard = edge.EdgeShard.load(str(directory), vacuum_config(embed_dim))
    try:
        shard.optimize()
        shard.flush()
    finally:
        shard.close()


def _require(directory: Path, items: int) -> None:
    """Open a store again, and count.

    Raises:
        GalleryError: it has another number of items.
    """
    shard = edge.EdgeShard.load(str(directory))
    try:
        there = shard.count(edge.CountRequest())
    finally:
        shard.close()
    if there != items:
        raise GalleryError(f"{directory} has {there} items instead of {items}")
