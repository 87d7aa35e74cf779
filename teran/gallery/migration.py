"""Copies a gallery from a directory into a Qdrant cluster; goes on where it was interrupted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from qdrant_client import QdrantClient

from teran.errors import GalleryError
from teran.gallery.catalog import Model
from teran.gallery.cluster.catalog import ClusterCatalog
from teran.gallery.embedded.gallery import read_description
from teran.gallery.embedded.lock import lock_directory
from teran.gallery.embedded.store import GalleryStore
from teran.gallery.item import Item
from teran.gallery.search.kernels.portable import PortableKernel
from teran.gallery.search.pooling import Kind

_PAGE = 64
Progress = Callable[[int, int], None]
"""Told how many items are there, and of how many."""


@dataclass(frozen=True)
class Migration:
    """What was done."""

    items: int
    """All that are now in the cluster."""
    copied: int
    """Those that were not there before, or older."""


def migrate(
    root: Path, name: str, client: QdrantClient, progress: Progress = lambda *_: None
) -> Migration:
    """Copy the gallery `name` of the directory `root`, which no server may be using.

    Raises:
        GalleryError: the gallery can't be read, or the cluster not be written.
    """
    if not root.is_dir():
        raise GalleryError(f"there are no galleries at {root}")
    with lock_directory(root):
        directory = root / "galleries" / name
        description = read_description(directory)
        model = Model(**description.model)
        store = GalleryStore(directory / "store", model.embed_dim)
        galleries = ClusterCatalog(client, model, PortableKernel(1))
        try:
            galleries.get_or_create(name, Kind(description.kind))
            target = galleries.get(name)
            total, done, copied = store.count(), 0, 0
            for page in _pages(store.items()):
                there = target.versions([item.point for item in page])
                fresh = [item for item in page if _is_newer(item, there.get(item.point))]
                target.write(fresh, [])
                done, copied = done + len(page), copied + len(fresh)
                progress(done, total)
        finally:
            galleries.close()
            store.close()
    return Migration(done, copied)


def _is_newer(item: Item, there: int | None) -> bool:
    """Whether to copy an item; what servers wrote to the cluster since has version 0, and stays."""
    return there is None or 0 < there < item.version


def _pages(items: Iterator[Item]) -> Iterator[Sequence[Item]]:
    while page := list(islice(items, _PAGE)):
        yield page
