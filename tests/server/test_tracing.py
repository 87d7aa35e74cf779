"""Spans of client and server in one trace."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from teran_client import Entry, TeranClient, TeranInputError
from teran_client.tracing import ClientTracing

from teran.cli.background import BackgroundServer, background_server
from tests.data import images

T = TypeVar("T")


class Collector:
    """Takes what Triton exports: OTLP over HTTP, as JSON."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for resource in told["resourceSpans"]:
                    for scope in resource["scopeSpans"]:
                        spans.extend(scope["spans"])
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def of_trace(self, trace_id: str, root: str) -> dict[str, dict[str, Any]]:
        """The spans of a trace by name, once the one called `root` has come."""
        deadline = time.monotonic() + 15  # Triton exports every 5 s
        while True:
            found = {one["name"]: one for one in self.spans if one["traceId"] == trace_id}
            if root in found:
                return found
            assert time.monotonic() < deadline, f"only {list(found)}"
            time.sleep(0.2)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def arrived(look: Callable[[], T]) -> T:
    """What a look at new spans gives: Triton sends them once, whether they arrive or not."""
    for _ in range(3):
        with suppress(AssertionError):
            return look()
    return look()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(
    repository: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackgroundServer]:
    folder = tmp_path_factory.mktemp("server")
    flags = ("--trace-url", collector.url, "--gallery", str(folder / "gallery"))
    with background_server(repository, *flags, log=folder / "log") as running:
        with TeranClient(running.url) as client:
            client.index([Entry(image, image.name) for image in images(3)])
        yield running


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(spans: InMemorySpanExporter) -> TracerProvider:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(spans))
    return made


def named(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    (found,) = [span for span in spans.get_finished_spans() if span.name == name]
    return found


def test_one_trace_from_caller_to_models(
    server: BackgroundServer,
    collector: Collector,
    spans: InMemorySpanExporter,
    provider: TracerProvider,
) -> None:
    def search_once() -> dict[str, dict[str, Any]]:
        spans.clear()
        with (
            TeranClient(server.url, tracing=ClientTracing(provider)) as client,
            provider.get_tracer("test").start_as_current_span("page") as page,
        ):
            client.search("a dog runs")
        trace_id = format(page.get_span_context().trace_id, "032x")
        return collector.of_trace(trace_id, "InferRequest")

    served = arrived(search_once)
    page, search = named(spans, "page"), named(spans, "search")
    assert search.parent is not None
    assert page.context is not None
    assert search.context is not None
    assert search.parent.span_id == page.context.span_id
    assert search.attributes is not None
    assert search.attributes["teran.tries"] == 1
    assert served["InferRequest"]["parentSpanId"] == format(search.context.span_id, "016x")
    assert {"search", "tokenizer", "textual_encoder", "gallery"} <= served.keys()
    for model in ("tokenizer", "textual_encoder", "gallery"):
        assert served[model]["parentSpanId"] == served["search"]["spanId"]


def test_what_the_client_does_not_sample_is_not_traced(
    server: BackgroundServer, collector: Collector, provider: TracerProvider
) -> None:
    before = len(collector.spans)
    with TeranClient(server.url, tracing=ClientTracing(TracerProvider(ALWAYS_OFF))) as client:
        client.encode_captions("a dog runs")

    def match_once() -> None:
        with (
            TeranClient(server.url, tracing=ClientTracing(provider)) as client,
            provider.get_tracer("test").start_as_current_span("page") as page,
        ):
            client.match(images(1)[0], "a dog")
        collector.of_trace(format(page.get_span_context().trace_id, "032x"), "InferRequest")

    arrived(match_once)
    new = {span["name"] for span in collector.spans[before:]}
    assert "match" in new
    assert "encode_caption" not in new


def test_errors_are_in_the_span(
    server: BackgroundServer, spans: InMemorySpanExporter, provider: TracerProvider
) -> None:
    with (
        TeranClient(server.url, tracing=ClientTracing(provider)) as client,
        pytest.raises(TeranInputError),
    ):
        client.search("!")
    span = named(spans, "search")
    assert not span.status.is_ok
    assert [event.name for event in span.events] == ["exception"]


def test_a_wrong_address_is_refused(repository: Path) -> None:
    from teran.errors import ServingError
    from teran.supervisor.settings import ServeSettings

    settings = ServeSettings(repository, trace_url="collector:4318")
    with pytest.raises(ServingError, match="--trace-url is 'collector:4318'"):
        settings.trace_arguments()
