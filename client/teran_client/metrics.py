"""What a client counts and measures, for Prometheus, where it is asked to.

Example:
    >>> client = TeranClient(url, metrics=ClientMetrics())
    >>> prometheus_client.start_http_server(9000)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from teran.errors import TeranError
from teran.extras import needs
from teran_client.call import Call

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ClientMetrics:
    """Metrics of one or several clients; labels are Triton models and kinds of errors only."""

    def __init__(self, registry: Any = None) -> None:
        """Register them.

        Args:
            registry: a `prometheus_client.CollectorRegistry`; by default the library's own.
        """
        with needs("metrics"):
            import prometheus_client as prometheus
        registry = registry or prometheus.REGISTRY
        self._seconds = prometheus.Histogram(
            "teran_client_request_seconds", "Time of a request that was answered, retries included",
            ["call"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._errors = prometheus.Counter(
            "teran_client_errors", "Requests that failed", ["call", "kind"], registry=registry
        )
        self._retries = prometheus.Counter(
            "teran_client_retries", "Repetitions of requests", ["call"], registry=registry
        )
        self._in_flight = prometheus.Gauge(
            "teran_client_in_flight_requests", "Requests under way", registry=registry
        )
        self._sent = prometheus.Counter(
            "teran_client_sent_bytes", "Size of requests, without shared memory", registry=registry
        )
        self._received = prometheus.Counter(
            "teran_client_received_bytes", "Size of answers", registry=registry
        )

    @contextmanager
    def call(self, call: Call) -> Iterator[None]:
        """Measure one request, from its first try to its answer or error."""
        started = perf_counter()
        self._sent.inc(call.request.ByteSize())
        with self._in_flight.track_inprogress():
            try:
                yield
            except TeranError as error:
                self._errors.labels(call.name, type(error).__name__).inc()
                raise
            finally:
                self._retries.labels(call.name).inc(max(call.tries - 1, 0))
        self._seconds.labels(call.name).observe(perf_counter() - started)
        self._received.inc(call.received)
