"""Galleries in a Qdrant cluster: for more images than one machine holds, and several servers.

The cluster compares multivectors by MaxSim: for every vector of the query the best of the item,
summed. That is MrSw of a sentence against images, and MwSr of an image against sentences, but for
the clamp at 0 (see `teran.gallery.pooling`). Where the model pools otherwise, or a search asks for
exact scores, the cluster's best few times k are scored again here from their embeddings.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any
from uuid import UUID

import grpc
import httpx
import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from teran.errors import GalleryBusyError, GalleryError, TeranInputError
from teran.gallery.base import Description, Galleries, Model, check_name, unknown
from teran.gallery.filters import to_filter
from teran.gallery.item import Item, point_of
from teran.gallery.kernels import Kernel, Rows, RowType
from teran.gallery.kernels.base import Floats, pad_dim
from teran.gallery.layout import VECTORS, item_of, payload_of
from teran.gallery.pooling import Kind, Pooling
from teran.gallery.search import Found, Hit, Query
from teran.gallery.writer import Writer

PREFIX = "teran-"
"""Every gallery's collection, and every alias, begins with it."""
_PAGE = 64
"""Items in one message: 9 MB with embeddings of 36 x 1024."""
_CANDIDATES = 4
"""Items that are scored again, times k."""
_FEWEST_CANDIDATES = 64
_AGE = 1.0
"""Seconds after which names are asked for again: another server may have moved an alias."""
_MAX_SIM = {(Kind.IMAGES, "MrSw"), (Kind.SENTENCES, "MwSr")}


def connect(url: str, api_key: str | None = None, timeout: int = 8) -> QdrantClient:
    """A client of the cluster at `url`; ":memory:" is an empty one inside this process."""
    return QdrantClient(location=url, api_key=api_key, prefer_grpc=True, timeout=timeout)


class ClusterGallery:
    """One collection. Any thread may read or write."""

    def __init__(
        self, client: QdrantClient, collection: str, name: str, model: Model, kernel: Kernel
    ) -> None:
        """Open a collection that `ClusterGalleries.create` made.

        Raises:
            GalleryError: it is no gallery, or one of another model.
        """
        with told():
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
        with told():
            return int(self._client.count(self.collection).count)

    def write(self, upserts: Sequence[Item], deletes: Sequence[str]) -> int:
        """See `Gallery.write`. Every 64 items are stored together or not at all."""
        with told():
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
    ) -> list[Found]:
        """See `Gallery.search`. The result is never proven, so `exact` asks for fp32 scores."""
        conditions = [to_filter(one, _ClusterDialect()) if one else None for one in where]
        again = [q.exact or (self.kind, self.model.pooling) not in _MAX_SIM for q in queries]
        wanted = [
            max(_CANDIDATES * query.k, _FEWEST_CANDIDATES) if rescored else query.k
            for query, rescored in zip(queries, again, strict=True)
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
        with told():
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
            result.append(Found(hits[: query.k], count, count, exact=complete))
        return result

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
        with told():
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
            with told():
                records = self._client.retrieve(
                    self.collection, keys, with_payload=True, with_vectors=with_rows
                )
            result |= {item.point: item for item in map(item_of, records)}
        return result


class ClusterGalleries(Galleries):
    """All galleries of a cluster. Several servers may use it at once."""

    def __init__(self, client: QdrantClient, model: Model, kernel: Kernel) -> None:
        """Use a cluster, which need not be there yet; the client stays the caller's."""
        self._client, self._model, self._kernel = client, model, kernel
        self._open: dict[str, ClusterGallery] = {}
        self._collections: set[str] = set()
        self._aliases: dict[str, str] = {}
        self._asked = self._failed = -_AGE
        self._failure: GalleryBusyError | None = None
        self.writer = Writer(lambda: None)

    def close(self) -> None:
        self.writer.close()

    def get(self, name: str) -> ClusterGallery:
        collection = self._find(name)
        if collection is None:
            names = {one.removeprefix(PREFIX) for one in (*self._collections, *self._aliases)}
            raise unknown(name, names)
        if collection not in self._open:
            own = collection.removeprefix(PREFIX)
            self._open[collection] = ClusterGallery(
                self._client, collection, own, self._model, self._kernel
            )
        return self._open[collection]

    def exists(self, name: str) -> bool:
        return self._find(name) is not None

    def create(self, name: str, kind: Kind) -> None:
        Pooling(self._model.pooling, kind)
        vectors = models.VectorParams(
            size=self._model.embed_dim,
            distance=models.Distance.DOT,
            datatype=models.Datatype.FLOAT16,
            on_disk=True,
            multivector_config=models.MultiVectorConfig(
                comparator=models.MultiVectorComparator.MAX_SIM
            ),
            hnsw_config=models.HnswConfigDiff(m=0),  # every item is compared
        )
        try:
            with told():
                self._client.create_collection(
                    PREFIX + name,
                    vectors_config={VECTORS: vectors},
                    metadata=asdict(Description(kind.value, asdict(self._model))),
                )
        except GalleryError:
            self._refresh()
            if PREFIX + name not in self._collections:  # another server was faster, else
                raise
        self._refresh()

    def set_alias(self, alias: str, name: str) -> None:
        check_name(alias)
        self._refresh()
        if PREFIX + alias in self._collections:
            raise TeranInputError(f"{alias!r} is a gallery, so it can't be an alias")
        if PREFIX + name not in self._collections:
            raise TeranInputError(f"there is no gallery {name[:64]!r} to point {alias!r} at")
        create = models.CreateAlias(collection_name=PREFIX + name, alias_name=PREFIX + alias)
        operations: list[Any] = [models.CreateAliasOperation(create_alias=create)]
        if PREFIX + alias in self._aliases:
            delete = models.DeleteAlias(alias_name=PREFIX + alias)
            operations.insert(0, models.DeleteAliasOperation(delete_alias=delete))
        with told():
            self._client.update_collection_aliases(operations)
        self._refresh()

    def drop(self, name: str) -> None:
        self._refresh()
        pointing = sorted(alias for alias, to in self._aliases.items() if to == PREFIX + name)
        if pointing:
            alias = pointing[0].removeprefix(PREFIX)
            raise TeranInputError(f"alias {alias!r} points at {name!r}; move it first")
        if PREFIX + name not in self._collections:
            raise TeranInputError(f"there is no gallery {name[:64]!r} that could be dropped")
        with told():
            self._client.delete_collection(PREFIX + name)
        self._refresh()

    def snapshot(self, name: str) -> str:
        raise _own_snapshots(name)

    def restore(self, file: str, name: str) -> ClusterGallery:  # noqa: ARG002
        raise _own_snapshots(name)

    def info(self) -> dict[str, Any]:
        self._refresh()
        galleries, unusable = [], {}
        for name in sorted(one.removeprefix(PREFIX) for one in self._collections):
            try:
                galleries.append(self.get(name).info())
            except GalleryError as error:
                unusable[name] = str(error)
        aliases = {
            alias.removeprefix(PREFIX): to.removeprefix(PREFIX)
            for alias, to in self._aliases.items()
        }
        return {
            "galleries": galleries,
            "unusable": unusable,
            "aliases": aliases,
            "kernel": "qdrant cluster",
        }

    def _find(self, name: str) -> str | None:
        """The collection that a name or alias means."""
        wanted = PREFIX + name
        known = wanted in self._collections or wanted in self._aliases
        if not known or time.monotonic() - self._asked > _AGE:
            self._refresh()
        wanted = self._aliases.get(wanted, wanted)
        return wanted if wanted in self._collections else None

    def _refresh(self) -> None:
        """Ask the cluster for its names; for a moment after a failure, fail again without asking.

        Raises:
            GalleryBusyError: it can't be reached.
        """
        if self._failure and time.monotonic() - self._failed < _AGE:
            raise self._failure
        self._failure = None
        try:
            with told():
                collections = self._client.get_collections().collections
                aliases = self._client.get_aliases().aliases
        except GalleryBusyError as error:
            self._failed, self._failure = time.monotonic(), error
            raise
        names = (one.name for one in collections)
        self._collections = {name for name in names if name.startswith(PREFIX)}
        self._aliases = {
            one.alias_name: one.collection_name
            for one in aliases
            if one.alias_name.startswith(PREFIX)
        }
        for gone in self._open.keys() - self._collections:
            del self._open[gone]
        self._asked = time.monotonic()


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


@contextmanager
def told() -> Iterator[None]:
    """Turn the client library's errors into ours; calls may be repeated, as writes replace."""
    try:
        yield
    except (httpx.TransportError, OSError) as error:
        raise GalleryBusyError(f"the Qdrant cluster can't be reached: {error}") from error
    except grpc.RpcError as error:
        gone = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        kind = GalleryBusyError if gone else GalleryError
        raise kind(f"the Qdrant cluster failed: {error.details()}") from error
    except (ApiException, ValueError) as error:  # the in-process one raises ValueError
        raise GalleryError(f"the Qdrant cluster failed: {error}") from error


def _own_snapshots(name: str) -> TeranInputError:
    return TeranInputError(
        f"gallery {name!r} is in a Qdrant cluster, which takes its own snapshots of collection "
        f"{PREFIX + name!r}"
    )
