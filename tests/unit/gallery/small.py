"""Small galleries: what fills them, and what is found in them."""

from pathlib import Path
from typing import Any

import numpy as np

from teran.gallery.catalog import GalleryCatalog, Model
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.item import Item
from teran.gallery.search.kernels import kernel
from teran.gallery.search.pooling import Kind
from teran.gallery.search.query import Query

DIM = 128
"""Of which the half holds most of what rows are, so that there are bounds."""
_STRUCTURE = np.random.default_rng(7).standard_normal((24, DIM)).astype(np.float32)
MODEL = Model("a" * 64, DIM, "MrSw")


def unit(seed: int, rows: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, 24)).astype(np.float32) @ _STRUCTURE
    values += random.standard_normal((rows, DIM)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def item(name: str, variant: int, **metadata: object) -> Item:
    rows = unit(variant, (36, 36, 7)[variant % 3]).astype(np.float16)
    return Item(name, rows, boxes=np.full((len(rows), 4), 0.5, np.float32), metadata=metadata)


def opened(root: Path, model: Model = MODEL) -> EmbeddedCatalog:
    return EmbeddedCatalog(root, model, kernel())


def fill(galleries: GalleryCatalog, items: list[Item], name: str = "default") -> None:
    galleries.writer.write(galleries.get_or_create(name, Kind.IMAGES), items).result(30)


def found(
    galleries: GalleryCatalog,
    query: np.ndarray,
    k: int = 1000,
    name: str = "default",
    exact: bool = True,
    **where: Any,
) -> list[tuple[str, float]]:
    gallery = galleries.get(name)
    result = gallery.search([Query(query, k, exact=exact)], [where or None])[0]
    items = gallery.items([hit.point for hit in result.hits])
    return [(items[hit.point].id, hit.score) for hit in result.hits]


def descriptors(path: Path) -> int:
    """Files under a path that this process holds open."""
    links = list(Path("/proc/self/fd").iterdir())
    return sum(link.is_symlink() and str(path) in str(link.readlink()) for link in links)
