"""Requests to galleries: read, checked, answered. Triton's `gallery` model is an adapter to this.

A request names its operation in a parameter and has B items. Searches that arrive together are
answered together; writes go to the writing thread and are answered when they are durable.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any

import numpy as np
import numpy.typing as npt

from teran.errors import GalleryBusyError, GalleryError, TeranError, TeranInputError
from teran.gallery.base import DEFAULT, Galleries, Gallery
from teran.gallery.filters import parse_where
from teran.gallery.item import Item, Record, point_of, present_rows
from teran.gallery.kernels.base import Floats
from teran.gallery.pooling import Kind
from teran.gallery.pruning import NORM_SLACK
from teran.gallery.search import MAX_RESULTS, Found, Query
from teran.serving import metrics
from teran.serving.metrics import Recorder
from teran.serving.settings import WRITE_KEY_HEADER

_WRITES = {"upsert", "delete", "alias", "drop", "snapshot", "restore"}
Arrays = dict[str, npt.NDArray[Any]]
_Set = tuple[Floats, Sequence[str]]
"""A query's rows and, of a sentence, their word pieces."""
Respond = Callable[["Arrays | TeranError"], None]


@dataclass(frozen=True, eq=False)
class Request:
    """One request; `respond` must be called once, from any thread."""

    parameters: Mapping[str, Any]
    inputs: Arrays
    """`embeddings` (B, R, E), `boxes` (B, R, 4), `tokens` (B, R), `record` (B, 1), `accepted_at`
    (B, 1): those given."""
    respond: Respond

    def get(self, name: str, kind: type, default: Any) -> Any:
        """A parameter.

        Raises:
            TeranInputError: it has another type.
        """
        value = self.parameters.get(name, default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if value is not default and type(value) is not kind:
            raise TeranInputError(f"{name} is {str(value)[:64]!r}, expected {kind.__name__}")
        return value

    @property
    def default_operation(self) -> str:
        """What is meant where no operation is named."""
        if "embeddings" not in self.inputs:
            return "ping"
        return "upsert" if "record" in self.inputs else "search"

    @property
    def named_operation(self) -> str:
        """The operation, whatever the client wrote there; for logs and metrics."""
        return str(self.parameters.get("operation", self.default_operation))[:64]

    @property
    def gallery(self) -> str:
        name: str = self.get("gallery", str, DEFAULT)
        return name

    def records(self) -> list[bytes]:
        """The records (B).

        Raises:
            TeranInputError: there is none.
        """
        if "record" not in self.inputs:
            raise TeranInputError("the request has no record")
        return list(self.inputs["record"].ravel())


@dataclass(frozen=True, eq=False)
class _Search:
    """One item of a search request."""

    query: Query
    tokens: Sequence[str]
    where: dict[str, Any] | None


class GalleryService:
    """Answers requests on a directory of galleries."""

    def __init__(
        self,
        galleries: Galleries,
        embed_dim: int,
        write_key: str | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """Answer from `galleries`; with a key, writes must bring it."""
        self._recorder = recorder or Recorder("gallery")
        self._galleries, self._embed_dim, self._write_key = galleries, embed_dim, write_key
        self._operations: dict[str, Callable[[Request], None]] = {
            "ping": lambda request: request.respond(_report(request, {})),
            "upsert": self._upsert,
            "delete": self._delete,
            "get": self._get,
            "known": self._known,
            "info": self._info,
            "alias": self._alias,
            "drop": self._drop,
            "snapshot": self._snapshot,
            "restore": self._restore,
            "job": self._job,
        }

    def handle(self, requests: Sequence[Request]) -> None:
        """Answer all, some of them later."""
        searches: dict[str, list[tuple[Request, Gallery, list[_Search]]]] = {}
        for request in requests:
            try:
                operation = request.get("operation", str, request.default_operation)
                if operation in ("search", "like"):
                    gallery = self._galleries.get(request.gallery)
                    read = self._read_search(request, gallery, like=operation == "like")
                    searches.setdefault(gallery.name, []).append((request, gallery, read))
                elif operation in self._operations:
                    if operation in _WRITES:
                        self._require_key(request)
                    self._operations[operation](request)
                else:
                    known = ", ".join(["search", "like", *self._operations])
                    raise TeranInputError(f"operation {operation[:64]!r}: there are {known}")
            except Exception as error:
                request.respond(self._told(request, error))
        for group in searches.values():
            self._search(group)

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

    def _search(self, group: Sequence[tuple[Request, Gallery, list[_Search]]]) -> None:
        """Answer the searches of one gallery together; where that fails, one by one."""
        gallery = group[0][1]
        flat = [search for _, _, read in group for search in read]
        try:
            found = gallery.search([one.query for one in flat], [one.where for one in flat])
            pairs = iter(zip(flat, found, strict=True))
            answers = [
                _results(gallery, request, [next(pairs) for _ in read])
                for request, _, read in group
            ]
        except Exception as error:
            if len(group) == 1:
                group[0][0].respond(self._told(group[0][0], error))
                return
            for one in group:
                self._search([one])
            return
        self._record_searches(found)
        for (request, _, _), answer in zip(group, answers, strict=True):
            request.respond(answer)

    def _read_search(self, request: Request, gallery: Gallery, *, like: bool) -> list[_Search]:
        k = request.get("k", int, 10)
        if not 1 <= k <= MAX_RESULTS:
            raise TeranInputError(f"k is {k}, expected 1 to {MAX_RESULTS}")
        where = parse_where(text) if (text := request.get("where", str, "")) else None
        least = request.get("min_score_per_word", float, None)
        if least is not None and not np.isfinite(least):
            raise TeranInputError(f"min_score_per_word is {least}, expected a number")
        exact = request.get("exact", bool, False)
        if like:
            ids = map(_identifier, request.records())
            sets: list[_Set] = [(gallery.rows_of(identifier), ()) for identifier in ids]
        else:
            sets = self._queries(request)
        return [
            _Search(Query(rows, k, min_score_per_word=least, exact=exact), tuple(tokens), where)
            for rows, tokens in sets
        ]

    def _queries(self, request: Request) -> list[_Set]:
        result: list[_Set] = []
        tokens = request.inputs.get("tokens")
        for i, embeddings in enumerate(self._embeddings(request)):
            present = present_rows(embeddings)
            names = [t.decode() for t in tokens[i][present]] if tokens is not None else ()
            result.append((_unit(embeddings[present]), names))
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
            record, present = Record.parse(data), present_rows(embeddings[i])
            items.append(
                Item(
                    id=record.id,
                    rows=_unit(embeddings[i][present]).astype(np.float16),
                    boxes=None if boxes is None else _finite(boxes[i][present]),
                    tokens=()
                    if tokens is None
                    else tuple(token.decode() for token in tokens[i][present]),
                    uri=record.uri,
                    text=record.text,
                    metadata=record.metadata,
                )
            )
        gallery = self._galleries.get_or_create(request.gallery, kind)

        def stored(_: object) -> list[dict[str, Any]]:
            self._recorder.add(metrics.GALLERY_UPSERTS, len(items))
            return [{"id": item.id, "stored": True} for item in items]

        self._later(
            request,
            self._galleries.writer.write(gallery, items),
            stored,
        )

    def _delete(self, request: Request) -> None:
        gallery = self._galleries.get(request.gallery)
        ids = [_identifier(data) for data in request.records()]
        done = self._galleries.writer.write(gallery, deletes=ids)

        def deleted(count: int) -> list[dict[str, Any]]:
            self._recorder.add(metrics.GALLERY_DELETES, count)
            return [{"deleted": count}] * len(ids)

        self._later(request, done, deleted)

    def _get(self, request: Request) -> None:
        gallery = self._galleries.get(request.gallery)
        ids = [_identifier(data) for data in request.records()]
        items = _items(gallery, ids)
        missing = [identifier for identifier in ids if identifier not in items]
        if missing:
            raise TeranInputError(f"gallery {gallery.name!r} has no item {missing[0][:64]!r}")
        request.respond(_reports([items[one].described() for one in ids]))

    def _known(self, request: Request) -> None:
        ids = [_identifier(data) for data in request.records()]
        try:
            there = set(_items(self._galleries.get(request.gallery), ids))
        except TeranInputError:  # not made yet
            there = set()
        request.respond(_reports([{"id": one, "known": one in there} for one in ids]))

    def _info(self, request: Request) -> None:
        if "gallery" in request.parameters:
            request.respond(_report(request, self._galleries.get(request.gallery).info()))
        else:
            request.respond(_report(request, self._galleries.info()))

    def _alias(self, request: Request) -> None:
        alias = request.get("alias", str, "")
        done = self._galleries.writer.run(lambda: self._galleries.set_alias(alias, request.gallery))
        self._later(request, done, lambda _: {"alias": alias, "gallery": request.gallery})

    def _drop(self, request: Request) -> None:
        done = self._galleries.writer.run(lambda: self._galleries.drop(request.gallery))
        self._later(request, done, lambda _: {"dropped": request.gallery})

    def _snapshot(self, request: Request) -> None:
        name = request.gallery
        job = self._galleries.writer.start(lambda: {"snapshot": self._galleries.snapshot(name)})
        request.respond(_report(request, {"job": job}))

    def _restore(self, request: Request) -> None:
        file, name = request.get("snapshot", str, ""), request.gallery
        job = self._galleries.writer.start(lambda: self._galleries.restore(file, name).info())
        request.respond(_report(request, {"job": job}))

    def _job(self, request: Request) -> None:
        result = self._galleries.writer.result(request.get("job", int, 0))
        request.respond(_report(request, {"done": result is not None, "result": result}))

    def _told(self, request: Request, error: BaseException) -> TeranError:
        """What a client is told of an error; one that is not ours is a defect, and its cause."""
        if not isinstance(error, TeranInputError | GalleryBusyError):
            is_write = request.named_operation in _WRITES
            self._recorder.add(
                metrics.GALLERY_WRITE_ERRORS if is_write else metrics.GALLERY_READ_ERRORS
            )
        if isinstance(error, TeranError):
            return error
        told = GalleryError(f"the gallery failed: {error}")
        told.__cause__ = error  # which is logged with the request
        return told

    def _record_searches(self, found: Sequence[Found]) -> None:
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
                told = describe(future.result())
                request.respond(
                    _reports(told) if isinstance(told, list) else _report(request, told)
                )
            else:
                request.respond(self._told(request, error))

        done.add_done_callback(respond)


def _items(gallery: Gallery, ids: Sequence[str]) -> dict[str, Item]:
    """Those of the items that are there, by id."""
    found = gallery.items([point_of(identifier) for identifier in ids])
    return {item.id: item for item in found.values()}


def _identifier(data: bytes) -> str:
    return Record.parse(data).id


def _unit(rows: npt.NDArray[Any]) -> Floats:
    """Rows in fp32, checked to be normalised.

    Raises:
        TeranInputError: they are not, so their products are no cosines.
    """
    norms = np.linalg.norm(rows.astype(np.float32), axis=1)
    wrong = np.abs(norms - 1) > NORM_SLACK - 1
    if wrong.any():
        raise TeranInputError(
            f"embeddings must have norm 1; row {int(wrong.argmax())} has {norms[wrong][0]:.4g}"
        )
    return rows.astype(np.float32)


def _finite(boxes: npt.NDArray[Any]) -> Floats:
    if not np.isfinite(boxes).all():
        raise TeranInputError("boxes hold NaN or infinite values")
    return boxes.astype(np.float32)


def _report(request: Request, told: object) -> Arrays:
    """The same for each item of a request, as the batcher wants one answer for each."""
    count = max((len(value) for value in request.inputs.values()), default=1)
    return _reports([told] * count)


def _reports(told: Sequence[object]) -> Arrays:
    return {"report": np.array([[json.dumps(one).encode()] for one in told], np.object_)}


def _results(
    gallery: Gallery,
    request: Request,
    answers: Sequence[tuple[_Search, Found]],
) -> Arrays:
    """Hits of all searches of a request, filled up with empty ids to the longest."""
    explain = request.get("explain", bool, False)
    width = max(len(found.hits) for _, found in answers)
    shape = (len(answers), width)
    outputs: Arrays = {
        "ids": np.full(shape, b"", np.object_),
        "scores": np.zeros(shape, np.float32),
        "scores_per_word": np.zeros(shape, np.float32),
        "records": np.full(shape, b"", np.object_),
    }
    reports = []
    for i, (search, found) in enumerate(answers):
        items = gallery.items([hit.point for hit in found.hits])
        place = 0
        for hit in found.hits:
            item = items.get(hit.point)
            if item is None:  # deleted a moment ago
                continue
            told = item.described()
            if explain:
                told["matches"] = _matches(gallery, item, search)
            outputs["ids"][i, place] = item.id.encode()
            outputs["scores"][i, place] = hit.score
            outputs["scores_per_word"][i, place] = hit.score_per_word
            outputs["records"][i, place] = json.dumps(told).encode()
            place += 1
        reports.append(
            {"items": found.items, "pruned": round(found.pruned, 4), "exact": found.exact}
        )
    return outputs | _reports(reports)


def _matches(gallery: Gallery, item: Item, search: _Search) -> list[dict[str, Any]]:
    """For every word its best region: the query's words in an image, or a sentence's in the query.

    Where images are compared with each other, the query's regions take the words' part.
    """
    cosine = gallery.similarity(item.point, search.query.rows)
    words: Sequence[str] = search.tokens
    if gallery.kind is Kind.SENTENCES:
        cosine, words = cosine.T, item.tokens
    result = []
    for lane, region in enumerate(cosine.argmax(axis=0).tolist()):
        match: dict[str, Any] = {"word": words[lane]} if words else {"query_region": lane}
        match |= {"region": region, "cosine": round(float(cosine[region, lane]), 4)}
        if item.boxes is not None:
            match["box"] = [round(float(x), 4) for x in item.boxes[region]]
        result.append(match)
    return result
