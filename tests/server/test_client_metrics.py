"""The client's metrics, of calls that succeed, are refused, and reach nobody."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from teran_client import TeranClient, TeranError, TeranInputError
from teran_client.metrics import ClientMetrics

from teran.cli.background import BackgroundServer
from teran.supervisor.host import free_ports
from tests.data import images

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0.0


def test_calls_are_counted(server: BackgroundServer, registry: CollectorRegistry) -> None:
    metrics = ClientMetrics(registry)
    with TeranClient(server.url, metrics=metrics, shared_memory=False) as client:
        client.encode_captions("a dog runs")
        client.encode_images(images(3))
        client.match(images(1)[0], "a dog")
        with pytest.raises(TeranInputError):
            client.match(images(1)[0], "!")
    seconds = "teran_client_request_seconds_count"
    assert value(registry, seconds, call="encode_caption") == 1
    assert value(registry, seconds, call="encode_image") == 1
    assert value(registry, seconds, call="match") == 1
    assert value(registry, "teran_client_errors_total", call="match", kind="TeranInputError") == 1
    assert value(registry, "teran_client_in_flight_requests") == 0
    # Three images of at least 36 regions with 24 features go out; their embeddings come back.
    assert value(registry, "teran_client_sent_bytes_total") > 3 * 36 * 24 * 4
    assert value(registry, "teran_client_received_bytes_total") > 3 * 36 * 16 * 4


def test_calls_that_reach_nobody(registry: CollectorRegistry) -> None:
    [port] = free_ports("127.0.0.1", 1)
    url = f"127.0.0.1:{port}"
    metrics = ClientMetrics(registry)
    with TeranClient(url, retries=2, metrics=metrics) as client, pytest.raises(TeranError):
        client.info()
    labels = {"call": "ModelConfig", "kind": "TeranUnavailableError"}
    assert value(registry, "teran_client_errors_total", **labels) == 1
    assert value(registry, "teran_client_retries_total", call="ModelConfig") == 2


def test_clients_may_share_metrics(server: BackgroundServer, registry: CollectorRegistry) -> None:
    metrics = ClientMetrics(registry)
    for _ in range(2):
        with TeranClient(server.url, metrics=metrics) as client:
            client.encode_captions("a dog runs")
    assert value(registry, "teran_client_request_seconds_count", call="encode_caption") == 2


def test_the_table_tells_of_all(registry: CollectorRegistry) -> None:
    ClientMetrics(registry)
    table = (DOCS / "metrics.md").read_text()
    told = set(re.findall(r"^\| `(teran_client_\w+)`", table, re.MULTILINE))
    counters = {"counter": "_total"}
    ours = {family.name + counters.get(family.type, "") for family in registry.collect()}
    assert ours == told
