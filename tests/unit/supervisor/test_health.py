"""The health port under those who mean no good."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from teran.supervisor.health import HealthServer, HealthState, fetch
from teran.supervisor.host import free_ports


@pytest.fixture
def port() -> Iterator[int]:
    state, [port] = HealthState(), free_ports("127.0.0.1", 1)
    state.set_serving(True)
    server = HealthServer("127.0.0.1", port, state)
    yield port
    server.close()


def test_silent_connections_hold_up_no_probe(port: int) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        time.sleep(0.5)
        assert threading.active_count() - before < 100
        for _ in range(20):
            assert '"ready": true' in fetch(f"http://127.0.0.1:{port}/health/ready", timeout=2)


def test_a_silent_connection_ends_by_itself(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as silent:
        silent.settimeout(10)
        assert silent.recv(1) == b""


@pytest.mark.parametrize("sent", [b"\0" * 100, b"GET " + b"a" * 70_000, b"GET / HTTP/9\r\n\r\n"])
def test_nonsense_is_answered_or_dropped(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(10)
        while client.recv(4096):
            pass
    assert '"ready": true' in fetch(f"http://127.0.0.1:{port}/health/ready", timeout=2)


def test_a_defect_in_the_metrics_is_told() -> None:
    said: list[str] = []

    def metrics() -> bytes:
        raise OSError("counted wrongly")

    [port] = free_ports("127.0.0.1", 1)
    server = HealthServer(
        "127.0.0.1", port, HealthState(), metrics, lambda *words: said.extend(words)
    )
    with pytest.raises(OSError, match="500"):
        fetch(f"http://127.0.0.1:{port}/metrics", timeout=5)
    server.close()
    assert "in metrics" in said[0]
    assert "OSError: counted wrongly" in said[0]
    assert said[1] == "ERROR"
