"""A model's process stands still for longer than Triton waits for one, and then goes on."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from teran_client import AsyncTeranClient, TeranClient, TeranOverloadedError

from teran.cli.background import BackgroundServer, background_server
from tests.data import images
from tests.server.test_overload import metric
from tests.server.test_supervision import model_process

STILL = 1.7
"""Seconds; Triton's Python backend gives a process up after one."""


@pytest.fixture(scope="module")
def server(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackgroundServer]:
    folder = tmp_path_factory.mktemp("standstill")
    flags = ("--gallery", str(folder / "gallery"))
    with background_server(repository, *flags, log=folder / "log") as running:
        with TeranClient(running.url) as client:
            client.index(images(20, longest=36))
        yield running


@contextmanager
def unchanged(server: BackgroundServer, model: str) -> Iterator[None]:
    """Assert that neither a model nor the server was started again."""
    process = model_process(server, model)
    reloads = metric(server, "teran_model_reloads", model)
    yield
    assert model_process(server, model) == process
    assert metric(server, "teran_model_reloads", model) == reloads


@pytest.mark.parametrize("other_dies", [False, True])
def test_the_request_at_hand_is_answered(server: BackgroundServer, other_dies: bool) -> None:
    photo = images(1, longest=36)[0]

    async def run() -> None:
        async with AsyncTeranClient(server.url) as client:
            expected = await client.search_like(photo.name)
            process = model_process(server, "gallery")
            process.suspend()
            if other_dies:
                model_process(server, "visual_encoder").kill()
            waiting = asyncio.create_task(client.search_like(photo.name))
            await asyncio.sleep(STILL)
            assert not waiting.done()
            process.resume()
            assert await waiting == expected

    with unchanged(server, "gallery"):
        asyncio.run(run())


def test_every_caller_gets_an_answer_of_its_own(server: BackgroundServer) -> None:
    """An answer that Triton does not wait for any more would go to the next one who asks."""
    photos = images(20, longest=36)
    with TeranClient(server.url) as client:
        expected = {photo.name: client.search_like(photo.name) for photo in photos}
    outcomes: Counter[str] = Counter()

    async def run() -> None:
        async with AsyncTeranClient(server.url) as client:
            client._channel._tokens = -1e9  # no repetition

            async def ask(name: str) -> None:
                try:
                    found = await client.search_like(name, timeout=30)
                    outcomes["right" if found == expected[name] else "wrong"] += 1
                except TeranOverloadedError:
                    outcomes["refused"] += 1
                except Exception as error:
                    outcomes[str(error)] += 1

            async def flood() -> None:
                tasks = []
                for i in range(1000):
                    tasks.append(asyncio.create_task(ask(photos[i % len(photos)].name)))
                    await asyncio.sleep(1 / 300)
                await asyncio.gather(*tasks)

            flooding = asyncio.create_task(flood())
            await asyncio.sleep(1)
            process = model_process(server, "gallery")
            process.suspend()
            await asyncio.sleep(STILL)
            process.resume()
            await flooding

    with unchanged(server, "gallery"):
        for _ in range(2):
            asyncio.run(run())
    assert outcomes.keys() <= {"right", "refused"}
    assert outcomes["right"] > 500
