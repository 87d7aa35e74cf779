"""Large inputs by shared memory: the same results, nothing left behind, gRPC where it can't be."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import torch
from teran_client import Entry, TeranClient, TeranInputError, TeranTimeoutError
from teran_client.aio import AsyncTeranClient
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from teran.cli.background import BackgroundServer
from teran.contract import ADMIN_KEY_HEADER
from teran.secrets import find_key
from tests.data import images
from tests.server.test_supervision import wait_for


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teran_client.shared_memory.SMALLEST", 1)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = segments()
    yield
    assert segments() == before


def segments() -> set[Path]:
    return set(Path("/dev/shm").glob("teran-client-*"))


def test_results_are_those_of_plain_grpc(server: BackgroundServer) -> None:
    sent = images(60, longest=60)
    with (
        TeranClient(server.url, batch_size=8) as shared,
        TeranClient(server.url, batch_size=8, shared_memory=False) as plain,
    ):
        ours, theirs = shared.encode_images(sent), plain.encode_images(sent)
        assert shared._client._shared._all, "shared memory was not used"
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        # Some inputs of a request by shared memory, others not.
        shared.index([Entry(one, f"s{i}") for i, one in enumerate(sent[:20])], gallery="shared")
        hit = shared.search_like("s3", k=1, gallery="shared").hits[0]
        assert hit.id == "s3"
        assert hit.score_per_word == pytest.approx(1, abs=1e-3)
        match = shared.match(sent[0], "a dog runs")
        assert match.score == pytest.approx(plain.match(sent[0], "a dog runs").score, abs=1e-6)


def test_many_threads_share_no_segment(server: BackgroundServer) -> None:
    sent = images(40, seed=5, longest=40)
    with TeranClient(server.url, shared_memory=False) as plain:
        expected = plain.encode_images(sent)
    with TeranClient(server.url) as client, ThreadPoolExecutor(8) as pool:
        for a, b in zip(pool.map(client.encode_images, sent), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_falls_back_where_the_server_refuses(
    server: BackgroundServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(**fields: object) -> object:
        """The key of a segment the server can't see, as from another container."""
        return pb.SystemSharedMemoryRegisterRequest(**{**fields, "key": "/not-here"})

    patched = SimpleNamespace(SystemSharedMemoryRegisterRequest=elsewhere)
    monkeypatch.setattr("teran_client.segment.pb", patched)
    with TeranClient(server.url) as client:
        assert len(client.encode_images(images(3))) == 3
        assert not segments()


def test_a_gpu_that_is_not_there_is_done_without(
    server: BackgroundServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What a host without one can tell of CUDA shared memory: the reason, and the next best way."""
    pytest.importorskip("cuda.bindings.runtime")
    if torch.cuda.is_available():
        pytest.skip("this host has a GPU")
    caplog.set_level("INFO", "teran_client")
    with TeranClient(server.url, shared_memory="cuda") as client:
        assert len(client.encode_images(images(3))) == 3
        kinds = {type(segment).__name__ for segment in client._client._shared._all}
    assert kinds == {"Segment"}
    assert "no CudaSegment" in caplog.text


def test_forgotten_segments_are_made_again(server: BackgroundServer) -> None:
    """As after a restart of the server, which forgets what was registered."""

    async def run() -> None:
        async with AsyncTeranClient(server.url) as client:
            await client.encode_images(images(2))
            await client._channel.call(
                "SystemSharedMemoryUnregister",
                pb.SystemSharedMemoryUnregisterRequest(),
                headers={ADMIN_KEY_HEADER: str(find_key(int(server.url.rpartition(":")[2])))},
            )
            assert len(await client.encode_images(images(2))) == 2

    asyncio.run(run())


def test_refused_requests_release_their_segment(server: BackgroundServer) -> None:
    with TeranClient(server.url) as client:
        for _ in range(5):
            with pytest.raises(TeranInputError):
                client.match(images(1)[0], "!")
        assert len(client.encode_images(images(3))) == 3


def test_calls_that_time_out_together_say_so(server: BackgroundServer) -> None:
    """Each gives its segment up, and none hides the error by doing so."""

    async def run() -> None:
        async with AsyncTeranClient(server.url) as client:
            await client.encode_images(images(2))
            calls = [client.encode_images(images(2), timeout=1e-4) for _ in range(6)]
            for result in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(result, TeranTimeoutError | list)
            assert len(await client.encode_images(images(2))) == 2

    asyncio.run(run())


def test_memory_of_a_client_that_died_is_let_go(server: BackgroundServer) -> None:
    script = f"""
import numpy as np, os, signal
from teran_client import TeranClient
import teran_client.shared_memory as shared
from tests.data import images
shared.SMALLEST = 1
client = TeranClient({server.url!r})
client.encode_images(images(20, longest=60))
assert client._client._shared._all
os.kill(os.getpid(), signal.SIGKILL)
"""
    with TeranClient(server.url) as alive:
        alive.encode_images(images(20, longest=60))
        before = registered(server)
        assert before
        for _ in range(2):
            died = subprocess.run([sys.executable, "-c", script], check=False)
            assert died.returncode == -signal.SIGKILL
        assert len(registered(server)) > len(before)
        assert wait_for(lambda: registered(server) == before, 10)
        alive.encode_images(images(20, longest=60))
        assert alive._client._shared.usable
        assert registered(server) == before


def registered(server: BackgroundServer) -> set[str]:
    """The segments that the server has open."""
    key = find_key(int(server.url.rpartition(":")[2]))
    with grpc.insecure_channel(server.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = pb.SystemSharedMemoryStatusRequest()
        answer = stub.SystemSharedMemoryStatus(request, metadata=[(ADMIN_KEY_HEADER, key)])
        return set(answer.regions)
