"""The asynchronous client. The synchronous one is a thin shell around it."""

from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

import numpy as np
from tritonclient.grpc import service_pb2

from teran.contract import BULK_PARAMETER
from teran.errors import (
    TeranError,
    TeranInputError,
    TeranServerError,
    TeranTimeoutError,
    TeranUnavailableError,
)
from teran_client import protocol
from teran_client.call import Timeout
from teran_client.channel import Channel, Tls
from teran_client.gallery import AsyncGalleryVerbs
from teran_client.images import Floats, ImageRegions
from teran_client.items import apart, checked, with_progress
from teran_client.metrics import ClientMetrics
from teran_client.photos import Photo, PhotoLike, is_photo
from teran_client.pipeline import Items, SendBulk, pipeline
from teran_client.profiling import profile
from teran_client.protocol import ModelInfo
from teran_client.results import Detection, EncodedCaption, Match, Profile, Ranked
from teran_client.scoring import align
from teran_client.shared_memory import SharedMemory
from teran_client.tracing import ClientTracing

Item = TypeVar("Item")
Result = TypeVar("Result")
_FEW = 8
"""Items of a list that somebody waits for; longer lists, and streams, give way to others."""
Encodable = ImageRegions | PhotoLike | str
"""An image: its regions, or a photo whose regions the server finds; a string is its path."""
ImageLike = Encodable | Floats
"""An image, or its region embeddings (R, E) if it was encoded before."""
CaptionLike = str | EncodedCaption


class AsyncTeranClient(AsyncGalleryVerbs):
    """Encodes, scores, matches and ranks images and captions on a TERAN server.

    Example:
        >>> async with AsyncTeranClient("localhost:8001") as client:
        ...     match = await client.match(image, "two dogs on a beach")

    Every verb raises `TeranInputError` before anything is sent where an item can't be right,
    `TeranUnavailableError` where the server can't be reached, `TeranOverloadedError` where it has
    too much to do, `TeranTimeoutError` where it takes too long, and `TeranServerError` where it
    fails. Lists of many items, and streams, give way to what others wait for, and wait until an
    overloaded server takes them.
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
        if in_flight < 1 or (batch_size is not None and batch_size < 1):
            raise TeranInputError("in_flight and batch_size must be at least 1")
        self._channel = Channel(
            url,
            timeout=timeout,
            retries=retries,
            tls=tls,
            headers=headers,
            observers=[one for one in (metrics, tracing) if one],
        )
        self._shared = SharedMemory(self._channel, shared_memory)
        self._batch_size, self._in_flight, self._progress = batch_size, in_flight, progress
        self._info: ModelInfo | None = None
        self._photos: bool | None = None

    async def __aenter__(self) -> "AsyncTeranClient":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._shared.close()
        await self._channel.close()

    async def is_ready(self) -> bool:
        """Whether the server answers and says that its models are ready."""
        try:
            answer = await self._channel.call(
                "ServerReady", service_pb2.ServerReadyRequest(), timeout=2.0
            )
        except Exception:  # whatever the reason, it is not
            return False
        return bool(answer.ready)

    async def info(self) -> ModelInfo:
        """What the server's model takes; asked once."""
        if self._info is None:
            names = ("visual_encoder", "textual_encoder", "alignment")
            configs = [
                (
                    await self._channel.call(
                        "ModelConfig", service_pb2.ModelConfigRequest(name=name)
                    )
                ).config
                for name in names
            ]
            self._info = ModelInfo.from_configs(*configs)
        return self._info

    async def takes_photos(self) -> bool:
        """Whether the server finds regions by itself; asked once."""
        if self._photos is None:
            asked = service_pb2.ModelConfigRequest(name="photo")
            try:
                await self._channel.call("ModelConfig", asked)
            except (TeranUnavailableError, TeranTimeoutError):
                raise
            except TeranServerError:  # there is no such model
                self._photos = False
            else:
                self._photos = True
        return self._photos

    @overload
    async def detect(self, photos: PhotoLike | str, *, timeout: Timeout = None) -> Detection: ...
    @overload
    async def detect(
        self, photos: Sequence[PhotoLike | str], *, timeout: Timeout = None
    ) -> list[Detection]: ...
    @overload
    async def detect(
        self, photos: Items[PhotoLike | str], *, timeout: Timeout = None
    ) -> AsyncIterator[Detection]: ...
    async def detect(
        self,
        photos: PhotoLike | str | Sequence[PhotoLike | str] | Items[PhotoLike | str],
        *,
        timeout: Timeout = None,
    ) -> Detection | list[Detection] | AsyncIterator[Detection]:
        """Find the regions of photos; one, a list or a stream, as in `encode_images`."""
        await self._require_photos()

        async def send(batch: Sequence[Photo], *, bulk: bool = False) -> Sequence[Detection]:
            names = (
                "region_features", "boxes", "region_mask", "confidence", "labels", "photo_size",
            )  # fmt: skip
            found = []
            for photo in batch:
                inputs = await protocol.photo_inputs(photo)
                outputs = await self._infer(
                    "detect_regions", inputs, names, timeout=timeout, bulk=bulk
                )
                found.append(protocol.read_detection(outputs, photo.name))
            return found

        if isinstance(photos, str) or is_photo(photos):
            return (await send([Photo.of(photos)]))[0]
        many = cast("Items[PhotoLike | str]", photos)
        return await self._map("photo", many, Photo.of, send, _FEW, lambda _: 1, len)

    @overload
    async def encode_images(self, images: Encodable, *, timeout: Timeout = None) -> Floats: ...
    @overload
    async def encode_images(
        self, images: Sequence[Encodable], *, timeout: Timeout = None
    ) -> list[Floats]: ...
    @overload
    async def encode_images(
        self, images: Items[Encodable], *, timeout: Timeout = None
    ) -> AsyncIterator[Floats]: ...
    async def encode_images(
        self, images: Encodable | Sequence[Encodable] | Items[Encodable], *, timeout: Timeout = None
    ) -> Floats | list[Floats] | AsyncIterator[Floats]:
        """Encode images to region embeddings (R, E) each.

        One image gives one array, a list gives a list, anything else that can be iterated gives an
        asynchronous iterator, which reads ahead of what it yields. An image is its regions, or a
        photo: a path, bytes, or a picture of Pillow's.
        """
        info = await self.info()

        async def send_photo(photo: Photo, *, bulk: bool) -> Floats:
            await self._require_photos()
            inputs = await protocol.photo_inputs(photo)
            names = ("region_embeddings", "region_mask")
            outputs = await self._infer("encode_photo", inputs, names, timeout=timeout, bulk=bulk)
            return protocol.read_photo(outputs)

        async def send_regions(batch: Sequence[ImageRegions], *, bulk: bool) -> Sequence[Floats]:
            outputs = await self._infer(
                "encode_image",
                protocol.image_inputs(batch, info),
                ("region_embeddings",),
                timeout=timeout,
                bulk=bulk,
            )
            return protocol.read_images(outputs, batch)

        async def send(
            batch: Sequence[ImageRegions | Photo], *, bulk: bool = False
        ) -> Sequence[Floats]:
            return await apart(
                batch, partial(send_regions, bulk=bulk), partial(send_photo, bulk=bulk)
            )

        def check(image: object, name: str) -> ImageRegions | Photo:
            return protocol.check_image(image, name, info)

        if isinstance(images, ImageRegions | str) or is_photo(images):
            return (await send([check(images, "image")]))[0]
        many = cast("Items[Encodable]", images)
        return await self._map("image", many, check, send, info.max_images, info.bulk, len)

    @overload
    async def encode_captions(
        self, captions: str, *, verbatim: bool = False, timeout: Timeout = None
    ) -> EncodedCaption: ...
    @overload
    async def encode_captions(
        self, captions: Sequence[str], *, verbatim: bool = False, timeout: Timeout = None
    ) -> list[EncodedCaption]: ...
    @overload
    async def encode_captions(
        self, captions: Items[str], *, verbatim: bool = False, timeout: Timeout = None
    ) -> AsyncIterator[EncodedCaption]: ...
    async def encode_captions(
        self,
        captions: str | Sequence[str] | Items[str],
        *,
        verbatim: bool = False,
        timeout: Timeout = None,
    ) -> EncodedCaption | list[EncodedCaption] | AsyncIterator[EncodedCaption]:
        """Encode captions to word embeddings; one, a list or a stream, as in `encode_images`.

        With `verbatim`, no full stop is added where a caption lacks one: the evaluation protocol.
        """
        info = await self.info()

        async def send(batch: Sequence[str], *, bulk: bool = False) -> Sequence[EncodedCaption]:
            outputs = await self._infer(
                "encode_caption",
                protocol.caption_inputs(batch),
                ("word_embeddings", "word_mask", "tokens", "truncated"),
                parameters={"verbatim": True} if verbatim else None,
                timeout=timeout,
                bulk=bulk,
            )
            return protocol.read_captions(outputs, batch)

        if isinstance(captions, str):
            return (await send([protocol.check_caption(captions, "caption")]))[0]
        check = protocol.check_caption
        return await self._map("caption", captions, check, send, info.max_captions, info.bulk, len)

    async def score(
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
        for i, image in enumerate(images):
            if not (isinstance(image, ImageRegions | np.ndarray | str) or is_photo(image)):
                raise TeranInputError(
                    f"image {i} is {type(image).__name__}, expected ImageRegions, a photo or "
                    "embeddings"
                )
        words = await self._encoded_captions(captions, timeout)
        regions = await self._encoded_images(images, timeout)
        return await self._align(regions, [word.word_embeddings for word in words], timeout)

    async def match(self, image: Encodable, caption: str, *, timeout: Timeout = None) -> Match:
        """Score one image against one caption, and tell which region each word matches.

        Args:
            image: its regions, or a photo: a path, bytes, or a picture of Pillow's.
            caption: a sentence.
            timeout: seconds for the request.
        """
        info = await self.info()
        image = protocol.check_image(image, "image", info)
        caption = protocol.check_caption(caption, "caption")
        if isinstance(image, Photo):
            await self._require_photos()
            outputs = await self._infer(
                "match_photo",
                {**await protocol.photo_inputs(image), **protocol.caption_inputs([caption])},
                (
                    "scores", "region_word_similarity", "word_mask", "tokens", "truncated",
                    "boxes", "region_mask",
                ),
                timeout=timeout,
            )  # fmt: skip
            return protocol.read_match(outputs, protocol.present_boxes(outputs))
        outputs = await self._infer(
            "match",
            {**protocol.image_inputs([image], info), **protocol.caption_inputs([caption])},
            ("scores", "region_word_similarity", "word_mask", "tokens", "truncated"),
            timeout=timeout,
        )
        return protocol.read_match(outputs, image.boxes)

    async def rank(
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
        if k < 1:
            raise TeranInputError(f"k is {k}, expected at least 1")
        encoded = (await self._encoded_captions([caption], timeout))[0]
        scores = (await self.score(images, [encoded], timeout=timeout))[:, 0]
        words = max(int(encoded.word_mask.sum()), 1)
        return [
            Ranked(int(i), _name(images[i], int(i)), float(scores[i]), float(scores[i] / words))
            for i in np.argsort(-scores, kind="stable")[:k]
        ]

    async def profile(
        self, caption: str, image: Encodable | None = None, calls: int = 50
    ) -> Profile:
        """Show where the time of a call goes: `encode_captions`, or `match` if there is an image.

        The server's part is read from its statistics, so other clients' requests count as well.
        """
        info = await self.info()
        if image is not None:
            image = protocol.check_image(image, "image", info)
            if isinstance(image, Photo):
                await self._require_photos()
        return await profile(self._channel, info, caption, image, calls)

    async def _require_photos(self) -> None:
        if not await self.takes_photos():
            raise TeranInputError(
                "the server takes no photos, only regions: `teran export --detector` has to make "
                "its repository"
            )

    async def _infer(
        self,
        model: str,
        inputs: protocol.Arrays,
        outputs: Sequence[str],
        *,
        parameters: protocol.Parameters | None = None,
        timeout: Timeout = None,
        idempotent: bool = True,
        bulk: bool = False,
    ) -> protocol.Arrays:
        segment = None
        if bulk:
            parameters = {**(parameters or {}), BULK_PARAMETER: True}
        try:
            async with self._shared.segment(inputs) as segment:
                request = protocol.infer_request(model, inputs, outputs, parameters, segment)
                response = await self._channel.call(
                    "ModelInfer", request, timeout, idempotent=idempotent, patient=bulk
                )
        except TeranError as error:
            if segment is None or segment.name not in str(error):
                raise
            # A server that was restarted knows no segments; this request goes without.
            request = protocol.infer_request(model, inputs, outputs, parameters)
            response = await self._channel.call(
                "ModelInfer", request, timeout, idempotent=idempotent, patient=bulk
            )
        return protocol.require(protocol.read_response(response), *outputs)

    async def _map(
        self,
        noun: str,
        items: Items[Any],
        check: Callable[[object, str], Item],
        send: SendBulk[Item, Result],
        largest_batch: int,
        bulk_batch: Callable[[Item], int],
        length: Callable[[Item], int],
        key: Callable[[Item], Hashable] | None = None,
    ) -> list[Result] | AsyncIterator[Result]:
        """Run `send` over all items: a list for a list, an iterator for anything else."""
        size = min(self._batch_size or largest_batch, largest_batch)
        source = checked(items, check, noun)
        count = len(items) if isinstance(items, Sequence) else None
        bulk = count is None or count > _FEW
        results = pipeline(
            source,
            partial(send, bulk=bulk),
            batch_size=size,
            in_flight=self._in_flight,
            length=length,
            key=key,
            fewer=bulk_batch if bulk and self._batch_size is None else None,
        )
        if self._progress:
            results = with_progress(results, noun, count)
        return results if count is None else [result async for result in results]

    async def _encoded_images(self, images: Sequence[ImageLike], timeout: Timeout) -> list[Floats]:
        raw = [image for image in images if not isinstance(image, np.ndarray)]
        fresh = iter(await self.encode_images(raw, timeout=timeout) if raw else [])
        return [image if isinstance(image, np.ndarray) else next(fresh) for image in images]

    async def _encoded_captions(
        self, captions: Sequence[CaptionLike], timeout: Timeout
    ) -> list[EncodedCaption]:
        if isinstance(captions, str):
            raise TeranInputError("captions is one string, expected a list of them")
        raw = [caption for caption in captions if not isinstance(caption, EncodedCaption)]
        fresh = iter(await self.encode_captions(raw, timeout=timeout) if raw else [])
        return [c if isinstance(c, EncodedCaption) else next(fresh) for c in captions]

    async def _align(
        self, regions: Sequence[Floats], words: Sequence[Floats], timeout: Timeout
    ) -> Floats:
        """Score all pairs."""

        async def send(inputs: protocol.Arrays) -> Floats:
            outputs = await self._infer(
                "alignment", inputs, ("scores",), timeout=timeout, bulk=True
            )
            scores: Floats = outputs["scores"]
            return scores

        return await align(send, await self.info(), regions, words, self._in_flight)


def _name(image: ImageLike, index: int) -> str:
    if isinstance(image, str | Path):
        return Path(image).name
    return image.name if isinstance(image, ImageRegions | Photo) else str(index)
