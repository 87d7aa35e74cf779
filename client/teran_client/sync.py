"""The synchronous client: made from the asynchronous one by `make generate`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from teran.contract import DEFAULT_GALLERY
from teran_client.aio import AsyncTeranClient, CaptionLike, Encodable, ImageLike
from teran_client.blocking import BlockingClient
from teran_client.call import Timeout
from teran_client.channel import Tls
from teran_client.entry import Indexable, IndexableOne
from teran_client.gallery import QueryLike, Refused, Report, Where
from teran_client.images import Floats
from teran_client.metrics import ClientMetrics
from teran_client.photos import PhotoLike
from teran_client.protocol import ModelInfo
from teran_client.results import Detection, EncodedCaption, Match, Profile, Ranked, SearchResult
from teran_client.tracing import ClientTracing


class TeranClient(BlockingClient):
    """Encodes, scores, matches, ranks, indexes and searches images and captions on a TERAN server.

    The same verbs as `AsyncTeranClient`; safe to use from several threads.

    Example:
        >>> with TeranClient("localhost:8001") as client:
        ...     match = client.match(image, "two dogs on a beach")
        ...     print(match.score_per_word, match.best_regions())
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout: float = 60.0,
        retries: int = 3,
        batch_size: int | None = None,
        in_flight: int = 4,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
        progress: bool = False,
        shared_memory: bool | Literal["cuda"] | None = None,
        metrics: ClientMetrics | None = None,
        tracing: ClientTracing | None = None,
    ) -> None:
        """Prepare a client; the connection is made by the first call.

        Args:
            url: host:port of the server's gRPC endpoint; several IP addresses with commas, or
                dns:///host:port, to take turns with several servers.
            timeout: seconds a request may take, its retries included.
            retries: how often the first request is repeated where the server can't be reached;
                later ones are repeated until their time is over.
            batch_size: items per request; by default what the server takes at most, or fewer of
                many items, so that others need not wait long.
            in_flight: requests kept under way.
            tls: certificates for a TLS connection.
            headers: metadata sent with every request.
            progress: whether to show a progress bar for lists and generators.
            shared_memory: whether large inputs go by shared memory; by default where the server is
                on this host and allows it. "cuda": by a GPU's memory, for a server on that GPU.
            metrics: what to count and measure calls with, for Prometheus; by default nothing is.
            tracing: what makes spans of calls, for OpenTelemetry; by default nothing does.
        """
        super().__init__(
            AsyncTeranClient(
                url,
                timeout=timeout,
                retries=retries,
                batch_size=batch_size,
                in_flight=in_flight,
                tls=tls,
                headers=headers,
                progress=progress,
                shared_memory=shared_memory,
                metrics=metrics,
                tracing=tracing,
            )
        )

    def is_ready(self) -> bool:
        """Whether the server answers and says that its models are ready."""
        return self._run(self._client.is_ready())

    def info(self) -> ModelInfo:
        """What the server's model takes; asked once."""
        return self._run(self._client.info())

    def takes_photos(self) -> bool:
        """Whether the server finds regions by itself; asked once."""
        return self._run(self._client.takes_photos())

    @overload
    def detect(self, photos: PhotoLike | str, *, timeout: Timeout = None) -> Detection: ...
    @overload
    def detect(
        self, photos: Sequence[PhotoLike | str], *, timeout: Timeout = None
    ) -> list[Detection]: ...
    @overload
    def detect(
        self, photos: Iterable[PhotoLike | str], *, timeout: Timeout = None
    ) -> Iterator[Detection]: ...
    def detect(
        self,
        photos: PhotoLike | str | Sequence[PhotoLike | str] | Iterable[PhotoLike | str],
        *,
        timeout: Timeout = None,
    ) -> Detection | list[Detection] | Iterator[Detection]:
        """Find the regions of photos; one, a list or a stream, as in `encode_images`."""
        return self._run(self._client.detect(photos, timeout=timeout))

    @overload
    def encode_images(self, images: Encodable, *, timeout: Timeout = None) -> Floats: ...
    @overload
    def encode_images(
        self, images: Sequence[Encodable], *, timeout: Timeout = None
    ) -> list[Floats]: ...
    @overload
    def encode_images(
        self, images: Iterable[Encodable], *, timeout: Timeout = None
    ) -> Iterator[Floats]: ...
    def encode_images(
        self,
        images: Encodable | Sequence[Encodable] | Iterable[Encodable],
        *,
        timeout: Timeout = None,
    ) -> Floats | list[Floats] | Iterator[Floats]:
        """Encode images to region embeddings (R, E) each.

        One image gives one array, a list gives a list, anything else that can be iterated gives an
        iterator, which reads ahead of what it yields. An image is its regions, or a
        photo: a path, bytes, or a picture of Pillow's.
        """
        return self._run(self._client.encode_images(images, timeout=timeout))

    @overload
    def encode_captions(
        self, captions: str, *, verbatim: bool = False, timeout: Timeout = None
    ) -> EncodedCaption: ...
    @overload
    def encode_captions(
        self, captions: Sequence[str], *, verbatim: bool = False, timeout: Timeout = None
    ) -> list[EncodedCaption]: ...
    @overload
    def encode_captions(
        self, captions: Iterable[str], *, verbatim: bool = False, timeout: Timeout = None
    ) -> Iterator[EncodedCaption]: ...
    def encode_captions(
        self,
        captions: str | Sequence[str] | Iterable[str],
        *,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> EncodedCaption | list[EncodedCaption] | Iterator[EncodedCaption]:
        """Encode captions to word embeddings; one, a list or a stream, as in `encode_images`.

        With `verbatim`, no full stop is added where a caption lacks one: the evaluation protocol.
        """
        return self._run(self._client.encode_captions(captions, verbatim=verbatim, timeout=timeout))

    def score(
        self,
        images: Sequence[ImageLike],
        captions: Sequence[CaptionLike],
        *,
        timeout: Timeout = None,
    ) -> Floats:
        """Score every image against every caption: (N, M).

        Args:
            images: images, or region embeddings that `encode_images` returned.
            captions: sentences, or what `encode_captions` returned.
            timeout: seconds for each request.
        """
        return self._run(self._client.score(images, captions, timeout=timeout))

    def match(self, image: Encodable, caption: str, *, timeout: Timeout = None) -> Match:
        """Score one image against one caption, and tell which region each word matches.

        Args:
            image: its regions, or a photo: a path, bytes, or a picture of Pillow's.
            caption: a sentence.
            timeout: seconds for the request.
        """
        return self._run(self._client.match(image, caption, timeout=timeout))

    def rank(
        self,
        caption: CaptionLike,
        images: Sequence[ImageLike],
        k: int = 10,
        *,
        timeout: Timeout = None,
    ) -> list[Ranked]:
        """Rank images for a caption, the best first, and return the first `k`.

        Images that were encoded before are passed as their embeddings, and cost only the alignment.
        """
        return self._run(self._client.rank(caption, images, k, timeout=timeout))

    def profile(self, caption: str, image: Encodable | None = None, calls: int = 50) -> Profile:
        """Show where the time of a call goes: `encode_captions`, or `match` if there is an image.

        The server's part is read from its statistics, so other clients' requests count as well.
        """
        return self._run(self._client.profile(caption, image, calls))

    @overload
    def index(
        self,
        items: str | Path,
        *,
        gallery: str = DEFAULT_GALLERY,
        refused: Refused | None = None,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> str | list[str]: ...
    @overload
    def index(
        self,
        items: IndexableOne,
        *,
        gallery: str = DEFAULT_GALLERY,
        refused: Refused | None = None,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> str: ...
    @overload
    def index(
        self,
        items: Sequence[Indexable],
        *,
        gallery: str = DEFAULT_GALLERY,
        refused: Refused | None = None,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> list[str]: ...
    @overload
    def index(
        self,
        items: Iterable[Indexable],
        *,
        gallery: str = DEFAULT_GALLERY,
        refused: Refused | None = None,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> Iterator[str]: ...
    def index(
        self,
        items: Any,
        *,
        gallery: str = DEFAULT_GALLERY,
        refused: Refused | None = None,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> str | list[str] | Iterator[str]:
        """Encode and store images (or sentences), and return their ids.

        An id is returned when the item is stored for good and can be found. Indexing the same
        again changes nothing. One item gives an id, a list or a directory a list, anything else an
        iterator; all items must be of one kind.

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
        return self._run(
            self._client.index(
                items, gallery=gallery, refused=refused, verbatim=verbatim, timeout=timeout
            )
        )

    @overload
    def search(
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
    def search(
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
    def search(
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
        return self._run(
            self._client.search(
                queries,
                k,
                gallery=gallery,
                where=where,
                min_score_per_word=min_score_per_word,
                explain=explain,
                exact=exact,
                verbatim=verbatim,
                timeout=timeout,
            )
        )

    def search_like(
        self,
        identifier: str,
        k: int = 10,
        *,
        gallery: str = DEFAULT_GALLERY,
        where: Where | None = None,
        timeout: Timeout = None,
    ) -> SearchResult:
        """Find what is most like an item of a gallery, by its own embeddings."""
        return self._run(
            self._client.search_like(identifier, k, gallery=gallery, where=where, timeout=timeout)
        )

    def delete(
        self, ids: str | Sequence[str], *, gallery: str = DEFAULT_GALLERY, timeout: Timeout = None
    ) -> int:
        """Remove items; returns how many of them were there."""
        return self._run(self._client.delete(ids, gallery=gallery, timeout=timeout))

    def known(
        self, ids: Sequence[str], *, gallery: str = DEFAULT_GALLERY, timeout: Timeout = None
    ) -> list[bool]:
        """Which of the ids a gallery has; none, where there is no such gallery."""
        return self._run(self._client.known(ids, gallery=gallery, timeout=timeout))

    def digests(
        self, ids: Sequence[str], *, gallery: str = DEFAULT_GALLERY, timeout: Timeout = None
    ) -> list[str | None]:
        """What photos with these ids were known by when they were indexed.

        It is the SHA-256 of a file, "" of what was indexed without, and None of what is not there.
        """
        return self._run(self._client.digests(ids, gallery=gallery, timeout=timeout))

    def gallery_info(self, gallery: str | None = None, *, timeout: Timeout = None) -> Report:
        """Size, model and memory of one gallery, or of all, with their aliases."""
        return self._run(self._client.gallery_info(gallery, timeout=timeout))

    def set_alias(self, alias: str, gallery: str, *, timeout: Timeout = None) -> Report:
        """Have `alias` mean `gallery` from now on, for all clients at once."""
        return self._run(self._client.set_alias(alias, gallery, timeout=timeout))

    def remove_alias(self, alias: str, *, timeout: Timeout = None) -> Report:
        """Have `alias` mean nothing any more; the gallery stays."""
        return self._run(self._client.remove_alias(alias, timeout=timeout))

    def drop_gallery(self, gallery: str, *, timeout: Timeout = None) -> Report:
        """Remove a gallery with everything in it."""
        return self._run(self._client.drop_gallery(gallery, timeout=timeout))

    def snapshot(self, gallery: str = DEFAULT_GALLERY, *, timeout: Timeout = None) -> str:
        """Write a gallery to one file on the server, and return its path."""
        return self._run(self._client.snapshot(gallery, timeout=timeout))

    def restore(self, snapshot: str, gallery: str, *, timeout: Timeout = None) -> Report:
        """Make a new gallery from a snapshot on the server."""
        return self._run(self._client.restore(snapshot, gallery, timeout=timeout))
