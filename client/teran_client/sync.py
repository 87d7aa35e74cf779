"""The synchronous client: the asynchronous one, run on an event loop in a thread of its own."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, Literal, TypeVar, cast, overload

from teran.errors import TeranError
from teran_client.aio import AsyncTeranClient, CaptionLike, ImageLike
from teran_client.channel import Tls
from teran_client.gallery_sync import GalleryVerbs
from teran_client.images import Floats, ImageRegions
from teran_client.metrics import ClientMetrics
from teran_client.protocol import ModelInfo
from teran_client.results import EncodedCaption, Match, Profile, Ranked
from teran_client.tracing import ClientTracing

Result = TypeVar("Result")
_INTERRUPT_PATIENCE = 5.0
"""Seconds an interrupted call gets to end."""


class TeranClient(GalleryVerbs):
    """Encodes, scores, matches and ranks images and captions on a TERAN server.

    The same verbs as `AsyncTeranClient`, which describes them; safe to use from several threads.

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
        """Prepare a client; see `AsyncTeranClient`."""
        self._client = AsyncTeranClient(
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
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="teran-client", daemon=True
        )
        self._closing, self._closed = threading.Lock(), False
        self._thread.start()

    def __enter__(self) -> "TeranClient":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end what is under way; the client can't be used afterwards."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut_down(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._client.close()

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run `work` on the loop and wait for it; when interrupted, wait until it has ended."""
        if self._closed:
            work.close()
            raise TeranError("the client is closed")
        ended = threading.Event()

        async def run() -> Result:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result()
        except CancelledError as error:
            raise TeranError("the client was closed during the call") from error
        except BaseException:
            if not future.done():  # Ctrl-C: nothing goes on behind the caller's back
                future.cancel()
                ended.wait(_INTERRUPT_PATIENCE)
            raise

    def _iterate(self, results: AsyncIterator[Result]) -> Iterator[Result]:
        async def following() -> tuple[bool, Any]:
            try:
                return True, await anext(results)
            except StopAsyncIteration:
                return False, None

        try:
            while (step := self._wait(following()))[0]:
                yield step[1]
        finally:
            if hasattr(results, "aclose") and not self._closed:
                self._wait(results.aclose())

    def is_ready(self) -> bool:
        return self._wait(self._client.is_ready())

    def info(self) -> ModelInfo:
        return self._wait(self._client.info())

    @overload
    def encode_images(self, images: ImageRegions, *, timeout: float | None = None) -> Floats: ...
    @overload
    def encode_images(
        self, images: Sequence[ImageRegions], *, timeout: float | None = None
    ) -> list[Floats]: ...
    @overload
    def encode_images(
        self, images: Iterable[ImageRegions], *, timeout: float | None = None
    ) -> Iterator[Floats]: ...
    def encode_images(
        self,
        images: ImageRegions | Sequence[ImageRegions] | Iterable[ImageRegions],
        *,
        timeout: float | None = None,
    ) -> Floats | list[Floats] | Iterator[Floats]:
        result: Floats | list[Floats] | AsyncIterator[Floats]
        result = self._wait(self._client.encode_images(cast(Any, images), timeout=timeout))
        return self._iterate(result) if isinstance(result, AsyncIterator) else result

    @overload
    def encode_captions(
        self, captions: str, *, verbatim: bool = False, timeout: float | None = None
    ) -> EncodedCaption: ...
    @overload
    def encode_captions(
        self, captions: Sequence[str], *, verbatim: bool = False, timeout: float | None = None
    ) -> list[EncodedCaption]: ...
    @overload
    def encode_captions(
        self, captions: Iterable[str], *, verbatim: bool = False, timeout: float | None = None
    ) -> Iterator[EncodedCaption]: ...
    def encode_captions(
        self,
        captions: str | Sequence[str] | Iterable[str],
        *,
        verbatim: bool = False,
        timeout: float | None = None,
    ) -> EncodedCaption | list[EncodedCaption] | Iterator[EncodedCaption]:
        result = self._wait(
            self._client.encode_captions(captions, verbatim=verbatim, timeout=timeout)
        )
        return self._iterate(result) if isinstance(result, AsyncIterator) else result

    def score(
        self,
        images: Sequence[ImageLike],
        captions: Sequence[CaptionLike],
        *,
        timeout: float | None = None,
    ) -> Floats:
        return self._wait(self._client.score(images, captions, timeout=timeout))

    def match(self, image: ImageRegions, caption: str, *, timeout: float | None = None) -> Match:
        return self._wait(self._client.match(image, caption, timeout=timeout))

    def rank(
        self,
        caption: CaptionLike,
        images: Sequence[ImageLike],
        k: int = 10,
        *,
        timeout: float | None = None,
    ) -> list[Ranked]:
        return self._wait(self._client.rank(caption, images, k, timeout=timeout))

    def profile(self, caption: str, image: ImageRegions | None = None, calls: int = 50) -> Profile:
        return self._wait(self._client.profile(caption, image, calls))
