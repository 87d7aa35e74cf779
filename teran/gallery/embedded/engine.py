"""Qdrant's engine as galleries use it: its configuration, its filters, and its errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import qdrant_edge as edge

from teran.errors import GalleryError, TeranInputError
from teran.gallery.layout import VECTORS


@contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Turn whatever the engine raises into our error.

    Its binding raises plain `Exception`, and for a panic inside it something that is none.

    Raises:
        GalleryError: the block failed.
    """
    try:
        yield
    except (GalleryError, TeranInputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise GalleryError(f"{what}: {error}") from error


def engine_config(embed_dim: int) -> edge.EdgeConfig:
    """Of a new shard."""
    return edge.EdgeConfig(
        vectors=_vectors(embed_dim),
        payload_memory=edge.Memory.Cold,
        wal_enabled=False,  # the redo log is one
    )


def vacuum_config(embed_dim: int) -> edge.EdgeConfig:
    """Of a shard to be optimised: whatever was deleted is left out, and nothing is indexed."""
    optimizers = edge.EdgeOptimizersConfig(
        deleted_threshold=0.01,
        vacuum_min_vector_number=1,
        indexing_threshold=0,
        default_segment_number=1,
    )
    return edge.EdgeConfig(vectors=_vectors(embed_dim), optimizers=optimizers)


def _vectors(embed_dim: int) -> dict[str, edge.EdgeVectorParams]:
    """Multivectors compared by MaxSim, as a Qdrant cluster holds them; no graph over them."""
    vectors = edge.EdgeVectorParams(
        size=embed_dim,
        distance=edge.Distance.Dot,
        datatype=edge.VectorStorageDatatype.Float16,
        multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
        hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=0),
        memory=edge.Memory.Cold,
    )
    return {VECTORS: vectors}


class EngineDialect:
    """Filters of the embedded engine."""

    def all_of(self, conditions: list[Any]) -> Any:
        return edge.Filter(must=conditions)

    def any_of(self, conditions: list[Any]) -> Any:
        return edge.Filter(should=conditions)

    def equals(self, path: str, value: str | int) -> Any:
        return edge.FieldCondition(key=path, match=edge.MatchValue(value))

    def one_of(self, path: str, values: list[Any]) -> Any:
        return edge.FieldCondition(key=path, match=edge.MatchAny(values))

    def within(self, path: str, bounds: dict[str, float | None]) -> Any:
        return edge.FieldCondition(key=path, range=edge.RangeFloat(**bounds))
