"""More than a server can do: some of it is refused at once, the rest is answered in time.

Models are slowed by stopping their processes for most of the time, so that a test can ask for more
than they can do.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import grpc
import psutil
import pytest
from teran_client import AsyncTeranClient, Entry, TeranClient, TeranOverloadedError
from teran_client.protocol import image_inputs
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from teran.cli.background import BackgroundServer, background_server
from teran.supervisor.health import fetch
from tests.data import images
from tests.server.test_supervision import model_process

MAX_WAIT = 0.15


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
        with suppress(psutil.NoSuchProcess):  # where a test kills it
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
            "matches": lambda: client.match(photo, "a dog runs", timeout=30),
            "images written": lambda: client.index(photo, gallery="new", timeout=30),
            "captions written": lambda: client.index("a dog", gallery="captions", timeout=30),
            "images, straight": lambda: client._infer(
                "visual_encoder", inputs, outputs, timeout=30
            ),
            "like": lambda: client.search_like(photo.name, timeout=30),
        }
        inputs, outputs = image_inputs([photo], await client.info()), ("region_embeddings",)

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


STRAIGHT = (("images, straight", "visual_encoder", 0.09, 450), ("like", "gallery", 0.08, 600))
"""Straight to a model, which has to refuse by itself while it runs: no more than it can."""


@pytest.mark.parametrize(
    ("verb", "slow", "stopped", "rate"),
    [
        ("captions", "textual_encoder", 0.095, 300),
        ("searches", "gallery", 0.08, 300),
        ("searches by image", "visual_encoder", 0.095, 300),
        ("images", "visual_encoder", 0.095, 300),
        ("matches", "visual_encoder", 0.095, 300),
        ("images written", "visual_encoder", 0.095, 300),
        ("captions written", "textual_encoder", 0.095, 300),
        *STRAIGHT,
    ],
)
def test_what_would_wait_too_long_is_refused_at_once(
    server: BackgroundServer, verb: str, slow: str, stopped: float, rate: int
) -> None:
    flood = Flood()

    async def run() -> None:
        async with AsyncTeranClient(server.url) as client:
            with slowed(server, slow, stopped):
                await flood.run(client, verb, rate, seconds=6)
        async with AsyncTeranClient(server.url) as client:
            started = time.monotonic()
            await client.search("a dog runs")
            assert time.monotonic() - started < 2

    asyncio.run(run())
    assert not flood.errors
    assert len(flood.refused) > 50
    assert len(flood.times) > 50
    if (verb, slow, stopped, rate) not in STRAIGHT:
        assert median(flood.refused) < 0.5
    known = sorted(flood.times[len(flood.times) // 2 :])  # at first nobody knows how slow it is
    late = known[int(0.9 * len(known))]
    assert late < 3, "without a limit, the last ones wait for as long as the flood lasts"
    assert server.is_ready(), "a model that is overloaded is alive"
    assert metric(server, "teran_model_reloads", slow) == 0


def test_a_model_that_dies_in_a_flood_comes_back(server: BackgroundServer) -> None:
    """Triton warms the next one up, which is refused as little as it is late."""
    flood = Flood()

    async def run() -> None:
        async with AsyncTeranClient(server.url) as client:
            flooding = asyncio.create_task(
                flood.run(client, "images, straight", rate=900, seconds=6)
            )
            await asyncio.sleep(3)
            model_process(server, "visual_encoder").kill()
            await flooding

    with slowed(server, "visual_encoder", stopped=0.09):
        asyncio.run(run())
    assert len(flood.refused) > 50
    # What waited for the process that died fails soon, and is sent again while there is time.
    assert not flood.errors
    with TeranClient(server.url, timeout=30) as client:
        assert len(client.encode_images(images(1, longest=36))) == 1
    assert server.process.poll() is None


def test_what_is_let_in_and_goes_elsewhere_holds_up_nobody(server: BackgroundServer) -> None:
    """Whoever calls the model that admits images need not send any."""
    over, sent = threading.Event(), [0]

    def promise() -> None:
        request = pb.ModelInferRequest(model_name="admission")
        request.inputs.add(name="region_mask", datatype="BOOL", shape=[64, 4])
        request.raw_input_contents.append(bytes(64 * 4))
        with grpc.insecure_channel(server.url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not over.is_set():
                sent[0] += 1
                with suppress(grpc.RpcError):
                    stub.ModelInfer(request, timeout=10)
                time.sleep(0.005)

    flood, thread = Flood(), threading.Thread(target=promise)

    async def encode() -> None:
        async with AsyncTeranClient(server.url) as client:
            await flood.run(client, "images", rate=20, seconds=8)

    async def show_speed() -> None:
        async with AsyncTeranClient(server.url) as client:
            await Flood().run(client, "images", rate=300, seconds=2)

    with slowed(server, "visual_encoder"):
        asyncio.run(show_speed())
    thread.start()
    try:
        with slowed(server, "visual_encoder", stopped=0.02):
            asyncio.run(encode())
    finally:
        over.set()
        thread.join()
    assert not flood.errors
    assert sent[0] > 100
    assert len(flood.refused) < 0.1 * len(flood.times), len(flood.refused)


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


def test_images_stand_back_behind_searches(server: BackgroundServer) -> None:
    niceness = {
        model: model_process(server, model).nice()
        for model in ("visual_encoder", "textual_encoder", "gallery")
    }
    usual = niceness["textual_encoder"]
    assert niceness == {"visual_encoder": usual + 10, "textual_encoder": usual, "gallery": usual}
