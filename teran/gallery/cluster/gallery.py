"""One gallery in a cluster: a collection of multivectors.

The cluster compares multivectors by MaxSim: for every vector of the query the best of the item,
summed. That is MrSw of a sentence against images, and MwSr of an image against sentences, but for
the clamp at 0 (see `teran.gallery.search.pooling`). Where the model pools otherwise, or a search
asks for exact scores, the cluster's best few times k are scored again here from their embeddings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

import numpy as np
from qdrant_client import QdrantClient, models

from teran.contract import MAX_RESULTS
from teran.errors import GalleryError, TeranInputError
from teran.gallery.catalog import Description, Model
from teran.gallery.cluster.connection import Calls
from teran.gallery.filters import to_filter
from teran.gallery.item import Item, point_of
from teran.gallery.layout import VECTORS, item_of, payload_of
from teran.gallery.search.kernels import Kernel, Rows, RowType
from teran.gallery.search.kernels.base import Floats, pad_dim
from teran.gallery.search.pooling import Kind, Pooling
from teran.gallery.search.query import Hit, Query, SearchResult, candidate_count

_PAGE = 64
"""Items in one message: 9 MB with embeddings of 36 x 1024."""
_MAX_SIM = {(Kind.IMAGES, "MrSw"), (Kind.SENTENCES, "MwSr")}


class ClusterGallery:
    """One collection. Any thread may read or write."""

    def __init__(
        self,
        client: QdrantClient,
        calls: Calls,
        collection: str,
        name: str,
        model: Model,
        kernel: Kernel,
    ) -> None:
        """Open a collection that `ClusterCatalog.create` made.

        Raises:
            GalleryError: it is no gallery, or one of another model.
        """
        self._calls = calls
        with calls():
            metadata = client.get_collection(collection).config.metadata or {}
        try:
            description = Description(**metadata)
            self.kind = Kind(description.kind)
        except (TypeError, ValueError) as error:
            raise GalleryError(f"collection {collection!r} is no gallery: {error}") from error
        description.check(name, model)
        self.name, self.collection, self.model = name, collection, model
        self._client, self._kernel = client, kernel
        self._pooling = Pooling(model.pooling, self.kind)

    def __len__(self) -> int:
        with self._calls():
            return int(self._client.count(self.collection).count)

    def write(self, upserts: Sequence[Item], deletes: Sequence[str]) -> int:
        """See `Gallery.write`. Every 64 items are stored together or not at all."""
        with self._calls():
            for start in range(0, len(upserts), _PAGE):
                points = [
                    models.PointStruct(
                        id=str(item.point),
                        vector={VECTORS: item.rows.astype(np.float32).tolist()},
                        payload=payload_of(item),
                    )
                    for item in upserts[start : start + _PAGE]
                ]
                self._client.upsert(self.collection, points, wait=True)
            if not deletes:
                return 0
            keys = [str(point_of(identifier)) for identifier in deletes]
            there = self._client.retrieve(self.collection, keys, with_payload=False)
            selector = models.PointIdsList(points=[*keys])
            self._client.delete(self.collection, selector, wait=True)
            return len({record.id for record in there})

    def search(
        self, queries: Sequence[Query], where: Sequence[dict[str, Any] | None]
    ) -> list[SearchResult]:
        """See `Gallery.search`. The result is never proven, so `exact` asks for fp32 scores."""
        conditions = [to_filter(one, _ClusterDialect()) if one else None for one in where]
        again = [q.exact or (self.kind, self.model.pooling) not in _MAX_SIM for q in queries]
        wanted = [
            self._limit(query, rescored) for query, rescored in zip(queries, again, strict=True)
        ]
        requests = [
            models.QueryRequest(
                query=query.rows.tolist(),
                using=VECTORS,
                limit=limit,
                filter=condition,
                with_payload=["tokens"] if self.kind is Kind.SENTENCES else False,
            )
            for query, limit, condition in zip(queries, wanted, conditions, strict=True)
        ]
        with self._calls():
            answers = self._client.query_batch_points(self.collection, requests)
            counts = [
                self._client.count(self.collection, count_filter=condition, exact=False).count
                for condition in conditions
            ]
        result = []
        for query, rescored, limit, answer, count in zip(
            queries, again, wanted, answers, counts, strict=True
        ):
            if rescored:
                keys = [UUID(str(point.id)) for point in answer.points]
                hits = self._score(query, keys)
            else:
                hits = [self._hit(query, point) for point in answer.points]
            least = query.min_score_per_word
            hits = [hit for hit in hits if least is None or hit.score_per_word >= least]
            hits.sort(key=lambda hit: (-hit.score, hit.point.int))
            complete = rescored and len(answer.points) < limit
            result.append(SearchResult(hits[: query.k], count, count, exact=complete))
        return result

    def _limit(self, query: Query, rescored: bool) -> int:
        """How many of the best by score to ask for; by score per word the order is another."""
        if query.min_score_per_word is not None and self.kind is Kind.SENTENCES:
            return max(candidate_count(query.k), MAX_RESULTS)
        return candidate_count(query.k) if rescored else query.k

    def _hit(self, query: Query, point: Any) -> Hit:
        words = len(query.rows)
        if self.kind is Kind.SENTENCES:
            words = max(1, len((point.payload or {}).get("tokens", ())))
        return Hit(UUID(str(point.id)), float(point.score), float(point.score) / words)

    def _score(self, query: Query, keys: Sequence[UUID]) -> list[Hit]:
        """Score items in fp32, from their embeddings."""
        lanes, hits = self._pooling.lanes([query.rows]), []
        for item in self._get(keys, with_rows=True).values():
            rows = Rows(np.ascontiguousarray(pad_dim(item.rows)[None]), RowType.FP16)
            clamp = self._pooling.clamp_rows(len(item.rows))
            score = float(self._kernel.scores(rows, lanes, clamp_rows=clamp)[0, 0])
            words = len(query.rows) if self.kind is Kind.IMAGES else len(item.rows)
            hits.append(Hit(item.point, score, score / words))
        return hits

    def rows_of(self, identifier: str) -> Floats:
        """See `Gallery.rows_of`."""
        found = self._get([point_of(identifier)], with_rows=True)
        if not found:
            raise TeranInputError(f"gallery {self.name!r} has no item {identifier[:64]!r}")
        rows: Floats = next(iter(found.values())).rows.astype(np.float32)
        return rows

    def items(self, points: Sequence[UUID]) -> dict[UUID, Item]:
        """See `Gallery.items`."""
        return self._get(points, with_rows=False)

    def similarity(self, point: UUID, query: Floats) -> Floats:
        """See `Gallery.similarity`."""
        found = self._get([point], with_rows=True)
        if not found:
            return np.zeros((0, len(query)), np.float32)
        cosine: Floats = found[point].rows.astype(np.float32) @ query.T
        return cosine

    def versions(self, points: Sequence[UUID]) -> dict[UUID, int]:
        """The versions of those of the items that are there."""
        with self._calls():
            records = self._client.retrieve(
                self.collection, [str(point) for point in points], with_payload=["version"]
            )
        return {UUID(str(record.id)): (record.payload or {})["version"] for record in records}

    def info(self) -> dict[str, Any]:
        """See `Gallery.info`."""
        return {
            "name": self.name,
            "kind": self.kind.value,
            "items": len(self),
            "model": asdict(self.model),
            "collection": self.collection,
        }

    def _get(self, points: Sequence[UUID], *, with_rows: bool) -> dict[UUID, Item]:
        result: dict[UUID, Item] = {}
        for start in range(0, len(points), _PAGE):
            keys = [str(point) for point in points[start : start + _PAGE]]
            with self._calls():
                records = self._client.retrieve(
                    self.collection, keys, with_payload=True, with_vectors=with_rows
                )
            items = (item_of(record, with_rows=with_rows) for record in records)
            result |= {item.point: item for item in items}
        return result


class _ClusterDialect:
    """Filters of the client library."""

    def all_of(self, conditions: list[Any]) -> Any:
        return models.Filter(must=conditions)

    def any_of(self, conditions: list[Any]) -> Any:
        return models.Filter(should=conditions)

    def equals(self, path: str, value: str | int) -> Any:
        return models.FieldCondition(key=path, match=models.MatchValue(value=value))

    def one_of(self, path: str, values: list[Any]) -> Any:
        return models.FieldCondition(key=path, match=models.MatchAny(any=values))

    def within(self, path: str, bounds: Mapping[str, float | None]) -> Any:
        return models.FieldCondition(key=path, range=models.Range(**bounds))
