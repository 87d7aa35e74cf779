"""Requests to galleries: read, checked, answered. Triton's `gallery` model is an adapter to this.

A request names its operation in a parameter and has B items. Searches that arrive together are
answered together; writes go to the writing thread and are answered when they are durable.
"""

from collections.abc import Callable, Sequence
from hmac import compare_digest
from typing import Any

import numpy as np
import numpy.typing as npt

from teran.contract import DIGEST, MAX_RESULTS, WRITE_KEY_HEADER
from teran.errors import (
    GalleryBusyError,
    GalleryError,
    GalleryUnreachableError,
    TeranError,
    TeranInputError,
    TeranOverloadedError,
)
from teran.gallery.catalog import Gallery, GalleryCatalog
from teran.gallery.filters import parse_where
from teran.gallery.item import Item, Record, point_of, present_rows
from teran.gallery.protocol.answers import Search, report, reports, results
from teran.gallery.protocol.request import Request, finite_boxes, normalised, read_id, read_tokens
from teran.gallery.search.kernels.base import Floats
from teran.gallery.search.pooling import Kind
from teran.gallery.search.query import Query, SearchResult
from teran.runtime import metrics
from teran.runtime.metrics import Recorder
from teran.runtime.settings import RequestLimits

WRITES = {"upsert", "delete", "alias", "unalias", "drop", "snapshot", "restore"}
"""Operations that change galleries."""
_AWAY = GalleryUnreachableError | GalleryBusyError
_TOO_LARGE = "the answers to what was asked at once are too large together; try again soon"
_SOON = 0.1
"""Seconds until that is asked for again."""
_Set = tuple[Floats, Sequence[str]]
"""A query's rows and, of a sentence, their word pieces."""


class GalleryService:
    """Answers requests on the galleries of a catalog."""

    def __init__(
        self,
        galleries: GalleryCatalog,
        embed_dim: int,
        write_key: str | None = None,
        recorder: Recorder | None = None,
        limits: RequestLimits | None = None,
    ) -> None:
        """Answer from `galleries`; with a key, writes must bring it."""
        self._limits = limits or RequestLimits()
        self._recorder = recorder or Recorder("gallery")
        self._galleries, self._embed_dim, self._write_key = galleries, embed_dim, write_key
        self._operations: dict[str, Callable[[Request], None]] = {
            "ping": lambda request: request.respond(report(request, {})),
            "upsert": self._upsert,
            "delete": self._delete,
            "get": self._get,
            "known": self._known,
            "info": self._info,
            "alias": self._alias,
            "unalias": self._unalias,
            "drop": self._drop,
            "snapshot": self._snapshot,
            "restore": self._restore,
            "job": self._job,
        }

    def handle(self, requests: Sequence[Request]) -> None:
        """Answer all, some of them later."""
        with self._galleries.courtesy:
            self._handle(requests)

    def _handle(self, requests: Sequence[Request]) -> None:
        searches: dict[str, list[tuple[Request, Gallery, list[Search]]]] = {}
        for request in requests:
            try:
                operation = request.get("operation", str, request.default_operation)
                if operation in ("search", "like"):
                    gallery = self._galleries.get(request.gallery)
                    read = self._read_search(request, gallery, like=operation == "like")
                    searches.setdefault(gallery.name, []).append((request, gallery, read))
                elif operation in self._operations:
                    if operation in WRITES:
                        self._require_key(request)
                    self._operations[operation](request)
                else:
                    known = ", ".join(["search", "like", *self._operations])
                    raise TeranInputError(f"operation {operation[:64]!r}: there are {known}")
            except Exception as error:
                request.respond(self._reported_error(request, error))
        answered = 0
        for group in searches.values():
            answered += self._search(group, answered)

    def _require_key(self, request: Request) -> None:
        """Refuse a write without the key.

        Raises:
            TeranInputError: it is not there, or is another.
        """
        given = request.get(WRITE_KEY_HEADER, str, "")
        if self._write_key and not compare_digest(given.encode(), self._write_key.encode()):
            raise TeranInputError(
                f"galleries are changed only with the server's key in the header {WRITE_KEY_HEADER}"
            )

    def _search(self, group: Sequence[tuple[Request, Gallery, list[Search]]], answered: int) -> int:
        """Answer the searches of one gallery together; where one of them is wrong, one by one.

        Args:
            group: the requests, their gallery, and what they search for.
            answered: bytes of records that other requests of the execution were answered.

        Returns:
            The bytes of records that these were answered.
        """
        gallery = group[0][1]
        flat = [search for _, _, read in group for search in read]
        try:
            found = gallery.search([one.query for one in flat], [one.where for one in flat])
        except Exception as error:
            # A cluster that is away is away for all; anything else one of them may be to blame for.
            total = 0
            if len(group) > 1 and not isinstance(error, _AWAY):
                for one in group:
                    total += self._search([one], answered + total)
                return total
            for request, _, _ in group:
                request.respond(self._reported_error(request, error))
            return total
        self._record_searches(found)
        pairs, total = iter(zip(flat, found, strict=True)), 0
        for request, _, read in group:
            mine = [next(pairs) for _ in read]
            try:
                answer = results(gallery, request, mine, self._limits.max_answer_bytes)
                size = sum(map(len, answer["records"].flat))
                before = answered + total
                if before and before + size > self._limits.max_answer_bytes:
                    # All are there before any is sent.
                    raise TeranOverloadedError(_TOO_LARGE, _SOON)
            except Exception as error:
                request.respond(self._reported_error(request, error))
            else:
                request.respond(answer)
                total += size
        return total

    def _read_search(self, request: Request, gallery: Gallery, *, like: bool) -> list[Search]:
        k = request.get("k", int, 10)
        if not 1 <= k <= MAX_RESULTS:
            raise TeranInputError(f"k is {k}, expected 1 to {MAX_RESULTS}")
        where = parse_where(text) if (text := request.get("where", str, "")) else None
        least = request.get("min_score_per_word", float, None)
        if least is not None and not np.isfinite(least):
            raise TeranInputError(f"min_score_per_word is {least}, expected a number")
        exact = request.get("exact", bool, False)
        if like:
            ids = map(read_id, request.records())
            sets: list[_Set] = [(gallery.rows_of(identifier), ()) for identifier in ids]
        else:
            sets = self._queries(request)
        rows = sum(len(rows) for rows, _ in sets)
        if rows > self._limits.max_query_rows:
            raise TeranInputError(
                f"the queries have {rows} rows; at most {self._limits.max_query_rows} are accepted "
                "in a request"
            )
        return [
            Search(Query(rows, k, min_score_per_word=least, exact=exact), tuple(tokens), where)
            for rows, tokens in sets
        ]

    def _queries(self, request: Request) -> list[_Set]:
        result: list[_Set] = []
        tokens = request.inputs.get("tokens")
        for i, embeddings in enumerate(self._embeddings(request)):
            present = present_rows(embeddings)
            names = read_tokens(tokens[i][present]) if tokens is not None else ()
            result.append((normalised(embeddings[present]), names))
        return result

    def _embeddings(self, request: Request) -> npt.NDArray[np.float32]:
        if "embeddings" not in request.inputs:
            raise TeranInputError("the request has no embeddings")
        embeddings = request.inputs["embeddings"]
        if embeddings.ndim != 3 or embeddings.shape[2] != self._embed_dim or not embeddings.size:
            raise TeranInputError(
                f"embeddings have shape {list(embeddings.shape)}, expected items x rows x "
                f"{self._embed_dim}"
            )
        if embeddings.shape[1] > self._limits.max_rows:
            raise TeranInputError(
                f"embeddings have {embeddings.shape[1]} rows; at most {self._limits.max_rows} are "
                "accepted of an item or a query"
            )
        for name in ("boxes", "tokens"):
            other = request.inputs.get(name)
            if other is not None and other.shape[1] != embeddings.shape[1]:
                raise TeranInputError(
                    f"{name} have {other.shape[1]} rows, embeddings {embeddings.shape[1]}"
                )
        return embeddings

    def _upsert(self, request: Request) -> None:
        kind = Kind.SENTENCES if "tokens" in request.inputs else Kind.IMAGES
        embeddings, records = self._embeddings(request), request.records()
        boxes, tokens = request.inputs.get("boxes"), request.inputs.get("tokens")
        items = []
        for i, data in enumerate(records):
            record, present = (
                Record.parse(data, self._limits.max_record_bytes),
                present_rows(embeddings[i]),
            )
            items.append(
                Item(
                    id=record.id,
                    rows=normalised(embeddings[i][present]).astype(np.float16),
                    boxes=None if boxes is None else finite_boxes(boxes[i][present]),
                    tokens=() if tokens is None else read_tokens(tokens[i][present]),
                    uri=record.uri,
                    text=record.text,
                    metadata=record.metadata,
                )
            )

        def stored(_: object) -> list[dict[str, Any]]:
            self._recorder.add(metrics.GALLERY_UPSERTS, len(items))
            return [{"id": item.id, "stored": True} for item in items]

        galleries, name = self._galleries, request.gallery
        if galleries.exists(name):
            done = galleries.writer.write(galleries.writable(name, kind), items)
        else:
            done = galleries.writer.run(
                lambda: galleries.get_or_create(name, kind).write(items, ()), len(items)
            )
        self._later(request, done, stored)

    def _delete(self, request: Request) -> None:
        gallery = self._galleries.get(request.gallery)
        ids = [read_id(data) for data in request.records()]
        done = self._galleries.writer.write(gallery, deletes=ids)

        def deleted(count: int) -> list[dict[str, Any]]:
            self._recorder.add(metrics.GALLERY_DELETES, count)
            return [{"deleted": count}] * len(ids)

        self._later(request, done, deleted)

    def _get(self, request: Request) -> None:
        gallery = self._galleries.get(request.gallery)
        ids = [read_id(data) for data in request.records()]
        items = _items(gallery, ids)
        missing = [identifier for identifier in ids if identifier not in items]
        if missing:
            raise TeranInputError(f"gallery {gallery.name!r} has no item {missing[0][:64]!r}")
        request.respond(reports([items[one].described() for one in ids]))

    def _known(self, request: Request) -> None:
        ids = [read_id(data) for data in request.records()]
        try:
            there = _items(self._galleries.get(request.gallery), ids)
        except TeranInputError:  # not made yet
            there = {}
        found = [(one, there.get(one)) for one in ids]
        request.respond(
            reports(
                [
                    {"id": one, "known": item is not None}
                    | ({DIGEST: item.metadata[DIGEST]} if item and DIGEST in item.metadata else {})
                    for one, item in found
                ]
            )
        )

    def _info(self, request: Request) -> None:
        if "gallery" in request.parameters:
            request.respond(report(request, self._galleries.get(request.gallery).info()))
        else:
            request.respond(report(request, self._galleries.info()))

    def _alias(self, request: Request) -> None:
        alias = request.get("alias", str, "")
        done = self._galleries.writer.run(lambda: self._galleries.set_alias(alias, request.gallery))
        self._later(request, done, lambda _: {"alias": alias, "gallery": request.gallery})

    def _unalias(self, request: Request) -> None:
        alias = request.get("alias", str, "")
        done = self._galleries.writer.run(lambda: self._galleries.remove_alias(alias))
        self._later(request, done, lambda _: {"removed": alias})

    def _drop(self, request: Request) -> None:
        done = self._galleries.writer.run(lambda: self._galleries.drop(request.gallery))
        self._later(request, done, lambda _: {"dropped": request.gallery})

    def _snapshot(self, request: Request) -> None:
        name = request.gallery
        job = self._galleries.writer.start(lambda: {"snapshot": self._galleries.snapshot(name)})
        self._later(request, job, lambda number: {"job": number})

    def _restore(self, request: Request) -> None:
        file, name = request.get("snapshot", str, ""), request.gallery
        job = self._galleries.writer.start(lambda: self._galleries.restore(file, name).info())
        self._later(request, job, lambda number: {"job": number})

    def _job(self, request: Request) -> None:
        result = self._galleries.writer.result(request.get("job", int, 0))
        request.respond(report(request, {"done": result is not None, "result": result}))

    def _reported_error(self, request: Request, error: BaseException) -> TeranError:
        """The error a client gets; one that is not ours is a defect, and becomes its cause."""
        if not isinstance(error, TeranInputError | TeranOverloadedError | _AWAY):
            is_write = request.named_operation in WRITES
            self._recorder.add(
                metrics.GALLERY_WRITE_ERRORS if is_write else metrics.GALLERY_READ_ERRORS
            )
        if isinstance(error, TeranError):
            return error
        failure = GalleryError(f"the gallery failed: {error}")
        failure.__cause__ = error  # which is logged with the request
        return failure

    def _record_searches(self, found: Sequence[SearchResult]) -> None:
        best = [one.hits[0].score_per_word for one in found if one.hits]
        self._recorder.add(metrics.SEARCHES, len(found))
        self._recorder.add(metrics.SEARCHES_EMPTY, len(found) - len(best))
        self._recorder.observe(metrics.SEARCH_SCORE, best)
        self._recorder.observe(metrics.SEARCH_CANDIDATES, (one.scored for one in found))
        self._recorder.observe(metrics.SEARCH_PRUNED, (one.pruned for one in found))

    def _later(self, request: Request, done: Any, describe: Callable[[Any], Any]) -> None:
        """Respond when the writing thread is done."""

        def respond(future: Any) -> None:
            error = future.exception()
            if error is None:
                result = describe(future.result())
                many = isinstance(result, list)
                request.respond(reports(result) if many else report(request, result))
            else:
                request.respond(self._reported_error(request, error))

        done.add_done_callback(respond)


def _items(gallery: Gallery, ids: Sequence[str]) -> dict[str, Item]:
    """Those of the items that are there, by id."""
    found = gallery.items([point_of(identifier) for identifier in ids])
    return {item.id: item for item in found.values()}
