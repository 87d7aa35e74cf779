"""What nobody waits for any more is not computed. For servers that are not overloaded besides."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from teran_client import AsyncTeranClient, TeranTimeoutError
from teran_client.protocol import image_inputs

from teran.cli.background import BackgroundServer, background_server
from teran.supervisor.health import fetch
from teran.supervisor.load import read_counts
from tests.data import images
from tests.server.test_overload import metric
from tests.server.test_supervision import model_process


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[BackgroundServer]:
    with background_server(repository) as running:
        yield running


def waiting(server: BackgroundServer, model: str) -> float:
    """Requests in a model's queue."""
    return read_counts(fetch(server.metrics_url, timeout=5))[model].pending


def test_what_came_too_late_is_not_computed(server: BackgroundServer) -> None:
    encoder = model_process(server, "textual_encoder")
    before = metric(server, "teran_abandoned_requests", "textual_encoder")

    async def run() -> None:
        async with AsyncTeranClient(server.url) as client:
            await client.info()
            encoder.suspend()
            try:
                calls = [client.encode_captions("a dog", timeout=0.5) for _ in range(30)]
                results = await asyncio.gather(*calls, return_exceptions=True)
                await asyncio.sleep(0.2)
            finally:
                encoder.resume()
            assert all(isinstance(one, TeranTimeoutError) for one in results)
            assert (await client.encode_captions("a dog")).tokens

    asyncio.run(run())
    assert metric(server, "teran_abandoned_requests", "textual_encoder") == before + 30


def test_a_call_that_went_away_is_not_computed(server: BackgroundServer) -> None:
    """Of an encoder called directly: within an ensemble, Triton does not pass it on."""
    before = metric(server, "teran_abandoned_requests", "visual_encoder")
    encoder, photo = model_process(server, "visual_encoder"), images(1, longest=36)[0]

    async def run() -> float:
        async with AsyncTeranClient(server.url) as client:
            inputs = image_inputs([photo], await client.info())

            async def encode() -> object:
                return await client._infer("visual_encoder", inputs, ("region_embeddings",))

            await encode()
            encoder.suspend()
            try:
                calls = [asyncio.create_task(encode())]
                await asyncio.sleep(0.2)  # that is what the encoder has at hand
                calls += [asyncio.create_task(encode()) for _ in range(20)]
                await asyncio.sleep(0.5)
                queued = waiting(server, "visual_encoder")
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
                # That they went away is nowhere to be seen; after two seconds Triton kills the
                # process.
                await asyncio.sleep(0.2)
            finally:
                encoder.resume()
            await encode()
            return queued

    queued = asyncio.run(run())
    assert queued > 0
    assert metric(server, "teran_abandoned_requests", "visual_encoder") >= before + queued
