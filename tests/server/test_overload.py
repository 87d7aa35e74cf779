"""More than a server can do: some of it is refused at once, the rest is answered in time.

Models are slowed by stopping their processes for most of the time, so that a test can ask for more
than they can do.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from teran_client import (
    AsyncTeranClient,
    Entry,
    TeranClient,
    TeranOverloadedError,
    TeranTimeoutError,
)

from teran.cli.background import BackgroundServer, background_server
from teran.supervisor.health import fetch
from teran.supervisor.load import read_counts
from tests.data import images
from tests.server.test_supervision import model_process

MAX_WAIT = 0.15
MODELS = ("textual_encoder", "visual_encoder", "gallery")


@pytest.fixture(scope="module")
def server(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackgroundServer]:
    folder = tmp_path_factory.mktemp("overload")
    flags = ("--max-wait", str(MAX_WAIT), "--gallery", str(folder / "gallery"))
    with background_server(repository, *flags, log=folder / "log") as running:
        with TeranClient(running.url) as client:
            client.index(images(20, longest=36))
        yield running


@contextmanager
def slowed(server: BackgroundServer, model: str, stopped: float = 0.095) -> Iterator[None]:
    """Let a model run for the rest of every tenth of a second only."""
    process, done = model_process(server, model), threading.Event()

    def work() -> None:
        while not done.is_set():
            process.suspend()
            done.wait(stopped)
            process.resume()
            done.wait(0.1 - stopped)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def metric(server: BackgroundServer, name: str, model: str) -> float:
    text = fetch(server.health_url.replace("/health/ready", "/metrics"), timeout=5)
    line = f'{name}_total{{model="{model}"}} '
    return sum(float(one.removeprefix(line)) for one in text.splitlines() if one.startswith(line))


def waiting(server: BackgroundServer, model: str) -> float:
    """Requests in a model's queue."""
    return read_counts(fetch(server.metrics_url, timeout=5))[model].pending


class Flood:
    """Sends so many requests a second, answered or not, without repetition."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.refused: list[float] = []
        self.errors: list[Exception] = []

    async def run(self, client: AsyncTeranClient, verb: str, rate: int, seconds: float) -> None:
        client._channel._tokens = -1e9  # no repetition
        photo = images(1, longest=36)[0]
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "captions": lambda: client.encode_captions("a dog runs", timeout=30),
            "searches": lambda: client.search("a dog runs", timeout=30),
            "searches by image": lambda: client.search(photo, timeout=30),
            "images": lambda: client.encode_images(photo, timeout=30),
            "like": lambda: client.search_like(photo.name, timeout=30),
        }
        await client.info()

        async def one() -> None:
            started = time.monotonic()
            try:
                await calls[verb]()
                self.times.append(time.monotonic() - started)
            except TeranOverloadedError:
                self.refused.append(time.monotonic() - started)
            except Exception as error:
                self.errors.append(error)

        tasks = []
        for _ in range(int(rate * seconds)):
            tasks.append(asyncio.create_task(one()))
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    ("verb", "slow", "rate"),
    [
        ("captions", "textual_encoder", 300),
        ("searches", "gallery", 300),
        ("searches by image", "visual_encoder", 300),
        # Straight to a model, which takes a whole batch at once.
        ("images", "visual_encoder", 900),
        ("like", "gallery", 900),
    ],
)
def test_what_would_wait_too_long_is_refused_at_once(
    server: BackgroundServer, verb: str, slow: str, rate: int
) -> None:
    flood = Flood()

    async def run() -> None:
        async with AsyncTeranClient(server.url) as client:
            # A direct flood is refused by the slowed process itself, at 80 us a request: of 900 a
            # second, it could not do so in a twentieth of the time.
            direct = verb in ("images", "like")
            with slowed(server, slow, stopped=0.08 if direct else 0.095):
                await flood.run(client, verb, rate, seconds=6)
            started = time.monotonic()
            await client.search("a dog runs")
            assert time.monotonic() - started < 2

    asyncio.run(run())
    assert not flood.errors
    assert len(flood.refused) > 50
    assert len(flood.times) > 50
    late = sorted(flood.times)[int(0.9 * len(flood.times))]
    assert late < 3, "without a limit, the last ones wait for as long as the flood lasts"
    assert server.is_ready(), "a model that is overloaded is alive"
    assert metric(server, "teran_model_reloads", slow) == 0


def test_images_that_wait_for_their_encoder_hold_up_no_search(server: BackgroundServer) -> None:
    """They are let in for the gallery too, but have not come to it."""
    flood, photos = Flood(), images(32, longest=36)
    enough = threading.Event()

    def entries() -> Iterator[Entry]:
        while not enough.is_set():
            yield from (Entry(one, one.name) for one in photos)

    def index() -> int:
        with TeranClient(server.url, timeout=60) as client:
            return sum(1 for _ in client.index(entries(), gallery="waiting"))

    async def search() -> None:
        async with AsyncTeranClient(server.url) as client:
            await flood.run(client, "searches", rate=20, seconds=8)

    with slowed(server, "visual_encoder"), ThreadPoolExecutor(1) as pool:
        indexed = pool.submit(index)
        try:
            time.sleep(3)
            asyncio.run(search())
        finally:
            enough.set()
    assert indexed.result() > 100
    assert not flood.errors
    assert len(flood.refused) < 0.05 * len(flood.times)


def test_what_nobody_waits_for_any_more_is_not_computed(server: BackgroundServer) -> None:
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
    queued: list[float] = []
    """Of the twenty, which the encoder has not been given by the time it is stopped."""

    async def run() -> None:
        async with AsyncTeranClient(server.url) as client:
            await client.encode_images(photo)
            encoder.suspend()
            try:
                calls = [asyncio.create_task(client.encode_images(photo)) for _ in range(20)]
                while len(queued) < 3 or not 10 < queued[-3] == queued[-1]:
                    await asyncio.sleep(0.05)
                    queued.append(waiting(server, "visual_encoder"))
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
                # That they went away is nowhere to be seen; after two seconds Triton kills the
                # process.
                await asyncio.sleep(0.2)
            finally:
                encoder.resume()
            await client.encode_images(photo)

    asyncio.run(run())
    assert metric(server, "teran_abandoned_requests", "visual_encoder") >= before + queued[-1]


def test_images_stand_back_behind_searches(server: BackgroundServer) -> None:
    niceness = {
        model: model_process(server, model).nice()
        for model in ("visual_encoder", "textual_encoder", "gallery")
    }
    usual = niceness["textual_encoder"]
    assert niceness == {"visual_encoder": usual + 10, "textual_encoder": usual, "gallery": usual}
