"""Several servers behind one client, and a client in several processes."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from teran_client import TeranClient

from teran.cli.background import BackgroundServer, background_server
from teran.supervisor.health import fetch
from tests.data import images


def executions(server: BackgroundServer) -> float:
    lines = fetch(server.metrics_url, 5).splitlines()
    name = 'nv_inference_request_success{model="encode_caption"'
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_a_rolling_update_fails_no_request(repository: Path, tmp_path: Path) -> None:
    def serve(
        number: int, stack: ExitStack, ports: dict[str, int] | None = None
    ) -> BackgroundServer:
        flags = ("--gallery", str(tmp_path / f"gallery{number}"), "--drain", "1")
        return stack.enter_context(
            background_server(repository, *flags, log=tmp_path / "log", fixed_ports=ports)
        )

    with ExitStack() as everything:
        stacks = [everything.enter_context(ExitStack()) for _ in range(3)]
        servers = [serve(i, stack) for i, stack in enumerate(stacks)]
        url = ",".join(server.url for server in servers)
        photos = images(8, longest=20)
        for server in servers:
            with TeranClient(server.url) as one:
                one.index(photos)
        client = everything.enter_context(TeranClient(url, timeout=20))
        failures: list[Exception] = []
        over = threading.Event()
        calls: dict[str, Callable[[], object]] = {
            "encode a caption": lambda: client.encode_captions("a dog"),
            "encode an image": lambda: client.encode_images(photos[0]),
            "search": lambda: client.search("a dog").hits[7],
            "match": lambda: client.match(photos[0], "a dog"),
            "index": lambda: client.index(photos[0]),
            "delete": lambda: client.delete("absent"),
        }
        answered = dict.fromkeys(calls, 0)

        def load(name: str) -> None:
            while not over.is_set():
                try:
                    calls[name]()
                    answered[name] += 1
                except Exception as error:
                    failures.append(error)
                over.wait(0.02)  # or the servers that start get nothing of two cores

        threads = [threading.Thread(target=load, args=(name,)) for name in calls]
        for thread in threads:
            thread.start()
        time.sleep(2)
        before = [executions(server) for server in servers]
        for i, stack in enumerate(stacks):
            stack.close()
            port = int(servers[i].url.rpartition(":")[2])
            servers[i] = serve(i, stack, {"grpc": port})
            time.sleep(2)
        time.sleep(2)
        after = [executions(server) for server in servers]
        over.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert min(before) > 0.1 * sum(before), "they do not take turns"
    assert min(after) > 0, "one was never used again"
    assert min(answered.values()) > 20, answered


def test_readiness_goes_before_service(repository: Path, tmp_path: Path) -> None:
    flags = ("--gallery", str(tmp_path / "gallery"), "--drain", "3")
    with (
        background_server(repository, *flags, log=tmp_path / "log") as server,
        TeranClient(server.url, timeout=5) as client,
    ):
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 2
        while server.is_ready():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.encode_captions("a dog").tokens  # those who have not heard are served
        server.process.send_signal(signal.SIGTERM)  # whoever is in a hurry
        assert server.process.wait(20) == 0
    assert "stopping in 3 s" in (tmp_path / "log").read_text()


FORKING = """
import os, sys
from teran_client import TeranClient, TeranError

client = TeranClient(sys.argv[1])
client.encode_captions("a dog")
child = os.fork()
if child == 0:
    try:
        client.encode_captions("a dog")
    except TeranError as error:
        print(error, flush=True)
    client.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert client.encode_captions("a dog").tokens
client.close()
"""

FORKING_ASYNCHRONOUSLY = """
import asyncio, os, sys
from teran_client import AsyncTeranClient, TeranError

client = AsyncTeranClient(sys.argv[1])

async def use():
    return (await client.encode_captions("a dog")).tokens

async def parent():
    assert await use()
    child = os.fork()
    if child == 0:
        return True
    assert os.waitpid(child, 0)[1] == 0
    assert await use()
    await client.close()

async def forked():
    try:
        await use()
    except TeranError as error:
        print(error, flush=True)
    await client.close()
    os._exit(0)

if asyncio.run(parent()):
    asyncio.run(forked())
"""


@pytest.mark.parametrize("program", [FORKING, FORKING_ASYNCHRONOUSLY])
def test_a_client_in_a_forked_child_says_so(server: BackgroundServer, program: str) -> None:
    """It hung for ever: its thread is not in the child."""
    ended = subprocess.run(
        [sys.executable, "-c", program, server.url],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "make one in every process" in ended.stdout
