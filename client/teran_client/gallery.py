"""The client's gallery verbs: index, search, delete and what keeps galleries in order."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast, overload

from teran.contract import DEFAULT_GALLERY, DIGEST, MAX_RESULTS, pack_texts
from teran.errors import TeranInputError, TeranPhotoError
from teran_client import protocol
from teran_client.call import Timeout
from teran_client.entry import Entry, Indexable, IndexableOne
from teran_client.images import ImageRegions
from teran_client.items import apart
from teran_client.photos import Photo, PhotoLike, is_photo, photos_in
from teran_client.pipeline import Items, SendBulk
from teran_client.protocol import ModelInfo
from teran_client.results import SearchResult

_POLL = 0.2
"""Seconds between questions whether something long is done."""
_READING = {"known", "info", "job"}
"""The rest is not repeated after a lost answer: a deletion or an alias that is set twice might undo
what another client has done in between."""
QueryLike = str | ImageRegions | PhotoLike
Query = str | ImageRegions | Photo
Refused = Callable[[str, TeranPhotoError], None]
"""Told of what the server can't use, by its id."""
Where = Mapping[str, Any]
Report = dict[str, Any]
"""What the server says of something, by name."""


class AsyncGalleryVerbs:
    """Mixed into the client, which gives it `info`, `_infer` and `_map`."""

    info: Callable[[], Any]
    _infer: Callable[..., Any]
    _map: Callable[..., Any]
    _require_photos: Callable[..., Any]

    @overload
    async def index(
        self,
        items: str | Path,
        *,
        gallery: str = DEFAULT_GALLERY,
        refused: Refused | None = None,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> str | list[str]: ...
    @overload
    async def index(
        self,
        items: IndexableOne,
        *,
        gallery: str = DEFAULT_GALLERY,
        refused: Refused | None = None,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> str: ...
    @overload
    async def index(
        self,
        items: Sequence[Indexable],
        *,
        gallery: str = DEFAULT_GALLERY,
        refused: Refused | None = None,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> list[str]: ...
    @overload
    async def index(
        self,
        items: Items[Indexable],
        *,
        gallery: str = DEFAULT_GALLERY,
        refused: Refused | None = None,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> AsyncIterator[str]: ...
    async def index(
        self,
        items: Any,
        *,
        gallery: str = DEFAULT_GALLERY,
        refused: Refused | None = None,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> str | list[str] | AsyncIterator[str]:
        """Encode and store images (or sentences), and return their ids.

        An id is returned when the item is stored for good and can be found. Indexing the same
        again changes nothing. One item gives an id, a list or a directory a list, anything else an
        asynchronous iterator; all items must be of one kind.

        Args:
            items: regions, photos (paths, bytes, pictures of Pillow's) or sentences, or entries
                with one of them; or a directory, whose photos are called by their names. A string
                is a sentence, unless it is a directory's path that ends in a slash.
            gallery: where to.
            refused: told of photos that can't be used, by id and error, which are left out then;
                without it the first such ends the call.
            verbatim: add no full stop to sentences that lack one.
            timeout: seconds for each request.
        """
        info: ModelInfo = await self.info()
        folder = _directory(items)
        if folder:
            items = (Entry.of_file(photo) for photo in photos_in(folder))
        elif isinstance(items, Sequence) and not isinstance(items, str | bytes):
            _check_names(items)

        def check(item: object, name: str) -> tuple[Entry, bytes]:
            entry = Entry.of(item, name)
            record = entry.record(name)
            if isinstance(entry.content, str):
                protocol.check_caption(entry.content, name)
            else:
                content = protocol.check_image(entry.content, name, info)
                entry = replace(entry, content=content)
            return entry, record

        is_one = isinstance(items, ImageRegions | str | Entry) or is_photo(items)

        async def store(
            model: str, inputs: protocol.Arrays, records: Sequence[bytes], *, bulk: bool
        ) -> None:
            await self._infer(
                model,
                {**inputs, "record": pack_texts(records)},
                ("report",),
                parameters={"gallery": gallery} | _flags(verbatim=verbatim),
                timeout=timeout,
                bulk=bulk,
            )

        async def send_photo(
            entry: Entry, photo: Photo, record: bytes, *, bulk: bool
        ) -> str | None:
            await self._require_photos()
            try:
                inputs = await protocol.photo_inputs(photo)
                await store("index_photos", inputs, [record], bulk=bulk)
            except TeranPhotoError as error:
                if refused is None or is_one:
                    raise TeranPhotoError(f"{photo.name}: {error}") from error
                refused(entry.id, error)
                return None
            return entry.id

        async def send(
            batch: Sequence[tuple[Entry, bytes]], *, bulk: bool = False
        ) -> Sequence[str | None]:
            photos = [
                (entry, entry.content, record)
                for entry, record in batch
                if isinstance(entry.content, Photo)
            ]
            if photos and len(photos) < len(batch):
                raise TeranInputError("photos are mixed with others; pass one kind at a time")
            if photos:
                return [await send_photo(*one, bulk=bulk) for one in photos]
            contents = [cast("str | ImageRegions", entry.content) for entry, _ in batch]
            model, inputs = _inputs(contents, info, "index_captions", "index")
            await store(model, inputs, [record for _, record in batch], bulk=bulk)
            return [entry.id for entry, _ in batch]

        if is_one:
            return cast(str, (await send([check(items, "item")]))[0])
        largest = min(info.max_images, info.max_captions)
        sender: SendBulk[tuple[Entry, bytes], str | None] = send
        found = await self._map(
            "item",
            items,
            check,
            sender,
            largest,
            lambda checked: info.bulk(checked[0].content),
            _entry_length,
            _entry_id,
        )
        if isinstance(found, list):
            return [one for one in found if one is not None]
        stored = (one async for one in found if one is not None)
        return [one async for one in stored] if folder else stored

    @overload
    async def search(
        self,
        queries: QueryLike,
        k: int = 10,
        *,
        gallery: str = DEFAULT_GALLERY,
        where: Where | None = None,
        min_score_per_word: float | None = None,
        explain: bool = False,
        exact: bool = False,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> SearchResult: ...
    @overload
    async def search(
        self,
        queries: Sequence[QueryLike],
        k: int = 10,
        *,
        gallery: str = DEFAULT_GALLERY,
        where: Where | None = None,
        min_score_per_word: float | None = None,
        explain: bool = False,
        exact: bool = False,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> list[SearchResult]: ...
    async def search(
        self,
        queries: QueryLike | Sequence[QueryLike],
        k: int = 10,
        *,
        gallery: str = DEFAULT_GALLERY,
        where: Where | None = None,
        min_score_per_word: float | None = None,
        explain: bool = False,
        exact: bool = False,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> SearchResult | list[SearchResult]:
        """Find the best images for sentences, or the best sentences for images.

        Args:
            queries: one sentence or image (its regions, or a photo), or a list of one kind. A
                string is a sentence, so the path of a photo has to be a Path.
            k: how many results each, up to 1,000.
            gallery: where to search.
            where: only items with this metadata: {"label": "dog"}, {"label": {"in": [...]}},
                {"year": {"gte": 2000, "lt": 2010}}, or several of these at once.
            min_score_per_word: leave out what matches worse.
            explain: tell for every word which region matched it, and where that is.
            exact: insist on a result that is proven to be the exhaustive one.
            verbatim: add no full stop to sentences that lack one.
            timeout: seconds for each request.
        """
        info: ModelInfo = await self.info()
        parameters = _search_parameters(
            k, gallery, where, min_score_per_word, explain=explain, exact=exact, verbatim=verbatim
        )

        def check(query: object, name: str) -> Query:
            if isinstance(query, str):
                return protocol.check_caption(query, name)
            return protocol.check_image(query, name, info)

        async def ask(model: str, inputs: protocol.Arrays, bulk: bool) -> list[SearchResult]:
            names = ["ids", "scores", "scores_per_word", "records", "report"]
            if model == "search":
                names.append("truncated")
            outputs = await self._infer(
                model, inputs, names, parameters=parameters, timeout=timeout, bulk=bulk
            )
            return protocol.read_results(outputs)

        async def send_photo(photo: Photo, *, bulk: bool) -> SearchResult:
            await self._require_photos()
            return (await ask("search_by_photo", await protocol.photo_inputs(photo), bulk))[0]

        async def send_others(
            batch: Sequence[str | ImageRegions], *, bulk: bool
        ) -> Sequence[SearchResult]:
            return await ask(*_inputs(batch, info, "search", "search_captions"), bulk)

        async def send(batch: Sequence[Query], *, bulk: bool = False) -> Sequence[SearchResult]:
            return await apart(
                batch, partial(send_others, bulk=bulk), partial(send_photo, bulk=bulk)
            )

        if isinstance(queries, str | ImageRegions) or is_photo(queries):
            return (await send([check(queries, "query")]))[0]
        if not isinstance(queries, Sequence):
            raise TeranInputError(f"queries are {type(queries).__name__}, expected a list")
        largest = min(info.max_images, info.max_captions)
        return cast(
            list[SearchResult],
            await self._map("query", queries, check, send, largest, info.bulk_queries, len),
        )

    async def search_like(
        self,
        identifier: str,
        k: int = 10,
        *,
        gallery: str = DEFAULT_GALLERY,
        where: Where | None = None,
        timeout: Timeout = None,
    ) -> SearchResult:
        """Find what is most like an item of a gallery, by its own embeddings."""
        parameters = _search_parameters(k, gallery, where)
        outputs = await self._infer(
            "gallery",
            _ids([identifier]),
            ("ids", "scores", "scores_per_word", "records", "report"),
            parameters={**parameters, "operation": "like"},
            timeout=timeout,
        )
        return protocol.read_results(outputs)[0]

    async def delete(
        self, ids: str | Sequence[str], *, gallery: str = DEFAULT_GALLERY, timeout: Timeout = None
    ) -> int:
        """Remove items; returns how many of them were there."""
        wanted = [ids] if isinstance(ids, str) else list(ids)
        deleted, size = 0, (await self.info()).max_images
        for start in range(0, len(wanted), size):
            part = wanted[start : start + size]
            reports = await self._operate("delete", gallery, timeout, ids=part)
            deleted += int(reports[0]["deleted"])
        return deleted

    async def known(
        self, ids: Sequence[str], *, gallery: str = DEFAULT_GALLERY, timeout: Timeout = None
    ) -> list[bool]:
        """Which of the ids a gallery has; none, where there is no such gallery."""
        result: list[bool] = []
        size = (await self.info()).max_images
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            reports = await self._operate("known", gallery, timeout, ids=part)
            result += [bool(report["known"]) for report in reports]
        return result

    async def digests(
        self, ids: Sequence[str], *, gallery: str = DEFAULT_GALLERY, timeout: Timeout = None
    ) -> list[str | None]:
        """What photos with these ids were known by when they were indexed.

        It is the SHA-256 of a file, "" of what was indexed without, and None of what is not there.
        """
        result: list[str | None] = []
        size = (await self.info()).max_images
        for start in range(0, len(ids), size):
            reports = await self._operate("known", gallery, timeout, ids=ids[start : start + size])
            result += [one.get(DIGEST, "") if one["known"] else None for one in reports]
        return result

    async def gallery_info(self, gallery: str | None = None, *, timeout: Timeout = None) -> Report:
        """Size, model and memory of one gallery, or of all, with their aliases."""
        return (await self._operate("info", gallery, timeout))[0]

    async def set_alias(self, alias: str, gallery: str, *, timeout: Timeout = None) -> Report:
        """Have `alias` mean `gallery` from now on, for all clients at once."""
        return (await self._operate("alias", gallery, timeout, alias=alias))[0]

    async def remove_alias(self, alias: str, *, timeout: Timeout = None) -> Report:
        """Have `alias` mean nothing any more; the gallery stays."""
        return (await self._operate("unalias", None, timeout, alias=alias))[0]

    async def drop_gallery(self, gallery: str, *, timeout: Timeout = None) -> Report:
        """Remove a gallery with everything in it."""
        return (await self._operate("drop", gallery, timeout))[0]

    async def snapshot(self, gallery: str = DEFAULT_GALLERY, *, timeout: Timeout = None) -> str:
        """Write a gallery to one file on the server, and return its path."""
        return str((await self._run("snapshot", gallery, timeout))["snapshot"])

    async def restore(self, snapshot: str, gallery: str, *, timeout: Timeout = None) -> Report:
        """Make a new gallery from a snapshot on the server."""
        return await self._run("restore", gallery, timeout, snapshot=snapshot)

    async def _run(
        self, operation: str, gallery: str, timeout: Timeout, **parameters: str
    ) -> Report:
        """Start something long, and wait for its end."""
        started = (await self._operate(operation, gallery, timeout, **parameters))[0]
        while True:
            job = (await self._operate("job", None, timeout, job=int(started["job"])))[0]
            if job["done"]:
                result: Report = job["result"]
                return result
            await asyncio.sleep(_POLL)

    async def _operate(
        self,
        operation: str,
        gallery: str | None,
        timeout: Timeout,
        *,
        ids: Sequence[str] = ("-",),
        **parameters: str | int,
    ) -> list[Report]:
        named = {"gallery": gallery} if gallery is not None else {}
        outputs = await self._infer(
            "gallery" if operation in _READING else "change",
            _ids(ids),
            ("report",),
            parameters={"operation": operation, **named, **parameters},
            timeout=timeout,
            idempotent=operation in _READING,
        )
        return [json.loads(report) for report in outputs["report"][:, 0]]


def _ids(ids: Sequence[str]) -> protocol.Arrays:
    return {"record": pack_texts([json.dumps({"id": identifier}).encode() for identifier in ids])}


def _inputs(
    contents: Sequence[str | ImageRegions], info: ModelInfo, for_captions: str, for_images: str
) -> tuple[str, protocol.Arrays]:
    """The ensemble for contents of one kind, and its inputs."""
    captions = [one for one in contents if isinstance(one, str)]
    images = [one for one in contents if isinstance(one, ImageRegions)]
    if captions and images:
        raise TeranInputError("images and sentences are mixed; pass one kind at a time")
    if captions:
        return for_captions, protocol.caption_inputs(captions)
    return for_images, protocol.image_inputs(images, info)


def _directory(items: object) -> Path | None:
    """The directory whose photos are meant, if one is."""
    if not (isinstance(items, Path) or (isinstance(items, str) and items.endswith("/"))):
        return None
    with suppress(OSError):  # no name that a directory can have
        return Path(items) if Path(items).is_dir() else None
    return None


def _check_names(items: Sequence[object]) -> None:
    """Refuse files of one name, of which only the last would stay.

    Raises:
        TeranInputError: there are such.
    """
    names = Counter(one.name for one in items if isinstance(one, Path))
    if twice := [name for name, count in names.items() if count > 1]:
        raise TeranInputError(
            f"{names[twice[0]]} photos are called {twice[0]!r}, and only the last would stay; pass "
            "Entry(path, id=...) for each, or their directory"
        )


def _entry_length(checked: tuple[Entry, bytes]) -> int:
    content = checked[0].content
    return len(content) if isinstance(content, str | ImageRegions) else 1


def _entry_id(checked: tuple[Entry, bytes]) -> str:
    return checked[0].id


def _search_parameters(
    k: int, gallery: str, where: Where | None, least: float | None = None, **flags: bool
) -> dict[str, bool | int | float | str]:
    if not 1 <= k <= MAX_RESULTS:
        raise TeranInputError(f"k is {k}, expected 1 to {MAX_RESULTS}")
    parameters: dict[str, bool | int | float | str] = {"gallery": gallery, "k": int(k)}
    if where:
        try:
            parameters["where"] = json.dumps(where, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TeranInputError(f"where: {error}") from error
    if least is not None:
        parameters["min_score_per_word"] = float(least)
    return parameters | _flags(**flags)


def _flags(**flags: bool) -> dict[str, bool | int | float | str]:
    return {name: True for name, wanted in flags.items() if wanted}
