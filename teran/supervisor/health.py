"""The supervisor's own readiness over HTTP: what Triton's ready flags fail to tell.

`GET /health/live` is 200 while the supervisor runs; `GET /health/ready` is 200 while every model
answers and 503 otherwise, with the models by name as JSON. A model whose process died is taken
out at once; one that hangs, as soon as a canary got no answer in time and nothing else did either.
`GET /metrics` is for Prometheus.
"""

import json
import socket
import threading
import traceback
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

_CONNECTIONS, _PATIENCE = 64, 5.0
"""Connections held at once, and seconds that a silent one may last."""


def fetch(url: str, timeout: float) -> str:
    """What an address of a server tells; without a proxy, which may not reach this host.

    Raises:
        OSError: it does not answer, or not in HTTP.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as answer:
            return str(answer.read().decode(errors="replace"))
    except HTTPException as error:
        raise OSError(f"no answer in HTTP ({type(error).__name__})") from error


class HealthState:
    """Which models answer. Written by the supervisor, read by the health server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, bool] = {}
        self._serving = False

    def set_model(self, name: str, ready: bool) -> None:
        with self._lock:
            self._models[name] = ready

    def set_serving(self, serving: bool) -> None:
        """Whether the server process itself is up and not on its way down."""
        with self._lock:
            self._serving = serving

    def snapshot(self) -> tuple[bool, dict[str, bool]]:
        """Whether everything is ready, and each model."""
        with self._lock:
            return self._serving and all(self._models.values()), dict(self._models)


class _BoundedServer(ThreadingHTTPServer):
    """Holds so many connections and no more: the oldest goes when there is another."""

    request_queue_size = 128
    """Whoever finds it full tries again after a second, which a probe may not have."""

    def __init__(self, *arguments: Any) -> None:
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, None] = {}
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._connections) >= _CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                with suppress(OSError):  # its thread then ends
                    oldest.shutdown(socket.SHUT_RDWR)
            self._connections[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever goes away before the answer is no news."""


class HealthServer:
    """Answers health requests from a thread of its own."""

    def __init__(
        self,
        host: str,
        port: int,
        state: HealthState,
        metrics: Callable[[], bytes] | None = None,
        report: Callable[[str, str], None] = print,
    ) -> None:
        """Listen.

        Args:
            host: where to.
            port: likewise.
            state: of what to tell.
            metrics: gives the text of `/metrics`, where that is wanted.
            report: told of a defect in that, and its severity.
        """

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics" and metrics is not None:
                    try:
                        text = metrics()
                    except Exception as error:
                        report(f"no metrics: {traceback.format_exc()}", "ERROR")
                        self._answer(500, f"{error!r}\n".encode(), "text/plain")
                        return
                    self._answer(200, text, CONTENT_TYPE_LATEST)
                    return
                ready, models = state.snapshot()
                status = {"/health/live": 200, "/health/ready": 200 if ready else 503}
                body = json.dumps({"ready": ready, "models": models}).encode()
                self._answer(status.get(self.path, 404), body, "application/json")

            def _answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Probes come every few seconds: not worth a line each."""

            timeout = _PATIENCE

        self._server = _BoundedServer((host, port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
